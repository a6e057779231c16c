"""A Prefect server on loopback, without Ray: the automations that look after runs, and how it may be restarted."""

import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from letterbox import Letterbox
from stack import Server, wait_until

from flows.child import Child, free_ports
from flows.events import Ending
from flows.local_prefect import local_server, prefect_environment, wait_for_server

pytestmark = [pytest.mark.flows, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent
LOST_AFTER_S = 20
SERVE = "from flows.deployments import deployments; [each.apply() for each in deployments({})]"
TAKE_UP = "from flows.deployments import take_up_lost_runs; take_up_lost_runs()"
FOR_SECONDS = "from flows.automations import apply, care; apply(care(lost_after_s={}))"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Child]]:
    folder = tmp_path_factory.mktemp("server")
    [port] = free_ports(1)
    environment = prefect_environment(folder, port)
    with local_server(folder, port, environment) as running:
        wait_for_server(running, port)
        yield Server(environment), running


@pytest.fixture
def server(started: tuple[Server, Child]) -> Server:
    return started[0]


def begin(server: Server, *tags: str) -> str:
    """A run that is at work, as the server knows it; its process has just sent a heartbeat, its last."""
    janitor = server.api("GET", "/deployments/name/janitor/degrain")
    asked = {"flow_id": janitor["flow_id"], "deployment_id": janitor["id"], "tags": tags, "state": {"type": "RUNNING"}}
    run = server.api("POST", "/flow_runs/", asked)
    heartbeat = {
        "event": "prefect.flow-run.heartbeat",
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run['id']}"},
        "related": [
            {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run["tags"]
        ],
    }
    server.api("POST", "/events", [heartbeat])
    return str(run["id"])


def execute(server: Server, *command: object) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": ""} | server.environment
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment)


def acted_on(server: Server) -> set[str]:
    """The runs whose states automations changed, or would have."""
    return named_by(server, "prefect.automation.action.")


def named_by(server: Server, prefix: str) -> set[str]:
    """The runs that events name which begin so, as far as the server has written them down, some seconds later."""
    asked = {"filter": {"event": {"prefix": [prefix]}}, "limit": 50}
    events: list[dict[str, Any]] = server.api("POST", "/events/filter", asked)["events"]
    names = [each["prefect.resource.id"] for event in events for each in (event["resource"], *event["related"])]
    return {name.removeprefix("prefect.flow-run.") for name in names if name.startswith("prefect.flow-run.")}


def test_a_run_without_heartbeats_is_begun_again_unless_it_was_to_end(server: Server) -> None:
    assert execute(server, "-c", SERVE).wait(120) == 0
    assert execute(server, "-c", FOR_SECONDS.format(LOST_AFTER_S)).wait(60) == 0
    foreign, lost = begin(server, "another"), begin(server, "degrain")
    ended, unwanted = begin(server, "degrain"), begin(server, "degrain")
    # the server looks at two events at a time: an end within milliseconds of a heartbeat might be seen before it
    wait_until(lambda: {ended, unwanted} <= named_by(server, "prefect.flow-run.heartbeat"), LOST_AFTER_S)
    server.set_state(ended, "COMPLETED", name=Ending.NOTHING_NEW)
    server.set_state(unwanted, "CANCELLING")
    last = begin(server, "degrain")

    for run_id in (lost, last):
        wait_until(lambda: server.run(run_id)["state_type"] == "SCHEDULED", 120)  # noqa: B023  # called in this turn
        assert server.run(run_id)["state"]["name"] == "AwaitingRetry"
    others = [server.run(run_id)["state_type"] for run_id in (ended, unwanted, foreign)]
    assert others == ["COMPLETED", "CANCELLING", "RUNNING"]
    wait_until(lambda: {lost, last} <= acted_on(server), 60)
    assert acted_on(server) == {lost, last}


def test_a_run_that_crashes_is_told_of(server: Server) -> None:
    assert execute(server, "-c", SERVE).wait(120) == 0
    with Letterbox() as box:
        environment = {**os.environ, **server.environment, "DEGRAIN_WEBHOOK_URL": box.url}
        subprocess.run([sys.executable, "-m", "flows.automations"], env=environment, check=True)

        server.set_state(begin(server, "degrain"), "CRASHED", message="out of memory")
        server.set_state(begin(server, "another"), "CRASHED", message="out of luck")

        wait_until(lambda: bool(box.texts), 60)
    [text] = box.texts
    assert "crashed\nout of memory" in text


