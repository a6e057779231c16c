"""Denoise photos: one in memory, or one shard of them into a committed shard of the target."""

import dataclasses
import hashlib
import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.denoiser import Denoiser, use_threads
from model.estimate import estimate_noise
from model.metrics import psnr_db
from model.weights import parse_weights
from pipeline.errors import ObjectRefused, PhotoRejected, StorageError
from pipeline.images import Header, Limits, Pixels, decode, encode, inspect
from pipeline.imageset import ImageSet
from pipeline.records import Layout, Outcome, PhotoRecord, PlannedPhoto, Receipt, ShardPlan
from pipeline.storage import Store, open_store, unsafe_reason

log = logging.getLogger(__name__)

PIXELS_IN_MEMORY = 64_000_000  # of the photos that one worker holds decoded at a time, unless it is one larger photo
RESULT_VERSION = 1  # raise it when the same photo and weights give another result: what is finished becomes stale


Denoise = Callable[[NDArray[Any], float], NDArray[Any]]  # Any: uint8 or uint16


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


@dataclass(slots=True, kw_only=True)
class PhotoResult:
    """What became of one photo: `data` holds the result's bytes, None where it was rejected."""

    outcome: Outcome
    reason: str | None = None
    data: bytes | None = None
    header: Header | None = None
    noise_sigma_before: float | None = None
    noise_sigma_after: float | None = None
    chroma_share: float | None = None
    change_psnr_db: float | None = None
    clipped_fraction: float | None = None
    stage_s: dict[str, float] = field(default_factory=dict)


class Room:
    """Lets photos into memory while there is room for their pixels; one that is larger than it comes in alone."""

    def __init__(self, pixels: float = math.inf) -> None:
        self._pixels = pixels
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + pixels <= self._pixels)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


def denoise_photo(
    data: bytes, name: str, denoise: Denoise, config: DenoiseConfig, *, room: Room | None = None
) -> PhotoResult:
    """Denoise the bytes of one photo into bytes of the same format with the same metadata.

    What cannot be denoised faithfully comes back untouched, byte for byte; what cannot be read is rejected. Both with
    a reason, and never as an exception.

    Args:
        data: the photo's file.
        name: its name or key: a file whose name says another format than its content is rejected.
        denoise: maps pixels and a strength to clean pixels, as `Denoiser` does.
        config: strength and limits.
        room: where photos that are decoded at the same time must fit.
    """
    result = PhotoResult(outcome=Outcome.REJECTED)
    try:
        result.header = header = inspect(data, name=name, limits=config.limits)
        if header.untouched_reason is not None:
            result.outcome, result.reason, result.data = Outcome.UNTOUCHED, header.untouched_reason, data
            return result
        with (room or Room()).taken((header.width_px or 0) * (header.height_px or 0)):
            with _timed(result, "decode"), _codec_faults():
                noisy = decode(data, header)
            with _timed(result, "denoise"):
                clean = denoise(noisy.colour, config.strength)
                _measure(result, noisy.colour, clean)
            with _timed(result, "encode"), _codec_faults():
                result.data = encode(Pixels(clean, noisy.alpha), data, header)
        result.outcome = Outcome.DENOISED
    except PhotoRejected as error:
        result.reason = str(error)
    except _CodecFault as error:
        log.exception("a codec failed on %s", name)
        result.reason = f"it could not be processed: {error}"
    except MemoryError:
        result.reason = "it needs more memory than this worker has"
    except FloatingPointError:
        result.reason = "the network's result holds values that are no numbers"
    return result


