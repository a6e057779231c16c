"""Processes that we start and that must not outlive us: `python -m flows.child COMMAND…` ends with its parent."""

import contextlib
import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import RunFailed

PR_SET_PDEATHSIG = 1  # of Linux's prctl
CONNECTION_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")  # the first and the last
FIRST_PORT = 20_000  # above those of Ray's workers
FATAL = re.compile(r"F\d{4} ")  # how programs in Go begin the reason for which they end; their stacks follow
POLL_S = 0.05
GRACE_S = 20.0  # for a process to end, once it is asked to


class Child:
    """A process with its log in a file. It gets a SIGTERM when this process dies, however that happens."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], *, cwd: Path | None = None
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-m", "flows.child", *command]
        self._log = log
        ours = {"DEGRAIN_PARENT": str(os.getpid()), "PYTHONSAFEPATH": "1"}  # `flows` is ours, wherever one is
        self._environment = {**os.environ, **environment, **ours}
        self._cwd = cwd
        self._is_ready: Callable[[], bool] = lambda: True
        self._ready_s = 0.0
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._begin()

    def _begin(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as file:
            self._log_start = file.seek(0, os.SEEK_END)  # what follows is not of an earlier process
            return subprocess.Popen(  # noqa: S603  # our own commands
                self._command,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self._environment,
                start_new_session=True,  # Ctrl-C in a terminal is for us; we stop our children in their order
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Return as soon as it is ready.

        Raises:
            RunFailed: it ended, or was not ready in time.
        """
        self._is_ready, self._ready_s = is_ready, timeout_s
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if not self.is_running:
                raise RunFailed(f"{self.name} ended with {self._process.returncode}: {self._last_line()}")
            if time.monotonic() > deadline:
                raise RunFailed(f"{self.name} was not ready after {timeout_s:.0f} s: see {self._log}")
            time.sleep(POLL_S)

    def restart(self) -> None:
        """Begin it again, after the end of what is left of the last time, and wait as at first.

        Raises:
            RunFailed: it is not.
        """
        self._end()
        self._process = self._begin()
        self.wait_until(self._is_ready, timeout_s=self._ready_s)

    def stop(self) -> None:
        """Ask it to end; end it if it does not, and whatever it has left behind."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _last_line(self) -> str:
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            text = file.read().decode(errors="replace")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        told = [line for line in lines if FATAL.match(line)] or lines or [f"see {self._log}"]
        return told[-1][:300]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listened on a moment ago.

    None of them is one that the system gives to a connection, or a server might lose it to its own before it listens.
    """
    last = int(CONNECTION_PORTS.read_text().split()[0]) if CONNECTION_PORTS.exists() else 0
    ours = range(FIRST_PORT, last)
    untried = random.sample(ours, len(ours))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            while untried and one.getsockname()[1] == 0:
                with contextlib.suppress(OSError):
                    one.bind(("127.0.0.1", untried.pop()))
            if one.getsockname()[1] == 0:  # all are taken, or there are none: better one of the system's
                one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def answers(port: int) -> bool:
    """Whether anything listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def main(command: Sequence[str]) -> None:
    """Become the command, after the promise to end with the parent."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(os.environ["DEGRAIN_PARENT"]):
        sys.exit("the parent is gone already")
    os.execvp(command[0], list(command))  # noqa: S606  # our own commands


if __name__ == "__main__":
    main(sys.argv[1:])
