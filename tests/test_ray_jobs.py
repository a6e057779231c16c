"""How the Jobs API of Ray is talked to when it fails; the API is a stand-in on loopback that answers as it is told."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import ray

from flows import ray_jobs
from flows.local_ray import RayAddress
from flows.ray_jobs import ClusterLost, RayJobs

OK, ERROR, UNAUTHORIZED, DROPPED = 200, 500, 401, 0
JOB, STOP, ACTORS = "/api/jobs/job", "/api/jobs/job/stop", "/api/v0/actors"
DETAILS = {"type": "SUBMISSION", "submission_id": "job", "job_id": "01000000", "entrypoint": "true"}


class Api:
    """What it answers next at a path: a status, and what to say; the last of them again and again."""

    def __init__(self) -> None:
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
            if status != DROPPED:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    for name in ("TICK_S", "STATUS_INTERVAL_S"):
        monkeypatch.setattr(ray_jobs, name, 0.02)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=[0.02]).start()
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
