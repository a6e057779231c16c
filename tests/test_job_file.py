"""`python -m pipeline.jobs JOB.json`: what a Ray job runs, and what it says of its work."""

import io
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import wait_for_commits, wait_until_workers_are_gone, write_many
from loop import Loop
from photos import write_archive

from model.evaluate import standard_trials
from pipeline.errors import RunFailed
from pipeline.events import Event, EventWriter, JsonLines, event_line, parse_event
from pipeline.job_file import read_job, run_job


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop.instead_of_cluster(monkeypatch)


def run(values: dict) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of a job, as JSON has it, and what it said before."""
    stream = io.StringIO()
    summary = run_job(values, EventWriter(stream))
    return json.loads(json.dumps(summary, default=str)), events_of(stream.getvalue())


def events_of(text: str) -> list[dict[str, Any]]:
    events = [parse_event(line) for line in text.splitlines()]
    assert None not in events
    return [event for event in events if event is not None]


@pytest.fixture
def archive(loop: Loop, tmp_path: Path) -> dict[str, Any]:
    """A job over photos of every kind."""
    write_archive(tmp_path / "source")
    return {"source": str(tmp_path / "source"), "target": str(tmp_path / "target")}


def test_denoise_tells_of_its_progress_its_rejects_and_shows_pictures(archive: dict) -> None:
    summary, events = run({"verb": "denoise", **archive})

    assert (summary["inputs"], summary["denoised"], summary["rejected"]) == (13, 6, 4)
    first, last = [event for event in events if event["event"] == "progress"][:: len(events) - 3]
    assert (first["done"], first["planned"], last["done"], last["rejected"]) == (0, 13, 13, 4)
    rejected, pictures = events[-2:]
    assert rejected["reasons"]["the file is empty"] == 1
    assert {row["key"] for row in rejected["rows"]} >= {"empty.jpg", "no-photo.png"}
    assert len(pictures["pictures"]) == 4
    assert pictures["pictures"][0]["data_url"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("source", ["files", "packed"])
def test_pictures_are_of_packed_sets_too(archive: dict, tmp_path: Path, source: str) -> None:
    run({"verb": "ingest", **archive, "target": str(tmp_path / "packed")})
    job = {**archive, "source": str(tmp_path / "packed")} if source == "packed" else archive

    _, events = run({"verb": "denoise", **job, "layout": "packed"})

    assert len(events[-1]["pictures"]) == 4


def test_a_line_however_long_is_written_at_once() -> None:
    class Log(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            written.append(bytes(data))
            return len(data)

    written: list[bytes] = []
    EventWriter(io.TextIOWrapper(io.BufferedWriter(Log())))(Event.SUMMARY, card="x" * 100_000)

    assert [line[-1:] for line in written] == [b"\n"]


def test_a_run_that_rejects_too_much_still_says_what(archive: dict) -> None:
    stream = io.StringIO()

    with pytest.raises(RunFailed, match="1 of 13"):
        run_job({"verb": "denoise", **archive, "max_rejected_fraction": 0.0}, EventWriter(stream))

    assert [event["event"] for event in events_of(stream.getvalue())][-2:] == ["rejected", "pictures"]


def test_a_plan_and_a_canary_write_nothing(archive: dict, tmp_path: Path) -> None:
    plan, _ = run({"verb": "plan", "denoise": archive})
    canary, [pictures] = run({"verb": "canary", "denoise": archive, "photos": 13})

    assert plan["photos"]["to_do"]["photos"] == 13
    assert (canary["photos"], canary["denoised"], canary["rejected"], canary["untouched"]) == (13, 6, 4, 3)
    assert canary["noise_left"] < 0.5
    assert canary["worst_change_psnr_db"] > 15
    assert canary["megapixels_per_second"] > 0
    assert len(pictures["pictures"]) == 4
    assert not (tmp_path / "target").exists()


def test_a_plan_tells_of_a_run_that_was_interrupted_when_all_was_done(archive: dict) -> None:
    run({"verb": "denoise", **archive})
    [record] = Path(archive["target"]).glob("runs/*.json")
    record.unlink()

    plan, _ = run({"verb": "plan", "denoise": archive})

    assert (plan["photos"]["to_do"]["photos"], plan["unfinished_runs"]) == (0, 1)
    run({"verb": "denoise", **archive})
    assert run({"verb": "plan", "denoise": archive})[0]["unfinished_runs"] == 0


def test_a_set_is_reported(archive: dict, tmp_path: Path) -> None:
    run({"verb": "denoise", **archive})
    page = tmp_path / "page.html"

    reported, _ = run({"verb": "report", "target": archive["target"], "output": str(page)})

    assert reported["bytes"] == len(page.read_bytes())


def test_training_evaluating_and_promoting_weights(tmp_path: Path) -> None:
    write_many(tmp_path / "clean", 2, side_px=64)
    config = {"steps": 2, "batch_size": 1, "patch_px": 32, "bfloat16": False}
    clean, promoted = str(tmp_path / "clean"), str(tmp_path / "weights/current.safetensors")
    job = {"source": clean, "run": str(tmp_path / "run"), "log_every": 1, "config": config}

    trained, events = run({"verb": "train", **job})
    evaluated, _ = run({"verb": "evaluate", "weights": trained["weights"], "photos": clean, "limit": 1})
    first, _ = run({"verb": "promote", "weights": "photo", "to": promoted})
    second, _ = run({"verb": "promote", "weights": trained["weights"], "to": promoted})

    assert [(event["done"], event["planned"]) for event in events] == [(1, 2), (2, 2)]
    assert ([row["step"] for row in trained["metrics"]], trained["card"]["network"]) == ([1, 2], "fine")
    assert len(evaluated["rows"]) == len(standard_trials())
    assert (first["before"], second["before"], second["sha256"]) == (None, first["sha256"], trained["sha256"])
    kept = tmp_path / f"weights/current-{first['sha256'][:16]}.safetensors"
    assert sorted((tmp_path / "weights").iterdir()) == [kept, Path(promoted)]


@pytest.mark.parametrize("scheme", ["", "memory"])
def test_a_job_is_a_path_a_url_or_given_as_it_is(tmp_path: Path, memory_url: str, scheme: str) -> None:
    from pipeline.storage import open_store

    root = memory_url if scheme else str(tmp_path)
    open_store(root).write("job.json", b'{"verb": "plan"}')

    assert read_job(f"{root}/job.json") == read_job(' {"verb": "plan"}') == {"verb": "plan"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ('{"verb": "denose"}', "verb is 'denose': expected one of plan, canary, denoise, ingest"),
        ('{"verb": ["denoise"]}', "verb is ['denoise']: expected one of plan, canary, denoise, ingest"),
        ('{"verb": "train", "source": "a", "run": "b", "preset": {}}', "preset is {}: expected photo or tune"),
        ('{"verb": "train", "source": "a", "run": "b", "log_every": 0}', "log_every is 0: expected at least 1"),
        ('{"verb": "train", "source": "a", "run": "b", "checkpoint_every": -1}', "checkpoint_every is -1: expected"),
        ('{"verb": "denoise", "source": "a"}', "the setting 'target' is missing"),
        ('{"verb": "denoise", "source": "a", "target": "b", "wieghts": "c"}', "unknown setting 'wieghts'"),
        ('{"verb": "plan", "denoise": {"source": "a"}}', "the setting 'denoise.target' is missing"),
        ('{"verb"', "the job is no JSON"),
        ("nowhere.json", "there is no job file at nowhere.json"),
    ],
)
def test_a_wrong_job_is_one_line_and_exit_code_2(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.job_file import main

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main([argument]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)

    out, err = capsys.readouterr()
    [error] = events_of(err)
    assert (out, error["event"], error["exit_code"]) == ("", "error", 2)
    assert message in error["message"]


def test_a_line_of_something_else_is_no_event() -> None:
    assert parse_event("hello") is None
    assert parse_event('{"event": "party"}') is None
    assert parse_event('{"event": ') is None
    assert parse_event(event_line("log", message="é")) is not None  # type: ignore[arg-type]


def test_a_record_of_the_log_is_one_line_of_json_with_its_traceback_and_without_credentials() -> None:
    error = OSError("no answer from https://someone:a-password@host/photos")
    name = "pipeline.storage"
    traceback = (OSError, error, None)
    record = logging.getLogger(name).makeRecord(name, logging.WARNING, "", 1, "trying %s", ("again",), traceback)

    [event] = events_of(JsonLines().format(record))

    assert (event["level"], event["logger"]) == ("WARNING", name)
    assert event["message"] == "trying again\nOSError: no answer from https://…@host/photos"


def test_a_job_in_a_process_of_its_own_stops_cleanly_when_told_to(tmp_path: Path) -> None:
    write_many(tmp_path / "source", 24, side_px=512)
    job = {"verb": "denoise", "source": str(tmp_path / "source"), "target": str(tmp_path / "target")}
    command = [sys.executable, "-m", "pipeline.jobs", json.dumps(job)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_commits(tmp_path / "target", 2, process)

    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert events_of(err.splitlines()[-1])[0]["exit_code"] == 130
    assert {event["event"] for event in events_of(out)} == {"progress"}
    wait_until_workers_are_gone(process)
