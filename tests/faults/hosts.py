"""A cluster of several hosts for tests: an S3 server, Ray's head, three hosts with a GPU each, one more, and a laptop.

They are services of compose.yaml, so each has its own address, disk and memory, and asks for its secret. The GPUs are
declared, as no machine of the tests needs to have any: Ray counts what a node says that it has.
"""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from containers import Containers

from pipeline.events import Event, parse_event

GPU_HOSTS = ("gpu-1", "gpu-2", "gpu-3")
SPARE = "gpu-4"
GPU_HOST = {"command": ["--num-gpus=1", "--num-cpus=1"], "environment": {"OMP_NUM_THREADS": "1"}}
# Of a head: how soon a node that does not answer is taken for lost. By default that takes up to a minute.
IMPATIENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}
EXCHANGE = "exchange:/exchange"  # a folder that this process, the head and the laptop see


class FaultLog:
    """What was done to the hosts and what came of it, by the second: in a file, and on standard output."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start_s = time.monotonic()

    def __call__(self, text: str) -> None:
        line = f"{time.monotonic() - self._start_s:6.1f} s  {text}"
        print(line, flush=True)
        with self._path.open("a") as file:
            print(line, file=file)


class Hosts:
    """The hosts that are up; `log` tells what happens to them."""

    def __init__(self, containers: Containers, log: FaultLog) -> None:
        self._containers = containers
        self._log = log
        self.exchange = containers.volume("exchange")

    def work(self, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a job that the head drives, as they come, to its good end."""
        command = [sys.executable, "-m", "pipeline.jobs", json.dumps(job)]
        self._log(f"{job['verb']} begins")
        said: list[str] = []
        with subprocess.Popen(
            self._containers.inside("ray-head", command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                event = parse_event(line) or {"event": None}
                if event["event"] in (Event.LOG, Event.ERROR) and event.get("level") != "INFO":
                    self._log(f"the job says: {event['message']}")
                yield event
        assert process.returncode == 0, "".join(said[-20:])
        self._log(f"{job['verb']} is done")

    def replace(self, host: str, other: str) -> None:
        """Cut a host off, and bring another one in."""
        self._containers.network.cut_off(host)
        self._log(f"{host} is cut off: its packets vanish")
        self._containers.start(other)
        self._log(f"{other} is started")

    def reconnect(self, host: str) -> None:
        self._containers.network.reconnect(host)
        self._log(f"{host} is connected again, too late")

    def on_laptop(self, *command: str) -> str:
        """What a command prints on a host that is no part of the cluster."""
        done = self._containers.run("laptop", command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def copy(self, url: str) -> Path:
        """All that is below a URL, in a folder that this process sees."""
        name = url.rpartition("/")[2]
        self.on_laptop(sys.executable, "-c", COPY_FROM.format(url, f"/exchange/{name}"))
        return self.exchange / name

    def workers_said(self, host: str, text: str) -> bool:
        """Whether one of Ray's workers on a host has written that."""
        logs = self._containers.volume(host).glob("ray/session_*/logs/worker-*.err")
        return any(text in path.read_text(errors="replace") for path in logs)


COPY_FROM = "import s3fs; s3fs.S3FileSystem().get({!r}, {!r}, recursive=True)"
COPY_TO = """
import time, s3fs
store = s3fs.S3FileSystem()
while True:
    try:
        store.mkdir("photos")
        break
    except FileNotFoundError:  # the server answers before it can make buckets
        time.sleep(0.2)
store.put({!r}, {!r}, recursive=True)
"""


@contextmanager
def hosts(folder: Path, photos: Mapping[str, bytes]) -> Iterator[Hosts]:
    """Hosts with those photos in s3://photos/source. The last one of `GPU_HOSTS` and `SPARE` is not up yet."""
    containers = Containers(folder)
    given = containers.services
    worker, head = given["ray-worker"], given["ray-head"]
    head["environment"] |= IMPATIENT
    head["volumes"].append(EXCHANGE)
    gpu_hosts = {}
    for name in (*GPU_HOSTS, SPARE):
        gpu_hosts[name] = copy.deepcopy(worker) | {"volumes": [f"{name}:/tmp"]}
        gpu_hosts[name]["command"] += GPU_HOST["command"]
    laptop = copy.deepcopy(worker) | {"volumes": ["laptop:/tmp", EXCHANGE]}
    containers.services = {"s3": given["s3"], "ray-head": head, **gpu_hosts, "laptop": laptop}
    with containers:
        log = FaultLog(folder / "faults.log")
        containers.start(*GPU_HOSTS)
        containers.wait_until_healthy(*GPU_HOSTS)
        log(f"{', '.join(GPU_HOSTS)} are up, each with a GPU that it declares")
        running = Hosts(containers, log)
        for name, data in photos.items():
            path = running.exchange / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        running.on_laptop(sys.executable, "-c", COPY_TO.format("/exchange/source/", "photos/source/"))
        yield running
