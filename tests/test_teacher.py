"""A teacher's answers lie as its pupil's do, and what is learnt of them is their mean over all views."""

import pytest
import torch
from torch import Tensor, nn

from model.teacher import VIEWS, teach


class Noting(nn.Module):
    """Answers with what it is asked about, times a plane that is no view of itself; remembers what that was."""

    def __init__(self, plane_HW: Tensor) -> None:
        super().__init__()
        self.plane_HW = plane_HW
        self.seen: list[Tensor] = []

    def forward(self, noisy_BCHW: Tensor, level_B2: Tensor) -> Tensor:
        self.seen += list(noisy_BCHW)
        return noisy_BCHW * self.plane_HW


@pytest.fixture
def patches() -> Tensor:
    return torch.rand(VIEWS, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_answers_lie_as_their_patches_do(patches: Tensor) -> None:
    answers_BCHW = teach(Noting(torch.ones(8, 8)), patches, torch.zeros(VIEWS, 2), torch.arange(VIEWS))

    assert torch.equal(answers_BCHW, patches)


def test_no_two_views_are_the_same_and_the_first_is_the_patch_itself(patches: Tensor) -> None:
    teacher = Noting(torch.ones(8, 8))

    teach(teacher, patches[:1].expand(VIEWS, -1, -1, -1), torch.zeros(VIEWS, 2), torch.arange(VIEWS))

    assert torch.equal(teacher.seen[0], patches[0])
    assert len({tuple(seen.flatten().tolist()) for seen in teacher.seen}) == VIEWS


def test_errors_that_depend_on_the_place_average_out(patches: Tensor) -> None:
    """Those of a teacher that errs at one of the four pixels of each cell are spread evenly over them."""
    plane_HW = torch.ones(8, 8)
    plane_HW[::2, 1::2] = 3

    same = patches[:1].expand(VIEWS, -1, -1, -1)
    answers_BCHW = teach(Noting(plane_HW), same, torch.zeros(VIEWS, 2), torch.arange(VIEWS))

    torch.testing.assert_close(answers_BCHW.mean(dim=0), patches[0] * 1.5)


def test_a_teacher_sees_no_edge_that_a_patch_has_not(patches: Tensor) -> None:
    """What lies side by side for the teacher lies so in the patch: it is never rolled or padded."""
    teacher = Noting(torch.ones(8, 8))
    steps = torch.arange(64.0).reshape(8, 8) // 8 + torch.arange(8.0)  # one from each pixel to its neighbours
    ramp = steps.expand(VIEWS, 3, -1, -1)

    teach(teacher, ramp, torch.zeros(VIEWS, 2), torch.arange(VIEWS))

    assert len(teacher.seen) == VIEWS
    assert all((seen.diff(dim=axis).abs() == 1).all() for seen in teacher.seen for axis in (1, 2))
