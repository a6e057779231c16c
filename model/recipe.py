"""The recipe of a training: what decides, beside the photos, which weights come of it. Four of them have names."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from model.jpeg import BLOCK_PX
from model.noise import NoiseConfig
from model.weights import NETWORKS, Part

MOST_SEED = 2**32 - 1


class Loss(StrEnum):
    """What is made small, between the result and the clean patch, both sRGB in [0, 1]."""

    RMSE = "rmse"
    MSE = "mse"


class OptimizerName(StrEnum):
    """What makes it small. Muon leaves what is no matrix inside the network to AdamW."""

    MUON = "muon"
    ADAMW = "adamw"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The recipe. Warm-up, constant learning rate and cool-down; gradient clipping, and an EMA of the weights.

    A run whose learning rate was not yet cooling may be given more steps, or fewer: what it did until then is the same.

    Attributes:
        network: which architecture; a key of `model.weights.NETWORKS`.
        part: which of the two networks that weights can hold is trained: any but the general one needs weights to start
            from, of which the other network stays as it is.
        steps: optimiser steps of the whole run; the learning rate reaches zero at the last one.
        epochs: the same as a number of passes over the photos, a patch of each; takes the place of `steps`.
        batch_size, patch_px: patches of each step, of all workers together, and their side.
        patches_at_once: where memory is short, a worker runs its share of the batch through the network in pieces of so
            many patches (gradient accumulation). None is all at once.
        small_share: share of the steps, at the start, that have patches of half that side: four times as fast, they
            learn nearly as much (progressive learning, Zamir et al. 2022).
        halved_share: of the patches of photos that are large enough, those that show four times the area at half the
            size.
        drawn_share: of the patches, those with flat shapes drawn on them (see `model.shapes`).
        learning_rate: its peak, after `warmup_steps`.
        cooldown_share: share of the steps, at the end, in which it goes to zero as 1 - sqrt (Hägele et al. 2024).
        gradient_clip: largest L2 norm of a step's gradient.
        ema_decay: weight of the past in the moving average that is what we ship.
        bfloat16: run the network in bfloat16 where that is safe (autocast); twice as fast on the CPUs that have it.
        seed: of the initial weights, the patches and the noise. The same seed gives the same batches at every step.
    """

    network: str = "fine"
    part: Part = Part.GENERAL
    steps: int = 60_000
    epochs: int | None = None
    batch_size: int = 16
    patch_px: int = 128
    patches_at_once: int | None = None
    small_share: float = 0.6
    halved_share: float = 0.3
    drawn_share: float = 0.1
    optimizer: OptimizerName = OptimizerName.MUON
    loss: Loss = Loss.RMSE
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    cooldown_share: float = 0.35
    gradient_clip: float = 0.5
    weight_decay: float = 1e-4
    ema_decay: float = 0.999
    bfloat16: bool = True
    seed: int = 0
    noise: NoiseConfig = field(default_factory=NoiseConfig)

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"unknown network {self.network!r}: expected one of {', '.join(NETWORKS)}")
        for name, value in (
            ("small_share", self.small_share),
            ("halved_share", self.halved_share),
            ("drawn_share", self.drawn_share),
            ("cooldown_share", self.cooldown_share),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: expected a number from 0 to 1")
        for name, value in (("learning_rate", self.learning_rate), ("gradient_clip", self.gradient_clip)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}: expected a number above 0")
        for name, value in (("warmup_steps", self.warmup_steps), ("weight_decay", self.weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}: expected 0 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: expected a number from 0 to below 1")
        multiple = math.lcm(NETWORKS[self.network].multiple_px, 2 * BLOCK_PX) * (2 if self.small_share else 1)
        if self.patch_px <= 0 or self.patch_px % multiple:
            raise ValueError(
                f"patch_px is {self.patch_px}: network {self.network!r}, JPEG's blocks and small_share "
                f"{self.small_share:g} need a multiple of {multiple}"
            )
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"seed is {self.seed}: expected a number from 0 to {MOST_SEED}")
        for name in ("steps", "batch_size", "epochs", "patches_at_once"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: expected at least 1")

    @property
    def part_size(self) -> int:
        """Patches that are drawn together, by one worker; a batch is `batch_size / part_size` such parts."""
        return math.gcd(self.batch_size, 4)

    @property
    def parts(self) -> int:
        """Parts of a batch: the most workers that can share it."""
        return self.batch_size // self.part_size

    def for_photos(self, count: int) -> "TrainConfig":
        """The recipe for so many photos: in it, epochs are steps."""
        if self.epochs is None:
            return self
        return dataclasses.replace(self, steps=self.epochs * math.ceil(count / self.batch_size), epochs=None)

    def patch_px_at(self, step: int) -> int:
        """Side of the patches of a step, counted from 0."""
        return self.patch_px // 2 if step < self.small_share * self.steps else self.patch_px

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cooldown_steps = self.cooldown_share * self.steps
        cooled = (step - (self.steps - cooldown_steps)) / cooldown_steps if cooldown_steps else 0.0
        return self.learning_rate * warmup * (1 - math.sqrt(max(0.0, cooled)))


# What the project began with: a U-Net on whole photos of 512 × 512 pixels with salt and pepper.
SEED_PRESET = TrainConfig(
    network="seed",
    epochs=20,
    batch_size=4,
    patch_px=512,
    small_share=0,
    drawn_share=0,
    optimizer=OptimizerName.ADAMW,
    loss=Loss.MSE,
    learning_rate=3e-3,
    cooldown_share=0,
    weight_decay=0,
    noise=NoiseConfig.only(impulse_share=1, impulse_density_min=0.2, impulse_density_max=0.2, jpeg_share=0),
)
# To go on from weights that are good already: whole patches from the start, and most of the time for the cool-down.
# Noise that nothing has filtered since has a network of its own: to know it, too, costs one of this size 0.1 dB.
TUNE_PRESET = TrainConfig(
    steps=20_000,
    small_share=0,
    cooldown_share=0.6,
    noise=NoiseConfig(float_share=0.1, file_share=0.3, camera_share=0.45, grain_share=0.1),
)
WHITE_PRESET = dataclasses.replace(
    TUNE_PRESET,
    part=Part.WHITE,
    steps=24_000,
    batch_size=8,
    halved_share=0.5,
    learning_rate=2e-3,
    cooldown_share=0.75,
    noise=NoiseConfig.only(
        clean_share=0.02, float_share=0.75, file_share=0.23, jpeg_share=0, filtered_share=0, blotched_share=0
    ),
)
PRESETS = {"photo": TrainConfig(), "tune": TUNE_PRESET, "white": WHITE_PRESET, "seed": SEED_PRESET}


def recipe_of(preset: str, changes: Mapping[str, Any]) -> TrainConfig:
    """A preset with other values for some of its fields. A number of steps takes the place of its epochs."""
    replaced = {"epochs": None, **changes} if "steps" in changes else changes
    return dataclasses.replace(PRESETS[preset], **replaced)
