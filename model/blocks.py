"""The blocks by which a photo is judged: those on a grid, of them those that can be used, and of these the flattest."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.haar import BLOCK_PX, Floats, band

# What white is in each dtype.
PEAKS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 255}
IMPULSE_SAMPLE_PX = 2**17
FLATTEST_SHARE = 0.05
NEXT_SHARE = 0.2  # the flattest and the next flattest together
FEWEST_BLOCKS = 8
STRIP = (2, BLOCK_PX)  # rows and columns: what the finest bands are made of
BLOCKS_AT_ONCE = 128  # they stay in the cache, and what they need is not given back to the system each time
CLIPPED_SHARE = 0.02  # with more clipped samples than this, a block's noise is no longer that of the sensor
LEAST_FRAME = 0.01  # of the blocks are filled by one colour where a photo has a frame
MOST_FRAMED_SHARE = 0.25  # with more of a frame, what a JPEG has left of its edge is all that a block shows
FEWEST_WITHIN_FRAME = 64  # blocks; with fewer, the letters of a page that fill a block are taken for a photo
MOST_NEUTRAL = 1.5  # 8-bit levels between the channels of what is black and white: a lossy WebP has no exact gray

# Luminance, and two axes of chrominance: an orthonormal basis.
LUMA_CHROMA = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]], np.float32) / np.sqrt([[3], [2], [6]], dtype=np.float32)


def sample_blocks(photo: NDArray[Any], sample_px: int) -> NDArray[Any]:
    """Blocks on a regular grid, (N, P, C) with the P pixels of each in rows, in the photo's dtype."""
    photo_HWC = photo if photo.ndim == 3 else photo[..., None]
    rows, columns = (max(1, extent // BLOCK_PX) for extent in photo_HWC.shape[:2])
    height_px, width_px = (min(BLOCK_PX, extent) for extent in photo_HWC.shape[:2])  # of a block
    step = grid_step(rows, columns, sample_px)
    whole_HWC = photo_HWC[: rows * height_px, : columns * width_px]
    grid = whole_HWC.reshape(rows, height_px, columns, width_px, -1)[::step, :, ::step]
    missing = (0, BLOCK_PX - height_px), (0, BLOCK_PX - width_px)
    if any(after for _, after in missing):  # repeated, because a mirrored photo would look smoother than it is
        grid = np.pad(grid, [(0, 0), missing[0], (0, 0), missing[1], (0, 0)], mode="wrap")
    return grid.swapaxes(1, 2).reshape(-1, BLOCK_PX**2, photo_HWC.shape[2])


def grid_step(rows: int, columns: int, sample_px: int) -> int:
    """Of so many rows and columns of blocks every how manieth is sampled."""
    return math.ceil(math.sqrt(rows * columns * BLOCK_PX**2 / sample_px))


def few_of(blocks_NPC: NDArray[Any]) -> NDArray[Any]:
    """As many of the blocks as impulses are counted in: (N, Y, X, C)."""
    step = math.ceil(len(blocks_NPC) * BLOCK_PX**2 / IMPULSE_SAMPLE_PX)
    return blocks_NPC[::step].reshape(-1, BLOCK_PX, BLOCK_PX, blocks_NPC.shape[2])


def only_channel(blocks_NPC: NDArray[Any]) -> int | None:
    """Which channel shows all that there is, where the others have one value throughout; None where none or more do."""
    first_C = blocks_NPC[0, 0]
    if np.count_nonzero((blocks_NPC[:, 0] != first_C).any(axis=0)) > 1:  # of nearly every photo this tells already
        return None
    varying = (blocks_NPC != first_C).any(axis=(0, 1))
    return int(varying.argmax()) if varying.sum() == 1 else None


def shown(blocks_NPC: NDArray[Any]) -> NDArray[Any]:
    """The blocks of the one channel that shows anything, if there is one; else as they are."""
    only = only_channel(blocks_NPC)
    return blocks_NPC if only is None else np.ascontiguousarray(blocks_NPC[..., [only]])


def is_neutral(blocks_NPC: NDArray[Any]) -> bool:
    """Whether the three channels are equal; some of the pixels tell nearly all photos that have colour."""
    most = MOST_NEUTRAL / 255 * PEAKS[blocks_NPC.dtype]
    looks = (look.astype(np.float32) for look in (blocks_NPC[:, :1], blocks_NPC))
    return all(bool(np.abs(look[..., 1:] - look[..., :1]).max() < most) for look in looks)


def clipped_share(blocks_NPC: NDArray[Any]) -> NDArray[np.float64]:
    """The share of each block's samples that are black or white: (N,). No float is."""
    if blocks_NPC.dtype == np.float32:
        return np.zeros(len(blocks_NPC))
    is_clipped = blocks_NPC + blocks_NPC.dtype.type(1) <= 1  # white wraps around to 0
    # Counted as bits, which takes a fifth of the time of a mean over truth values.
    bits = np.packbits(is_clipped.reshape(len(blocks_NPC), -1), axis=1)
    clipped_N: NDArray[np.float64] = np.bitwise_count(bits).sum(axis=1) / is_clipped[0].size
    return clipped_N


def find_usable(blocks_NPC: NDArray[Any], clipped_N: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which blocks are hardly clipped, and no part of a frame: a fifth of them, where none are.

    A frame of more than four fifths is left out before that, if enough is within it.
    """
    framed_N = _framed(blocks_NPC)
    within = np.flatnonzero(framed_N == 0)
    if not FEWEST_WITHIN_FRAME <= len(within) < 0.2 * len(blocks_NPC):
        within = np.arange(len(blocks_NPC))
    unusable_N = np.maximum(clipped_N, framed_N)[within]
    return within[unusable_N <= max(CLIPPED_SHARE, quantile(unusable_N, 0.2))]


def find_flattest(blocks_NPC: NDArray[Any], usable: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which are the flattest among the blocks that are usable, and which follow them."""
    texture_N = by_parts(_texture, blocks_NPC)
    order = usable[np.argsort(texture_N[usable], kind="stable")]
    count = max(FEWEST_BLOCKS, round(FLATTEST_SHARE * len(order)))
    following = order[count : max(2 * count, round(NEXT_SHARE * len(order)))]
    return order[:count], following if len(following) >= FEWEST_BLOCKS else order[:count]


def by_parts(measure: Callable[[NDArray[Any]], NDArray[Any]], blocks_NPC: NDArray[Any]) -> NDArray[Any]:
    """What is measured of each block: (N,)."""
    starts = range(0, len(blocks_NPC), BLOCKS_AT_ONCE)
    return np.concatenate([measure(blocks_NPC[start : start + BLOCKS_AT_ONCE]) for start in starts])


def axes_of(blocks_NPC: NDArray[Any]) -> Floats:
    """Luminance and, of colour photos, two axes of chrominance, in 8-bit levels: (N, A, P)."""
    scale = np.float32(255 / PEAKS[blocks_NPC.dtype])
    basis = LUMA_CHROMA if blocks_NPC.shape[2] == 3 else np.ones((1, 1), np.float32)
    # Contiguous: NumPy multiplies a view with its axes swapped by a plain loop, in three times the time.
    axes_NAP: Floats = np.ascontiguousarray((blocks_NPC.astype(np.float32) @ (basis.T * scale)).swapaxes(1, 2))
    return axes_NAP


def quantile(values_N: NDArray[Any], share: float) -> float:
    """NumPy's own take ten times as long for so few values."""
    rank = share * (len(values_N) - 1)
    first, last = math.floor(rank), math.ceil(rank)
    values_N = np.partition(values_N, (first, last))
    return float(values_N[first] + (rank - first) * (values_N[last] - values_N[first]))


def _texture(blocks_NPC: NDArray[Any]) -> Floats:
    """How much each block shows, other than noise: (N,)."""
    luma_NP = blocks_NPC.astype(np.float32) @ np.ones(blocks_NPC.shape[2], np.float32)
    finest, cells, coarser = _texture_bases()
    strips_MP = luma_NP.reshape(-1, math.prod(STRIP))
    finest_NK = (strips_MP @ finest).reshape(len(blocks_NPC), -1)
    coarser_NK = (strips_MP @ cells).reshape(len(blocks_NPC), -1) @ coarser
    texture_N: Floats = sum(np.einsum("nk,nk->n", found, found) for found in (finest_NK, coarser_NK))
    return texture_N


def _framed(blocks_NPC: NDArray[Any]) -> NDArray[np.float64]:
    """1 for the blocks that hold much of a colour that fills others, as a frame, a mat or a cut-out's ground do: (N,).

    Nothing has noise there, whatever the photo has.
    """
    first_NC = blocks_NPC[:, 0]
    filled = np.flatnonzero((first_NC == blocks_NPC[:, -1]).all(axis=1))
    filled = filled[(blocks_NPC[filled] == first_NC[filled, None]).all(axis=(1, 2))]
    colours, counts = np.unique(first_NC[filled], axis=0, return_counts=True)
    held_N = np.zeros(len(blocks_NPC))
    for colour in colours[counts >= LEAST_FRAME * len(blocks_NPC)]:
        held_N += (blocks_NPC == colour).all(axis=2).mean(axis=1)
    return (held_N > MOST_FRAMED_SHARE).astype(np.float64)


@functools.cache
def _texture_bases() -> tuple[Floats, Floats, Floats]:
    """Vectors whose squared products with a block add up to its texture. The measured bands are not in it.

    In two steps, which take half the time of one: those of the finest level for strips of the block, and what makes
    cells of 2 × 2 of a strip; and those of the coarser levels for all cells.
    """
    finest = [band(1, kind, STRIP) * np.float32(2 / BLOCK_PX) for kind in ("rows", "columns")]
    cells = (BLOCK_PX // 2, BLOCK_PX // 2)
    bands = [band(level, kind, cells) for level in (1, 2) for kind in ("rows", "columns")]
    bands.append(band(2, "diagonal", cells))
    coarser = [band / np.float32(math.sqrt(band.shape[1])) for band in bands]
    return np.concatenate(finest, axis=1), band(1, "smooth", STRIP), np.concatenate(coarser, axis=1)
