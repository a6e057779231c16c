"""The memory that one huge TIFF takes, above that of the idle worker.

    python tests/benchmarks/huge.py FOLDER_OF_PHOTOS [--width 32768] [--height 32768] [--compression none|lzw|zlib]

An 8-bit RGB TIFF of this size, noisy photos side by side, is made in a temporary folder; 32768 pixels a side are a
gigapixel, of 3.2 GB. One process does what a worker does: it denoises a small photo, rests, and then denoises the TIFF
from the folder into another one. Prints the peak resident set above that of the rest, and the time. The folder needs
room for three times the TIFF. `--strength 0` leaves out the network, which takes some 0.2 s a megapixel on two cores.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from noisy_photos import saved, scaled

from model import Denoiser
from pipeline.denoise import DenoiseConfig, PhotoDenoiser
from pipeline.images import Limits
from pipeline.imageset import ImageSet
from pipeline.local_store import LocalStore
from pipeline.records import Layout, PlannedPhoto, ShardPlan
from pipeline.shard import Recipe, Worker

TILE_PX = 512
CORES = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--width", type=int, default=32768)
    parser.add_argument("--height", type=int, default=32768)
    parser.add_argument("--compression", choices=("none", "lzw", "zlib"), default="none")
    parser.add_argument("--strength", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="degrain-") as name:
        folder = Path(name)
        write_huge(options.photos, folder / "source", (options.height, options.width), options.compression)
        context = multiprocessing.get_context("spawn")
        worker = context.Process(target=work, args=(folder, options.strength))
        worker.start()
        worker.join()
        assert worker.exitcode == 0


def write_huge(photos: Path, folder: Path, size_px: tuple[int, int], compression: str) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    noisy = []
    for path in sorted(photos.iterdir()):
        photo = scaled(path, (TILE_PX, TILE_PX))
        noisy.append((photo + draw.normal(0, 15, photo.shape)).round().clip(0, 255).astype(np.uint8))
    count = -(-size_px[0] // TILE_PX) * -(-size_px[1] // TILE_PX)

    def tiles() -> Iterator[np.ndarray]:
        return (noisy[number] for number in draw.integers(0, len(noisy), count))

    tifffile.imwrite(
        folder / "huge.tif",
        tiles(),
        shape=(*size_px, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(TILE_PX, TILE_PX),
        compression=None if compression == "none" else compression,
        predictor=compression != "none",
        bigtiff=size_px[0] * size_px[1] * 3 > 2**32,
    )
    (folder / "small.png").write_bytes(saved(noisy[0], "png"))


def work(folder: Path, strength: float) -> None:
    config = DenoiseConfig(strength=strength, limits=Limits.of_megapixels(5000))
    photos = PhotoDenoiser(Denoiser.load("photo"), config, threads=CORES)
    recipe = Recipe(
        process=photos, process_file=photos.denoise_file, limits=config.limits, weights="", parameters=config.parameters
    )
    worker = Worker(LocalStore(folder / "source"), ImageSet(LocalStore(folder / "target")), Layout.FILES, recipe)
    denoise(worker, folder / "source/small.png")
    idle_mb = memory_mb("VmRSS")
    start = time.perf_counter()
    huge = folder / "source/huge.tif"
    denoise(worker, huge)
    seconds = time.perf_counter() - start
    peak_mb = memory_mb("VmHWM")
    with tifffile.TiffFile(folder / "target/images/huge.tif") as written:
        megapixels = written.pages[0].size / 3e6
    print(f"{megapixels:.0f} megapixels, a file of {huge.stat().st_size / 1e6:.0f} MB, in {seconds:.0f} s")
    print(f"idle {idle_mb:.0f} MB, peak {peak_mb:.0f} MB: {peak_mb - idle_mb:.0f} MB above the idle worker")


def denoise(worker: Worker, path: Path) -> None:
    photo = PlannedPhoto(path.name, path.stat().st_size, "", 1)
    receipt = worker.run(ShardPlan(path.stem, "run", (photo,)), {})
    assert dict(receipt.outcomes) == {"denoised": 1}, receipt


def memory_mb(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
