"""Map shard plans over the actors of a Ray cluster: bounded, retried, watched.

What we add to Ray is "which shard next" and "what to do when a worker dies", no more. Of the latter, `cases` decides.
"""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, Protocol

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.bench import Look, PhotoInWork
from pipeline.cases import DEATHS_BEFORE_FAILURE, Case, End, Ending, Task, after
from pipeline.cluster_size import Cluster
from pipeline.connection import check_own_cluster, is_client
from pipeline.errors import DegrainError, RunFailed
from pipeline.records import PlannedPhoto, Receipt, ShardPlan
from pipeline.room import KEEPING_FREED_MEMORY

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at what a worker does
RESIZE_S = 5.0  # between two looks at what the cluster has
START_S = 15.0  # for which those that are up leave some of the work to those that are not yet
STALL_S = 1800.0  # for which a node with a GPU may be on its way
ORPHANED_S = 30.0  # a worker at which nobody has looked for so long ends itself: its driver is gone
ORPHAN_STEPS = 10
NAMED = 5  # photos, at most, in a message


class ShardWorker(Protocol):
    """Does the work of a shard in an actor's process."""

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt: ...

    def probe(self, photo: PlannedPhoto) -> None: ...

    def look(self) -> Look: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """How the work is spread.

    Attributes:
        address: of a Ray cluster to join; None starts one on this machine and stops it afterwards.
        workers: actors, of which there are never more than shards; None takes one for each GPU, or where there is
            none, one for each core that has memory enough, and more when nodes join.
        shards_per_worker: shards that an actor works on at once, so that its network need not wait for storage.
        photo_timeout_s: a photo that takes longer is rejected.
        stall_s: no photo getting any further for so long is an error; None takes twice the time for a photo, or STALL_S
            if that is longer.
        use_gpus: whether the work is for GPUs, where there are any.
    """

    address: str | None = None
    workers: int | None = None
    shards_per_worker: int = 2
    photo_timeout_s: float = 3600.0
    stall_s: float | None = None
    use_gpus: bool = True

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}: expected at least 1")
        if self.shards_per_worker < 1:
            raise ValueError(f"shards_per_worker is {self.shards_per_worker}: expected at least 1")
        if not self.photo_timeout_s > 0:
            raise ValueError(f"photo_timeout_s is {self.photo_timeout_s}: expected more than 0")

    @property
    def outlives_us(self) -> bool:
        """Whether workers go on when this process is killed, until they find that nobody looks: as of Ray's client."""
        return is_client(self.address)

    @property
    def longest_stall_s(self) -> float:
        """Seconds without any progress that are no error yet."""
        return self.stall_s or max(2 * self.photo_timeout_s, STALL_S)


def map_shards(
    plans: Iterable[ShardPlan],
    make_worker: Callable[[int], ShardWorker],
    config: ClusterConfig,
    *,
    on_look: Callable[[int], None] = lambda _: None,
) -> Iterator[Receipt]:
    """Do every shard on the connected cluster, yielding receipts as shards end, in no promised order.

    Workers that nobody asks for a receipt for ORPHANED_S end themselves.

    Args:
        plans: read lazily: no more are held than there are workers, and as are in flight.
        make_worker: called in each actor's process with the number of threads it may use; must be picklable.
        config: how many actors, and when to give up.
        on_look: called each second or so with the number of photos that are finished in shards that are not. What it
            raises ends the work.

    Raises:
        RunFailed: workers cannot be made, keep dying, or nothing moves any more.
        DegrainError: what a worker raised.
    """
    cluster = Cluster.now(use_gpus=config.use_gpus)
    workers = config.workers or cluster.room
    remaining = (Task(Case(plan, photo_timeout_s=config.photo_timeout_s)) for plan in plans)
    waiting = deque(islice(remaining, workers))
    if not waiting:
        return
    pool = _Pool(make_worker, config, cluster, shards=len(waiting) if len(waiting) < workers else None)
    try:
        while True:
            while (task := waiting.popleft() if waiting else next(remaining, None)) is not None:
                if not pool.submit(task):
                    waiting.appendleft(task)
                    break
            if task is None and not pool.is_busy:
                return
            for task, result in pool.collect():
                if isinstance(result, Receipt):
                    yield result
                else:
                    waiting.extendleft(reversed(after(task, result)))
            on_look(pool.finished_photos)
    finally:
        pool.stop()


