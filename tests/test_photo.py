"""The networks for photos are small, free of biases, and see no further than they say."""

import pytest
import torch
import torch.nn.functional as F
from receptive_field import changes_a_cell
from torch import nn

from model.fused import add_conv_, can_fuse, conv_relu
from model.photo import ConvShuffle, FineNetwork, PhotoNetwork

LEVEL_B2 = torch.tensor([[0.1, 0.05]])
KINDS = pytest.mark.parametrize("kind", [PhotoNetwork, FineNetwork])


def _network(kind=PhotoNetwork):
    """One that heeds the level that it is told: a new one does not."""
    torch.manual_seed(0)
    network = kind().eval()
    for level in network.level:
        nn.init.normal_(level.weight)
    return network


@pytest.mark.parametrize(("kind", "parameters"), [(PhotoNetwork, 1_937_184), (FineNetwork, 1_308_736)])
def test_it_has_one_or_two_million_parameters_and_no_bias(kind, parameters):
    named = dict(kind().named_parameters())
    assert sum(parameter.numel() for parameter in named.values()) == parameters
    assert not [name for name in named if name.endswith("bias")]


@KINDS
def test_it_takes_at_most_75_thousand_multiplications_a_pixel(kind):
    network = kind().eval()
    multiplications = []

    def count(conv: nn.Conv2d, _inputs: object, output_BCHW: torch.Tensor) -> None:
        multiplications.append(output_BCHW[0, 0].numel() * conv.weight.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.enable_grad():  # else some are asked for their kernels alone
        network(torch.zeros(1, 3, 64, 64), LEVEL_B2)
    assert 60_000 < sum(multiplications) / 64**2 <= 75_000


@KINDS
@pytest.mark.parametrize("factor", [0.1, 4.0])
def test_its_output_scales_with_its_input(factor, kind):
    network, noisy_BCHW = _network(kind), torch.rand(1, 3, 32, 40)
    with torch.inference_mode():
        scaled_BCHW = network(factor * noisy_BCHW, factor * LEVEL_B2)
        torch.testing.assert_close(scaled_BCHW, factor * network(noisy_BCHW, LEVEL_B2), rtol=1e-4, atol=1e-5)


def test_it_heeds_luminance_and_chrominance_of_the_level_that_it_is_told():
    network, noisy_BCHW = _network(), torch.rand(1, 3, 32, 32)
    levels_32 = torch.tensor([[0.1, 0.1], [0.2, 0.1], [0.1, 0.2]])
    with torch.inference_mode():
        first, luma, chroma = network(noisy_BCHW.expand(3, -1, -1, -1), levels_32)
    assert not torch.allclose(first, luma, atol=1e-3)
    assert not torch.allclose(first, chroma, atol=1e-3)


def test_a_new_network_is_blind():
    network, noisy_BCHW = PhotoNetwork().eval(), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(noisy_BCHW, LEVEL_B2), network(noisy_BCHW, 2 * LEVEL_B2))


def test_only_the_fine_one_hears_what_is_below_the_threshold_of_its_relus():
    slopes = [kind().bottleneck[0].relu(torch.tensor([-1.0])).item() for kind in (PhotoNetwork, FineNetwork)]
    assert slopes == [0, pytest.approx(-0.01)]


@pytest.mark.parametrize("is_lower", [False, True])
@pytest.mark.parametrize("side_px", [1, 3])
def test_channels_that_become_pixels_are_the_same_in_whichever_order_they_are_computed(side_px, is_lower):
    conv = nn.Conv2d(16, 4 * 5, side_px, padding=side_px // 2, bias=False)
    features_BCHW = torch.rand(2, 16, 12, 20).contiguous(memory_format=torch.channels_last)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_lower), torch.inference_mode():
        photo_BCHW = ConvShuffle(conv)(features_BCHW)
        expected_BCHW = F.pixel_shuffle(conv(features_BCHW), 2)

    assert torch.equal(photo_BCHW, expected_BCHW)
    assert photo_BCHW.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("leak", [0, 0.3])
def test_a_convolution_fused_with_what_follows_it_is_the_same_as_each_alone(dtype, tolerance, leak, layout):
    torch.manual_seed(0)
    features_BCHW, sum_BCHW = (torch.randn(2, 16, 12, 20).to(dtype, memory_format=layout) for _ in range(2))
    first, second = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.Conv2d(16, 16, 1, bias=False)
    with torch.inference_mode():
        lower = [conv.weight.to(dtype) for conv in (first, second)]
        inner_BCHW = F.leaky_relu(F.conv2d(features_BCHW, lower[0], padding=1), leak)
        expected_BCHW = sum_BCHW + F.conv2d(inner_BCHW, lower[1])

        if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
            assert can_fuse(features_BCHW)
        else:
            pytest.skip("this processor has no instructions for bfloat16")
        found_BCHW = add_conv_(sum_BCHW, conv_relu(features_BCHW, first, leak=leak), second)

    torch.testing.assert_close(found_BCHW, expected_BCHW, rtol=tolerance, atol=tolerance)
    assert found_BCHW.data_ptr() == sum_BCHW.data_ptr()


def test_nothing_is_fused_where_a_gradient_is_wanted_or_this_torch_cannot(monkeypatch):
    features_BCHW = torch.zeros(1, 16, 8, 8)
    assert not can_fuse(features_BCHW)
    with torch.inference_mode():
        assert not can_fuse(features_BCHW.to(torch.float16))
        assert can_fuse(features_BCHW)
        monkeypatch.setattr(torch.ops, "mkldnn", object())
        assert not can_fuse(features_BCHW)


@KINDS
def test_a_photo_is_the_same_with_and_without_what_is_fused(kind, monkeypatch):
    network, noisy_BCHW = _network(kind), torch.rand(2, 3, 32, 40)
    with torch.inference_mode():
        fused_BCHW = network(noisy_BCHW, LEVEL_B2)
        monkeypatch.setattr("model.photo.can_fuse", lambda _features: False)
        torch.testing.assert_close(fused_BCHW, network(noisy_BCHW, LEVEL_B2), rtol=1e-4, atol=1e-5)


@KINDS
def test_it_leaves_its_input_as_it_was(kind):
    torch.manual_seed(0)
    noisy_BCHW = torch.rand(1, 3, 32, 32)
    before_BCHW = noisy_BCHW.clone()
    with torch.inference_mode():
        _network(kind)(noisy_BCHW, LEVEL_B2)
    assert torch.equal(noisy_BCHW, before_BCHW)


def test_it_subtracts_in_float32_what_it_computes_in_bfloat16():
    network = PhotoNetwork().eval()
    nn.init.zeros_(network.head[0].weight)
    noisy_BCHW = torch.rand(1, 3, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(noisy_BCHW, LEVEL_B2), noisy_BCHW)


@KINDS
@pytest.mark.parametrize("side", [-1, 1])
def test_what_lies_beyond_its_halo_does_not_change_a_cell(side, kind):
    assert not changes_a_cell(kind(), distance_px=kind.halo_px + 1, side=side)


@pytest.mark.parametrize(("kind", "seen_px"), [(PhotoNetwork, 62), (FineNetwork, 60)])
@pytest.mark.parametrize("side", [-1, 1])
def test_what_lies_just_within_its_halo_changes_a_cell(side, kind, seen_px):
    assert changes_a_cell(kind(), distance_px=seen_px, side=side)
