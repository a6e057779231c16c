"""A shard of planned photos into a committed shard of the target, whatever is done to them and becomes of each."""

import dataclasses
import hashlib
import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from pipeline.bench import Bench, Look, enter_stage, in_turn
from pipeline.errors import CodecFault, ObjectMissing, ObjectRefused, PhotoRejected, StorageError
from pipeline.fault_points import FaultPoint, fault_point
from pipeline.images import Header, Limits
from pipeline.imageset import ImageSet
from pipeline.packed import MAX_PHOTO_BYTES, PackedWriter, promise_of
from pipeline.records import GONE, Layout, Outcome, PhotoRecord, PlannedPhoto, Receipt, ShardPlan
from pipeline.redaction import explain
from pipeline.room import Room
from pipeline.scratch import scratch_folder
from pipeline.sources import read_photos
from pipeline.storage import PART_BYTES, Store, unsafe_reason

log = logging.getLogger(__name__)

PHOTOS_AT_ONCE = 8  # in work, at most: what fits into memory is bounded by bytes
PHOTO_BYTES = 1024**3  # of memory for photos that are decoded: see `Room`
GPU_CORES, MOST_SHARES = 4, 4  # see `gpu_shares`
SOURCE_BYTES = 256 * 1024**2  # the same for the files that they come from
FILE_BYTES = 128 * 1024**2  # a larger one is not read into memory, if there is another way

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class PhotoResult:
    """What became of one photo: `data` holds the result's bytes, or `file` is the result on this disk.

    `size_px` is the result's width and height, where they are not the source's; `stage_s` seconds by stage.
    """

    outcome: Outcome
    reason: str | None = None
    data: bytes | None = None
    file: Path | None = None
    size_px: tuple[int, int] | None = None
    header: Header | None = None
    source_sha256: str | None = None
    output_sha256: str | None = None
    noise_sigma_before: float | None = None
    noise_sigma_after: float | None = None
    chroma_share: float | None = None
    strength: float | None = None
    change_psnr_db: float | None = None
    clipped_fraction: float | None = None
    stage_s: dict[str, float] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int | None:
        """Of the result, None where there is none."""
        if self.file is not None:
            return self.file.stat().st_size
        return None if self.data is None else len(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is done to each photo of a run.

    Attributes:
        process: from the bytes and the key of a photo to its result; may be called from several threads, and raises
            nothing for the photo's sake.
        process_file: the same for a photo whose file should not be held in memory; its result may be a file of the
            given name. None where there is no such way.
        limits: what is too large to be read at all.
        weights, parameters: content hashes of what decides a result.
        photos_at_once: how many are in work at most.
    """

    process: Callable[[bytes, str], PhotoResult]
    limits: Limits
    weights: str
    parameters: str
    process_file: Callable[[BinaryIO, str, Path], PhotoResult] | None = None
    photos_at_once: int = PHOTOS_AT_ONCE


def gpu_shares(cores: int) -> int:
    """How many times the photos and room of a worker without a GPU one with it needs, so that its cores keep it busy.

    Simulated, of photos of 12 megapixels and eight cores: 1.6 times as many a second with two shares, and more bring
    less than 10 %.
    """
    return min(MOST_SHARES, max(1, cores // GPU_CORES))


def promised_name(photo: PlannedPhoto, data: bytes, layout: Layout) -> str:
    """The name by which the format of a photo's result is judged: of one that stays packed, the photo itself tells."""
    is_named_as_itself = photo.place is None or layout == Layout.FILES
    return photo.key if is_named_as_itself else promise_of(photo.key, data)


class Worker:
    """Processes shards of a source into a target. May run several shards at once from threads of one process.

    The photos of all of them go through the same threads, each from its bytes to its object in the target: while one is
    read, others are decoded, processed, encoded and written.
    """

    def __init__(
        self, source: Store, target: ImageSet, layout: Layout, recipe: Recipe, *, knows_hashes: bool = False
    ) -> None:
        """`knows_hashes` says that the etags of what is planned are hashes of the bytes: those of an image set."""
        self._source = source
        self._knows_hashes = knows_hashes
        self._target = target
        self._layout = layout
        self._recipe = recipe
        self._bench = Bench()
        self._threads = ThreadPoolExecutor(recipe.photos_at_once, "photo")
        self._places = threading.Semaphore(recipe.photos_at_once)
        self._source_room = Room(SOURCE_BYTES)
        self._told = threading.Lock()
        self._told_retries = self._told_throttled = 0

    def look(self) -> Look:
        """What it works on at the moment. May be called from another thread."""
        return self._bench.look()

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt:
        """Process and commit a shard. One that is committed stays as it is: its rows tell the bytes of its photos.

        Another machine might make other bytes of them, or their sources may have changed since.

        Args:
            plan: what to do.
            poisonous: keys that must not be read, because they end the process that does, with the reason for their
                rows.

        Raises:
            StorageError: the source cannot be read, or the target cannot be written.
        """
        with self._bench.shard(plan.shard):
            return self._run(plan, poisonous)

    def _run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt:
        start = time.perf_counter()
        if (done := self._target.read_commit(plan.shard)) is not None:  # and the receipt of its worker was lost
            return self._with_retries(Receipt.of(plan.shard, done, time.perf_counter() - start))
        packed = PackedWriter() if self._layout == Layout.PACKED else None
        records = []
        for record, data in self._each(plan.photos, poisonous, partial(self._finish, plan)):
            if packed is not None and data is not None:
                packed.add(record, data)
            records.append(record)
        if packed is not None:
            self._target.store.write(self._target.packed_key(plan.shard), packed.finish())
        fault_point(FaultPoint.SHARD_WRITTEN)
        self._target.commit(plan.shard, records)
        fault_point(FaultPoint.SHARD_COMMITTED)
        return self._with_retries(Receipt.of(plan.shard, records, time.perf_counter() - start))

    def _with_retries(self, receipt: Receipt) -> Receipt:
        """With what the stores had to do again since the last receipt: shards share them."""
        stores = (self._source, self._target.store)
        with self._told:
            retries, throttled = sum(store.retries for store in stores), sum(store.throttled for store in stores)
            receipt = dataclasses.replace(
                receipt, retries=retries - self._told_retries, throttled=throttled - self._told_throttled
            )
            self._told_retries, self._told_throttled = retries, throttled
        return receipt

    def probe(self, photo: PlannedPhoto) -> None:
        """Process a photo and drop the result: to find the one that ends its process."""
        for _ in self._each((photo,), {}, lambda *_: None):
            pass

    def _each(
        self,
        photos: tuple[PlannedPhoto, ...],
        poisonous: Mapping[str, str],
        finish: Callable[[PlannedPhoto, PhotoResult], T],
    ) -> Iterator[T]:
        """What `finish` makes of the result of each photo, in its thread; in the order of the photos.

        A photo that takes its time does not stop those behind it: what is left of them waits here for its turn.
        """
        under_way: deque[Future[T]] = deque()
        try:
            for planned, found, read_s in self._read(photos, poisonous):
                # First the place, and then the room: one that has room never waits for those that wait for it.
                self._places.acquire()
                if size_bytes := len(found) if isinstance(found, bytes) else 0:
                    self._source_room.take(size_bytes)
                under_way.append(self._threads.submit(self._do, planned, found, read_s, finish))
                under_way[-1].add_done_callback(partial(self._make_room, size_bytes))
                while under_way and under_way[0].done():
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except OSError as error:  # of a store, it is a StorageError
            raise StorageError(f"{tempfile.gettempdir()}, for temporary files: {explain(error)}") from error
        finally:
            for future in under_way:
                future.cancel()
            wait(under_way)

    def _read(
        self, photos: tuple[PlannedPhoto, ...], poisonous: Mapping[str, str]
    ) -> Iterator[tuple[PlannedPhoto, bytes | str | None, float]]:
        """Each photo with its bytes, and how long it took to read them.

        In their place is the reason why there are none, or None of a photo that is to be read as a file.
        """
        reasons = {planned.key: poisonous.get(planned.key) or self._unread_reason(planned) for planned in photos}
        wanted = [planned for planned in photos if reasons[planned.key] is None and not self._is_a_file(planned)]
        reading = read_photos(self._source, wanted)
        for planned in photos:
            if (reason := reasons[planned.key]) is not None or self._is_a_file(planned):
                yield planned, reason, 0.0
                continue
            start = time.perf_counter()
            with self._bench.photo(planned.key, "read"):
                data = self._whole(planned, next(reading)[1])
            read_s = time.perf_counter() - start
            yield planned, self._refused_reason(data) if isinstance(data, ObjectRefused) else data, read_s

    def _whole(self, planned: PlannedPhoto, data: bytes | ObjectRefused) -> bytes | ObjectRefused:
        """What was read of a photo, unless it is a part: there are servers and mounts that cut it and say nothing.

        Then it is read once more.
        """
        if isinstance(data, ObjectRefused) or planned.place is not None or len(data) >= planned.size_bytes:
            return data  # Google unpacks what it stores packed: that is longer than it was listed
        try:
            size_bytes = self._source.size(planned.key)
            if len(data) < size_bytes:
                data = self._source.read(planned.key)
        except ObjectRefused as error:
            return error
        if len(data) >= size_bytes:
            return data  # it has changed since it was listed
        return ObjectRefused(f"{len(data):,} bytes of it could be read, and it has {size_bytes:,}")

    def _do(
        self,
        planned: PlannedPhoto,
        found: bytes | str | None,
        read_s: float,
        finish: Callable[[PlannedPhoto, PhotoResult], T],
    ) -> T:
        if isinstance(found, str):
            return finish(planned, PhotoResult(outcome=Outcome.REJECTED, reason=found))
        if found is None:
            return self._do_file(planned, finish)
        with self._bench.photo(planned.key, "inspect"):
            result = self._result(planned, found)
            result.stage_s["read"] = read_s
            return finish(planned, result)

    def _refused_reason(self, error: ObjectRefused) -> str:
        """Why one photo could not be read; raises StorageError if it is not the one object that is gone, but all."""
        if next(iter(self._source.list()), None) is None:
            raise StorageError(f"nothing is left in {self._source.url}: is it still there?") from error
        return f"{GONE}: {error}" if isinstance(error, ObjectMissing) else str(error)

    def _is_a_file(self, planned: PlannedPhoto) -> bool:
        """Whether a photo is to be read as a file. Its result is one too, which is not packed."""
        is_possible = self._recipe.process_file is not None and self._layout == Layout.FILES and planned.place is None
        return is_possible and planned.size_bytes > FILE_BYTES

    def _do_file(self, planned: PlannedPhoto, finish: Callable[[PlannedPhoto, PhotoResult], T]) -> T:
        assert self._recipe.process_file is not None
        with self._bench.photo(planned.key, "read"), in_turn(self._source_room.taken(planned.size_bytes)):
            start = time.perf_counter()
            with scratch_folder() as folder:
                try:
                    with self._source.opened(planned.key) as file:
                        sha256 = self._hash(planned, file)
                        read_s = time.perf_counter() - start
                        if (reason := self._strange_reason(planned, sha256)) is not None:
                            return finish(planned, PhotoResult(outcome=Outcome.REJECTED, reason=reason))
                        file.seek(0)
                        result = self._recipe.process_file(file, planned.key, folder / "result")
                except ObjectRefused as error:
                    reason = self._refused_reason(error)
                    return finish(planned, PhotoResult(outcome=Outcome.REJECTED, reason=reason))
                result.stage_s["read"], result.source_sha256 = read_s, sha256
                if result.file is not None:
                    with result.file.open("rb") as written:
                        result.output_sha256 = _sha256(written)
                elif result.data is not None:
                    result.output_sha256 = hashlib.sha256(result.data).hexdigest()
                return finish(planned, result)

    def _hash(self, planned: PlannedPhoto, file: BinaryIO) -> str:
        """The SHA-256 of a photo that is opened as a file; of a bad one the source says why, and not its disk alone."""
        try:
            return _sha256(file)
        except OSError:
            for start in range(0, planned.size_bytes, PART_BYTES):
                self._source.read_range(planned.key, start, PART_BYTES)
            raise  # the source reads it well: it is the disk on which `opened` put a copy

    def _make_room(self, size_bytes: int, _: Future[T]) -> None:
        self._places.release()
        self._source_room.give_back(size_bytes)

    def _result(self, planned: PlannedPhoto, data: bytes) -> PhotoResult:
        source_sha256 = hashlib.sha256(data).hexdigest()
        if (reason := self._strange_reason(planned, source_sha256)) is not None:
            return PhotoResult(outcome=Outcome.REJECTED, reason=reason)
        result = self._recipe.process(data, promised_name(planned, data, self._layout))
        result.source_sha256 = source_sha256
        if result.data is not None:
            is_copy = result.data is data
            result.output_sha256 = source_sha256 if is_copy else hashlib.sha256(result.data).hexdigest()
        return result

    def _strange_reason(self, planned: PlannedPhoto, sha256: str) -> str | None:
        """Why bytes are not those of a photo that is planned, where it can be told."""
        if not self._knows_hashes or sha256 == planned.etag:
            return None
        if planned.place is not None:
            return f"its bytes in {planned.place} are damaged"
        return f"{GONE}: its bytes are not those that the index of its image set tells of (see: degrain verify)"

    def _finish(self, plan: ShardPlan, planned: PlannedPhoto, result: PhotoResult) -> tuple[PhotoRecord, bytes | None]:
        """The row of a photo, which is written; with its bytes where they are to be packed."""
        record, data = self._record(plan, planned, result), result.data
        if self._layout == Layout.FILES:
            record, data = self._write(record, result), None
            fault_point(FaultPoint.PHOTO_WRITTEN)
        self._bench.finish_photo(plan.shard)
        return record, data

    def _unread_reason(self, planned: PlannedPhoto) -> str | None:
        """Why a photo is not read: by its name, or by the listing's size."""
        if (reason := unsafe_reason(planned.key)) is not None:
            return reason
        limit = self._recipe.limits.max_bytes
        if self._layout == Layout.PACKED:
            limit = min(limit, MAX_PHOTO_BYTES)
        return (
            None
            if planned.size_bytes <= limit
            else f"the file has {planned.size_bytes:,} bytes, and the limit is {limit:,}"
        )

    def _write(self, record: PhotoRecord, result: PhotoResult) -> PhotoRecord:
        if record.output_key is None:
            return record
        enter_stage("write")
        start = time.perf_counter()
        try:
            if result.file is not None:
                self._target.store.write_file(record.output_key, result.file)
            elif result.data is not None:
                self._target.store.write(record.output_key, result.data)
        except ObjectRefused as error:
            return dataclasses.replace(
                record,
                outcome=Outcome.REJECTED,
                reason=str(error),
                output_key=None,
                output_size_bytes=None,
                output_sha256=None,
                output_width_px=None,
                output_height_px=None,
            )
        return dataclasses.replace(record, write_s=time.perf_counter() - start)

    def _record(self, plan: ShardPlan, planned: PlannedPhoto, result: PhotoResult) -> PhotoRecord:
        header, size_bytes, seconds = result.header or Header(format=""), result.size_bytes, result.stage_s
        output_key, output_size_px = None, None
        if size_bytes is not None:
            is_packed = self._layout == Layout.PACKED
            output_key = self._target.packed_key(plan.shard) if is_packed else self._target.output_key(planned.key)
            output_size_px = result.size_px or (header.width_px, header.height_px)
        return PhotoRecord(
            key=planned.key,
            source_etag=planned.etag,
            source_size_bytes=planned.size_bytes,
            source_sha256=result.source_sha256,
            outcome=result.outcome,
            reason=result.reason,
            output_key=output_key,
            output_size_bytes=size_bytes,
            output_sha256=result.output_sha256,
            output_width_px=output_size_px and output_size_px[0],
            output_height_px=output_size_px and output_size_px[1],
            format=header.format or None,
            width_px=header.width_px,
            height_px=header.height_px,
            mode=header.mode,
            bit_depth=header.bit_depth,
            orientation=header.orientation if result.header else None,
            camera=header.shot.camera,
            iso=header.shot.iso,
            taken_at=header.shot.taken_at,
            noise_sigma_before=result.noise_sigma_before,
            noise_sigma_after=result.noise_sigma_after,
            chroma_share=result.chroma_share,
            strength=result.strength,
            change_psnr_db=result.change_psnr_db,
            clipped_fraction=result.clipped_fraction,
            weights=self._recipe.weights,
            parameters=self._recipe.parameters,
            run=plan.run,
            shard=plan.shard,
            read_s=seconds.get("read", 0.0),
            decode_s=seconds.get("decode", 0.0),
            denoise_s=seconds.get("denoise", 0.0) + seconds.get("measure", 0.0),
            encode_s=seconds.get("encode", 0.0),
            attempts=planned.attempt,
            finished_at=datetime.now(UTC),
        )


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    for part in iter(partial(file.read, PART_BYTES), b""):
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def rejecting(result: PhotoResult, name: str) -> Iterator[None]:
    """What is raised inside for the photo's sake becomes the reason of its rejection."""
    try:
        yield
    except PhotoRejected as error:
        if isinstance(error, CodecFault):
            log.exception("a codec failed on %s", name)
        result.reason = str(error)
    except MemoryError:
        result.reason = "it needs more memory than this worker has"
    except FloatingPointError:
        result.reason = "the network's result holds values that are no numbers"


@contextmanager
def timed(result: PhotoResult, stage: str) -> Iterator[None]:
    enter_stage(stage)
    start = time.perf_counter()
    yield
    result.stage_s[stage] = result.stage_s.get(stage, 0.0) + time.perf_counter() - start
