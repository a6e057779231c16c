"""The life of a run, whatever its verb: list, compare, freeze the plan, do its shards, commit, publish, record the end.

What is committed stays, whatever happens: a run that was interrupted goes on under its own frozen plan.
"""

import dataclasses
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

from pipeline.cluster import map_shards
from pipeline.connection import connected
from pipeline.errors import RunFailed, RunStopped
from pipeline.fault_points import FaultPoint, fault_point
from pipeline.imageset import ImageSet
from pipeline.lease import is_given_up
from pipeline.manifest import Manifest
from pipeline.meters import Meters
from pipeline.plan_file import count_photos, read_header, read_shard_sizes, read_shards, write_open_part
from pipeline.planning import (
    Earlier,
    PlanCounts,
    PlanOptions,
    amount_of,
    count_outside_sample,
    find_twins,
    is_overtaken,
    write_plan,
)
from pipeline.records import Layout, ShardPlan, Status
from pipeline.scratch import scratch_folder
from pipeline.work import Progress, Summary, Work

log = logging.getLogger(__name__)

LISTING, PLAN = "listing.parquet", "plan.parquet"
LIBRARIES = ("degrain", "torch", "ray", "pillow", "imagecodecs", "isal", "numpy", "pyarrow")


@contextmanager
def planned(work: Work) -> Iterator[tuple[PlanCounts, list[Path]]]:
    """What a run would do now, and the plans that it would do, as local files for as long as the context lasts.

    What is left of an interrupted one is included. Writes nothing to the target.

    Raises:
        ValueError: see `do_work`.
    """
    _check_verb(work, work.target.check_for(work.header.source, work.layout))
    with scratch_folder() as folder:
        _list(work, folder / LISTING)
        interrupted = _find_interrupted(work, folder)
        counts = _plan(work, interrupted, folder)
        unfinished = len(interrupted.resumed) + len(interrupted.superseded)
        counts = dataclasses.replace(counts, unfinished_runs=unfinished)
        for run in interrupted.resumed:
            counts = dataclasses.replace(
                counts,
                planned=counts.planned + amount_of(run.plan),
                shards=counts.shards + len(read_shard_sizes(run.plan)),
            )
        yield counts, [*(run.plan for run in interrupted.resumed), folder / PLAN]


def do_work(work: Work, report: Callable[[Progress], None]) -> Summary:
    """Process what is new or changed in the source, and publish it in the target.

    A run that was interrupted goes on under its own frozen plan; what came since is planned beside it. With a limit, a
    resumed run stops at the end of the shard that reaches it.

    Raises:
        ValueError: the source does not exist or is empty, or the target is otherwise in use.
        TargetInUse: another run is at work on the target.
        DegrainError: the run had to stop; what is committed stays.
    """
    work.target.refuse_if_in_use()
    manifest = work.target.check_for(work.header.source, work.layout)
    _check_verb(work, manifest)
    with scratch_folder() as folder:
        _list(work, folder / LISTING)
        if manifest.run and is_given_up(work.target.store) and not work.target.unfinished_runs():
            counts = _plan(work, _Interrupted([], [], {}), folder)
            if not counts.planned_photos:  # the target stays as it is, without a trace of this run
                return _summary(work, counts, _no_progress(work), 0.0, manifest)
        with work.target.leased(work.command, is_outlived=work.cluster.outlives_us):
            try:
                return _do_listed(work, folder, report)
            except KeyboardInterrupt as interrupt:
                stays = "interrupted: what is finished stays, and the same command does the rest"
                raise KeyboardInterrupt(stays) from interrupt


def _do_listed(work: Work, folder: Path, report: Callable[[Progress], None]) -> Summary:
    """`do_work`, while nobody else writes to the target, with the listing in a folder."""
    target = work.target
    manifest = target.open_for(work.header.source, work.layout)
    _check_verb(work, manifest)
    interrupted = _find_interrupted(work, folder)
    for run_name, committed in interrupted.committed.items():
        manifest = target.publish(run_name, committed)
        _check_verb(work, manifest)
    interrupted.committed.clear()
    counts = _plan(work, interrupted, folder)
    runs = interrupted.resumed
    if counts.planned_photos:
        runs.append(_freeze(target, folder / PLAN))
    if counts.is_complete:  # or the next run must still know what they may have left behind
        for run in interrupted.superseded:
            if work.layout == Layout.PACKED:
                target.discard(read_shard_sizes(run.plan))
            target.end_run(run.name, {"ended": "superseded by a run with other settings"})

    shards = _shards_within(work.job.limit, runs)
    progress = _no_progress(work, planned=shards.photos)
    gate = _Gate.of(work, counts)
    gate.check(progress)
    seconds = 0.0
    if shards.photos:
        try:
            progress, seconds = _process(work, runs, shards, progress, report, gate=gate)
        except RunFailed:
            _publish(target, runs)
            raise
        fault_point(FaultPoint.WORK_DONE)
        manifest = _publish(target, runs)
    summary = _summary(work, counts, progress, seconds, manifest)
    for run in runs:
        if run.left == 0:
            target.end_run(run.name, _facts(work, summary))
    return summary


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
    """Runs that never ended: those to go on with, those given up, and the shards that each committed."""

    resumed: list[_Run]
    superseded: list[_Run]
    committed: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class _Shards:
    """Shards to do, read lazily, and how many photos they hold."""

    photos: int
    plans: Iterable[ShardPlan]


