"""How the Jobs API of Ray is talked to when it fails; the API is a stand-in on loopback that answers as it is told."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from ray.dashboard.modules import dashboard_sdk
from ray.job_submission import JobDetails

from flows import local_ray, ray_jobs
from flows.local_ray import RayAddress
from flows.ray_jobs import ClusterLost, RayJobs, address_of

OK, ERROR, UNAUTHORIZED, DROPPED, SILENT = 200, 500, 401, 0, -1
TOKEN = "0" * 64
JOB, STOP, ACTORS = "/api/jobs/job", "/api/jobs/job/stop", "/api/v0/actors"
DETAILS = {"type": "SUBMISSION", "submission_id": "job", "job_id": "01000000", "entrypoint": "true"}


class Api:
    """What it answers next at a path: a status, and what to say; the last of them again and again."""

    def __init__(self) -> None:
        self.heard: list[str] = []  # credentials
        self.answers: dict[str, list[tuple[int, object]]] = {"/api/version": [(OK, {"ray_version": ray.__version__})]}

    def next(self, path: str) -> tuple[int, object]:
        waiting = self.answers[path.partition("?")[0]]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def address(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayAddress]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = api.next(self.path)
            api.heard.append(self.headers.get("Authorization", ""))
            if status == SILENT:
                time.sleep(1)
            elif status != DROPPED:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    own = {"Authorization": f"Bearer {TOKEN}"}  # Ray reads its environment once in a process
    monkeypatch.setattr(dashboard_sdk, "get_auth_headers_if_auth_enabled", lambda _: own)
    for name in ("TICK_S", "STATUS_INTERVAL_S"):
        monkeypatch.setattr(ray_jobs, name, 0.02)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02]).start()
        yield RayAddress(url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.fixture
def jobs(address: RayAddress) -> RayJobs:
    return RayJobs(address)


def test_a_cluster_that_asks_for_another_token_takes_no_jobs(address: RayAddress, api: Api) -> None:
    api.answers["/api/version"] = [(UNAUTHORIZED, "Unauthorized: invalid token")]

    with pytest.raises(ClusterLost, match=r"no Ray cluster takes jobs .*: unauthorized: invalid token"):
        RayJobs(address)


def test_a_busy_job_is_followed_through_one_answer_that_fails(
    jobs: RayJobs, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost_s = 1.0
    api.answers[JOB] = [(DROPPED, None), (OK, {**DETAILS, "status": "SUCCEEDED"})]

    async def tail(_job_id: str) -> AsyncIterator[str]:
        deadline_s = time.monotonic() + 1.2 * lost_s
        while time.monotonic() < deadline_s:
            yield "a line\n"
            await asyncio.sleep(0.002)

    monkeypatch.setattr(jobs._client, "tail_job_logs", tail)

    assert set(jobs.follow("job", lost_s=lost_s)) == {"a line", None}


def test_lines_that_come_while_the_job_is_found_to_have_ended_are_followed(
    jobs: RayJobs, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers[JOB] = [(OK, {**DETAILS, "status": "SUCCEEDED"})]
    is_asked, find = threading.Event(), jobs.find

    async def tail(_job_id: str) -> AsyncIterator[str]:
        while not is_asked.is_set():
            await asyncio.sleep(0.002)
        yield "the last line\n"

    def find_while_lines_come(job_id: str) -> JobDetails | None:
        is_asked.set()
        for thread in threading.enumerate():
            if isinstance(thread, ray_jobs._Tail):
                thread.join()
        return find(job_id)

    monkeypatch.setattr(jobs._client, "tail_job_logs", tail)
    monkeypatch.setattr(jobs, "find", find_while_lines_come)

    assert "the last line" in list(jobs.follow("job", lost_s=1.0))


@pytest.mark.parametrize("failing", [JOB, STOP, ACTORS])
@pytest.mark.parametrize("status", [ERROR, UNAUTHORIZED, DROPPED])
def test_a_cluster_that_fails_while_a_job_is_stopped_is_lost(
    failing: str, status: int, jobs: RayJobs, api: Api
) -> None:
    running, stopped = ((OK, {**DETAILS, "status": status}) for status in ("RUNNING", "STOPPED"))
    api.answers |= {JOB: [running, stopped], STOP: [(OK, {"stopped": True})], ACTORS: [(OK, {})]}
    api.answers[failing] = [(status, {"result": False, "msg": "busy", "data": {}})]

    with pytest.raises(ClusterLost):
        jobs.stop("job")


def test_the_token_of_this_process_is_for_its_own_cluster_alone(
    address: RayAddress, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"{address.url}/")
    for url in (None, address.url):
        RayJobs(address_of(url))
    assert set(api.heard) == {f"Bearer {TOKEN}"}

    api.heard.clear()
    RayJobs(address_of(address.url.replace("127.0.0.1", "localhost")))
    assert set(api.heard) == {""}


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_process_in_token_mode_that_has_no_token_tells_the_one_that_it_is_given(
    token: str, address: RayAddress, api: Api, tmp_path: Path
) -> None:
    code = f"from flows.ray_jobs import RayJobs, RayAddress; RayJobs(RayAddress(url={address.url!r}, token={token!r}))"
    tokenless = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}

    subprocess.run(
        [sys.executable, "-c", code], env={**tokenless, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}, check=True
    )

    assert set(api.heard) == {f"Bearer {token}" if token else ""}


def test_jobs_go_where_a_form_says_and_not_where_the_environment_does(
    address: RayAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    RayJobs(address_of(address.url))


def test_a_cluster_that_never_answers_is_lost(address: RayAddress, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "REQUEST_TIMEOUT_S", 0.1)
    jobs = RayJobs(address)
    api.answers[JOB] = [(SILENT, None)]

    with pytest.raises(ClusterLost, match=r"does not answer: .*timed out"):
        jobs.find("job")


def test_nobody_waits_for_ever_for_a_job_to_end(jobs: RayJobs, api: Api) -> None:
    api.answers[JOB] = [(OK, {**DETAILS, "status": "RUNNING"})]

    assert jobs.wait("job", timeout_s=0.1) is None


def test_a_job_that_is_stopped_may_end_in_order_before_it_is_given_up() -> None:
    name = "RAY_JOB_STOP_WAIT_TIME_S"
    dockerfile = (Path(__file__).parents[1] / "deploy/Dockerfile").read_text()
    for waits_s in (local_ray._environment("", {})[name], *re.findall(rf"{name}=(\d+)", dockerfile)):
        assert 10 <= int(waits_s) <= ray_jobs.STOP_TIMEOUT_S / 2
