"""One denoiser for many threads: the tiles of their photos take turns, and share batches.

A large photo keeps nobody waiting for longer than one batch, and photos of few pixels fill batches together.
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.denoiser import Denoiser, Pixels
from model.device import use_threads
from model.estimate import NoiseEstimate
from model.request import Job, Request, Windowed


@dataclass(slots=True, eq=False)
class _Photo:
    """A photo in work: those of its jobs that have not begun, how many have not ended, and how it ended."""

    jobs: deque[Job]
    left: int
    end: Future[None] = field(default_factory=Future)


class SharedDenoiser:
    """Denoises the photos of several threads with one denoiser, in a thread of its own.

    The result for a photo does not depend on which others come with it: tiles of several photos are in one batch only
    where that changes no bit of them.

    Args:
        denoiser: nobody else uses it.
        threads: how many torch may use on the CPU.
    """

    def __init__(self, denoiser: Denoiser, *, threads: int = 1) -> None:
        self._denoiser = denoiser
        self._turns: deque[_Photo] = deque()
        self._lock = threading.Lock()
        self._model_thread = ThreadPoolExecutor(1, "model", use_threads, (threads,))

    def __call__(
        self, noisy: NDArray[Pixels], *, strength: float, noise: NoiseEstimate, keeps_grain: bool = False
    ) -> NDArray[Pixels]:
        """The clean photo, when it is done: arguments and errors are those of `Denoiser`."""
        request = self._denoiser.request(noisy, strength=strength, noise=noise, keeps_grain=keeps_grain)
        self._finish(request)
        return np.asarray(request.clean)

    def denoise_windowed(
        self, photo: Windowed, *, strength: float, noise: NoiseEstimate, keeps_grain: bool = False
    ) -> None:
        """The same for a photo that is nowhere as a whole. Its windows are asked for, and given, in the thread of the
        network: one photo waits for what another one takes to read and write them.
        """
        self._finish(self._denoiser.request_by_windows(photo, strength=strength, noise=noise, keeps_grain=keeps_grain))

    def _finish(self, request: Request) -> None:
        jobs = deque(self._denoiser.jobs(request))
        if not jobs:
            return
        photo = _Photo(jobs, left=len(jobs))
        with self._lock:
            self._turns.append(photo)
        self._model_thread.submit(self._work_until, photo.end)
        photo.end.result()

    def _work_until(self, end: Future[None]) -> None:
        while not end.done():
            self._run(self._next_batch())

    def _next_batch(self) -> list[tuple[_Photo, Job]]:
        """Jobs of one kind: of the photo whose turn it is and, where it may be, of those behind it."""
        with self._lock:
            first = self._turns[0]
            kind = first.jobs[0].kind
            size = self._denoiser.batch_size(kind)
            batch: list[tuple[_Photo, Job]] = []
            for photo in self._turns if kind.is_shareable else (first,):
                while len(batch) < size and photo.jobs and photo.jobs[0].kind == kind:
                    batch.append((photo, photo.jobs.popleft()))
            self._turns.rotate(-1)
            self._turns = deque(photo for photo in self._turns if photo.jobs)
        return batch

    def _run(self, batch: list[tuple[_Photo, Job]]) -> None:
        try:
            self._denoiser.run([job for _, job in batch])
        except Exception as error:  # noqa: BLE001  # it belongs to the thread that waits for the photo
            photos = dict.fromkeys(photo for photo, _ in batch)
            if len(photos) == 1:
                self._fail(batch[0][0], error)
                return
            for alone in photos:  # one of them is to blame
                self._run([(photo, job) for photo, job in batch if photo is alone])
            return
        for photo, _ in batch:
            photo.left -= 1
            if photo.left == 0:
                photo.end.set_result(None)

    def _fail(self, photo: _Photo, error: Exception) -> None:
        with self._lock:
            photo.jobs.clear()
            self._turns = deque(other for other in self._turns if other is not photo)
        photo.end.set_exception(error)
