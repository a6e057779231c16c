"""The noise has the statistics that its parameters say."""

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from model.noise import (
    NoiseConfig,
    NoiseKind,
    add_blotches,
    add_gaussian,
    add_grain,
    add_impulses,
    filter_each,
    gaussian_kernels,
    photograph,
    random_kernels,
    sample_noisy,
    to_8bit,
)


def _gray(level: float, *, batch: int = 1, side: int = 256) -> Tensor:
    return torch.full((batch, 3, side, side), level)


@pytest.mark.parametrize("sigma", [1.0, 25.0])
def test_gaussian_noise_has_its_sigma_and_no_mean(sigma):
    added_BCHW = add_gaussian(_gray(0.5), torch.tensor([sigma]), Generator().manual_seed(0)) - 0.5
    assert 255 * added_BCHW.std() == pytest.approx(sigma, rel=0.01)
    assert 255 * added_BCHW.mean() == pytest.approx(0, abs=0.02 * sigma)


def test_each_photo_of_a_batch_has_its_own_sigma():
    noisy_BCHW = add_gaussian(_gray(0.5, batch=2), torch.tensor([0.0, 50.0]), Generator().manual_seed(0))
    assert (noisy_BCHW[0] == 0.5).all()
    assert 255 * noisy_BCHW[1].std() == pytest.approx(50, rel=0.01)


def test_gaussian_noise_is_not_clipped_and_a_file_is():
    noisy_BCHW = add_gaussian(_gray(0.0), torch.tensor([25.0]), Generator().manual_seed(0))
    assert noisy_BCHW.min() < 0
    file_BCHW = to_8bit(noisy_BCHW)
    assert file_BCHW.min() == 0
    assert torch.equal((file_BCHW * 255).round() / 255, file_BCHW)


@pytest.mark.parametrize("is_gray", [True, False])
def test_salt_and_pepper_turn_their_share_of_the_pixels_black_or_white(is_gray):
    noisy_BCHW = add_impulses(_gray(0.5), torch.tensor([0.2]), torch.tensor([is_gray]), Generator().manual_seed(0))
    assert (noisy_BCHW == 1).float().mean() == pytest.approx(0.1, abs=0.005)
    assert (noisy_BCHW == 0).float().mean() == pytest.approx(0.1, abs=0.005)
    assert ((noisy_BCHW == 0.5) | (noisy_BCHW == 0) | (noisy_BCHW == 1)).all()
    assert (noisy_BCHW[:, 0] == noisy_BCHW[:, 1]).all() == is_gray


def test_grain_has_no_colour_its_sigma_in_the_mid_tones_and_less_in_the_shadows():
    photo_BCHW = torch.cat([_gray(0.5), _gray(0.05)])
    args = torch.tensor([20.0, 20.0]), torch.tensor([0.8, 0.8]), Generator().manual_seed(0)
    added_BCHW = add_grain(photo_BCHW, *args) - photo_BCHW
    torch.testing.assert_close(added_BCHW[:, 0], added_BCHW[:, 2])
    mid, shadow = (255 * added_BCHW.std(dim=(1, 2, 3))).tolist()
    assert mid == pytest.approx(20, rel=0.03)
    assert shadow == pytest.approx(20 * (0.25 + 3 * 0.05 * 0.95), rel=0.03)


def test_blotches_have_their_sigma_no_luminance_and_change_slowly():
    added_BCHW = add_blotches(_gray(0.5), torch.tensor([8.0]), Generator().manual_seed(0), cell_px=16) - 0.5
    assert 255 * added_BCHW.std() == pytest.approx(8, rel=0.01)
    assert added_BCHW.mean(dim=1).abs().max() < 1e-5
    assert (added_BCHW[..., 1:] - added_BCHW[..., :-1]).std() < 0.25 * added_BCHW.std()


def test_every_filter_keeps_a_constant_and_a_blur_takes_noise_away():
    kernels = torch.cat([random_kernels(8, Generator().manual_seed(0)), gaussian_kernels(torch.tensor([1.0]))])
    flat_BCHW = _gray(0.3, batch=9, side=16)
    torch.testing.assert_close(filter_each(flat_BCHW, kernels), flat_BCHW)
    noise_BCHW = torch.randn(1, 3, 64, 64, generator=Generator().manual_seed(0))
    blurred_BCHW = filter_each(noise_BCHW, gaussian_kernels(torch.tensor([1.0])))
    assert blurred_BCHW.std() == pytest.approx(1 / (2 * 3.14159**0.5), rel=0.05)  # of a Gaussian of one pixel


