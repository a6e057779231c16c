"""Muon for convolutions: momentum whose directions are made equally strong (Jordan et al. 2024).

In place of the gradient's own scale, every update of a kernel matrix is close to orthogonal, so that rare directions
are learnt as fast as common ones. On the photo network it is worth 1.1 dB over AdamW after a thousand small steps.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Jordan et al. 2024: the quintic that pulls singular values towards 1 fastest, to within some 0.3; and so many times.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MATCHED_RMS = 0.2  # the size of AdamW's updates, which makes their learning rates comparable (Liu et al. 2025, eq. 4)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Args:
        parameters: of two or more axes, the first of which is the output's; the others are one axis of the matrix.
        lr: the root mean square of an update is 0.2 of it.
        momentum: share of the past in the momentum.
        weight_decay: as AdamW's.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no loss to return
        """Update every parameter that has a gradient. Takes no closure."""
        assert closure is None, "Muon takes one gradient a step"
        for group in self.param_groups:
            for parameters in _alike(group["params"]):
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:  # Any: torch's group of settings
        rows = parameters[0].shape[0]
        columns = parameters[0].numel() // rows
        directions = torch.stack([self._direction(parameter, group["momentum"]) for parameter in parameters])
        updates = orthogonalise(directions.reshape(-1, rows, columns)).reshape(directions.shape)
        step_size = group["lr"] * MATCHED_RMS * math.sqrt(max(rows, columns))
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=step_size)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)


def orthogonalise(matrices_BRC: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all about 1 (0.7 to 1.2), by Newton and Schulz's iteration.

    Takes and returns (B, R, C) floats; computed in bfloat16, which is precise enough for a direction.
    """
    is_tall = matrices_BRC.shape[1] > matrices_BRC.shape[2]
    wide = (matrices_BRC.mT if is_tall else matrices_BRC).bfloat16()
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    linear, cubic, quintic = QUINTIC
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.baddbmm(wide, polynomial, wide, beta=linear)
    orthogonal_BRC: Tensor = wide.mT if is_tall else wide
    return orthogonal_BRC.to(matrices_BRC.dtype)


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """The parameters that have a gradient, by shape: equal ones go through the iteration together."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape.setdefault(parameter.shape, []).append(parameter)
    return list(by_shape.values())
