"""Temporary folders go with their block, and those of killed processes with the next one; what is in use stays."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from flows.local_ray import local_ray
from pipeline.connection import connected
from pipeline.scratch import PREFIX, RAY_CHARACTERS, own_folder, scratch_folder, temporary_folder

HOLD = """
from flows.local_ray import local_ray
from pipeline.connection import connected
from pipeline.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "large").write_bytes(b"photo")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def another() -> Iterator[Callable[[], tuple[subprocess.Popen[str], Path]]]:
    """Starts a process that has a folder, until it is told to go on."""
    processes = []

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("error", [None, ValueError], ids=["returns", "raises"])
def test_a_folder_goes_with_its_block(temporary: Path, error: type[Exception] | None) -> None:
    with pytest.raises(error) if error else nullcontext(), scratch_folder() as folder:
        assert folder.parent == temporary
        assert not list(folder.iterdir())
        (folder / "deep").mkdir()
        (folder / "deep/file").write_text("table")
        if error:
            raise error

    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_folder(temporary: Path, another) -> None:
    process, left = another()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (left / "large").exists()

    with scratch_folder() as folder:
        assert list(temporary.iterdir()) == [folder]


def test_what_a_process_uses_stays_even_while_it_is_stopped(another) -> None:
    process, used = another()
    process.send_signal(signal.SIGSTOP)

    with scratch_folder(), scratch_folder():
        assert (used / "large").read_bytes() == b"photo"

    process.send_signal(signal.SIGCONT)
    process.communicate("\n")
    assert process.returncode == 0
    assert not used.exists()


def test_threads_do_not_take_each_others_folders() -> None:
    def use(number: int) -> str:
        with scratch_folder() as folder:
            (folder / "number").write_text(str(number))
            with scratch_folder():
                return (folder / "number").read_text()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(200))) == [str(number) for number in range(200)]


def test_a_folder_that_is_taken_for_abandoned_before_it_has_its_lock_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def make(**options: str) -> str:
        made.append(make_folder(**options))
        if len(made) == 1:
            Path(made[0]).rmdir()  # as another process does that finds no lock
        return made[-1]

    make_folder = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", make)

    with scratch_folder() as folder:
        assert [str(folder)] == made[1:]
        assert folder.is_dir()


def test_links_are_not_followed(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    precious = tmp_path_factory.mktemp("precious") / "photo"
    precious.touch()
    (temporary / f"{PREFIX}link").symlink_to(precious.parent)

    with scratch_folder():
        assert precious.exists()


def test_a_file_system_without_locks_does_as_well(temporary: Path, another, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(os.strerror(37))

    _, used = another()
    monkeypatch.setattr(fcntl, "flock", refuse)

    with scratch_folder() as folder:
        assert folder.is_dir()
        assert (used / "large").exists()

    assert list(temporary.iterdir()) == [used]


def test_sockets_are_not_put_into_a_folder_of_a_long_name(temporary: Path) -> None:
    most = len(str(temporary))

    assert temporary_folder(most_characters=most) == temporary
    assert temporary_folder(most_characters=most - 1) == Path("/tmp")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ray_starts_where_the_temporary_folder_has_a_long_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="x" * RAY_CHARACTERS, dir="/tmp") as long:
        monkeypatch.setenv("TMPDIR", long)
        monkeypatch.setattr(tempfile, "tempdir", None)

        with connected(None), local_ray():
            pass


def test_a_folder_of_ones_own_is_never_that_of_someone_else(temporary: Path) -> None:
    folder = own_folder(most_characters=1000)
    assert (folder.parent, folder.stat().st_mode & 0o777) == (temporary, 0o700)
    assert own_folder(most_characters=1000) == folder

    folder.rmdir()
    folder.symlink_to(temporary)
    with pytest.raises(PermissionError, match="belongs to someone else: remove it, or name another place by TMPDIR"):
        own_folder(most_characters=1000)
