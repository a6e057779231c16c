"""How a photo is cut: tiles that partition it, each with the surroundings that the network must see.

The network works in cells of `multiple_px`. Every rectangle here starts at a whole cell, so that the network sees the
same cells in a tile as in the whole photo, and a tiled result equals an untiled one up to the noise of floats.
"""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Pixels of a photo: rows `top` up to `bottom` and columns `left` up to `right`, without the last ones."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height_px(self) -> int:
        return self.bottom - self.top

    @property
    def width_px(self) -> int:
        return self.right - self.left

    def within(self, other: "Rectangle") -> tuple[slice, slice]:
        """Rows and columns of this rectangle, counted from the corner of `other`, which contains it."""
        return (
            slice(self.top - other.top, self.bottom - other.top),
            slice(self.left - other.left, self.right - other.left),
        )

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the photo."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True, slots=True)
class Tile:
    """What one run of the network computes: `core` is what it is responsible for, `read` what it must see for that."""

    core: Rectangle
    read: Rectangle


def plan_tiles(
    height_px: int,
    width_px: int,
    *,
    tile_px: int,
    halo_px: int,
    multiple_px: int,
    area: Rectangle | None = None,
) -> list[Tile]:
    """Cut a photo into tiles of even size, row by row.

    The cores partition the photo, or `area` where it is given. Each read rectangle extends beyond its core by at least
    `halo_px`, and by at least one cell, on every side where the photo goes on; it never leaves the photo. Both start at
    whole cells and end there or at the photo's edge.

    Args:
        tile_px: the largest side of a core, rounded down to whole cells (but at least one).
        halo_px: how far beyond a rectangle of whole cells the network looks.
        multiple_px: the side of the network's cells.
        area: the part to cut; starts at a whole cell, ends at one or at the photo's edge. Used to cut a tile again.

    Raises:
        ValueError: a size that is not positive, or an area that is not one of the photo's.
    """
    if min(height_px, width_px, tile_px, multiple_px) < 1 or halo_px < 0:
        raise ValueError(
            f"cannot cut {height_px} × {width_px} pixels into tiles of {tile_px} with a halo of {halo_px} and cells of "
            f"{multiple_px}: all but the halo must be at least 1"
        )
    area = area or Rectangle(0, 0, height_px, width_px)
    rows = _cut(area.top, area.bottom, height_px, tile_px, multiple_px)
    columns = _cut(area.left, area.right, width_px, tile_px, multiple_px)
    # At least one cell, so that a tile at the edge is wide enough to be padded by the reflection of the whole photo.
    halo_px = max(1, -(-halo_px // multiple_px)) * multiple_px
    return [
        Tile(
            core=Rectangle(top, left, bottom, right),
            read=Rectangle(
                max(0, top - halo_px),
                max(0, left - halo_px),
                min(height_px, bottom + halo_px),
                min(width_px, right + halo_px),
            ),
        )
        for top, bottom in rows
        for left, right in columns
    ]


def padded_px(extent_px: int, multiple_px: int) -> int:
    """The extent that the network is given for one of `extent_px`: the next whole number of cells."""
    return -(-extent_px // multiple_px) * multiple_px


def _cut(start: int, stop: int, extent_px: int, tile_px: int, multiple_px: int) -> list[tuple[int, int]]:
    """Cut one axis from `start` to `stop` into spans of whole cells that differ by one cell at most."""
    is_whole = start % multiple_px == 0 and (stop % multiple_px == 0 or stop == extent_px)
    if not (is_whole and 0 <= start < stop <= extent_px):
        raise ValueError(f"the area {start}–{stop} of {extent_px} pixels is not made of cells of {multiple_px}")
    cells = -(-(stop - start) // multiple_px)
    count = -(-cells // max(1, tile_px // multiple_px))
    borders = [start + (cells * index // count) * multiple_px for index in range(count)]
    return list(pairwise([*borders, stop]))