@dataclass(slots=True, eq=False)
class _Worker:
    """An actor, what it has to do, and what it said when it was last looked at.

    Attributes:
        node: where it is; empty until it has started, which it may never do.
        looking: the look under way.
        is_leaving: its node will go soon: it gets nothing new to do.
    """

    actor: Any  # Ray's handle
    node: str = ""
    calls: dict[Any, Task] = field(default_factory=dict)  # Any: Ray's object references
    look: Look = field(default_factory=Look)
    looked_s: float = 0.0
    looking: Any = None  # Ray's object reference
    is_leaving: bool = False


_Results = list[tuple[Task, Receipt | Ending | None]]  # nothing, of a probe that went well


class _Pool:
    """Actors, and the calls that are in flight on them.

    Args:
        shards: how many there are in all, where that is less than the workers that might be had.
    """

    def __init__(
        self,
        make_worker: Callable[[int], ShardWorker],
        config: ClusterConfig,
        cluster: Cluster,
        *,
        shards: int | None,
    ) -> None:
        self._config = config
        self._shards = shards
        self._stall_s = config.longest_stall_s
        self._factory = ray.put(make_worker)
        size = cluster.size_for(config.workers)
        self._threads = size.threads
        self._actor = ray.remote(_Actor).options(
            max_concurrency=config.shards_per_worker + 1,  # one looks
            num_cpus=size.cores,
            num_gpus=size.gpus,
            memory=size.memory_bytes,
            runtime_env={"env_vars": KEEPING_FREED_MEMORY},
        )
        self._workers: list[_Worker] = []
        self._deaths_in_a_row = 0
        self._is_short = False  # of workers: a task has waited for one since the last look at the cluster
        self._began_s = self._moved_s = self._resized_s = time.monotonic()
        self._resize(cluster)

    @property
    def is_busy(self) -> bool:
        return any(worker.calls for worker in self._workers)

    @property
    def _is_starting(self) -> bool:
        is_early = time.monotonic() < self._began_s + START_S
        return is_early and not all(worker.node for worker in self._workers)

    @property
    def finished_photos(self) -> int:
        """Of shards in work, as of the last looks."""
        shards = {task.case.plan.shard for worker in self._workers for task in worker.calls.values()}
        return sum(count for worker in self._workers for shard, count in worker.look.finished if shard in shards)

    def submit(self, task: Task) -> bool:
        """Give a task to the worker that has the least to do; False where none has room, or another is soon up."""
        ready = [worker for worker in self._workers if worker.node and not worker.is_leaving]
        worker = min(ready, key=self._load, default=None)
        if worker is None or self._load(worker) + self._weight(task) > self._config.shards_per_worker:
            self._is_short = True
            return False
        if self._load(worker) and self._is_starting:
            return False
        if task.photo is None:
            call = worker.actor.run.remote(task.case.plan, dict(task.case.poisonous))
        else:
            call = worker.actor.probe.remote(task.photo)
        worker.calls[call] = task
        return True

    def collect(self) -> _Results:
        """Wait a while for calls to end; their tasks with the receipt, nothing (of a probe), or how they failed.

        Raises:
            RunFailed: nothing moves.
        """
        check_own_cluster()
        for worker in self._workers:
            if worker.looking is None and time.monotonic() > worker.looked_s + LOOK_S:
                worker.looking = worker.actor.look.remote()
        calls = {call: worker for worker in self._workers for call in worker.calls}
        looks = {worker.looking: worker for worker in self._workers if worker.looking is not None}
        ended, seen = (_ready(calls, LOOK_S), _ready(looks, 0)) if calls else ([], _ready(looks, LOOK_S))
        results: _Results = []
        for call in ended:
            results += self._end(calls[call], call)
        for look in seen:
            results += self._see(looks[look])
        results += self._end_slow_photos()
        if time.monotonic() > self._resized_s + RESIZE_S:
            self._resize(Cluster.now(use_gpus=self._config.use_gpus))
        if results:
            self._moved_s = time.monotonic()
        if time.monotonic() > self._moved_s + self._stall_s:
            raise RunFailed(f"nothing moved for {self._stall_s:.0f} s; {self._in_flight()}")
        return results

    def stop(self) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)

    def _end(self, worker: _Worker, call: Any) -> _Results:  # Any: Ray's object reference
        """What a call gave; and the other calls of its worker, if that is dead."""
        if call not in worker.calls:
            return []  # the death of its worker came to light by another one
        try:
            result: Receipt | None = ray.get(call)
        except (RayActorError, OutOfMemoryError) as error:
            return self._bury(worker, error)
        except RayError as error:
            raise _failure(error) from error
        self._deaths_in_a_row = 0
        return [(worker.calls.pop(call), result)]

    def _see(self, worker: _Worker) -> _Results:
        """Take in what a worker said of itself."""
        if worker not in self._workers:
            return []
        try:
            node, look = ray.get(worker.looking)
        except (RayActorError, OutOfMemoryError) as error:
            return self._bury(worker, error)
        except RayError as error:
            raise _failure(error) from error
        if (node, _stages(look)) != (worker.node, _stages(worker.look)):
            self._moved_s = time.monotonic()
        worker.node, worker.look, worker.looking, worker.looked_s = node, look, None, time.monotonic()
        return []

    def _bury(self, worker: _Worker, error: RayError) -> _Results:
        """An actor that died takes all its calls with it, and a new one takes its place."""
        is_lost = bool(worker.node) and worker.node not in Cluster.now(use_gpus=False).nodes
        self._deaths_in_a_row += not is_lost
        if self._deaths_in_a_row > 2 * DEATHS_BEFORE_FAILURE + len(self._workers):
            raise RunFailed(f"workers keep dying before they do anything: {_one_line(error)}") from error
        suspects = frozenset(photo.key for photo in worker.look.photos)
        if is_lost:
            log.warning("node %s is lost: %d shards that it had are done again", worker.node, len(worker.calls))
        ending = Ending(End.NODE_LOST) if is_lost else Ending(End.DIED, suspects)
        return [(task, ending) for task in self._remove(worker)]

    def _end_slow_photos(self) -> _Results:
        """End workers of which a photo takes too long, or that do not answer for as long as a photo may take."""
        results: _Results = []
        for worker in [worker for worker in self._workers if worker.calls]:
            limits = {photo.key: task.photo_timeout_s for task in worker.calls.values() for photo in task.photos}
            slow = [photo for photo in worker.look.photos if photo.seconds > limits.get(photo.key, math.inf)]
            if slow:
                results += self._end_for(worker, max(slow, key=attrgetter("seconds")))
            elif time.monotonic() > worker.looked_s + self._config.photo_timeout_s + ORPHANED_S:
                log.warning("a worker does not answer any more, and is ended")
                suspects = frozenset(photo.key for photo in worker.look.photos)
                results += [
                    (task, Ending(End.DIED if task.photo is None else End.TOO_SLOW, suspects))
                    for task in self._remove(worker)
                ]
        return results

    def _end_for(self, worker: _Worker, slow: PhotoInWork) -> _Results:
        """End a worker for the sake of one photo; what else it did is not to blame."""
        log.warning("photo %s takes too long, and its worker is ended", slow)
        too_slow = Ending(
            End.TOO_SLOW, frozenset([slow.key]), is_certain=len({photo.key for photo in worker.look.photos}) == 1
        )
        return [
            (task, too_slow if any(photo.key == slow.key for photo in task.photos) else Ending(End.LOST))
            for task in self._remove(worker)
        ]

    def _remove(self, worker: _Worker) -> list[Task]:
        """End a worker; returns what it had to do."""
        self._workers.remove(worker)
        ray.kill(worker.actor)
        self._resized_s = 0.0  # another one comes soon
        tasks = list(worker.calls.values())
        worker.calls.clear()
        return tasks

    def _resize(self, cluster: Cluster) -> None:
        """As many workers as there is room for: none where a node will go, more where one has come.

        While there is more to do than they can take, as many again as have started are asked for where an autoscaler
        may bring nodes for them: a short run asks for few, and a long one soon for all.
        """
        for worker in list(self._workers):
            worker.is_leaving = worker.node in cluster.leaving
            if worker.is_leaving and not worker.calls:
                self._remove(worker)
        staying = [worker for worker in self._workers if not worker.is_leaving]
        wanted = self._config.workers or cluster.room
        if self._config.workers is None and self._is_short:
            started = sum(1 for worker in staying if worker.node)
            wanted = max(wanted, min(cluster.largest_room, 2 * started))
        if self._shards is not None:
            wanted = min(wanted, self._shards)
        self._is_short = False
        for _ in range(wanted - len(staying)):
            self._workers.append(_Worker(self._actor.remote(self._factory, self._threads)))
        never_started = [worker for worker in staying if not worker.node]
        for worker in never_started[: max(0, len(staying) - wanted)]:
            self._remove(worker)
        self._resized_s = time.monotonic()

    def _in_flight(self) -> str:
        if not any(worker.node for worker in self._workers):
            return f"the cluster has had no room for any of {len(self._workers)} workers"
        shards = sorted({task.case.plan.shard for worker in self._workers for task in worker.calls.values()})
        photos = [photo for worker in self._workers for photo in worker.look.photos]
        photos.sort(key=attrgetter("seconds"), reverse=True)
        at = f", at {', '.join(map(str, photos[:NAMED]))}" if photos else ""
        return f"in flight: {', '.join(shards[:NAMED])}{at}"

    def _load(self, worker: _Worker) -> int:
        return sum(self._weight(task) for task in worker.calls.values())

    def _weight(self, task: Task) -> int:
        return self._config.shards_per_worker if task.is_alone else 1


