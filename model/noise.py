"""Noise that photos have: what is added to clean patches in training, and to clean photos to measure a denoiser.

Sigma is in 8-bit levels (0–255) everywhere; pixels are sRGB floats in [0, 1] of shape (B, 3, H, W).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from model.camera import READ_INTERCEPT, READ_SLOPE, READ_SPREAD, Cameras, Demosaicing, add_camera_noise
from model.jpeg import pass_through_jpeg

PEAK = 255.0

JPEG_QUALITY_RANGE = (60.0, 98.0)  # what cameras, phones and web sites write
JPEG_420_SHARE = 2 / 3  # phones halve the chroma, and so do most cameras
EARLIER_JPEG_SHARE = 0.1  # of the files: saved as JPEG before the noise came, too
HOT_PIXEL_SHARE = 0.15  # of cameras
MAX_GRAIN_SIGMA = 30.0
MAX_BLOTCH_SIGMA = 12.0
LOG_HOT_DENSITY_RANGE = (math.log(1e-4), math.log(3e-3))


class NoiseKind(StrEnum):
    """Where the noise of a patch comes from; the shares of `NoiseConfig` have the same names."""

    CLEAN = "clean"
    FLOAT = "float"
    FILE = "file"
    CAMERA = "camera"
    GRAIN = "grain"
    IMPULSE = "impulse"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """What a training patch suffers. Shares must add up to 1; each patch draws its own kind and level.

    Attributes:
        sigma_min, sigma_max: range of the uniform Gaussian level, in 8-bit levels.
        clean_share: no noise but that of a file.
        float_share: white Gaussian noise, neither clipped nor rounded (the protocol of papers).
        file_share: white Gaussian noise in a file, which clips it and rounds it to 8 bits.
        camera_share: a camera's signal-dependent noise (`model.camera`), with what the camera does to it.
        grain_share: film grain.
        impulse_share: salt and pepper.
        impulse_density_min, impulse_density_max: range of the share of the pixels that it hits.
        jpeg_share: share of the files (all but `float`) that are JPEGs, at a quality of 60–98, two in three with
            halved chroma (4:2:0).
        filtered_share: share of cameras, grain and files that the camera or a later step blurred or sharpened.
        blotched_share: share of cameras and files with low-frequency chroma noise, as a camera's own denoising of
            chroma leaves it.
    """

    sigma_min: float = 0.0
    sigma_max: float = 55.0
    clean_share: float = 0.05
    float_share: float = 0.42
    file_share: float = 0.18
    camera_share: float = 0.29
    grain_share: float = 0.06
    impulse_share: float = 0.00
    impulse_density_min: float = 0.0
    impulse_density_max: float = 0.3
    jpeg_share: float = 0.5
    filtered_share: float = 0.35
    blotched_share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(
                f"sigma range {self.sigma_min}–{self.sigma_max} is no range of levels: expected 0 <= min <= max, finite"
            )
        if not 0 <= self.impulse_density_min <= self.impulse_density_max <= 1:
            raise ValueError(
                f"impulse densities {self.impulse_density_min}–{self.impulse_density_max} are no range within 0–1"
            )
        shares = self.shares.values()
        if min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-6:  # also refuses NaN
            raise ValueError(f"noise shares {self.shares} must be positive and add up to 1")
        for name in ("jpeg_share", "filtered_share", "blotched_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a number from 0 to 1")

    @classmethod
    def only(cls, **settings: float) -> "NoiseConfig":
        """Settings in which every share that is not named is zero: `NoiseConfig.only(float_share=1)`."""
        return cls(**({f"{kind}_share": 0.0 for kind in NoiseKind} | settings))

    @property
    def shares(self) -> dict[str, float]:
        return {str(kind): float(getattr(self, f"{kind}_share")) for kind in NoiseKind}


def sample_noisy(clean_BCHW: Tensor, config: NoiseConfig, generator: Generator) -> Tensor:
    """Draw a kind and a level of noise for every patch of the batch and return the noisy batch (same shape, float).

    Both sides of the patches must be multiples of 16 pixels, as JPEG's blocks are.
    """
    draw = _Draw(generator)
    kind_B = torch.multinomial(
        torch.tensor(list(config.shares.values())), len(clean_BCHW), replacement=True, generator=generator
    )
    of_kind = {kind: kind_B == number for number, kind in enumerate(NoiseKind)}
    is_file_B = ~of_kind[NoiseKind.FLOAT]
    noisy_BCHW = clean_BCHW.clone()
    _apply(_jpeg, noisy_BCHW, is_file_B & draw.chance(is_file_B, EARLIER_JPEG_SHARE), draw)

    def gaussian(photo_BCHW: Tensor, draw: _Draw) -> Tensor:
        sigma_B = draw.uniform(len(photo_BCHW), config.sigma_min, config.sigma_max)
        return add_gaussian(photo_BCHW, sigma_B, draw.generator)

    def impulses(photo_BCHW: Tensor, draw: _Draw) -> Tensor:
        density_B = draw.uniform(len(photo_BCHW), config.impulse_density_min, config.impulse_density_max)
        return add_impulses(photo_BCHW, density_B, draw.chance(density_B, 0.5), draw.generator)

    _apply(gaussian, noisy_BCHW, of_kind[NoiseKind.FLOAT] | of_kind[NoiseKind.FILE], draw)
    _apply(_camera, noisy_BCHW, of_kind[NoiseKind.CAMERA], draw)
    _apply(_grain, noisy_BCHW, of_kind[NoiseKind.GRAIN], draw)
    _apply(impulses, noisy_BCHW, of_kind[NoiseKind.IMPULSE], draw)

    may_be_blotched_B = of_kind[NoiseKind.CAMERA] | of_kind[NoiseKind.FILE]
    _apply(_blotches, noisy_BCHW, may_be_blotched_B & draw.chance(may_be_blotched_B, config.blotched_share), draw)
    is_hot_B = of_kind[NoiseKind.CAMERA] & draw.chance(is_file_B, HOT_PIXEL_SHARE)
    _apply(_hot_pixels, noisy_BCHW, is_hot_B, draw)
    may_be_filtered_B = may_be_blotched_B | of_kind[NoiseKind.GRAIN]
    is_filtered_B = may_be_filtered_B & draw.chance(may_be_filtered_B, config.filtered_share)
    if is_filtered_B.any():  # the noise alone, as if the clean photo had passed the filter, too
        clean = clean_BCHW[is_filtered_B]
        kernels = random_kernels(int(is_filtered_B.sum()), generator)
        noisy_BCHW[is_filtered_B] = clean + filter_each(noisy_BCHW[is_filtered_B] - clean, kernels)

    noisy_BCHW[is_file_B] = to_8bit(noisy_BCHW[is_file_B])
    _apply(_jpeg, noisy_BCHW, is_file_B & draw.chance(is_file_B, config.jpeg_share), draw)
    return noisy_BCHW


def add_gaussian(clean_BCHW: Tensor, sigma_B: Tensor, generator: Generator) -> Tensor:
    """Add white Gaussian noise of `sigma_B` 8-bit levels. The result is not clipped."""
    white_BCHW = torch.randn(clean_BCHW.shape, generator=generator)
    return clean_BCHW + white_BCHW * _spread(sigma_B / PEAK)


def add_impulses(photo_BCHW: Tensor, density_B: Tensor, is_gray_B: Tensor, generator: Generator) -> Tensor:
    """Salt and pepper: a share `density_B` of the pixels turns black or white, half each.

    Args:
        photo_BCHW: sRGB in [0, 1].
        density_B: share of the pixels, 0–1.
        is_gray_B: whether the three channels of a pixel fail together, or each on its own.
        generator: draws the noise.
    """
    drawn_BCHW = torch.rand(photo_BCHW.shape, generator=generator)
    drawn_BCHW = torch.where(_spread(is_gray_B), drawn_BCHW[:, :1], drawn_BCHW)
    density_B111 = _spread(density_B)
    salted_BCHW = torch.where(drawn_BCHW < density_B111 / 2, torch.ones(()), photo_BCHW)
    return torch.where(drawn_BCHW > 1 - density_B111 / 2, torch.zeros(()), salted_BCHW)


def add_grain(photo_BCHW: Tensor, sigma_B: Tensor, radius_px_B: Tensor, generator: Generator) -> Tensor:
    """Film grain: correlated Gaussian noise of the luminance, strongest in the mid-tones.

    The model of film grain synthesis (Norkin and Birkbeck 2018) with a parabola for its scaling function.

    Args:
        photo_BCHW: sRGB in [0, 1].
        sigma_B: standard deviation in the mid-tones, in 8-bit levels.
        radius_px_B: standard deviation of the Gaussian that the grain is correlated by, in pixels.
        generator: draws the noise.
    """
    batch, _, height, width = photo_BCHW.shape
    white_B1HW = torch.randn(batch, 1, height, width, generator=generator)
    kernels = gaussian_kernels(radius_px_B)
    kernels = kernels / kernels.square().sum(dim=(1, 2), keepdim=True).sqrt()  # keeps the variance
    luma_B1HW = photo_BCHW.mean(dim=1, keepdim=True).clamp(0, 1)
    scale_B1HW = 0.25 + 3 * luma_B1HW * (1 - luma_B1HW)
    return photo_BCHW + filter_each(white_B1HW, kernels) * scale_B1HW * _spread(sigma_B / PEAK)


def add_blotches(photo_BCHW: Tensor, sigma_B: Tensor, generator: Generator, *, cell_px: int) -> Tensor:
    """Low-frequency chroma noise: coloured patches of some `cell_px` pixels, of `sigma_B` 8-bit levels a channel."""
    batch, channels, height, width = photo_BCHW.shape
    coarse_shape = (batch, channels, math.ceil(height / cell_px) + 1, math.ceil(width / cell_px) + 1)
    coarse_BCHW = torch.randn(coarse_shape, generator=generator)
    smooth_BCHW = F.interpolate(coarse_BCHW, scale_factor=cell_px, mode="bicubic")[..., :height, :width]
    chroma_BCHW = smooth_BCHW - smooth_BCHW.mean(dim=1, keepdim=True)
    chroma_BCHW /= chroma_BCHW.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return photo_BCHW + chroma_BCHW * _spread(sigma_B / PEAK)


def to_8bit(photo_BCHW: Tensor) -> Tensor:
    """Clip to [0, 1] and round to 8-bit levels, as writing a file does."""
    return (photo_BCHW.clamp(0, 1) * PEAK).round() / PEAK


def photograph(clean_HWC: NDArray[np.uint8], *, shot: float, seed: int) -> NDArray[np.uint8]:
    """The (H, W, 3) sRGB photo as a camera takes it behind a mosaic. Equal seeds give equal noise.

    Args:
        shot: see `model.camera.Cameras.shot_B`.
    """
    clean_BCHW = torch.from_numpy(clean_HWC.astype(np.float32) / PEAK).permute(2, 0, 1)[None]
    generator = Generator().manual_seed(seed)
    spread = float(torch.randn((), generator=generator)) * READ_SPREAD
    camera = Cameras(
        shot_B=torch.tensor([shot]),
        read_variance_B=torch.tensor([math.exp(READ_SLOPE * math.log(shot) + READ_INTERCEPT + spread)]),
        red_gain_B=torch.ones(1),
        blue_gain_B=torch.ones(1),
        has_tone_curve_B=torch.tensor([False]),
        demosaicing_B=torch.tensor([Demosaicing.BILINEAR]),
        spares_detail_B=torch.tensor([False]),
    )
    noisy_BCHW = to_8bit(add_camera_noise(clean_BCHW, camera, generator))
    return (noisy_BCHW[0].permute(1, 2, 0) * PEAK).round().to(torch.uint8).contiguous().numpy()


def random_kernels(count: int, generator: Generator) -> Tensor:
    """Kernels of slight blur (half of them) or of sharpening (unsharp masks), (B, 7, 7); each adds up to 1."""
    draw = _Draw(generator)
    blur = gaussian_kernels(draw.uniform(count, 0.3, 1.1))
    identity = torch.zeros(7, 7)
    identity[3, 3] = 1
    amount_B11 = draw.uniform(count, 0.2, 1.2)[:, None, None]
    sharpen = (1 + amount_B11) * identity - amount_B11 * gaussian_kernels(draw.uniform(count, 0.5, 1.5))
    return torch.where(torch.rand(count, 1, 1, generator=generator) < 0.5, blur, sharpen)


def gaussian_kernels(radius_px_B: Tensor) -> Tensor:
    """Gaussian kernels of these standard deviations, (B, 7, 7); each adds up to 1."""
    offsets = torch.arange(7) - 3.0
    profile_B7 = torch.exp(-(offsets**2) / (2 * radius_px_B[:, None] ** 2))
    kernels_B77 = profile_B7[:, :, None] * profile_B7[:, None, :]
    return kernels_B77 / kernels_B77.sum(dim=(1, 2), keepdim=True)


def filter_each(photo_BCHW: Tensor, kernels_B77: Tensor) -> Tensor:
    """Every photo by its own kernel, reflected at the border."""
    batch, channels, height, width = photo_BCHW.shape
    padded = F.pad(photo_BCHW, (3, 3, 3, 3), mode="reflect").reshape(1, batch * channels, height + 6, width + 6)
    weights = kernels_B77[:, None, None].expand(batch, channels, 1, 7, 7).reshape(batch * channels, 1, 7, 7)
    return F.conv2d(padded, weights, groups=batch * channels).reshape(photo_BCHW.shape)


@dataclass(frozen=True, slots=True)
class _Draw:
    """Draws numbers for a batch."""

    generator: Generator

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=self.generator)

    def chance(self, like_B: Tensor, share: float) -> Tensor:
        return torch.rand(like_B.shape, generator=self.generator) < share


def _apply(change: Callable[[Tensor, _Draw], Tensor], photo_BCHW: Tensor, chosen_B: Tensor, draw: _Draw) -> None:
    """Change the chosen photos of a batch in place."""
    if chosen_B.any():
        photo_BCHW[chosen_B] = change(photo_BCHW[chosen_B], draw)


def _camera(photo_BCHW: Tensor, draw: _Draw) -> Tensor:
    """Mirrored before and after, on both axes or one or none: a mosaic begins with any of its four pixels.

    Cameras differ in that, and so does whoever crops their photos.
    """
    chosen = [_spread(draw.chance(photo_BCHW[:, 0, 0, 0], 0.5)) for _ in range(2)]

    def mirrored(photo_BCHW: Tensor) -> Tensor:
        for axis, is_chosen_B111 in zip((2, 3), chosen, strict=True):
            photo_BCHW = torch.where(is_chosen_B111, photo_BCHW.flip(axis), photo_BCHW)
        return photo_BCHW

    cameras = Cameras.sample(len(photo_BCHW), draw.generator)
    return mirrored(add_camera_noise(mirrored(photo_BCHW), cameras, draw.generator))


def _grain(photo_BCHW: Tensor, draw: _Draw) -> Tensor:
    count = len(photo_BCHW)
    return add_grain(photo_BCHW, draw.uniform(count, 1, MAX_GRAIN_SIGMA), draw.uniform(count, 0.3, 1.2), draw.generator)


def _hot_pixels(photo_BCHW: Tensor, draw: _Draw) -> Tensor:
    density_B = draw.uniform(len(photo_BCHW), *LOG_HOT_DENSITY_RANGE).exp()
    return add_impulses(photo_BCHW, density_B, draw.chance(density_B, 0.2), draw.generator)


def _blotches(photo_BCHW: Tensor, draw: _Draw) -> Tensor:
    cell_px = 2 ** int(torch.randint(2, 5, (), generator=draw.generator))
    sigma_B = draw.uniform(len(photo_BCHW), 1, MAX_BLOTCH_SIGMA)
    return add_blotches(photo_BCHW, sigma_B, draw.generator, cell_px=cell_px)


def _jpeg(photo_BCHW: Tensor, draw: _Draw) -> Tensor:
    quality_B = draw.uniform(len(photo_BCHW), *JPEG_QUALITY_RANGE).round()
    return pass_through_jpeg(photo_BCHW, quality_B, draw.chance(quality_B, JPEG_420_SHARE))


def _spread(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]
