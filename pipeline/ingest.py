"""Ingest: pack a collection of photos, as they are or smaller, into the Parquet shards of an image set."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pipeline.collection_job import CollectionJob
from pipeline.errors import PhotoRejected
from pipeline.forecast import ForecastOptions, Outlook
from pipeline.images import Header, Limits, can_shrink, inspect, shrink
from pipeline.imageset import ImageSet
from pipeline.plan_file import PlanHeader
from pipeline.planning import ShardSize
from pipeline.records import Layout, Outcome
from pipeline.room import Room, usable_cores
from pipeline.run import do_work
from pipeline.sample import look_ahead
from pipeline.shard import PHOTO_BYTES, PhotoResult, Recipe, Worker, rejecting, timed
from pipeline.sources import open_both
from pipeline.storage import open_store
from pipeline.work import Progress, Summary, Work

RESIZED_VERSION = 2  # raise it when --resize makes another copy of the same photo: those that are finished become stale
SHARD_BYTES = 256 * 1024**2
SHARD_PHOTOS = 10_000
PNG_BYTES_PER_SQUARE_PX = 2  # of the shorter side: 4:3, and 1.4 bytes a pixel. Of JPEGs, four times what they were
COPIES = 2  # of a photo decoded that are in memory at once: it, and a turned or smaller one
SHARDS_PER_WORKER = 4  # at least; without a number, of one for each core here: a cluster's are not known yet


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestConfig:
    """What of a photo is packed.

    Attributes:
        resize_px: of each photo pack an upright 8-bit PNG in RGB or gray whose shorter side has so many pixels, or
            fewer where the photo has: it is never enlarged. What cannot be resized faithfully is skipped. None packs
            the bytes as they are.
        min_side_px: skip photos whose shorter side is shorter, and those whose size cannot be told.
        limits: what is too large to be packed at all.
    """

    resize_px: int | None = None
    min_side_px: int | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("resize_px", "min_side_px"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected at least 1")

    @property
    def shard_photos(self) -> int:
        """As many photos as may come into one shard, which is held in memory until it is whole."""
        if self.resize_px is None:
            return SHARD_PHOTOS
        return max(1, min(SHARD_PHOTOS, SHARD_BYTES // (PNG_BYTES_PER_SQUARE_PX * self.resize_px**2)))

    @property
    def parameters(self) -> str:
        """Hash of everything that decides what becomes of a photo."""
        version = 1 if self.resize_px is None else RESIZED_VERSION  # bytes as they are stay what they are
        values = {"verb": "ingest", "version": version, **dataclasses.asdict(self)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestJob(CollectionJob):
    """What `degrain ingest` is asked to do; `ingest` says what of a photo is packed."""

    ingest: IngestConfig = field(default_factory=IngestConfig)


def forecast_ingest(job: IngestJob, options: ForecastOptions) -> Outlook:
    """What `run_ingest` would do now, and what it will take by a sample of the photos. Writes nothing to the target.

    Raises:
        ValueError: see `run_ingest`.
        StorageError: the source cannot be read.
    """
    return look_ahead(ingest_work(job), options, gpus=0)


def run_ingest(job: IngestJob, report: Callable[[Progress], None]) -> Summary:
    """Pack what is new or changed in the source, and publish it in the target.

    The index has a row for each input: packed, skipped (the settings leave it out), or rejected (no photo that could be
    read). A photo that changed is packed anew, into a new shard, to which its row then points; its old bytes stay in
    the old shard, and what reads shards without the index finds both.

    Raises:
        ValueError: the source does not exist or is empty, or the target is otherwise in use.
        DegrainError: the run had to stop; what is committed stays.
    """
    return do_work(ingest_work(job), report)


def pack_photo(data: bytes, key: str, config: IngestConfig, *, room: Room | None = None) -> PhotoResult:
    """What of one photo is packed; or why it is skipped or rejected, and never as an exception.

    Args:
        data: the photo's file.
        key: its key: a file whose name says another format than its content is rejected.
        config: what is packed.
        room: where photos that are decoded at the same time must fit.
    """
    result = PhotoResult(outcome=Outcome.REJECTED)
    with rejecting(result, key):
        result.header = header = inspect(data, name=key, limits=config.limits)
        if not header.format:
            raise PhotoRejected("the file is no photo")
        if (reason := _skip_reason(header, config)) is not None:
            result.outcome, result.reason = Outcome.SKIPPED, reason
            return result
        if config.resize_px is None:
            result.data = data
        else:
            with (room or Room()).taken(COPIES * header.decoded_bytes), timed(result, "encode"):
                small = shrink(data, header, side_px=config.resize_px)
            result.data, result.size_px = small.data, (small.width_px, small.height_px)
        result.outcome = Outcome.PACKED
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestWorkerFactory:
    """All that a worker needs to pack shards: travels to its process, and is called there."""

    source: str
    knows_hashes: bool = False  # as of a `Worker`
    target: str
    config: IngestConfig

    def __call__(self, threads: int) -> Worker:
        source, target = open_store(self.source), ImageSet(open_store(self.target))
        return Worker(source, target, Layout.PACKED, self.recipe(threads), knows_hashes=self.knows_hashes)

    def recipe(self, _threads: int) -> Recipe:  # the codecs take what they need
        return Recipe(
            process=partial(pack_photo, config=self.config, room=Room(PHOTO_BYTES)),
            limits=self.config.limits,
            weights="",
            parameters=self.config.parameters,
        )


def ingest_work(job: IngestJob) -> Work:
    """The life of the run that a job asks for; raises what `run_ingest` does of a wrong one."""
    source, target = open_both(job.source, job.target, key_table=job.key_table, where=job.where)
    workers = job.cluster.workers or usable_cores()
    return Work(
        job=job,
        command="degrain ingest",
        header=PlanHeader(source=source.url, weights="", parameters=job.ingest.parameters),
        write_listing=lambda path: source.write_listing(path, target=target),
        target=ImageSet(target),
        layout=Layout.PACKED,
        outcomes=(Outcome.PACKED, Outcome.SKIPPED, Outcome.REJECTED),
        make_worker=IngestWorkerFactory(
            source=source.url, knows_hashes=source.image_set is not None, target=target.url, config=job.ingest
        ),
        shard_size=ShardSize(
            max_photos=job.ingest.shard_photos, max_bytes=SHARD_BYTES, min_shards=SHARDS_PER_WORKER * workers
        ),
        cluster=dataclasses.replace(job.cluster, use_gpus=False),
        is_subset=job.is_subset,
    )


def _skip_reason(header: Header, config: IngestConfig) -> str | None:
    if (least := config.min_side_px) is not None:
        if not header.pixels:
            return f"its size is not known, and at least {least} pixels are asked for"
        if (side := min(header.width_px or 0, header.height_px or 0)) < least:
            return f"its shorter side has {side} pixels, and at least {least} are asked for"
    if config.resize_px is not None and not can_shrink(header):
        return f"it cannot be resized faithfully: {header.untouched_reason}"
    return None
