"""What a worker has on its bench: which photos it works on and at which stage each is, seen from another thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhotoInWork:
    """A photo, the stage that it is at, and the seconds since the worker took it up, without those that it waited."""

    key: str
    stage: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.key} ({self.stage}, {self.seconds:.0f} s)"


@dataclass(frozen=True, slots=True)
class Look:
    """A worker's bench at one moment: the photos in work, and how many are finished of each shard in work."""

    photos: tuple[PhotoInWork, ...] = ()
    finished: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True, eq=False)
class _Photo:
    key: str
    stage: str
    since: float
    waits_since: float | None = None

    def look(self) -> PhotoInWork:
        waits_since = self.waits_since
        until = time.monotonic() if waits_since is None else waits_since
        return PhotoInWork(self.key, self.stage if waits_since is None else "wait", until - self.since)


_current: ContextVar[_Photo | None] = ContextVar("the photo that this thread works on", default=None)


class Bench:
    """Kept by the threads that work, each for its own photo; looked at by another one at any time."""

    def __init__(self) -> None:
        self._photos: list[_Photo] = []
        self._finished: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def shard(self, name: str) -> Iterator[None]:
        self._finished[name] = 0
        try:
            yield
        finally:
            self._finished.pop(name, None)

    @contextmanager
    def photo(self, key: str, stage: str) -> Iterator[None]:
        """This thread works on the photo inside."""
        photo = _Photo(key, stage, time.monotonic())
        self._photos.append(photo)
        token = _current.set(photo)
        try:
            yield
        finally:
            _current.reset(token)
            self._photos.remove(photo)

    def finish_photo(self, shard: str) -> None:
        with self._lock:
            self._finished[shard] += 1

    def look(self) -> Look:
        return Look(tuple(photo.look() for photo in list(self._photos)), tuple(dict(self._finished).items()))


def enter_stage(stage: str) -> None:
    """Note the stage of the photo that this thread works on, if it is on a bench."""
    if (photo := _current.get()) is not None:
        photo.stage = stage


@contextmanager
def in_turn(turn: AbstractContextManager[object]) -> Iterator[None]:
    """Inside of `turn`. If the photo that this thread works on has to wait for it, that is no time of its own."""
    with ExitStack() as stack:
        photo = _current.get()
        if photo is not None:
            photo.waits_since = time.monotonic()
        try:
            stack.enter_context(turn)
        finally:
            if photo is not None and photo.waits_since is not None:
                photo.since += time.monotonic() - photo.waits_since
                photo.waits_since = None
        yield
