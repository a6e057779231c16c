"""`degrain demo`: camera noise on the photos that ship, the pipeline on the noisy copies, and what that gained."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from model.metrics import psnr_db
from model.noise import photograph
from pipeline.errors import RunFailed
from pipeline.images import Pixels, decode, encode, inspect

PHOTOS = Path(__file__).parent / "demo_photos"
NOISY, DENOISED, PICTURE = "noisy", "denoised", "before-after.png"

# ISO 100 has the least shot noise of the cameras that `model.noise` imitates; doubling the ISO doubles its variance.
SHOT_PER_ISO = 1e-6


@dataclass(frozen=True, slots=True)
class DemoPhoto:
    """A clean photo that ships, and what the demo makes of it.

    Attributes:
        name: its file in `PHOTOS`, and that of its noisy and denoised copies.
        title: what it shows.
        iso: the sensitivity whose noise it gets.
        detail_xy: centre of the detail that the comparison enlarges, as shares of width and height.
    """

    name: str
    title: str
    iso: int
    detail_xy: tuple[float, float]


DEMO_PHOTOS = (
    DemoPhoto("red-panda.jpg", "Red panda", 3200, (0.36, 0.55)),
    DemoPhoto("kingfisher.jpg", "Kingfisher", 5000, (0.42, 0.25)),
    DemoPhoto("sea-sunset.jpg", "Sea at sunset", 8000, (0.40, 0.57)),
    DemoPhoto("bridge-at-night.jpg", "Bridge at night", 12800, (0.40, 0.22)),
)


@dataclass(frozen=True, slots=True)
class DemoScore:
    """How far the noisy and the denoised copy of a photo are from the clean one, as PSNR in dB."""

    photo: DemoPhoto
    noisy_psnr_db: float
    denoised_psnr_db: float

    @property
    def gain_db(self) -> float:
        return self.denoised_psnr_db - self.noisy_psnr_db


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo measured, and the picture of it."""

    scores: list[DemoScore]
    picture: Path


def run_demo(folder: Path, denoise: Callable[[Path, Path], None]) -> DemoResult:
    """Write noisy photos to `folder`/noisy, denoise them into `folder`/denoised, and compare both with the clean ones.

    May be run again on its own folder: noisy photos that are already there stay as they are, so that an incremental
    `denoise` finds nothing to do.

    Args:
        folder: a new or empty folder, or that of an earlier demo.
        denoise: makes an image set of layout "files" at its second path from the photos at its first.

    Raises:
        ValueError: there is something in the folder that no demo wrote.
        RunFailed: `denoise` left a photo without a result.
    """
    _check_folder(folder)
    noisy, denoised = folder / NOISY, folder / DENOISED
    write_noisy(noisy)
    denoise(noisy, denoised)
    scores = score(noisy, denoised)
    picture = folder / PICTURE
    picture.write_bytes(draw_comparison(noisy, denoised, scores))
    return DemoResult(scores, picture)


