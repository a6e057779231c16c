"""What a Prefect server does by itself, on loopback and without Ray: the automations that look after runs."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from letterbox import Letterbox
from stack import Server, wait_until

from flows.child import free_ports
from flows.events import Ending
from flows.local_prefect import local_server, prefect_environment, wait_for_server

pytestmark = [pytest.mark.flows, pytest.mark.timeout(600)]
LOST_AFTER_S = 10
FOR_SECONDS = "import os; from flows.automations import apply; apply(os.environ['WEBHOOK'], lost_after_s={})"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    [port] = free_ports(1)
    environment = prefect_environment(folder, port)
    with local_server(folder, port, environment) as running:
        wait_for_server(running, port)
        yield Server(environment)


def begin(server: Server, *tags: str) -> str:
    """A run that is at work, as the server knows it; its process has just sent a heartbeat, its last."""
    flow = server.api("POST", "/flows/", {"name": "nightly"})
    run = server.api("POST", "/flow_runs/", {"flow_id": flow["id"], "tags": tags, "state": {"type": "RUNNING"}})
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


def acted_on(server: Server) -> set[str]:
    """The runs whose states automations changed, or would have."""
    asked = {"filter": {"event": {"prefix": ["prefect.automation.action."]}}, "limit": 50}
    events: list[dict[str, Any]] = server.api("POST", "/events/filter", asked)["events"]
    names = [each["prefect.resource.id"] for event in events for each in event["related"]]
    return {name.removeprefix("prefect.flow-run.") for name in names if name.startswith("prefect.flow-run.")}


def test_a_run_without_heartbeats_is_lost_and_told_of_and_one_that_has_ended_is_not(server: Server) -> None:
    with Letterbox() as box:
        command = [sys.executable, "-c", FOR_SECONDS.format(LOST_AFTER_S)]
        subprocess.run(command, env={**os.environ, **server.environment, "WEBHOOK": box.url}, check=True)
        foreign, lost = begin(server, "another"), begin(server, "degrain")
        ended = begin(server, "degrain")
        server.set_state(ended, "COMPLETED", name=Ending.NOTHING_NEW)
        last = begin(server, "degrain")

        for run_id in (lost, last):
            run = server.wait(run_id, 120)
            assert (run["state_type"], run["state"]["message"]) == (
                "CRASHED",
                f"no heartbeat for {LOST_AFTER_S} s: its process is gone",
            )
        wait_until(lambda: len(box.texts) == 2, 60)

    assert all("crashed\nno heartbeat" in text for text in box.texts)
    assert (server.run(ended)["state_type"], server.run(foreign)["state_type"]) == ("COMPLETED", "RUNNING")
    wait_until(lambda: {lost, last} <= acted_on(server), 60)  # the server writes events down some seconds later
    assert acted_on(server) == {lost, last}
