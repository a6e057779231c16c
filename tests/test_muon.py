"""Muon makes every direction of an update equally strong, and its size that of AdamW's."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from model import muon
from model.muon import Muon, orthogonalise

SHAPES = [(8, 4, 3, 3), (4, 8, 1, 1), (8, 4, 3, 3), (6, 6, 2, 2), (8, 4, 3, 3)]
STEPS = 2


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


@pytest.mark.parametrize("processes", [2, len(SHAPES) + 1])
def test_processes_that_train_together_share_out_the_work_and_have_the_same_weights(processes, tmp_path):
    # A server that has imported torch once, of which they are forks: so many imports take longer than all else.
    multiprocessing.set_forkserver_preload(["model.muon", "torch._dynamo"])
    mp.start_processes(update_beside_others, (processes, tmp_path), nprocs=processes, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    shares = [len(range(rank, len(SHAPES), processes)) for rank in range(processes)]
    assert [len(each["computed"]) for each in found] == [STEPS * share for share in shares]
    expected = updated()
    for each in found:
        for kernel, alone, by_all in zip(each["kernels"], expected, found[0]["kernels"], strict=True):
            assert torch.equal(kernel, by_all)
            assert torch.allclose(kernel, alone, atol=2e-4)
            assert kernel.is_contiguous(memory_format=torch.channels_last)


def update_beside_others(rank: int, processes: int, folder: Path) -> None:
    computed: list[Tensor] = []

    def orthogonalise_and_tell(matrices_BRC: Tensor) -> Tensor:
        computed.extend(matrices_BRC)
        return orthogonalise(matrices_BRC)

    muon.orthogonalise = orthogonalise_and_tell
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    kernels = updated()
    torch.save({"kernels": kernels, "computed": computed}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def updated() -> list[Tensor]:
    """Kernels after some steps, channels last as those of a network, whose gradients are the same in every process."""
    draw = torch.Generator().manual_seed(3)
    kernels = [
        nn.Parameter(torch.randn(shape, generator=draw).to(memory_format=torch.channels_last)) for shape in SHAPES
    ]
    optimizer = Muon(kernels, lr=0.1)
    for _ in range(STEPS):
        for kernel in kernels:
            kernel.grad = torch.randn(kernel.shape, generator=draw)
        optimizer.step()
    return [kernel.detach() for kernel in kernels]