def test_a_stage_goes_on_with_its_one_job_while_the_server_is_killed_and_started_again(
    started: tuple[Server, Child], tmp_path: Path
) -> None:
    server, process = started
    flow = execute(server, ROOT / "patient_flow.py", tmp_path)
    asked = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}, "flows": {"name": {"any_": ["patient"]}}}
    wait_until(lambda: bool(server.api("POST", "/flow_runs/filter", asked)), 120)
    [run] = server.api("POST", "/flow_runs/filter", asked)
    wait_until(lambda: "denoise-progress" in server.artifacts(run["id"]), 60)

    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_reachable(), 10)
    told = asked_of(tmp_path)["follow"]
    wait_until(lambda: asked_of(tmp_path)["follow"] > told + 20, 60)  # progress of seconds, that nobody can be shown
    (tmp_path / "end").touch()  # the job ends meanwhile
    process.restart()

    assert flow.wait(200) == 0
    assert server.run(run["id"])["state_type"] == "COMPLETED"
    assert (asked_of(tmp_path)["begin"], asked_of(tmp_path)["stop"]) == (1, 0)
    artifacts = server.artifacts(run["id"])
    assert ("denoise-summary" in artifacts, artifacts["denoise-progress"]["data"]) == (True, 100)


def asked_of(folder: Path) -> Counter[str]:
    """What was asked of the job of `patient_flow.py`, and how often."""
    return Counter((folder / "asked").read_text().split())


def test_a_night_that_waited_for_a_person_waits_again_when_it_is_taken_up(server: Server, tmp_path: Path) -> None:
    flow = server.api("POST", "/flows/", {"name": "nightly"})
    settings = {"denoise": {"source": "in", "target": "out"}, "approval": True}
    asked = {"flow_id": flow["id"], "parameters": {"settings": settings}, "state": {"type": "PENDING"}}
    run_id = str(server.api("POST", "/flow_runs/", asked)["id"])

    def is_waiting_or_over() -> bool:
        return server.run(run_id)["state_type"] in ("PAUSED", "COMPLETED", "FAILED", "CRASHED")

    first = execute(server, ROOT / "approved_flow.py", run_id, tmp_path)
    wait_until(is_waiting_or_over, 60)
    first.kill()
    first.wait()
    assert execute(server, "-c", TAKE_UP).wait(60) == 0
    assert server.run(run_id)["state"]["name"] == "AwaitingRetry"
    again = execute(server, ROOT / "approved_flow.py", run_id, tmp_path)
    wait_until(is_waiting_or_over, 60)
    assert server.run(run_id)["state_type"] == "PAUSED"

    server.api("POST", f"/flow_runs/{run_id}/resume")
    assert again.wait(60) == 0
    assert (tmp_path / "done").read_text().split() == ["plan", "canary"] * 2 + ["denoise", "verify", "report"]


def test_all_runs_that_lost_their_process_are_taken_up_however_many_there_are(server: Server) -> None:
    page = 200  # of the server's lists
    flow = server.api("POST", "/flows/", {"name": "nightly"})
    for _ in range(page + 1):
        server.api("POST", "/flow_runs/", {"flow_id": flow["id"], "state": {"type": "RUNNING"}})

    assert execute(server, "-c", TAKE_UP).wait(120) == 0

    assert server.api("POST", "/flow_runs/count", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}) == 0


@pytest.mark.parametrize(
    "command", [("-c", SERVE), ("-m", "flows.deploy", ROOT.parent / "deploy/prefect.yaml")], ids=["up", "team"]
)
def test_what_people_have_set_of_a_flow_stays_when_it_is_deployed_again(
    server: Server, command: tuple[object, ...]
) -> None:
    assert (
        execute(server, "-m", "prefect", "work-pool", "create", "degrain", "--type=process", "--overwrite").wait(60)
        == 0
    )
    assert execute(server, *command).wait(120) == 0
    place = f"/deployments/{server.api('GET', '/deployments/name/nightly/degrain')['id']}"
    [schedule] = server.api("GET", f"{place}/schedules")
    parameters = {"settings": {"denoise": {"source": "in", "target": "out"}}}
    own = {"active": True, "schedule": {"cron": "30 3 * * *", "timezone": "Europe/Berlin"}}
    server.api("PATCH", place, {"parameters": parameters, "paused": True})
    server.api("PATCH", f"{place}/schedules/{schedule['id']}", own)

    assert execute(server, *command).wait(120) == 0

    found = server.api("GET", place)
    [kept] = found["schedules"]
    assert (found["parameters"], found["paused"], kept["active"]) == (parameters, True, True)
    assert (kept["schedule"]["cron"], kept["schedule"]["timezone"]) == ("30 3 * * *", "Europe/Berlin")
    server.api("DELETE", place)


def test_parameters_that_a_flow_no_longer_takes_keep_nobody_from_deploying_it(server: Server) -> None:
    assert execute(server, "-c", SERVE).wait(120) == 0
    place = f"/deployments/{server.api('GET', '/deployments/name/janitor/degrain')['id']}"
    server.api("PATCH", place, {"enforce_parameter_schema": False})  # as if another version had taken them
    server.api("PATCH", place, {"parameters": {"address": 8265}})

    assert execute(server, "-c", SERVE).wait(120) == 0

    assert server.api("GET", place)["parameters"] == {}
