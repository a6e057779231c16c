"""How many nights an archive takes on how many GPUs, by a simulation of what a run does, held against runs made here.

    python tests/benchmarks/simulator.py measure FOLDER_OF_PHOTOS [--count 160] [--rounds 3]
    python tests/benchmarks/simulator.py predict FOLDER_OF_PHOTOS [--photos 1e6 1e7 1e8] [--gpus 1 4 16 64]

`measure` takes the seconds of CPU of each stage from photos that it processes without Ray (`stage_costs.py`), makes
runs of other photos (`simulated_runs.py`), simulates those with the cores that all else on the machine left to them,
and prints what is predicted, what was measured, and whether it is within 15 %. `predict` simulates archives: what a CPU
does is measured here; what a GPU, a network and a store do is assumed, by the options. `predict --plot` draws its
lines, beside the points that `measure --save` wrote.

What is simulated is what `pipeline` does. The driver gives shards to workers, two to each, and takes their receipts one
after the other (`cluster.py`). In a worker (`shard.py`), photos of a shard are read ahead within 32 MiB, eight are in
work at most, those that are decoded within half a GiB, and with a GPU more of both; cores are shared, and tiles take
turns on the network. A night begins with what the driver does alone: list, publish what the last night committed,
compare, freeze. It ends where it ends: shards in work are lost, as they are with workers that die, machines that are
lost, or taken away at notice. Random is seeded. A photo that kills its workers, and a lost driver, are not simulated.
"""

import argparse
import dataclasses
import heapq
import json
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from model.tiling import plan_tiles
from pipeline.index import PART_ROWS
from pipeline.planning import ShardSize
from pipeline.shard import PHOTO_BYTES, PHOTOS_AT_ONCE, SOURCE_BYTES, gpu_shares
from pipeline.sources import READ_AHEAD_BYTES

Resume = Callable[[], None]
Wait = Callable[[Resume], None]  # takes what is to be called when the wait is over
Process = Generator[Wait, None, None]

COPIES = 3  # of a decoded photo in memory, as in `pipeline.denoise`
SHARDS_PER_WORKER = 2
LIST_PAGE = 1000  # objects of a listing that a store sends at once
PARALLEL_READS = 16  # of commits, as in `pipeline.imageset`
NETWORK_MACS = 69e3  # a pixel, of the weights that ship
TILE_PX, HALO_PX, MULTIPLE_PX = 1024, 64, 8  # how `Denoiser` cuts photos for them


@dataclass(slots=True, eq=False)
class Life:
    """Of a worker: what belongs to it stops when it is over."""

    is_over: bool = False


