"""The estimate finds the level of the noise and its colour, whatever the photo shows."""

import dataclasses
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.estimate import NoiseSampler, estimate_noise, estimate_sigma, measure_noise
from model.noise import photograph

PHOTOS = sorted((Path(__file__).parents[1] / "pipeline" / "demo_photos").glob("*.jpg"))


def _scene(side: int = 256) -> np.ndarray:
    """A photo without noise: a sky that fades, and below it a texture of strong detail. Float64, in 8-bit levels."""
    draw = np.random.default_rng(5)
    sky = np.linspace(90, 150, side // 2)[:, None, None] + np.array([0, 10, 40]) + np.zeros((1, side, 1))
    leaves = np.kron(draw.integers(40, 200, (side // 8, side // 4, 3)), np.ones((4, 4, 1)))
    return np.concatenate([sky, leaves])


def _with_noise(clean: np.ndarray, sigma: float) -> np.ndarray:
    noisy = clean + np.random.default_rng(1).normal(0, sigma, clean.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [2, 5, 10, 25, 50])
def test_white_noise_is_met_within_12_percent_or_one_level(sigma):
    assert estimate_noise(_with_noise(_scene(), sigma)).sigma == pytest.approx(sigma, rel=0.12, abs=1)


@pytest.mark.parametrize("sigma", [2, 5, 10, 25, 50])
def test_the_noise_of_a_gray_photo_is_all_luminance(sigma):
    estimate = estimate_noise(_with_noise(_scene()[..., 1], sigma))
    assert estimate.sigma == estimate.luma_sigma == pytest.approx(sigma, rel=0.12, abs=1)
    assert estimate.chroma_sigma == estimate.chroma_share == 0


def test_a_clean_photo_has_hardly_any_noise():
    assert estimate_noise(_with_noise(_scene(), 0)).sigma < 0.5


@pytest.mark.parametrize("colour", [16, 128, 240, [250, 244, 230]])
@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize("sigma", [5, 15])
def test_a_frame_hides_no_noise(colour, quality, sigma):
    photo = _with_noise(_scene(), sigma)
    framed = np.full((320, 320, 3), colour, np.uint8)
    framed[32:-32, 32:-32] = photo
    if quality is not None:
        photo, framed = (_as_jpeg(each, quality) for each in (photo, framed))
    alone = estimate_noise(photo)
    assert estimate_noise(framed).sigma == pytest.approx(alone.sigma, rel=0.12)
    assert estimate_noise(framed).is_white == alone.is_white
    assert not estimate_noise(framed).is_drawn
    assert estimate_sigma(framed) == pytest.approx(estimate_sigma(photo), rel=0.12)


def test_what_is_cut_out_of_a_ground_of_two_colours_has_its_noise():
    cut_out = np.repeat([[[128, 128, 128]], [[60, 60, 70]]], 192, axis=0).repeat(384, axis=1).astype(np.uint8)
    cut_out[70:326, 70:326] = _with_noise(_scene(), 15)
    assert estimate_noise(cut_out).sigma == pytest.approx(15, rel=0.12)
    assert estimate_noise(cut_out[..., 0]).sigma == pytest.approx(15, rel=0.12)


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_a_small_photo_on_a_large_ground_has_its_noise(colour):
    photo = np.full((512, 512, 3), colour, np.uint8)
    photo[100:260, 100:260] = _with_noise(_scene(160), 12)
    assert estimate_noise(photo).sigma == pytest.approx(12, rel=0.12)


def _as_jpeg(photo: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=quality)
    with Image.open(file) as jpeg:
        return np.asarray(jpeg)


@pytest.mark.parametrize("empty", [0, 7, 255])
def test_a_photo_of_one_channel_has_the_noise_of_a_gray_one(empty):
    gray = _with_noise(_scene()[..., 1], 15)
    photo = np.full((*gray.shape, 3), empty, np.uint8)
    photo[..., 1] = gray
    assert estimate_noise(photo) == dataclasses.replace(estimate_noise(gray), only_channel=1)
    assert estimate_sigma(photo) == estimate_sigma(gray)


def test_a_photo_whose_channels_differ_by_a_level_shows_no_colour_and_one_with_a_stamp_does():
    draw = np.random.default_rng(0)
    gray = np.repeat(_with_noise(_scene()[..., 1], 15)[..., None] // 2, 3, axis=2)
    stamped = gray.copy()
    stamped[100:110, 100:110] = 200, 30, 30
    found = [estimate_noise(each).is_neutral for each in (gray + draw.integers(0, 2, gray.shape, np.uint8), stamped)]
    assert found == [True, False]


def test_a_photo_of_one_colour_has_none():
    estimate = estimate_noise(np.full((40, 40, 3), 77, np.uint8))
    assert estimate.sigma == estimate.chroma_share == 0


def test_white_noise_is_two_thirds_chrominance():
    estimate = estimate_noise(_with_noise(_scene(), 10))
    assert estimate.chroma_share == pytest.approx(2 / 3, abs=0.04)
    assert estimate.luma_sigma == pytest.approx(estimate.chroma_sigma, rel=0.1)


def test_noise_that_all_channels_share_is_luminance():
    clean = _scene()
    noise = np.random.default_rng(2).normal(0, 10, clean.shape[:2])[..., None]
    estimate = estimate_noise((clean + noise).round().clip(0, 255).astype(np.uint8))
    assert estimate.chroma_share < 0.02
    assert estimate.luma_sigma == pytest.approx(10 * 3**0.5, rel=0.12)


def test_noise_that_adds_up_to_nothing_is_chrominance():
    noise = np.random.default_rng(2).normal(0, 10, (256, 256))
    photo = np.stack([128 + noise, np.full_like(noise, 128), 128 - noise], axis=2).round().astype(np.uint8)
    assert estimate_noise(photo).chroma_share > 0.98


def test_the_variances_along_the_axes_add_up():
    estimate = estimate_noise(_with_noise(_scene(), 10))
    assert 3 * estimate.sigma**2 == pytest.approx(estimate.luma_sigma**2 + 2 * estimate.chroma_sigma**2)


def test_16_bit_photos_are_measured_in_8_bit_levels():
    photo = _with_noise(_scene(), 10)
    assert estimate_noise(photo.astype(np.uint16) * 257).sigma == pytest.approx(estimate_noise(photo).sigma)


def test_noise_finer_than_an_8_bit_level_is_seen_in_16_bits():
    noisy = 257 * (_scene() + np.random.default_rng(1).normal(0, 0.2, (256, 256, 3)))
    assert estimate_noise(noisy.round().astype(np.uint16)).sigma == pytest.approx(0.2, rel=0.2)


def test_an_overexposed_sky_does_not_hide_the_noise_of_the_rest():
    clean = _scene()
    clean[:128] = 300
    clean[128:192] = 100
    assert estimate_noise(_with_noise(clean, 10)).sigma == pytest.approx(10, rel=0.12)


def test_noise_that_demosaicing_has_smoothed_is_not_overlooked():
    noise = np.random.default_rng(3).normal(0, 20, (257, 257, 3))
    smoothed = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / 4
    estimate = estimate_noise((128 + smoothed).round().astype(np.uint8))
    assert estimate.sigma == pytest.approx(smoothed.std(), rel=0.35)


def test_a_large_photo_is_judged_by_a_part_of_it():
    photo = np.tile(_with_noise(_scene(), 10), (8, 9, 1))
    assert estimate_noise(photo).sigma == pytest.approx(10, rel=0.12)


@pytest.mark.parametrize("sigma", [0, 2, 10, 50])
@pytest.mark.parametrize("copies", [1, 6], ids=["every block", "some blocks"])
def test_the_level_alone_is_that_of_the_whole_estimate(sigma, copies):
    photo = np.tile(_with_noise(_scene(512), sigma), (copies, 1, 1))
    for noisy in (photo, photo[..., 1], photo.astype(np.uint16) * 257, photo.astype(np.float32)):
        assert estimate_sigma(noisy) == pytest.approx(estimate_noise(noisy).sigma, rel=0.1, abs=0.1)


def test_the_level_of_a_photo_by_rows_is_that_of_the_photo():
    noisy = np.tile(_with_noise(_scene(512), 10), (3, 1, 1))
    sampler = NoiseSampler(noisy.shape, noisy.dtype, only_level=True)
    for top in range(0, len(noisy), 50):
        sampler.add(top, noisy[top : top + 50])
    assert sampler.sigma() == estimate_sigma(noisy)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 40, 3), (15, 17), (16, 16, 3), (33, 20, 3)])
def test_a_photo_of_any_size_has_an_estimate(shape):
    photo = np.random.default_rng(0).integers(90, 110, shape, dtype=np.uint8)
    assert 0 <= estimate_noise(photo).sigma < 20
    assert 0 <= estimate_sigma(photo) < 20


@pytest.mark.parametrize(
    "photo",
    [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.float64), np.zeros((0, 8), np.uint8), np.zeros(8, np.uint8)],
)
def test_what_is_not_a_photo_is_refused(photo):
    for estimate in (estimate_noise, estimate_sigma):
        with pytest.raises(ValueError, match="cannot estimate the noise"):
            estimate(photo)


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("sigma", [5, 15, 40])
def test_white_noise_is_met_on_real_photos(path, sigma):
    with Image.open(path) as image:
        clean = np.asarray(image.convert("RGB"), dtype=np.float64)
    assert estimate_noise(_with_noise(clean, sigma)).sigma == pytest.approx(sigma, rel=0.15, abs=1)


@pytest.mark.parametrize("sigma", [2.0, 25.0])
def test_known_noise_is_measured_as_an_estimate_would(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, (128, 128, 3)).astype(np.float32)
    measured = measure_noise(noise, 128 + noise)
    assert measured.sigma == pytest.approx(sigma, rel=0.05)
    assert measured.luma_sigma == pytest.approx(sigma, rel=0.1)
    assert measured.chroma_sigma == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("seed", range(40))  # some of them are rounded to less chrominance than none
def test_gray_noise_has_no_chrominance(seed):
    noise = np.random.default_rng(seed).normal(0, 10, (32, 32, 1)).astype(np.float32).repeat(3, axis=2)
    measured = measure_noise(noise, 128 + noise)
    assert measured.chroma_sigma == pytest.approx(0, abs=1e-2)
    assert measured.luma_sigma / np.sqrt(3) == pytest.approx(measured.sigma, rel=1e-3)


def test_noise_is_measured_where_the_noisy_photo_is_flattest():
    draw = np.random.default_rng(0)
    noise = draw.normal(0, np.repeat([[2.0], [20.0]], 64, axis=0), (128, 128)).astype(np.float32)
    assert measure_noise(noise, 128 + noise).sigma == pytest.approx(2, rel=0.1)


def test_a_float_photo_is_estimated_like_a_file_and_is_never_clipped():
    noisy = np.random.default_rng(0).normal(0, 25, (256, 256, 3)).astype(np.float32)  # half of it below black
    assert estimate_noise(noisy).sigma == pytest.approx(25, rel=0.05)


def _coloured_noise(sigma: float) -> np.ndarray:
    draw = np.random.default_rng(0)
    return (128 + draw.normal(0, sigma, (256, 256, 3))).astype(np.float32)


@pytest.mark.parametrize("sigma", [5, 15, 50])
def test_noise_that_nothing_has_filtered_is_white(sigma):
    noisy = _coloured_noise(sigma)
    assert estimate_noise(noisy).is_white
    assert estimate_noise(noisy.round().clip(0, 255).astype(np.uint8)).is_white


def test_noise_from_behind_a_mosaic_a_jpeg_or_a_filter_is_not_white():
    noisy = _coloured_noise(15).round().clip(0, 255).astype(np.uint8)
    enlarged = Image.fromarray(noisy).resize((300, 300), Image.Resampling.BICUBIC)
    filtered = [_as_jpeg(noisy, 85), np.asarray(enlarged)]
    clean = np.full((256, 256, 3), 128, np.uint8)
    assert not any(estimate_noise(photo).is_white for photo in (*filtered, photograph(clean, shot=3e-3, seed=0)))


def test_noise_that_is_stronger_in_the_dark_is_a_sensors():
    draw = np.random.default_rng(0)
    level = np.linspace(40, 215, 256)[:, None, None]
    noisy = level + draw.normal(0, np.linspace(20, 8, 256)[:, None, None], (256, 256, 3))
    assert not estimate_noise(noisy.round().clip(0, 255).astype(np.uint8)).is_white


def test_a_clean_or_a_gray_photo_has_no_white_noise():
    assert not estimate_noise(np.full((256, 256, 3), 128, np.uint8)).is_white
    assert not estimate_noise(_coloured_noise(15)[..., 0]).is_white


def _grain(sigma: float, softness: float) -> np.ndarray:
    """Gray noise, (256, 256, 1), of which so much of each pixel's went to the four beside it."""
    sharp = np.random.default_rng(4).normal(size=(256, 256))
    soft = sharp + softness * sum(np.roll(sharp, shift, axis) for shift in (-1, 1) for axis in (0, 1))
    return (sigma / soft.std() * soft)[..., None]


@pytest.mark.parametrize("white_sigma", [1, 3])
@pytest.mark.parametrize("softness", [0, 0.1, 0.2])
def test_grain_beside_white_noise_is_neither_white_nor_texture(softness, white_sigma):
    estimate = estimate_noise(_with_noise(_scene() + _grain(10, softness), white_sigma))
    assert not estimate.is_white
    assert estimate.luma_sigma == pytest.approx(10 * 3**0.5, rel=0.2)
    assert estimate.chroma_sigma < 4


def test_the_noise_of_a_toned_photo_is_not_white():
    gray = _scene().mean(axis=2, keepdims=True) + _grain(20, 0)
    assert not estimate_noise(_with_noise(gray * [1.07, 0.95, 0.74], 0)).is_white


def test_a_pattern_that_is_repeated_has_an_estimate():
    pattern = _with_noise(128 + _grain(20, 0.1) + np.zeros(3), 1)[:16, :16]
    assert np.isfinite(estimate_noise(np.tile(pattern, (16, 16, 1))).sigma)


@pytest.mark.parametrize("sigma", [2, 5, 10])
def test_white_noise_on_texture_is_not_taken_for_grain(sigma):
    strength = np.kron(np.random.default_rng(6).uniform(0, 3, (16, 16, 1)), np.ones((16, 16, 1)))
    photo = [90, 120, 100] + strength * _grain(20, 0.1)
    estimate = estimate_noise(_with_noise(photo, sigma))
    assert estimate.sigma == pytest.approx(sigma, rel=0.12, abs=1)


@pytest.mark.parametrize("shape", [(1, 4_000_000), (4_000_000, 1)])
def test_of_a_narrow_photo_only_what_is_sampled_is_repeated(shape):
    photo = np.zeros(shape, np.uint8)
    tracemalloc.start()
    estimate_sigma(photo)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * photo.nbytes  # repeated as a whole it has 16 times as much
