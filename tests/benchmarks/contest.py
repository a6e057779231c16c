"""Contenders do the same work on the same photos in turn, each in a process of its own, for some rounds."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Contender = Callable[[Path, Path], float]  # from a folder of photos to one of results; returns the seconds that count


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
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
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


def report(seconds: Mapping[str, Sequence[float]], photos: int, megapixels: float, *, ours: Sequence[str]) -> None:
    """The best round of each, and how many times as fast each of ours is."""
    print(f"{'':18} {'images/s':>9} {'megapixels/s':>13} " + " ".join(f"{name:>16}" for name in ours) + "  rounds, s")
    for name, each in seconds.items():
        best = min(each)
        ratios = " ".join(f"{best / min(seconds[our]):16.2f}" for our in ours)
        rounds = ", ".join(f"{one:.1f}" for one in each)
        print(f"{name:18} {photos / best:9.2f} {megapixels / best:13.2f} {ratios}  {rounds}")
