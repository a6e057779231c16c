"""The noise has the statistics that its parameters say."""

import pytest
import torch
from torch import Generator, Tensor

from model import noise
from model.noise import NoiseConfig, add_camera_noise, add_gaussian, demosaic, sample_noisy, to_8bit


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


@pytest.mark.parametrize("shot", [1e-4, 1.2e-2])
@pytest.mark.parametrize("level", [0.2, 0.5])
def test_sensor_noise_has_the_variance_of_its_shot_and_read_noise_in_linear_light(monkeypatch, shot, level):
    monkeypatch.setattr(noise, "READ_SPREAD", 0.0)
    monkeypatch.setattr(noise, "to_8bit", lambda photo_BCHW: photo_BCHW)
    monkeypatch.setattr(noise, "linear_to_srgb", lambda linear_BCHW: linear_BCHW)
    linear = float(noise.srgb_to_linear(torch.tensor(level)))
    seen_BCHW = add_camera_noise(_gray(level), torch.tensor([shot]), torch.tensor([False]), Generator().manual_seed(0))
    read_variance = float((2.18 * torch.tensor(shot).log() + 1.20).exp())
    assert seen_BCHW.mean() == pytest.approx(linear, abs=0.001)
    assert seen_BCHW.var() == pytest.approx(shot * linear + read_variance, rel=0.02)


def test_a_mosaic_makes_the_noise_of_neighbours_alike():
    args = torch.tensor([1e-3, 1e-3]), torch.tensor([False, True]), Generator().manual_seed(0)
    added_BCHW = add_camera_noise(_gray(0.5, batch=2), *args) - 0.5
    alike_B = (added_BCHW[..., 1:] * added_BCHW[..., :-1]).mean((1, 2, 3)) / added_BCHW.var((1, 2, 3))
    assert alike_B[0] == pytest.approx(0, abs=0.02)
    assert alike_B[1] > 0.3


def test_demosaicing_keeps_a_constant_up_to_the_border():
    colour_BCHW = torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(1, 3, 16, 18)
    torch.testing.assert_close(demosaic(colour_BCHW), colour_BCHW)


def test_demosaicing_keeps_what_the_sensor_has_seen():
    torch.manual_seed(0)
    linear_BCHW = torch.rand(1, 3, 16, 16)
    seen_BCHW = demosaic(linear_BCHW)
    for channel, top, left in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
        torch.testing.assert_close(seen_BCHW[:, channel, top::2, left::2], linear_BCHW[:, channel, top::2, left::2])


def test_srgb_and_linear_light_are_inverse_to_each_other():
    srgb = torch.linspace(0, 1, 1001)
    torch.testing.assert_close(noise.linear_to_srgb(noise.srgb_to_linear(srgb)), srgb, rtol=0, atol=1e-5)
    assert noise.srgb_to_linear(torch.tensor(0.5)) == pytest.approx(0.21404, abs=1e-5)


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
    config = NoiseConfig(sigma_min=10, sigma_max=50, float_share=1, file_share=0, camera_share=0)
    noisy_BCHW = sample_noisy(_gray(0.5, batch=400, side=16), config, Generator().manual_seed(0))
    sigma_B = 255 * noisy_BCHW.std(dim=(1, 2, 3))
    assert sigma_B.mean() == pytest.approx(30, abs=2)
    assert sigma_B.quantile(0.1) == pytest.approx(14, abs=2)
    assert sigma_B.quantile(0.9) == pytest.approx(46, abs=2)


def test_the_share_of_patches_that_a_file_can_hold_is_as_set():
    config = NoiseConfig(float_share=0.25, file_share=0.5, camera_share=0.25)
    noisy_BCHW = sample_noisy(_gray(0.5, batch=400, side=16), config, Generator().manual_seed(0))
    is_float_B = ((noisy_BCHW * 255).round() / 255 != noisy_BCHW).flatten(1).any(1)
    assert is_float_B.float().mean() == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sigma_min": -1.0},
        {"sigma_min": 60.0},
        {"float_share": 0.9},
        {"float_share": 1.2, "file_share": -0.4, "camera_share": 0.2},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"sigma range|noise shares"):
        NoiseConfig(**wrong)