def _stages(look: Look) -> object:
    return look.finished, {(photo.key, photo.stage) for photo in look.photos}


def _failure(error: RayError) -> DegrainError:
    if not isinstance(error, RayTaskError):
        return RunFailed(f"the cluster failed: {_one_line(error)}")
    log.info("a worker raised", exc_info=error)
    if isinstance(error.cause, DegrainError):
        return error.cause
    return RunFailed(" ".join(f"a worker failed: {type(error.cause).__name__}: {error.cause}".split()))


def _ready(references: Iterable[Any], timeout_s: float) -> list[Any]:  # Any: Ray's object references
    """Those that are ready: all that are, as soon as one is; where there are none, that takes the time too."""
    waited_for = list(references)
    if not waited_for:
        time.sleep(timeout_s)
        return []
    ray.wait(waited_for, timeout=timeout_s)
    return ray.wait(waited_for, num_returns=len(waited_for), timeout=0)[0]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class _Actor:
    """A worker in a process of its own. `max_concurrency` threads call it at once.

    The worker is made in the first call: an error in an actor's constructor would look like a death.
    """

    def __init__(self, make_worker: Callable[[int], ShardWorker], threads: int) -> None:
        self._make = partial(make_worker, threads)
        self._lock = threading.Lock()
        self._made: ShardWorker | None = None
        self._is_looked_at = threading.Event()
        threading.Thread(target=self._end_when_orphaned, daemon=True).start()

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt:
        return self._worker().run(plan, poisonous)

    def probe(self, photo: PlannedPhoto) -> None:
        self._worker().probe(photo)

    def look(self) -> tuple[str, Look]:
        """The node that this process is on, and what it does at the moment."""
        self._is_looked_at.set()
        return ray.get_runtime_context().get_node_id(), self._made.look() if self._made else Look()

    def _worker(self) -> ShardWorker:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _end_when_orphaned(self) -> None:
        """Another run may have taken over the target by now: this process must not write to it any more.

        The time is counted in steps, so that a photo that halts all threads for long does not count as absence.
        """
        missed = 0
        while missed < ORPHAN_STEPS:
            missed = 0 if self._is_looked_at.wait(ORPHANED_S / ORPHAN_STEPS) else missed + 1
            self._is_looked_at.clear()
        os._exit(1)
