"""Denoise a photo in memory, and what a worker needs to do so with shards of them."""

import dataclasses
import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from model.denoiser import Denoiser
from model.estimate import NoiseEstimate, NoiseSampler, estimate_noise, estimate_sigma
from model.haar import BLOCK_PX
from model.metrics import psnr_of, squared_error
from model.request import Windowed
from model.sharing import SharedDenoiser
from model.strength import TEXTURE, Dose, Strength, check_strength, choose_dose, why_left_alone
from model.texture import Removed
from model.weights import parse_weights
from pipeline.bands import Bands
from pipeline.bench import in_turn
from pipeline.errors import PhotoKept
from pipeline.ifd import FileBytes
from pipeline.images import HEAD_BYTES, Limits, Pixels, can_be_a_file, codec_faults, decode, encode, inspect
from pipeline.imageset import ImageSet
from pipeline.records import Layout, Outcome
from pipeline.room import Room
from pipeline.scratch import scratch_folder
from pipeline.shard import (
    PHOTO_BYTES,
    PHOTOS_AT_ONCE,
    PhotoResult,
    Recipe,
    Worker,
    gpu_shares,
    rejecting,
    timed,
)
from pipeline.storage import open_store

RESULT_VERSION = 14  # raise it when the same photo and weights give another result: what is finished becomes stale

BY_BANDS_BYTES = 512 * 1024**2  # a TIFF that takes more when it is decoded is denoised by bands of rows
COPIES = 3  # of a photo decoded that are in memory at once: noisy, clean, and what its codec works on
WEBP_COPIES = 9  # libwebp's tables take that of a lossless one, and 7 of another
MEASURED_ROWS = 16  # at a time: they stay in the cache
MEASURED_PX = 2**20  # of a photo in memory
COPIED_BYTES = 16 * 1024**2  # at a time

