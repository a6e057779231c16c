"""Runs in processes of their own, which are killed where a fault point says so; and what a target holds afterwards."""

import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import lease, run
from pipeline.cluster import ClusterConfig, ShardWorker
from pipeline.fault_points import VARIABLE
from pipeline.imageset import MANIFEST
from pipeline.ingest import IngestJob, run_ingest
from pipeline.jobs import DenoiseJob, run_denoise
from pipeline.local_store import LocalStore
from pipeline.records import COLUMNS_OF_THE_WORK, Layout, Receipt, ShardPlan
from pipeline.storage import Store

WORKERS = 2  # that a job asks for: ingest makes its shards so small that all have some

# Processes start with everything imported, from one that has no threads yet.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["pipeline.jobs", "pipeline.object_store"])


class Work(StrEnum):
    """What is run: `denoise` in either layout, or `ingest`."""

    FILES = "files"
    PACKED = "packed"
    INGEST = "ingest"

    @property
    def words(self) -> tuple[str, ...]:
        """Of its command line, without source and target."""
        return ("ingest",) if self == Work.INGEST else ("denoise", "--layout", self)


def run_until(fault: str, source: Path, target: str, work: Work, *, workers: int = 1, limit: int | None = None) -> bool:
    """Do it, without Ray, in a process with a fault; whether it was killed there. Otherwise it ended well."""
    cluster = ClusterConfig(workers=WORKERS)
    job = (
        IngestJob(source=str(source), target=target, limit=limit, cluster=cluster)
        if work == Work.INGEST
        else DenoiseJob(source=str(source), target=target, limit=limit, cluster=cluster, layout=Layout(work))
    )
    process = _processes.Process(target=_run, args=(fault, job, workers, dict(os.environ)))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"the run ended with {process.exitcode}"
    return process.exitcode != 0


def _run(fault: str, job: DenoiseJob | IngestJob, workers: int, environment: Mapping[str, str]) -> None:
    os.environ.update({**environment, VARIABLE: fault})
    lease.RENEWAL_S = 0.01
    run.connected = lambda _: nullcontext()
    run.map_shards = lambda *arguments, **_: _map_shards(*arguments, workers=workers)
    if isinstance(job, IngestJob):
        run_ingest(job, lambda progress: None)
    else:
        run_denoise(job, lambda progress: None)


def _map_shards(
    plans: Iterable[ShardPlan], make_worker: Callable[[int], ShardWorker], _: ClusterConfig, *, workers: int
) -> Iterator[Receipt]:
    """As so many workers of one shard each might: each time the last one of those in work is done first."""
    worker = make_worker(1)
    in_work: list[ShardPlan] = []
    for plan in plans:
        in_work.append(plan)
        if len(in_work) == workers:
            yield worker.run(in_work.pop(), {})
    for plan in in_work:
        yield worker.run(plan, {})


def contents(store: Store) -> dict[str, object]:
    """All that is in a target, without what no two runs share: their names, and how long the work took.

    Photos, packed shards and plans by their bytes; commits and the index by their rows; and each key is accounted for.
    """
    objects = {found.key: store.read(found.key) for found in store.list()}
    manifest = json.loads(objects.pop(MANIFEST))
    index = {key: objects.pop(key) for key in manifest.pop("index")}
    runs = {key: json.loads(objects.pop(key)) for key in list(objects) if key.startswith("runs/")}
    plans = {key: objects.pop(key) for key in list(objects) if key.startswith("plans/")}
    [claim] = [json.loads(objects.pop(key)) for key in list(objects) if key.startswith("lease/")]
    commits = {key: _rows(objects.pop(key)) for key in list(objects) if key.startswith("commits/")}
    assert {Path(key).stem for key in runs} == {Path(key).stem for key in plans}
    assert {ended["ended"] for ended in runs.values()} == {"finished"}
    assert claim["is_released"]
    assert not isinstance(store, LocalStore) or not (store.root / ".degrain-tmp").exists()
    return {
        "manifest": {key: value for key, value in manifest.items() if key not in ("run", "published_at")},
        "index": [_rows(index[key]) for key in index],
        "plans": sorted(plans.values()),
        "commits": commits,
        **objects,
    }


def _rows(parquet: bytes) -> list[dict]:
    rows = pq.read_table(io.BytesIO(parquet)).drop_columns(list(COLUMNS_OF_THE_WORK)).to_pylist()
    return sorted(rows, key=lambda row: row["key"])
