"""A team's server as deploy/prefect.yaml describes it: on PostgreSQL, with a worker, and automations that notify."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import postgres
import pytest
from commands import write_many
from letterbox import Letterbox
from photos import write_archive
from stack import Server, processes_of, wait_until

from flows.child import Child, free_ports
from flows.local_prefect import local_server, prefect_environment, wait_for_server

pytestmark = [
    pytest.mark.flows,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not postgres.is_installed(), reason="PostgreSQL is not installed: apt-get install postgresql"),
]
ROOT = Path(__file__).parents[1]
MANY = 240
LOST_AFTER = "from flows.automations import apply, care; apply(care(lost_after_s={}))"


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Letterbox]:
    with Letterbox() as box:
        yield box


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, mailbox: Letterbox) -> Iterator[tuple[Server, Child]]:
    """The server, and its worker."""
    folder = tmp_path_factory.mktemp("team")
    [port] = free_ports(1)
    with ExitStack() as services:
        database = services.enter_context(postgres.postgres())
        environment = {
            **prefect_environment(folder / "prefect", port),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "RAY_API_SERVER_ADDRESS": "",
            "DEGRAIN_WEBHOOK_URL": mailbox.url,
        }
        server = services.enter_context(local_server(folder / "prefect", port, environment))
        wait_for_server(server, port)
        prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
        for command in (
            [*prefect, "work-pool", "create", "degrain", "--type", "process"],
            [sys.executable, "-m", "flows.deploy", "deploy/prefect.yaml"],
            [sys.executable, "-m", "flows.automations"],
        ):
            done = subprocess.run(
                command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        worker = Child("worker", [*prefect, "worker", "start", "--pool", "degrain"], folder / "worker.log", environment)
        services.callback(worker.stop)
        yield Server(environment), worker


@pytest.fixture
def team(started: tuple[Server, Child]) -> Server:
    return started[0]


def test_all_flows_are_deployed_with_their_schedules_and_limits(team: Server) -> None:
    deployments = {deployment["entrypoint"]: deployment for deployment in team.api("POST", "/deployments/filter", {})}
    found = {
        entrypoint: [schedule["active"] for schedule in deployment["schedules"]]
        for entrypoint, deployment in deployments.items()
    }
    limits = {
        entrypoint: limit["limit"]
        for entrypoint, deployment in deployments.items()
        if (limit := deployment["global_concurrency_limit"]) is not None
    }

    verbs = {
        "denoise": [False],
        "ingest": [False],
        "train": [],
        "nightly": [False],
        "retrain": [False],
        "janitor": [True],
    }
    assert found == {f"flows.{verb}.{verb}": schedules for verb, schedules in verbs.items()}
    assert limits == {f"flows.{verb}.{verb}": 1 for verb in ("train", "retrain", "janitor")}


def test_a_worker_does_a_run_and_too_many_rejects_and_failures_are_told(
    team: Server, mailbox: Letterbox, tmp_path: Path
) -> None:
    write_archive(tmp_path / "source")
    shutil.rmtree(tmp_path / "source/2019")
    places = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target"), "ray": {"workers": 1}}
    run_id = team.begin("denoise", {"settings": places})
    nowhere = {"source": "/nowhere/at/all", "target": str(tmp_path / "other")}
    wrong_id = team.begin("denoise", {"settings": {**places, **nowhere}})

    assert team.wait(run_id, 200)["state_type"] == "COMPLETED"
    assert team.wait(wrong_id)["state_type"] == "FAILED"
    wait_until(lambda: len(mailbox.texts) >= 2, 60)
    told = "\n".join(sorted(mailbox.texts))
    assert "too many photos rejected\n4 photos, a share of 0.3636" in told
    assert "there are no photos in /nowhere/at/all" in told


def test_a_run_whose_worker_is_replaced_is_begun_again(started: tuple[Server, Child], tmp_path: Path) -> None:
    team, worker = started
    subprocess.run([sys.executable, "-c", LOST_AFTER.format(45)], env={**os.environ, **team.environment}, check=True)
    write_many(tmp_path / "source", MANY, side_px=512)  # for longer than the worker may take to end
    places = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target"), "ray": {"workers": 1}}
    run_id = team.begin("denoise", {"settings": places})
    wait_until(lambda: len(list((tmp_path / "target/commits").glob("*"))) >= 2, 120)

    worker.stop()
    worker.restart()

    wait_until(lambda: team.run(run_id)["state_type"] == "COMPLETED", 300)
    assert team.run(run_id)["run_count"] == 2
    counts = json.loads((tmp_path / "target/manifest.json").read_text())["counts"]
    assert sum(counts.values()) == MANY


def test_without_a_cluster_a_run_that_is_cancelled_ends_with_its_ray(team: Server, tmp_path: Path) -> None:
    write_many(tmp_path / "source", 60, side_px=512)
    target = tmp_path / "target"
    settings = {"source": str(tmp_path / "source"), "target": str(target), "ray": {"workers": 1}}
    run_id = team.begin("denoise", {"settings": settings})
    wait_until(lambda: len(list((target / "commits").glob("*"))) >= 2, 120)
    assert any("raylet" in command for command in processes_of(run_id).values())

    team.set_state(run_id, "CANCELLING")

    wait_until(lambda: not processes_of(run_id), 30)
    assert team.wait(run_id)["state_type"] == "CANCELLED"