@pytest.mark.parametrize("kind", list(NoiseKind))
def test_every_kind_of_noise_is_drawn_and_is_finite(kind):
    config = NoiseConfig.only(**{f"{kind}_share": 1.0}, jpeg_share=0.0, sigma_min=5)
    torch.manual_seed(0)
    clean_BCHW = to_8bit(torch.rand(8, 3, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3))
    noisy_BCHW = sample_noisy(clean_BCHW, config, Generator().manual_seed(0))
    assert noisy_BCHW.isfinite().all()
    changed_B = (noisy_BCHW - clean_BCHW).abs().amax(dim=(1, 2, 3)) > 2 / 255
    assert changed_B.sum() == (0 if kind == NoiseKind.CLEAN else 8)


def test_the_mosaic_of_a_camera_begins_with_any_of_its_pixels():
    """Noise is stronger where the sensor sees a colour than where that was interpolated."""
    config = NoiseConfig.only(camera_share=1, jpeg_share=0, filtered_share=0, blotched_share=0)
    noisy_BCHW = sample_noisy(_gray(0.5, batch=400, side=32), config, Generator().manual_seed(0))
    power_BCYX = (noisy_BCHW - 0.5).square().unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean(dim=(2, 4))
    shares_CYX = (power_BCYX / power_BCYX.sum(dim=(2, 3), keepdim=True)).mean(dim=0)
    assert shares_CYX.numpy() == pytest.approx(np.full((3, 2, 2), 0.25), abs=0.02)


def test_a_photograph_is_the_same_for_the_same_seed_and_noisier_at_a_higher_iso():
    clean_HWC = np.full((64, 64, 3), 120, np.uint8)
    low, again, high = (photograph(clean_HWC, shot=shot, seed=1) for shot in (1e-3, 1e-3, 1e-2))
    assert (low == again).all()
    assert high.std() > 2 * low.std() > 2


def test_the_same_seed_draws_the_same_noise_and_another_does_not():
    clean_BCHW = _gray(0.5, batch=16, side=32)
    first, again, other = (sample_noisy(clean_BCHW, NoiseConfig(), Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_drawing_noise_leaves_the_clean_patches_alone():
    clean_BCHW = _gray(0.5, batch=8, side=16)
    sample_noisy(clean_BCHW, NoiseConfig(), Generator().manual_seed(0))
    assert (clean_BCHW == 0.5).all()


def test_sigma_is_uniform_between_its_limits():
    config = NoiseConfig.only(sigma_min=10, sigma_max=50, float_share=1)
    noisy_BCHW = sample_noisy(_gray(0.5, batch=400, side=16), config, Generator().manual_seed(0))
    sigma_B = 255 * noisy_BCHW.std(dim=(1, 2, 3))
    assert sigma_B.mean() == pytest.approx(30, abs=2)
    assert sigma_B.quantile(0.1) == pytest.approx(14, abs=2)
    assert sigma_B.quantile(0.9) == pytest.approx(46, abs=2)


def test_the_share_of_patches_that_a_file_can_hold_is_as_set():
    config = NoiseConfig.only(float_share=0.25, file_share=0.5, camera_share=0.25)
    noisy_BCHW = sample_noisy(_gray(0.5, batch=400, side=16), config, Generator().manual_seed(0))
    is_float_B = ((noisy_BCHW * 255).round() / 255 != noisy_BCHW).flatten(1).any(1)
    assert is_float_B.float().mean() == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigma_min": -1.0},
        {"sigma_min": 60.0},
        {"sigma_max": float("inf")},
        {"float_share": float("nan")},
        {"float_share": 0.9},
        {"float_share": 1.2, "file_share": -0.2},
        {"jpeg_share": 1.5},
        {"filtered_share": -0.1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"sigma range|noise shares|jpeg_share|filtered_share"):
        NoiseConfig.only(**({"float_share": 1.0} | wrong))
