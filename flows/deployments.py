"""The deployments that `degrain up` serves: every flow, with its schedule, which is off until a person turns it on."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from prefect import Flow, get_client, serve
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled
from prefect.types.entrypoint import EntrypointType

from flows.denoise import denoise
from flows.ingest import ingest
from flows.janitor import janitor
from flows.nightly import nightly
from flows.retrain import retrain
from flows.stages import TARGET_LIMIT
from flows.train import train

T = TypeVar("T")

DEPLOYMENT = "degrain"
PARAMETERS = "DEGRAIN_PARAMETERS"  # of the process that serves: parameters by flow, as JSON
FLOWS: tuple[tuple[Flow[..., Any], str | None], ...] = (  # Any: whatever they return
    (denoise, "0 * * * *"),
    (ingest, "30 0 * * *"),
    (train, None),
    (nightly, "0 2 * * *"),
    (retrain, "0 4 * * SUN"),
    (janitor, "*/15 * * * *"),
)


def deployments(parameters: Mapping[str, dict[str, Any]]) -> list[RunnerDeployment]:  # Any: JSON
    """One deployment a flow. A schedule that a person has turned on stays on.

    Args:
        parameters: what a run of a flow takes where nothing else is given, by the flow's name.
    """
    found = [
        flow.to_deployment(
            name=DEPLOYMENT,
            tags=[DEPLOYMENT, flow.name],
            description=flow.description,
            parameters=parameters.get(flow.name, {}),
            schedules=[] if cron is None else [_schedule(cron, is_active=_is_active(flow.name))],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for flow, cron in FLOWS
    ]
    return cast(list[RunnerDeployment], found)  # there is no event loop here that would make it a coroutine


def take_up_lost_runs() -> list[str]:
    """Have runs begun again that a process was at work on which is gone, and end those that were being cancelled.

    To be called before anything serves the deployments: then no run has a process. Their Ray jobs, if there are any,
    are found again by their names. Returns the names of the runs.
    """
    at_work = {"any_": [StateType.RUNNING, StateType.PENDING, StateType.PAUSED, StateType.CANCELLING]}
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter.model_validate({"state": {"type": at_work}})
        by_id = FlowRunSort.ID_DESC
        runs = _all(lambda offset: client.read_flow_runs(flow_run_filter=wanted, sort=by_id, offset=offset))
        for limit in _all(lambda offset: client.read_global_concurrency_limits(limit=200, offset=offset)):
            if limit.name.startswith(TARGET_LIMIT) and limit.active_slots:  # held by a process that is gone
                client.delete_global_concurrency_limit_by_name(limit.name)
        for run in runs:
            state: State[Any] = Cancelled() if run.state_type == StateType.CANCELLING else AwaitingRetry()
            client.set_flow_run_state(run.id, state, force=True)
    return [run.name for run in runs]


def main() -> None:
    """Serve, until told to end."""
    for name in take_up_lost_runs():
        print(f"taking up {name}", flush=True)
    serve(*deployments(json.loads(os.environ.get(PARAMETERS, "{}"))), pause_on_shutdown=False, limit=None)


def _all(read: Callable[[int], list[T]]) -> list[T]:
    """What a server lists by pages."""
    found: list[T] = []
    while page := read(len(found)):
        found += page
    return found


def _schedule(cron: str, *, is_active: bool) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(schedule=CronSchedule(cron=cron), active=is_active)


def _is_active(flow_name: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            known = client.read_deployment_by_name(f"{flow_name}/{DEPLOYMENT}")
        except ObjectNotFound:
            return False
    return any(schedule.active for schedule in known.schedules)


if __name__ == "__main__":
    main()
