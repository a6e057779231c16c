"""What a process needs before it runs a command, whoever started it: standard streams, and names in UTF-8."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import TextIOWrapper
from typing import Any, TextIO, cast

from pipeline.errors import StorageError
from pipeline.redaction import explain


def prepare_process() -> None:
    """Make the process one that has standard streams, takes names for UTF-8 and keeps no memory that it has freed.

    What it starts on this machine is reached as it is, whatever proxy the environment names for other addresses.

    It may begin anew for that.
    """
    _open_streams()
    # Arrow's own pool keeps what it was given: 60 MB of the 560 that a run of 10,000 photos came to.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ["PYTHONSAFEPATH"] = "1"  # what it starts imports nothing that lies in the current folder
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's further threads spin beside the network's
    without_proxy = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = dict.fromkeys(",".join([*without_proxy, "127.0.0.1", "localhost"]).replace(" ", "").split(","))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, hosts))  # some libraries read but one
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # keys are UTF-8 whatever the locale is, in this process and its workers
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # the same program


@contextmanager
def output_written() -> Iterator[None]:
    """What is printed inside is written by its end, or that fails here: Python itself would tell of it in its own way.

    Raises:
        BrokenPipeError: nobody reads any more.
        StorageError: it cannot be written.
    """
    output = _Output(sys.stdout)
    with redirect_stdout(cast("TextIO", output)):  # it is one, but for its class
        try:
            yield
        finally:
            output.flush()


class _Output:
    """Standard output, whose errors are told apart from those of any other file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._errors():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._errors():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # Any: whatever else a stream has
        return getattr(self._stream, name)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left would fail again at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise StorageError(f"cannot write to standard output: {explain(error)}") from error


def _open_streams() -> None:
    """Open those that are closed: the next file opened, a photo perhaps, would get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  # for as long as the process lives
    if isinstance(sys.stdout, TextIOWrapper):  # a name that it cannot write must not fail what was done
        sys.stdout.reconfigure(errors="backslashreplace")
