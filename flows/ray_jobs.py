"""Jobs on a Ray cluster through its Jobs API: begun once, followed, stopped; and those that nobody waits for any more.

A job's name follows from whose it is and from how often that was tried, so that whoever asks again finds it.
"""

import asyncio
import json
import logging
import os
import queue
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from flows.local_ray import RayAddress
from pipeline.errors import DegrainError, RunFailed

log = logging.getLogger(__name__)

TICK_S = 0.5
STATUS_INTERVAL_S = 5.0
STOP_TIMEOUT_S = 60.0
LOG_TIMEOUT_S = 15.0  # after a job ended, for the rest of its log: its node may be gone
REQUEST_TIMEOUT_S = 30.0  # for any answer: a host that is cut off gives none
OWN_ADDRESS = "RAY_API_SERVER_ADDRESS"  # Ray's own variable
OWNER, STAGE, ORIGIN = "degrain_owner", "degrain_stage", "degrain_origin"
_UNREACHABLE = (ConnectionError, requests.RequestException, aiohttp.ClientError, TimeoutError, AuthenticationError)


class ClusterLost(DegrainError):
    """The Ray cluster does not answer any more. What is committed stays, and another attempt does the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobName:
    """Whose a job is.

    Attributes:
        owner: the flow run, by its id.
        stage: which of its jobs.
        origin: the server that the flow run is on: another one knows nothing of it.
    """

    owner: str
    stage: str
    origin: str

    def attempt(self, number: int) -> str:
        """The submission id of an attempt; the first is 1."""
        return f"prefect-{self.owner}-{self.stage}-{number}"

    @property
    def metadata(self) -> dict[str, str]:
        return {OWNER: self.owner, STAGE: self.stage, ORIGIN: self.origin}


class RayJobs:
    """The jobs of one cluster."""

    def __init__(self, address: RayAddress) -> None:
        """Connect.

        Raises:
            ClusterLost: nothing answers there, or it asks for another token.
        """
        self._address = address
        try:
            self._client = _Client(address)
        except (*_UNREACHABLE, RuntimeError) as error:
            is_refused = isinstance(error, AuthenticationError) and address.token == ""
            why = f"; the token that is known here is for {OWN_ADDRESS} alone" if is_refused else ""
            raise ClusterLost(f"no Ray cluster takes jobs at {address.url}: {_line(error)}{why}") from error

    def begin(self, name: JobName, job: Mapping[str, object]) -> tuple[str, bool]:
        """The submission id of the job, and whether it was there already: it is never begun while it runs or once it
        succeeded, and anew after it failed or was stopped.

        Raises:
            ClusterLost: the cluster does not answer.
        """
        entrypoint = f"exec python -P -m pipeline.jobs {shlex.quote(json.dumps(job))}"
        while True:
            number, is_there = self._latest(name)
            if is_there:
                return name.attempt(number), True
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=name.attempt(number), metadata=name.metadata
                )
            except RuntimeError:
                if self.find(name.attempt(number)) is None:  # else someone else was first
                    raise
            except _UNREACHABLE as error:
                raise ClusterLost(f"{self._address.url} took no job: {_line(error)}") from error
            else:
                return name.attempt(number), False

    def is_there(self, name: JobName) -> bool:
        """Whether `begin` would find the job, rather than begin it."""
        return self._latest(name)[1]

    def _latest(self, name: JobName) -> tuple[int, bool]:
        """The attempt that counts, and whether it was begun: those before it failed, or were stopped."""
        number = 1
        while (found := self.find(name.attempt(number))) is not None:
            if found.status not in (JobStatus.FAILED, JobStatus.STOPPED):
                return number, True
            number += 1
        return number, False

    def find(self, job_id: str) -> JobDetails | None:
        """What is known of a job; None if it is not known there.

        Raises:
            ClusterLost: the cluster does not answer.
        """
        with self._answering():
            try:
                return self._client.get_job_info(job_id)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    def worked_s(self, job_id: str) -> float:
        """For how many seconds a job has been at work by now, by the clocks of its cluster and of this machine; 0 if it
        has ended, or is not known there.

        Raises:
            ClusterLost: the cluster does not answer.
        """
        details = self.find(job_id)
        if details is None or details.start_time is None or details.status.is_terminal():
            return 0.0
        return max(0.0, time.time() - details.start_time / 1000)

    def follow(self, job_id: str, *, lost_s: float) -> Iterator[str | None]:
        """The lines of a job's log from its start on, as they come, and None where none came for a while; ends with it.

        Args:
            job_id: the job.
            lost_s: for how long neither lines may come nor the cluster tell of the job.

        Raises:
            ClusterLost: it was for longer, or the cluster does not know the job any more.
        """
        tail = _Tail(self._client, job_id)
        tail.start()
        seen_s = checked_s = line_s = time.monotonic()
        try:
            while True:
                has_ended = tail.has_ended  # looked at before the queue is: no line comes behind one that is empty then
                with suppress(queue.Empty):
                    yield tail.lines.get(timeout=TICK_S)
                    seen_s = line_s = time.monotonic()
                    continue
                yield None
                now_s = time.monotonic()
                if now_s - checked_s < (TICK_S if has_ended else STATUS_INTERVAL_S):
                    continue
                checked_s = now_s
                try:
                    details = self.find(job_id)
                except ClusterLost:
                    if now_s - seen_s > lost_s:
                        raise
                    continue
                seen_s = now_s
                if details is None:
                    raise ClusterLost(f"the Ray cluster at {self._address.url} does not know the job {job_id} any more")
                if details.status.is_terminal() and (has_ended or now_s - line_s > LOG_TIMEOUT_S):
                    return
        finally:
            tail.stop()

    def wait(self, job_id: str, *, timeout_s: float) -> JobDetails | None:
        """How a job ended, whose last line has been read; None if it is still there after so long.

        Raises:
            ClusterLost: the cluster does not answer, or does not know the job any more.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            details = self.find(job_id)
            if details is None:
                raise ClusterLost(f"the Ray cluster at {self._address.url} does not know the job {job_id} any more")
            if details.status.is_terminal():
                return details
            if time.monotonic() > deadline_s:
                return None
            time.sleep(TICK_S / 2)

    def stop(self, job_id: str) -> None:
        """End a job, and return when none of its processes works any more.

        Raises:
            RunFailed: it, or an actor of it, goes on.
            ClusterLost: the cluster does not answer.
        """
        details = self.find(job_id)
        if details is None:
            return
        if not details.status.is_terminal():
            with self._answering():
                self._client.stop_job(job_id)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while True:
            details = self.find(job_id)
            if details is None or (details.status.is_terminal() and not self.has_actors(details)):
                return
            if time.monotonic() > deadline:
                raise RunFailed(f"the Ray job {job_id} still works {STOP_TIMEOUT_S:.0f} s after it was stopped")
            time.sleep(TICK_S / 2)

    def stop_all(self, owner: str) -> list[str]:
        """Stop the jobs of a flow run; returns those that were still at work."""
        found = [job for job in self.unfinished() if (job.metadata or {}).get(OWNER) == owner]
        for job in found:
            self.stop(str(job.submission_id))
        return [str(job.submission_id) for job in found]

    def stop_orphans(self, origin: str, is_wanted: Callable[[str], bool]) -> list[str]:
        """Stop the jobs from a server of which `is_wanted` says of their owner that nobody waits for them."""
        owners = {(job.metadata or {}).get(OWNER, "") for job in self.unfinished() if _origin(job) == origin}
        return [job for owner in sorted(owners) if owner and not is_wanted(owner) for job in self.stop_all(owner)]

    def unfinished(self) -> list[JobDetails]:
        """Jobs that run or are about to.

        Raises:
            ClusterLost: the cluster does not answer.
        """
        with self._answering():
            return [job for job in self._client.list_jobs() if not job.status.is_terminal() and job.submission_id]

    def has_actors(self, details: JobDetails) -> bool:
        """Whether an actor of a job is alive, though the job may have ended.

        Raises:
            ClusterLost: the cluster does not answer.
        """
        with self._answering():
            return details.job_id is not None and self._client.count_actors(details.job_id) > 0

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ClusterLost(f"{self._address.url} fails: {_line(error)}") from error
        except _UNREACHABLE as error:
            raise ClusterLost(f"{self._address.url} does not answer: {_line(error)}") from error


