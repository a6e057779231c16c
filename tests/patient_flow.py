"""A flow whose stage follows a job that tells of its progress until a file is there: `python patient_flow.py FILE`.

The job is told of as Ray would; the rest is real. For tests of what becomes of a stage while Prefect's server is away.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from prefect import flow, task

from flows.artifacts import show_summary
from flows.settings import RaySettings, Values
from flows.stages import _follow
from pipeline.events import Event, event_line


class Jobs:
    """One job, as `RayJobs` has it."""

    def __init__(self, end: Path) -> None:
        self._end = end

    def follow(self, job_id: str, *, lost_s: float) -> Iterator[str | None]:
        while not self._end.exists():
            time.sleep(0.2)
            yield event_line(Event.PROGRESS, done=1, planned=2, seconds=1.0)
        yield event_line(Event.SUMMARY, denoised=2)

    def wait(self, job_id: str) -> SimpleNamespace:
        return SimpleNamespace(status="SUCCEEDED")


@task
def follow(end: Path) -> Values:
    return _follow(Jobs(end), "job", "denoise", RaySettings())


@flow(name="patient")
def patient(end: str) -> None:
    show_summary("denoise", follow(Path(end)), "target")


if __name__ == "__main__":
    patient(sys.argv[1])
