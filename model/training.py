"""Training in one process: the state that a checkpoint holds, and the loop as a generator of metrics."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.device import move
from model.estimate import measure_noise
from model.muon import Muon
from model.noise import PEAK, sample_noisy
from model.recipe import Loss, OptimizerName, TrainConfig
from model.seed import seed_dropout
from model.shapes import draw_shapes
from model.teacher import VIEWS, teach
from model.weights import NETWORKS, find_not_finite, header_size_bytes

# How estimates err: in the level as a whole and in its colour (natural logarithms), and by texture (8-bit levels).
TOLD_SPREAD, TOLD_COLOUR_SPREAD, TOLD_TEXTURE = 0.2, 0.08, 0.4
MOST_CHANNELS_AT_THE_ENDS = 12  # three colours of 2 × 2 pixels
NO_ORIGIN: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one step of so many did.

    Attributes:
        step: counted from 1.
        loss: in sRGB units of [0, 1].
        is_last: whether no step comes after it, as it is the last one, or as the training was asked to end.
    """

    step: int
    steps: int
    loss: float
    gradient_norm: float
    learning_rate: float
    is_last: bool


@dataclass(frozen=True, slots=True)
class Examples:
    """What a network learns from in a step, or one worker's part of it; on the CPU, sRGB in [0, 1].

    Attributes:
        noisy_BCHW, clean_BCHW: float32 patches of shape (B, 3, P, P).
        level_B2: what the network is told of the noise (see `tell_level`).
        view_B: the view in which a teacher sees each patch, where there is one (see `model.teacher`).
        seed_B: of the dropout of each, where there is any.
    """

    noisy_BCHW: Tensor
    level_B2: Tensor
    clean_BCHW: Tensor
    view_B: Tensor
    seed_B: Tensor

    @classmethod
    def make(cls, patches_BHWC: NDArray[np.uint8], config: TrainConfig, *, step: int, part: int) -> "Examples":
        """The patches of a part with shapes and noise, which depend on the seed, the step and the part alone."""
        shapes = np.random.default_rng([config.seed, step, part])
        patches = [draw_shapes(each, shapes) if shapes.random() < config.drawn_share else each for each in patches_BHWC]
        clean_BCHW = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / PEAK
        # 32 bits that all three are mixed into: of a longer seed, torch's generator on a CPU takes the last 32 alone.
        (mixed,) = np.random.SeedSequence([config.seed, step, part]).generate_state(1)
        draw = Generator().manual_seed(int(mixed))
        noisy_BCHW = sample_noisy(clean_BCHW, config.noise, draw)
        level_B2 = tell_level(noisy_BCHW, clean_BCHW, draw)
        view_B, seed_B = (torch.randint(most, (len(clean_BCHW),), generator=draw) for most in (VIEWS, 2**62))
        return cls(noisy_BCHW, level_B2, clean_BCHW, view_B, seed_B)

    @classmethod
    def together(cls, some: "Sequence[Examples]") -> "Examples":
        return cls(*(torch.cat(tensors) for tensors in zip(*(each.tensors for each in some), strict=True)))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.noisy_BCHW, self.level_B2, self.clean_BCHW, self.view_B, self.seed_B

    def __len__(self) -> int:
        return len(self.clean_BCHW)

    def split(self, size: int) -> "list[Examples]":
        """The same in pieces of at most so many patches."""
        pieces = zip(*(torch.split(tensor, size) for tensor in self.tensors), strict=True)
        return [Examples(*piece) for piece in pieces]


