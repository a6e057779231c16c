"""Convolutions together with what follows them, in one pass over memory: a CPU takes a twentieth less time.

They are oneDNN's own, as `torch.compile` calls them on a CPU; torch has no public name for them.
"""

import torch
from torch import Tensor, nn


def can_fuse(features_BCHW: Tensor) -> bool:
    """Whether the two below can be used: not where a gradient is wanted, nor by torch for other hardware."""
    if features_BCHW.device.type != "cpu" or torch.is_grad_enabled():
        return False
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise_"):
        return False
    if features_BCHW.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return features_BCHW.dtype == torch.float32


def conv_relu(features_BCHW: Tensor, conv: nn.Conv2d, *, leak: float) -> Tensor:
    """A ReLU of a convolution that has no bias, computed in the type of the features.

    Args:
        leak: slope of the ReLU below zero.
    """
    weight_OIHW = conv.weight.to(features_BCHW.dtype)
    name, slopes = ("leaky_relu", [leak]) if leak else ("relu", [])
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        features_BCHW, weight_OIHW, None, *_geometry(conv), name, slopes, ""
    )
    return result


def add_conv_(sum_BCHW: Tensor, features_BCHW: Tensor, conv: nn.Conv2d) -> Tensor:
    """Add a convolution that has no bias to what is there, in its place. Returns it."""
    weight_OIHW = conv.weight.to(features_BCHW.dtype)
    result: Tensor = torch.ops.mkldnn._convolution_pointwise_(
        sum_BCHW, features_BCHW, weight_OIHW, None, *_geometry(conv), "add", 1.0, None, [], None
    )
    return result


def _geometry(conv: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    assert isinstance(conv.padding, tuple)
    return conv.padding, conv.stride, conv.dilation, conv.groups
