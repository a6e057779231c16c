"""Photos as pictures of moderate size for a page: upright, before and after, with a detail pixel by pixel."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import PhotoRejected
from pipeline.images import NO_LIMITS, can_shrink, inspect, upright
from pipeline.packed import promise_of

WHOLE_PX = (760, 560)  # width and height that a whole photo fits into
DETAIL_PX = 420  # sides of what is shown of a photo as it is, without any scaling
TILE_PX = 40  # what a detail is searched by
MAX_PIXELS = 100_000_000  # larger photos are not decoded for a picture
MAX_PROFILE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Picture:
    """What a page shows as it is: a data URL, and the size of its pixels."""

    url: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A photo before and after, whole and in a detail: where most was changed. `after` may be all that there is."""

    whole_before: Picture | None
    whole_after: Picture
    detail_before: Picture | None
    detail_after: Picture


def open_photo(data: bytes, key: str) -> Image.Image:
    """A photo as a person looks at it.

    Raises:
        PhotoRejected: it cannot be shown.
    """
    header = inspect(data, name=promise_of(key, data), limits=NO_LIMITS)
    if not can_shrink(header):
        raise PhotoRejected(header.untouched_reason or f"a {header.format} of mode {header.mode} is not shown")
    if header.pixels > MAX_PIXELS:
        raise PhotoRejected(f"it has {header.pixels / 1e6:,.0f} megapixels, too many to be shown here")
    return upright(data, header)


def draw_pair(before: Image.Image | None, after: Image.Image) -> Pair:
    """The pictures of a photo, whose two versions are of one size, or of which there is but one."""
    if before is not None and before.size != after.size:
        before = None
    box = _detail_box(before, after)
    return Pair(
        whole_before=None if before is None else draw_whole(before),
        whole_after=draw_whole(after),
        detail_before=None if before is None else _draw_detail(before, box),
        detail_after=_draw_detail(after, box),
    )


def draw_whole(photo: Image.Image) -> Picture:
    small = photo.copy()
    small.thumbnail(WHOLE_PX, Image.Resampling.LANCZOS)
    return _picture(small, photo, "WEBP", quality=82, method=4)


def _draw_detail(photo: Image.Image, box: tuple[int, int, int, int]) -> Picture:
    return _picture(photo.crop(box), photo, "JPEG", quality=88, subsampling=0)  # noise is in the colour, too


def _picture(picture: Image.Image, photo: Image.Image, kind: str, **options: int) -> Picture:
    profile = photo.info.get("icc_profile") or b""
    file = io.BytesIO()
    picture.save(file, kind, icc_profile=profile if len(profile) <= MAX_PROFILE_BYTES else None, **options)
    text = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/{kind.lower()};base64,{text}", picture.width, picture.height)


def _detail_box(before: Image.Image | None, after: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the detail: where most was changed, or else in the middle."""
    width_px, height_px = min(DETAIL_PX, after.width), min(DETAIL_PX, after.height)
    left, top = (after.width - width_px) // 2, (after.height - height_px) // 2
    if before is not None:
        changed = _changed_tiles(before, after)
        rows, columns = height_px // TILE_PX or 1, width_px // TILE_PX or 1
        sums = np.pad(changed, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        if sums.shape[0] > rows and sums.shape[1] > columns:
            windows = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
            row, column = divmod(int(windows.argmax()), windows.shape[1])
            left, top = min(column * TILE_PX, after.width - width_px), min(row * TILE_PX, after.height - height_px)
    return left, top, left + width_px, top + height_px


def _changed_tiles(before: Image.Image, after: Image.Image) -> NDArray[np.float64]:
    """How much was changed in each tile: the mean square over its pixels; what is cut off at the edges is left out."""
    rows, columns = after.height // TILE_PX, after.width // TILE_PX
    tiles = np.zeros((rows, columns))
    for row in range(rows):  # a strip at a time: the difference of a whole photo is four times as large as it
        strip = (0, row * TILE_PX, columns * TILE_PX, (row + 1) * TILE_PX)
        one, other = (np.asarray(photo.crop(strip).convert("L"), np.float32) for photo in (before, after))
        tiles[row] = ((one - other) ** 2).reshape(TILE_PX, columns, TILE_PX).mean(axis=(0, 2))
    return tiles
