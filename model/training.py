"""Training in one process: the recipe, the state that a checkpoint holds, and the loop as a generator of metrics."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from model.estimate import measure_noise
from model.jpeg import BLOCK_PX
from model.noise import PEAK, NoiseConfig, sample_noisy
from model.weights import NETWORKS

# How estimates err: in the level as a whole and in its colour (natural logarithms), and by texture (8-bit levels).
TOLD_SPREAD, TOLD_COLOUR_SPREAD, TOLD_TEXTURE = 0.2, 0.08, 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The recipe. Charbonnier loss, AdamW, linear warm-up and cosine decay, gradient clipping, an EMA of the weights.

    Attributes:
        network: which architecture; a key of `model.weights.NETWORKS`.
        steps: optimiser steps of the whole run; the learning rate reaches zero at the last one.
        batch_size, patch_px: patches of each step, and their side.
        learning_rate: its peak, after `warmup_steps`.
        gradient_clip: largest L2 norm of a step's gradient.
        ema_decay: weight of the past in the moving average that is what we ship.
        bfloat16: run the network in bfloat16 where that is safe (autocast); twice as fast on the CPUs that have it.
        seed: of the initial weights, the patches and the noise. The same seed gives the same batches at every step.
    """

    network: str = "photo"
    steps: int = 24_000
    batch_size: int = 16
    patch_px: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    gradient_clip: float = 0.5
    weight_decay: float = 1e-4
    ema_decay: float = 0.999
    bfloat16: bool = True
    seed: int = 0
    noise: NoiseConfig = field(default_factory=NoiseConfig)

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"unknown network {self.network!r}: expected one of {', '.join(NETWORKS)}")
        multiple = math.lcm(NETWORKS[self.network].multiple_px, 2 * BLOCK_PX)
        if self.patch_px <= 0 or self.patch_px % multiple:
            raise ValueError(
                f"patch_px is {self.patch_px}: network {self.network!r} and JPEG's blocks need a multiple of {multiple}"
            )
        if self.steps <= 0 or self.batch_size <= 0:
            raise ValueError(f"steps ({self.steps}) and batch_size ({self.batch_size}) must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one step did: `step` counts from 1; the loss is in sRGB units of [0, 1]."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float


class PatchSampler:
    """Random crops of photos held in memory, every pixel equally likely, flipped and transposed.

    The batch of a step depends on the seed and the step alone, so that a resumed run sees what an undisturbed one does.

    Args:
        photos: clean (H, W, 3) uint8 photos, each at least `patch_px` on both sides.
    """

    def __init__(self, photos: Sequence[NDArray[np.uint8]], config: TrainConfig) -> None:
        too_small = [photo.shape for photo in photos if min(photo.shape[:2]) < config.patch_px]
        if not photos or too_small:
            raise ValueError(f"need photos of at least {config.patch_px} pixels a side, got {too_small or 'none'}")
        self._photos = photos
        self._config = config
        areas = np.array([photo.shape[0] * photo.shape[1] for photo in photos], dtype=np.float64)
        self._share = areas / areas.sum()

    def batch(self, step: int) -> Tensor:
        """The clean patches of a step: (B, 3, P, P) float32 in [0, 1]."""
        draw = np.random.default_rng([self._config.seed, step])
        chosen = draw.choice(len(self._photos), size=self._config.batch_size, p=self._share)
        patches_BHWC = np.stack([self._crop(self._photos[index], draw) for index in chosen])
        return torch.from_numpy(patches_BHWC).permute(0, 3, 1, 2).float() / PEAK

    def _crop(self, photo: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
        side = self._config.patch_px
        top, left = (int(draw.integers(extent - side + 1)) for extent in photo.shape[:2])
        patch = photo[top : top + side, left : left + side]
        if draw.random() < 0.5:
            patch = patch[:, ::-1]
        if draw.random() < 0.5:
            patch = patch[::-1]
        return patch.transpose(1, 0, 2) if draw.random() < 0.5 else patch


class TrainState:
    """Everything that a run is at a step: the network, its moving average, the optimiser, and the step itself."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.network: nn.Module = NETWORKS[config.network]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads lack it
        self.average: nn.Module = NETWORKS[config.network]()
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.step = 0

    def start_from(self, tensors: dict[str, Tensor]) -> None:
        """Begin with weights that were trained before; the optimiser starts anew."""
        self.network.load_state_dict(tensors)
        self.average.load_state_dict(tensors)

    def dump(self, config: TrainConfig) -> bytes:
        """The checkpoint: a safetensors file that `load` continues from bit by bit."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        metadata = {"step": str(self.step), "config": json.dumps(dataclasses.asdict(config), sort_keys=True)}
        return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)

    def load(self, data: bytes, step: int) -> None:
        """Continue from a checkpoint that `dump` made at `step` (see `read_checkpoint_header`)."""
        tensors = safetensors.torch.load(data)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = step


def read_checkpoint_header(data: bytes) -> tuple[int, dict[str, Any]]:  # Any: settings of every type
    """The step at which a checkpoint was made, and the settings of its run by name."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return int(header["step"]), json.loads(header["config"])


def train_steps(
    state: TrainState, config: TrainConfig, batch: Callable[[int], Tensor], *, device: str = "cpu"
) -> Iterator[StepMetrics]:
    """Train `state` in place from its step to the last, yielding after each step; stop whenever you like.

    Args:
        state: where to start; holds the result.
        config: the recipe, the same that `state` was made with.
        batch: clean patches of a step, (B, 3, P, P) float32 in [0, 1], as `PatchSampler.batch` makes them.
        device: as torch names it, such as "cpu" or "cuda:1".
    """
    state.network.to(device).train()
    state.average.to(device)
    state.optimizer.load_state_dict(state.optimizer.state_dict())  # moves the moments to where the weights are now
    while state.step < config.steps:
        clean_BCHW = batch(state.step)
        step_seed = config.seed * 1_000_003 + state.step
        noise_draw = Generator().manual_seed(step_seed)
        noisy_BCHW = sample_noisy(clean_BCHW, config.noise, noise_draw)
        level_B2 = tell_level(noisy_BCHW, clean_BCHW, noise_draw).to(device)
        noisy_BCHW = noisy_BCHW.to(device, memory_format=torch.channels_last)

        learning_rate = config.learning_rate * _schedule(state.step, config)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        torch.manual_seed(step_seed)  # dropout draws from the global generator, which no checkpoint holds
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=config.bfloat16):
            denoised_BCHW = state.network(noisy_BCHW, level_B2)
        loss = charbonnier(denoised_BCHW.float(), clean_BCHW.to(device))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip)
        state.optimizer.step()
        _update_average(state, config)
        state.step += 1
        yield StepMetrics(
            step=state.step, loss=float(loss.detach()), gradient_norm=float(norm), learning_rate=learning_rate
        )


def tell_level(noisy_BCHW: Tensor, clean_BCHW: Tensor, generator: Generator) -> Tensor:
    """What the network is told of the noise, (B, 2) in sRGB units: the truth, with errors as an estimate makes them."""
    noisy_BHWC, clean_BHWC = ((photo * PEAK).permute(0, 2, 3, 1).numpy() for photo in (noisy_BCHW, clean_BCHW))
    measured = [measure_noise(noisy - clean, noisy) for noisy, clean in zip(noisy_BHWC, clean_BHWC, strict=True)]
    level_B2 = torch.tensor([[found.luma_sigma, found.chroma_sigma] for found in measured])
    batch = len(level_B2)
    together_B1 = torch.randn(batch, 1, generator=generator) * TOLD_SPREAD
    apart_B2 = torch.randn(batch, 2, generator=generator) * TOLD_COLOUR_SPREAD
    texture_B2 = torch.randn(batch, 2, generator=generator).abs() * TOLD_TEXTURE
    return (level_B2 * (together_B1 + apart_B2).exp() + texture_B2) / PEAK


def charbonnier(photo: Tensor, reference: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(d² + ε²), a differentiable L1 (Charbonnier et al. 1994)."""
    return ((photo - reference).square() + epsilon**2).sqrt().mean()


def _schedule(step: int, config: TrainConfig) -> float:
    """The learning rate's share of its peak: linear warm-up, then half a cosine (Loshchilov and Hutter 2017, eq. 5)."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * 0.5 * (1 + math.cos(math.pi * step / config.steps))


@torch.no_grad()
def _update_average(state: TrainState, config: TrainConfig) -> None:
    """Early on the average follows fast, or it would remember the initial weights for thousands of steps."""
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    targets: list[Tensor] = list(state.average.parameters())
    torch._foreach_lerp_(targets, [source.detach() for source in state.network.parameters()], 1 - decay)
