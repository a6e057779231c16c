"""What photos seldom hold and people paste into them: bars, signs, frames, in flat colours up to the ends of the scale.

A network that has not seen them may answer an edge between two such colours with stripes of its own.
"""

import math

import numpy as np
from numpy.typing import NDArray

from model.metrics import PEAK

SHAPES_MAX = 4
PLAIN_SHARE = 0.4  # of the patches: the ground is of one colour, too
BLACK_OR_WHITE_SHARE = 0.4  # of those grounds: as of pages and frames
AT_AN_END_SHARE = 0.7  # of the channels of a colour: 0 or 255
UPRIGHT_SHARE = 0.6  # of the shapes: along the rows and columns of the photo
DISC_SHARE = 0.2  # of the shapes; the others are rectangles
HARD_SHARE = 0.5  # of the edges: from one pixel to the next
SOFT_PX = 4.0  # in which the softest of the others rises
SHADED_SHARE = 0.2  # of the shapes: darker towards one side
SMALLEST_PX, LARGEST = 3.0, 2.0  # the sides of a shape; LARGEST in sides of the patch


def draw_shapes(
    patch_HWC: NDArray[np.uint8], draw: np.random.Generator, *, black_or_white_share: float = BLACK_OR_WHITE_SHARE
) -> NDArray[np.uint8]:
    """A patch, (H, W, 3), with one to four shapes on it; on a ground of one colour at times."""
    height_px, width_px = patch_HWC.shape[:2]
    drawn_HWC = patch_HWC.astype(np.float32)
    if draw.random() < PLAIN_SHARE:
        is_page = black_or_white_share > 0 and draw.random() < black_or_white_share
        drawn_HWC[:] = draw.integers(0, 2) * PEAK if is_page else _colour(draw)
    for _ in range(draw.integers(1, SHAPES_MAX + 1)):
        cover_HW1, shade_HW1 = _shape(height_px, width_px, draw)
        drawn_HWC += cover_HW1 * (shade_HW1 * _colour(draw) - drawn_HWC)
    return drawn_HWC.round().astype(np.uint8)


def _colour(draw: np.random.Generator) -> NDArray[np.float32]:
    ends, between = draw.integers(0, 2, 3) * PEAK, draw.uniform(0, PEAK, 3)
    return np.where(draw.random(3) < AT_AN_END_SHARE, ends, between).astype(np.float32)


def _shape(height_px: int, width_px: int, draw: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How much of each pixel it covers, and how bright it is there; both from 0 to 1, (H, W, 1)."""
    side_px = max(height_px, width_px)
    centre_y, centre_x = draw.uniform(-0.1, 1.1, 2) * (height_px, width_px)
    half_y, half_x = np.exp(draw.uniform(math.log(SMALLEST_PX), math.log(LARGEST * side_px), 2)) / 2
    angle = 0.0 if draw.random() < UPRIGHT_SHARE else draw.uniform(0, math.pi)
    y, x = np.ogrid[0:height_px, 0:width_px]
    along = (y - centre_y) * math.cos(angle) + (x - centre_x) * math.sin(angle)
    across = (x - centre_x) * math.cos(angle) - (y - centre_y) * math.sin(angle)
    if draw.random() < DISC_SHARE:
        outside_px = np.hypot(along, across) - half_y
    else:
        outside_px = np.maximum(np.abs(along) - half_y, np.abs(across) - half_x)
    if draw.random() < HARD_SHARE:
        cover = (outside_px < 0).astype(np.float32)
    else:
        cover = np.clip(0.5 - outside_px / draw.uniform(1, SOFT_PX), 0, 1)
    darkest = draw.uniform(0.3, 1) if draw.random() < SHADED_SHARE else 1.0
    shade = 1 - (1 - darkest) * np.clip(0.5 + along / (2 * half_y), 0, 1)
    return cover[..., None].astype(np.float32), shade[..., None].astype(np.float32)
