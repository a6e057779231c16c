"""The jobs that degrain does, each a function from its settings to a summary, with progress on the way."""

import dataclasses
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from model.weights import Weights, find_shipped, parse_weights, shipped_names
from pipeline.cluster import ClusterConfig, connected, map_shards
from pipeline.denoise import DenoiseConfig, ShardDenoiserFactory
from pipeline.errors import ImageSetError, ObjectMissing, RunFailed
from pipeline.imageset import ImageSet, Manifest
from pipeline.planning import (
    PlanCounts,
    PlanHeader,
    PlanOptions,
    count_photos,
    processed_statuses,
    read_header,
    read_shards,
    write_listing,
    write_open_part,
    write_plan,
)
from pipeline.records import Layout, Receipt, ShardPlan, Status
from pipeline.storage import Store, open_store, split_url

log = logging.getLogger(__name__)

LISTING, PLAN = "listing.parquet", "plan.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseJob:
    """What `degrain denoise` is asked to do with a collection.

    Attributes:
        source, target: paths or fsspec URLs of a collection of photos, and of the image set to make or go on with.
        weights: name of shipped weights, or a path or URL of a weights file.
        layout: how the target keeps its photos.
        limit: process at most so many photos.
        retry_failed: process inputs again that were rejected before.
        max_rejected_fraction: fail as soon as more than this share of the planned photos is rejected.
    """

    source: str
    target: str
    weights: str = "photo"
    layout: Layout = Layout.FILES
    limit: int | None = None
    retry_failed: bool = False
    max_rejected_fraction: float = 1.0
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: expected at least 1")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction is {self.max_rejected_fraction}: expected a number from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; reported when it starts and after each shard."""

    planned: int
    denoised: int = 0
    untouched: int = 0
    rejected: int = 0
    megapixels: float = 0.0

    @property
    def done(self) -> int:
        return self.denoised + self.untouched + self.rejected

    def plus(self, receipt: Receipt) -> "Progress":
        return dataclasses.replace(
            self,
            denoised=self.denoised + receipt.denoised,
            untouched=self.untouched + receipt.untouched,
            rejected=self.rejected + receipt.rejected,
            megapixels=self.megapixels + receipt.megapixels,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended. `inputs` = `denoised` + `untouched` + `rejected` + `up_to_date`.

    `seconds` is that of the work on photos, without listing, planning and starting the cluster.
    """

    inputs: int
    denoised: int
    untouched: int
    rejected: int
    up_to_date: int
    seconds: float
    megapixels: float
    images_per_second: float
    megapixels_per_second: float
    run: str
    index: str


def plan_denoise(job: DenoiseJob) -> PlanCounts:
    """What a run would do now, what is left of an interrupted one included. Writes nothing to the target.

    Raises:
        ValueError: see `run_denoise`.
    """
    call = _resolve(job)
    call.target.check_for(call.source.url, job.layout)
    with tempfile.TemporaryDirectory(prefix="degrain-") as name:
        folder = Path(name)
        _list(call, folder / LISTING)
        interrupted = _interrupted(call, folder)
        counts = _plan(call, interrupted, folder)
        left = sum(run.left for run in interrupted.resumed)
    return dataclasses.replace(counts, planned_photos=counts.planned_photos + left)


def run_denoise(job: DenoiseJob, report: Callable[[Progress], None]) -> Summary:
    """Denoise what is new or changed in the source, and publish it in the target.

    A run that was interrupted goes on under its own frozen plan; what came since is planned beside it. With a limit, a
    resumed run stops at the end of the shard that reaches it.

    Raises:
        ValueError: the source does not exist or is empty, the weights are unknown, the target is otherwise in use.
        DegrainError: the run had to stop; what is committed stays.
    """
    call = _resolve(job)
    target = call.target
    with tempfile.TemporaryDirectory(prefix="degrain-") as name:
        folder = Path(name)
        _list(call, folder / LISTING)
        target.store.clean()
        manifest = target.open_for(call.source.url, job.layout)
        interrupted = _interrupted(call, folder)
        for run_name, committed in interrupted.committed.items():
            manifest = target.publish(run_name, committed)
        interrupted.committed.clear()
        counts = _plan(call, interrupted, folder)
        runs = interrupted.resumed
        if counts.planned_photos:
            runs.append(_freeze(target, folder / PLAN))
        if counts.is_complete:  # or the next run must still know what they may have left behind
            for run in interrupted.superseded:
                target.end_run(run.name, {"ended": "superseded by a run with other settings"})

        shards = _shards_within(job.limit, runs)
        progress, seconds = Progress(planned=shards.photos), 0.0
        if shards.photos:
            try:
                progress, seconds = _process(call, runs, shards, report)
            except RunFailed:
                _publish(target, runs)
                raise
            manifest = _publish(target, runs)
        summary = _summary(call, counts, progress, seconds, manifest)
        for run in runs:
            if run.left == 0:
                target.end_run(run.name, _facts(call, summary))
        target.store.close()
        return summary


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A job with all that it names opened and read."""

    job: DenoiseJob
    source: Store
    target: ImageSet
    weights_bytes: bytes
    weights: Weights

    @property
    def header(self) -> PlanHeader:
        parameters = self.job.denoise.parameters
        return PlanHeader(source=self.source.url, weights=self.weights.sha256, parameters=parameters)


@dataclass(slots=True)
class _Run:
    """A run, what of its frozen plan was open when we took it up (a local file), and what we committed since."""

    name: str
    plan: Path
    committed: set[str] = field(default_factory=set)

    @property
    def left(self) -> int:
        """Photos that are still to be processed."""
        return count_photos(self.plan, without=self.committed)

    def shards(self) -> Iterator[ShardPlan]:
        return read_shards(self.plan, self.name)


@dataclass(frozen=True, slots=True)
class _Interrupted:
    """Runs that never ended: those to go on with, those with other settings, and the shards that each committed."""

    resumed: list[_Run]
    superseded: list[_Run]
    committed: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class _Shards:
    """Shards to do, read lazily, and how many photos they hold."""

    photos: int
    plans: Iterable[ShardPlan]


def _resolve(job: DenoiseJob) -> _Call:
    source, target = open_store(job.source), open_store(job.target)
    if any(store.url.startswith("memory://") for store in (source, target)):
        raise ValueError(
            "memory:// is seen by one process alone, and the workers are others: name a folder or a bucket"
        )
    if source.url == target.url:
        raise ValueError(f"source and target are both {source.url}: degrain never writes to its source")
    if source.url.startswith(target.url + "/"):
        raise ValueError(f"the source {source.url} lies in the target {target.url}: name a target outside of it")
    weights_bytes, weights = read_weights(job.weights)
    weights.network()  # tensors that do not fit their card are found here, and not by every worker
    return _Call(
        job=job, source=_photos_of(source), target=ImageSet(target), weights_bytes=weights_bytes, weights=weights
    )


def _photos_of(source: Store) -> Store:
    """The photos of an image set, where the source is one, and otherwise the source itself."""
    try:
        manifest = ImageSet(source).read_manifest()
    except ImageSetError:  # a manifest.json of something else
        return source
    if manifest is None:
        return source
    if manifest.layout == Layout.PACKED:
        raise ValueError(f"{source.url} is an image set of layout 'packed': only 'files' can be a source")
    return open_store(f"{source.url}/images")


def _list(call: _Call, path: Path) -> None:
    """Stream the listing of the source to `path`, leaving out a target that lies in it."""
    source_url, target_url = call.source.url + "/", call.target.store.url + "/"
    inside = target_url.removeprefix(source_url) if target_url.startswith(source_url) else None
    listing = (found for found in call.source.list() if inside is None or not found.key.startswith(inside))
    if write_listing(listing, path) == 0:
        raise ValueError(f"there are no photos in {call.source.url}: it is empty, or does not exist")


def _interrupted(call: _Call, folder: Path) -> _Interrupted:
    found = _Interrupted([], [], {})
    names = call.target.unfinished_runs()
    committed = call.target.committed_shards() if names else set()
    for name in names:
        plan, open_part = folder / f"{name}.parquet", folder / f"{name}-open.parquet"
        plan.write_bytes(call.target.read_plan(name))
        write_open_part(plan, committed, open_part)
        shards = [shard.shard for shard in read_shards(plan, name) if shard.shard in committed]
        if shards:
            found.committed[name] = shards
        runs = found.resumed if read_header(plan) == call.header else found.superseded
        runs.append(_Run(name, open_part))
    return found


def _plan(call: _Call, interrupted: _Interrupted, folder: Path) -> PlanCounts:
    """Plan what the interrupted runs do not hold already."""
    job = call.job
    limit = None if job.limit is None else max(0, job.limit - sum(run.left for run in interrupted.resumed))
    options = PlanOptions(header=call.header, retry_failed=job.retry_failed, limit=limit)
    committed = list(chain.from_iterable(interrupted.committed.values()))
    with call.target.local_index(committed) as index:
        return write_plan(
            folder / LISTING,
            index,
            folder / PLAN,
            options,
            pending=[run.plan for run in interrupted.resumed],
            tainted=[run.plan for run in interrupted.superseded],
        )


def _freeze(target: ImageSet, plan: Path) -> _Run:
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    target.write_plan(name, plan)
    return _Run(name, plan)


def _shards_within(limit: int | None, runs: Sequence[_Run]) -> _Shards:
    """The shards of the runs; with a limit, whole ones until they hold so many photos."""
    everything = chain.from_iterable(run.shards() for run in runs)
    if limit is None:
        return _Shards(sum(run.left for run in runs), everything)
    chosen: list[ShardPlan] = []
    photos = 0
    for shard in everything:
        if photos >= limit:
            break
        chosen.append(shard)
        photos += len(shard.photos)
    return _Shards(photos, chosen)


def _process(
    call: _Call, runs: Sequence[_Run], shards: _Shards, report: Callable[[Progress], None]
) -> tuple[Progress, float]:
    """Do the shards. Returns what was done, and the seconds that the work on photos took."""
    job = call.job
    factory = ShardDenoiserFactory(
        source=call.source.url,
        target=call.target.store.url,
        layout=job.layout,
        weights=call.weights_bytes,
        config=job.denoise,
    )
    progress = Progress(planned=shards.photos)
    with connected(job.cluster):
        start = time.monotonic()
        report(progress)
        for receipt in map_shards(shards.plans, factory, job.cluster):
            for run in runs:
                run.committed.add(receipt.shard)
            progress = progress.plus(receipt)
            log.info(
                "shard %s: %d photos, %d bytes read, %d written, %.1f s",
                receipt.shard,
                receipt.photos,
                receipt.bytes_read,
                receipt.bytes_written,
                receipt.seconds,
            )
            report(progress)
            _check_rejected(progress, job.max_rejected_fraction)
        seconds = time.monotonic() - start
    assert progress.done == shards.photos, f"{shards.photos} photos were planned, and {progress.done} came back"
    return progress, seconds


def _check_rejected(progress: Progress, max_fraction: float) -> None:
    """Stop as soon as it is certain that too many will have been rejected."""
    if progress.rejected > max_fraction * progress.planned:
        raise RunFailed(
            f"{progress.rejected} of {progress.planned} photos were rejected, more than the allowed share of "
            f"{max_fraction:g}; what is finished stays, and the reasons are in the index"
        )


def _publish(target: ImageSet, runs: Sequence[_Run]) -> Manifest:
    committed = (shard.shard for run in runs for shard in run.shards() if shard.shard in run.committed)
    return target.publish(runs[-1].name, committed)


def _summary(call: _Call, counts: PlanCounts, progress: Progress, seconds: float, manifest: Manifest) -> Summary:
    """The inputs are those that were done now or before: what lies beyond a limit is left for later."""
    settled = [
        status
        for status in (Status.UP_TO_DATE, Status.FAILED)
        if status not in processed_statuses(call.job.retry_failed)
    ]
    up_to_date = sum(counts.photos.get(status, 0) for status in settled)
    return Summary(
        inputs=progress.done + up_to_date,
        denoised=progress.denoised,
        untouched=progress.untouched,
        rejected=progress.rejected,
        up_to_date=up_to_date,
        seconds=round(seconds, 3),
        megapixels=round(progress.megapixels, 3),
        images_per_second=round(progress.done / seconds, 3) if seconds else 0.0,
        megapixels_per_second=round(progress.megapixels / seconds, 3) if seconds else 0.0,
        run=manifest.run,
        index=f"{call.target.store.url}/index",
    )


def _facts(call: _Call, summary: Summary) -> dict[str, object]:
    """What the run's own record says: all that is needed to repeat it."""
    libraries = ("degrain", "torch", "ray", "pillow", "imagecodecs", "tifffile", "numpy", "pyarrow")
    return {
        "ended": "finished",
        "settings": dataclasses.asdict(call.job),
        "weights": call.weights.sha256,
        "parameters": call.job.denoise.parameters,
        "versions": {name: version(name) for name in libraries},
        **dataclasses.asdict(summary),
    }


def read_weights(name: str) -> tuple[bytes, Weights]:
    """Shipped weights by name, or a weights file by path or URL.

    Raises:
        ValueError: there are none of that name, or the file holds none.
    """
    shipped = find_shipped(name)
    if shipped is None and "/" not in name and not name.endswith(".safetensors"):
        raise ValueError(f"unknown weights '{name}': expected {' or '.join(shipped_names())}, or a path or URL")
    root, key = split_url(str(shipped or name))
    try:
        data = open_store(root).read(key)
    except ObjectMissing as error:
        raise ValueError(f"there are no weights at {name}") from error
    return data, parse_weights(data)