class _Client(JobSubmissionClient):
    """Also knows the actors of a job, and asks nobody but whom it is told to.

    Ray's own asks where RAY_API_SERVER_ADDRESS or RAY_ADDRESS say, whatever it is told, waits for ever for an answer,
    and tells the token of this process to whomever it asks.
    """

    def __init__(self, address: RayAddress) -> None:
        self._client_ray_version = ray.__version__
        is_told = address.token is not None
        super(JobSubmissionClient, self).__init__(address.url, headers={"Authorization": ""} if is_told else None)
        if is_told:  # Ray looks for a token of its own where it has no such header, and fails if there is none
            self._headers = address.headers
        self._check_connection_and_version()

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:  # Any: Ray's own
        return super()._do_request(*arguments, timeout=REQUEST_TIMEOUT_S, **options)

    def count_actors(self, ray_job_id: str) -> int:
        """How many actors of a job, as Ray's core numbers it, are alive."""
        filters = [("job_id", "=", ray_job_id), ("state", "!=", "DEAD")]
        query = [
            *(("filter_keys", key) for key, _, _ in filters),
            *(("filter_predicates", predicate) for _, predicate, _ in filters),
            *(("filter_values", value) for _, _, value in filters),
            ("limit", "1"),
        ]
        answer = self._do_request("GET", f"/api/v0/actors?{urlencode(query)}")
        if answer.status_code != requests.codes.ok:
            self._raise_error(answer)
        return len(answer.json()["data"]["result"]["result"])