class ShardDenoiser:
    """Denoises shards of a source into a target. May run several shards at once from threads of one process.

    The network runs in a thread of its own; meanwhile other shards' photos are read, decoded, encoded and written.
    """

    def __init__(
        self,
        source: Store,
        target: ImageSet,
        *,
        layout: Layout,
        denoiser: Denoiser,
        config: DenoiseConfig,
        threads: int = 1,
    ) -> None:
        self._source = source
        self._target = target
        self._layout = layout
        self._denoiser = denoiser
        self._config = config
        self._room = Room(PIXELS_IN_MEMORY)
        self._model_thread = ThreadPoolExecutor(1, "model", use_threads, (threads,))

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt:
        """Process and commit a shard.

        Args:
            plan: what to do.
            poisonous: keys that must not be read, because they end the process that does, with the reason for their
                rows.

        Raises:
            StorageError: the source cannot be read, or the target cannot be written.
        """
        start = time.perf_counter()
        records, photos = [], []
        for planned in plan.photos:
            if planned.key in poisonous:
                result, source_sha256 = PhotoResult(outcome=Outcome.REJECTED, reason=poisonous[planned.key]), None
            else:
                result, source_sha256 = self._process(planned)
            record = self._record(plan, planned, result, source_sha256)
            if self._layout == Layout.FILES:
                record = self._write(record, result)
            elif result.data is not None:
                photos.append(result.data)
            records.append(record)
        if self._layout == Layout.PACKED:
            self._target.write_packed(plan.shard, [row for row in records if row.output_key is not None], photos)
        self._target.commit(plan.shard, records)
        return _receipt(plan, records, time.perf_counter() - start)

    def probe(self, photo: PlannedPhoto) -> None:
        """Process a photo and drop the result: to find the one that ends its process."""
        self._process(photo)

    def _process(self, planned: PlannedPhoto) -> tuple[PhotoResult, str | None]:
        result = PhotoResult(outcome=Outcome.REJECTED)
        result.reason = unsafe_reason(planned.key) or self._oversize_reason(planned)
        if result.reason is not None:
            return result, None
        try:
            start = time.perf_counter()
            data = self._source.read(planned.key)
            read_s = time.perf_counter() - start
        except ObjectRefused as error:
            if next(iter(self._source.list()), None) is None:
                raise StorageError(f"nothing is left in {self._source.url}: is it still there?") from error
            result.reason = str(error)
            return result, None
        result = denoise_photo(data, planned.key, self._denoise, self._config, room=self._room)
        result.stage_s["read"] = read_s
        return result, hashlib.sha256(data).hexdigest()

    def _denoise(self, noisy: NDArray[Any], strength: float) -> NDArray[Any]:  # Any: uint8 or uint16
        return self._model_thread.submit(self._denoiser, noisy, strength=strength).result()

    def _oversize_reason(self, planned: PlannedPhoto) -> str | None:
        """Checked on the listing's size, before anything is read."""
        limit = self._config.limits.max_bytes
        if planned.size_bytes <= limit:
            return None
        return f"the file has {planned.size_bytes:,} bytes, and the limit is {limit:,}"

    def _write(self, record: PhotoRecord, result: PhotoResult) -> PhotoRecord:
        if result.data is None or record.output_key is None:
            return record
        start = time.perf_counter()
        try:
            self._target.store.write(record.output_key, result.data)
        except ObjectRefused as error:
            return dataclasses.replace(
                record,
                outcome=Outcome.REJECTED,
                reason=str(error),
                output_key=None,
                output_size_bytes=None,
                output_sha256=None,
            )
        return dataclasses.replace(record, write_s=time.perf_counter() - start)

    def _record(
        self, plan: ShardPlan, planned: PlannedPhoto, result: PhotoResult, source_sha256: str | None
    ) -> PhotoRecord:
        header, data = result.header, result.data
        output_key = None
        if data is not None:
            is_packed = self._layout == Layout.PACKED
            output_key = self._target.packed_key(plan.shard) if is_packed else self._target.output_key(planned.key)
        return PhotoRecord(
            key=planned.key,
            source_etag=planned.etag,
            source_size_bytes=planned.size_bytes,
            source_sha256=source_sha256,
            outcome=result.outcome,
            reason=result.reason,
            output_key=output_key,
            output_size_bytes=None if data is None else len(data),
            output_sha256=None if data is None else hashlib.sha256(data).hexdigest(),
            format=header.format or None if header else None,
            width_px=header.width_px if header else None,
            height_px=header.height_px if header else None,
            mode=header.mode if header else None,
            bit_depth=header.bit_depth if header else None,
            orientation=header.orientation if header else None,
            noise_sigma_before=result.noise_sigma_before,
            noise_sigma_after=result.noise_sigma_after,
            chroma_share=result.chroma_share,
            strength=self._config.strength if result.outcome == Outcome.DENOISED else None,
            change_psnr_db=result.change_psnr_db,
            clipped_fraction=result.clipped_fraction,
            weights=self._denoiser.weights.sha256,
            parameters=self._config.parameters,
            run=plan.run,
            shard=plan.shard,
            attempts=planned.attempt,
            finished_at=datetime.now(UTC),
            **{f"{stage}_s": seconds for stage, seconds in result.stage_s.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDenoiserFactory:
    """All that a worker needs to make its `ShardDenoiser`: travels to its process, and is called there."""

    source: str
    target: str
    layout: Layout
    weights: bytes
    config: DenoiseConfig

    def __call__(self, threads: int) -> ShardDenoiser:
        return ShardDenoiser(
            open_store(self.source),
            ImageSet(open_store(self.target)),
            layout=self.layout,
            denoiser=Denoiser(parse_weights(self.weights)),
            config=self.config,
            threads=threads,
        )


def _measure(result: PhotoResult, noisy: NDArray[Any], clean: NDArray[Any]) -> None:  # Any: uint8 or uint16
    """How noisy the photo was and is, and how much of it was changed."""
    peak = float(np.iinfo(noisy.dtype).max)
    before = estimate_noise(noisy)
    result.noise_sigma_before = before.sigma
    result.chroma_share = before.chroma_share
    result.noise_sigma_after = estimate_noise(clean).sigma
    change_db = psnr_db(clean, noisy, peak=peak)
    result.change_psnr_db = None if math.isinf(change_db) else change_db
    result.clipped_fraction = float(np.mean((noisy == 0) | (noisy == peak)))


class _CodecFault(Exception):
    """A codec raised what it should not: a fault of ours or of its library, which costs one photo and not the run."""


@contextmanager
def _codec_faults() -> Iterator[None]:
    try:
        yield
    except (PhotoRejected, MemoryError):
        raise
    except Exception as error:
        raise _CodecFault(f"{type(error).__name__}: {error}") from error


@contextmanager
def _timed(result: PhotoResult, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    result.stage_s[stage] = time.perf_counter() - start


def _receipt(plan: ShardPlan, records: Sequence[PhotoRecord], seconds: float) -> Receipt:
    outcomes = Counter(record.outcome for record in records)
    return Receipt(
        shard=plan.shard,
        denoised=outcomes[Outcome.DENOISED],
        untouched=outcomes[Outcome.UNTOUCHED],
        rejected=outcomes[Outcome.REJECTED],
        megapixels=sum(record.megapixels for record in records),
        bytes_read=sum(record.source_size_bytes for record in records if record.source_sha256 is not None),
        bytes_written=sum(record.output_size_bytes or 0 for record in records),
        seconds=seconds,
    )
