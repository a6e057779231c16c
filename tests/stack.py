"""`degrain up` for tests: a Prefect server, a Ray head with its Jobs API, an S3 server, all real, all on loopback."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import tenacity

from flows.local_prefect import is_healthy
from flows.local_ray import RayAddress
from flows.ray_jobs import RayJobs

READY_S = 150
BUSY = 503


class Server:
    """A Prefect server, as a person or another program talks to it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    @property
    def ui(self) -> str:
        """Address of the UI."""
        return self.environment["PREFECT_API_URL"].removesuffix("/api")

    @tenacity.retry(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, HTTPError) and error.code == BUSY),
        wait=tenacity.wait_fixed(0.5),
        stop=tenacity.stop_after_attempt(20),
        reraise=True,
    )
    def api(self, method: str, path: str, body: object = None) -> Any:
        """What the Prefect server answers. While its SQLite is locked it says so: its own clients ask again, too."""
        request = urllib.request.Request(
            self.environment["PREFECT_API_URL"] + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                data = answer.read()
        except HTTPError as error:
            error.close()  # it is an answer, too, with a socket
            raise
        return json.loads(data) if data else None

    def is_reachable(self) -> bool:
        return is_healthy(int(self.ui.rpartition(":")[2]))

    def begin(self, flow: str, parameters: dict[str, Any], **values: object) -> str:
        """Ask for a run of a deployment, as the UI does; returns its id."""
        deployment = self.api("GET", f"/deployments/name/{flow}/degrain")
        run = self.api("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters, **values})
        return str(run["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self.api("GET", f"/flow_runs/{run_id}"))

    def set_state(self, run_id: str, kind: str, **values: object) -> None:
        self.api("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": kind, **values}, "force": False})

    def wait(self, run_id: str, timeout_s: float = 120) -> dict[str, Any]:
        """The run when it has ended."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
        wait_until(lambda: self.run(run_id)["state_type"] in ends, timeout_s)
        return self.run(run_id)

    def artifacts(self, run_id: str) -> dict[str, Any]:
        """The artifacts of a run by their keys."""
        asked = {"artifacts": {"flow_run_id": {"any_": [run_id]}}, "sort": "CREATED_DESC", "limit": 100}
        return {artifact["key"]: artifact for artifact in self.api("POST", "/artifacts/filter", asked)}

    def log(self, run_id: str) -> list[tuple[int, str]]:
        """Level and message of a run's log lines."""
        asked = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [(line["level"], line["message"]) for line in self.api("POST", "/logs/filter", asked)]


class Stack(Server):
    """What runs, and how a person or another program talks to it."""

    def __init__(self, folder: Path, *, within: Sequence[str] = ()) -> None:
        """Start it; `within` is what the command begins with that is to run on another host."""
        self.folder = folder
        command = [
            *within,
            sys.executable,
            "-m",
            "flows.cli",
            "up",
            "--folder",
            folder,
            "--port",
            "0",
            "--ray-port",
            "0",
            "--s3",
        ]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said = []
        while not (line := self.process.stdout.readline()).startswith("Shell"):
            said.append(line)
            assert line, f"it ended with {self.process.wait()}: {''.join(said)}"
        self.links = dict(re.findall(r"^(\w+) +(http[^\s,]+)", "".join(said), re.MULTILINE))
        script = shlex.split((folder / "environment.sh").read_text())
        super().__init__(dict(part.split("=", 1) for part in script if part != "export"))

    @property
    def ray(self) -> RayJobs:
        return RayJobs(
            RayAddress(url=self.environment["RAY_API_SERVER_ADDRESS"], token=self.environment["RAY_AUTH_TOKEN"])
        )

    def metrics(self) -> str:
        """What Ray's endpoint for Prometheus says."""
        with urllib.request.urlopen(self.links["Metrics"], timeout=10) as answer:
            return str(answer.read().decode())

    def jobs_of(self, run_id: str) -> list[str]:
        """The Ray jobs of a run that are at work."""
        return [str(job.submission_id) for job in self.ray.unfinished() if run_id in str(job.submission_id)]

    def actors_of(self, job_id: str) -> list[str]:
        """The classes of the actors that a job has or had, one each."""
        number = self.ray.find(job_id).job_id
        query = f"filter_keys=job_id&filter_predicates=%3D&filter_values={number}&detail=1&limit=1000"
        request = urllib.request.Request(
            f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/v0/actors?{query}",
            headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [actor["class_name"] for actor in json.load(answer)["data"]["result"]["result"]]

    def execute(self, run_id: str, **environment: str) -> subprocess.Popen[bytes]:
        """A process of its own that does a run, as a worker's would."""
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", "flow-run", "execute", run_id],
            env={**os.environ, **self.environment, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def processes(self) -> list[str]:
        """Processes that belong to it, whoever their parents are."""
        listed = subprocess.run(["ps", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
        ports = [self.environment[name].rpartition(":")[2] for name in ("RAY_API_SERVER_ADDRESS", "AWS_ENDPOINT_URL")]
        marks = [str(self.folder), *ports, self.environment["PREFECT_API_URL"].split(":")[2].split("/")[0]]
        return [line for line in listed.splitlines() if any(mark in line for mark in marks)]

    def service(self, command: str) -> int:
        """Process of that child of `degrain up` that has this in its command."""
        asked = ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args=", "-ww"]
        listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        [line] = [line for line in listed.splitlines() if command in line]
        return int(line.split()[0])

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.process.stdout.close()


@contextmanager
def stack(folder: Path, *, within: Sequence[str] = ()) -> Iterator[Stack]:
    running = Stack(folder, within=within)
    try:
        yield running
    finally:
        running.stop()


def processes_of(run_id: str) -> dict[int, str]:
    """The commands of all processes of a flow run, a Ray of its own among them, by their numbers."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_of_run = f"PREFECT__FLOW_RUN_ID={run_id}".encode() in (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            if command and (is_of_run or run_id in command):
                found[int(process.name)] = command
    return found


def wait_until(is_so: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.2)