class Clock:
    """Time, and what happens at which."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Resume]] = []
        self._order = count()

    def after(self, delay_s: float, act: Resume) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._order), act))

    def delay(self, seconds: float) -> Wait:
        return lambda resume: self.after(seconds, resume)

    def start(self, process: Process, life: Life | None = None) -> None:
        """Run a generator that yields what it waits for."""
        life = life or Life()

        def step() -> None:
            if not life.is_over and (wait := next(process, None)) is not None:
                wait(step)

        step()

    def run(self, until_s: float = math.inf) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()


class Shared:
    """Something that all who use it share evenly: cores, or a connection. Each gets one unit at most for its width."""

    def __init__(self, clock: Clock, capacity: float) -> None:
        self.busy_s = 0.0  # of all units together
        self._clock, self._capacity = clock, capacity
        self._users: list[tuple[float, int, float, Resume, Life]] = []  # by what is served to each when it has enough
        self._served = self._since_s = self._load = 0.0
        self._order = count()
        self._plan = 0

    def use(self, work_s: float, life: Life, *, width: float = 1.0) -> Wait:
        """Take so many seconds of so many units at once."""
        return partial(self._use, work_s, life, width)

    def drop(self) -> None:
        """Users whose life is over leave."""
        self._advance()
        self._users = [user for user in self._users if not user[4].is_over]
        heapq.heapify(self._users)
        self._load = sum(user[2] for user in self._users)
        self._look_ahead()

    def _use(self, work_s: float, life: Life, width: float, resume: Resume) -> None:
        self._advance()
        heapq.heappush(self._users, (self._served + work_s, next(self._order), width, resume, life))
        self._load += width
        self._look_ahead()

    @property
    def _speed(self) -> float:
        return min(1.0, self._capacity / self._load)

    def _advance(self) -> None:
        passed_s = self._clock.now_s - self._since_s
        if self._users:
            self._served += passed_s * self._speed
            self.busy_s += passed_s * min(self._load, self._capacity)
        self._since_s = self._clock.now_s

    def _look_ahead(self) -> None:
        self._plan += 1
        if self._users:
            left_s = max(0.0, self._users[0][0] - self._served) / self._speed
            self._clock.after(left_s, partial(self._end, self._plan))

    def _end(self, plan: int) -> None:
        if plan != self._plan:
            return  # others have come or gone since
        self._advance()
        self._served = max(self._served, self._users[0][0])
        ended = []
        while self._users and self._users[0][0] <= self._served:
            ended.append(heapq.heappop(self._users))
        self._load = sum(user[2] for user in self._users)
        self._look_ahead()
        for _, _, _, resume, life in ended:
            if not life.is_over:
                resume()


class Lane:
    """Room for so much; first come, first served; what is larger than all of it comes alone. As in `pipeline.room`."""

    def __init__(self, size: float) -> None:
        self._size, self._taken = size, 0.0
        self._queue: deque[tuple[float, Resume]] = deque()

    def take(self, amount: float) -> Wait:
        def wait(resume: Resume) -> None:
            self._queue.append((amount, resume))
            self._serve()

        return wait

    def give_back(self, amount: float) -> None:
        self._taken -= amount
        self._serve()

    def _serve(self) -> None:
        while self._queue and (not self._taken or self._taken + self._queue[0][0] <= self._size):
            amount, resume = self._queue.popleft()
            self._taken += amount
            resume()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoCost:
    """What a photo takes.

    Attributes:
        source_bytes, output_bytes, decoded_bytes: its size, of its file, of the result, and in memory.
        before_s, after_s: seconds of a core before the network (hash, inspect, decode, estimate) and after it.
        network_s: seconds of the network, on a GPU, or on all threads that it has on cores.
        read_s, write_s: seconds of waiting for storage beside the transfer.
    """

    before_s: float
    network_s: float
    after_s: float
    read_s: float = 0.0
    write_s: float = 0.0
    source_bytes: float = 0.0
    output_bytes: float = 0.0
    decoded_bytes: float = 0.0
    tiles: int = 1

    def times(self, factor: float) -> "PhotoCost":
        """A larger or smaller photo; requests take as long."""
        sizes = {name: factor * getattr(self, name) for name in SCALED}
        return dataclasses.replace(self, **sizes, tiles=max(1, round(factor * self.tiles)))


SCALED = ("before_s", "network_s", "after_s", "source_bytes", "output_bytes", "decoded_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What workers on one machine share. A network has `threads` cores, or a GPU of its own where that is 0."""

    cores: float
    threads: int = 0
    bytes_per_s: float = math.inf
    photo_bytes: float = PHOTO_BYTES
    photos_at_once: int = PHOTOS_AT_ONCE


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverCosts:
    """What the driver does alone, in seconds.

    Attributes:
        receipt_s: for each shard: to give it, and to take its receipt.
        turn_s: for each worker, whenever there are receipts.
        start_s: from when a worker is asked for until it takes shards, and `start_core_s`, seconds of a core, on top.
        commit_s: of a worker, for each shard.
        listing_s: for a thousand objects of a listing.
        plan_s, publish_s: for each photo that is listed, for each row of the index parts that are written anew.
        read_commit_s: for each commit when it is published, all of them at once being counted.
    """

    receipt_s: float = 0.0
    turn_s: float = 0.0
    start_s: float = 0.0
    start_core_s: float = 0.0
    commit_s: float = 0.0
    listing_s: float = 0.0
    plan_s: float = 0.0
    publish_s: float = 0.0
    read_commit_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often workers end, each by itself, and what that takes. Infinite hours: never.

    Attributes:
        crash_hours: of a worker's process: another one starts on the same machine, and its shards are done alone.
        loss_hours: of a machine without notice; `detect_s` pass until it is known.
        reclaim_hours: of a machine at a notice of `notice_s`: it gets no new shards, and its successor is asked for.
        machine_s: until another machine has come.
    """

    crash_hours: float = math.inf
    loss_hours: float = math.inf
    reclaim_hours: float = math.inf
    notice_s: float = 30.0
    detect_s: float = 30.0
    machine_s: float = 240.0


class PhotoWorker:
    """A worker in detail: photo after photo through the stages of `pipeline.shard.Worker`."""

    def __init__(
        self,
        clock: Clock,
        cores: Shared,
        machine: Machine,
        costs: DriverCosts,
        draw_photo: Callable[[], PhotoCost],
        note_photo: Resume,
        life: Life,
    ) -> None:
        self._clock, self._cores, self._machine, self._costs = clock, cores, machine, costs
        self._draw_photo, self._note_photo, self._life = draw_photo, note_photo, life
        self._link = Shared(clock, 1.0)
        self._gpu = Shared(clock, 1.0)
        self._places = Lane(machine.photos_at_once)
        self._sources, self._large_sources = Lane(SOURCE_BYTES / 2), Lane(0)
        self._decoded, self._large = Lane(machine.photo_bytes / 2), Lane(0)
        self._turns: deque[list[Any]] = deque()  # Any: seconds and number of a photo's tiles that are left, its Resume
        self._is_network_busy = False

    def start(self, ready: Resume) -> None:
        self._cores.use(self._costs.start_core_s, self._life)(ready)

    def begin(self, photos: int, done: Resume) -> None:
        self._clock.start(self._shard(photos, done), self._life)

    def _shard(self, photos: int, done: Resume) -> Process:
        ahead, left = Lane(READ_AHEAD_BYTES), Latch(photos)
        costs = [self._draw_photo() for _ in range(photos)]
        read = [Latch(1) for _ in costs]
        self._clock.start(self._read(costs, read, ahead), self._life)
        for cost, latch in zip(costs, read, strict=True):
            yield latch.wait
            ahead.give_back(cost.source_bytes)
            lane = self._sources if cost.source_bytes <= SOURCE_BYTES / 2 else self._large_sources
            yield lane.take(cost.source_bytes)
            yield self._places.take(1)
            self._clock.start(self._photo(cost, lane, left), self._life)
        yield left.wait
        yield self._cores.use(self._costs.commit_s, self._life)
        done()

    def _read(self, costs: Sequence[PhotoCost], read: "Sequence[Latch]", ahead: Lane) -> Process:
        for cost, latch in zip(costs, read, strict=True):
            yield ahead.take(cost.source_bytes)
            self._clock.start(self._fetch(cost, latch), self._life)

    def _fetch(self, cost: PhotoCost, latch: "Latch") -> Process:
        yield self._clock.delay(cost.read_s)
        yield self._transfer(cost.source_bytes)
        latch.count_down()

    def _photo(self, cost: PhotoCost, source_lane: Lane, left: "Latch") -> Process:
        needed = COPIES * cost.decoded_bytes
        lane = self._decoded if needed <= self._machine.photo_bytes / 2 else self._large
        yield lane.take(needed)
        yield self._cores.use(cost.before_s, self._life)
        if cost.network_s:
            yield partial(self._denoise, cost)
        yield self._cores.use(cost.after_s, self._life)
        lane.give_back(needed)
        yield self._clock.delay(cost.write_s)
        yield self._transfer(cost.output_bytes)
        self._places.give_back(1)
        source_lane.give_back(cost.source_bytes)
        self._note_photo()
        left.count_down()

    def _transfer(self, size_bytes: float) -> Wait:
        return self._link.use(size_bytes / self._machine.bytes_per_s, self._life)

    def _denoise(self, cost: PhotoCost, resume: Resume) -> None:
        self._turns.append([cost.network_s / cost.tiles, cost.tiles, resume])
        if not self._is_network_busy:
            self._clock.start(self._network(), self._life)

    def _network(self) -> Process:
        """Tiles of photos take turns, as in `model.sharing`."""
        self._is_network_busy = True
        while self._turns:
            tile_s, tiles, resume = self._turns.popleft()
            if tiles > 1:
                self._turns.append([tile_s, tiles - 1, resume])
            if self._machine.threads:
                yield self._cores.use(tile_s, self._life, width=self._machine.threads)
            else:
                yield self._gpu.use(tile_s, self._life)
            if tiles == 1:
                self._clock.after(0, resume)
        self._is_network_busy = False


class Latch:
    """Waited for until it has been counted down."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._resume: Resume | None = None

    def wait(self, resume: Resume) -> None:
        if self._left:
            self._resume = resume
        else:
            resume()

    def count_down(self) -> None:
        self._left -= 1
        if not self._left and self._resume is not None:
            self._resume()


