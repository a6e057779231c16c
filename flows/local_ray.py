"""A Ray head on this machine for as long as we need one: a child process that ends with us and asks for a token."""

import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flows.child import Child, free_ports
from pipeline.errors import RunFailed
from pipeline.room import usable_cores
from pipeline.scratch import PREFIX, RAY_CHARACTERS, scratch_folder, temporary_folder

OBJECT_STORE_BYTES = 128 * 1024**2  # the weights and the receipts: pixels never enter it
READY_S = 120.0
ATTEMPTS = 3  # at free ports: another process may take one first


@dataclass(frozen=True, slots=True, kw_only=True)
class RayAddress:
    """Where a Ray cluster takes jobs.

    Attributes:
        url: of its dashboard, such as http://127.0.0.1:8265.
        token: that it is told; None for the one that Ray finds in this process's environment (RAY_AUTH_TOKEN, …).
        metrics_url: what Prometheus scrapes, where that is known.
    """

    url: str
    token: str | None = field(default="", repr=False)
    metrics_url: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


@contextmanager
def local_ray(
    folder: Path | None = None,
    *,
    token: str = "",
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[RayAddress, Child]]:
    """A Ray head on loopback while the block runs, and its process; everything that runs on it ends with it.

    Args:
        folder: where its log goes; None for a temporary one.
        token: that it asks for; a random one if it is empty.
        port: of its dashboard; None for any that is free.
        environment: of its jobs, beside this process's own.

    Raises:
        RunFailed: it does not start.
    """
    token = token or secrets.token_hex(32)
    place = temporary_folder(most_characters=RAY_CHARACTERS - len(f"/{PREFIX}{'x' * 8}"))
    with scratch_folder(within=place) as scratch:
        log = (folder or scratch) / "ray.log"
        for attempt in range(ATTEMPTS):
            ports = _free_ports(port)
            head = Child("Ray", _command(scratch, ports), log, _environment(token, environment or {}))
            address = RayAddress(
                url=f"http://127.0.0.1:{ports['dashboard-port']}",
                token=token,
                metrics_url=f"http://127.0.0.1:{ports['metrics-export-port']}/metrics",
            )
            try:
                head.wait_until(partial(_takes_jobs, address), timeout_s=READY_S)
                break
            except RunFailed:
                head.stop()
                if attempt == ATTEMPTS - 1:
                    raise
            except BaseException:
                head.stop()
                raise
        try:
            yield address, head
        finally:
            head.stop()


def _free_ports(dashboard: int | None) -> dict[str, int]:
    names = [
        *("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port"),
        *("dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port"),
    ]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    return ports if dashboard is None else {**ports, "dashboard-port": dashboard}


def _command(temporary: Path, ports: Mapping[str, int]) -> list[str]:
    return [
        *(sys.executable, "-m", "flows.ray_head", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"),
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={temporary}",
        *(f"--{name}={port}" for name, port in ports.items()),
        f"--num-cpus={usable_cores()}",
    ]


def _environment(token: str, given: Mapping[str, str]) -> dict[str, str]:
    return {
        **given,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",  # its jobs run our `python`
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",  # or it reports that it is disabled
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # a training that is stopped writes a checkpoint; Ray itself waits for 3 s
    }


def _takes_jobs(address: RayAddress) -> bool:
    """Whether a node is there to do them: the dashboard answers before, and on a busy machine the node may yet fail."""
    alive = "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
    request = urllib.request.Request(f"{address.url}/api/v0/nodes?{alive}", headers=address.headers)  # noqa: S310  # http, our own
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  # the same
            return bool(json.load(answer)["data"]["result"]["result"])
    except (OSError, ValueError, LookupError, TypeError):  # it does not answer, or has nothing to say yet
        return False
