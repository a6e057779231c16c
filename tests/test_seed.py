"""The seed network keeps the shape that its weights were made for."""

import pytest
import torch
from receptive_field import changes_a_cell

from model.seed import SeedNetwork, seed_dropout


def test_it_has_13361747_parameters():
    assert sum(parameter.numel() for parameter in SeedNetwork().parameters()) == 13_361_747


def test_its_bottleneck_is_16_by_16_by_512_for_the_size_it_was_designed_for():
    network = SeedNetwork().eval()
    shapes = []
    network.bottleneck.register_forward_hook(lambda _module, _inputs, features: shapes.append(features.shape))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 512, 512))
    assert shapes == [(1, 512, 16, 16)]


def test_its_output_has_the_shape_of_its_input_and_lies_between_0_and_1():
    torch.manual_seed(0)
    with torch.inference_mode():
        clean_BCHW = SeedNetwork().eval()(100 * torch.randn(2, 3, 64, 96))
    assert clean_BCHW.shape == (2, 3, 64, 96)
    assert clean_BCHW.min() >= 0
    assert clean_BCHW.max() <= 1


def test_its_dropout_depends_on_the_example_whatever_is_beside_it():
    network = SeedNetwork().train()
    photos_BCHW, seed_B = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 6, 7])

    def run(numbers):
        seed_dropout(network, seed_B[numbers])
        with torch.inference_mode():
            return network(photos_BCHW[numbers])

    assert torch.allclose(run([0, 1, 2])[2], run([2])[0], atol=1e-5)
    same = run([1])
    seed_B[1] = 8
    assert not torch.allclose(same, run([1]), atol=1e-3)
    assert torch.allclose(network.eval()(photos_BCHW[:1]), network(photos_BCHW[:1]))


@pytest.mark.parametrize("side", [-1, 1])
def test_what_lies_beyond_its_halo_does_not_change_a_cell(side):
    assert not changes_a_cell(SeedNetwork(), distance_px=SeedNetwork.halo_px + 1, side=side)


@pytest.mark.parametrize("side", [-1, 1])
def test_what_lies_just_within_its_halo_changes_a_cell(side):
    assert changes_a_cell(SeedNetwork(), distance_px=SeedNetwork.halo_px - 2, side=side)
