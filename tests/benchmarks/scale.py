"""Ten times as many photos: what each takes then, and how much memory each process, for `degrain denoise`.

    python tests/benchmarks/scale.py FOLDER_OF_PHOTOS [--count 1000] [--factor 10] [--side 128]

The photos are noisy 8-bit PNGs. The time is the `seconds` that the command reports: with the start of its workers, and
without that of Ray. The memory is the peak resident set of each process as the kernel keeps it (VmHWM), read while the
command runs.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from noisy_photos import saved, scaled

LOOKS_PER_S = 5


@dataclass
class Run:
    """What the command reported, and the peak resident set of its processes in MB, by what they are."""

    seconds: float = 0.0
    whole_s: float = 0.0
    peak_mb: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--factor", type=int, default=10)
    parser.add_argument("--side", type=int, default=128)
    options = parser.parse_args()
    few, many = options.count, options.count * options.factor
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (few, many):
            write_small(options.photos, folder / f"{count}", count, options.side)
        runs = {count: run_degrain(folder / f"{count}", folder / f"{count}-clean") for count in (few, many)}
    for count, run in runs.items():
        each_ms = 1e3 * run.seconds / count
        print(
            f"{count:6} photos: {run.seconds:6.1f} s, {each_ms:.2f} ms a photo; the whole command {run.whole_s:.1f} s"
        )
    each_few, each_many = runs[few].seconds / few, runs[many].seconds / many
    print(f"time per photo   ratio {each_many / each_few:.2f}")
    for role, peak_mb in runs[many].peak_mb.items():
        before_mb = runs[few].peak_mb[role]
        print(f"{role:16} {before_mb:6.0f} MB, {peak_mb:6.0f} MB   ratio {peak_mb / before_mb:.2f}")


def write_small(clean: Path, folder: Path, count: int, side_px: int) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    photos = [scaled(path, (side_px, side_px)) for path in sorted(clean.iterdir())]
    for number, photo in enumerate(islice(cycle(photos), count)):
        noisy = (photo + draw.normal(0, 25, photo.shape)).round().clip(0, 255).astype(np.uint8)
        (folder / f"{number:06}.png").write_bytes(saved(noisy, "png"))


def run_degrain(source: Path, target: Path) -> Run:
    run = Run()
    start = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", "denoise", str(source), str(target), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for role, peak_mb in peaks_of_family(process.pid):
                run.peak_mb[role] = max(run.peak_mb.get(role, 0.0), peak_mb)
            time.sleep(1 / LOOKS_PER_S)
        assert process.stdout is not None
        assert process.returncode == 0, "the command failed"
        run.seconds = float(json.loads(process.stdout.read().splitlines()[-1])["seconds"])
    run.whole_s = time.perf_counter() - start
    return run


def peaks_of_family(pid: int) -> Iterator[tuple[str, float]]:
    """What each process of the family is, and its peak resident set in MB."""
    for _, role, status in family(pid):
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            yield role, int(found[1]) / 1024


def family(pid: int) -> Iterator[tuple[int, str, str]]:
    """Each process of the family, what it is, and its status as the kernel keeps it."""
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            command = Path(f"/proc/{one}/cmdline").read_text()
            waiting += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield one, role_of(command, is_driver=one == pid), status


def role_of(command: str, *, is_driver: bool) -> str:
    if is_driver:
        return "command"
    for sign, role in (("ray::_Actor", "worker"), ("raylet/raylet", "raylet"), ("gcs_server", "gcs server")):
        if sign in command:
            return role
    return "others of Ray"


if __name__ == "__main__":
    main()
