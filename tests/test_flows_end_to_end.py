"""The flows as `degrain up` serves them: a real Prefect server, a real Ray head, a real S3 server, on loopback."""

import contextlib
import json
import logging
import os
import re
import signal
import time
import urllib.request
import uuid
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from commands import write_many
from loop import index_of
from photos import saved, scene, write_archive
from PIL import Image
from stack import Stack, processes_of, wait_until

from flows.ray_jobs import JobName

pytestmark = [pytest.mark.flows, pytest.mark.timeout(600)]
MANY = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work of some seconds."""
    folder = tmp_path_factory.mktemp("photos") / "source"
    write_many(folder, MANY, side_px=512)
    return folder


@pytest.fixture
def many(photos: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings for that work."""
    return {"source": str(photos), "target": str(tmp_path / "target"), "ray": {"workers": 1}}


def committed(settings: dict[str, Any]) -> int:
    return len(list((Path(settings["target"]) / "commits").glob("*")))


def summary_of(artifacts: dict[str, Any], key: str) -> dict[str, str]:
    return {row["what"]: row["value"] for row in json.loads(artifacts[key]["data"])}


def test_a_run_that_is_scheduled_denoises_a_bucket_and_shows_what_it_did(up: Stack) -> None:
    at = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    run_id = up.begin(
        "denoise",
        {"settings": {"source": "s3://photos/noisy", "target": "s3://photos/clean", "limit": 8}},
        state={"type": "SCHEDULED", "state_details": {"scheduled_time": at}},
    )

    run = up.wait(run_id)

    assert (run["state_type"], run["name"]) == ("COMPLETED", "denoise s3://photos/noisy → s3://photos/clean")
    assert set(run["tags"]) == {"degrain", "denoise"}
    artifacts = up.artifacts(run_id)
    assert summary_of(artifacts, "denoise-summary")["denoised"] == "8"
    assert artifacts["denoise-progress"]["data"] == 100
    assert "data:image/jpeg;base64," in artifacts["denoise-before-after"]["data"]
    assert any("photos," in line for _, line in up.log(run_id))
    assert len(up.api("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})) == 1  # for all photos


@pytest.mark.slow
def test_photos_of_a_bucket_are_packed_and_shown(up: Stack) -> None:
    target = f"s3://photos/{uuid.uuid4().hex}"

    run_id = up.begin("ingest", {"settings": {"source": "s3://photos/noisy", "target": target}})
    run = up.wait(run_id)

    assert (run["state_type"], run["name"]) == ("COMPLETED", f"ingest s3://photos/noisy → {target}")
    artifacts = up.artifacts(run_id)
    assert (summary_of(artifacts, "ingest-summary")["packed"], artifacts["ingest-progress"]["data"]) == ("16", 100)


def test_schedules_are_off_until_a_person_turns_them_on(up: Stack) -> None:
    found = {
        deployment["entrypoint"]: [schedule["active"] for schedule in deployment["schedules"]]
        for deployment in up.api("POST", "/deployments/filter", {})
    }

    off = {f"flows.{name}.{name}": [False] for name in ("denoise", "ingest", "nightly", "retrain", "janitor")}
    assert found == {**off, "flows.train.train": []}


@pytest.mark.slow
def test_a_schedule_that_is_turned_on_begins_one_run_after_the_other_by_itself(up: Stack) -> None:
    deployment = up.api("GET", "/deployments/name/janitor/degrain")["id"]
    done = {"state": {"type": {"any_": ["COMPLETED"]}}, "tags": {"all_": ["auto-scheduled"]}}
    completed = {"flow_runs": {"deployment_id": {"any_": [deployment]}, **done}, "sort": "EXPECTED_START_TIME_ASC"}
    every_5_s = [{"schedule": {"interval": 5}, "active": True}]
    [schedule] = up.api("POST", f"/deployments/{deployment}/schedules", every_5_s)
    wait_until(lambda: len(up.api("POST", "/flow_runs/filter", completed)) >= 2, 120)
    up.api("DELETE", f"/deployments/{deployment}/schedules/{schedule['id']}")

    first, second, *_ = up.api("POST", "/flow_runs/filter", completed)
    assert (first["auto_scheduled"], second["auto_scheduled"]) == (True, True)
    assert first["created_by"]["type"] == second["created_by"]["type"] == "SCHEDULE"
    assert first["expected_start_time"] < second["expected_start_time"]
    due, began = (datetime.fromisoformat(first[name]) for name in ("expected_start_time", "start_time"))
    assert began > due - timedelta(seconds=1)  # Prefect waits for whole seconds


@pytest.mark.slow
def test_the_settings_of_a_run_are_checked_before_it_starts(up: Stack) -> None:
    with pytest.raises(OSError, match="409"):
        up.begin("denoise", {"settings": {"source": "a", "target": "b", "strenght": 1}})

    run = up.wait(up.begin("denoise", {"settings": {"source": "/nowhere/at/all", "target": "/nowhere/else"}}))

    assert run["state_type"] == "FAILED"
    assert "there are no photos in /nowhere/at/all" in run["state"]["message"]


def test_a_run_that_is_cancelled_stops_its_job_and_the_next_does_the_rest(up: Stack, many: dict) -> None:
    run_id = up.begin("denoise", {"settings": many})
    wait_until(lambda: committed(many) >= 3, 60)

    [job] = up.jobs_of(run_id)
    up.set_state(run_id, "CANCELLING")
    start_s = time.monotonic()
    wait_until(lambda: not up.jobs_of(run_id), 10)
    stopped_after_s = time.monotonic() - start_s
    assert up.wait(run_id)["state_type"] == "CANCELLED"
    assert not up.ray.has_actors(up.ray.find(job))
    done = committed(many)
    rest_id = up.begin("denoise", {"settings": many})

    assert up.wait(rest_id)["state_type"] == "COMPLETED"
    assert stopped_after_s < 10
    summary = summary_of(up.artifacts(rest_id), "denoise-summary")
    assert int(summary["denoised"]) + int(summary["up to date"]) == MANY
    assert 3 <= done <= int(summary["up to date"]) < MANY
    assert len(index_of(many["target"])) == MANY


@pytest.mark.slow
def test_of_two_runs_on_one_target_the_second_waits_and_says_so_and_finds_all_done(up: Stack, many: dict) -> None:
    first = up.begin("denoise", {"settings": many})
    wait_until(lambda: committed(many) >= 1, 90)
    second = up.begin("denoise", {"settings": many})
    waiting = (logging.INFO, f"waiting for a run that writes to {many['target']} already")
    wait_until(lambda: waiting in up.log(second), 30)

    assert up.run(first)["state_type"] == "RUNNING"
    assert up.jobs_of(second) == []
    assert [up.wait(run_id)["state_type"] for run_id in (first, second)] == ["COMPLETED", "COMPLETED"]
    assert summary_of(up.artifacts(second), "denoise-summary")["up to date"] == str(MANY)


@pytest.mark.slow
def test_a_stage_that_takes_too_long_is_stopped_and_named_and_the_next_run_does_the_rest(
    up: Stack, tmp_path: Path
) -> None:
    write_many(tmp_path / "source", 3)
    vast = Image.fromarray(np.tile(scene(side_px=512), (20, 20, 1)))
    (tmp_path / "source/vast.jpg").write_bytes(saved(vast, "JPEG"))  # a minute's work, and more
    settings = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target"), "ray": {"workers": 1}}
    late = {**settings, "ray": {"workers": 1, "timeout_hours": 30 / 3600}}

    run_id = up.begin("denoise", {"settings": late})
    run = up.wait(run_id)

    assert run["state_type"] == "FAILED"
    assert "denoise took longer than 30 seconds and was stopped; what is finished stays" in run["state"]["message"]
    name = JobName(owner=run_id, stage="denoise", origin="")
    job = up.ray.find(name.attempt(1))
    assert (job.status.value, up.ray.has_actors(job)) == ("STOPPED", False)
    assert up.ray.find(name.attempt(2)) is None  # what takes too long will again: that is not tried
    assert committed(settings) == 3
    rest_id = up.begin("denoise", {"settings": {**settings, "max_megapixels": 100}})
    assert up.wait(rest_id)["state_type"] == "COMPLETED"
    summary = summary_of(up.artifacts(rest_id), "denoise-summary")
    assert (summary["up to date"], summary["rejected"]) == ("3", "1")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prefect server start", "weed mini", "flows.ray_head start"])
def test_a_server_that_is_killed_is_started_again_and_the_run_ends_well(up: Stack, many: dict, command: str) -> None:
    settings = {**many, "target": f"s3://photos/{uuid.uuid4().hex}"}
    run_id = up.begin("denoise", {"settings": settings})
    wait_until(lambda: "denoise-progress" in up.artifacts(run_id), 90)

    os.kill(up.service(command), signal.SIGKILL)

    wait_until(up.is_reachable, 60)
    assert up.wait(run_id, 200)["state_type"] == "COMPLETED"
    summary = summary_of(up.artifacts(run_id), "denoise-summary")
    assert int(summary["denoised"]) + int(summary["up to date"]) == MANY
    name = JobName(owner=run_id, stage="denoise", origin="")
    found = [up.ray.find(name.attempt(number)) for number in (1, 2)]
    assert [job.status.value for job in found if job is not None] == ["SUCCEEDED"]  # a new Ray begins anew


@pytest.mark.slow
def test_a_flow_whose_process_is_killed_goes_on_with_its_job(up: Stack, many: dict) -> None:
    run_id = up.begin("denoise", {"settings": many}, state={"type": "PENDING"})  # nobody else takes it up
    first = up.execute(run_id)
    wait_until(lambda: committed(many) >= 2, 90)
    kill(run_id, "")  # nothing that could run a hook is left
    first.wait()
    [job] = up.jobs_of(run_id)
    assert 0 < up.ray.worked_s(job) < 120

    second = up.execute(run_id)
    second.wait(120)

    assert up.run(run_id)["state_type"] == "COMPLETED"
    assert summary_of(up.artifacts(run_id), "denoise-summary")["denoised"] == str(MANY)
    assert f"going on with the Ray job {job}" in [line for _, line in up.log(run_id)]
    assert up.ray.find(job.removesuffix("-1") + "-2") is None
    assert up.ray.worked_s(job) == 0


@pytest.mark.slow
def test_a_run_whose_process_is_killed_has_crashed_and_its_job_is_stopped(up: Stack, many: dict) -> None:
    run_id = up.begin("denoise", {"settings": many})
    wait_until(lambda: committed(many) >= 2, 90)
    [job] = up.jobs_of(run_id)

    kill(run_id, "")

    assert up.wait(run_id)["state_type"] == "CRASHED"
    wait_until(lambda: up.ray.find(job).status.value == "STOPPED", 30)
    assert not up.ray.has_actors(up.ray.find(job))


@pytest.mark.slow
def test_a_ray_that_is_killed_is_said_clearly_and_a_retry_does_the_rest(up: Stack, many: dict) -> None:
    run_id = up.begin(
        "denoise",
        {"settings": {**many, "ray": {"workers": 1, "lost_after_s": 1}}},
        state={"type": "PENDING"},
    )
    flow = up.execute(run_id, RAY_API_SERVER_ADDRESS="")  # so that it starts a Ray of its own
    wait_until(lambda: committed(many) >= 2, 90)
    kill(run_id, "raylet")

    flow.wait(150)

    assert up.run(run_id)["state_type"] == "COMPLETED"
    assert any("does not answer" in line or "no Ray cluster" in line for _, line in up.log(run_id))
    summary = summary_of(up.artifacts(run_id), "denoise-summary")
    assert int(summary["denoised"]) + int(summary["up to date"]) == MANY
    assert int(summary["up to date"]) >= 2


@pytest.mark.slow
def test_jobs_whose_flow_run_is_gone_are_stopped_by_the_janitor(up: Stack, many: dict) -> None:
    alive = up.begin("denoise", {"settings": many})
    wait_until(lambda: bool(up.jobs_of(alive)), 60)
    origin = (up.ray.find(up.jobs_of(alive)[0]).metadata or {})["degrain_origin"]
    gone = JobName(owner="11111111-2222-3333-4444-555555555555", stage="denoise", origin=origin)
    foreign = JobName(owner="11111111-2222-3333-4444-666666666666", stage="denoise", origin="another")
    endless = {
        "verb": "denoise",
        "source": many["source"],
        "target": many["target"] + "-2",
        "cluster": {"address": "auto"},
    }
    orphan, _ = up.ray.begin(gone, endless)
    not_ours, _ = up.ray.begin(foreign, {**endless, "target": many["target"] + "-3"})

    assert up.wait(up.begin("janitor", {}))["state_type"] == "COMPLETED"

    assert up.ray.find(orphan).status.value == "STOPPED"
    assert up.ray.find(not_ours).status.value != "STOPPED"
    assert up.wait(alive)["state_type"] == "COMPLETED"
    up.ray.stop(not_ours)


@pytest.mark.slow
def test_a_night_tries_photos_denoises_them_and_stops_when_nothing_is_new(up: Stack, tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    denoise = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target"), "ray": {"workers": 1}}
    gates = {"photos": 13, "max_rejected_fraction": 0.1}
    report = f"s3://photos/{uuid.uuid4().hex}.html"

    closed = up.wait(up.begin("nightly", {"settings": {"denoise": denoise, "gates": gates}}))
    assert closed["state_type"] == "FAILED"
    assert "31% are rejected, and at most 10% may be" in closed["state"]["message"]
    assert not (tmp_path / "target").exists()

    gates = {**gates, "max_rejected_fraction": 0.5, "min_change_psnr_db": 10}
    waiting = up.begin(
        "nightly", {"settings": {"denoise": denoise, "gates": gates, "report": report, "approval": True}}
    )
    wait_until(lambda: up.run(waiting)["state_type"] == "PAUSED", 90)
    assert "data:image/jpeg" in up.artifacts(waiting)["canary-before-after"]["data"]
    assert not (tmp_path / "target").exists()
    up.api("POST", f"/flow_runs/{waiting}/resume")
    assert up.wait(waiting)["state_type"] == "COMPLETED"
    shown = {"plan-table", "canary-gates", "denoise-summary", "denoise-rejected", "verify-findings", "report-page"}
    assert shown <= set(up.artifacts(waiting))
    link = re.search(r"\((http.+)\)", up.artifacts(waiting)["report-page"]["data"])
    with urllib.request.urlopen(link[1], timeout=30) as page:
        assert (page.headers["Content-Type"], page.read(15)) == ("text/html; charset=utf-8", b"<!doctype html>")

    idle = up.wait(up.begin("nightly", {"settings": {"denoise": denoise, "gates": gates}}))
    assert (idle["state_type"], idle["state"]["name"]) == ("COMPLETED", "NothingNew")
    assert idle["name"] == f"nightly {denoise['source']} → {denoise['target']}"


@pytest.mark.slow
def test_a_night_that_nobody_approves_of_in_time_fails_and_has_written_nothing(up: Stack, tmp_path: Path) -> None:
    write_many(tmp_path / "source", 2, side_px=64)
    denoise = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target"), "ray": {"workers": 1}}
    settings = {"denoise": denoise, "gates": {"min_change_psnr_db": 10}, "approval": True, "approval_hours": 0.003}

    run = up.wait(up.begin("nightly", {"settings": settings}))

    assert run["state_type"] == "FAILED"
    assert "never resumed" in run["state"]["message"]
    assert not (tmp_path / "target").exists()


@pytest.mark.slow
def test_of_two_trainings_of_one_run_the_second_waits_and_has_nothing_left_to_do(up: Stack, tmp_path: Path) -> None:
    write_many(tmp_path / "clean", 4, side_px=64)
    settings = {"source": str(tmp_path / "clean"), "run": str(tmp_path / "run")}
    settings |= {"steps": 60, "batch_size": 4, "patch_px": 32, "log_every": 10, "checkpoint_every": 10}
    first = up.begin("train", {"settings": settings})
    wait_until((tmp_path / "run/checkpoint.safetensors").exists, 90)
    second = up.begin("train", {"settings": settings})
    waiting = (logging.INFO, f"waiting for a run that writes to {settings['run']} already")
    wait_until(lambda: waiting in up.log(second), 30)

    assert up.jobs_of(second) == []
    assert [up.wait(run_id)["state_type"] for run_id in (first, second)] == ["COMPLETED", "COMPLETED"]
    shown = [up.artifacts(run_id)["train-card"]["data"] for run_id in (first, second)]
    assert shown[0] == shown[1]


@pytest.mark.slow
def test_two_workers_share_the_batches_of_a_training_run(up: Stack, tmp_path: Path) -> None:
    write_many(tmp_path / "clean", 4, side_px=64)
    settings = {
        "source": str(tmp_path / "clean"),
        "run": str(tmp_path / "run"),
        "steps": 3,
        "batch_size": 8,
        "patch_px": 32,
        "log_every": 1,
        "ray": {"workers": 2},
    }
    run_id = up.begin("train", {"settings": settings})

    run = up.wait(run_id, 200)

    assert (run["state_type"], run["name"]) == (
        "COMPLETED",
        f"train photo on {settings['source']} in {settings['run']}",
    )
    job = JobName(owner=run_id, stage="train", origin="").attempt(1)
    assert up.actors_of(job).count("RayTrainWorker") == 2
    assert {"train-curve", "train-card", "train-progress"} <= set(up.artifacts(run_id))
    assert (tmp_path / "run/weights.safetensors").exists()


@pytest.mark.slow
def test_retraining_promotes_weights_that_are_better(up: Stack, tmp_path: Path) -> None:
    write_many(tmp_path / "clean", 2, side_px=64)
    ingest = {"source": str(tmp_path / "clean"), "target": str(tmp_path / "packed"), "ray": {"workers": 1}}
    train = {
        "source": ingest["target"],
        "run": str(tmp_path / "runs/{date}"),
        "steps": 2,
        "batch_size": 1,
        "patch_px": 32,
        "log_every": 1,
    }
    settings = {
        "ingest": ingest,
        "train": train,
        "held_out": str(tmp_path / "clean"),
        "held_out_photos": 1,
        "promoted": str(tmp_path / "weights/current.safetensors"),
        "incumbent": "photo",
    }

    worse = up.wait(up.begin("retrain", {"settings": settings}), 280)
    assert (worse["state_type"], worse["state"]["name"]) == ("COMPLETED", "NotBetter")
    assert worse["name"] == f"retrain {settings['promoted']} on {ingest['source']}"
    assert not (tmp_path / "weights").exists()
    assert [date.fromisoformat(path.name) for path in (tmp_path / "runs").iterdir()]

    lenient = {**settings, "min_gain_db": -100, "max_loss_db": 100}
    run_id = up.begin("retrain", {"settings": lenient})
    assert up.wait(run_id, 280)["state_type"] == "COMPLETED"
    assert (tmp_path / "weights/current.safetensors").exists()
    shown = {"train-curve", "train-card", "candidate-scores", "in-use-scores", "retrain-comparison", "promoted-card"}
    assert shown <= set(up.artifacts(run_id))


def kill(run_id: str, mark: str) -> None:
    """Kill all processes of a flow run, or those of them with a mark in their command."""
    found = [pid for pid, command in processes_of(run_id).items() if mark in command]
    assert found
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/cluster_status", "/nodes?view=summary", "/logs"])
def test_ray_answers_nobody_who_does_not_know_its_token(up: Stack, path: str) -> None:
    url = up.environment["RAY_API_SERVER_ADDRESS"]
    for headers in ({}, {"Authorization": f"Bearer {'0' * 64}"}):
        with pytest.raises(HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=10)
        caught.value.close()

        assert caught.value.code in (401, 403)


def listening(url: str) -> set[str]:
    """The addresses, as the kernel writes them, on which something listens at the port of a URL."""
    port = f":{int(url.removesuffix('/api').rpartition(':')[2]):04X}"
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {
        address.removesuffix(port) for _, address, _, state, *_ in lines if address.endswith(port) and state == "0A"
    }


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "RAY_API_SERVER_ADDRESS", "AWS_ENDPOINT_URL"])
def test_what_people_talk_to_listens_on_loopback_alone(up: Stack, name: str) -> None:
    assert listening(up.environment[name]) == {"0100007F"}


def test_secrets_on_disk_are_for_this_user_alone(up: Stack) -> None:
    files = [up.folder / "environment.sh", up.folder / "s3/secret"]

    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
