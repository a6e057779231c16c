"""Noise that was taken out, told apart from texture that was."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter

from model.estimate import estimate_noise
from model.request import Windowed
from model.strength import TEXTURE, Dose, Strength, why_left_alone
from model.texture import Removed
from pipeline.denoise import DenoiseConfig, denoise_by_bands, denoise_photo
from pipeline.records import Outcome

SIDE_PX = 256
draw = np.random.default_rng(7)


def blurred(photo: np.ndarray, radius_px: float = 1.6) -> np.ndarray:
    """What a network makes of texture."""
    return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radius_px)))


def field(radius_px: float, sigma: float) -> np.ndarray:
    """(H, W) of correlated noise."""
    values = np.fft.fft2(np.random.default_rng(3).normal(size=(SIDE_PX, SIDE_PX)))
    y, x = np.meshgrid(np.fft.fftfreq(SIDE_PX), np.fft.fftfreq(SIDE_PX), indexing="ij")
    filtered = np.fft.ifft2(values * np.exp(-2 * (np.pi * radius_px) ** 2 * (x**2 + y**2))).real
    return filtered / filtered.std() * sigma


def as_photo(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


FUR = as_photo(np.repeat((128 + field(0.4, 15) + field(2.5, 15))[..., None], 3, axis=2))
SCENE = 60 + np.kron(draw.uniform(0, 120, (8, 8, 3)), np.ones((32, 32, 1)))
NOISES = {
    "white": draw.normal(0, 20, SCENE.shape),
    "white and gray": draw.normal(0, 20, (*SCENE.shape[:2], 1)),
    "grain": field(0.7, 20)[..., None],
    "colour": np.stack([field(0.7, 20), -field(0.7, 20), np.roll(field(0.7, 20), 99)], axis=-1),
    "blotches": field(6, 20)[..., None],
    "sharpened": (1.8 * field(0.4, 20) - 0.8 * field(1.2, 20))[..., None],
    "the same in each row": draw.normal(0, 20, (SIDE_PX, 1, 1)),
}
Y, X = np.indices((SIDE_PX, SIDE_PX))
REGULAR = {
    "a screen of dots": np.cos(2 * np.pi * (X + Y) / 6) + np.cos(2 * np.pi * (X - Y) / 6),
    "ordered dithering": np.tile(
        [[-3, 1, -2, 2], [3, -1, 4, 0], [-1.5, 2.5, -2.5, 1.5], [4.5, 0.5, 3.5, -0.5]], (64, 64)
    ),
    "a weave": np.sin(2 * np.pi * (0.9 * X + 0.4 * Y) / 4.3) * np.sin(2 * np.pi * (0.9 * Y - 0.4 * X) / 4.3),
}


def is_texture(before: np.ndarray, after: np.ndarray, rows: int = SIDE_PX, *, tells_blur: bool = True) -> bool:
    removed = Removed(tells_blur=tells_blur)
    for top in range(0, len(before), rows):
        removed.add(before[top : top + rows], after[top : top + rows])
    return removed.is_texture


@pytest.mark.parametrize("rows", [SIDE_PX, 16, 3])
@pytest.mark.parametrize("scale", [1, 257])
def test_texture_that_is_blurred_is_found(scale: int, rows: int) -> None:
    dtype = np.uint8 if scale == 1 else np.uint16

    assert is_texture(FUR.astype(dtype) * dtype(scale), blurred(FUR).astype(dtype) * dtype(scale), rows)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_noise_is_none(noise: np.ndarray) -> None:
    assert not is_texture(as_photo(SCENE + noise), as_photo(SCENE))


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_nor_is_it_in_gray(noise: np.ndarray) -> None:
    noisy = as_photo(SCENE + noise)[..., 0]
    assert not is_texture(noisy, as_photo(SCENE)[..., 0], tells_blur=False)


@pytest.mark.parametrize("side_px", [16, 40])
def test_noise_of_a_small_photo_does_not_repeat_itself_by_chance(side_px: int) -> None:
    flat = np.full((side_px, side_px), 128, np.uint8)
    noisy = as_photo(128 + np.random.default_rng(8).normal(0, 20, (300, side_px, side_px)))
    assert not any(is_texture(each, flat, tells_blur=False) for each in noisy)


@pytest.mark.parametrize("rows", [SIDE_PX, 16])
@pytest.mark.parametrize("pattern", REGULAR.values(), ids=REGULAR)
def test_what_repeats_itself_is_texture_in_gray_too(pattern: np.ndarray, rows: int) -> None:
    dotted = as_photo(SCENE + 10 * pattern[..., None])
    assert is_texture(dotted, as_photo(SCENE), rows, tells_blur=False)
    assert is_texture(dotted[..., 0], as_photo(SCENE)[..., 0], rows, tells_blur=False)


def test_noise_on_what_repeats_itself_is_noise() -> None:
    pattern = REGULAR["a screen of dots"][..., None]
    noisy, dotted = SCENE + 4 * pattern + NOISES["white"], SCENE + 2 * pattern
    assert not is_texture(as_photo(noisy), as_photo(dotted))


def test_where_nothing_was_removed_or_nothing_is_known_there_is_none() -> None:
    assert not is_texture(FUR, FUR)
    assert not is_texture(FUR[:2], blurred(FUR)[:2])


def as_network(noisy: np.ndarray, _: Dose) -> np.ndarray:
    return blurred(noisy)


@pytest.mark.parametrize(("strength", "outcome"), [("auto", Outcome.UNTOUCHED), (1.0, Outcome.DENOISED)])
def test_a_photo_whose_texture_would_be_blurred_stays_as_it_was(strength: Strength, outcome: Outcome) -> None:
    file = io.BytesIO()
    Image.fromarray(FUR).save(file, "PNG")
    assert why_left_alone(estimate_noise(FUR), "auto", keeps_grain=False, is_gray=False) is None

    result = denoise_photo(file.getvalue(), "fur.png", as_network, DenoiseConfig(strength=strength))

    assert result.outcome == outcome
    assert result.reason == (TEXTURE if outcome == Outcome.UNTOUCHED else None)
    assert (result.data == file.getvalue(), result.strength == 0) == ((outcome == Outcome.UNTOUCHED,) * 2)


def test_so_does_a_gray_one_that_repeats_itself() -> None:
    file, dots = io.BytesIO(), as_photo(128 + 30 * REGULAR["a weave"] + field(2.5, 15))
    Image.fromarray(dots).save(file, "PNG")
    assert why_left_alone(estimate_noise(dots), "auto", keeps_grain=False, is_gray=True) is None

    result = denoise_photo(file.getvalue(), "dots.png", as_network, DenoiseConfig())

    assert (result.outcome, result.reason, result.data) == (Outcome.UNTOUCHED, TEXTURE, file.getvalue())


def test_so_does_one_that_was_denoised_by_bands(tmp_path: Path) -> None:
    source = tmp_path / "fur.tif"
    tifffile.imwrite(source, FUR, photometric="rgb", rowsperstrip=10, compression="zlib")

    def by_windows(photo: Windowed, _: Dose) -> None:
        everything = slice(0, SIDE_PX), slice(0, SIDE_PX)
        photo[everything] = blurred(photo[everything])

    with source.open("rb") as file:
        result = denoise_by_bands(file, "fur.tif", tmp_path / "result", by_windows, DenoiseConfig())

    assert (result.outcome, result.reason, result.strength) == (Outcome.UNTOUCHED, TEXTURE, 0)
    assert (tmp_path / "result").read_bytes() == source.read_bytes()