class RateWorker:
    """A worker by its rate: shards in hand share it. What `PhotoWorker` shows when it is never short of shards."""

    def __init__(self, clock: Clock, photos_per_s: float, spread: Callable[[], float], life: Life) -> None:
        self._all = Shared(clock, 1.0)
        self._photos_per_s, self._spread, self._life = photos_per_s, spread, life

    def start(self, ready: Resume) -> None:
        ready()

    def begin(self, photos: int, done: Resume) -> None:
        self._all.use(self._spread() * photos / self._photos_per_s, self._life)(done)


@dataclass(slots=True, eq=False)
class Task:
    """A shard that is to be done; alone with a worker, if one has died of it."""

    photos: int
    is_alone: bool = False
    is_done: bool = False

    @property
    def weight(self) -> int:
        return SHARDS_PER_WORKER if self.is_alone else 1


@dataclass(slots=True, eq=False)
class Member:
    """A worker of the pool, and what it has in hand."""

    worker: PhotoWorker | RateWorker
    life: Life
    tasks: dict[Task, None] = field(default_factory=dict)
    load: int = 0  # sum of their weights
    is_leaving: bool = False


class Pool:
    """The driver and its workers: what `pipeline.cluster` does."""

    def __init__(
        self,
        clock: Clock,
        shards: Iterator[int],
        workers: int,
        make_worker: Callable[[Life], PhotoWorker | RateWorker],
        costs: DriverCosts,
        failures: Failures,
        draw: np.random.Generator,
        *,
        machine_s: float = 0.0,
        on_end: Resume = lambda: None,
    ) -> None:
        self.photos = self.lost_shards = self.ended_workers = 0
        self.finished_s: list[tuple[float, int]] = []  # when receipts were taken, of how many photos
        self.driver_busy_s = 0.0
        self.is_done = False
        self._clock, self._shards, self._make_worker = clock, shards, make_worker
        self._costs, self._failures, self._draw, self._on_end = costs, failures, draw, on_end
        self._given = 0  # shards that were taken from the plan
        self._waiting: deque[Task] = deque()
        self.members: list[Member] = []
        self._results: list[tuple[Member, Task]] = []
        self._wake: Resume | None = None
        for _ in range(workers):
            self._employ(machine_s)
        clock.start(self._drive())

    def _employ(self, delay_s: float) -> None:
        """Ask for a worker, on a machine that comes after so long."""
        life = Life()
        member = Member(self._make_worker(life), life)
        begin = partial(member.worker.start, partial(self._arrive, member))
        self._clock.after(delay_s + self._costs.start_s, begin)

    def _arrive(self, member: Member) -> None:
        if self.is_done:
            return
        self.members.append(member)
        failures = self._failures
        for hours, end in (
            (failures.crash_hours, partial(self.crash, member)),
            (failures.loss_hours, partial(self._lose, member)),
            (failures.reclaim_hours, partial(self._reclaim, member)),
        ):
            if hours < math.inf:
                self._clock.after(3600 * self._draw.exponential(hours), end)
        self._call_driver()

    def crash(self, member: Member) -> None:
        """Its process dies, and that is known at once."""
        if not member.life.is_over:
            self._clock.after(0, partial(self._take_back, self._end(member), is_alone=True))
            self._replace(member, 0)

    def _lose(self, member: Member) -> None:
        if not member.life.is_over:
            self._clock.after(self._failures.detect_s, partial(self._take_back, self._end(member)))
            self._replace(member, self._failures.detect_s + self._failures.machine_s)

    def _reclaim(self, member: Member) -> None:
        if member.life.is_over or member.is_leaving:
            return
        member.is_leaving = True
        member.load += SHARDS_PER_WORKER  # it gets nothing new to do
        self._employ(self._failures.machine_s)
        self._clock.after(self._failures.notice_s, partial(self._leave, member))

    def _replace(self, member: Member, delay_s: float) -> None:
        if not member.is_leaving:  # or its successor was asked for
            self._employ(delay_s)

    def _leave(self, member: Member) -> None:
        if not member.life.is_over:
            self._take_back(self._end(member))

    def _end(self, member: Member) -> list[Task]:
        """What it had to do. Receipts that it has sent are taken."""
        member.life.is_over = True
        self.members.remove(member)
        self.ended_workers += 1
        self._on_end()
        return [task for task in member.tasks if not task.is_done]

    def _take_back(self, tasks: Sequence[Task], *, is_alone: bool = False) -> None:
        for task in tasks:
            task.is_alone |= is_alone
        self.lost_shards += len(tasks)
        self._waiting.extendleft(reversed(tasks))
        self._call_driver()

    def _drive(self) -> Process:
        while self._submit() or self._given > len(self.finished_s):
            if not self._results:
                yield self._wait
            results, self._results = self._results, []
            if results:
                busy_s = self._costs.turn_s * len(self.members) + self._costs.receipt_s * len(results)
                self.driver_busy_s += busy_s
                yield self._clock.delay(busy_s)
            for member, task in results:
                del member.tasks[task]
                member.load -= task.weight
                self.photos += task.photos
                self.finished_s.append((self._clock.now_s, task.photos))
        self.is_done = True

    def _submit(self) -> bool:
        """Give out what there is room for; whether something waits for room."""
        while True:
            if not self._waiting:
                photos = next(self._shards, None)
                if photos is None:
                    return False
                self._given += 1
                self._waiting.append(Task(photos))
            member = min(self.members, key=attrgetter("load"), default=None)
            if member is None or member.load + self._waiting[0].weight > SHARDS_PER_WORKER:
                return True
            task = self._waiting.popleft()
            member.tasks[task] = None
            member.load += task.weight
            member.worker.begin(task.photos, partial(self._finish, member, task))

    def _finish(self, member: Member, task: Task) -> None:
        task.is_done = True
        self._results.append((member, task))
        self._call_driver()

    def _wait(self, resume: Resume) -> None:
        self._wake = resume

    def _call_driver(self) -> None:
        if self._wake is not None:
            wake, self._wake = self._wake, None
            self._clock.after(0, wake)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """A run in detail: when each photo was finished, those of lost shards included, and when the last receipt came."""

    seconds: float
    photos: int
    finished_s: list[float]
    lost_shards: int