Denoise = Callable[[NDArray[Any], Dose], NDArray[Any]]  # Any: uint8 or uint16
DenoiseByWindows = Callable[[Windowed, Dose], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseConfig:
    """How photos are denoised.

    Attributes:
        strength: "auto" leaves clean photos as they are, and follows the noise of the others; or the share of the
            network's correction that is applied to every photo: 0 changes nothing, 1 all that it finds.
        keeps_grain: only the colour is denoised: the luminance stays as it is.
        limits: what is too large to be decoded at all.
    """

    strength: Strength = "auto"
    keeps_grain: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def why_left_alone(self, noise: NoiseEstimate, *, is_gray: bool) -> str | None:
        """See `model.strength`."""
        return why_left_alone(noise, self.strength, keeps_grain=self.keeps_grain, is_gray=is_gray)

    def removed(self, noise: NoiseEstimate, *, is_gray: bool) -> Removed | None:
        """Where to gather what is removed, if that may turn out to be texture: then the photo stays as it is.

        Not where the user decides; nor of colour alone, where texture cannot be told from noise.
        """
        if self.strength != "auto" or self.keeps_grain:
            return None
        return Removed(tells_blur=noise.impulses is None and not is_gray)

    def dose(self, noise: NoiseEstimate) -> Dose:
        """See `model.strength`."""
        return choose_dose(noise, self.strength, keeps_grain=self.keeps_grain)

    @property
    def parameters(self) -> str:
        """Hash of everything that decides what a photo becomes, other than the weights.

        Limits decide what is rejected, and not what becomes of the rest: with others, nothing is done again.
        """
        strength = self.strength if self.strength == "auto" else float(self.strength)  # it may be an int
        config = dataclasses.replace(self, strength=strength, limits=Limits())
        values = {"version": RESULT_VERSION, **dataclasses.asdict(config)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def denoise_photo(
    data: bytes,
    name: str,
    denoise: Denoise,
    config: DenoiseConfig,
    *,
    by_windows: DenoiseByWindows | None = None,
    room: Room | None = None,
    cores: AbstractContextManager[object] | None = None,
) -> PhotoResult:
    """Denoise the bytes of one photo into bytes of the same format with the same metadata.

    What is clean, or cannot be denoised faithfully, comes back untouched, byte for byte; what cannot be read is
    rejected. Both with a reason, and never as an exception.

    Args:
        data: the photo's file.
        name: its name or key: a file whose name says another format than its content is rejected.
        denoise: maps pixels to clean ones, by the dose.
        config: strength and limits.
        by_windows: does the same to a TIFF that is large, a few rows at a time.
        room: where photos that are decoded at the same time must fit.
        cores: is entered by whatever keeps a core busy, other than `denoise`.
    """
    result, cores = PhotoResult(outcome=Outcome.REJECTED), cores or nullcontext()
    with rejecting(result, name):
        result.header = header = inspect(data, name=name, limits=config.limits)
        if by_windows is not None and header.format == "tiff" and header.decoded_bytes > BY_BANDS_BYTES:
            return _denoise_in_scratch(data, name, by_windows, config, room)
        if header.untouched_reason is not None:
            result.data = data
            return _untouched(result, header.untouched_reason)
        copies = WEBP_COPIES if header.format == "webp" else COPIES
        with in_turn((room or Room()).taken(copies * header.decoded_bytes)):
            with in_turn(cores), timed(result, "decode"):
                noisy = decode(data, header)
            with in_turn(cores), timed(result, "measure"):
                noise = estimate_noise(noisy.seen)
                is_gray = noisy.colour.ndim == 2
                reason = config.why_left_alone(noise, is_gray=is_gray)
            with timed(result, "denoise"):
                colour = noisy.colour if reason else denoise(noisy.colour, config.dose(noise))
                clean = dataclasses.replace(noisy, colour=colour)
            with in_turn(cores), timed(result, "measure"):
                change = Change(noisy.colour.dtype, None if reason else config.removed(noise, is_gray=is_gray))
                change.add_sample(noisy.colour, clean.colour)
                reason = reason or change.reason
                change.tell(result, noise, noise.sigma if reason else estimate_sigma(clean.seen))
            if reason is not None:
                result.data = data
                return _untouched(result, reason)
            del noisy  # a codec needs its room
            try:
                with in_turn(cores), timed(result, "encode"):
                    result.data = encode(clean, data, header)
            except PhotoKept as error:
                result.data = data
                return _untouched(result, str(error))
        result.outcome, result.strength = Outcome.DENOISED, config.dose(noise).strength
    return result


class PhotoDenoiser:
    """Denoises photos by key, called from several threads: while the network runs, others decode, encode and write."""

    def __init__(self, denoiser: Denoiser, config: DenoiseConfig, *, threads: int = 1) -> None:
        self._denoiser = SharedDenoiser(denoiser, threads=threads)
        self._config = config
        shares = 1 if denoiser.device.type == "cpu" else gpu_shares(threads)
        self._room = Room(shares * PHOTO_BYTES)
        self.photos_at_once = shares * PHOTOS_AT_ONCE
        # More threads at work than cores take the interpreter from each other: 1.3 times the CPU time, with eight.
        self._cores = threading.Semaphore(threads)

    def __call__(self, data: bytes, key: str) -> PhotoResult:
        return denoise_photo(
            data,
            key,
            self._denoise,
            self._config,
            by_windows=self._denoise_by_windows,
            room=self._room,
            cores=self._cores,
        )

    def denoise_file(self, file: BinaryIO, key: str, target: Path) -> PhotoResult:
        """The same for a file on this disk, and into another one, as far as its format can be done by parts."""
        data = FileBytes(file)
        if not can_be_a_file(data[:HEAD_BYTES]):
            return self(data[:], key)  # what a buffer holds already would be joined to what it reads: twice the file
        return denoise_by_bands(file, key, target, self._denoise_by_windows, self._config, room=self._room)

    def _denoise(self, noisy: NDArray[Any], dose: Dose) -> NDArray[Any]:
        # Any: uint8 or uint16
        return self._denoiser(noisy, strength=dose.strength, noise=dose.noise, keeps_grain=dose.keeps_grain)

    def _denoise_by_windows(self, photo: Windowed, dose: Dose) -> None:
        self._denoiser.denoise_windowed(photo, strength=dose.strength, noise=dose.noise, keeps_grain=dose.keeps_grain)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseWorkerFactory:
    """All that a worker needs to denoise shards: travels to its process, and is called there."""

    source: str
    knows_hashes: bool = False  # as of a `Worker`
    target: str
    layout: Layout
    weights: bytes
    config: DenoiseConfig

    def __call__(self, threads: int) -> Worker:
        source, target = open_store(self.source), ImageSet(open_store(self.target))
        return Worker(source, target, self.layout, self.recipe(threads), knows_hashes=self.knows_hashes)

    def recipe(self, threads: int) -> Recipe:
        denoiser = Denoiser(parse_weights(self.weights))
        photos = PhotoDenoiser(denoiser, self.config, threads=threads)
        return Recipe(
            process=photos,
            process_file=photos.denoise_file,
            limits=self.config.limits,
            weights=denoiser.weights.sha256,
            parameters=self.config.parameters,
            photos_at_once=photos.photos_at_once,
        )


def _denoise_in_scratch(
    data: bytes, name: str, denoise: DenoiseByWindows, config: DenoiseConfig, room: Room | None
) -> PhotoResult:
    """Of a file that is small, and whose picture is not."""
    with scratch_folder() as folder:
        source, target = folder / "source", folder / "result"
        source.write_bytes(data)
        with source.open("rb") as file:
            result = denoise_by_bands(file, name, target, denoise, config, room=room)
        if result.file is not None:
            result.data, result.file = target.read_bytes(), None
        return result


def denoise_by_bands(
    file: BinaryIO,
    name: str,
    target: Path,
    denoise: DenoiseByWindows,
    config: DenoiseConfig,
    *,
    room: Room | None = None,
) -> PhotoResult:
    """Denoise a TIFF on this disk into another file, a few rows at a time. What comes of it is that of `denoise_photo`.

    What is not denoised is copied.

    Args:
        file: one that `can_be_a_file`; an open file of this disk.
        name: its name or key.
        target: the file to write.
        denoise: does the windows of a photo, as `SharedDenoiser.denoise_windowed`.
        config: strength and limits.
        room: where photos that are decoded at the same time must fit.
    """
    result = PhotoResult(outcome=Outcome.REJECTED)
    with rejecting(result, name):
        data = FileBytes(file)
        result.header = header = inspect(data, name=name, limits=config.limits)
        with target.open("w+b") as out:
            _copy(file, out)
            result.file = target
            if header.untouched_reason is not None:
                return _untouched(result, header.untouched_reason)
            with (
                in_turn((room or Room()).taken(COPIES * header.decoded_bytes)),
                timed(result, "denoise"),
                codec_faults(),
            ):
                bands = Bands(data, out)
                noise = _estimate_by_bands(bands)
                is_gray = len(bands.shape) == 2
                reason = config.why_left_alone(noise, is_gray=is_gray)
                result.noise_sigma_before, result.chroma_share = noise.sigma, noise.chroma_share
                if reason is not None:
                    return _untouched(result, reason)
                change = Change(bands.dtype, config.removed(noise, is_gray=is_gray))
                try:
                    _denoise_bands(result, bands, denoise, config.dose(noise), change)
                    reason = change.reason
                except PhotoKept as error:
                    reason = str(error)
                if reason is not None:
                    _copy(file, out)
                    return _untouched(result, reason)
        result.outcome, result.strength = Outcome.DENOISED, config.dose(noise).strength
    if result.outcome == Outcome.REJECTED:
        result.file = None  # it is not whole
    return result


def _copy(file: BinaryIO, out: BinaryIO) -> None:
    """Make `out` what `file` is, whatever it was."""
    file.seek(0)
    out.seek(0)
    shutil.copyfileobj(file, out, COPIED_BYTES)
    out.truncate()


def _denoise_bands(result: PhotoResult, bands: Bands, denoise: DenoiseByWindows, dose: Dose, change: "Change") -> None:
    after = NoiseSampler(bands.shape, bands.dtype, only_level=True)

    def look_at(top: int, noisy: Pixels, clean: Pixels) -> None:
        change.add(noisy.colour, clean.colour)
        after.add(top, clean.seen)

    bands.finished = look_at
    denoise(bands, dose)
    bands.finish()
    change.tell(result, dose.noise, after.sigma())


def _estimate_by_bands(bands: Bands) -> NoiseEstimate:
    sampler = NoiseSampler(bands.shape, bands.dtype)
    for top in sampler.wanted:
        sampler.add(top, bands.seen(slice(top, top + BLOCK_PX)))
        bands.forget(above=top)
    bands.forget(above=bands.shape[0])
    return sampler.estimate()


def _untouched(result: PhotoResult, reason: str) -> PhotoResult:
    """The photo is as it was: if its noise was measured, that is still there."""
    result.outcome, result.reason = Outcome.UNTOUCHED, reason
    if result.noise_sigma_before is not None:
        result.strength, result.noise_sigma_after, result.change_psnr_db = 0.0, result.noise_sigma_before, None
    return result


class Change:
    """How much of a photo was changed, and whether it should have been, by the rows of it that come by."""

    def __init__(self, dtype: np.dtype[Any], removed: Removed | None = None) -> None:
        self._removed = removed
        self._peak = np.iinfo(dtype).max
        self._squares = 0.0
        self._clipped = self._samples = 0

    def add(self, noisy: NDArray[Any], clean: NDArray[Any]) -> None:
        """The same rows of both. Any: uint8 or uint16."""
        self._squares += squared_error(clean, noisy)
        self._samples += noisy.size
        if self._removed is not None:
            self._removed.add(noisy, clean)
        for first in range(0, len(noisy), MEASURED_ROWS):
            rows = noisy[first : first + MEASURED_ROWS]
            self._clipped += int(np.count_nonzero((rows == 0) | (rows == self._peak)))

    def add_sample(self, noisy: NDArray[Any], clean: NDArray[Any]) -> None:
        """All of a photo, or evenly spread rows of about a megapixel of a larger one: for 12, that saves 20 ms."""
        step = MEASURED_ROWS * max(1, noisy.shape[0] * noisy.shape[1] // MEASURED_PX)
        for top in range(0, len(noisy), step):
            self.add(noisy[top : top + MEASURED_ROWS], clean[top : top + MEASURED_ROWS])

    @property
    def reason(self) -> str | None:
        """Why the photo should stay as it is after all."""
        return TEXTURE if self._removed is not None and self._removed.is_texture else None

    def tell(self, result: PhotoResult, before: NoiseEstimate, sigma_after: float) -> None:
        result.noise_sigma_before, result.chroma_share = before.sigma, before.chroma_share
        result.noise_sigma_after = sigma_after
        change_db = psnr_of(self._squares, self._samples, peak=float(self._peak))
        result.change_psnr_db = None if math.isinf(change_db) else change_db
        result.clipped_fraction = self._clipped / self._samples
