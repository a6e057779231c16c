"""A camera's noise has the variance that its settings say, and its demosaicing keeps what the sensor saw."""

import dataclasses

import pytest
import torch
from torch import Generator, Tensor

from model import camera
from model.camera import Cameras, Demosaicing, add_camera_noise, demosaic_bilinear, demosaic_malvar

PLAIN = Cameras(
    shot_B=torch.tensor([1e-3]),
    read_variance_B=torch.tensor([1e-5]),
    red_gain_B=torch.ones(1),
    blue_gain_B=torch.ones(1),
    has_tone_curve_B=torch.tensor([False]),
    demosaicing_B=torch.tensor([Demosaicing.NONE]),
    spares_detail_B=torch.tensor([False]),
)


def _gray(level: float, *, side: int = 256) -> Tensor:
    return torch.full((1, 3, side, side), level)


@pytest.mark.parametrize("shot", [1e-4, 1.2e-2])
@pytest.mark.parametrize("level", [0.2, 0.5])
def test_the_raw_has_the_variance_of_its_shot_and_read_noise(monkeypatch, shot, level):
    monkeypatch.setattr(camera, "linear_to_srgb", lambda linear_BCHW: linear_BCHW)
    linear = float(camera.srgb_to_linear(torch.tensor(level)))
    settings = dataclasses.replace(PLAIN, shot_B=torch.tensor([shot]), read_variance_B=torch.tensor([1e-4]))
    seen_BCHW = add_camera_noise(_gray(level), settings, Generator().manual_seed(0))
    assert seen_BCHW.mean() == pytest.approx(linear, abs=0.001)
    assert seen_BCHW.var() == pytest.approx(shot * linear + 1e-4, rel=0.02)


def test_white_balance_makes_red_noisier_and_keeps_the_colour(monkeypatch):
    monkeypatch.setattr(camera, "linear_to_srgb", lambda linear_BCHW: linear_BCHW)
    settings = dataclasses.replace(PLAIN, red_gain_B=torch.tensor([2.0]))
    red, green, _ = add_camera_noise(_gray(0.5), settings, Generator().manual_seed(0))[0]
    linear = float(camera.srgb_to_linear(torch.tensor(0.5)))
    assert red.mean() == pytest.approx(linear, abs=0.001)
    assert red.var() == pytest.approx(4 * (1e-3 * linear / 2 + 1e-5), rel=0.03)
    assert green.var() == pytest.approx(1e-3 * linear + 1e-5, rel=0.03)


@pytest.mark.parametrize("demosaicing", list(Demosaicing))
@pytest.mark.parametrize("has_tone_curve", [False, True])
def test_without_noise_a_flat_photo_comes_back_as_it_was(demosaicing, has_tone_curve):
    settings = dataclasses.replace(
        PLAIN,
        shot_B=torch.zeros(1),
        read_variance_B=torch.zeros(1),
        red_gain_B=torch.tensor([2.1]),
        has_tone_curve_B=torch.tensor([has_tone_curve]),
        demosaicing_B=torch.tensor([demosaicing]),
    )
    colour_BCHW = torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(1, 3, 16, 18)
    seen_BCHW = add_camera_noise(colour_BCHW, settings, Generator().manual_seed(0))
    torch.testing.assert_close(seen_BCHW, colour_BCHW, rtol=0, atol=1e-4)


@pytest.mark.parametrize("demosaicing", [Demosaicing.BILINEAR, Demosaicing.MALVAR])
def test_a_mosaic_makes_the_noise_of_neighbours_alike(demosaicing):
    def alikeness(kind: Demosaicing) -> float:
        settings = dataclasses.replace(PLAIN, demosaicing_B=torch.tensor([kind]))
        added_BCHW = add_camera_noise(_gray(0.5), settings, Generator().manual_seed(0)) - 0.5
        return float((added_BCHW[..., 1:] * added_BCHW[..., :-1]).mean() / added_BCHW.var())

    assert alikeness(Demosaicing.NONE) == pytest.approx(0, abs=0.02)
    assert alikeness(demosaicing) > 0.15


@pytest.mark.parametrize("demosaic", [demosaic_bilinear, demosaic_malvar])
def test_demosaicing_keeps_what_the_sensor_has_seen(demosaic):
    torch.manual_seed(0)
    linear_BCHW = torch.rand(1, 3, 16, 16)
    seen_BCHW = demosaic(linear_BCHW)
    for channel, top, left in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
        torch.testing.assert_close(seen_BCHW[:, channel, top::2, left::2], linear_BCHW[:, channel, top::2, left::2])


@pytest.mark.parametrize("demosaic", [demosaic_bilinear, demosaic_malvar])
def test_demosaicing_keeps_a_gray_ramp(demosaic):
    ramp_BCHW = torch.linspace(0.2, 0.8, 32).expand(1, 3, 32, 32)
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(demosaic(ramp_BCHW)[inner], ramp_BCHW[inner])


@pytest.mark.parametrize("spares_detail", [True, False])
def test_the_mistakes_of_demosaicing_can_be_left_out(spares_detail):
    settings = dataclasses.replace(
        PLAIN,
        shot_B=torch.zeros(1),
        read_variance_B=torch.zeros(1),
        demosaicing_B=torch.tensor([Demosaicing.BILINEAR]),
        spares_detail_B=torch.tensor([spares_detail]),
    )
    stripes_BCHW = torch.tensor([0.2, 0.8]).repeat(16).expand(1, 3, 32, 32)
    error_BCHW = add_camera_noise(stripes_BCHW, settings, Generator().manual_seed(0)) - stripes_BCHW
    assert (error_BCHW.abs().max() < 1e-4) == spares_detail


def test_gradient_correction_is_closer_to_the_truth_than_bilinear_interpolation():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    photo_BCHW = (0.5 + 0.4 * torch.sin(x / 1.7 + y / 2.3)).expand(1, 3, 64, 64)
    bilinear, malvar = ((demosaic(photo_BCHW) - photo_BCHW).std() for demosaic in (demosaic_bilinear, demosaic_malvar))
    assert malvar < 0.6 * bilinear


def test_sampled_cameras_are_all_different_and_within_their_ranges():
    cameras = Cameras.sample(200, Generator().manual_seed(0))
    assert cameras.shot_B.unique().numel() == 200
    assert 1e-4 <= cameras.shot_B.min() < 3e-4
    assert 5e-3 < cameras.shot_B.max() <= 1.2e-2
    assert set(cameras.demosaicing_B.tolist()) == set(Demosaicing)


def test_srgb_and_linear_light_are_inverse_to_each_other():
    srgb = torch.linspace(0, 1, 1001)
    torch.testing.assert_close(camera.linear_to_srgb(camera.srgb_to_linear(srgb)), srgb, rtol=0, atol=1e-5)
    assert camera.srgb_to_linear(torch.tensor(0.5)) == pytest.approx(0.21404, abs=1e-5)