def simulate_run(
    photos: int,
    workers: int,
    machine: Machine,
    cost: PhotoCost,
    costs: DriverCosts,
    *,
    failures: Failures | None = None,
    killed_at: int | None = None,
    seed: int = 0,
) -> Simulated:
    """A run of alike photos on one machine, photo by photo.

    Args:
        photos: of the run, cut into shards as a plan cuts them.
        workers: all on one machine.
        machine, cost, costs, failures: what they are, take, and suffer.
        killed_at: a worker is killed as soon as so many photos are finished.
        seed: of the failures.
    """
    clock, finished_s = Clock(), []
    cores = Shared(clock, machine.cores)

    def note_photo() -> None:
        finished_s.append(clock.now_s)
        if len(finished_s) == killed_at:
            clock.after(0, lambda: pool.crash(pool.members[0]))

    def make_worker(life: Life) -> PhotoWorker:
        return PhotoWorker(clock, cores, machine, costs, lambda: cost, note_photo, life)

    shards = cut(photos, cost.source_bytes)
    draw = np.random.default_rng(seed)
    pool = Pool(clock, iter(shards), workers, make_worker, costs, failures or Failures(), draw, on_end=cores.drop)
    clock.run()
    assert pool.is_done, "the simulation stands still"
    return Simulated(
        seconds=pool.finished_s[-1][0],
        photos=pool.photos,
        finished_s=finished_s,
        lost_shards=pool.lost_shards,
    )


