"""What a worker has on its bench: which photos it works on and at which stage each is, seen from another thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhotoInWork:
    """A photo, the stage that it is at, and the seconds since the worker took it up."""

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
        now = time.monotonic()
        photos = tuple(PhotoInWork(photo.key, photo.stage, now - photo.since) for photo in list(self._photos))
        return Look(photos, tuple(dict(self._finished).items()))


def enter_stage(stage: str) -> None:
    """Note the stage of the photo that this thread works on, if it is on a bench."""
    if (photo := _current.get()) is not None:
        photo.stage = stage
