"""How far a network sees: whether light at a distance changes what it makes of a cell."""

import torch
from torch import nn


def changes_a_cell(network: nn.Module, *, distance_px: int, side: int) -> bool:
    """Whether a column of pixels at that distance changes any of a cell; the weights let everything pass."""
    network = network.eval().double()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.01 if parameter.ndim > 1 else 0.0)
    cell_px, first = network.multiple_px, 12 * network.multiple_px
    black_BCHW = torch.zeros(1, 3, cell_px, 25 * cell_px, dtype=torch.float64)
    lit_BCHW = black_BCHW.clone()
    lit_BCHW[..., first - distance_px if side < 0 else first + cell_px - 1 + distance_px] = 1
    with torch.inference_mode():
        level_B2 = torch.ones(1, 2, dtype=torch.float64)
        change_BCHW = network(lit_BCHW, level_B2) - network(black_BCHW, level_B2)
    return bool((change_BCHW[..., first : first + cell_px] != 0).any())
