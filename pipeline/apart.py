"""Photos that are tried in a process of its own: one that ends it, or takes too long, ends nothing else."""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from pipeline.cases import TOO_SLOW_REASON
from pipeline.errors import RunFailed
from pipeline.records import Outcome
from pipeline.shard import PhotoResult, Recipe

ENDED_REASON = "its processing ended the process that tried it (a crash or too much memory)"
LONGEST_S = 1e6  # that the system waits for a pipe


class Apart:
    """Processes photos, one at a time, in a child that begins anew after a photo that has ended it.

    Args:
        make_recipe: called in the child; must be picklable.
        threads: that it may use.
        timeout_s: a photo that takes longer is rejected.

    Raises:
        RunFailed: the child ended before it was given any photo.
    """

    def __init__(self, make_recipe: Callable[[int], Recipe], threads: int, *, timeout_s: float) -> None:
        self._arguments = make_recipe, threads
        self._timeout_s = timeout_s
        self._begin()

    def __call__(self, data: bytes, key: str) -> PhotoResult:
        """The result of a photo. Raises what the recipe raises, which is for no photo's sake."""
        try:
            self._pipe.send((data, key))
            if not self._pipe.poll(min(self._timeout_s, LONGEST_S)):
                return self._rejected(TOO_SLOW_REASON.format(self._timeout_s))
            result = self._pipe.recv()
        except (EOFError, ConnectionError):
            return self._rejected(ENDED_REASON)
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, PhotoResult)
        return result

    def close(self) -> None:
        self._child.kill()
        self._child.join()
        self._pipe.close()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        self._child.start()
        theirs.close()
        try:
            self._pipe.recv()
        except EOFError as error:
            self.close()
            raise RunFailed(
                f"the process that tries photos ended at once, with exit code {self._child.exitcode}"
            ) from error

    def _rejected(self, reason: str) -> PhotoResult:
        self.close()
        self._begin()
        return PhotoResult(outcome=Outcome.REJECTED, reason=reason)


def _serve(pipe: Connection, make_recipe: Callable[[int], Recipe], threads: int) -> None:
    """The child: until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever began it hears of that, and ends it
    recipe = make_recipe(threads)
    pipe.send(None)
    while True:
        try:
            data, key = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(recipe.process(data, key))
        except Exception as error:  # noqa: BLE001  # it is raised where the photo came from
            pipe.send(error)
