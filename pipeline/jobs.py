"""The jobs that degrain does, each a function from its settings to a summary, with progress on the way."""

import dataclasses
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from model.denoiser import Denoiser
from model.weights import Weights, find_shipped, parse_weights, shipped_names
from pipeline.cluster import ClusterConfig, connected, map_shards
from pipeline.denoise import DenoiseConfig, ShardDenoiserFactory, denoise_photo
from pipeline.errors import ObjectMissing, PhotoRejected, RunFailed
from pipeline.images import promised_format
from pipeline.imageset import ImageSet, Manifest
from pipeline.planning import PlanCounts, PlanHeader, PlanOptions, read_header, read_shards, write_listing, write_plan
from pipeline.records import Layout, Receipt, ShardPlan, SourceObject, Status
from pipeline.storage import Store, open_store, split_url

log = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class _Run:
    """A run with its frozen plan, here in a local file; `done` are the shards that it need not do again."""

    name: str
    plan: Path
    done: frozenset[str]

    def shards(self) -> Iterable[ShardPlan]:
        return (shard for shard in read_shards(self.plan, self.name) if shard.shard not in self.done)

    def all_shards(self) -> Iterable[str]:
        return (shard.shard for shard in read_shards(self.plan, self.name))


def plan_denoise(job: DenoiseJob) -> PlanCounts:
    """What a run would do now. Writes nothing to the target.

    Raises:
        ValueError: see `run_denoise`.
    """
    source, target = _open_both(job)
    _, weights = read_weights(job.weights)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="degrain-")))
        index = stack.enter_context(target.local_index())
        pending = [run.plan for run in _unfinished(target, _header(job, weights), folder)]
        _list(source, target.store, folder / "listing.parquet")
        return write_plan(folder / "listing.parquet", index, pending, folder / "plan.parquet", _options(job, weights))


def run_denoise(job: DenoiseJob, report: Callable[[Progress], None]) -> Summary:
    """Denoise what is new or changed in the source, and publish it in the target.

    A run that was interrupted goes on under its own frozen plan; what came since is planned beside it.

    Raises:
        ValueError: the source does not exist or is empty, the weights are unknown, the target is otherwise in use.
        DegrainError: the run had to stop; what is committed stays.
    """
    source, target = _open_both(job)
    weights_bytes, weights = read_weights(job.weights)
    header = _header(job, weights)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="degrain-")))
        listed = _list(source, target.store, folder / "listing.parquet")
        target.store.clean()
        manifest = target.open_for(source.url, job.layout)
        _close_others(target, header, folder)

        runs = _unfinished(target, header, folder)
        with target.local_index() as index:
            plan = folder / "plan.parquet"
            counts = write_plan(
                folder / "listing.parquet", index, [run.plan for run in runs], plan, _options(job, weights)
            )
        if counts.planned_photos:
            runs.append(_freeze(target, plan))
        if not runs:
            return _summary(listed, Progress(planned=0), 0.0, manifest)

        todo = sum(len(shard.photos) for run in runs for shard in run.shards())
        progress = Progress(planned=todo)
        seconds = 0.0
        if todo:
            factory = ShardDenoiserFactory(
                source=job.source, target=job.target, layout=job.layout, weights=weights_bytes, config=job.denoise
            )
            stack.enter_context(connected(job.cluster))
            start = time.monotonic()
            report(progress)
            for receipt in map_shards(chain.from_iterable(run.shards() for run in runs), factory, job.cluster):
                progress = progress.plus(receipt)
                log.info("shard %s: %d photos, %.1f s", receipt.shard, receipt.photos, receipt.seconds)
                report(progress)
                _check_rejected(progress, job.max_rejected_fraction)
            seconds = time.monotonic() - start
        manifest = target.publish(runs[-1].name, chain.from_iterable(run.all_shards() for run in runs))
        summary = _summary(_inputs(listed, counts, job), progress, seconds, manifest)
        for run in runs:
            target.end_run(run.name, _facts(job, weights, summary))
        target.store.close()
        return summary


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


