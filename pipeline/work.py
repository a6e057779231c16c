"""What a run is given to do, how far it is, and how it ended: the values that it takes and tells."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.cluster import ClusterConfig, ShardWorker
from pipeline.collection_job import CollectionJob
from pipeline.imageset import ImageSet
from pipeline.plan_file import PlanHeader
from pipeline.planning import ShardSize
from pipeline.records import Layout, Outcome, Receipt
from pipeline.shard import Recipe


class WorkerFactory(Protocol):
    """Makes the workers of a run: called in each actor's process, so that it must be picklable."""

    def __call__(self, threads: int, /) -> ShardWorker:
        """A worker with so many threads for itself."""

    def recipe(self, threads: int, /) -> Recipe:
        """What such a worker does to each photo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """All in which one verb differs from another.

    Attributes:
        job: what was asked for; the record of the run keeps it, to repeat it.
        command: what the verb is called where another run on the target is refused meanwhile.
        header: where the photos come from, and the hashes of what decides a result.
        write_listing: writes the listing of the source to a file, and returns the number of objects.
        target: the image set to make or go on with.
        layout: how it keeps its photos.
        outcomes: how inputs may end.
        make_worker: makes the workers, in their processes.
        shard_size: how large the unit of work is.
        cluster: where the work is done: as the job says, or without its GPUs.
        is_subset: whether the listing leaves out photos that the source has. What any other one lacks is gone, and what
            became of it in the target is left to `verify`.
        distrusted: a file with `key` and `attempt` of photos that are done again, whatever their rows say: those that
            this attempt or an earlier one made.
    """

    job: CollectionJob
    command: str
    header: PlanHeader
    write_listing: Callable[[Path], int]
    target: ImageSet
    layout: Layout
    outcomes: tuple[Outcome, ...]
    make_worker: WorkerFactory
    cluster: ClusterConfig
    is_subset: bool
    shard_size: ShardSize = field(default_factory=ShardSize)
    distrusted: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; reported when it starts, after each shard, and when photos of shards in work are finished.

    `in_work` counts those last: what becomes of them is not known yet.
    """

    planned: int
    outcomes: dict[Outcome, int]
    megapixels: float = 0.0
    in_work: int = 0

    @property
    def done(self) -> int:
        return sum(self.outcomes.values())

    @property
    def finished(self) -> int:
        return self.done + self.in_work

    @property
    def rejected(self) -> int:
        return self.outcomes[Outcome.REJECTED]

    def plus(self, receipt: Receipt) -> "Progress":
        outcomes = {outcome: count + receipt.outcomes.get(outcome, 0) for outcome, count in self.outcomes.items()}
        return dataclasses.replace(
            self,
            outcomes=outcomes,
            megapixels=self.megapixels + receipt.megapixels,
            in_work=max(0, self.in_work - receipt.photos),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended. `inputs` = the sum of `outcomes` + `up_to_date` + `rejected_before`.

    `seconds` is that of the work on photos, without listing, planning and starting the cluster.
    """

    inputs: int
    outcomes: dict[Outcome, int]
    up_to_date: int
    rejected_before: int
    seconds: float
    megapixels: float
    images_per_second: float
    megapixels_per_second: float
    run: str
    index: str

    def as_dict(self) -> dict[str, object]:
        """The same with a count for each outcome beside the rest, as `--json` prints it."""
        values = dataclasses.asdict(self)
        inputs, outcomes = values.pop("inputs"), values.pop("outcomes")
        return {"inputs": inputs, **{str(outcome): count for outcome, count in outcomes.items()}, **values}
