"""Denoise a photo in memory, and what a worker needs to do so with shards of them."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.denoiser import Denoiser
from model.estimate import NoiseEstimate, estimate_noise
from model.metrics import psnr_db
from model.sharing import SharedDenoiser
from model.weights import parse_weights
from pipeline.errors import PhotoKept
from pipeline.images import Limits, Pixels, decode, encode, inspect
from pipeline.imageset import ImageSet
from pipeline.records import Layout, Outcome
from pipeline.room import Room
from pipeline.shard import PHOTO_BYTES, PhotoResult, Recipe, Worker, codec_faults, rejecting, timed
from pipeline.storage import open_store

RESULT_VERSION = 1  # raise it when the same photo and weights give another result: what is finished becomes stale

COPIES = 3  # of a photo decoded that are in memory at once: noisy, clean, and what its codec works on
MEASURED_ROWS = 16  # at a time

Denoise = Callable[[NDArray[Any], float, NoiseEstimate], NDArray[Any]]  # Any: uint8 or uint16


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseConfig:
    """How photos are denoised.

    Attributes:
        strength: share of the network's correction that is applied: 0 changes nothing, 1 all that it finds.
        limits: what is too large to be decoded at all.
    """

    strength: float = 1.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:  # also refuses NaN
            raise ValueError(f"strength is {self.strength}: expected a number from 0 to 1")

    @property
    def parameters(self) -> str:
        """Hash of everything that decides what a photo becomes, other than the weights."""
        values = {"version": RESULT_VERSION, **dataclasses.asdict(self)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def denoise_photo(
    data: bytes, name: str, denoise: Denoise, config: DenoiseConfig, *, room: Room | None = None
) -> PhotoResult:
    """Denoise the bytes of one photo into bytes of the same format with the same metadata.

    What cannot be denoised faithfully comes back untouched, byte for byte; what cannot be read is rejected. Both with
    a reason, and never as an exception.

    Args:
        data: the photo's file.
        name: its name or key: a file whose name says another format than its content is rejected.
        denoise: maps pixels, a strength and the noise of the pixels to clean ones, as `Denoiser` does.
        config: strength and limits.
        room: where photos that are decoded at the same time must fit.
    """
    result = PhotoResult(outcome=Outcome.REJECTED)
    with rejecting(result, name):
        result.header = header = inspect(data, name=name, limits=config.limits)
        if header.untouched_reason is not None:
            result.outcome, result.reason, result.data = Outcome.UNTOUCHED, header.untouched_reason, data
            return result
        with (room or Room()).taken(COPIES * header.decoded_bytes):
            with timed(result, "decode"), codec_faults():
                noisy = decode(data, header)
            with timed(result, "denoise"):
                noise = estimate_noise(noisy.colour)
                clean = denoise(noisy.colour, config.strength, noise)
            with timed(result, "measure"):
                _measure(result, noisy.colour, noise, clean)
            try:
                with timed(result, "encode"), codec_faults():
                    result.data = encode(Pixels(clean, noisy.alpha), data, header)
            except PhotoKept as error:
                result.outcome, result.reason, result.data = Outcome.UNTOUCHED, str(error), data
                return result
        result.outcome, result.strength = Outcome.DENOISED, config.strength
    return result


class PhotoDenoiser:
    """Denoises photos by key, called from several threads: while the network runs, others decode, encode and write."""

    def __init__(self, denoiser: Denoiser, config: DenoiseConfig, *, threads: int = 1) -> None:
        self._denoiser = SharedDenoiser(denoiser, threads=threads)
        self._config = config
        self._room = Room(PHOTO_BYTES)

    def __call__(self, data: bytes, key: str) -> PhotoResult:
        return denoise_photo(data, key, self._denoise, self._config, room=self._room)

    def _denoise(self, noisy: NDArray[Any], strength: float, noise: NoiseEstimate) -> NDArray[Any]:
        # Any: uint8 or uint16
        return self._denoiser(noisy, strength=strength, noise=noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseWorkerFactory:
    """All that a worker needs to denoise shards: travels to its process, and is called there."""

    source: str
    target: str
    layout: Layout
    weights: bytes
    config: DenoiseConfig

    def __call__(self, threads: int) -> Worker:
        return Worker(open_store(self.source), ImageSet(open_store(self.target)), self.layout, self.recipe(threads))

    def recipe(self, threads: int) -> Recipe:
        denoiser = Denoiser(parse_weights(self.weights))
        return Recipe(
            process=PhotoDenoiser(denoiser, self.config, threads=threads),
            limits=self.config.limits,
            weights=denoiser.weights.sha256,
            parameters=self.config.parameters,
        )


def _measure(result: PhotoResult, noisy: NDArray[Any], noise: NoiseEstimate, clean: NDArray[Any]) -> None:
    """How noisy the photo was and is, and how much of it was changed. Any is uint8 or uint16."""
    peak = np.iinfo(noisy.dtype).max
    result.noise_sigma_before = noise.sigma
    result.chroma_share = noise.chroma_share
    result.noise_sigma_after = estimate_noise(clean).sigma
    change_db = psnr_db(clean, noisy, peak=float(peak))
    result.change_psnr_db = None if math.isinf(change_db) else change_db
    # By bands that stay in the cache: 5 ms for 12 megapixels, and 33 at once.
    bands = (noisy[top : top + MEASURED_ROWS] for top in range(0, len(noisy), MEASURED_ROWS))
    result.clipped_fraction = sum(np.count_nonzero((band == 0) | (band == peak)) for band in bands) / noisy.size
