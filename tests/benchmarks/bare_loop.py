"""`degrain denoise` against bare loops over the same photos with the same network and codecs, in one run.

    python tests/benchmarks/bare_loop.py FOLDER_OF_PHOTOS [--kind png|jpeg] [--count 246] [--sigma 25] [--rounds 2]

The loops read, decode, denoise, encode and write one photo after the other, without Ray, their networks loaded and
warm: one process whose torch uses every core, and one process for each core. All alternate for some rounds. Of degrain
two times count: the `seconds` that it reports, with the start of its workers and without that of Ray; and its steady
state, from the moment when a tenth of the photos is finished, as the index tells. Prints images/s, how many times as
fast degrain is, and the PSNR before and after.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from contest import in_turn, report, run_together
from noisy_photos import SIZES_PX, scaled, write_noisy
from numpy.typing import NDArray

from model import Denoiser
from model.device import use_threads
from model.metrics import psnr_db
from pipeline.images import Pixels, decode, encode, inspect

CORES = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kind", choices=SIZES_PX, default="png")
    parser.add_argument("--count", type=int)
    parser.add_argument("--sigma", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    count = options.count or {"png": 246, "jpeg": 12}[options.kind]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "noisy"
        origins = write_noisy(options.photos, source, options.kind, count, sigma=options.sigma)
        contenders: dict[str, Callable[[Path], float]] = {
            "loop, one process": lambda target: run_loops(source, target, processes=1),
            "loop, one a core": lambda target: run_loops(source, target, processes=CORES),
            "degrain": lambda target: run_degrain(source, target),
        }
        for turn, name in in_turn(contenders, rounds=options.rounds):
            target = folder / f"{turn}-{name}"
            seconds.setdefault(name, []).append(contenders[name](target))
            if name == "degrain":
                seconds.setdefault("degrain, steady", []).append(steady_s(target, count))
        megapixels = count * np.prod(SIZES_PX[options.kind]) / 1e6
        report(seconds, count, megapixels, ours=["degrain", "degrain, steady"])
        some = list(origins.items())[:: max(1, count // 20)]
        size = SIZES_PX[options.kind]
        before = np.mean([psnr_db(read(source / key), scaled(clean, size)) for key, clean in some])
        after = np.mean([psnr_db(read(folder / "0-degrain/images" / key), scaled(clean, size)) for key, clean in some])
        print(f"PSNR {before:.2f} dB before, {after:.2f} dB after")


def run_loops(source: Path, target: Path, *, processes: int) -> float:
    """Seconds of so many processes, which share photos and cores, from when all are warm to when all are done."""
    target.mkdir(parents=True)
    paths = sorted(source.iterdir())
    parts = [(paths[first::processes], target, CORES // processes) for first in range(processes)]
    seconds = run_together(loop, parts)
    assert len(list(target.iterdir())) == len(paths)
    return seconds


def loop(paths: list[Path], target: Path, threads: int, barrier: Barrier) -> None:
    use_threads(threads)
    denoiser = Denoiser.load("photo")
    denoiser(np.zeros((512, 512, 3), np.uint8))
    barrier.wait()
    for path in paths:
        data = path.read_bytes()
        header = inspect(data, name=path.name)
        pixels = decode(data, header)
        (target / path.name).write_bytes(encode(Pixels(denoiser(pixels.colour), pixels.alpha), data, header))


def run_degrain(source: Path, target: Path) -> float:
    """Seconds that the command itself reports for the work on photos."""
    command = [sys.executable, "-m", "flows.cli", "denoise", str(source), str(target), "--strength", "1", "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(finished.stdout.splitlines()[-1])["seconds"])


def steady_s(target: Path, count: int) -> float:
    """Seconds for so many photos at the rate with which the last nine tenths of them were finished."""
    finished = np.sort(ds.dataset(target / "index").to_table(columns=["finished_at"])["finished_at"].to_numpy())
    assert len(finished) == count
    first = max(1, count // 10)
    return float((finished[-1] - finished[first - 1]) / np.timedelta64(1, "s")) / (count - first) * count


def read(path: Path) -> NDArray[Any]:
    data = path.read_bytes()
    return decode(data, inspect(data, name=path.name)).colour


if __name__ == "__main__":
    main()
