"""Where the time goes for one photo, stage by stage, on one thread of one process; the network apart by operation.

    python tests/benchmarks/stages.py FOLDER_OF_PHOTOS [--operations]

The best of some turns of each stage that a worker goes through, for an 8-bit PNG of 512² and a JPEG of 12 megapixels,
written with the noise that they had (as with the identity for a network). What a run does once is not in it: see
`bare_loop.py` and `codecs.py` for that.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from noisy_photos import SIZES_PX, write_noisy

from model import Denoiser
from model.device import use_threads
from model.estimate import estimate_noise
from pipeline.denoise import Change
from pipeline.images import decode, encode, inspect
from pipeline.local_store import LocalStore

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--operations", action="store_true")
    options = parser.parse_args()
    use_threads(1)
    denoiser = Denoiser.load("photo")
    with tempfile.TemporaryDirectory() as name:
        for kind, turns in (("png", 20), ("jpeg", 2)):
            write_noisy(options.photos, Path(name) / kind, kind, 1)
            width_px, height_px = SIZES_PX[kind]
            print(f"{kind} of {width_px} x {height_px}, ms on one thread")
            show_stages(LocalStore(Path(name) / kind), denoiser, turns)
        if options.operations:
            show_operations(denoiser)


def show_stages(store: LocalStore, denoiser: Denoiser, turns: int) -> None:
    key = next(store.list()).key
    data = timed("read", turns, lambda: store.read(key))
    timed("hash", turns, lambda: hashlib.sha256(data).hexdigest())
    header = timed("inspect", turns, lambda: inspect(data))
    noisy = timed("decode", turns, lambda: decode(data, header))
    noise = timed("estimate the noise", turns, lambda: estimate_noise(noisy.colour))
    clean = timed("network", turns, lambda: denoiser(noisy.colour, noise=noise))
    timed("estimate what is left", turns, lambda: estimate_noise(clean))
    timed("PSNR, clipped share", turns, lambda: Change(clean.dtype).add(noisy.colour, clean))
    encoded = timed("encode", turns, lambda: encode(noisy, data, header))
    timed("hash the result", turns, lambda: hashlib.sha256(encoded).hexdigest())
    timed("write and sync", turns, lambda: store.write("written", encoded))


def timed(stage: str, turns: int, do: Callable[[], T]) -> T:
    best_s = float("inf")
    for _ in range(turns):
        start = time.perf_counter()
        result = do()
        best_s = min(best_s, time.perf_counter() - start)
    print(f"  {stage:22} {1e3 * best_s:9.2f}")
    return result


def show_operations(denoiser: Denoiser) -> None:
    noisy = torch.randint(0, 255, (512, 512, 3), dtype=torch.uint8).numpy()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            denoiser(noisy)
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


if __name__ == "__main__":
    main()
