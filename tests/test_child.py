"""Processes that we start: nothing of them is left when they are stopped."""

import os
import socket
import sys
from pathlib import Path

import pytest
from stack import wait_until

from flows import child as module
from flows.child import Child, free_ports
from pipeline.errors import RunFailed


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("goes_on", "then"), [(False, "exit"), (True, "exec sleep 60")])
def test_what_a_process_has_left_behind_ends_as_it_is_stopped(goes_on: bool, then: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    child = Child("a shell", ["sh", "-c", f"sleep 60 > {tmp_path}/held & {then}"], tmp_path / "log", {})

    with (tmp_path / "held").open("rb") as held:  # by what is left behind, as long as it lives
        wait_until(lambda: child.is_running is goes_on, 10)
        child.stop()

        assert held.read() == b""


@pytest.mark.parametrize("given_to_connections", ["32768 60999", "1024 65535", None])
def test_ports_are_free_and_none_that_a_connection_may_take_meanwhile(
    given_to_connections: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTION_PORTS", tmp_path / "range")
    if given_to_connections is not None:
        (tmp_path / "range").write_text(f"{given_to_connections}\n")

    ports = free_ports(20)

    assert len(set(ports)) == 20
    assert given_to_connections != "32768 60999" or max(ports) < 32768
    for port in ports:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("I1130 hello\nF1130 23:19:49 mini.go:1 no port\ngoroutine 1:\n\tmini.go:1457 +0x111\n", "F1130 .* no port"),
        ("first\nlast\n\n", "last"),
        ("", "see .*log"),
    ],
)
def test_the_reason_for_which_a_process_ended_is_told(said: str, reason: str, tmp_path: Path) -> None:
    child = Child("a server", ["sh", "-c", f"printf '{said}'; exit 3"], tmp_path / "log", {})
    with pytest.raises(RunFailed, match=f"^a server ended with 3: {reason}$"):
        child.wait_until(lambda: False, timeout_s=30)


def test_the_reason_is_not_that_of_an_earlier_process(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("F0101 00:00:00 the disk was full\n")
    child = Child("a server", ["sh", "-c", "echo the port is taken; exit 3"], tmp_path / "log", {})
    with pytest.raises(RunFailed, match=r"^a server ended with 3: the port is taken$"):
        child.wait_until(lambda: False, timeout_s=30)


def test_what_lies_in_the_current_folder_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flows.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)

    child = Child("Python", [sys.executable, "-c", "import flows.child; print('ours')"], tmp_path / "log", {})
    wait_until(lambda: not child.is_running, 30)

    assert (tmp_path / "log").read_text() == "ours\n"
