"""The command line without a cluster: single photos, weights, and every wrong call as one line and an exit code."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photos import saved, scene
from torch import nn

from flows.cli import _interrupt_on_signals, main
from flows.console import Bar, LogHandler, ProgressBar
from model.weights import Card, dump_weights
from pipeline.images import decode, inspect
from pipeline.records import Outcome
from pipeline.work import Progress


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(saved(scene(side_px=64), "PNG"))
    return path


@pytest.fixture(autouse=True)
def _keep_signal_handlers() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_the_first_signal_interrupts_and_no_other_disturbs_the_way_out() -> None:
    _interrupt_on_signals()

    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGHUP)

    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_photo_is_denoised_in_the_process(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = photo.with_name("clean.png")

    code, out, _ = run(capsys, "denoise", photo, target, "--json")

    assert code == 0
    assert json.loads(out)["outcome"] == "denoised"
    clean = decode(target.read_bytes(), inspect(target.read_bytes())).colour
    assert (
        np.abs(np.diff(clean.astype(int), axis=0)).mean()
        < 0.3 * np.abs(np.diff(scene(side_px=64).astype(int), axis=0)).mean()
    )
    assert sorted(path.name for path in photo.parent.iterdir()) == ["clean.png", "photo.png"]


def test_who_waits_at_a_terminal_is_told_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    _, out, err = run(capsys, "ingest", tmp_path / "nothing", tmp_path / "target")

    assert (out, err.splitlines()[0]) == ("", f"degrain: looking for what is new in {tmp_path}/nothing …")


def test_a_progress_bar_tells_of_rejected_photos_before_what_a_narrow_terminal_cuts_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressBar() as bar:
        bar(Progress(planned=9, outcomes={Outcome.DENOISED: 1, Outcome.REJECTED: 2}, megapixels=3.0))

    assert re.search(r"3/9 .*, 2 rejected, [\d.]+ megapixels/s", capsys.readouterr().err)


def test_all_of_a_log_in_json_is_json(photo: Path) -> None:
    program = "from flows.cli import main; from flows.console import ProgressBar; from pipeline.work import Progress; "
    program += f"main(['verify', '{photo.parent}', '--log-json']); "
    program += "ProgressBar()(Progress(planned=9, outcomes={'denoised': 1, 'rejected': 2}, megapixels=3.0))"

    ended = in_a_shell(f'"{sys.executable}" -c "{program}"')

    error, progress = map(json.loads, ended.stderr.splitlines())
    assert (error["level"], error["message"]) == ("ERROR", f"there is no image set at {photo.parent}")
    assert (progress["event"], progress["done"], progress["planned"], progress["rejected"]) == ("progress", 3, 9, 2)


def test_a_line_of_the_log_is_above_the_bar_and_not_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("degrain", logging.INFO, "", 0, "a shard", (), None)

    with Bar("photo") as bar:
        bar.show(1, 9)
        LogHandler(sys.stderr).emit(record)

    assert re.search(r"0/9 .*\r +\ra shard\n", capsys.readouterr().err)


def test_a_folder_as_target_takes_the_photo_under_its_name(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photo.parent / "there").mkdir()

    assert run(capsys, "denoise", photo, photo.parent / "there")[0] == 0
    assert run(capsys, "denoise", photo, f"{photo.parent}/new/")[0] == 0

    assert (photo.parent / "there/photo.png").read_bytes() == (photo.parent / "new/photo.png").read_bytes()


def test_an_untouched_photo_is_copied_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.gif").write_bytes(saved(scene(), "GIF"))

    code, out, _ = run(capsys, "denoise", tmp_path / "a.gif", tmp_path / "b.gif", "--json")

    assert (code, json.loads(out)["outcome"]) == (0, "untouched")
    assert json.loads(out)["reason"] == "GIF is not denoised"
    assert (tmp_path / "b.gif").read_bytes() == (tmp_path / "a.gif").read_bytes()


def test_a_rejected_photo_is_one_line_and_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")

    code, out, err = run(capsys, "denoise", tmp_path / "a.jpg", tmp_path / "b.jpg")

    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.endswith("a.jpg: the file is empty\n")
    assert not (tmp_path / "b.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["denoise", "nowhere", "{tmp}/t"], 2, "there are no photos in .*nowhere"),
        (["denoise", "{tmp}/empty", "{tmp}/t"], 2, "there are no photos in "),
        (["denoise", "", "{tmp}/t"], 2, "a path or URL is empty"),
        (["denoise", "{tmp}", ""], 2, "a path or URL is empty"),
        (["denoise", "{photo}", ""], 2, "a path or URL is empty"),
        (["verify", ""], 2, "a path or URL is empty"),
        (["verify", "s3://"], 2, "s3:// names no bucket: expected s3://bucket/folder"),
        (["denoise", "{tmp}", "~/clean"], 2, "~/clean: the ~ has not been replaced by your shell"),
        (["report", "{tmp}", "--output=~/report.html"], 2, "~: the ~ has not been replaced by your shell"),
        (["denoise", "{tmp}", "s3:/bucket/clean"], 2, "s3:/bucket/clean is no URL: expected s3://"),
        (["denoise", "{tmp}", "{tmp}"], 2, "source and target are both "),
        (["verify", "{tmp}", "--findings", "s3://findings.parquet"], 2, "names no bucket: expected s3://bucket/folder"),
        (["report", "{tmp}", "-o", "s3://report.html"], 2, "names no bucket: expected s3://bucket/folder"),
        (["denoise", "{photo}", "s3://photo.png"], 2, "names no bucket: expected s3://bucket/folder"),
        (["denoise", "{tmp}/empty", "{tmp}"], 2, "lies in the target"),
        (["denoise", "{tmp}", "{tmp}/t", "--weights", "best"], 2, "unknown weights 'best': "),
        (["denoise", "{tmp}", "{tmp}/t", "--weights", "{tmp}/no.safetensors"], 2, "there are no weights at "),
        (["denoise", "{tmp}", "{tmp}/t", "--weights", "{photo}"], 2, "not a safetensors file"),
        (
            ["denoise", "{tmp}", "{tmp}/t", "--strength", "2"],
            2,
            "strength is 2.0: expected auto, or a number from 0 to 1",
        ),
        (["denoise", "{tmp}", "{tmp}/t", "--strength", "much"], 2, "'much' is neither auto nor a number"),
        (["denoise", "{tmp}", "{tmp}/t", "--workers", "0"], 2, "workers is 0"),
        (["denoise", "{tmp}", "{tmp}/t", "--limit", "0"], 2, "limit is 0"),
        (["denoise", "{tmp}", "{tmp}/t", "--max-rejected-fraction", "7"], 2, "max_rejected_fraction is 7.0"),
        (["denoise", "{tmp}", "{tmp}/t", "--max-megapixels", "nan"], 2, "max_megapixels is nan: expected a finite"),
        (["denoise", "{tmp}", "{tmp}/t", "--max-megapixels", "inf"], 2, "max_megapixels is inf: expected a finite"),
        (["denoise", "{tmp}", "{tmp}/t", "--layout", "zip"], 2, "invalid choice: 'zip'"),
        (["denoise", "{tmp}", "{tmp}/t", "--misspelt"], 2, r"arguments: --misspelt \(see: degrain denoise --help"),
        (["weights", "list", "--misspelt"], 2, r"unrecognized .* \(see: degrain weights list --help"),
        (["denoise", "{tmp}", "nosuch://place"], 2, "cannot open nosuch://place"),
        (["denoise", "{tmp}", "memory://place"], 2, "memory:// is seen by one process alone"),
        (["denoise", "{tmp}", "{tmp}/full"], 2, "is not empty .* and no image set"),
        (["denoise", "{tmp}", "{photo}/t"], 1, "cannot list .*: not a directory"),
        (["denoise", "{tmp}", "{photo}"], 2, "the target .*photo.png is a file: name a folder"),
        (["denoise", "{photo}", "{tmp}/t.jpg"], 2, "degrain keeps the format of a photo"),
        (["denoise", "{tmp}/full/diary.txt", "{tmp}/t.heic"], 2, "a target for diary.txt cannot be t.heic"),
        (["denoise", "{photo}", "{tmp}/t.png", "--workers", "2", "--where", "a"], 2, "--where, --workers: for"),
        (["denoise", "{photo}", "{tmp}/t.png", "--photo-timeout-s", "9"], 2, "--photo-timeout-s: for collections"),
        (["plan", "{photo}", "{tmp}/t.png", "--sample-photos", "9"], 2, "--sample-photos: for collections alone"),
        (["denoise", "{photo}", "{photo}"], 2, "exists already: degrain overwrites no photo"),
        (["denoise", "{photo}", "{photo}/t.png"], 1, "cannot write t.png to "),
        (["denoise", "{tmp}/" + 300 * "x", "{tmp}/t"], 1, "cannot look for .*x: file name too long$"),
        (["denoise", "{photo}", "{tmp}/" + 300 * "x"], 1, "cannot look for .*x: file name too long$"),
        (["ingest", "nowhere", "{tmp}/t"], 2, "there are no photos in .*nowhere"),
        (["ingest", "{photo}", "{tmp}/t"], 2, "photo.png is one file: name a folder"),
        (["ingest", "{tmp}", "{tmp}"], 2, "source and target are both "),
        (["ingest", "{tmp}", "{tmp}/full"], 2, "is not empty .* and no image set"),
        (["ingest", "{tmp}", "memory://place"], 2, "memory:// is seen by one process alone"),
        (["ingest", "{tmp}", "{tmp}/t", "--resize", "0"], 2, "resize_px is 0: expected at least 1"),
        (["ingest", "{tmp}", "{tmp}/t", "--min-side", "wide"], 2, "invalid int value"),
        (["ingest", "{tmp}", "{tmp}/t", "--limit", "0"], 2, "limit is 0"),
        (["demo", "{tmp}/full"], 2, "full"),
        (["train", "{tmp}/empty", "--run", "{tmp}/run"], 2, "there are no photos to train on"),
        (["train", "{tmp}", "--run", "{tmp}/run", "--patch-px", "100"], 2, "need a multiple of 32"),
        (["evaluate", "photo", "{tmp}", "--output", ""], 2, "a path or URL is empty"),
        (["weights", "show", "best"], 2, "unknown weights 'best'"),
        (["weights", "show", "photo", "--registry", ""], 2, "a path or URL is empty"),
        (["up", "--folder", "what?"], 2, r"what\? holds a '\?', where its database's name would end"),
        (["up", "--port", "8265"], 2, "port and ray_port are both 8265: name two"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        ([], 2, "required"),
    ],
)
def test_a_wrong_call_is_one_clear_line(
    photo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    (photo.parent / "empty").mkdir()
    (photo.parent / "full").mkdir()
    (photo.parent / "full/diary.txt").write_text("mine")
    before = sorted(path for path in photo.parent.rglob("*") if path.is_file())

    found_code, out, err = run(capsys, *(text.format(tmp=photo.parent, photo=photo) for text in arguments))

    assert (found_code, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert err.startswith("degrain: ")
    assert sorted(path for path in photo.parent.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("verb", ["denoise", "ingest"])
def test_a_dry_run_counts_and_writes_nothing(photo: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = run(capsys, verb, photo.parent, photo.parent / "target", "--dry-run")

    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()][1] == ["new", "1"]
    assert ["to", "do", "1"] in [line.split()[:3] for line in out.splitlines()]
    assert not (photo.parent / "target").exists()


@pytest.mark.parametrize("verb", [["plan"], ["denoise", "--dry-run"]])
def test_a_plan_of_one_photo_is_json_where_that_is_asked_for(
    photo: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    target = photo.with_name("clean.png")

    code, out, _ = run(capsys, *verb, photo, target, "--json")

    assert (code, json.loads(out)) == (0, {"photo": str(photo), "output": str(target)})
    assert not target.exists()


def test_the_shipped_weights_are_listed_and_name_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert "photo" in run(capsys, "weights", "list")[1]

    card = json.loads(run(capsys, "weights", "show", "photo")[1])

    assert card["network"] == "fine"
    assert "CC BY-SA" in card["data"]
    assert card["scores"]["cbsd68_psnr_db_sigma_25"] >= 31.1


def test_weights_are_listed_and_shown_as_one_line_of_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    [listed] = run(capsys, "weights", "list", "--json")[1].splitlines()
    [shown] = run(capsys, "weights", "show", "photo", "--json")[1].splitlines()

    [photo] = [each for each in json.loads(listed) if each.pop("names") == ["photo"]]
    assert photo == json.loads(shown) == json.loads(run(capsys, "weights", "show", "photo")[1])
    assert run(capsys, "weights", "list", "--json", "--registry", tmp_path)[1] == "[]\n"


def test_what_strangers_write_on_a_card_is_no_command_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = Card(network="photo", data="\x9b31m\ud800", licence="", noise="", scores={"\x1b]0;psnr\x07": 30})
    data = dump_weights(nn.Linear(1, 1), card)
    (tmp_path / "weights").mkdir()
    for name in ("night", "\u202ethgin"):
        (tmp_path / f"weights/{name}.safetensors").write_bytes(data)

    _, listed, _ = run(capsys, "weights", "list", "--registry", tmp_path)
    _, shown, _ = run(capsys, "weights", "show", "night", "--registry", tmp_path)
    _, _, refused = run(capsys, "weights", "show", "nigth", "--registry", tmp_path)

    assert r"\x1b]0;psnr\x07 30" in listed
    assert json.loads(shown)["data"] == card.data
    assert r"has night, \u202ethgin" in refused
    assert all(line.isprintable() for line in (listed + shown + refused).splitlines())


def test_an_interrupted_command_that_keeps_nothing_says_no_more_than_that(
    photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.evaluate.run_evaluate", interrupt)

    assert run(capsys, "evaluate", "photo", photo.parent) == (130, "", "degrain: interrupted\n")


def test_training_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(saved(scene(sigma=0), "PNG"))
    common = ["train", tmp_path / "photos", "--run", tmp_path / "run", "--patch-px", 32, "--batch-size", 2]

    assert run(capsys, *common, "--steps", 2)[0] == 0
    code, out, _ = run(capsys, *common, "--steps", 4, "--validation", tmp_path / "photos")

    assert code == 0
    assert json.loads(out)["psnr_db_sigma_25"] > 15
    assert (
        run(
            capsys,
            "denoise",
            tmp_path / "photos/a.png",
            tmp_path / "b.png",
            "--weights",
            tmp_path / "run/weights.safetensors",
        )[0]
        == 0
    )


def test_help_names_every_command() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout

    assert all(name in out for name in ("denoise", "plan", "ingest", "demo", "train", "evaluate", "weights"))


def test_a_command_is_described_by_a_sentence_that_keeps_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\nPack a collection of photos into Parquet shards.\n" in run(capsys, "ingest", "--help")[1]


def in_a_shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`degrain` is the command under test, and what it prints waits in a buffer, as it does for users."""
    script = f'degrain() {{ "{sys.executable}" -m flows.cli "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    ended = in_a_shell("degrain --help | true; exit ${PIPESTATUS[0]}")

    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_clear_line(unbuffered: str) -> None:
    ended = in_a_shell("degrain weights list > /dev/full", PYTHONUNBUFFERED=unbuffered)

    assert ended.returncode == 1
    assert ended.stderr == "degrain: cannot write to standard output: no space left on device\n"


