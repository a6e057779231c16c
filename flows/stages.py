"""One stage of a flow: a Prefect task that has one Ray job do it, and shows the job's log and progress as its own."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import Any, cast
from uuid import UUID

from prefect import Flow, State, get_client, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run as this_flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.tasks import Task

from flows.artifacts import show_pictures, show_rejected
from flows.local_ray import local_ray
from flows.patience import passes, patiently
from flows.ray_jobs import ClusterLost, JobName, RayJobs, address_of
from flows.settings import RaySettings, Values, Verb
from pipeline.errors import EXIT_CALL, DegrainError, RunFailed, RunStopped, may_pass
from pipeline.events import Event, parse_event

PROGRESS_INTERVAL_S = 2.0
RETRY_DELAYS_S = [10.0, 60.0, 120.0]  # in all, longer than a lost run holds its lease on the target
LINGER_S = 60.0  # that a job may take to end once it has said its last word
MOST_BEGINNINGS = 20  # of a flow run: its worker may be replaced, a person may resume it; a crash would go on for ever
JANITOR = "janitor"  # the flow of that name
TARGET_LIMIT = "degrain-target-"  # names of concurrency limits begin with it
WRITES_TO = {"denoise": "target", "ingest": "target", "train": "run"}  # the field of a job that says where it writes


class StageTimedOut(RunStopped):
    """A stage took longer than its settings allow; its job was stopped."""


def _deserves_retry(_task: "Task[..., Any]", _run: TaskRun, state: State) -> bool:  # Any: of whatever task
    return may_pass(state.result(raise_on_failure=False))


@task(
    task_run_name="{stage}",
    retries=len(RETRY_DELAYS_S),
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_jitter_factor=0.2,
    retry_condition_fn=_deserves_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(stage: str, verb: Verb, job: Values, ray: RaySettings) -> Values:
    """Have a Ray job do a job, and return its summary.

    A stage that was begun before by this flow run goes on where it is: its job is found by its name. A cancellation, a
    signal and the time limit stop the job. Other errors do not, such as of a Prefect server that is away for long: a
    retry goes on with the job, and if there is none, the flow stops what is left as it fails.

    Args:
        stage: names it among those of a flow.
        verb: what is done.
        job: the fields of that verb's job.
        ray: where it is done.

    Raises:
        ValueError: the job is wrong, or this flow run has lost its process too often.
        RunStopped: it came to a limit that it was given; what is committed stays.
        RunFailed: it had to stop; the same holds, and a retry does the rest.
        ClusterLost: the cluster is gone; the same holds.
    """
    if (begun := this_flow_run.run_count) > MOST_BEGINNINGS:
        raise ValueError(
            f"this run was begun {begun} times, as its process is lost again and again: look at the worker, and start "
            "another run"
        )
    name = JobName(owner=str(this_flow_run.id), stage=stage, origin=origin())
    with ExitStack() as stack:
        jobs = stack.enter_context(_ray_jobs(ray))
        if verb in WRITES_TO and not jobs.is_there(name):  # or it would wait for what a killed process held
            stack.enter_context(_alone_on(job[WRITES_TO[verb]]))
        job_id, was_there = jobs.begin(name, {"verb": verb, **job})
        log_of_run = get_run_logger()
        log_of_run.info("%s the Ray job %s", "going on with" if was_there else "began", job_id)
        try:
            return _follow(jobs, job_id, stage, ray, worked_s=jobs.worked_s(job_id) if was_there else 0.0)
        except BaseException as error:
            if isinstance(error, StageTimedOut) or not isinstance(error, Exception):  # cancelled, or told to end
                log_of_run.warning("stopping the Ray job %s", job_id)
                try:
                    jobs.stop(job_id)
                except DegrainError as failure:  # as the flow ends, its hook tries again
                    log_of_run.error("%s", failure)
            raise


def stop_stages(flow: "Flow[..., Any]", flow_run: FlowRun, state: State) -> None:  # Any: of whatever flow
    """Hook of a flow that did not complete: no Ray job of it goes on. Runs where the flow did."""
    logger = flow_run_logger(flow_run, flow)
    logger.info("%s: stopping its Ray jobs", str(state.name).lower())
    for url in {*_addresses(flow_run.parameters), None}:
        address = address_of(url)
        if address is None:
            continue  # a Ray of the flow's own has ended with it
        try:
            stopped = RayJobs(address).stop_all(str(flow_run.id))
        except (ClusterLost, RunFailed) as error:
            logger.error("%s", error)
        else:
            logger.info("stopped %s", ", ".join(stopped) or "none: all had ended")


HOOKS: dict[str, Any] = {  # Any: options of `flow`
    name: [stop_stages] for name in ("on_cancellation", "on_crashed", "on_failure")
}


def is_wanted(flow_run_id: str) -> bool:
    """Whether anybody waits for the jobs of a flow run: it is there, and has not ended."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(flow_run_id))
        except ObjectNotFound:
            return False
    return run.state is not None and not run.state.is_final()


@patiently
def origin() -> str:
    """Names the Prefect server in the metadata of jobs: by a flow as its database numbers it.

    Its address will not do: that is the same in each stack of compose, and such may share a Ray.
    """
    with get_client(sync_client=True) as client:
        return str(client.create_flow_from_name(JANITOR))  # or finds it


