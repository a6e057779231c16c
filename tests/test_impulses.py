"""Salt and pepper is found and filled; whatever else is black or white is left as it is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from model.denoiser import Denoiser
from model.estimate import NoiseSampler, estimate_noise
from model.impulses import Impulses
from model.metrics import psnr_db
from model.strength import why_left_alone
from model.tiling import Rectangle

SIDE_PX = 256
PHOTOS = sorted((Path(__file__).parents[1] / "pipeline" / "demo_photos").glob("*.jpg"))


def scene() -> np.ndarray:
    """A sky that fades, over coloured fields with soft edges; no noise. uint8."""
    draw = np.random.default_rng(5)
    fields = Image.fromarray(draw.integers(30, 220, (16, 16, 3), dtype=np.uint8))
    photo = np.array(fields.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))
    photo[: SIDE_PX // 4] = np.linspace(90, 150, SIDE_PX // 4)[:, None, None] + np.array([0, 10, 40])
    return photo


def hit(photo: np.ndarray, density: float, *, is_gray: bool = True) -> np.ndarray:
    """With salt and pepper, half each, of whole pixels or of single samples."""
    drawn = np.random.default_rng(2).random(photo.shape[:2] if is_gray else photo.shape)
    noisy = photo.copy()
    noisy[drawn < density / 2], noisy[drawn > 1 - density / 2] = np.iinfo(photo.dtype).max, 0
    return noisy


def with_noise(photo: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, photo.shape)
    return (photo + noise).round().clip(0, 255).astype(np.uint8)


def impulses(photo: np.ndarray) -> Impulses | None:
    return estimate_noise(photo).impulses


def letters() -> np.ndarray:
    """Black and white text in many places of a gray page, smooth and not."""
    draw = np.random.default_rng(0)
    page = Image.new("RGB", (SIDE_PX, SIDE_PX), (128, 128, 128))
    for number in range(60):
        place = draw.integers(0, SIDE_PX, 2).tolist()
        ImageDraw.Draw(page).text(place, "degrain:.i", fill=("white", "black")[number % 2])
    return np.asarray(page)


def page() -> np.ndarray:
    """Black and smooth letters on white paper, line by line."""
    paper = Image.new("L", (2 * SIDE_PX, 2 * SIDE_PX), "white")
    for number, top in enumerate(range(0, 2 * SIDE_PX, 28)):
        line = "the quick brown fox jumps over a lazy dog, 24.7 times and more"[3 * number % 20 :]
        ImageDraw.Draw(paper).text((8, top), line, fill="black", font=ImageFont.load_default(22))
    return np.asarray(paper)


def stars() -> np.ndarray:
    sky = np.full((SIDE_PX, SIDE_PX, 3), 12, np.uint8)
    sky[np.random.default_rng(3).random((SIDE_PX, SIDE_PX)) < 0.01] = 255
    return with_noise(sky, 6)


def windows_of_old() -> np.ndarray:
    """Buttons with edges of one white and one black pixel, on gray."""
    page = np.full((SIDE_PX, SIDE_PX, 3), 192, np.uint8)
    page[::16], page[:, ::16], page[15::16], page[:, 15::16] = 255, 255, 0, 0
    return page


def clipped(photo: np.ndarray) -> np.ndarray:
    return ((photo.astype(np.float32) - 128) * 4 + 128).clip(0, 255).astype(np.uint8)


NOT_HIT = {
    "a plain scene": scene(),
    "clipped skies and shadows": clipped(scene()),
    "the same with noise": with_noise(clipped(scene()), 20),
    **{f"noise of {sigma} levels": with_noise(scene(), sigma) for sigma in (15, 25, 50, 90)},
    "stars": stars(),
    "text": letters(),
    "a page": page(),
    "white on black": 255 - page(),
    "buttons": windows_of_old(),
    "a checkerboard": np.indices((SIDE_PX, SIDE_PX)).sum(axis=0).astype(np.uint8) % 2 * 255,
    "a halftone": np.asarray(Image.fromarray(scene()).convert("1").convert("L")),
    "a code of squares": np.kron(np.random.default_rng(0).integers(0, 2, (32, 32)), np.full((8, 8), 255)).astype("u1"),
    "static": np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX), np.uint8),
    "a few hot and dead pixels": hit(scene(), 0.003),
    "one pixel": np.zeros((1, 1), np.uint8),
    "too few to be scattered": np.array([[0, 64, 255]], np.uint8),
}


@pytest.mark.parametrize("photo", NOT_HIT.values(), ids=NOT_HIT)
def test_what_is_black_or_white_by_itself_is_no_impulse(photo: np.ndarray) -> None:
    assert impulses(photo) is None


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("sigma", [0, 15, 50])
def test_real_photos_have_none_with_noise_and_without(path: Path, sigma: float) -> None:
    photo = np.asarray(Image.open(path))
    assert impulses(with_noise(photo, sigma)) is None


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("is_gray", [True, False])
def test_their_share_and_kind_are_found(density: float, is_gray: bool) -> None:
    found = impulses(hit(scene(), density, is_gray=is_gray))
    assert found is not None
    assert found.is_gray == is_gray
    assert found.salt + found.pepper == pytest.approx(density, rel=0.15)


@pytest.mark.parametrize("frame", [0, 255])
def test_they_are_found_within_a_frame_that_has_none(frame: int) -> None:
    photo = np.tile(hit(scene(), 0.2), (2, 2, 1))
    assert impulses(np.pad(photo, ((40, 40), (40, 40), (0, 0)), constant_values=frame)) is not None


def test_they_are_found_beside_other_noise_and_in_16_bits() -> None:
    assert impulses(hit(with_noise(scene(), 15), 0.1)) is not None
    assert impulses(hit(scene().astype(np.uint16) * 257, 0.1)) is not None


def test_a_photo_by_rows_has_the_same() -> None:
    noisy = hit(scene(), 0.1)
    sampler = NoiseSampler(noisy.shape, noisy.dtype)
    for top in range(0, SIDE_PX, 50):
        sampler.add(top, noisy[top : top + 50])
    assert sampler.estimate() == estimate_noise(noisy)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.load("photo", device="cpu")


@pytest.mark.parametrize("photo", [scene(), scene()[..., 1], scene().astype(np.uint16) * 257], ids=["8", "gray", "16"])
def test_what_was_hit_is_filled_and_the_rest_stays_exactly(denoiser: Denoiser, photo: np.ndarray) -> None:
    noisy = hit(photo, 0.2)
    clean = denoiser(noisy)
    is_hit = (noisy != photo).reshape(SIDE_PX, SIDE_PX, -1).any(axis=2)
    assert np.array_equal(clean[~is_hit], photo[~is_hit])
    peak = np.iinfo(photo.dtype).max
    assert psnr_db(clean / peak * 255, photo / peak * 255) > 40


def test_channels_that_fail_each_on_its_own_help_each_other(denoiser: Denoiser) -> None:
    grain = np.random.default_rng(1).normal(0, 20, (SIDE_PX, SIDE_PX, 1))  # detail that only the other channels know
    photo = (scene() + grain).round().clip(1, 254).astype(np.uint8)
    noisy = hit(photo, 0.1, is_gray=False)
    filled = denoiser(noisy, keeps_grain=True)
    assert psnr_db(filled[noisy != photo].astype(float), photo[noisy != photo].astype(float)) > 30


def test_what_is_white_or_black_by_itself_stays_so_among_impulses(denoiser: Denoiser) -> None:
    photo = scene()
    photo[100:160, :128], photo[100:160, 128:] = 255, 0
    clean = denoiser(hit(photo, 0.2))
    assert np.array_equal(clean[102:158, :126], photo[102:158, :126])
    assert np.array_equal(clean[102:158, 130:], photo[102:158, 130:])


def test_dense_impulses_are_filled_too(denoiser: Denoiser) -> None:
    assert psnr_db(denoiser(hit(scene(), 0.5)).astype(float), scene().astype(float)) > 30


def test_other_noise_beside_them_is_removed_by_the_network(denoiser: Denoiser) -> None:
    noisy = with_noise(scene(), 15)
    alone, both = denoiser(noisy), denoiser(hit(noisy, 0.1))
    lost_db = psnr_db(alone.astype(float), scene().astype(float)) - psnr_db(both.astype(float), scene().astype(float))
    assert lost_db < 2


def test_a_photo_with_impulses_is_never_called_clean() -> None:
    noise = estimate_noise(hit(scene(), 0.02))
    assert why_left_alone(noise, "auto", keeps_grain=False, is_gray=False) is None
    assert why_left_alone(noise, "auto", keeps_grain=True, is_gray=True) is None
    assert why_left_alone(noise, 0.0, keeps_grain=False, is_gray=False) == "the strength is 0"


def test_they_are_filled_whole_at_any_strength_but_none(denoiser: Denoiser) -> None:
    noisy = hit(scene(), 0.2)
    assert np.array_equal(denoiser(noisy, strength=0.1), denoiser(noisy))
    assert np.array_equal(denoiser(noisy, strength=0.0), noisy)


def test_they_are_no_grain_that_is_kept(denoiser: Denoiser) -> None:
    noisy = hit(with_noise(scene()[..., 1], 15), 0.1)
    kept = denoiser(noisy, keeps_grain=True)
    is_kept = (noisy > 0) & (noisy < 255)
    assert np.array_equal(kept[is_kept], noisy[is_kept])
    assert psnr_db(kept.astype(float), scene()[..., 1].astype(float)) > 23


@pytest.mark.parametrize("is_gray", [True, False])
def test_a_tile_is_filled_as_the_whole_photo_is(denoiser: Denoiser, is_gray: bool) -> None:
    request = denoiser.request(hit(scene(), 0.3, is_gray=is_gray), strength=1.0, noise=None)
    whole = request.read(Rectangle(0, 0, SIDE_PX, SIDE_PX))
    tile = request.read(Rectangle(104, 96, 160, 200))
    assert np.abs(tile.astype(int) - whole[104:160, 96:200]).max() <= 1
