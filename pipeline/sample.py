"""A sample of the photos of a plan, read and processed on this machine as workers will, without writing anything."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.apart import Apart
from pipeline.cluster import ClusterConfig
from pipeline.errors import ObjectRefused
from pipeline.forecast import ForecastOptions, Machine, Outlook, Sample, SampledPhoto, make_forecast
from pipeline.records import Layout, Outcome, PlannedPhoto
from pipeline.room import usable_cores
from pipeline.run import planned
from pipeline.shard import FILE_BYTES, PhotoResult, promised_name
from pipeline.sources import read_photos
from pipeline.storage import Store, open_store
from pipeline.work import Work

SEED = 0
MAX_BYTES = 256 * 1024**2  # of photos read: they are held until they are processed; one at least is read
MAX_S = 20.0  # after which no other photo is begun
MAX_PARALLEL = 8
COLUMNS = ["key", "size_bytes", "etag", "attempt", "place"]


def look_ahead(work: Work, options: ForecastOptions, *, gpus: int) -> Outlook:
    """What a run would do now, and what it will take by a sample of its photos. Writes nothing to the target.

    Args:
        work: what the run is.
        options: how large a sample, and what is known beside it.
        gpus: of this machine that the work can use.

    Raises:
        ValueError: see `do_work`.
        StorageError, RunFailed: see `try_photos`.
    """
    machine = find_machine(work.cluster, gpus=gpus)
    with planned(work) as (counts, plans):
        sample = None
        if options.sample_photos:
            sample = sample_of(try_photos(work, plans, machine, photos=options.sample_photos), machine)
    forecast = None if sample is None else make_forecast(counts, sample, machine, work.layout, options)
    return Outlook(counts=counts, machine=machine, options=options, sample=sample, forecast=forecast)


def find_machine(config: ClusterConfig, *, gpus: int) -> Machine:
    """What a run is on: this machine, or as many like it as hold its workers, one for each GPU or core."""
    cores = usable_cores()
    workers = config.workers or gpus or cores
    hosts = math.ceil(workers / (gpus or cores))
    return Machine(
        workers=workers,
        cores=cores * hosts,
        gpus=gpus * hosts,
        hosts=hosts,
        shards_per_worker=config.shards_per_worker,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Photos of plans that were read and processed.

    Attributes:
        results: what became of each.
        data: the bytes of those that could be read, by key.
        read_bytes_per_s: speed of reading, all at once; infinite where nothing was read.
        process_s: wall time of the rest.
    """

    results: list[tuple[PlannedPhoto, PhotoResult]]
    data: dict[str, bytes]
    read_bytes_per_s: float
    process_s: float


def sample_of(tried: Tried, machine: Machine) -> Sample | None:
    """What a forecast is made by; None where no photo was tried."""
    if not tried.results:
        return None
    return Sample(
        photos=tuple(_sampled(photo, result) for photo, result in tried.results),
        read_bytes_per_s=tried.read_bytes_per_s,
        is_on_gpu=machine.gpus > 0,
    )


def try_photos(work: Work, plans: Sequence[Path], machine: Machine, *, photos: int) -> Tried:
    """Read and process photos of the plans of a run, drawn at random.

    As many at once as there will be workers on one machine, each in a process of its own, so that they share its cores
    as workers do. It ends early when it takes too long. Photos of more than FILE_BYTES are left out, but for those that
    the recipe refuses by their size.

    Raises:
        StorageError: the source cannot be read.
        RunFailed: the processes end as they begin.
    """
    chosen = draw_photos(plans, photos)
    if not chosen:
        return Tried(results=[], data={}, read_bytes_per_s=math.inf, process_s=0.0)
    make_recipe = work.make_worker.recipe
    limit = make_recipe(machine.threads).limits.max_bytes
    refused = [(photo, f"the file has more than {limit:,} bytes") for photo in chosen if photo.size_bytes > limit]
    readable = [photo for photo in chosen if photo.size_bytes <= min(limit, FILE_BYTES)]
    start = time.perf_counter()
    read = list(_read(open_store(work.header.source), readable))
    read_s = time.perf_counter() - start
    found = [(photo, data) for photo, data in read if isinstance(data, bytes)]
    refused += [(photo, str(data)) for photo, data in read if isinstance(data, ObjectRefused)]
    with ExitStack() as stack:
        apart = [
            stack.enter_context(closing(Apart(make_recipe, machine.threads, timeout_s=work.cluster.photo_timeout_s)))
            for _ in range(_parallel(machine, len(found)))
        ]
        results, process_s = _process(apart, found, work.layout)
    results += [(photo, PhotoResult(outcome=Outcome.REJECTED, reason=reason)) for photo, reason in refused]
    read_bytes = sum(len(data) for _, data in found)
    return Tried(
        results=results,
        data={photo.key: data for photo, data in found},
        read_bytes_per_s=read_bytes / read_s if read_bytes else math.inf,
        process_s=process_s,
    )


