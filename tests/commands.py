"""The command as a user runs it: in a process of its own, and what the tests wait for meanwhile."""

import json
import subprocess
import sys
import time
from pathlib import Path

from photos import saved, scene


def degrain(*arguments: object, timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def start_degrain(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def summary_of(finished: subprocess.CompletedProcess[str]) -> dict:
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def write_many(folder: Path, count: int, *, side_px: int = 64) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(saved(scene(seed=number, side_px=side_px), "PNG"))


def wait_for_commits(target: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list((target / "commits").glob("*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_workers_are_gone(process: subprocess.Popen[str]) -> None:
    """Until every actor in the session that `start_degrain` opened has ended: none of them writes any more."""
    deadline = time.monotonic() + 60
    while (
        subprocess.run(
            ["pgrep", "-s", str(process.pid), "-f", "ray::_Actor"], capture_output=True, check=False
        ).returncode
        == 0
    ):
        assert time.monotonic() < deadline, "Ray's workers outlive their driver"
        time.sleep(0.1)
