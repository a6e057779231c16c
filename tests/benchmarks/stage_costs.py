"""What the stages of a worker and the driver cost, in seconds of CPU; and runs to hold a prediction against.

The processes here have the niceness of Ray's workers, and their threads. They work at the same time, as many
as there will be workers: two of them on one core slow each other down, and that is in their seconds.
"""

import dataclasses
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray
from planning import measure, write_archive
from scale import family

from pipeline import run
from pipeline.bench import Look
from pipeline.cluster import ClusterConfig, ShardWorker, map_shards
from pipeline.connection import connected
from pipeline.denoise import DenoiseConfig, DenoiseWorkerFactory, denoise_photo
from pipeline.forecast import STAGES
from pipeline.imageset import ImageSet
from pipeline.jobs import DenoiseJob, denoise_work, read_weights
from pipeline.local_store import LocalStore
from pipeline.records import Layout, Outcome, PlannedPhoto, Receipt, ShardPlan
from pipeline.room import Room
from pipeline.run import do_work
from pipeline.shard import PHOTO_BYTES, PhotoResult, Recipe, Worker
from pipeline.work import Progress

RAY_NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112  # on top of the driver's
CORES = os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn(DenoiseWorkerFactory):
    """In place of the network, something that one photo at a time waits for, as for a GPU; the photo stays as it is."""

    network_s: float

    def recipe(self, threads: int) -> Recipe:
        gpu, room = threading.Lock(), Room(PHOTO_BYTES)

        def wait(noisy: NDArray[Any], _: object) -> NDArray[Any]:
            with gpu:
                time.sleep(self.network_s)
            return noisy

        def process(data: bytes, key: str) -> PhotoResult:
            return denoise_photo(data, key, wait, self.config, room=room)

        return dataclasses.replace(DenoiseWorkerFactory.recipe(self, threads), process=process)


