"""Where a network invents what was not there, the photo stays as it is.

A network may answer what no photo has shown it, such as panels of a saturated colour, with stripes of its own. Two
things tell them from noise that is removed: more is taken away than noise of the level that the network was told, of
which the mean magnitude is 0.8 sigma; and what is left is rougher than what was there, as no noise is in the photo that
has more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.metrics import PEAK

CELL_PX = 8
MOST_SIGMAS = 5.0  # taken from a cell, in the mean
SPARE = 2.0  # 8-bit levels: of photos that are told to have no noise, the blocks of a JPEG are taken
MOST_ROUGHER = 2.0  # as much as noise of so many sigmas would make it
REACH_CELLS = 2  # around a cell that is wrong, others are by less


def hold_back(noisy_CHW: Tensor, clean_CHW: Tensor, sigma: float) -> Tensor:
    """What is clean, but noisy in and around the cells where it was invented.

    Args:
        noisy_CHW, clean_CHW: sRGB in [0, 1].
        sigma: of the noise that the network was told of, in 8-bit levels.
    """
    noise = (sigma + SPARE) / PEAK
    taken_1YX = _mean_of_cells((noisy_CHW - clean_CHW).abs_()).mean(dim=0, keepdim=True)
    is_wrong_1YX = taken_1YX > MOST_SIGMAS * noise
    if is_wrong_1YX.any():  # of nearly all tiles it is not
        is_wrong_1YX &= _roughness(clean_CHW) > _roughness(noisy_CHW) + (MOST_ROUGHER * noise) ** 2
    if not is_wrong_1YX.any():
        return clean_CHW
    near_1YX = F.max_pool2d(is_wrong_1YX.float(), 2 * REACH_CELLS + 1, stride=1, padding=REACH_CELLS)
    near_1HW = near_1YX.repeat_interleave(CELL_PX, dim=1).repeat_interleave(CELL_PX, dim=2)
    height_px, width_px = noisy_CHW.shape[1:]
    return torch.where(near_1HW[:, :height_px, :width_px] > 0, noisy_CHW, clean_CHW)


def _roughness(photo_CHW: Tensor) -> Tensor:
    """The variance within each cell, of all channels together."""
    variance_CYX = _mean_of_cells(photo_CHW**2) - _mean_of_cells(photo_CHW) ** 2
    return variance_CYX.sum(dim=0, keepdim=True)


def _mean_of_cells(photo_CHW: Tensor) -> Tensor:
    return F.avg_pool2d(photo_CHW, CELL_PX, ceil_mode=True)
