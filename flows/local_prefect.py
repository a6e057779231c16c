"""A Prefect server on loopback, its SQLite database in a folder: nothing of it leaves the machine."""

import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flows.child import Child
from flows.patience import CLIENT_RETRIES

READY_S = 120.0


def prefect_environment(folder: Path, port: int) -> dict[str, str]:
    """What the server, and all that talk to it, need in their environment."""
    url = f"http://127.0.0.1:{port}/api"
    return {
        "PREFECT_API_URL": url,
        "PREFECT_UI_API_URL": url,  # or the pages look at the default port, and stay empty
        "PREFECT_UI_STATIC_DIRECTORY": str(folder / "ui"),  # its pages: beside its code, another user may not write
        "PREFECT_HOME": str(folder),
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),  # no settings of this user's other servers
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # By default a server that is killed forgets who holds a limit, and nobody ever gets it again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Seconds until a run that waits for a target asks for it again, at most; by default 30.
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
        "PREFECT_CLIENT_MAX_RETRIES": str(CLIENT_RETRIES),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "1.0",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",  # seconds until somebody who has submitted a form sees it begin
    }


@contextmanager
def local_server(folder: Path, port: int, environment: Mapping[str, str]) -> Iterator[Child]:
    """A server while the block runs, with what it knew when it last ran in this folder; it is not ready at once.

    Args:
        folder: of its database and its log.
        port: of loopback.
        environment: as `prefect_environment` has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host=127.0.0.1", f"--port={port}"]
    # In its folder: Prefect takes settings of a .env, a prefect.toml and a pyproject.toml where it is started.
    server = Child("the Prefect server", command, folder / "server.log", environment, cwd=folder)
    try:
        yield server
    finally:
        server.stop()


def wait_for_server(server: Child, port: int) -> None:
    """Return when it answers.

    Raises:
        RunFailed: it does not.
    """
    server.wait_until(lambda: is_healthy(port), timeout_s=READY_S)


def is_healthy(port: int) -> bool:
    """Whether a Prefect server answers on this port of loopback."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def is_deployed(port: int) -> bool:
    """Whether all deployments that are served are known to the server: the janitor is the last."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/deployments/name/janitor/degrain", timeout=5).close()
    except OSError:
        return False
    return True
