"""What a network can learn from another one: its answers to noisy patches, in place of the clean ones.

A clean patch has detail that no denoiser can know of, so most of an error's gradient is chance. The answer of a trained
network lacks it, and is learnt in a fraction of the steps (distillation, Hinton et al. 2015). Where each patch is shown
to the teacher in a view of its own, turned and shifted, its errors average out: what is learnt is the mean of its
answers over all views, which is closer to the clean photo than each of them.
"""

import torch
from torch import Tensor, nn

VIEWS = 32  # the eight orientations of a patch, and its four places in cells of 2 × 2 pixels
_ROWS, _COLUMNS = 1, 2


@torch.no_grad()
def teach(teacher: nn.Module, noisy_BCHW: Tensor, level_B2: Tensor, view_B: Tensor) -> Tensor:
    """The teacher's answers to square patches, as they lie before us.

    Args:
        teacher: takes noisy patches and their level, as the network that learns does.
        noisy_BCHW, level_B2: what that network is given.
        view_B: the view of each patch that the teacher sees, from 0 to `VIEWS` - 1.
    """
    views = [int(view) for view in view_B]
    seen = [_see(noisy_CHW, view) for noisy_CHW, view in zip(noisy_BCHW, views, strict=True)]
    answers_BCHW = teacher(torch.stack(seen).contiguous(memory_format=torch.channels_last), level_B2)
    return torch.stack([_see_back(answer_CHW, view) for answer_CHW, view in zip(answers_BCHW, views, strict=True)])


def _see(patch_CHW: Tensor, view: int) -> Tensor:
    """Shifted, the last row and column coming first, then mirrored, then turned."""
    shifts, axes, is_turned = _parts_of(view)
    mirrored_CHW = patch_CHW.roll(shifts, (_ROWS, _COLUMNS)).flip(axes)
    return mirrored_CHW.mT if is_turned else mirrored_CHW


def _see_back(patch_CHW: Tensor, view: int) -> Tensor:
    (down, right), axes, is_turned = _parts_of(view)
    return (patch_CHW.mT if is_turned else patch_CHW).flip(axes).roll((-down, -right), (_ROWS, _COLUMNS))


def _parts_of(view: int) -> tuple[tuple[int, int], list[int], bool]:
    """Steps down and to the right, axes along which it is mirrored, and whether rows are seen as columns."""
    down, right, rows, columns, is_turned = ((view >> bit) & 1 for bit in range(5))
    return (down, right), [axis for axis, is_asked in ((_ROWS, rows), (_COLUMNS, columns)) if is_asked], bool(is_turned)