def factory_for(source: str, target: str, gpu_s: float | None) -> DenoiseWorkerFactory:
    """The one of `degrain denoise --strength 1`, or with a stand-in for a GPU that takes so long for a photo."""
    weights, _ = read_weights("photo")
    config = DenoiseConfig(strength=1.0)
    values: dict[str, Any] = {"source": source, "target": target, "layout": Layout.FILES}
    values |= {"weights": weights, "config": config}
    return DenoiseWorkerFactory(**values) if gpu_s is None else StandIn(**values, network_s=gpu_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """Means of photos: seconds of CPU, of each of its threads for the network; `write_s` is waited for the disk."""

    before_s: float
    network_s: float
    after_s: float
    write_s: float
    commit_s: float
    source_bytes: float
    output_bytes: float
    decoded_bytes: float


def measure_stages(photos: Path, *, processes: int, threads: int, gpu_s: float | None = None) -> StageCosts:
    """Of photos that so many processes work on at once, each on all of them, as workers with so many threads."""
    context = multiprocessing.get_context("spawn")
    barrier, pipes, children = context.Barrier(processes), [], []
    with environment(OMP_NUM_THREADS=str(threads)):
        for _ in range(processes):
            ours, theirs = context.Pipe()
            children.append(context.Process(target=_measure, args=(photos, threads, gpu_s, barrier, theirs)))
            children[-1].start()
            theirs.close()
            pipes.append(ours)
        found: list[StageCosts] = [pipe.recv() for pipe in pipes]
        for child in children:
            child.join()
    fields = [each.name for each in dataclasses.fields(StageCosts)]
    return StageCosts(**{name: float(np.mean([getattr(each, name) for each in found])) for name in fields})


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _measure(photos: Path, threads: int, gpu_s: float | None, barrier: Barrier, told: Connection) -> None:
    """In a process of its own: what the worker takes for all photos, split as the stages of one after the other are."""
    os.nice(RAY_NICENESS)
    with tempfile.TemporaryDirectory() as folder:
        recipe = factory_for(str(photos), folder, gpu_s).recipe(threads)
        source, target = LocalStore(photos), ImageSet(LocalStore(Path(folder)))
        worker = Worker(source, target, Layout.FILES, recipe)
        planned = tuple(PlannedPhoto(one.key, one.size_bytes, one.etag, 1) for one in source.list())
        worker.run(ShardPlan("warm-up", "run", planned[:2]), {})
        barrier.wait()
        results = [recipe.process(source.read(photo.key), photo.key) for photo in planned]
        start = time.process_time()
        worker.run(ShardPlan("all", "run", planned), {})
        worker_s = time.process_time() - start
        start = time.process_time()
        for number in range(COMMITS):
            worker.run(ShardPlan(f"empty-{number}", "run", ()), {})
        commit_s = (time.process_time() - start) / COMMITS
        waited_s = None if gpu_s is None else _wait_as_for_a_gpu(gpu_s)
        write_s = ds.dataset(Path(folder) / "commits/all.parquet").to_table()["write_s"].to_numpy().min()
    stage_s = {stage: float(np.mean([result.stage_s[stage] for result in results])) for stage in STAGES}
    # Beside a GPU, cores still have the estimate.
    estimate_s = 0.0 if waited_s is None else max(0.0, stage_s.pop("denoise") - waited_s)
    network_s = stage_s.pop("denoise", 0.0)
    cpu_share = ((worker_s - commit_s) / len(planned)) / (estimate_s + threads * network_s + sum(stage_s.values()))
    header = results[0].header
    assert header is not None
    costs = StageCosts(
        before_s=cpu_share * (stage_s["decode"] + estimate_s),
        network_s=cpu_share * network_s if waited_s is None else waited_s,
        after_s=cpu_share * (stage_s["measure"] + stage_s["encode"]),
        write_s=float(write_s),
        commit_s=commit_s,
        source_bytes=float(np.mean([photo.size_bytes for photo in planned])),
        output_bytes=float(np.mean([len(result.data or b"") for result in results])),
        decoded_bytes=header.decoded_bytes,
    )
    told.send(costs)


COMMITS, WAITS = 20, 10


def _wait_as_for_a_gpu(gpu_s: float) -> float:
    """What it takes on average to sleep for so long, on a machine where a thread that wakes may have to wait."""
    start = time.perf_counter()
    for _ in range(WAITS):
        time.sleep(gpu_s)
    return (time.perf_counter() - start) / WAITS


@contextmanager
def one_ray() -> Iterator[None]:
    """One Ray for all runs inside: what its start takes is in none of their seconds."""
    with connected(None), patch.object(run, "connected", lambda _: nullcontext()):
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run that was made.

    Attributes:
        seconds: as it reports them.
        worker_cpu_s: seconds of CPU that its workers took.
        free_cores: cores that all else on the machine (others, and what is no worker of the run) left, on average.
        finished_s: when each photo was finished, those of lost shards not included.
        inputs: photos that ended as rows.
    """

    seconds: float
    worker_cpu_s: float
    free_cores: float
    finished_s: tuple[float, ...]
    inputs: int


def make_run(
    source: Path, target: Path, *, workers: int, gpu_s: float | None = None, killed_at: int | None = None
) -> Measured:
    """Run `degrain denoise --strength 1 --workers N` in this process; a worker is killed when so many are finished."""
    job = DenoiseJob(
        source=str(source),
        target=str(target),
        denoise=DenoiseConfig(strength=1.0),
        cluster=ClusterConfig(workers=workers),
    )
    work = denoise_work(job)
    factory = work.make_worker
    assert isinstance(factory, DenoiseWorkerFactory)
    work = dataclasses.replace(work, make_worker=factory_for(factory.source, factory.target, gpu_s))
    watch = Watch()
    killed: list[int] = []

    def report(progress: Progress) -> None:
        watch.begin()
        if killed_at is not None and not killed and progress.finished >= killed_at:
            killed.append(next(iter(watch.workers())))
            os.kill(killed[0], signal.SIGKILL)

    with watch:
        summary = do_work(work, report)
    assert summary.outcomes[Outcome.DENOISED] == summary.inputs
    assert (killed_at is None) == (not killed)
    at = ds.dataset(target / "index").to_table(columns=["finished_at"])["finished_at"].to_pylist()
    return Measured(
        seconds=summary.seconds,
        worker_cpu_s=watch.worker_cpu_s,
        free_cores=watch.free_cores,
        finished_s=tuple(sorted(each.timestamp() - watch.began_at for each in at)),
        inputs=summary.inputs,
    )


class Watch:
    """Who takes the machine's cores, from `begin` to the end of the context."""

    def __init__(self) -> None:
        self.began_at = 0.0
        self.free_cores = 0.0
        self._first: dict[int, float] = {}  # seconds of CPU of processes that were there before
        self._last: dict[int, float] = {}  # and of workers, when they were last seen
        self._busy_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self.began_at:
            self._thread.join()

    @property
    def worker_cpu_s(self) -> float:
        return sum(cpu_s - self._first.get(pid, 0.0) for pid, cpu_s in self._last.items())

    def begin(self) -> None:
        """The first call counts."""
        if self.began_at:
            return
        self.began_at, self._busy_s = time.time(), busy_s()
        self._first = {pid: cpu_s for pid, (_, cpu_s) in self._look().items()}
        self._thread.start()

    def workers(self) -> dict[int, float]:
        """Workers that live, and the seconds of CPU that each has taken."""
        return {pid: cpu_s for pid, (role, cpu_s) in self._look().items() if role == "worker"}

    def _look(self) -> dict[int, tuple[str, float]]:
        found = {}
        for pid, role, _ in family(os.getpid()):
            if fields := _fields(Path(f"/proc/{pid}/stat")):
                found[pid] = (role, (int(fields[11]) + int(fields[12])) / TICKS_PER_S)
        return found

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_S):
            if workers := self.workers():  # and not when they are being stopped
                self._last |= workers
                others_s = busy_s() - self._busy_s - self.worker_cpu_s
                self.free_cores = CORES - max(0.0, others_s) / (time.time() - self.began_at)


