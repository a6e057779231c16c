"""Stands for the cluster: a loop in this process that dies where it is told to. And how a target is looked at."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import run, survey
from pipeline.cluster import ClusterConfig, ShardWorker
from pipeline.imageset import ImageSet
from pipeline.local_store import LocalStore
from pipeline.planning import PlanCounts
from pipeline.records import Receipt, ShardPlan
from pipeline.run import planned
from pipeline.work import Work


def plan_work(work: Work) -> PlanCounts:
    """What a run would do now."""
    with planned(work) as (counts, _):
        return counts


class Killed(BaseException):
    """Stands for the death of the process."""


class Loop:
    """Does shards one after the other here."""

    def __init__(self) -> None:
        self.shards = 0
        self.dies_after = 10**9
        self.dies_before_commit = False
        self.config = ClusterConfig()

    @classmethod
    def instead_of_cluster(cls, monkeypatch: pytest.MonkeyPatch) -> "Loop":
        loop = cls()
        for module in (run, survey):
            monkeypatch.setattr(module, "connected", lambda _: nullcontext())
            monkeypatch.setattr(module, "map_shards", loop)
        return loop

    def __call__(
        self,
        plans: Iterable[ShardPlan],
        make_worker: Callable[[int], ShardWorker],
        config: ClusterConfig,
        *,
        on_look: Callable[[int], None],
    ) -> Iterator[Receipt]:
        self.config = config
        worker = make_worker(1)
        for plan in plans:
            if self.shards == self.dies_after:
                self._die(worker, plan)
            yield worker.run(plan, {})
            self.shards += 1

    def _die(self, worker: ShardWorker, plan: ShardPlan) -> None:
        if self.dies_before_commit:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ImageSet, "commit", lambda *_: None)
                worker.run(plan, {})
        raise Killed


def index_of(target: str | Path) -> dict[str, dict]:
    """The published rows by key."""
    folder = Path(target)
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = [row for part in manifest["index"] for row in pq.read_table(folder / part).to_pylist()]
    assert len(rows) == len({row["key"] for row in rows})
    return {row["key"]: row for row in rows}


def photos_of(target: str | Path) -> dict[str, bytes]:
    """The bytes that the index speaks of by key, in whichever layout; sound ones, or this fails."""
    store = LocalStore(Path(target))
    photos = {}
    for key, row in index_of(target).items():
        if row["output_key"] is None:
            continue
        if row["output_key"].startswith("shards/"):
            [found] = pq.read_table(Path(target) / row["output_key"], filters=[("key", "=", key)]).to_pylist()
            photos[key] = found["image"]["bytes"]
        else:
            photos[key] = store.read(row["output_key"])
        assert row["output_sha256"] == hashlib.sha256(photos[key]).hexdigest()
        assert row["output_size_bytes"] == len(photos[key])
    return photos