def draw_photos(plans: Sequence[Path], count: int) -> list[PlannedPhoto]:
    """Photos of plans, drawn at random, in random order: the same of the same plans."""
    files = [pq.ParquetFile(plan) for plan in plans]
    groups = [(file, number) for file in files for number in range(file.metadata.num_row_groups)]
    sizes = [file.metadata.row_group(number).num_rows for file, number in groups]
    wanted = np.random.default_rng(SEED).choice(sum(sizes), min(count, sum(sizes)), replace=False).tolist()
    found: dict[int, PlannedPhoto] = {}
    first = 0
    for (file, number), size in zip(groups, sizes, strict=True):
        here = [place for place in wanted if first <= place < first + size]
        if here:
            rows = file.read_row_group(number, columns=COLUMNS).take(pa.array([place - first for place in here]))
            photos = (PlannedPhoto(**row) for row in rows.to_pylist())
            found |= dict(zip(here, photos, strict=True))
        first += size
    return [found[place] for place in wanted]


def _parallel(machine: Machine, photos: int) -> int:
    return max(1, min(machine.workers // machine.hosts, MAX_PARALLEL, photos))


def _read(source: Store, photos: Sequence[PlannedPhoto]) -> Iterator[tuple[PlannedPhoto, bytes | ObjectRefused]]:
    """As many as may be held, and one at least."""
    held = 0
    within: list[PlannedPhoto] = []
    for photo in photos:
        held += photo.size_bytes
        if within and held > MAX_BYTES:
            break
        within.append(photo)
    return read_photos(source, within)


def _process(
    apart: Sequence[Callable[[bytes, str], PhotoResult]], photos: Sequence[tuple[PlannedPhoto, bytes]], layout: Layout
) -> tuple[list[tuple[PlannedPhoto, PhotoResult]], float]:
    """Process photos in all processes at once, until the time is up; and the seconds."""
    waiting, lock = iter(photos), Lock()
    warm_up = min(photos, key=lambda photo: len(photo[1]), default=None)
    deadline = math.inf

    def run(process: Callable[[bytes, str], PhotoResult]) -> Iterator[tuple[PlannedPhoto, PhotoResult]]:
        while True:
            with lock:
                following = next(waiting, None)
            if following is None:
                return
            photo, data = following
            yield photo, process(data, promised_name(photo, data, layout))
            if time.monotonic() > deadline:
                return

    with ThreadPoolExecutor(len(apart)) as pool:
        if warm_up is not None:  # the first photo of a process takes longer
            list(pool.map(lambda process: process(warm_up[1], warm_up[0].key), apart))
        start = time.monotonic()
        deadline = start + MAX_S
        results = list(chain.from_iterable(pool.map(lambda process: list(run(process)), apart)))
        return results, time.monotonic() - start


def _sampled(photo: PlannedPhoto, result: PhotoResult) -> SampledPhoto:
    pixels = result.header.pixels if result.header else 0
    return SampledPhoto(
        size_bytes=photo.size_bytes,
        outcome=result.outcome,
        megapixels=pixels / 1e6,
        output_bytes=len(result.data or b""),
        stage_s=result.stage_s,
    )
