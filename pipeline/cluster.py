"""Start or join a Ray cluster, and map shard plans over its actors: bounded, retried, watched.

What we add to Ray is "which shard next" and "what to do when a worker dies", no more. A shard whose worker died twice
is searched photo by photo for the one that ends its process; that photo becomes a row, and the shard goes on.
"""

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.errors import DegrainError, RunFailed
from pipeline.records import PlannedPhoto, Receipt, ShardPlan

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 1024**2  # the weights and the receipts: pixels never enter it
WORKER_BYTES = 1.5 * 1024**3  # what a worker needs beside photos of ordinary size
CONNECT_TIMEOUT_S = 10.0
DEATHS_BEFORE_SEARCH = 2
DEATHS_BEFORE_FAILURE = 6  # of one shard, its search aside: by then it is not the photos
POISON_REASON = "its processing ended the worker's process (a crash or too much memory), each time it was tried"


class ShardWorker(Protocol):
    """Does the work of a shard in an actor's process."""

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt: ...

    def probe(self, photo: PlannedPhoto) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """How the work is spread.

    Attributes:
        address: of a Ray cluster to join; None starts one on this machine and stops it afterwards.
        workers: actors; None takes one for each GPU, or where there is none, one for each core that has memory enough.
        shards_per_worker: shards that an actor works on at once, so that its network need not wait for storage.
        stall_s: no shard ending for so long is an error.
        use_gpus: whether the work is for GPUs, where there are any.
    """

    address: str | None = None
    workers: int | None = None
    shards_per_worker: int = 2
    stall_s: float = 7200.0
    use_gpus: bool = True

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}: expected at least 1")
        if self.shards_per_worker < 1:
            raise ValueError(f"shards_per_worker is {self.shards_per_worker}: expected at least 1")


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """A Ray cluster for as long as the context lasts; one that was started here is stopped on every way out.

    Raises:
        RunFailed: there is no cluster at the address, or none could be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of a change to come
    if config.address is not None:
        _check_reachable(config.address)
    handler = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}  # Any: Ray's options
    try:
        if config.address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
        else:
            ray.init(address=config.address, **quiet)
    except Exception as error:  # Ray raises a bare Exception when a node takes too long to start
        place = "on this machine" if config.address is None else f"at {config.address}"
        raise RunFailed(f"no Ray cluster {place}: {' '.join(str(error).split())[:300]}") from error
    try:
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process without any clean-up
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would look for minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", which Ray answers at once
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunFailed(f"no Ray cluster at {address}: {reason}") from error


def map_shards(
    plans: Iterable[ShardPlan], make_worker: Callable[[int], ShardWorker], config: ClusterConfig
) -> Iterator[Receipt]:
    """Do every shard on the connected cluster, yielding receipts as shards end, in no promised order.

    Args:
        plans: read lazily: only as many as are in flight are held.
        make_worker: called in each actor's process with the number of threads it may use; must be picklable.
        config: how many actors, and when to give up.

    Raises:
        RunFailed: workers cannot be made, keep dying, or nothing moves any more.
        DegrainError: what a worker raised.
    """
    pool = _Pool(make_worker, config)
    try:
        waiting = deque[_Task]()
        remaining = iter(plans)
        while True:
            while (task := _next_task(waiting, remaining)) is not None:
                if not pool.has_room_for(task):
                    waiting.appendleft(task)
                    break
                pool.submit(task)
            if not pool.is_busy:
                return
            for task, result in pool.collect():
                if isinstance(result, Receipt):
                    yield result
                else:
                    waiting.extendleft(reversed(_after(task, died=result is _DIED)))
    finally:
        pool.stop()


@dataclass(slots=True)
class _Case:
    """A shard and what has befallen it."""

    plan: ShardPlan
    deaths: int = 0
    to_probe: int = 0
    poisonous: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Task:
    """A call to a worker: the whole shard, or one photo of it to see whether the worker survives."""

    case: _Case
    photo: PlannedPhoto | None = None
    is_second_try: bool = False  # a death may be bad luck, two are the photo's

    @property
    def is_alone(self) -> bool:
        """Whether it wants a worker for itself: only then is a death its own, and not its neighbour's."""
        return self.photo is not None or self.case.deaths > 0


class _Died:
    """Stands for the result of a call whose worker died."""


_DIED = _Died()


def _next_task(waiting: "deque[_Task]", remaining: Iterator[ShardPlan]) -> _Task | None:
    if waiting:
        return waiting.popleft()
    plan = next(remaining, None)
    return None if plan is None else _Task(_Case(plan))


