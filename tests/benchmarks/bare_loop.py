"""`degrain denoise` against a bare loop over the same photos with the same network and codecs, in one run.

    python tests/benchmarks/bare_loop.py FOLDER_OF_CLEAN_PHOTOS [--sigma 25] [--rounds 3] [--copies 1]

White noise is added to the photos, which are saved as 8-bit PNG. The loop reads, decodes, denoises, encodes and writes
one photo after the other in one process, torch using every core, its network loaded and warm. Both alternate for some
rounds. degrain's time is the `seconds` that it reports: with the start of its workers, without that of Ray. With
`--copies` of each photo, each with noise of its own, it shows how it runs once they are up. Prints images/s,
megapixels/s, their ratio, and the PSNR.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model import Denoiser
from model.metrics import psnr_db
from pipeline.images import Pixels, decode, encode, inspect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--sigma", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clean = write_noisy(options.photos, folder / "noisy", options.sigma, options.copies)
        loop_s, run_s = [], []
        for turn in range(options.rounds):
            loop_s.append(run_bare_loop(folder / "noisy", folder / f"loop-{turn}"))
            run_s.append(run_degrain(folder / "noisy", folder / f"degrain-{turn}"))
        megapixels = sum(photo.shape[0] * photo.shape[1] for photo in clean.values()) / 1e6
        for label, seconds in (("bare loop", min(loop_s)), ("degrain denoise", min(run_s))):
            images, pixels = len(clean) / seconds, megapixels / seconds
            print(f"{label:16} {images:6.2f} images/s  {pixels:6.2f} megapixels/s  {seconds:6.2f} s")
        ratios = ", ".join(f"{loop / run:.2f}" for loop, run in zip(loop_s, run_s, strict=True))
        print(f"ratio            {min(loop_s) / min(run_s):6.2f}  (rounds: {ratios})")
        before = np.mean([psnr_db(read(folder / "noisy" / key), photo) for key, photo in clean.items()])
        after = np.mean([psnr_db(read(folder / "degrain-0/images" / key), photo) for key, photo in clean.items()])
        print(f"PSNR {before:.2f} dB before, {after:.2f} dB after")


def write_noisy(photos: Path, folder: Path, sigma: float, copies: int) -> dict[str, NDArray[np.uint8]]:
    """Write noisy copies as PNG; returns the clean photos by the names of their noisy copies."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    clean = {}
    for path in sorted(photos.iterdir()):
        photo = np.asarray(Image.open(path).convert("RGB"))
        for copy in range(copies):
            name = f"{path.stem}-{copy}.png"
            noisy = np.clip(np.round(photo + draw.normal(0, sigma, photo.shape)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name, compress_level=1)
            clean[name] = photo
    return clean


def run_bare_loop(source: Path, target: Path) -> float:
    """Seconds of one process that does one photo after the other, the model loaded and warm."""
    target.mkdir()
    denoiser = Denoiser.load("photo")
    denoiser(read(next(source.iterdir())))
    start = time.perf_counter()
    for path in sorted(source.iterdir()):
        data = path.read_bytes()
        header = inspect(data, name=path.name)
        pixels = decode(data, header)
        (target / path.name).write_bytes(encode(Pixels(denoiser(pixels.colour), pixels.alpha), data, header))
    return time.perf_counter() - start


def run_degrain(source: Path, target: Path) -> float:
    """Seconds that the command itself reports for the work on photos."""
    command = [sys.executable, "-m", "flows.cli", "denoise", str(source), str(target), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(finished.stdout.splitlines()[-1])["seconds"])


def read(path: Path) -> NDArray[Any]:
    data = path.read_bytes()
    return decode(data, inspect(data, name=path.name)).colour


if __name__ == "__main__":
    main()