class _Tail(threading.Thread):
    """Reads a job's log into a queue of whole lines, and again from where it was when the connection breaks."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        super().__init__(name=f"log of {job_id}", daemon=True)
        self.lines: queue.Queue[str] = queue.Queue(maxsize=10_000)
        self.has_ended = False
        self._client = client
        self._job_id = job_id
        self._delivered = 0
        self._is_wanted = True

    def stop(self) -> None:
        self._is_wanted = False

    def run(self) -> None:
        while self._is_wanted:
            try:
                asyncio.run(self._read())
            except (*_UNREACHABLE, RuntimeError) as error:
                log.info("the log of %s broke off: %s", self._job_id, _line(error))
                time.sleep(TICK_S)
            else:
                break
        self.has_ended = True

    async def _read(self) -> None:
        waiting, number = "", 0
        async for chunk in self._client.tail_job_logs(self._job_id):
            *lines, waiting = (waiting + chunk).split("\n")
            for line in lines:
                number += 1
                if number > self._delivered:
                    await self._put(line)
                    self._delivered = number
            if not self._is_wanted:
                return
        if waiting:
            await self._put(waiting)

    async def _put(self, line: str) -> None:
        while self._is_wanted:
            with suppress(queue.Full):
                self.lines.put_nowait(line)
                return
            await asyncio.sleep(TICK_S)


def address_of(url: str | None) -> RayAddress | None:
    """Where jobs are taken: there, or where Ray's own variable RAY_API_SERVER_ADDRESS says, if it is set.

    The token of this process is for the latter alone: whoever fills in a form could name a host of theirs.
    """
    own = os.environ.get(OWN_ADDRESS, "")
    if not (found := url or own):
        return None
    return RayAddress(url=found, token=None if own and _place(found) == _place(own) else "")


def _place(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _origin(job: JobDetails) -> str | None:
    return (job.metadata or {}).get(ORIGIN)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    known = re.search(r"(Connection refused|Connection reset|timed out|Unauthorized[^.]*)", text)
    return known[1].lower() if known else text[:300] or type(error).__name__
