"""`degrain up` itself: nothing outlives it, and it takes up what was at work."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import degrain, summary_of, write_many
from stack import Stack, stack, wait_until

pytestmark = [pytest.mark.flows, pytest.mark.slow, pytest.mark.timeout(600)]
MANY = 60


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Stack]:
    """Of this test alone, which may kill it."""
    with stack(tmp_path / "up") as running:
        yield running


def begin_run(up: Stack, folder: Path) -> str:
    """Begin to denoise photos of a folder in there; returns the id of the run as soon as some of it is done."""
    write_many(folder / "source", MANY, side_px=512)
    settings = {"source": str(folder / "source"), "target": str(folder / "target"), "ray": {"workers": 1}}
    run_id = up.begin("denoise", {"settings": settings})
    wait_until(lambda: len(list((folder / "target/commits").glob("*"))) >= 2, 90)
    return run_id


def test_when_it_is_killed_nothing_is_left_and_the_next_takes_up_the_run_that_was_at_work(
    doomed: Stack, tmp_path: Path
) -> None:
    run_id = begin_run(doomed, tmp_path)
    target = tmp_path / "target"

    doomed.process.kill()
    wait_until(lambda: not doomed.processes(), 30)
    before = len(list((target / "commits").glob("*")))
    again = Stack(doomed.folder)
    try:
        assert again.wait(run_id, 150)["state_type"] == "COMPLETED"
        rows = {row["what"]: row["value"] for row in json.loads(again.artifacts(run_id)["denoise-summary"]["data"])}
        assert int(rows["denoised"]) + int(rows["up to date"]) == MANY
        assert int(rows["up to date"]) >= before >= 2
    finally:
        again.process.send_signal(signal.SIGINT)
        start_s = time.monotonic()
        said, _ = again.process.communicate(timeout=60)
    assert (again.process.returncode, said.splitlines()[-1]) == (0, "stopped")
    wait_until(lambda: not again.processes(), 5)
    assert time.monotonic() - start_s < 60


def test_ctrl_c_ends_it_within_seconds_with_a_run_at_work_and_the_next_does_the_rest(
    doomed: Stack, tmp_path: Path
) -> None:
    begin_run(doomed, tmp_path)

    doomed.process.send_signal(signal.SIGINT)
    said, _ = doomed.process.communicate(timeout=45)
    assert (doomed.process.returncode, said.splitlines()[-1]) == (0, "stopped")
    wait_until(lambda: not doomed.processes(), 5)

    summary = summary_of(degrain("denoise", tmp_path / "source", tmp_path / "target", "--json"))
    assert 2 <= summary["up_to_date"] < MANY
    assert summary["up_to_date"] + summary["denoised"] == MANY


def test_a_port_that_is_taken_is_one_line(s3_bucket: str, tmp_path: Path) -> None:
    port = os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]

    finished = degrain("up", "--folder", tmp_path / "up", "--port", port)

    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
    assert f"port {port} is taken" in finished.stderr
    assert not (tmp_path / "up").exists()
