"""Contenders do the same work on the same photos in turn, each in a process of its own, for some rounds."""

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Contender = Callable[[Path, Path], float]  # from a folder of photos to one of results; returns the seconds that count


def in_turn(contenders: Iterable[T], *, rounds: int) -> Iterator[tuple[int, T]]:
    """The number of the round, and whose turn it is: every other round goes backwards.

    So a machine that grows slower favours nobody, if the rounds are even in number.
    """
    forwards = list(contenders)
    for turn in range(rounds):
        for contender in forwards[:: -1 if turn % 2 else 1]:
            yield turn, contender


def run_one(contenders: Mapping[str, Contender], arguments: Sequence[str]) -> bool:
    """In the process of one contender: do its work, and tell the seconds. False in any other process."""
    if not arguments or arguments[0] != "--contender":
        return False
    _, name, source, target = arguments
    print(json.dumps(contenders[name](Path(source), Path(target))))
    return True


def compete(script: str, names: Sequence[str], source: Path, *, rounds: int, expected: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; every result of each is counted.

    Args:
        script: the file that calls `run_one` with the contenders.
        names: of the contenders.
        source: folder of photos.
        rounds: how often each has its turn.
        expected: how many photos each must write.
    """
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _, name in in_turn(names, rounds=rounds):
        with tempfile.TemporaryDirectory(prefix="degrain-") as folder:
            target = Path(folder) / "target"
            command = [sys.executable, script, "--contender", name, str(source), str(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} failed: {done.stderr[-3000:]}")
            seconds[name].append(json.loads(done.stdout.splitlines()[-1]))
            written = [path for path in target.rglob("*") if path.suffix in (".png", ".jpeg")]
            assert len(written) == expected, f"{name} wrote {len(written)} photos of {expected}"
    return seconds


def run_together(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> float:
    """Seconds of processes that work at the same time, from when all are warm to when all are done.

    Args:
        work: is given its arguments and a barrier, and waits there when it is warm.
        arguments: of each process.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(arguments) + 1)
    processes = [context.Process(target=work, args=(*each, barrier)) for each in arguments]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    return time.perf_counter() - start


def report(seconds: Mapping[str, Sequence[float]], photos: int, megapixels: float, *, ours: Sequence[str]) -> None:
    """The best round of each, and how many times as fast each of ours is."""
    print(f"{'':18} {'images/s':>9} {'megapixels/s':>13} " + " ".join(f"{name:>16}" for name in ours) + "  rounds, s")
    for name, each in seconds.items():
        best = min(each)
        ratios = " ".join(f"{best / min(seconds[our]):16.2f}" for our in ours)
        rounds = ", ".join(f"{one:.1f}" for one in each)
        print(f"{name:18} {photos / best:9.2f} {megapixels / best:13.2f} {ratios}  {rounds}")
