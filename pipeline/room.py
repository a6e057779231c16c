"""What a process may take: its cores, and room in memory for photos, by their bytes and not by their number."""

import ctypes
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # as a container sees its own

# How glibc's malloc is to keep memory: the variables that it reads as a process starts, with their numbers in malloc.h.
# One heap for all threads, as each further one has room for 64 MiB, and is given back whenever it is empty; of what is
# free at its end, more than the network takes for a tile (some 300 MiB). Blocks as large as whole photos go back.
_KEEPING = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_TRIM_THRESHOLD_": (-1, 512 * 1024**2),
    "MALLOC_MMAP_THRESHOLD_": (-3, 64 * 1024**2),
}
KEEPING_FREED_MEMORY = {name: str(value) for name, (_, value) in _KEEPING.items()}
"""The environment of a process that keeps memory which it frees for what it needs next; see `keep_freed_memory`."""


def usable_cores() -> int:
    """Cores that this process may keep busy, which may be fewer than the machine has; one at least.

    A container's share of them is rounded up: what is left of one core is worth a thread.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(cores, _container_cores()))


def _container_cores() -> float:
    """What the limit of this process's control group allows: of v2, or of v1; infinity where there is none."""
    with suppress(OSError, ValueError, IndexError):
        quota, period = (CGROUPS / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us, period_us = (
            int((CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return quota_us / period_us if quota_us > 0 else math.inf
    return math.inf


def keep_freed_memory() -> None:
    """Have this process keep memory that it frees for what it needs next. With another C library: nothing.

    Else each tile, and each step of a training, is given pages that the system clears first: a tenth to a fifth of its
    time. To be called before there are threads, which have heaps of their own by then: what Ray starts is given
    `KEEPING_FREED_MEMORY` in its environment instead.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for number, value in _KEEPING.values():
            mallopt(number, value)


class Room:
    """Lets photos into memory while there is room for their bytes, first come, first served.

    Half of it is for photos that need no more than that. A larger one comes in beside them, one at a time, whatever it
    needs. So neither kind ever waits for the other, and at most half of the size and one large photo are taken.
    """

    def __init__(self, size_bytes: float = math.inf) -> None:
        self._half_bytes = size_bytes / 2
        self._small = _Lane(self._half_bytes)
        self._large = _Lane(0)

    def take(self, size_bytes: int) -> None:
        """Wait until there is room for so many bytes, and take it."""
        self._lane(size_bytes).take(size_bytes)

    def give_back(self, size_bytes: int) -> None:
        """Leave the room that was taken by `take`."""
        self._lane(size_bytes).give_back(size_bytes)

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        self.take(size_bytes)
        try:
            yield
        finally:
            self.give_back(size_bytes)

    def _lane(self, size_bytes: int) -> "_Lane":
        return self._small if size_bytes <= self._half_bytes else self._large


class _Lane:
    """First come, first served: one that finds no room stops those behind it, or they would go on to overtake it."""

    def __init__(self, size_bytes: float) -> None:
        self._size_bytes = size_bytes
        self._taken_bytes = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def take(self, size_bytes: int) -> None:
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(
                lambda: (
                    self._queue[0] is ticket
                    and (self._taken_bytes == 0 or self._taken_bytes + size_bytes <= self._size_bytes)
                )
            )
            self._queue.popleft()
            self._taken_bytes += size_bytes
            self._changed.notify_all()

    def give_back(self, size_bytes: int) -> None:
        with self._changed:
            self._taken_bytes -= size_bytes
            self._changed.notify_all()
