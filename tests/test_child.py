"""Processes that we start: nothing of them is left when they are stopped."""

import os
import sys
from pathlib import Path

import pytest
from stack import wait_until

from flows.child import Child


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("goes_on", "then"), [(False, "exit"), (True, "exec sleep 60")])
def test_what_a_process_has_left_behind_ends_as_it_is_stopped(goes_on: bool, then: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    child = Child("a shell", ["sh", "-c", f"sleep 60 > {tmp_path}/held & {then}"], tmp_path / "log", {})

    with (tmp_path / "held").open("rb") as held:  # by what is left behind, as long as it lives
        wait_until(lambda: child.is_running is goes_on, 10)
        child.stop()

        assert held.read() == b""


def test_what_lies_in_the_current_folder_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flows.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)

    child = Child("Python", [sys.executable, "-c", "import flows.child; print('ours')"], tmp_path / "log", {})
    wait_until(lambda: not child.is_running, 30)

    assert (tmp_path / "log").read_text() == "ours\n"
