"""Which photos are left alone, and which never may be."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from model.estimate import estimate_noise
from model.strength import Strength, choose_dose, why_left_alone

SIDE_PX = 256


def scene(*, is_textured: bool = False) -> np.ndarray:
    """A photo without noise, float64 in 8-bit levels: a sky over a meadow, or stripes of fine detail all over."""
    draw = np.random.default_rng(5)
    if is_textured:
        stripes = np.repeat(draw.uniform(60, 190, (SIDE_PX, SIDE_PX // 4)), 4, axis=1)
        return np.stack([stripes] * 3, axis=-1) * [0.8, 1.0, 0.6]
    sky = np.linspace(90, 150, SIDE_PX // 2)[:, None, None] + np.array([0, 10, 40]) + np.zeros((1, SIDE_PX, 1))
    meadow = np.kron(draw.integers(40, 200, (SIDE_PX // 8, SIDE_PX // 4, 3)), np.ones((4, 4, 1)))
    return np.concatenate([sky, meadow])


def as_file(photo: np.ndarray) -> np.ndarray:
    return photo.round().clip(0, 255).astype(np.uint8)


def as_jpeg(photo: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(as_file(photo)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def noise(sigma: float, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(0, sigma, (SIDE_PX, SIDE_PX, channels))


def impulses(density: float) -> np.ndarray:
    photo, drawn = as_file(scene()), np.random.default_rng(2).random((SIDE_PX, SIDE_PX))
    photo[drawn < density / 2], photo[drawn > 1 - density / 2] = 255, 0
    return photo


def reason(photo: np.ndarray, strength: Strength = "auto", *, keeps_grain: bool = False) -> str | None:
    return why_left_alone(estimate_noise(photo), strength, keeps_grain=keeps_grain, is_gray=photo.ndim == 2)


def page(paper: tuple[int, int, int], ink: tuple[int, int, int], size_px: int) -> np.ndarray:
    """A page, or a screen, full of letters and without a margin."""
    draw, sheet = np.random.default_rng(4), Image.new("RGB", (SIDE_PX, SIDE_PX), paper)
    for top in range(1, SIDE_PX, size_px + 2):
        line = "".join(map(chr, draw.integers(33, 127, 80)))
        ImageDraw.Draw(sheet).text((2, top), line, fill=ink, font=ImageFont.load_default(size_px))
    return np.asarray(sheet)


def pixels_of(colours: int, size_px: int) -> np.ndarray:
    draw = np.random.default_rng(6)
    picture = draw.integers(0, 256, (colours, 3))[draw.integers(0, colours, (SIDE_PX // size_px, SIDE_PX // size_px))]
    return np.kron(picture, np.ones((size_px, size_px, 1))).astype(np.uint8)


PAPER, INK = (255, 255, 255), (20, 20, 20)

DRAWN = {
    "a page": page(PAPER, INK, 11),
    "a page in gray": page(PAPER, INK, 11)[..., 0],
    "a page in 16 bits": page(PAPER, INK, 11).astype(np.uint16) * 257,
    "a page as a JPEG": as_jpeg(page(PAPER, INK, 11), 80),
    "a terminal": page((12, 12, 12), (90, 220, 110), 11),
    "pixel art": pixels_of(16, 1),
    "enlarged pixel art": pixels_of(16, 2),
    "a code of squares": np.where(pixels_of(2, 2)[..., 0] == pixels_of(2, 2)[0, 0, 0], 255, 0).astype(np.uint8),
    "hatching": np.where(np.add(*np.indices((SIDE_PX, SIDE_PX))) % 5, 255, 0).astype(np.uint8),
    "a halftone": np.asarray(Image.fromarray(as_file(scene())).convert("1").convert("L")),
    "few colours, dithered": np.asarray(
        Image.fromarray(as_file(scene())).convert("P", palette=Image.Palette.WEB).convert("RGB")
    ),
}

CLEAN = {
    "a plain scene": as_file(scene()),
    "texture all over": as_file(scene(is_textured=True)),
    "a JPEG": as_jpeg(scene(), 85),
    "gray": as_file(scene())[..., 1],
    "16 bits": (scene() * 257).astype(np.uint16),
    "one colour": np.full((40, 40, 3), 77, np.uint8),
    "one pixel": np.full((1, 1), 77, np.uint8),
    "black and white": as_file(np.where(scene() > 120, 255, 0)),
    "noise below a level": as_file(scene() + noise(0.7)),
}

NOISY = {
    "white noise": as_file(scene() + noise(2)),
    "white noise on texture": as_file(scene(is_textured=True) + noise(3)),
    "white noise in gray": as_file((scene() + noise(2))[..., 1]),
    "white noise in 16 bits": ((scene() + noise(2)).clip(0, 255) * 257).astype(np.uint16),
    "white noise in a JPEG": as_jpeg(scene() + noise(5), 90),
    "grain": as_file(scene() + noise(3, channels=1)),
    "colour noise": as_file(scene() + noise(3) - noise(3).mean(axis=2, keepdims=True)),
    "salt and pepper": impulses(0.005),
    "much salt and pepper": impulses(0.2),
    "overexposed": as_file(scene() + 110 + noise(10)),
}


@pytest.mark.parametrize("photo", CLEAN.values(), ids=CLEAN)
def test_clean_photos_are_left_alone(photo: np.ndarray) -> None:
    assert (reason(photo) or "").startswith("clean: ")


@pytest.mark.parametrize("photo", NOISY.values(), ids=NOISY)
def test_noise_is_not_taken_for_texture(photo: np.ndarray) -> None:
    assert reason(photo) is None


def test_where_grain_is_kept_it_is_no_reason_to_denoise() -> None:
    assert reason(NOISY["grain"], keeps_grain=True) == "clean: less than 1 level of colour noise"
    assert reason(NOISY["colour noise"], keeps_grain=True) is None


def test_a_number_overrides_the_estimate() -> None:
    assert reason(CLEAN["a plain scene"], 0.5) is None
    assert reason(NOISY["white noise"], 0.0) == "the strength is 0"


def test_auto_is_all_that_the_network_finds_and_a_number_is_a_share_of_it() -> None:
    estimate = estimate_noise(NOISY["grain"])
    assert choose_dose(estimate, "auto", keeps_grain=False).strength == 1.0
    assert choose_dose(estimate, 0.3, keeps_grain=True).strength == 0.3


@pytest.mark.parametrize("density", [0.001, 0.002])
def test_hot_and_dead_pixels_are_counted(density: float) -> None:
    assert 0.3 * density < estimate_noise(impulses(density)).impulse_density <= density


@pytest.mark.parametrize("photo", [CLEAN["texture all over"], NOISY["white noise"], as_file(scene() + noise(50))])
def test_neither_texture_nor_strong_noise_counts_as_impulses(photo: np.ndarray) -> None:
    assert estimate_noise(photo).impulse_density < 6e-4


@pytest.mark.parametrize("photo", DRAWN.values(), ids=DRAWN)
def test_what_is_drawn_is_no_noise(photo: np.ndarray) -> None:
    assert reason(photo) == "clean: drawn, of letters, lines or dots without noise"
    assert reason(photo, 1.0) is None


@pytest.mark.parametrize("quality", [10, 30, 60, 90])
@pytest.mark.parametrize("sigma", [20, 50, 75])
def test_noise_is_not_taken_for_drawn_whatever_jpeg_has_left_of_it(sigma: float, quality: int) -> None:
    assert not estimate_noise(as_jpeg(scene() + noise(sigma), quality)).is_drawn


@pytest.mark.parametrize("stops", [1, 2, 3])
def test_noise_is_not_taken_for_drawn_where_a_photo_was_brightened_in_8_bits(stops: int) -> None:
    dark = as_file(12 + noise(1))
    assert reason(dark * np.uint8(2**stops)) is None
    assert reason(dark * np.uint16(2**stops * 257)) is None


def test_a_photo_of_one_colour_is_clean_and_not_drawn() -> None:
    assert reason(np.zeros((64, 64, 3), np.uint8)) == "clean: less than 1 level of noise"


def test_noise_on_a_page_is_noise() -> None:
    assert reason(as_file(page((200, 200, 190), (40, 40, 40), 11) + noise(8))) is None
