"""What becomes of the Ray job of a stage when something else goes wrong; the job is told of as Ray would tell."""

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
from httpx import ConnectError
from prefect.client.schemas.objects import StateType
from prefect.logging import disable_run_logger
from prefect.states import State

from flows import stages
from flows.ray_jobs import ClusterLost
from flows.settings import RaySettings, Values, Verb
from flows.stages import StageTimedOut, duration
from pipeline import job_file
from pipeline.errors import PromotionRefused, RunFailed, RunStopped, StorageError, TargetInUse
from pipeline.events import Event, event_line

PROGRESS = event_line(Event.PROGRESS, done=1, planned=2, seconds=1.0)
SUMMARY = event_line(Event.SUMMARY, findings=0)


class Jobs:
    """One job, as `RayJobs` has it, with what was asked of it."""

    def __init__(
        self, lines: Callable[[], Iterator[str | None]], *, was_there: bool = False, hangs: bool = False
    ) -> None:
        self._lines = lines
        self._hangs = hangs
        self._was_there = was_there
        self.status = "SUCCEEDED"
        self.asked: list[str] = []

    def is_there(self, _name: object) -> bool:
        return self._was_there

    def begin(self, _name: object, _job: object) -> tuple[str, bool]:
        self.asked.append("begin")
        return "job", self._was_there

    def worked_s(self, _job_id: str) -> float:
        return 3600.0

    def follow(self, _job_id: str, *, lost_s: float) -> Iterator[str | None]:
        yield from self._lines()

    def wait(self, _job_id: str, *, timeout_s: float) -> SimpleNamespace | None:
        return None if timeout_s and self._hangs else SimpleNamespace(status=self.status)

    def stop(self, _job_id: str) -> None:
        self.asked.append("stop")


def run_stage(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, *, verb: Verb = "verify", job: Values | None = None, **ray: float
) -> Values:
    @contextmanager
    def ray_jobs(_ray: RaySettings) -> Iterator[Jobs]:
        yield jobs

    monkeypatch.setattr(stages, "_ray_jobs", ray_jobs)
    monkeypatch.setattr(stages, "origin", lambda: "server")
    with disable_run_logger():
        return stages.run_stage.fn(verb, verb, job or {}, RaySettings(**ray))


def endless() -> Iterator[None]:
    while True:
        yield None


def failing(error: BaseException) -> Callable[[], Iterator[None]]:
    def lines() -> Iterator[None]:
        yield None
        raise error

    return lines


def test_a_stage_that_takes_too_long_is_named_and_its_job_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(endless)

    with pytest.raises(StageTimedOut, match=r"verify took longer than 0\.5 seconds and was stopped"):
        run_stage(jobs, monkeypatch, timeout_hours=0.5 / 3600)

    assert jobs.asked == ["begin", "stop"]


