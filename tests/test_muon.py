"""Muon makes every direction of an update equally strong, and its size that of AdamW's."""

import pytest
import torch
from torch import nn

from model.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 48, 432), (2, 64, 16), (1, 20, 20)])
def test_singular_values_become_about_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_directions_are_kept():
    left, _, right = torch.linalg.svd(
        torch.randn(24, 40, generator=torch.Generator().manual_seed(1)), full_matrices=False
    )
    skewed = left @ torch.diag(torch.linspace(1, 5, 24)) @ right
    assert (orthogonalise(skewed[None])[0] * (left @ right)).sum() / 24 == pytest.approx(1, abs=0.2)


def test_an_update_has_a_fifth_of_the_learning_rate_and_goes_downhill():
    kernel = nn.Parameter(torch.zeros(32, 16, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(2))
    Muon([kernel], lr=0.1).step()
    assert float(kernel.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=0.3)
    assert (kernel.detach() * kernel.grad).sum() < 0


def test_weights_without_a_gradient_stay_and_others_decay():
    still, moved = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    moved.grad = torch.zeros(4, 4)
    Muon([still, moved], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(4, 4))
    assert torch.allclose(moved, torch.full((4, 4), 0.95))
