"""A Ray cluster for as long as it is needed: one that is there, or one that is started on this machine."""

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # Cython
from ray.job_config import JobConfig

from pipeline.errors import RunFailed
from pipeline.interruption import INTERRUPTS
from pipeline.ray_dashboard import asking_no_cloud
from pipeline.room import usable_cores
from pipeline.scratch import RAY_CHARACTERS, own_folder

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 1024**2  # the weights and the receipts: pixels never enter it
CONNECT_TIMEOUT_S = 10.0
TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}  # Ray's own variables


def is_client(address: str | None) -> bool:
    """Whether a process at this address is none of the cluster's own, but speaks to one of them: Ray's client."""
    return address is not None and address.startswith("ray://")


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """The Ray cluster at an address, or one on this machine that is stopped on every way out of the context.

    Its logs stay, in a folder of this user's in /tmp, if the context ends in an error, and are removed otherwise.

    Raises:
        ValueError: that is no address of a cluster.
        RunFailed: there is no cluster at the address, or none could be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of a change to come
    if address is not None:
        _check_reachable(address)
    handlers = {each: signal.getsignal(each) for each in INTERRUPTS}
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}  # Any: Ray's options
    if not is_client(address):  # a client's workers are told no folders of its own
        options["job_config"] = _Job()
    logs = None
    with ExitStack() as stack:
        try:
            with _connecting_as_a_whole():
                if address is None:
                    stack.enter_context(_own_token())
                AuthenticationTokenLoader.instance().reset_cache()  # this process may have been on another cluster
                if address is None:
                    with asking_no_cloud():
                        logs = _start(options)
                else:
                    ray.init(address=address, **options)
        except Exception as error:  # see _start
            place = "on this machine" if address is None else f"at {address}"
            text = " ".join(str(error).split())[:300]
            # Something listens there, see _check_reachable: Ray does not say that it asked for a token.
            hint = " (is it a Ray head, and RAY_AUTH_TOKEN its token?)" if text.startswith("Failed to connect") else ""
            raise RunFailed(f"no Ray cluster {place}: {text}{hint}") from error
        try:
            yield
        finally:
            ray.shutdown()
            _restore(handlers)  # it takes that of SIGTERM away
    if logs is not None:
        shutil.rmtree(logs, ignore_errors=True)


class _Job(JobConfig):
    """Workers import from where this process does, and not first of all from the current folder, as Ray has it.

    There a `pipeline.py` or a `torch.py` of anybody's, such as who sent the photos, would be run in place of ours.
    """

    def _serialize(self) -> str:
        self._py_driver_sys_path = [folder for folder in self._py_driver_sys_path if folder in sys.path]
        return super()._serialize()


@contextmanager
def _own_token() -> Iterator[None]:
    """What a cluster that starts meanwhile asks for, where the environment names nothing.

    Ray itself would write one into the home, for all to read, and starts nothing where it cannot.
    """
    if TOKENS & os.environ.keys():
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


def _start(options: dict[str, Any]) -> str:  # Any: Ray's options
    """Start a cluster on this machine; returns the folder of its logs.

    Ray waits for half a minute, and then raises a bare Exception: on a busy machine the second start is in time.
    """
    if "RAY_TMPDIR" not in os.environ:
        # Not /tmp/ray: Ray lets all users write there, who could then put sockets of theirs in the place of its own.
        options = {**options, "_temp_dir": str(own_folder(most_characters=RAY_CHARACTERS - len("/ray")) / "ray")}
    for is_last in (False, True):
        try:
            with _apart_from_our_group():
                ours: Any = ray.init(  # Any: Ray's type lacks what it returns
                    address="local",
                    num_cpus=usable_cores(),  # of half a core that a container has, Ray makes none
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    **options,
                )
        except Exception as error:
            if is_last or type(error) is not Exception:
                raise
            log.warning("Ray takes long to start on this machine: trying once more")
        else:
            break
    logs: str = ours.address_info["session_dir"]
    return logs


def check_own_cluster() -> None:
    """Whether a cluster that was started here still runs. Ray has no public way to ask.

    Without its GCS, whatever asks it anything waits for a minute; then Ray ends this process without any clean-up, and
    so it does some seconds after the raylet has died.

    Raises:
        RunFailed: a process of it has died.
    """
    node = ray._private.worker._global_node
    found: list[tuple[str, Any]] = node.dead_processes() if node is not None else []  # Any: a Popen
    if dead := {kind for kind, _ in found} & {"gcs_server", "raylet"}:
        raise RunFailed(
            f"Ray has died on this machine ({' and '.join(sorted(dead))}): what is committed stays, and the same "
            "command does the rest"
        )


@contextmanager
def _apart_from_our_group() -> Iterator[None]:
    """While this lasts, processes that Ray starts are in groups of their own, as its workers are.

    A terminal that closes, `timeout` and some schedulers send their signal to all of our group: we end in order as long
    as Ray does not end before us. It ends with us, whatever ends us.
    """
    start = ray._private.services.ConsolePopen
    ray._private.services.ConsolePopen = partial(start, process_group=0)  # type: ignore[misc, assignment]  # for Ray alone
    try:
        yield
    finally:
        ray._private.services.ConsolePopen = start  # type: ignore[misc]


@contextmanager
def _connecting_as_a_whole() -> Iterator[None]:
    """While this lasts, Ray leaves our handler of SIGTERM alone, and what comes while it connects waits until it has.

    A process that is interrupted while it connects ends in a SIGSEGV.
    """
    handlers = {each: signal.getsignal(each) for each in INTERRUPTS}
    connect, set_handler = ray._private.worker.connect, ray._private.utils.set_sigterm_handler

    def connect_first(*arguments: Any, **options: Any) -> None:  # Any: Ray's own
        came: list[int] = []
        for each in INTERRUPTS:
            signal.signal(each, lambda number, _: came.append(number))
        try:
            connect(*arguments, **options)
        finally:
            signal.alarm(0)  # by the handler that its C++ has now, to abort this process three seconds later
            _restore(handlers)
        for number in came:
            signal.raise_signal(number)

    ray._private.worker.connect, ray._private.utils.set_sigterm_handler = connect_first, lambda _: None
    try:
        yield
    finally:
        ray._private.worker.connect, ray._private.utils.set_sigterm_handler = connect, set_handler


def _restore(handlers: dict[signal.Signals, Any]) -> None:  # Any: what `getsignal` gives
    for each, handler in handlers.items():
        signal.signal(each, handler)


def _check_reachable(address: str) -> None:
    """Ray itself would look for minutes for a cluster that is not there."""
    if address == "auto":  # Ray answers at once
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or "://" in host:
        raise ValueError(
            f"{address} is no address of a Ray cluster: expected HOST:PORT of its head, such as HOST:6379, and not "
            "of its dashboard; or auto, for the one of this machine"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunFailed(f"no Ray cluster at {address}: {reason}") from error