def _open_both(job: DenoiseJob) -> tuple[Store, ImageSet]:
    source, target = open_store(job.source), open_store(job.target)
    if source.url == target.url:
        raise ValueError(f"source and target are both {source.url}: degrain never writes to its source")
    if source.url.startswith(target.url + "/"):
        raise ValueError(f"the source {source.url} lies in the target {target.url}: name a target outside of it")
    return source, ImageSet(target)


def _list(source: Store, target: Store, path: Path) -> int:
    """Stream the listing of the source to `path`, leaving out a target that lies in it."""
    inside = target.url.removeprefix(source.url + "/") + "/" if target.url.startswith(source.url + "/") else None
    listing: Iterable[SourceObject] = source.list()
    count = write_listing((found for found in listing if inside is None or not found.key.startswith(inside)), path)
    if count == 0:
        raise ValueError(f"there are no photos in {source.url}: it is empty, or does not exist")
    return count


def _header(job: DenoiseJob, weights: Weights) -> PlanHeader:
    return PlanHeader(source=open_store(job.source).url, weights=weights.sha256, parameters=job.denoise.parameters)


def _options(job: DenoiseJob, weights: Weights) -> PlanOptions:
    header = _header(job, weights)
    return PlanOptions(**dataclasses.asdict(header), retry_failed=job.retry_failed, limit=job.limit)


def _unfinished(target: ImageSet, header: PlanHeader, folder: Path) -> list[_Run]:
    """Interrupted runs that did the same work as is wanted now."""
    return [run for run in _interrupted(target, folder) if read_header(run.plan) == header]


def _close_others(target: ImageSet, header: PlanHeader, folder: Path) -> None:
    """Publish what interrupted runs with other settings committed, and end them: nobody will go on with them."""
    for run in _interrupted(target, folder):
        if read_header(run.plan) != header:
            target.publish(run.name, [shard for shard in run.all_shards() if shard in run.done])
            target.end_run(run.name, {"ended": "superseded by a run with other settings"})


def _interrupted(target: ImageSet, folder: Path) -> list[_Run]:
    runs = []
    names = target.unfinished_runs()
    done = frozenset(target.committed_shards()) if names else frozenset()
    for name in names:
        plan = folder / f"{name}.parquet"
        plan.write_bytes(target.read_plan(name))
        runs.append(_Run(name, plan, done))
    return runs


def _freeze(target: ImageSet, plan: Path) -> _Run:
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    target.write_plan(name, plan)
    return _Run(name, plan, frozenset())


def _check_rejected(progress: Progress, max_fraction: float) -> None:
    """Stop as soon as it is certain that too many will have been rejected."""
    if progress.rejected > max_fraction * progress.planned:
        raise RunFailed(
            f"{progress.rejected} of {progress.planned} photos were rejected, more than the allowed share of "
            f"{max_fraction:g}; what is finished stays, and the reasons are in the index after the next run"
        )


def _inputs(listed: int, counts: PlanCounts, job: DenoiseJob) -> int:
    """The inputs that this run answers for: with a limit, those beyond it are left for later."""
    wanted = [Status.NEW, Status.CHANGED, Status.STALE, *([Status.FAILED] if job.retry_failed else [])]
    return listed - sum(counts.photos.get(status, 0) for status in wanted) + counts.planned_photos


def _summary(inputs: int, progress: Progress, seconds: float, manifest: Manifest) -> Summary:
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
        index=manifest.index[0].rsplit("/", 1)[0] if manifest.index else "",
    )


def _facts(job: DenoiseJob, weights: Weights, summary: Summary) -> dict[str, object]:
    """What the run's own record says: all that is needed to repeat it."""
    libraries = ("degrain", "torch", "ray", "pillow", "imagecodecs", "tifffile", "numpy", "pyarrow")
    return {
        "ended": "finished",
        "settings": dataclasses.asdict(job),
        "weights": weights.sha256,
        "parameters": job.denoise.parameters,
        "versions": {name: version(name) for name in libraries},
        **dataclasses.asdict(summary),
    }