LOOK_S = 0.25
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """Seconds that the cores of this machine have worked, or were taken by others of its host."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def _fields(path: Path) -> list[str]:
    """Of a process, from its state on; none if it has ended."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


class IdleWorker:
    """Does nothing: what is left is what the driver does."""

    def look(self) -> Look:
        return Look()

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt:
        return Receipt(
            shard=plan.shard,
            outcomes={Outcome.DENOISED: len(plan.photos)},
            megapixels=0.0,
            bytes_read=0,
            bytes_written=0,
            seconds=0.0,
        )

    def probe(self, photo: PlannedPhoto) -> None: ...


def make_idle(threads: int) -> ShardWorker:
    return IdleWorker()


def measure_receipts(workers: Sequence[int], *, shards: int, photos: int) -> dict[int, float]:
    """Seconds of the driver's CPU for each shard, by the number of workers, which do nothing."""
    planned = tuple(PlannedPhoto(f"2019/07/IMG_{number:04}.jpg", 5_000_000, "etag" * 8, 1) for number in range(photos))
    found = {}
    with one_ray():
        for count in workers:
            config = ClusterConfig(workers=count)
            plans = (ShardPlan(f"{number:032}", "run", planned) for number in range(shards))
            start, done = 0.0, 0
            for done, _ in enumerate(map_shards(plans, make_idle, config)):
                if done == shards // 5:  # all workers have started
                    start = time.process_time()
            assert done == shards - 1
            found[count] = (time.process_time() - start) / (shards - shards // 5)
    return found


def measure_archives(photos: Sequence[int]) -> dict[int, dict[str, float]]:
    """Seconds of CPU to plan archives of so many photos, and to publish 1 % of them, each in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for size in photos:
            folder = Path(name) / str(size)
            write_archive(folder, size)
            found[size] = {mode: float(_in_process(mode, folder)["cpu_s"]) for mode in ("first", "update", "publish")}
    return found


def _in_process(mode: str, folder: Path) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (mode, folder))