def write_noisy(folder: Path) -> list[DemoPhoto]:
    """Write a noisy copy of every photo, in its own format; the same bytes each time. Equal files are not touched."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in DEMO_PHOTOS:
        noisy = noisy_photo(photo, photo.iso)
        path = folder / photo.name
        if not path.exists() or path.read_bytes() != noisy:
            path.write_bytes(noisy)
    return list(DEMO_PHOTOS)


def noisy_photo(photo: DemoPhoto, iso: int) -> bytes:
    """A photo with the noise of a sensitivity, in its own format; the same bytes each time."""
    clean = (PHOTOS / photo.name).read_bytes()
    header = inspect(clean, name=photo.name)
    pixels = photograph(decode(clean, header).colour, shot=iso * SHOT_PER_ISO, seed=iso)
    return encode(Pixels(pixels), clean, header)


def score(noisy: Path, denoised: Path) -> list[DemoScore]:
    """Compare every photo of the folder `noisy`, and its result in the image set `denoised`, with the clean one.

    Raises:
        RunFailed: a photo has no result.
    """
    scores = []
    for photo in DEMO_PHOTOS:
        clean = _read(PHOTOS / photo.name)
        before_db = psnr_db(_read(noisy / photo.name), clean)
        scores.append(DemoScore(photo, before_db, psnr_db(_read_result(denoised, photo), clean)))
    return scores


def format_table(scores: Sequence[DemoScore]) -> str:
    """The scores as aligned lines, for a terminal."""
    rows = [("photo", "noise", "PSNR before", "PSNR after", "gain")]
    for each in scores:
        before, after = f"{each.noisy_psnr_db:.1f} dB", f"{each.denoised_psnr_db:.1f} dB"
        rows.append((each.photo.title, f"ISO {each.photo.iso}", before, after, f"{each.gain_db:+.1f} dB"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        f"{title:{widths[0]}}  {noise:{widths[1]}}  {before:>{widths[2]}}  {after:>{widths[3]}}  {gain:>{widths[4]}}"
        for title, noise, before, after, gain in rows
    )


# The comparison: one row per photo with the whole photo, half noisy and half denoised, and a detail of both, enlarged.
# Pillow draws it here; photos are read and written by `pipeline.images` alone.
WIDTH_PX, MARGIN_PX, GAP_PX, HEADING_PX, ROW_PX = 1600, 32, 16, 68, 300
PHOTO_PX = 448
ENLARGEMENT = 3
DETAIL_PX = ((WIDTH_PX - 2 * MARGIN_PX - 2 * GAP_PX - PHOTO_PX) // 2 // ENLARGEMENT, ROW_PX // ENLARGEMENT)
BACKGROUND, MUTED, WHITE, SHADE = (18, 20, 24), (160, 166, 178), (255, 255, 255), (12, 14, 18, 200)


def draw_comparison(noisy: Path, denoised: Path, scores: Sequence[DemoScore]) -> bytes:
    """Draw the noisy and the denoised photos beside each other, with their PSNR, as the bytes of a PNG."""
    rows = [_draw_row(_read(noisy / each.photo.name), _read_result(denoised, each.photo), each) for each in scores]
    height_px = HEADING_PX + len(rows) * (ROW_PX + GAP_PX) - GAP_PX + MARGIN_PX
    picture = Image.new("RGB", (WIDTH_PX, height_px), BACKGROUND)
    _draw_headings(picture)
    for number, row in enumerate(rows):
        picture.paste(row, (MARGIN_PX, HEADING_PX + number * (ROW_PX + GAP_PX)))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw_headings(picture: Image.Image) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(24)
    details_px = MARGIN_PX + PHOTO_PX + GAP_PX
    lefts_px = (MARGIN_PX, MARGIN_PX + PHOTO_PX // 2, details_px, details_px + DETAIL_PX[0] * ENLARGEMENT + GAP_PX)
    enlarged = f" at {ENLARGEMENT * 100} %"
    for left_px, text, addition in zip(lefts_px, ("Before", "After") * 2, ("", "", enlarged, enlarged), strict=True):
        draw.text((left_px, HEADING_PX - 20), text, WHITE, font, anchor="ls")
        draw.text((left_px + font.getlength(text), HEADING_PX - 20), addition, MUTED, font, anchor="ls")
    draw.text((WIDTH_PX - MARGIN_PX, HEADING_PX - 20), "PSNR against the clean photo", MUTED, font, anchor="rs")


def _draw_row(noisy: NDArray[np.uint8], denoised: NDArray[np.uint8], result: DemoScore) -> Image.Image:
    """One photo: its two halves, then the same detail of the noisy and of the denoised copy."""
    row = Image.new("RGB", (WIDTH_PX - 2 * MARGIN_PX, ROW_PX), BACKGROUND)
    before, after = Image.fromarray(noisy), Image.fromarray(denoised)
    box = _detail_box(before.size, result.photo.detail_xy)

    row.paste(_draw_halves(before, after, box), (0, 0))
    _draw_label(row, (12, ROW_PX - 12), f"{result.photo.title} · ISO {result.photo.iso}")

    detail_px = (DETAIL_PX[0] * ENLARGEMENT, DETAIL_PX[1] * ENLARGEMENT)
    after_label = f"{result.denoised_psnr_db:.1f} dB  ({result.gain_db:+.1f})"
    left_px = PHOTO_PX + GAP_PX
    for copy, label in ((before, f"{result.noisy_psnr_db:.1f} dB"), (after, after_label)):
        row.paste(copy.resize(detail_px, Image.Resampling.NEAREST, box), (left_px, 0))
        _draw_label(row, (left_px + 12, ROW_PX - 12), label)
        left_px += detail_px[0] + GAP_PX
    return row


def _draw_halves(before: Image.Image, after: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The whole photo, noisy on the left of a line and denoised on its right, with a frame around `box`."""
    photo = before.copy()
    middle_px = photo.width // 2
    photo.paste(after.crop((middle_px, 0, *after.size)), (middle_px, 0))
    scale = max(PHOTO_PX / photo.width, ROW_PX / photo.height)
    photo = ImageOps.fit(photo, (PHOTO_PX, ROW_PX), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(photo)
    draw.line((PHOTO_PX // 2, 0, PHOTO_PX // 2, ROW_PX), WHITE, 2)
    left, top, right, bottom = (round(edge * scale) for edge in box)
    draw.rectangle((left, top, right, bottom), outline=WHITE, width=2)
    return photo


def _draw_label(row: Image.Image, left_bottom: tuple[int, int], text: str) -> None:
    """White text on a dark, translucent plate whose lower left corner is given."""
    font = ImageFont.load_default(22)
    left, bottom = left_bottom
    width_px, height_px = round(font.getlength(text)) + 24, 36
    draw = ImageDraw.Draw(row, "RGBA")
    draw.rounded_rectangle((left, bottom - height_px, left + width_px, bottom), 8, SHADE)
    draw.text((left + 12, bottom - height_px / 2), text, WHITE, font, anchor="lm")


def _detail_box(size_px: tuple[int, int], centre_xy: tuple[float, float]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the detail, moved inside the photo where it would reach over its edge."""
    corner = [
        min(max(round(share * size - detail / 2), 0), size - detail)
        for share, size, detail in zip(centre_xy, size_px, DETAIL_PX, strict=True)
    ]
    return corner[0], corner[1], corner[0] + DETAIL_PX[0], corner[1] + DETAIL_PX[1]


def _check_folder(folder: Path) -> None:
    """Refuse a folder with anything in it that an earlier demo did not write; what that denoised is the image set's."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder for the demo that is new or empty")
    noisy = folder / NOISY
    if noisy.is_dir():
        known = {folder / name for name in (NOISY, DENOISED, PICTURE)} | {noisy / photo.name for photo in DEMO_PHOTOS}
        found = {*folder.iterdir(), *noisy.iterdir()}
    else:
        known, found = set(), set(folder.iterdir())
    foreign = {path for path in found - known if not path.name.startswith(".")}  # file managers leave hidden files
    if foreign:
        raise ValueError(f"{min(foreign)} was not written by a demo: expected a folder that is new or empty")


def _read_result(denoised: Path, photo: DemoPhoto) -> NDArray[np.uint8]:
    try:
        return _read(denoised / "images" / photo.name)
    except FileNotFoundError as error:
        raise RunFailed(f"{photo.name} has no result in {denoised}: its index holds the reason") from error


def _read(path: Path) -> NDArray[np.uint8]:
    data = path.read_bytes()
    return decode(data, inspect(data, name=path.name)).colour.astype(np.uint8, copy=False)