def _check_verb(work: Work, manifest: Manifest) -> None:
    """An image set is made by one verb: another one would do everything in it again."""
    strange = [outcome for outcome in manifest.counts if outcome not in work.outcomes]
    if strange:
        raise ValueError(
            f"{work.target.store.url} holds photos that are {' or '.join(strange)}, which another command made: "
            "name another target"
        )


def _list(work: Work, path: Path) -> None:
    if work.write_listing(path) == 0:
        if work.job.where:
            raise ValueError(f"no photo of {work.header.source} fulfils {work.job.where!r}")
        raise ValueError(f"there are no photos in {work.header.source}: it is empty, or does not exist")


def _find_interrupted(work: Work, folder: Path) -> _Interrupted:
    found = _Interrupted([], [], {})
    names = work.target.unfinished_runs()
    committed = work.target.committed_shards() if names else set()
    for name in names:
        plan, open_part = folder / f"{name}.parquet", folder / f"{name}-open.parquet"
        with work.target.saying_what_to_do():
            plan.write_bytes(work.target.read_plan(name))
        write_open_part(plan, committed, open_part)
        shards = [shard for shard in read_shard_sizes(plan) if shard in committed]
        if shards:
            found.committed[name] = shards
        runs = found.resumed if read_header(plan) == work.header else found.superseded
        runs.append(_Run(name, open_part))
    return found


def _give_up_overtaken(interrupted: _Interrupted, index: Sequence[Path]) -> None:
    """A run with other settings has done a part of their work meanwhile: what they would do now is no longer newer."""
    for run in [run for run in interrupted.resumed if is_overtaken(run.plan, index)]:
        interrupted.resumed.remove(run)
        interrupted.superseded.append(run)


def _check_within_sample(work: Work, plan: Path) -> None:
    """A sample goes on with a sample that was interrupted, and not with a whole run: that is no sample any more."""
    sample = work.job.sample
    if sample is not None and count_outside_sample(plan, sample) > 1:  # one may have been "at least one"
        raise ValueError(
            f"a run of {work.target.store.url} was interrupted, and has {count_photos(plan):,} photos to do: "
            "go on with it without a sample"
        )


def _refuse_twins(work: Work, listing: Path, index: Sequence[Path]) -> None:
    """Of two photos with one name, the second would replace the first."""
    if work.layout == Layout.FILES and work.target.ignores_case() and (twins := find_twins(listing, index)):
        raise ValueError(
            f"{work.target.store.url} lies where upper and lower case are the same, and {' and '.join(twins)} would be "
            "one file: name another target, on another file system or with the layout 'packed'"
        )


def _plan(work: Work, interrupted: _Interrupted, folder: Path) -> PlanCounts:
    """Plan what the interrupted runs that go on do not hold already."""
    committed = list(chain.from_iterable(interrupted.committed.values()))
    with work.target.local_index(committed) as index:
        _refuse_twins(work, folder / LISTING, index)
        _give_up_overtaken(interrupted, index)
        for run in interrupted.resumed:
            _check_within_sample(work, run.plan)
        limit = work.job.limit
        if limit is not None:
            limit = max(0, limit - sum(run.left for run in interrupted.resumed))
        options = PlanOptions(
            header=work.header,
            command=work.command,
            retry_failed=work.job.retry_failed,
            sample=work.job.sample,
            limit=limit,
            is_subset=work.is_subset,
            lists_gone=work.job.key_table is not None,  # it may hold photos that the source no longer has
            shard_size=work.shard_size,
        )
        earlier = Earlier(
            done=index,
            pending=[run.plan for run in interrupted.resumed],
            tainted=[*(run.plan for run in interrupted.superseded), *([work.distrusted] if work.distrusted else [])],
            runs=[run.name for run in interrupted.resumed],
        )
        return write_plan(folder / LISTING, earlier, folder / PLAN, options)


def _freeze(target: ImageSet, plan: Path) -> _Run:
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    target.write_plan(name, plan)
    return _Run(name, plan)


