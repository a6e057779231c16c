"""What keeps the grain changes no luminance."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.denoiser import Denoiser
from model.grain import LUMA_WEIGHTS, keep_luminance


def luminance(photo_CHW: Tensor) -> Tensor:
    return torch.einsum("c,chw->hw", torch.tensor(LUMA_WEIGHTS), photo_CHW)


def photos() -> tuple[Tensor, Tensor]:
    """A noisy photo with black and blown pixels, and another one for the clean one."""
    draw = torch.Generator().manual_seed(0)
    noisy_CHW, clean_CHW = (torch.rand(3, 40, 40, generator=draw) * 1.4 - 0.2 for _ in range(2))
    return noisy_CHW.clamp(0, 1), clean_CHW


def test_the_luminance_of_every_pixel_stays_and_no_colour_leaves_its_range() -> None:
    noisy_CHW, clean_CHW = photos()
    kept_CHW = keep_luminance(noisy_CHW, clean_CHW)
    assert torch.allclose(luminance(kept_CHW), luminance(noisy_CHW), atol=1e-6)
    assert kept_CHW.min() >= -1e-6
    assert kept_CHW.max() <= 1 + 1e-6


def test_a_change_of_colour_alone_is_made_in_full() -> None:
    noisy_CHW = torch.full((3, 4, 4), 0.5)
    clean_CHW = noisy_CHW + torch.tensor([0.114, 0.0, -0.299])[:, None, None]
    assert torch.allclose(keep_luminance(noisy_CHW, clean_CHW), clean_CHW, atol=1e-6)


def test_a_change_of_luminance_alone_is_not_made() -> None:
    noisy_CHW = photos()[0]
    assert torch.allclose(keep_luminance(noisy_CHW, noisy_CHW + 0.1), noisy_CHW, atol=1e-6)


@pytest.mark.parametrize(("dtype", "peak"), [(np.uint8, 255), (np.uint16, 65535)])
def test_the_denoiser_takes_the_noise_of_the_colour_and_keeps_the_luminance_to_half_a_level(
    dtype: type, peak: int
) -> None:
    noisy = np.random.default_rng(0).normal(0.5, 0.1, (96, 96, 3))
    noisy = np.rint(noisy.clip(0, 1) * peak).astype(dtype)

    clean = Denoiser.load("photo")(noisy, keeps_grain=True)

    assert np.abs((clean.astype(float) - noisy) @ LUMA_WEIGHTS).max() <= 0.5 + 1e-9 * peak
    assert np.ptp(clean, axis=2).mean() < 0.5 * np.ptp(noisy, axis=2).mean()


def test_a_gray_photo_has_nothing_to_take() -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    assert np.array_equal(Denoiser.load("photo")(noisy, keeps_grain=True), noisy)
