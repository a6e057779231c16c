"""Photos wait for room in memory: nobody is starved, and no more is taken than was promised."""

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

from pipeline import room
from pipeline.room import KEEPING_FREED_MEMORY, Room, usable_cores


@pytest.fixture
def in_thread() -> Callable[..., threading.Thread]:
    def start(do: Callable[..., None], *args: int) -> threading.Thread:
        thread = threading.Thread(target=do, args=args, daemon=True)
        thread.start()
        thread.join(0.05)
        return thread

    return start


def test_small_photos_take_half_of_the_room_together(in_thread) -> None:
    room = Room(100)
    room.take(30)

    waiting = in_thread(room.take, 30)
    assert waiting.is_alive()
    room.give_back(30)
    waiting.join()


def test_a_photo_larger_than_the_room_comes_in_beside_small_ones(in_thread) -> None:
    room = Room(100)
    room.take(50)

    room.take(1000)

    assert in_thread(room.take, 1000).is_alive()


def test_small_photos_pass_a_large_one_that_waits(in_thread) -> None:
    room = Room(100)
    room.take(1000)
    waiting = in_thread(room.take, 1000)

    room.take(50)

    room.give_back(1000)
    waiting.join()


def test_a_photo_that_needs_much_of_its_half_is_not_overtaken(in_thread) -> None:
    room = Room(100)
    room.take(20)
    first = in_thread(room.take, 40)

    second = in_thread(room.take, 10)

    assert second.is_alive()  # though there would be room for it
    room.give_back(20)
    first.join()
    second.join()


def test_whatever_comes_no_more_is_taken_than_half_of_the_room_and_one_large_photo() -> None:
    room, lock = Room(100), threading.Lock()
    taken: list[int] = []
    most = [0]

    def pass_through(size: int) -> None:
        with room.taken(size):
            with lock:
                taken.append(size)
                most[0] = max(most[0], sum(taken))
                assert sum(size > 50 for size in taken) <= 1
            with lock:
                taken.remove(size)

    sizes = np.random.default_rng(0).integers(1, 120, 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        done = wait([pool.submit(pass_through, size) for size in sizes]).done

    assert [future.exception() for future in done] == [None] * len(sizes)
    assert most[0] <= 50 + max(sizes)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="here a process runs on every core")
def test_cores_that_a_process_may_not_run_on_do_not_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library of this system is not glibc")
def test_memory_that_was_freed_is_not_cleared_by_the_system_again() -> None:
    """Counted in page faults, of threads that need what the network needs for a tile again and again."""
    code = """
import resource, sys, threading
import numpy as np
from pipeline.room import keep_freed_memory

def work():
    for _ in range(5):
        features = [np.zeros(40 * 2**20, np.uint8) + np.uint8(1) for _ in range(4)]

if sys.argv[1] == "kept by itself":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(kind: str, environment: Mapping[str, str] = os.environ) -> int:
        command = [sys.executable, "-c", code, kind]
        return int(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)

    given_back = faults("given back")
    assert faults("kept by itself") < given_back / 5
    assert faults("kept by its environment", os.environ | KEEPING_FREED_MEMORY) < given_back / 5


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "?"}, 8),
    ],
)
def test_a_container_has_as_many_cores_as_its_limit_lets_it_keep_busy(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(room, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    assert usable_cores() == cores