def _shards_within(limit: int | None, runs: Sequence[_Run]) -> _Shards:
    """The shards of the runs; with a limit, whole ones until they hold so many photos."""
    everything = chain.from_iterable(run.shards() for run in runs)
    if limit is None:
        return _Shards(sum(run.left for run in runs), everything)
    photos = count = 0
    for size in chain.from_iterable(read_shard_sizes(run.plan).values() for run in runs):
        if photos >= limit:
            break
        photos, count = photos + size, count + 1
    return _Shards(photos, islice(everything, count))


def _process(
    work: Work,
    runs: Sequence[_Run],
    shards: _Shards,
    progress: Progress,
    report: Callable[[Progress], None],
    *,
    gate: "_Gate",
) -> tuple[Progress, float]:
    """Do the shards. Returns what was done, and the seconds that the work on photos took."""
    with connected(work.cluster.address):
        start = time.monotonic()
        meters = Meters(work.command.removeprefix("degrain "))
        report(progress)

        def look(in_work: int) -> None:
            nonlocal progress
            work.target.check_lease()
            if in_work != progress.in_work:
                progress = dataclasses.replace(progress, in_work=in_work)
                report(progress)

        for receipt in map_shards(shards.plans, work.make_worker, work.cluster, on_look=look):
            for run in runs:
                run.committed.add(receipt.shard)
            progress = progress.plus(receipt)
            meters.count(receipt)
            log.info(
                "shard %s: %d photos, %d bytes read, %d written, %.1f s",
                receipt.shard,
                receipt.photos,
                receipt.bytes_read,
                receipt.bytes_written,
                receipt.seconds,
            )
            report(progress)
            fault_point(FaultPoint.RECEIPT_TAKEN)
            gate.check(progress)
        seconds = time.monotonic() - start
    assert progress.done == shards.photos, f"{shards.photos} photos were planned, and {progress.done} came back"
    return progress, seconds


def _no_progress(work: Work, planned: int = 0) -> Progress:
    return Progress(planned=planned, outcomes=dict.fromkeys(work.outcomes, 0))


@dataclass(frozen=True, slots=True)
class _Gate:
    """Stops a run of which too many photos are rejected: of all its plan, however often it was taken up again.

    `done_before` and `rejected_before` are photos of that plan that are not planned again.
    """

    max_fraction: float
    done_before: int
    rejected_before: int

    @classmethod
    def of(cls, work: Work, counts: PlanCounts) -> "_Gate":
        failed = 0 if work.job.retry_failed else counts.of_runs.get(Status.FAILED, 0)
        return cls(work.job.max_rejected_fraction, counts.of_runs.get(Status.UP_TO_DATE, 0) + failed, failed)

    def check(self, progress: Progress) -> None:
        """Stop as soon as it is certain that too many will have been rejected.

        Raises:
            RunStopped: they will.
        """
        rejected, planned = self.rejected_before + progress.rejected, self.done_before + progress.planned
        if planned and rejected / planned > self.max_fraction:  # their product may be a little less than a whole number
            raise RunStopped(
                f"{rejected} of {planned} photos were rejected, more than the allowed share of "
                f"{self.max_fraction:g}; what is finished stays, and the reasons are in the index "
                "(--retry-failed tries them again)"
            )


def _publish(target: ImageSet, runs: Sequence[_Run]) -> Manifest:
    committed = (shard for run in runs for shard in read_shard_sizes(run.plan) if shard in run.committed)
    return target.publish(runs[-1].name, committed)


def _summary(work: Work, counts: PlanCounts, progress: Progress, seconds: float, manifest: Manifest) -> Summary:
    """The inputs are those that were done now or before: what lies beyond a limit is left for later."""
    up_to_date = counts.photos.get(Status.UP_TO_DATE, 0)
    rejected_before = counts.photos.get(Status.FAILED, 0) - counts.retried
    return Summary(
        inputs=progress.done + up_to_date + rejected_before,
        outcomes=progress.outcomes,
        up_to_date=up_to_date,
        rejected_before=rejected_before,
        seconds=round(seconds, 3),
        megapixels=round(progress.megapixels, 3),
        images_per_second=round(progress.done / seconds, 3) if seconds else 0.0,
        megapixels_per_second=round(progress.megapixels / seconds, 3) if seconds else 0.0,
        run=manifest.run,
        index=f"{work.target.store.url}/index",
    )


def _facts(work: Work, summary: Summary) -> dict[str, object]:
    """What the run's own record says: all that is needed to repeat it."""
    return {
        "ended": "finished",
        "settings": dataclasses.asdict(work.job),
        "weights": work.header.weights,
        "parameters": work.header.parameters,
        "versions": {name: version(name) for name in LIBRARIES},
        **summary.as_dict(),
    }