def test_a_full_disk_for_temporary_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(_: object) -> None:
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    monkeypatch.setattr("pipeline.report.run_report", fill)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    code, _, err = run(capsys, "report", tmp_path, "-o", tmp_path / "report.html")

    assert code == 1
    assert err.startswith(f"degrain: no space is left for temporary files in {tmp_path}: ")


def test_no_file_gets_the_number_of_a_stream_that_is_closed() -> None:
    opened = (
        "from flows.standard_streams import prepare_process as p; p(); import os; os._exit(os.open('/dev/null', 0))"
    )

    ended = in_a_shell(f'"{sys.executable}" -c "{opened}" <&- >&- 2>&-')

    assert ended.returncode == 3


def test_arrow_gives_memory_back() -> None:
    pool = "from flows.standard_streams import prepare_process as p; p(); import pyarrow as pa; "
    pool += "print(pa.default_memory_pool().backend_name)"

    ended = in_a_shell(f'"{sys.executable}" -c "{pool}"')

    assert ended.stdout == "system\n"


def test_numpy_starts_no_threads_beside_the_network() -> None:
    names = "from flows.standard_streams import prepare_process as p; p(); import numpy, threadpoolctl; "
    names += "print({each['num_threads'] for each in threadpoolctl.threadpool_info() if each['user_api'] == 'blas'})"

    ended = in_a_shell(f'"{sys.executable}" -c "{names}"')

    assert ended.stdout == "{1}\n"


