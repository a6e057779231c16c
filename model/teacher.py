"""What a network can learn from another one: its answers to noisy patches, in place of the clean ones.

A clean patch has detail that no denoiser can know of, so most of an error's gradient is chance. The answer of a trained
network lacks it, and is learnt in a fraction of the steps (distillation, Hinton et al. 2015). Where each patch is shown
to the teacher in a view of its own, mirrored or turned, its errors average out: what is learnt is the mean of its
answers over all views, which is closer to the clean photo than each of them.
"""

import torch
from torch import Tensor, nn

VIEWS = 8  # the orientations of a patch
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
    seen = [_turn(_mirror(noisy_CHW, view), view) for noisy_CHW, view in zip(noisy_BCHW, views, strict=True)]
    answers_BCHW = teacher(torch.stack(seen).contiguous(memory_format=torch.channels_last), level_B2)
    return torch.stack([_mirror(_turn(each, view), view) for each, view in zip(answers_BCHW, views, strict=True)])


def _mirror(patch_CHW: Tensor, view: int) -> Tensor:
    return patch_CHW.flip([axis for axis, bit in ((_ROWS, 1), (_COLUMNS, 2)) if view & bit])


def _turn(patch_CHW: Tensor, view: int) -> Tensor:
    """Rows become columns, or not; done twice, neither this nor mirroring changes anything."""
    return patch_CHW.mT if view & 4 else patch_CHW