def cut(photos: int, size_bytes: float) -> list[int]:
    """Shards of photos that are all of that size, as `pipeline.planning` cuts them."""
    size = ShardSize().limited_to(photos, int(photos * size_bytes))
    most = size.max_photos
    if size_bytes:
        most = max(1, min(most, int(size.max_bytes // size_bytes)))
    return [min(most, photos - first) for first in range(0, photos, most)]


def steady_rate(machine: Machine, cost: PhotoCost, costs: DriverCosts, *, spread: float = 0.0, seed: int = 0) -> float:
    """Photos a second of a worker that has a machine for itself and is never short of shards.

    Args:
        machine, cost, costs: as for a run.
        spread: standard deviation of the logarithm of a photo's size.
        seed: of the sizes.
    """
    clock, finished_s, draw = Clock(), [], np.random.default_rng(seed)
    shard, photos = cut(10**5, cost.source_bytes)[0], 0
    pool: Pool

    def draw_photo() -> PhotoCost:
        return cost.times(math.exp(draw.normal(-(spread**2) / 2, spread))) if spread else cost

    cores = Shared(clock, machine.cores)
    pool = Pool(
        clock,
        iter([shard] * max(8, math.ceil(STEADY_PHOTOS / shard))),
        1,
        lambda life: PhotoWorker(
            clock, cores, machine, costs, draw_photo, lambda: finished_s.append(clock.now_s), life
        ),
        costs,
        Failures(),
        draw,
    )
    clock.run()
    photos = pool.photos
    first, last = photos // 5, photos * 9 // 10  # at the end it is short of shards
    return (last - first) / (finished_s[last] - finished_s[first])


STEADY_PHOTOS = 800


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What so many workers do from when they are asked for.

    Attributes:
        done_s, done_photos: when receipts were taken, and how many photos had been done by then; mean of `nights`.
        nights: that were simulated.
        lost_shards, ended_workers: in a night.
        driver_share: of the time that the driver was busy.
    """

    done_s: Any  # Any: arrays of floats
    done_photos: Any
    nights: int
    lost_shards: float
    ended_workers: float
    driver_share: float

    def photos_by(self, seconds: float) -> float:
        return float(np.interp(seconds, self.done_s, self.done_photos, left=0.0))

    def seconds_for(self, photos: float) -> float:
        return float(np.interp(photos, self.done_photos, self.done_s))


def simulate_window(
    seconds: float,
    workers: int,
    photos_per_s: float,
    shard: int,
    costs: DriverCosts,
    failures: Failures,
    *,
    spread: float = 0.0,
    seed: int = 0,
) -> Window:
    """A night of workers on a machine each, by their rate; several of them where few shards are done, for the mean.

    Where many are done, its first hour or more is simulated, and the rest goes on as the second half of that.

    Args:
        seconds: of the night.
        workers: on a machine each, which comes when it is asked for.
        photos_per_s: of each.
        shard: photos of one.
        costs, failures: as for a run.
        spread: standard deviation of the logarithm of a photo's size.
        seed: of all that is random.
    """
    draw = np.random.default_rng(seed)
    spread_of_shard = spread / math.sqrt(shard)
    simulated_s = min(seconds, max(FEWEST_S, ENOUGH_SHARDS * shard / (workers * photos_per_s)))
    at = np.linspace(0, simulated_s, WINDOW_POINTS)
    done, shards, lost, ended, busy_s, nights = np.zeros_like(at), 0, 0, 0, 0.0, 0
    while nights < MOST_NIGHTS and shards < ENOUGH_SHARDS:
        clock = Clock()
        pool = Pool(
            clock,
            iter(lambda: shard, 0),
            workers,
            lambda life, clock=clock: RateWorker(
                clock, photos_per_s, lambda: max(0.0, draw.normal(1, spread_of_shard)) if spread else 1.0, life
            ),
            costs,
            failures,
            draw,
            machine_s=failures.machine_s,
        )
        clock.run(simulated_s)
        if pool.finished_s:
            times, counts = zip(*pool.finished_s, strict=True)
            done += np.concatenate([[0], np.cumsum(counts)])[np.searchsorted(times, at, side="right")]
        nights, shards = nights + 1, shards + len(pool.finished_s)
        lost, ended, busy_s = lost + pool.lost_shards, ended + pool.ended_workers, busy_s + pool.driver_busy_s
    half = WINDOW_POINTS // 2
    rate = (done[-1] - done[half]) / (at[-1] - at[half])
    factor = seconds / simulated_s / nights
    return Window(
        done_s=np.append(at, seconds),
        done_photos=np.append(done, done[-1] + rate * (seconds - simulated_s)) / nights,
        nights=nights,
        lost_shards=lost * factor,
        ended_workers=ended * factor,
        driver_share=busy_s / (nights * simulated_s),
    )


MOST_NIGHTS, ENOUGH_SHARDS, WINDOW_POINTS, FEWEST_S = 20, 50_000, 2001, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nights:
    """How long an archive takes. `nights` counts begun ones; infinite where the driver alone fills a night."""

    nights: float
    hours: float
    driver_hours: float
    photos_per_s: float


def count_nights(photos: float, night_s: float, shard: int, window: Window, costs: DriverCosts) -> Nights:
    """Night after night: what the driver does alone, then all workers, until an archive is done and published."""
    done, fresh, nights, hours, driver_hours = 0.0, 0.0, 0, 0.0, 0.0
    while True:
        listed = photos + done / shard  # the source, and what was committed
        opening_s = publish_s(fresh, shard, costs) + photos * costs.plan_s + listed / LIST_PAGE * costs.listing_s
        could = window.photos_by(night_s - opening_s)
        if could <= 0:
            return Nights(nights=math.inf, hours=math.inf, driver_hours=math.inf, photos_per_s=0.0)
        left = photos - done
        closing_s = publish_s(left, shard, costs)
        work_s = window.seconds_for(left) if could >= left else night_s - opening_s
        nights += 1
        driver_hours += opening_s / 3600
        if could >= left:
            hours += (opening_s + work_s + closing_s) / 3600
            driver_hours += closing_s / 3600
            break
        hours += night_s / 3600
        done, fresh = done + could, could
    return Nights(
        nights=nights, hours=hours, driver_hours=driver_hours, photos_per_s=photos / (3600 * (hours - driver_hours))
    )


def publish_s(photos: float, shard: int, costs: DriverCosts) -> float:
    """Seconds to merge what neighbouring photos have committed into the index: parts that they touch are made anew."""
    if not photos:
        return 0.0
    rows = math.ceil(photos / PART_ROWS) * PART_ROWS
    return rows * costs.publish_s + math.ceil(photos / shard) * costs.read_commit_s


def bound_of(machine: Machine, cost: PhotoCost, costs: DriverCosts) -> str:
    """What a worker is bound by: of what twice as much would help most."""
    before = steady_rate(machine, cost, costs)
    twice = {
        "GPU": (machine, dataclasses.replace(cost, network_s=cost.network_s / 2)),
        "cores": (dataclasses.replace(machine, cores=2 * machine.cores), cost),
        "connection": (dataclasses.replace(machine, bytes_per_s=2 * machine.bytes_per_s), cost),
        "memory for photos": (dataclasses.replace(machine, photo_bytes=2 * machine.photo_bytes), cost),
    }
    gains = {name: steady_rate(each, photo, costs) / before for name, (each, photo) in twice.items()}
    best = max(gains, key=lambda name: gains[name])
    return f"{best} (twice as much: {gains[best]:.2f} times as fast)"


def predict(options: argparse.Namespace) -> None:
    """Print nights by photos and GPUs, with and without failures, and what bounds them; draw the plot."""
    costs = known_costs(options)
    megapixels = options.megapixels
    cost = assumed_cost(options, costs)
    driver = driver_costs(options, costs)
    shares = gpu_shares(options.cores)
    machine = Machine(
        cores=options.cores,
        bytes_per_s=options.gbit_per_s * 1e9 / 8,
        photo_bytes=shares * PHOTO_BYTES,
        photos_at_once=shares * PHOTOS_AT_ONCE,
    )
    shard = cut(10**5, cost.source_bytes)[0]
    rate = steady_rate(machine, cost, driver, spread=options.spread)
    worker_bound = bound_of(machine, cost, driver)
    print(f"photos of {megapixels:g} megapixels, {cost.source_bytes / 1e6:.1f} MB; shards of {shard}")
    print(
        f"of each: {1e3 * (cost.before_s + cost.after_s):.0f} ms of a core, {1e3 * cost.network_s:.0f} ms of a GPU, "
        f"{megapixels / cost.network_s:.0f} megapixels/s "
        f"({options.gpu_tflops:g} TFLOPS at {options.gpu_utilisation:.0%})"
    )
    print(f"a machine with a GPU and {options.cores} cores: {rate:.1f} photos/s; bound by {worker_bound}")
    failing = Failures(
        crash_hours=options.crash_hours,
        loss_hours=options.loss_hours,
        reclaim_hours=options.reclaim_hours,
        notice_s=options.notice_s,
        machine_s=options.machine_s,
    )
    night_s = 3600 * options.night_hours
    lines: dict[float, list[tuple[int, float, float]]] = {photos: [] for photos in options.photos}
    print(
        f"{'photos':>13} {'GPUs':>5} {'machines':>8} {'nights':>7} {'hours':>8} {'photos/s':>9} {'driver h':>8} "
        f"{'with failures: nights':>21} {'hours':>8} {'ended':>6} {'shards again':>12}  bound by"
    )
    for gpus in options.gpus:
        windows = [
            simulate_window(night_s, gpus, rate, shard, driver, failures, spread=options.spread, seed=options.seed)
            for failures in (Failures(machine_s=options.machine_s), failing)
        ]
        for photos in options.photos:
            calm, stormy = (count_nights(photos, night_s, shard, window, driver) for window in windows)
            bound = worker_bound.partition(" (")[0]
            if windows[0].driver_share > BUSY:
                bound = "driver: receipts"
            if not calm.driver_hours < calm.hours / 2:
                bound = "driver: listing, publishing"
            print(
                f"{photos:13,.0f} {gpus:5} {gpus + 1:8} {calm.nights:7,.0f} {calm.hours:8,.1f} "
                f"{calm.photos_per_s:9,.1f} {calm.driver_hours:8,.2f} {stormy.nights:21,.0f} {stormy.hours:8,.1f} "
                f"{windows[1].ended_workers:6.1f} {windows[1].lost_shards:12.1f}  {bound}",
                flush=True,
            )
            lines[photos].append((gpus, calm.hours / options.night_hours, stormy.hours / options.night_hours))
    if options.plot:
        from simulated_runs import draw

        measured = json.loads(options.measured.read_text()) if options.measured else {}
        options.plot.write_bytes(draw(measured, lines))


BUSY = 0.9  # share of the time, at which something is what the rest waits for


def known_costs(options: argparse.Namespace) -> dict[str, float]:
    """Measured here; or read from a file, which is written where there is none."""
    if options.costs and options.costs.exists():
        return dict(json.loads(options.costs.read_text()))
    import tempfile

    from noisy_photos import write_noisy
    from stage_costs import measure_archives, measure_receipts, measure_stages

    with tempfile.TemporaryDirectory(prefix="degrain-") as name:
        write_noisy(options.folder, Path(name) / "photos", "jpeg", JPEGS, sigma=JPEG_SIGMA)
        stages = measure_stages(Path(name) / "photos", processes=1, threads=1, gpu_s=0.0)
    few, many = 2, 8
    receipts = measure_receipts((few, many), shards=400, photos=26)
    turn_s = max(0.0, (receipts[many] - receipts[few]) / (many - few))
    small, large = ARCHIVES
    archives = measure_archives(ARCHIVES)
    added = large - small
    update_s = (archives[large]["update"] - archives[small]["update"]) / added
    first_s = (archives[large]["first"] - archives[small]["first"]) / added
    read_commit_s = max(0.0, archives[large]["publish"] - archives[small]["publish"]) / (added / 100 / 64)
    costs = {
        **dataclasses.asdict(stages),
        "receipt_s": receipts[few] - few * turn_s,
        "turn_s": turn_s,
        "plan_s": max(update_s, first_s),
        "publish_s": archives[small]["publish"] / PART_ROWS,
        "read_commit_s": read_commit_s,
    }
    if options.costs:
        options.costs.write_text(json.dumps(costs, indent=2))
    return costs


JPEGS, JPEG_SIGMA, JPEG_MEGAPIXELS = 6, 4.0, 12.0
ARCHIVES = 250_000, 500_000


def assumed_cost(options: argparse.Namespace, costs: dict[str, float]) -> PhotoCost:
    """Of a photo: what was measured of a core, and assumed of all else."""
    tiles = plan_tiles(3000, 4000, tile_px=TILE_PX, halo_px=HALO_PX, multiple_px=MULTIPLE_PX)
    read_px = sum(tile.read.height_px * tile.read.width_px for tile in tiles)
    transfer_s = options.core_s_per_mb / 1e6
    cost = PhotoCost(
        before_s=costs["before_s"] + transfer_s * costs["source_bytes"],
        network_s=2 * NETWORK_MACS * read_px / (options.gpu_tflops * 1e12 * options.gpu_utilisation),
        after_s=costs["after_s"] + transfer_s * costs["output_bytes"],
        read_s=options.request_s,
        write_s=options.request_s,
        source_bytes=costs["source_bytes"],
        output_bytes=costs["output_bytes"],
        decoded_bytes=costs["decoded_bytes"],
        tiles=len(tiles),
    )
    return cost.times(options.megapixels / JPEG_MEGAPIXELS)


def driver_costs(options: argparse.Namespace, costs: dict[str, float]) -> DriverCosts:
    return DriverCosts(
        receipt_s=costs["receipt_s"],
        turn_s=costs["turn_s"],
        start_s=options.start_s,
        commit_s=costs["commit_s"],
        listing_s=options.listing_s,
        plan_s=costs["plan_s"],
        publish_s=costs["publish_s"],
        read_commit_s=costs["read_commit_s"] + options.request_s / PARALLEL_READS,
    )


def measure(options: argparse.Namespace) -> None:
    from simulated_runs import measure_runs

    measure_runs(options.photos, options.cases, rounds=options.rounds, count=options.count, save=options.save)


def main() -> None:
    from simulated_runs import CASES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure", help="predict runs, and make them")
    measuring.add_argument("photos", type=Path, help="a folder of clean photos")
    measuring.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES], help="see `simulated_runs.py`")
    measuring.add_argument("--count", type=int, default=160, help="photos of a run")
    measuring.add_argument("--rounds", type=int, default=3)
    measuring.add_argument("--save", type=Path, help="a file for the points of the plot")
    measuring.set_defaults(do=measure)
    predicting = commands.add_parser(
        "predict", help="nights of archives", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    predicting.add_argument("folder", type=Path, help="a folder of clean photos")
    predicting.add_argument("--photos", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    predicting.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 16, 64])
    predicting.add_argument("--night-hours", type=float, default=8.0)
    predicting.add_argument("--megapixels", type=float, default=JPEG_MEGAPIXELS, help="of a photo, on average")
    predicting.add_argument("--spread", type=float, default=0.3, help="standard deviation of the logarithm of its size")
    predicting.add_argument("--gpu-tflops", type=float, default=121.0, help="dense bfloat16 (that of an NVIDIA L4)")
    predicting.add_argument("--gpu-utilisation", type=float, default=0.3, help="share of it: assumed, without a GPU")
    predicting.add_argument("--cores", type=int, default=8, help="of a machine with one GPU")
    predicting.add_argument("--gbit-per-s", type=float, default=10.0, help="of its network")
    predicting.add_argument("--request-s", type=float, default=0.1, help="of a store, until it answers")
    predicting.add_argument("--listing-s", type=float, default=0.1, help="of 1,000 objects; 0 with --key-table")
    predicting.add_argument("--core-s-per-mb", type=float, default=0.005, help="of a core to read or write by TLS")
    predicting.add_argument("--start-s", type=float, default=20.0, help="of a worker with CUDA")
    predicting.add_argument("--machine-s", type=float, default=240.0, help="until a machine has come")
    predicting.add_argument("--crash-hours", type=float, default=500.0, help="of a process, on average until it dies")
    predicting.add_argument("--loss-hours", type=float, default=1000.0, help="the same of a machine, without notice")
    predicting.add_argument("--reclaim-hours", type=float, default=24.0, help="the same at notice: a spot machine")
    predicting.add_argument("--notice-s", type=float, default=30.0)
    predicting.add_argument("--costs", type=Path, help="read the measured costs from there; or keep them there")
    predicting.add_argument("--measured", type=Path, help="what `measure --save` wrote")
    predicting.add_argument("--plot", type=Path, help="an SVG file to draw")
    predicting.add_argument("--seed", type=int, default=0)
    predicting.set_defaults(do=predict)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
