"""`degrain denoise` as a user runs it: the command in a process of its own, real Ray, real files, a real S3 server."""

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from commands import (
    degrain,
    start_degrain,
    summary_of,
    wait_for_commits,
    wait_until_workers_are_gone,
    write_many,
)
from loop import index_of
from photos import write_archive

MANY = 24


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str], dict]:
    """A mixed archive, its target after one run, what was expected, and the summary."""
    folder = tmp_path_factory.mktemp("archive")
    expected = write_archive(folder / "source")
    before = hashes(folder / "source")
    summary = summary_of(degrain("denoise", folder / "source", folder / "target", "--json"))
    assert hashes(folder / "source") == before
    return folder / "source", folder / "target", expected, summary


def test_every_input_is_accounted_for(archive: tuple[Path, Path, dict[str, str], dict]) -> None:
    _, target, expected, summary = archive

    rows = index_of(target)
    assert {key: row["outcome"] for key, row in rows.items()} == expected
    assert summary["inputs"] == len(expected) == summary["denoised"] + summary["untouched"] + summary["rejected"]
    assert (summary["denoised"], summary["untouched"], summary["rejected"], summary["up_to_date"]) == (6, 3, 4, 0)


def test_index_and_objects_agree_and_nothing_temporary_remains(
    archive: tuple[Path, Path, dict[str, str], dict],
) -> None:
    _, target, _, _ = archive

    written = {row["output_key"]: row["output_sha256"] for row in index_of(target).values() if row["output_key"]}
    found = hashes(target)
    assert {key: digest for key, digest in found.items() if key.startswith("images/")} == written
    folders = ["commits", "images", "index", "lease", "plans", "runs"]
    assert sorted(path.name for path in target.iterdir() if path.is_dir()) == folders
    assert {key.split("/")[0] for key in found} == {*folders, "manifest.json"}


def test_noise_was_removed(archive: tuple[Path, Path, dict[str, str], dict]) -> None:
    _, target, _, _ = archive

    for row in index_of(target).values():
        if row["outcome"] == "denoised":
            assert row["noise_sigma_after"] < 0.5 * row["noise_sigma_before"], row["key"]


def test_a_second_run_does_nothing(archive: tuple[Path, Path, dict[str, str], dict]) -> None:
    source, target, _, summary = archive
    before = hashes(target)

    again = summary_of(degrain("denoise", source, target, "--json"))

    assert (again["inputs"], again["up_to_date"], again["rejected_before"]) == (summary["inputs"], 9, 4)
    assert hashes(target) == before


@pytest.mark.slow
def test_rejected_photos_are_tried_again_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/empty.jpg").write_bytes(b"")
    degrain("denoise", tmp_path / "source", tmp_path / "target")

    idle = summary_of(degrain("denoise", tmp_path / "source", tmp_path / "target", "--json"))
    retried = summary_of(degrain("denoise", tmp_path / "source", tmp_path / "target", "--json", "--retry-failed"))

    assert (idle["rejected"], idle["up_to_date"], idle["rejected_before"]) == (0, 0, 1)
    assert (retried["rejected"], retried["up_to_date"], retried["rejected_before"]) == (1, 0, 0)
    assert index_of(tmp_path / "target")["empty.jpg"]["attempts"] == 2


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGINT], id="INT", marks=pytest.mark.slow),
        pytest.param([signal.SIGTERM], id="TERM", marks=pytest.mark.slow),
        pytest.param([signal.SIGHUP], id="HUP", marks=pytest.mark.slow),
        pytest.param([signal.SIGKILL], id="KILL", marks=pytest.mark.slow),  # `test_soak.py` kills runs, too
    ],
)
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, signals: list[signal.Signals]) -> None:
    write_many(tmp_path / "source", MANY, side_px=512)  # seconds of work are left when the signal comes
    process = start_degrain("denoise", tmp_path / "source", tmp_path / "target", "--workers", 2)
    wait_for_commits(tmp_path / "target", 3, process)

    for sent in signals:
        os.killpg(process.pid, sent) if sent in (signal.SIGINT, signal.SIGHUP) else process.send_signal(sent)
    _, errors = process.communicate(timeout=60)

    if signal.SIGKILL not in signals:
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert (
            errors.splitlines()[-1]
            == "degrain: interrupted: what is finished stays, and the same command does the rest"
        )
    wait_until_workers_are_gone(process)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "target/commits").iterdir()}
    assert 3 <= len(finished) < MANY

    rest = summary_of(degrain("denoise", tmp_path / "source", tmp_path / "target", "--json"))
    assert 0 < rest["denoised"] < MANY
    assert rest["denoised"] + rest["up_to_date"] == rest["inputs"] == MANY
    for name, written_ns in finished.items():
        assert (tmp_path / "target/commits" / name).stat().st_mtime_ns == written_ns
    assert len(index_of(tmp_path / "target")) == MANY
    assert not (tmp_path / "target/.degrain-tmp").exists()
    assert len(list((tmp_path / "target/plans").iterdir())) == 1


