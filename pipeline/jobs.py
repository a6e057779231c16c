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

from model.denoiser import Denoiser
from model.weights import Weights, find_shipped, parse_weights, shipped_names
from pipeline.cluster import ClusterConfig, connected, map_shards
from pipeline.denoise import DenoiseConfig, ShardDenoiserFactory, denoise_photo
from pipeline.errors import ImageSetError, ObjectMissing, PhotoRejected, RunFailed
from pipeline.images import promised_format
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
    write_plan,
)
from pipeline.records import Layout, Receipt, ShardPlan
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
        _list(call, Path(name) / LISTING)
        interrupted = [run for run in _interrupted(call.target, Path(name)) if run.header == call.header]
        counts = _plan(call, interrupted, Path(name))
    left = sum(run.left for run in interrupted)
    return dataclasses.replace(counts, planned_photos=counts.planned_photos + min(left, job.limit or left))


def run_denoise(job: DenoiseJob, report: Callable[[Progress], None]) -> Summary:
    """Denoise what is new or changed in the source, and publish it in the target.

    A run that was interrupted goes on under its own frozen plan; what came since is planned beside it.

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
        runs = _take_over(call, folder)
        counts = _plan(call, runs, folder)
        if counts.planned_photos:
            runs.append(_freeze(target, folder / PLAN))
        if not runs:
            return _summary(call, counts, Progress(planned=0), left=0, seconds=0.0, manifest=manifest)

        left = sum(run.left for run in runs)
        progress = Progress(planned=min(left, job.limit or left))
        start_s = time.monotonic()
        try:
            if left:
                progress, start_s = _process(call, runs, progress, report)
        except RunFailed:
            _publish(target, runs)
            raise
        seconds = time.monotonic() - start_s
        manifest = _publish(target, runs)
        summary = _summary(call, counts, progress, left=left, seconds=seconds, manifest=manifest)
        for run in runs:
            if run.is_done:
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
    """A run with its frozen plan, here in a local file, and the shards of it that are committed."""

    name: str
    plan: Path
    committed: set[str]

    @property
    def header(self) -> PlanHeader:
        return read_header(self.plan)

    @property
    def left(self) -> int:
        """Photos that are still to be processed."""
        return count_photos(self.plan, without=self.committed)

    @property
    def is_done(self) -> bool:
        return self.left == 0

    def open_shards(self) -> Iterator[ShardPlan]:
        return (shard for shard in read_shards(self.plan, self.name) if shard.shard not in self.committed)

    def committed_shards(self) -> Iterator[str]:
        return (shard.shard for shard in read_shards(self.plan, self.name) if shard.shard in self.committed)


def _resolve(job: DenoiseJob) -> _Call:
    source, target = open_store(job.source), open_store(job.target)
    if source.url == target.url:
        raise ValueError(f"source and target are both {source.url}: degrain never writes to its source")
    if source.url.startswith(target.url + "/"):
        raise ValueError(f"the source {source.url} lies in the target {target.url}: name a target outside of it")
    weights_bytes, weights = read_weights(job.weights)
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


def _interrupted(target: ImageSet, folder: Path) -> list[_Run]:
    names = target.unfinished_runs()
    committed = target.committed_shards() if names else set()
    runs = []
    for name in names:
        plan = folder / f"{name}.parquet"
        plan.write_bytes(target.read_plan(name))
        runs.append(_Run(name, plan, set(committed)))
    return runs


def _take_over(call: _Call, folder: Path) -> list[_Run]:
    """Interrupted runs to go on with. Those with other settings are ended: what they committed is published."""
    interrupted = _interrupted(call.target, folder)
    for run in interrupted:
        if run.header != call.header:
            call.target.publish(run.name, run.committed_shards())
            call.target.end_run(run.name, {"ended": "superseded by a run with other settings"})
    return [run for run in interrupted if run.header == call.header]


def _plan(call: _Call, interrupted: Sequence[_Run], folder: Path) -> PlanCounts:
    """Plan what the interrupted runs do not hold already."""
    job = call.job
    limit = None if job.limit is None else max(0, job.limit - sum(run.left for run in interrupted))
    options = PlanOptions(**dataclasses.asdict(call.header), retry_failed=job.retry_failed, limit=limit)
    with call.target.local_index() as index:
        return write_plan(folder / LISTING, index, [run.plan for run in interrupted], folder / PLAN, options)


def _freeze(target: ImageSet, plan: Path) -> _Run:
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    target.write_plan(name, plan)
    return _Run(name, plan, set())


def _process(
    call: _Call, runs: Sequence[_Run], progress: Progress, report: Callable[[Progress], None]
) -> tuple[Progress, float]:
    """Do what is open of the runs, up to the limit. Returns what was done, and when the work on photos began."""
    job = call.job
    factory = ShardDenoiserFactory(
        source=call.source.url,
        target=call.target.store.url,
        layout=job.layout,
        weights=call.weights_bytes,
        config=job.denoise,
    )
    shards = _up_to(progress.planned, chain.from_iterable(run.open_shards() for run in runs))
    with connected(job.cluster):
        start_s = time.monotonic()
        report(progress)
        for receipt in map_shards(shards, factory, job.cluster):
            for run in runs:
                run.committed.add(receipt.shard)
            progress = progress.plus(receipt)
            log.info("shard %s: %d photos, %.1f s", receipt.shard, receipt.photos, receipt.seconds)
            report(progress)
            _check_rejected(progress, job.max_rejected_fraction)
    return progress, start_s


def _up_to(limit: int, shards: Iterable[ShardPlan]) -> Iterator[ShardPlan]:
    """Whole shards until they hold `limit` photos."""
    photos = 0
    for shard in shards:
        if photos >= limit:
            return
        photos += len(shard.photos)
        yield shard


def _check_rejected(progress: Progress, max_fraction: float) -> None:
    """Stop as soon as it is certain that too many will have been rejected."""
    if progress.rejected > max_fraction * progress.planned:
        raise RunFailed(
            f"{progress.rejected} of {progress.planned} photos were rejected, more than the allowed share of "
            f"{max_fraction:g}; what is finished stays, and the reasons are in the index"
        )


def _publish(target: ImageSet, runs: Sequence[_Run]) -> Manifest:
    return target.publish(runs[-1].name, chain.from_iterable(run.committed_shards() for run in runs))


def _summary(
    call: _Call, counts: PlanCounts, progress: Progress, *, left: int, seconds: float, manifest: Manifest
) -> Summary:
    """Inputs beyond a limit are left for later, and none of this run's."""
    unplanned = sum(counts.photos.get(status, 0) for status in processed_statuses(call.job.retry_failed))
    inputs = counts.listed_photos - unplanned + counts.planned_photos - (left - min(left, progress.done))
    return Summary(
        inputs=inputs,
        denoised=progress.denoised,
        untouched=progress.untouched,
        rejected=progress.rejected,
        up_to_date=inputs - progress.done,
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


def find_photo(source: str) -> str | None:
    """The source itself where it is one photo and not a collection."""
    root, name = split_url(source)
    if "://" in source:
        is_photo = promised_format(name) is not None and open_store(root).exists(name)
    else:
        is_photo = Path(source).is_file()
    return source if is_photo else None


def denoise_one(source: str, target: str, *, weights: str, config: DenoiseConfig) -> dict[str, object]:
    """Denoise one photo in this process; returns what became of it.

    Args:
        source: the photo.
        target: the file to write, or a folder (there already, or with a `/` at its end) for a file of the same name.
        weights: as for a collection.
        config: strength and limits.

    Raises:
        ValueError: the target is the source, or its name says another format.
        PhotoRejected: the photo cannot be used; nothing is written.
        StorageError: it cannot be read, or the target cannot be written.
    """
    source_root, source_key = split_url(source)
    if target.endswith("/") or ("://" not in target and Path(target).is_dir()):
        target = f"{target.rstrip('/')}/{source_key}"
    target_root, target_key = split_url(target)
    from_store, to_store = open_store(source_root), open_store(target_root)
    if (from_store.url, source_key) == (to_store.url, target_key):
        raise ValueError(f"source and target are both {source}: degrain never writes to its source")
    if promised_format(source_key) != promised_format(target_key):
        raise ValueError(f"degrain keeps the format of a photo: a target for {source_key} cannot be {target_key}")
    _, parsed = read_weights(weights)
    denoiser = Denoiser(parsed)
    data = from_store.read(source_key)
    result = denoise_photo(data, source_key, lambda noisy, strength: denoiser(noisy, strength=strength), config)
    if result.data is None:
        raise PhotoRejected(f"{source}: {result.reason}")
    to_store.write(target_key, result.data)
    to_store.close()
    return {
        "outcome": str(result.outcome),
        "reason": result.reason,
        "output": target,
        "noise_sigma_before": result.noise_sigma_before,
        "noise_sigma_after": result.noise_sigma_after,
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
