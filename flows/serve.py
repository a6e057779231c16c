"""`degrain up`: all that the flows need, on this machine alone: a Prefect server, a Ray head, perhaps an S3 server.

Everything but the links is in child processes that end with this one, even if it is killed.
"""

import fcntl
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from flows.child import Child, answers, free_ports
from flows.local_prefect import is_deployed, local_server, prefect_environment, wait_for_server
from flows.local_ray import RayAddress, local_ray
from flows.local_s3 import BUCKET, LocalS3, find_server
from pipeline.errors import RunFailed
from pipeline.redaction import explain

log = logging.getLogger(__name__)

READY_S = 120.0
SOURCE, TARGET = f"s3://{BUCKET}/noisy", f"s3://{BUCKET}/clean"
CHECK_S = 0.5
FOR_SHELLS = ("PREFECT_API_URL", "PREFECT_PROFILES", "DO_NOT_TRACK", "RAY_", "AWS_")  # beginnings of variables


@dataclass(frozen=True, slots=True, kw_only=True)
class UpConfig:
    """What is started.

    Attributes:
        folder: of databases, logs, and the buckets.
        port: of the Prefect server and its UI; 0 for any that is free.
        ray_port: of Ray's dashboard, and its Jobs API; 0 for any that is free.
        has_s3: whether there is an S3 server, with sample photos in it.
    """

    folder: Path
    port: int = 4200
    ray_port: int = 8265
    has_s3: bool = False

    def __post_init__(self) -> None:
        if "?" in str(self.folder.absolute()):
            raise ValueError(f"{self.folder} holds a '?', where its database's name would end: name another")
        for name in ("port", "ray_port"):
            port = getattr(self, name)
            if not 0 <= port <= 65535:
                raise ValueError(f"{name} is {port}: expected a port, from 1 to 65535, or 0")
            if port and answers(port):
                raise ValueError(f"port {port} is taken: is degrain up already? Otherwise name another one")
        if self.port and self.port == self.ray_port:
            raise ValueError(f"port and ray_port are both {self.port}: name two")
        if self.has_s3:
            find_server()


def up(config: UpConfig, say: Callable[[str], None]) -> None:
    """Start everything, say where it is, and stop everything when this process is interrupted or told to end.

    Raises:
        ValueError: another one has the folder.
        RunFailed: something does not start, or ended by itself.
    """
    config = replace(config, port=config.port or free_ports(1)[0])
    with alone_in(config.folder), _interrupted_once():
        try:
            with _everything(config, say) as (services, runner, links):
                for line in links:
                    say(line)
                while runner.is_running:
                    for service in services:
                        if not service.is_running:
                            say(f"{service.name} has ended: starting it again …")  # what runs waits for it, or retries
                            service.restart()
                    time.sleep(CHECK_S)
                raise RunFailed(f"{runner.name} has ended: see {config.folder / 'runner.log'}")
        except KeyboardInterrupt:  # how it is meant to end
            say("stopped")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """One process at a time has a folder of databases: another would take up the runs that this one is at work on.

    Raises:
        ValueError: another one has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ValueError(f"{folder} cannot be a folder of degrain up: {explain(error)}") from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"degrain up is at work in {folder} already: name another folder") from error
    except OSError as error:  # a file system that has no locks
        log.info("nothing keeps another degrain up from %s: %s", folder, error)


@contextmanager
def _everything(config: UpConfig, say: Callable[[str], None]) -> Iterator[tuple[list[Child], Child, list[str]]]:
    """All services, each with what it needs of the others; they stop in the opposite order.

    Gives the servers, what runs the flows, and the links.
    """
    folder = config.folder.absolute()
    environment = prefect_environment(folder / "prefect", config.port)
    links = [f"Prefect   http://127.0.0.1:{config.port}/deployments"]
    with ExitStack() as stack:
        say("starting a Prefect server …")
        server = stack.enter_context(local_server(folder / "prefect", config.port, environment))
        services, parameters = [server], dict[str, object]()
        if config.has_s3:
            say("starting an S3 server, with sample photos …")
            s3 = stack.enter_context(LocalS3(folder / "s3"))
            services.append(s3.process)
            environment |= s3.environment
            parameters = _sample_parameters()
            _write_samples(s3)
            links.append(f"S3        {s3.environment['AWS_ENDPOINT_URL']}, photos in {SOURCE}")
        say("starting Ray …")
        ray, head = stack.enter_context(local_ray(folder, port=config.ray_port or None, environment=environment))
        services.append(head)
        links += [f"Ray       {ray.url}", f"Metrics   {ray.metrics_url}"]
        stack.callback(_stop_jobs, ray)
        environment |= _ray_environment(ray)
        wait_for_server(server, config.port)
        command = [sys.executable, "-m", "flows.deployments"]
        environment["DEGRAIN_PARAMETERS"] = json.dumps(parameters)
        runner = Child("what runs the flows", command, folder / "runner.log", environment, cwd=folder / "prefect")
        stack.callback(runner.stop)
        runner.wait_until(lambda: is_deployed(config.port), timeout_s=READY_S)
        links.append(f"Shell     {write_environment(folder / 'environment.sh', environment)}")
        yield services, runner, links


def _sample_parameters() -> dict[str, object]:
    """What the forms are filled in with: of the sample photos."""
    denoise = {"source": SOURCE, "target": TARGET}
    return {
        "denoise": {"settings": denoise},
        "nightly": {"settings": {"denoise": denoise}},
        "ingest": {"settings": {"source": SOURCE, "target": f"s3://{BUCKET}/packed"}},
    }


def _write_samples(s3: LocalS3) -> None:
    """Photos with camera noise, in the bucket; by a process of its own, for they need the libraries of the pipeline."""
    s3.run([sys.executable, "-m", "pipeline.samples", SOURCE])


def _stop_jobs(ray: RayAddress) -> None:
    """End what is at work: Ray itself would wait for it, be killed after a while, and leave processes for a moment."""
    from flows.ray_jobs import ClusterLost, RayJobs

    with suppress(ClusterLost, RunFailed):  # then they end with Ray
        jobs = RayJobs(ray)
        for job in jobs.unfinished():
            jobs.stop(str(job.submission_id))


def _ray_environment(ray: RayAddress) -> dict[str, str]:
    return {"RAY_API_SERVER_ADDRESS": ray.url, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray.token or ""}


def write_environment(path: Path, environment: Mapping[str, str]) -> str:
    """What another shell needs to talk to all this; it holds the token, and is for this user alone.

    Returns the command that has a shell take it up.
    """
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    names = [name for name in environment if name.startswith(FOR_SHELLS)]
    path.write_text("".join(f"export {name}={shlex.quote(environment[name])}\n" for name in sorted(names)))
    return f"source {shlex.quote(str(path))}"


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """The first SIGINT or SIGTERM interrupts; further ones do not disturb the way out."""
    is_on_its_way = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_on_its_way
        if not is_on_its_way:
            is_on_its_way = True
            raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