def test_what_it_starts_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("print('not ours')")
    names = "from flows.standard_streams import prepare_process as p; p(); import subprocess, sys; "
    names += "subprocess.run([sys.executable, '-c', 'import torch'])"

    ended = in_a_shell(f'cd {tmp_path}; "{sys.executable}" -c "{names}"')

    assert (ended.returncode, ended.stdout) == (0, "")


def test_what_runs_on_this_machine_is_reached_without_a_proxy() -> None:
    names = "from flows.standard_streams import prepare_process as p; p(); import os, urllib.request; "
    names += "print(os.environ['no_proxy'], os.environ['NO_PROXY'], urllib.request.proxy_bypass('127.0.0.1'))"

    ended = in_a_shell(f'"{sys.executable}" -c "{names}"', http_proxy="http://10.0.0.1:3128", NO_PROXY="a.com, b.com")

    assert ended.stdout == "a.com,b.com,127.0.0.1,localhost a.com,b.com,127.0.0.1,localhost True\n"


def test_a_name_that_the_output_cannot_hold_fails_nothing(photo: Path) -> None:
    ended = in_a_shell(f"cd {photo.parent} && degrain plan photo.png 📷.png", PYTHONIOENCODING="ascii")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith(" \\U0001f4f7.png\n")


def test_names_are_utf_8_in_any_locale(photo: Path) -> None:
    ended = in_a_shell(f"cd {photo.parent} && degrain denoise photo.png é-📷.png", LC_ALL="C", PYTHONUTF8="0")

    assert ended.returncode == 0, ended.stderr
    assert photo.with_name("é-📷.png").is_file()
    assert ended.stdout.endswith(": é-📷.png\n")