def _after(task: _Task, *, died: bool) -> list[_Task]:
    """What to do next about a shard whose call ended without a receipt."""
    case = task.case
    if task.photo is not None:
        if died and not task.is_second_try:
            return [_Task(case, task.photo, is_second_try=True)]
        if died:
            log.error("photo %s ended its worker", task.photo.key)
            case.poisonous[task.photo.key] = POISON_REASON
        case.to_probe -= 1
        return [] if case.to_probe else [_Task(case)]
    case.deaths += 1
    log.warning("shard %s: its worker died (%d times)", case.plan.shard, case.deaths)
    if case.deaths >= DEATHS_BEFORE_FAILURE:
        raise RunFailed(f"shard {case.plan.shard} lost {case.deaths} workers, and no single photo of it is to blame")
    if case.deaths != DEATHS_BEFORE_SEARCH:
        return [_Task(case)]
    case.to_probe = len(case.plan.photos)
    return [_Task(case, photo) for photo in case.plan.photos]


class _Pool:
    """Actors and the calls that are in flight on them."""

    def __init__(self, make_worker: Callable[[int], ShardWorker], config: ClusterConfig) -> None:
        self._config = config
        self._factory = ray.put(make_worker)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0)) if config.use_gpus else 0
        roomy = max(1, min(cores, int(resources.get("memory", 0) / WORKER_BYTES)))
        count = config.workers or gpus or roomy
        self._threads = max(1, cores // count)
        options = {"num_cpus": min(self._threads, cores / count), "num_gpus": 1 if gpus >= count else 0}
        self._actor = ray.remote(_Actor).options(max_concurrency=config.shards_per_worker, **options)
        self._load: dict[Any, int] = {self._start(): 0 for _ in range(count)}  # Any: Ray's actor handles
        self._calls: dict[Any, tuple[Any, _Task]] = {}  # Any: Ray's object references and actor handles
        self._deaths_in_a_row = 0

    def has_room_for(self, task: _Task) -> bool:
        return min(self._load.values()) + self._weight(task) <= self._config.shards_per_worker

    @property
    def is_busy(self) -> bool:
        return bool(self._calls)

    def submit(self, task: _Task) -> None:
        actor = min(self._load, key=lambda candidate: self._load[candidate])
        if task.photo is None:
            call = actor.run.remote(task.case.plan, task.case.poisonous)
        else:
            call = actor.probe.remote(task.photo)
        self._load[actor] += self._weight(task)
        self._calls[call] = actor, task

    def collect(self) -> list[tuple[_Task, Receipt | _Died | None]]:
        """Wait until calls end; their tasks with the receipt, nothing (of a probe), or the news of a death."""
        ended, _ = ray.wait(list(self._calls), timeout=self._config.stall_s)
        if not ended:
            shards = ", ".join(sorted({task.case.plan.shard for _, task in self._calls.values()}))
            raise RunFailed(f"nothing moved for {self._config.stall_s:.0f} s; in flight: {shards}")
        return [self._result(call) for call in ended]

    def stop(self) -> None:
        for actor in self._load:
            ray.kill(actor)

    def _result(self, call: Any) -> tuple[_Task, Receipt | _Died | None]:  # Any: Ray's object reference
        actor, task = self._calls.pop(call)
        if actor in self._load:
            self._load[actor] -= self._weight(task)
        try:
            result: Receipt | None = ray.get(call)
        except (RayActorError, OutOfMemoryError) as error:
            self._replace(actor, error)
            return task, _DIED
        except RayTaskError as error:
            log.info("a worker raised", exc_info=error)
            if isinstance(error.cause, DegrainError):
                raise error.cause from error
            reason = " ".join(f"{type(error.cause).__name__}: {error.cause}".split())
            raise RunFailed(f"a worker failed: {reason}") from error
        except RayError as error:
            raise RunFailed(f"the cluster failed: {' '.join(str(error).split())[:300]}") from error
        self._deaths_in_a_row = 0
        return task, result

    def _replace(self, actor: Any, error: RayError) -> None:  # Any: Ray's actor handle
        """An actor that died takes all its calls with it; each of them reports, and one new actor takes its place."""
        if self._load.pop(actor, None) is None:
            return
        ray.kill(actor)  # it may only have been out of reach
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > 2 * DEATHS_BEFORE_FAILURE + len(self._load):
            reason = " ".join(str(error).split())[:300]
            raise RunFailed(f"workers keep dying before they do anything: {reason}") from error
        self._load[self._start()] = 0

    def _weight(self, task: _Task) -> int:
        return self._config.shards_per_worker if task.is_alone else 1

    def _start(self) -> Any:  # Any: Ray's actor handle
        return self._actor.remote(self._factory, self._threads)


class _Actor:
    """A worker in a process of its own. `max_concurrency` threads call it at once.

    The worker is made in the first call: an error in an actor's constructor would look like a death.
    """

    def __init__(self, make_worker: Callable[[int], ShardWorker], threads: int) -> None:
        self._make = partial(make_worker, threads)
        self._lock = threading.Lock()
        self._made: ShardWorker | None = None

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt:
        return self._worker().run(plan, poisonous)

    def probe(self, photo: PlannedPhoto) -> None:
        self._worker().probe(photo)

    def _worker(self) -> ShardWorker:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made
