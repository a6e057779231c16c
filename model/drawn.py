"""Is it noise, or letters, lines, dots and the pixels of a drawing? Told by its levels, and by cells of one colour."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.blocks import PEAKS
from model.haar import BLOCK_PX

# Measured on photos with noise of 3–75 levels, JPEG of quality 10 and more, and on pages, screens, charts and halftone.
MOST_CROWDED = 6.0  # times as many samples at one level as noise leaves there; with 75 levels in JPEG 10 up to 5.3
MOST_SOLID = 5.0  # share of cells of one colour, times the noise; up to 3.2 where JPEG of quality 10 was at work
# Levels apart that a photo's are where it was brightened in 8 bits; more is dithering. How many it has, and which part
# of its samples they are: after cwebp -near_lossless 40 not all.
MOST_STEP, FEWEST_STEPS, COMB_SHARE = 8, 4, 0.97
LEAST_BETWEEN = 0.1  # of the samples are neither black nor white; in noisy photos two thirds


def is_drawn(blocks_NPC: NDArray[Any], sigma: float) -> bool:
    """Whether these blocks have levels, or cells, that noise of `sigma` would have spread.

    Whatever the scene, noise leaves no more than 1 / (sigma √(2π)) of the samples at any level between black and white,
    and hardly ever four equal pixels in a square: a page, a screen or a chart is full of both. What was brightened in 8
    bits has every so manieth level only, and its noise is so many times as crowded.
    """
    levels_NPC = blocks_NPC
    if blocks_NPC.dtype != np.uint8:
        levels_NPC = np.rint(blocks_NPC * (255 / PEAKS[blocks_NPC.dtype])).clip(0, 255).astype(np.uint8)
    sigma /= _step_of_levels(levels_NPC)
    channels = levels_NPC.reshape(-1, levels_NPC.shape[2]).T
    between = [np.bincount(levels_P, minlength=256)[1:255] for levels_P in channels]
    count = sum(int(histogram.sum()) for histogram in between)
    if count < LEAST_BETWEEN * levels_NPC.size:
        return True
    crowded = sum(int(histogram.max()) for histogram in between) / count
    cells = blocks_NPC.reshape(-1, BLOCK_PX // 2, 2, BLOCK_PX // 2, 2, blocks_NPC.shape[2])
    solid = float((cells == cells[:, :, :1, :, :1]).all(axis=(2, 4, 5)).mean())
    return crowded * sigma * math.sqrt(2 * math.pi) > MOST_CROWDED or solid * sigma > MOST_SOLID


def _step_of_levels(levels_NPC: NDArray[np.uint8]) -> int:
    """How far apart the levels are that occur, where they are equally so; 1 of nearly all photos."""
    counts = np.bincount(levels_NPC.reshape(-1), minlength=256)
    for step in range(MOST_STEP, 1, -1):
        comb = max((counts[first::step] for first in range(step)), key=np.sum)
        first, last = np.searchsorted(comb.cumsum(), (0.05 * counts.sum(), 0.95 * counts.sum()))
        middle = comb[first : last + 1]
        is_dense = len(middle) >= FEWEST_STEPS and np.count_nonzero(middle) > 0.9 * len(middle)
        if is_dense and comb.sum() > COMB_SHARE * counts.sum():
            return step
    return 1
