"""Noise that photos have: what is added to clean patches in training, and to clean photos to measure a denoiser.

Sigma is in 8-bit levels (0–255) everywhere; pixels are sRGB floats in [0, 1] of shape (B, 3, H, W).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from model.jpeg import pass_through_jpeg

PEAK = 255.0

# Brooks et al. 2019, "Unprocessing Images for Learned Raw Denoising", section 3.1: the shot noise of real cameras is
# log-uniform in this range, and the variance of their read noise follows it on a line in log space, normally spread.
LOG_SHOT_RANGE = (math.log(1e-4), math.log(1.2e-2))
READ_SLOPE, READ_INTERCEPT, READ_SPREAD = 2.18, 1.20, 0.26

JPEG_QUALITY_RANGE = (75.0, 98.0)  # what cameras and phones write
JPEG_420_SHARE = 2 / 3  # phones halve the chroma, and so do most cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """What a training patch suffers. Shares must add up to 1; each patch draws its own kind and level.

    Attributes:
        sigma_min, sigma_max: range of the uniform Gaussian level, in 8-bit levels.
        float_share: white Gaussian noise, neither clipped nor rounded (the protocol of papers).
        file_share: white Gaussian noise in a file, which clips it and rounds it to 8 bits.
        camera_share: signal-dependent sensor noise in linear light, half of it behind a Bayer mosaic, in a file.
        jpeg_share: share of those files that are JPEGs, at a quality of 75–98, two in three with halved chroma (4:2:0).
    """

    sigma_min: float = 0.0
    sigma_max: float = 55.0
    float_share: float = 0.5
    file_share: float = 0.2
    camera_share: float = 0.3
    jpeg_share: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min <= self.sigma_max:
            raise ValueError(f"sigma range {self.sigma_min}–{self.sigma_max} is not in order: expected 0 <= min <= max")
        shares = (self.float_share, self.file_share, self.camera_share)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"noise shares {shares} must be positive and add up to 1")
        if not 0 <= self.jpeg_share <= 1:
            raise ValueError(f"jpeg_share is {self.jpeg_share}: expected a number from 0 to 1")


def sample_noisy(clean_BCHW: Tensor, config: NoiseConfig, generator: Generator) -> Tensor:
    """Draw a kind and a level of noise for every patch of the batch and return the noisy batch (same shape, float)."""
    batch = clean_BCHW.shape[0]
    kind_B = torch.rand(batch, generator=generator)
    sigma_B = torch.empty(batch).uniform_(config.sigma_min, config.sigma_max, generator=generator)
    noisy_BCHW = add_gaussian(clean_BCHW, sigma_B, generator)

    is_camera_B = kind_B >= config.float_share + config.file_share
    if is_camera_B.any():
        count = int(is_camera_B.sum())
        shot_B = torch.empty(count).uniform_(*LOG_SHOT_RANGE, generator=generator).exp()
        has_mosaic_B = torch.rand(count, generator=generator) < 0.5
        noisy_BCHW[is_camera_B] = add_camera_noise(clean_BCHW[is_camera_B], shot_B, has_mosaic_B, generator)

    is_file_B = kind_B >= config.float_share
    noisy_BCHW[is_file_B] = to_8bit(noisy_BCHW[is_file_B])

    quality_B = torch.empty(batch).uniform_(*JPEG_QUALITY_RANGE, generator=generator).round()
    is_420_B = torch.rand(batch, generator=generator) < JPEG_420_SHARE
    is_jpeg_B = is_file_B & (torch.rand(batch, generator=generator) < config.jpeg_share)
    if is_jpeg_B.any():
        noisy_BCHW[is_jpeg_B] = pass_through_jpeg(noisy_BCHW[is_jpeg_B], quality_B[is_jpeg_B], is_420_B[is_jpeg_B])
    return noisy_BCHW


def add_gaussian(clean_BCHW: Tensor, sigma_B: Tensor, generator: Generator) -> Tensor:
    """Add white Gaussian noise of `sigma_B` 8-bit levels. The result is not clipped."""
    white_BCHW = torch.randn(clean_BCHW.shape, generator=generator)
    return clean_BCHW + white_BCHW * (sigma_B / PEAK)[:, None, None, None]


def to_8bit(photo_BCHW: Tensor) -> Tensor:
    """Clip to [0, 1] and round to 8-bit levels, as writing a file does."""
    return (photo_BCHW.clamp(0, 1) * PEAK).round() / PEAK


def add_camera_noise(clean_BCHW: Tensor, shot_B: Tensor, has_mosaic_B: Tensor, generator: Generator) -> Tensor:
    """Add sensor noise as a camera does: in linear light, then (where asked) through a mosaic, as an 8-bit sRGB file.

    The variance is `shot * x + read_variance` for linear x in [0, 1], the Gaussian approximation of Poisson–Gaussian
    noise (Foi et al. 2008); read noise is drawn given the shot noise (Brooks et al. 2019, section 3.1).

    Args:
        clean_BCHW: sRGB in [0, 1].
        shot_B: shot noise, the variance that it gives to a fully exposed pixel; 1e-4 (base ISO) to 1.2e-2 (high ISO).
        has_mosaic_B: whether the photo passes an RGGB mosaic and bilinear demosaicing, which colours the noise.
        generator: draws the noise.
    """
    spread_B = torch.randn(shot_B.shape, generator=generator) * READ_SPREAD
    read_variance_B = (READ_SLOPE * shot_B.log() + READ_INTERCEPT + spread_B).exp()
    linear_BCHW = srgb_to_linear(clean_BCHW)
    variance_BCHW = shot_B[:, None, None, None] * linear_BCHW + read_variance_B[:, None, None, None]
    noisy_BCHW = linear_BCHW + torch.randn(linear_BCHW.shape, generator=generator) * variance_BCHW.sqrt()
    if has_mosaic_B.any():
        noisy_BCHW[has_mosaic_B] = demosaic(noisy_BCHW[has_mosaic_B])
    return to_8bit(linear_to_srgb(noisy_BCHW))


def photograph(clean_HWC: NDArray[np.uint8], *, shot: float, seed: int) -> NDArray[np.uint8]:
    """The (H, W, 3) sRGB photo as a camera takes it behind a mosaic. Equal seeds give equal noise.

    Args:
        shot: as for `add_camera_noise`.
    """
    clean_BCHW = torch.from_numpy(clean_HWC.astype(np.float32) / PEAK).permute(2, 0, 1)[None]
    generator = Generator().manual_seed(seed)
    noisy_BCHW = add_camera_noise(clean_BCHW, torch.tensor([shot]), torch.tensor([True]), generator)
    return (noisy_BCHW[0].permute(1, 2, 0) * PEAK).round().to(torch.uint8).contiguous().numpy()


def demosaic(linear_BCHW: Tensor) -> Tensor:
    """Keep the one colour of each pixel that an RGGB sensor sees, and interpolate the others bilinearly."""
    mask_CHW = torch.zeros(linear_BCHW.shape[1:])
    mask_CHW[0, 0::2, 0::2] = 1
    mask_CHW[1, 0::2, 1::2] = 1
    mask_CHW[1, 1::2, 0::2] = 1
    mask_CHW[2, 1::2, 1::2] = 1
    sparse = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    dense = torch.tensor([[0.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 0.0]])  # green has no use for its diagonals
    weights = torch.stack([sparse, dense, sparse])[:, None]
    seen_BCHW = F.conv2d(linear_BCHW * mask_CHW, weights, padding=1, groups=3)
    return seen_BCHW / F.conv2d(mask_CHW[None], weights, padding=1, groups=3)


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """The sRGB transfer function's inverse (IEC 61966-2-1), on [0, 1]."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """The sRGB transfer function (IEC 61966-2-1); values outside [0, 1] are clipped first."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)