@pytest.mark.parametrize("error", [StageTimedOut("too long"), KeyboardInterrupt()])
@pytest.mark.parametrize("failure", [RunFailed("it goes on"), ClusterLost("away")])
def test_a_job_that_cannot_be_stopped_does_not_hide_why_it_was_to_stop(
    error: BaseException, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unstoppable(Jobs):
        def stop(self, _job_id: str) -> None:
            raise failure

    with pytest.raises(type(error)):
        run_stage(Unstoppable(failing(error)), monkeypatch)


@pytest.mark.parametrize(("limit_h", "asked"), [(1.0, ["begin", "stop"]), (1.1, ["begin"])])
def test_a_stage_that_finds_its_job_again_has_what_is_left_of_its_time(
    limit_h: float, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(lambda: iter([None, SUMMARY]), was_there=True)

    with pytest.raises(StageTimedOut) if "stop" in asked else nullcontext():
        run_stage(jobs, monkeypatch, timeout_hours=limit_h)

    assert jobs.asked == asked


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_the_job_of_a_stage_that_is_told_to_end_is_stopped(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(failing(error))

    with pytest.raises(type(error)):
        run_stage(jobs, monkeypatch)

    assert jobs.asked == ["begin", "stop"]


@pytest.mark.parametrize("error", [ConnectError("refused"), ClusterLost("away"), RuntimeError("a bug")])
def test_an_error_that_is_not_the_jobs_own_leaves_it_for_the_retry(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(failing(error))

    with pytest.raises(type(error)):
        run_stage(jobs, monkeypatch)

    assert jobs.asked == ["begin"]


def test_a_job_that_hangs_after_its_summary_is_stopped_and_its_work_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(lambda: iter([SUMMARY]), hangs=True)

    assert run_stage(jobs, monkeypatch) == {"findings": 0}
    assert jobs.asked == ["begin", "stop"]


def test_a_job_that_a_person_has_stopped_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said = event_line(Event.ERROR, exit_code=130, message="interrupted", may_pass=True)
    jobs = Jobs(lambda: iter([said]))
    jobs.status = "STOPPED"

    with pytest.raises(RunStopped, match="was stopped by someone"):
        run_stage(jobs, monkeypatch)


@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (RunFailed("workers keep dying"), True),
        (StorageError("the bucket answers 503"), True),
        (TargetInUse("another run is at work"), True),
        (RunStopped("4 of 4 photos were rejected"), False),
        (PromotionRefused("they score worse"), False),
        (FloatingPointError("the loss is no number"), False),
        (ValueError("there are no photos"), False),
    ],
)
def test_what_a_job_was_told_to_stop_at_is_not_tried_again_and_what_may_pass_is(
    error: Exception,
    is_tried_again: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object, __: object) -> None:
        raise error

    monkeypatch.setattr(job_file, "run_job", fail)
    monkeypatch.setattr(job_file.signal, "signal", lambda *_: None)
    job_file.main(["{}"])
    said = capsys.readouterr().err

    with pytest.raises(Exception, match=str(error)) as raised:
        run_stage(Jobs(lambda: iter(said.splitlines())), monkeypatch)

    state = State(type=StateType.FAILED, data=raised.value)
    assert stages.run_stage.retry_condition_fn(stages.run_stage, None, state) == is_tried_again


def test_progress_that_nobody_can_be_shown_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, shown = Jobs(lambda: iter([PROGRESS, SUMMARY])), []

    def refuse(*_: object, **__: object) -> None:
        shown.append("refused")
        raise ConnectError("All connection attempts failed")

    monkeypatch.setattr(stages, "create_progress_artifact", refuse)

    assert run_stage(jobs, monkeypatch) == {"findings": 0}
    assert (shown, jobs.asked) == (["refused"], ["begin"])


def test_progress_is_drawn_anew_every_other_second_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    told, shown = [event_line(Event.PROGRESS, done=done, planned=100, seconds=1.0) for done in range(100)], []

    def draw(*share: object, **_: object) -> uuid.UUID:
        shown.append(share[-1])
        return uuid.uuid4()

    for name in ("create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(stages, name, draw)
    run_stage(Jobs(lambda: iter([*told, SUMMARY])), monkeypatch)

    assert shown == [0, 100]


def test_the_lines_of_a_job_keep_their_levels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = event_line(Event.LOG, level="WARNING", logger="pipeline", message="slow")
    monkeypatch.setattr(stages, "get_run_logger", lambda: logging.getLogger("run"))

    with caplog.at_level(logging.INFO, "run"):
        run_stage(Jobs(lambda: iter([said, "12:00:00 ERROR raylet: gone", "{whatever", SUMMARY])), monkeypatch)

    assert [(record.levelname, record.getMessage()) for record in caplog.records[1:]] == [
        ("WARNING", "slow"),
        ("ERROR", "12:00:00 ERROR raylet: gone"),
        ("INFO", "{whatever"),
    ]


@pytest.mark.parametrize(
    ("verb", "job", "places"),
    [
        ("denoise", {"source": "a", "target": "b"}, ["b"]),
        ("ingest", {"source": "a", "target": "b"}, ["b"]),
        ("train", {"source": "a", "run": "c"}, ["c"]),
        ("verify", {"target": "b"}, []),
    ],
)
def test_one_stage_at_a_time_writes_to_a_place(
    verb: Verb, job: Values, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited: list[str] = []
    monkeypatch.setattr(stages, "_alone_on", lambda place: nullcontext(limited.append(place)))

    run_stage(Jobs(lambda: iter([SUMMARY])), monkeypatch, verb=verb, job=job)

    assert limited == places


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 seconds"), (90, "90 seconds"), (600, "10 minutes"), (7200, "2 hours"), (86400, "24 hours")],
)
def test_a_length_of_time_is_told_in_its_own_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
