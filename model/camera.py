"""How a camera makes noise: an sRGB photo back to the raw of its sensor, noise there, and through the camera again.

Pixels are sRGB or linear floats in [0, 1] of shape (B, 3, H, W). The way back follows Brooks et al. 2019, "Unprocessing
Images for Learned Raw Denoising": transfer function, tone curve and white balance, without a colour matrix.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Brooks et al. 2019, section 3.1: the shot noise of real cameras is log-uniform in this range, and the variance of
# their read noise follows it on a line in log space, normally spread; white balance gains of red and blue.
LOG_SHOT_RANGE = (math.log(1e-4), math.log(1.2e-2))
READ_SLOPE, READ_INTERCEPT, READ_SPREAD = 2.18, 1.20, 0.26
RED_GAIN_RANGE, BLUE_GAIN_RANGE = (1.9, 2.4), (1.5, 1.9)

# Malvar, He and Cutler 2004, "High-quality linear interpolation for demosaicing", figure 2; each over 8. What is
# missing is interpolated from its own colour, and corrected by the Laplacian of the colour that is there.
MALVAR_GREEN = ((0, 0, -1, 0, 0), (0, 0, 2, 0, 0), (-1, 2, 4, 2, -1), (0, 0, 2, 0, 0), (0, 0, -1, 0, 0))
MALVAR_ROW = ((0, 0, 0.5, 0, 0), (0, -1, 0, -1, 0), (-1, 4, 5, 4, -1), (0, -1, 0, -1, 0), (0, 0, 0.5, 0, 0))
MALVAR_DIAGONAL = ((0, 0, -1.5, 0, 0), (0, 2, 0, 2, 0), (-1.5, 0, 6, 0, -1.5), (0, 2, 0, 2, 0), (0, 0, -1.5, 0, 0))


class Demosaicing(IntEnum):
    """How the two colours that a pixel of the sensor does not see are found."""

    NONE = 0  # three sensors, or a photo made so much smaller that nothing of the mosaic is left
    BILINEAR = 1
    MALVAR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cameras:
    """The settings of a batch of cameras, a tensor of shape (B,) each.

    Attributes:
        shot_B: shot noise, the variance that it gives to a fully exposed pixel of the raw in [0, 1]; 1e-4 (base ISO) to
            1.2e-2 (high ISO).
        read_variance_B: variance of the read noise of the raw.
        red_gain_B, blue_gain_B: white balance; what the raw's red and blue are multiplied with.
        has_tone_curve_B: whether the camera raises the contrast by a smoothstep curve.
        demosaicing_B: a `Demosaicing` of each.
        spares_detail_B: whether only the noise passes the mosaic, without the demosaicing's own mistakes: photos that
            were made smaller are sharper than a sensor sees them, and would exaggerate those.
    """

    shot_B: Tensor
    read_variance_B: Tensor
    red_gain_B: Tensor
    blue_gain_B: Tensor
    has_tone_curve_B: Tensor
    demosaicing_B: Tensor
    spares_detail_B: Tensor

    @classmethod
    def sample(cls, count: int, generator: Generator) -> "Cameras":
        """Cameras as different as those that people own, at any ISO."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count).uniform_(low, high, generator=generator)

        log_shot_B = uniform(*LOG_SHOT_RANGE)
        spread_B = torch.randn(count, generator=generator) * READ_SPREAD
        return cls(
            shot_B=log_shot_B.exp(),
            read_variance_B=(READ_SLOPE * log_shot_B + READ_INTERCEPT + spread_B).exp(),
            red_gain_B=uniform(*RED_GAIN_RANGE),
            blue_gain_B=uniform(*BLUE_GAIN_RANGE),
            has_tone_curve_B=uniform(0, 1) < 0.5,
            demosaicing_B=torch.randint(len(Demosaicing), (count,), generator=generator),
            spares_detail_B=uniform(0, 1) < 0.7,
        )


