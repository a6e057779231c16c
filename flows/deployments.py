"""The deployments that `degrain up` serves: every flow, with its schedule, which is off until a person turns it on."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from prefect import Flow, get_client, serve
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.schema_tools import ValidationError, validate

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
    """One deployment a flow. Schedules, parameters and pauses that a person has set stay.

    Args:
        parameters: what a run of a flow takes where nothing else is given, by the flow's name.
    """
    return [_deployment(flow, cron, parameters.get(flow.name, {})) for flow, cron in FLOWS]


def find_known(flow: Flow[..., Any], name: str) -> DeploymentResponse | None:  # Any: as above
    """A deployment of a flow as the server has it, if it has it."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(f"{flow.name}/{name}")
        except ObjectNotFound:
            return None


def fitting(flow: Flow[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:  # Any: as above
    """Parameters that a flow still takes; none where another version was given them: the server would refuse them."""
    try:
        validate(parameters, flow.parameters.model_dump_for_openapi(), raise_on_error=True, ignore_required=True)
    except ValidationError as error:
        print(f"{flow.name} no longer takes its parameters {json.dumps(parameters)}: {error}", flush=True)
        return {}
    return parameters


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


def _deployment(
    flow: Flow[..., Any], cron: str | None, parameters: dict[str, Any]
) -> RunnerDeployment:  # Any: as above
    schedules = [] if cron is None else [DeploymentScheduleCreate(schedule=CronSchedule(cron=cron), active=False)]
    known = find_known(flow, DEPLOYMENT)
    if known is not None:
        parameters = fitting(flow, known.parameters) or parameters
        rest = {"active", "parameters", "slug"}
        schedules = [
            DeploymentScheduleCreate(schedule=each.schedule, **each.model_dump(include=rest))
            for each in known.schedules
        ]
    deployment = flow.to_deployment(
        name=DEPLOYMENT,
        tags=[DEPLOYMENT, flow.name],
        description=flow.description,
        parameters=parameters,
        schedules=schedules,
        paused=known is not None and known.paused,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast(RunnerDeployment, deployment)  # there is no event loop here that would make it a coroutine


if __name__ == "__main__":
    main()
