"""A flow of one stage, whose Ray job is told of as Ray would: `python patient_flow.py FOLDER`.

The job tells of its progress until FOLDER/end is there; how often it did, and what else was asked of it, is written to
FOLDER/asked. The rest is real: for tests of a stage while Prefect's server is away.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from prefect import flow

from flows import stages
from flows.artifacts import show_summary
from flows.settings import RaySettings
from pipeline.events import Event, event_line


class Jobs:
    """One job, as `RayJobs` has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked: list[str] = []

    def is_there(self, _name: object) -> bool:
        return "begin" in self._asked

    def begin(self, name: object, _job: object) -> tuple[str, bool]:
        was_there = self.is_there(name)
        self._note("find" if was_there else "begin")
        return "job", was_there

    def follow(self, _job_id: str, *, lost_s: float) -> Iterator[str | None]:
        while not (self._folder / "end").exists():
            time.sleep(0.2)
            self._note("follow")
            yield event_line(Event.PROGRESS, done=1, planned=2, seconds=1.0)
        yield event_line(Event.SUMMARY, denoised=2)

    def wait(self, _job_id: str, *, timeout_s: float) -> SimpleNamespace:
        return SimpleNamespace(status="SUCCEEDED")

    def worked_s(self, _job_id: str) -> float:
        return 0.0

    def stop(self, _job_id: str) -> None:
        self._note("stop")

    def _note(self, what: str) -> None:
        self._asked.append(what)
        (self._folder / "asked").write_text(" ".join(self._asked))


@flow(name="patient")
def patient(folder: str) -> None:
    jobs = Jobs(Path(folder))

    @contextmanager
    def ray_jobs(_ray: RaySettings) -> Iterator[Jobs]:
        yield jobs

    stages._ray_jobs = ray_jobs
    show_summary("denoise", stages.run_stage("denoise", "denoise", {"target": folder}, RaySettings()), folder)


if __name__ == "__main__":
    patient(sys.argv[1])