def add_camera_noise(clean_BCHW: Tensor, cameras: Cameras, generator: Generator) -> Tensor:
    """The photos as the cameras take them: sRGB in [0, 1], clipped, not yet rounded; H and W must be even.

    The variance of the raw is `shot * x + read_variance`, the Gaussian approximation of Poisson–Gaussian noise (Foi et
    al. 2008).
    """
    has_curve_B111 = _spread(cameras.has_tone_curve_B)
    display_BCHW = torch.where(has_curve_B111, _inverse_smoothstep(clean_BCHW), clean_BCHW)
    gain_BCHW = torch.stack([cameras.red_gain_B, torch.ones_like(cameras.red_gain_B), cameras.blue_gain_B], dim=1)
    gain_BCHW = gain_BCHW[:, :, None, None]
    raw_BCHW = srgb_to_linear(display_BCHW) / gain_BCHW
    variance_BCHW = _spread(cameras.shot_B) * raw_BCHW + _spread(cameras.read_variance_B)
    spared_BCHW = torch.where(_spread(cameras.spares_detail_B), raw_BCHW, torch.zeros(()))
    sensed_BCHW = raw_BCHW - spared_BCHW + torch.randn(raw_BCHW.shape, generator=generator) * variance_BCHW.sqrt()
    for demosaicing, demosaic in ((Demosaicing.BILINEAR, demosaic_bilinear), (Demosaicing.MALVAR, demosaic_malvar)):
        chosen_B = cameras.demosaicing_B == demosaicing
        if chosen_B.any():
            sensed_BCHW[chosen_B] = demosaic(sensed_BCHW[chosen_B])
    display_BCHW = linear_to_srgb((sensed_BCHW + spared_BCHW) * gain_BCHW)
    return torch.where(has_curve_B111, _smoothstep(display_BCHW), display_BCHW)


def demosaic_bilinear(linear_BCHW: Tensor) -> Tensor:
    """Keep the one colour of each pixel that an RGGB sensor sees, and interpolate the others bilinearly."""
    mask_CHW = _mosaic(linear_BCHW)
    sparse = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    dense = torch.tensor([[0.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 0.0]])  # green has no use for its diagonals
    weights = torch.stack([sparse, dense, sparse])[:, None]
    seen_BCHW = F.conv2d(linear_BCHW * mask_CHW, weights, padding=1, groups=3)
    return seen_BCHW / F.conv2d(mask_CHW[None], weights, padding=1, groups=3)


def demosaic_malvar(linear_BCHW: Tensor) -> Tensor:
    """The same with the gradient-corrected filters of Malvar, He and Cutler (2004), as raw converters do."""
    mask_CHW = _mosaic(linear_BCHW)
    mosaic_B1HW = (linear_BCHW * mask_CHW).sum(dim=1, keepdim=True)
    row = torch.tensor(MALVAR_ROW)
    filters = torch.stack([torch.tensor(MALVAR_GREEN), row, row.T, torch.tensor(MALVAR_DIAGONAL)])[:, None] / 8
    padded_B1HW = F.pad(mosaic_B1HW, (2, 2, 2, 2), mode="reflect")  # keeps the parity of the mosaic
    green, along_rows, along_columns, diagonal = F.conv2d(padded_B1HW, filters).unbind(dim=1)
    mosaic = mosaic_B1HW[:, 0]
    red_mask, green_mask, blue_mask = mask_CHW.bool()
    in_red_row = torch.zeros_like(red_mask)
    in_red_row[0::2] = True
    red_at_green = torch.where(in_red_row, along_rows, along_columns)
    blue_at_green = torch.where(in_red_row, along_columns, along_rows)
    red = torch.where(red_mask, mosaic, torch.where(green_mask, red_at_green, diagonal))
    blue = torch.where(blue_mask, mosaic, torch.where(green_mask, blue_at_green, diagonal))
    return torch.stack([red, torch.where(green_mask, mosaic, green), blue], dim=1)


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """The sRGB transfer function's inverse (IEC 61966-2-1), on [0, 1]."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """The sRGB transfer function (IEC 61966-2-1); values outside [0, 1] are clipped first."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _mosaic(linear_BCHW: Tensor) -> Tensor:
    """1 where an RGGB sensor sees a colour, (3, H, W)."""
    mask_CHW = torch.zeros(linear_BCHW.shape[1:])
    mask_CHW[0, 0::2, 0::2] = 1
    mask_CHW[1, 0::2, 1::2] = 1
    mask_CHW[1, 1::2, 0::2] = 1
    mask_CHW[2, 1::2, 1::2] = 1
    return mask_CHW


def _smoothstep(photo: Tensor) -> Tensor:
    return photo * photo * (3 - 2 * photo)


def _inverse_smoothstep(photo: Tensor) -> Tensor:
    return 0.5 - torch.sin(torch.asin(1 - 2 * photo) / 3)


def _spread(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]