def _addresses(values: object) -> Iterator[str]:
    """The Ray addresses anywhere in the parameters of a flow."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key == "ray" and isinstance(value, dict) and isinstance(value.get("address"), str) and value["address"]:
                yield value["address"]
            yield from _addresses(value)


@contextmanager
def _ray_jobs(ray: RaySettings) -> Iterator[RayJobs]:
    """The cluster of the settings, or one that is there while the stage is."""
    address = address_of(ray.address)
    if address is not None:
        yield RayJobs(address)
        return
    get_run_logger().info("starting Ray on this machine")
    with local_ray() as (local, _):
        yield RayJobs(local)


@contextmanager
def _alone_on(target: str) -> Iterator[None]:
    """One stage at a time writes to a target: the others wait, and the UI shows for what under concurrency limits."""
    limit = f"{TARGET_LIMIT}{sha256(target.rstrip('/').encode()).hexdigest()[:12]}"
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit, 1)
        if client.read_global_concurrency_limit_by_name(limit).active_slots:
            get_run_logger().info("waiting for a run that writes to %s already", target)
    with concurrency(limit, occupy=1, lease_duration=60):
        yield


def _follow(jobs: RayJobs, job_id: str, stage: str, ray: RaySettings, *, worked_s: float) -> Values:
    """Show a job's log until it has ended; its summary. Of its time, what it has worked already is gone."""
    logger = get_run_logger()
    progress = _Progress(stage)
    limit_s = ray.timeout_hours * 3600
    deadline_s = time.monotonic() + limit_s - worked_s
    ending: Values | None = None
    for line in jobs.follow(job_id, lost_s=ray.lost_after_s):
        if time.monotonic() > deadline_s:
            raise StageTimedOut(f"{stage} took longer than {duration(limit_s)} and was stopped; what is finished stays")
        if line is None:
            continue
        event = parse_event(line)
        if event is None:
            if line.strip():
                logger.log(_level_of(line), "%s", line)
            continue
        match event["event"]:
            case Event.LOG:
                logger.log(logging.getLevelNamesMapping()[event["level"]], "%s", event["message"])
            case Event.PROGRESS:
                progress.show(event)
            case Event.REJECTED:
                show_rejected(stage, event["reasons"], event["rows"])
            case Event.PICTURES:
                show_pictures(stage, event["pictures"])
            case Event.SUMMARY | Event.ERROR:
                ending = event
                break
    ending = _ended(jobs, job_id, ending)
    progress.end()
    return {key: value for key, value in ending.items() if key not in ("event", "time")}


def _ended(jobs: RayJobs, job_id: str, ending: Values | None) -> Values:
    """The summary of a job that has said its last word, once it has ended.

    Raises:
        ValueError, RunFailed: that was another one, or none.
    """
    details = jobs.wait(job_id, timeout_s=LINGER_S)
    if details is not None and details.status == "STOPPED":  # not by us: we do not wait for what we stop
        raise RunStopped(f"the Ray job {job_id} was stopped by someone; what is finished stays")
    if details is None:  # all that it had to say is said
        get_run_logger().warning(
            "the Ray job %s has not ended %g s after its last word, and is stopped", job_id, LINGER_S
        )
        jobs.stop(job_id)
    elif ending is None:
        why = " ".join(str(details.message).split())[:300]  # all of the job's log stands in it
        raise RunFailed(f"the Ray job {job_id} {details.status.value.lower()}: {why}")
    assert ending is not None, "the log of a job goes on until it has ended, or has said how it ends"
    if ending["event"] == Event.SUMMARY:
        return ending
    failed = RunFailed if ending.get("may_pass", True) else RunStopped  # a job of an earlier version does not say
    raise (ValueError if ending["exit_code"] == EXIT_CALL else failed)(ending["message"])


class _Progress:
    """The progress artifact of a stage, drawn anew every other second at the most."""

    def __init__(self, stage: str) -> None:
        self._key = f"{stage}-progress"
        self._artifact: UUID | None = None
        self._next_s = 0.0

    def show(self, event: Values) -> None:
        now_s = time.monotonic()
        share = event["done"] / event["planned"] if event["planned"] else 1.0
        if now_s < self._next_s and share < 1:
            return
        self._next_s = now_s + PROGRESS_INTERVAL_S
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # or nobody follows the job for minutes
                if self._artifact is None:
                    self._artifact = cast(
                        UUID, create_progress_artifact(100 * share, key=self._key, description=_described(event))
                    )
                else:
                    update_progress_artifact(self._artifact, 100 * share, description=_described(event))
        except Exception as error:
            if not passes(error):
                raise
            get_run_logger().info("the progress cannot be shown: %s", error)  # it is shown again in a moment

    def end(self) -> None:
        """All is done, whatever was shown last."""
        if self._artifact is not None:
            patiently(update_progress_artifact)(self._artifact, 100.0)


def _described(event: Values) -> str:
    done, planned, seconds = event["done"], event["planned"], event["seconds"]
    parts = [f"{done:,} of {planned:,}"]
    parts += [f"{event['rejected']:,} rejected"] if event.get("rejected") else []
    parts += [f"loss {event['loss']:.4f}"] if "loss" in event else []
    if event.get("megapixels") and seconds:
        parts.append(f"{event['megapixels'] / seconds:.2f} megapixels/s")
    if done and done < planned:
        parts.append(f"about {(planned - done) * seconds / done / 60:,.0f} min left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """A length of time as people say it: 30 seconds, 90 minutes, 24 hours."""
    for unit_s, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds:g} seconds"


def _level_of(line: str) -> int:
    found = re.search(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b", line[:80])
    return logging.getLevelNamesMapping()[found[1]] if found else logging.INFO