@pytest.mark.slow
def test_an_interrupted_run_under_other_settings_is_closed_and_its_results_are_redone(tmp_path: Path) -> None:
    write_many(tmp_path / "source", MANY, side_px=512)
    process = start_degrain("denoise", tmp_path / "source", tmp_path / "target")
    wait_for_commits(tmp_path / "target", 3, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    other = summary_of(degrain("denoise", tmp_path / "source", tmp_path / "target", "--strength", 0.5, "--json"))

    assert (other["denoised"], other["up_to_date"]) == (MANY, 0)
    assert {row["strength"] for row in index_of(tmp_path / "target").values()} == {0.5}
    assert len(list((tmp_path / "target/runs").iterdir())) == 2


@pytest.mark.slow
def test_the_packed_layout_holds_the_same_photos(
    archive: tuple[Path, Path, dict[str, str], dict], tmp_path: Path
) -> None:
    source, target, expected, _ = archive

    summary_of(degrain("denoise", source, tmp_path / "packed", "--layout", "packed", "--json"))

    rows = index_of(tmp_path / "packed")
    assert {key: row["outcome"] for key, row in rows.items()} == expected
    tables = [pq.read_table(path).to_pylist() for path in (tmp_path / "packed/shards").iterdir()]
    packed = {row["key"]: row["image"]["bytes"] for table in tables for row in table}
    assert packed == {key: (target / "images" / key).read_bytes() for key in packed}
    assert set(packed) == {key for key, outcome in expected.items() if outcome != "rejected"}


@pytest.mark.slow  # `test_soak.py` has a real server for both
def test_from_and_to_s3(s3_bucket: str, tmp_path: Path) -> None:
    expected = write_archive(tmp_path / "source")
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    for key in expected:
        filesystem.pipe_file(f"{s3_bucket}/source/{key}", (tmp_path / "source" / key).read_bytes())

    summary = summary_of(degrain("denoise", f"{s3_bucket}/source", f"{s3_bucket}/target", "--json"))

    assert (summary["denoised"], summary["untouched"], summary["rejected"]) == (6, 3, 4)
    written = {path.split("/target/images/")[1] for path in filesystem.find(f"{s3_bucket}/target/images")}
    assert written == {key for key, outcome in expected.items() if outcome != "rejected"}


@pytest.mark.slow
def test_limit_leaves_the_rest_for_the_next_run(tmp_path: Path) -> None:
    write_many(tmp_path / "source", 6)

    first = summary_of(degrain("denoise", tmp_path / "source", tmp_path / "target", "--limit", 2, "--json"))
    second = summary_of(degrain("denoise", tmp_path / "source", tmp_path / "target", "--json"))

    assert (first["inputs"], first["denoised"], first["up_to_date"]) == (2, 2, 0)
    assert (second["inputs"], second["denoised"], second["up_to_date"]) == (6, 4, 2)


@pytest.mark.slow  # `test_run.py` has the same without a cluster
def test_too_many_rejected_photos_fail_the_run_and_keep_what_is_finished(tmp_path: Path) -> None:
    write_many(tmp_path / "source", 2)
    for number in range(4):
        (tmp_path / f"source/broken-{number}.jpg").write_bytes(b"")

    failed = degrain("denoise", tmp_path / "source", tmp_path / "target", "--max-rejected-fraction", 0.5)

    assert failed.returncode == 1
    assert "more than the allowed share of 0.5" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    rows = index_of(tmp_path / "target")
    assert sum(row["reason"] == "the file is empty" for row in rows.values()) > 3
    kept = hashes(tmp_path / "target")
    assert all(kept[row["output_key"]] == row["output_sha256"] for row in rows.values() if row["output_key"])


@pytest.mark.slow  # `test_jobs.py` has the same without a cluster
def test_a_target_inside_of_its_source_is_not_taken_for_photos(tmp_path: Path) -> None:
    write_many(tmp_path / "source", 2)
    summary_of(degrain("denoise", tmp_path / "source", tmp_path / "source/clean", "--json"))

    again = summary_of(degrain("denoise", tmp_path / "source", tmp_path / "source/clean", "--json"))

    assert (again["inputs"], again["up_to_date"]) == (2, 2)


def test_a_full_disk_is_one_clear_line_and_leaves_no_half_written_file(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        write_many(tmp_path / "source", 40, side_px=128)
        failed = degrain("denoise", tmp_path / "source", disk / "target")

        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-1].endswith("no space left on device")
        assert "Traceback" not in failed.stderr
        assert not list((disk / "target").rglob(".degrain-tmp/*"))
        for path in (disk / "target/images").glob("*.png"):
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_demo_gains_on_every_photo_and_leaves_a_picture(tmp_path: Path) -> None:
    finished = degrain("demo", tmp_path / "demo")

    assert finished.returncode == 0, finished.stderr
    gains = [float(line.split()[-2]) for line in finished.stdout.splitlines() if line.endswith(" dB")]
    assert len(gains) == 4
    assert min(gains) > 3
    assert (tmp_path / "demo/before-after.png").stat().st_size > 100_000