class TrainState:
    """Everything that a run is at a step: the network, its moving average, the optimiser, and the step itself."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.network, self.average = (_new_network(config) for _ in range(2))
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False)
        self.optimizers = _optimizers(self.network, config)
        self.step = 0

    def start_from(self, tensors: dict[str, Tensor]) -> None:
        """Begin with weights that were trained before; the optimiser starts anew."""
        self.network.load_state_dict(tensors)
        self.average.load_state_dict(tensors)

    def dump(self, config: TrainConfig, origin: Mapping[str, object] = NO_ORIGIN) -> bytes:
        """The checkpoint: a safetensors file that `load` continues from bit by bit.

        Args:
            config: the recipe.
            origin: what else the run depends on, by names that are none of the recipe's.
        """
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{name}": tensor for name, tensor in moments.items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        settings = json.dumps(dataclasses.asdict(config) | dict(origin), sort_keys=True)
        metadata = {"step": str(self.step), "config": settings}
        sha256 = _sha256_of(metadata, safetensors.torch.save(tensors))
        return safetensors.torch.save(tensors, metadata | {"sha256": sha256})

    def load(self, data: bytes, step: int) -> None:
        """Continue from a checkpoint that `dump` made at `step` (see `read_checkpoint_header`).

        Raises:
            ValueError: it is damaged, or of another network.
        """
        try:
            self._load(data)
        except (safetensors.SafetensorError, RuntimeError, KeyError) as error:
            raise ValueError(f"its tensors are not those of a checkpoint: {error}") from error
        self.step = step

    def _load(self, data: bytes) -> None:
        tensors = safetensors.torch.load(data)
        if (spoilt := find_not_finite(tensors)) is not None:
            raise ValueError(f"{spoilt} has numbers that are not finite")

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        for number, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in part(f"optimizer.{number}.").items():
                index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = tensor
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def read_checkpoint_header(data: bytes) -> tuple[int, dict[str, Any]]:  # Any: settings of every type
    """The step at which a checkpoint was made, and by name the recipe and the origin of its run.

    Raises:
        ValueError: it is no checkpoint, or was changed since it was made.
    """
    try:
        header = json.loads(data[8 : 8 + header_size_bytes(data)])["__metadata__"]
        step, settings = int(header["step"]), dict(json.loads(header["config"]))
        expected = header.get("sha256")  # earlier versions told of none
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError("it has no header of a checkpoint") from error
    if expected not in (None, found := _sha256_of(header, data)):
        raise ValueError(f"its sha256 is {found[:16]}…, and was {str(expected)[:16]}… when it was made")
    return step, settings


def _sha256_of(metadata: Mapping[str, str], file: bytes) -> str:
    """Of the step, the settings and the tensors of a checkpoint."""
    said = f"{metadata['step']} {metadata['config']} ".encode()
    return hashlib.sha256(said + file[8 + header_size_bytes(file) :]).hexdigest()


def train_steps(
    state: TrainState,
    config: TrainConfig,
    examples: Callable[[int], Examples],
    *,
    device: str = "cpu",
    teacher: nn.Module | None = None,
    is_to_end: Callable[[], bool] = lambda: False,
) -> Iterator[StepMetrics]:
    """Train `state` in place from its step to the last, yielding after each step; stop whenever you like.

    Where torch's process group is initialised, every process of it takes part with its own share of the batch, and all
    end with the same weights, as one process with the whole batch would, but for rounding.

    Args:
        state: where to start; holds the result.
        config: the recipe, the same that `state` was made with.
        examples: this process's share of a step's batch.
        device: as torch names it, such as "cpu" or "cuda:1".
        teacher: what is learnt is its answer, in place of the clean patches.
        is_to_end: asked in each step: where one of the processes says so, that step is the last one of all.

    Raises:
        FloatingPointError: the loss or its gradient is not a finite number; the state stays that of the step before.
        RuntimeError: the processes are at different steps.
    """
    state.network.to(device).train()
    state.average.to(device)
    if teacher is not None:
        move(teacher, device)
    for optimizer in state.optimizers:
        optimizer.load_state_dict(optimizer.state_dict())  # moves the moments to where the weights are now
    processes = dist.get_world_size() if dist.is_initialized() else 1
    network = DistributedDataParallel(state.network, gradient_as_bucket_view=True) if processes > 1 else state.network
    is_ending = False
    while state.step < config.steps and not is_ending:
        learning_rate = config.learning_rate_at(state.step)
        for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate
        state.network.zero_grad(set_to_none=True)
        batch = examples(state.step)
        share = _add_gradients(network, config, batch, device=device, processes=processes, teacher=teacher)
        loss, asked, steps = _sum_of_all(share, float(is_to_end()), float(state.step), processes=processes)
        if steps != processes * state.step:  # as where a shared folder has shown one of them an older checkpoint
            raise RuntimeError(f"the processes are at different steps, and this one is at {state.step}: begin all anew")
        is_ending = asked > 0
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip)
        if not math.isfinite(loss + float(norm)):
            raise FloatingPointError(
                f"the loss of step {state.step + 1} is {loss:g}, and its gradient {float(norm):g}: check the "
                "weights that it started from, or begin anew with another seed or a smaller learning rate"
            )
        for optimizer in state.optimizers:
            optimizer.step()
        _update_average(state, config)
        state.step += 1
        yield StepMetrics(
            step=state.step,
            steps=config.steps,
            loss=loss,
            gradient_norm=float(norm),
            learning_rate=learning_rate,
            is_last=is_ending or state.step == config.steps,
        )


def _add_gradients(
    network: nn.Module,
    config: TrainConfig,
    examples: Examples,
    *,
    device: str,
    processes: int,
    teacher: nn.Module | None,
) -> Tensor:
    """Back-propagate the mean loss of the whole batch, of which these are a share; returns their part of that mean."""
    total = torch.zeros((), device=device)
    pieces = examples.split(config.patches_at_once or config.batch_size)
    for number, piece in enumerate(pieces):
        is_last = number == len(pieces) - 1
        waits = network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext()
        noisy_BCHW = piece.noisy_BCHW.to(device, memory_format=torch.channels_last)
        level_B2 = piece.level_B2.to(device)
        target_BCHW = piece.clean_BCHW.to(device, memory_format=torch.channels_last)
        with waits:
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=config.bfloat16):
                if teacher is not None:
                    target_BCHW = teach(teacher, noisy_BCHW, level_B2, piece.view_B).float()
                seed_dropout(network, piece.seed_B)
                denoised_BCHW = network(noisy_BCHW, level_B2)
            loss = LOSSES[config.loss](denoised_BCHW.float(), target_BCHW)
            share = len(piece) / config.batch_size
            torch.autograd.backward(loss * share * processes)  # DistributedDataParallel takes the mean of the processes
        total += loss.detach() * share
    return total


def _sum_of_all(loss: Tensor, *others: float, processes: int) -> list[float]:
    """The sum of each number over the processes that train together; exact for whole ones, however many they are."""
    numbers = torch.stack([loss.double(), *(loss.new_tensor(other, dtype=torch.float64) for other in others)])
    if processes > 1:
        dist.all_reduce(numbers)
    found: list[float] = numbers.tolist()
    return found


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


def rmse(photo_BCHW: Tensor, reference_BCHW: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Mean over the patches of each one's root mean square error, in their unit.

    It follows PSNR, and gives a gradient of one size to every patch, however noisy it was. `epsilon` keeps clean
    patches from making it infinite.
    """
    return ((photo_BCHW - reference_BCHW).square().mean(dim=(1, 2, 3)) + epsilon**2).sqrt().mean()


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {Loss.RMSE: rmse, Loss.MSE: F.mse_loss}


def _new_network(config: TrainConfig) -> nn.Module:
    """One with random weights: channels last, as its average is, or what mixes both would take twice the time."""
    return move(NETWORKS[config.network](), "cpu")


def _optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the kernels inside the network, AdamW for all else: its ends, and what is no matrix."""
    parameters = list(network.parameters())
    inside = [p for p in parameters if p.ndim == 4 and min(p.shape[:2]) > MOST_CHANNELS_AT_THE_ENDS]
    by_muon = inside if config.optimizer == OptimizerName.MUON else []
    by_adamw = [p for p in parameters if all(p is not other for other in by_muon)]
    adamw = torch.optim.AdamW(by_adamw, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    if not by_muon:
        return [adamw]
    return [adamw, Muon(by_muon, lr=config.learning_rate, weight_decay=config.weight_decay)]


@torch.no_grad()
def _update_average(state: TrainState, config: TrainConfig) -> None:
    """Early on the average follows fast, or it would remember the initial weights for thousands of steps."""
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    targets: list[Tensor] = list(state.average.parameters())
    torch._foreach_lerp_(targets, [source.detach() for source in state.network.parameters()], 1 - decay)
