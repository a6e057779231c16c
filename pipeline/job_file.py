"""What `python -m pipeline.jobs JOB.json` does: a job as JSON, done, and told of as events.

A job file is one object: `verb`, and the fields of that verb's job (`DenoiseJob`, `IngestJob`, `TrainJob`, …) by their
names, nested as they are. Events go to standard output, the summary last; the log, and the error that ends a job, to
standard error. Exit codes are those of the command line.
"""

import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import EXIT_CALL, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, RunFailed, may_pass
from pipeline.events import Event, EventWriter, JsonLines
from pipeline.redaction import redacted
from pipeline.strict import build

if TYPE_CHECKING:
    from model.training import StepMetrics
    from pipeline.train_job import TrainJob
    from pipeline.work import Progress, Summary

log = logging.getLogger(__name__)

USAGE = "usage: python -m pipeline.jobs JOB.json (a path, a URL, or the JSON itself)"


def main(arguments: Sequence[str]) -> int:
    """Do the job that the one argument names or is. Returns the exit code."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for ours in ("pipeline", "model"):
        logging.getLogger(ours).setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        say = EventWriter(sys.stdout)
        say(Event.SUMMARY, **run_job(read_job(_only(arguments)), say))
    except KeyboardInterrupt as interrupt:
        return _failed(EXIT_INTERRUPTED, str(interrupt) or "interrupted", passes=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:  # the edge: every failure is one line here
        log.debug("traceback", exc_info=error)
        text = redacted(" ".join(str(error).split())) or type(error).__name__
        return _failed(EXIT_CALL if isinstance(error, ValueError) else EXIT_FAILED, text, passes=may_pass(error))
    return EXIT_OK


def read_job(argument: str) -> dict[str, Any]:  # Any: JSON that is not checked yet
    """The values of a job: of a file by path or URL, or given as they are.

    Raises:
        ValueError: there is no such file, or it holds no JSON object.
        StorageError: it cannot be read.
    """
    text = argument if argument.lstrip().startswith("{") else _read(argument)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the job is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the job is {type(values).__name__}: expected one JSON object")
    return values


def run_job(values: Mapping[str, Any], say: EventWriter) -> dict[str, object]:  # Any: JSON that is not checked yet
    """Do a job, and return its summary.

    Raises:
        ValueError: the job is not as its verb wants it.
        DegrainError: it had to stop; what is committed stays.
    """
    rest = dict(values)
    verb = rest.pop("verb", None)
    if not isinstance(verb, str) or verb not in VERBS:
        raise ValueError(f"verb is {verb!r}: expected one of {', '.join(VERBS)}")
    return VERBS[verb](rest, say)


Values = Mapping[str, Any]  # Any: the fields of a job, not checked yet


def _denoise(values: Values, say: EventWriter) -> dict[str, object]:
    from pipeline.jobs import DenoiseJob, run_denoise

    job = build(DenoiseJob, values)
    return _collection(job.target, lambda report: run_denoise(job, report), say)


def _ingest(values: Values, say: EventWriter) -> dict[str, object]:
    from pipeline.ingest import IngestJob, run_ingest

    job = build(IngestJob, values)
    return _collection(job.target, lambda report: run_ingest(job, report), say)


def _plan(values: Values, _: EventWriter) -> dict[str, object]:
    from pipeline.canary import PlanJob, run_plan

    return run_plan(build(PlanJob, values))


def _canary(values: Values, say: EventWriter) -> dict[str, object]:
    from pipeline.canary import CanaryJob, run_canary

    canary = run_canary(build(CanaryJob, values))
    say(Event.PICTURES, pictures=[dataclasses.asdict(picture) for picture in canary.pictures])
    return canary.as_dict()


def _verify(values: Values, say: EventWriter) -> dict[str, object]:
    from pipeline.verify import VerifyJob, run_verify

    return run_verify(build(VerifyJob, values), say.progress).as_dict()


def _report(values: Values, _: EventWriter) -> dict[str, object]:
    from pipeline.report import ReportJob, run_report

    return run_report(build(ReportJob, values))


def _train(values: Values, say: EventWriter) -> dict[str, object]:
    from pipeline.train import read_run, run_train

    job = train_job(values)

    def report(metrics: "StepMetrics") -> None:
        say.progress(metrics.step, metrics.steps, loss=round(metrics.loss, 6))

    run_train(job, report)
    return read_run(job.run)


def train_job(values: Values) -> "TrainJob":
    """A training job: its `config` changes the recipe that `preset` names.

    Raises:
        ValueError: a value is wrong.
    """
    from model.recipe import PRESETS, TrainConfig, recipe_of
    from pipeline.train_job import TrainJob

    rest = dict(values)
    preset, changes = rest.pop("preset", "photo"), rest.pop("config", {})
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}: expected {' or '.join(PRESETS)}")
    changed = build(TrainConfig, changes, name="config")
    given = {name: getattr(changed, name) for name in changes}
    return dataclasses.replace(build(TrainJob, rest), config=recipe_of(preset, given))


def _evaluate(values: Values, say: EventWriter) -> dict[str, object]:
    from pipeline.evaluate import EvaluateJob, run_evaluate
    from pipeline.scores import Row

    def report(row: Row) -> None:
        say(Event.ROW, **row.as_dict())

    evaluation = run_evaluate(build(EvaluateJob, values), report)
    return {"rows": [row.as_dict() for row in evaluation.rows]}


def _promote(values: Values, _: EventWriter) -> dict[str, object]:
    from pipeline.promotion import PromoteJob, promote

    return promote(build(PromoteJob, values))


def _incumbent(values: Values, _: EventWriter) -> dict[str, object]:
    from pipeline.promotion import IncumbentJob, find_incumbent

    return find_incumbent(build(IncumbentJob, values))


VERBS: dict[str, Callable[[Values, EventWriter], dict[str, object]]] = {
    "plan": _plan,
    "canary": _canary,
    "denoise": _denoise,
    "ingest": _ingest,
    "verify": _verify,
    "report": _report,
    "train": _train,
    "evaluate": _evaluate,
    "incumbent": _incumbent,
    "promote": _promote,
}


def _collection(
    target: str, run: "Callable[[Callable[[Progress], None]], Summary]", say: EventWriter
) -> dict[str, object]:
    """Do a run over a collection; what it rejected and some of its pictures are told of even if it failed by that."""
    start = datetime.now(UTC)

    def report(progress: "Progress") -> None:
        outcomes = {str(outcome): count for outcome, count in progress.outcomes.items()}
        say.progress(progress.finished, progress.planned, **outcomes, megapixels=round(progress.megapixels, 2))

    try:
        summary = run(report)
    except RunFailed:
        _tell_highlights(target, start, say)
        raise
    _tell_highlights(target, start, say)
    return summary.as_dict()


def _tell_highlights(target: str, since: datetime, say: EventWriter) -> None:
    from pipeline.highlights import find_highlights

    found = find_highlights(target, since=since)
    say(Event.REJECTED, reasons=found.reasons, rows=found.rejected)
    say(Event.PICTURES, pictures=[dataclasses.asdict(picture) for picture in found.pictures])


def _only(arguments: Sequence[str]) -> str:
    if len(arguments) != 1:
        raise ValueError(USAGE)
    return arguments[0]


def _read(argument: str) -> bytes:
    from pipeline.errors import ObjectMissing
    from pipeline.storage import open_store, split_url

    root, key = split_url(argument)
    try:
        return open_store(root).read(key)
    except ObjectMissing as error:
        raise ValueError(f"there is no job file at {argument}") from error


def _failed(exit_code: int, message: str, *, passes: bool) -> int:
    EventWriter(sys.stderr)(Event.ERROR, exit_code=exit_code, message=message, may_pass=passes)
    return exit_code


def _interrupt(*_: object) -> NoReturn:
    """A SIGTERM is an interrupt: everything that was started is stopped on the way out."""
    raise KeyboardInterrupt
