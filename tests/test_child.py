"""Processes that we start: nothing of them is left when they are stopped."""

import os
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
