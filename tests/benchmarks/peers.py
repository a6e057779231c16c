"""`degrain denoise` against pipelines of Ray Data and Daft, on the same photos with the same weights.

    pip install '.[daft]'    # into an environment of its own: daft wants older releases than the constraints pin
    python tests/benchmarks/peers.py FOLDER_OF_PHOTOS [--kind png|jpeg] [--count 164] [--model photo|identity]
        [--rounds 2] [--only degrain ray-data ray-data-tuned daft]

The contenders take turns, each in a process of its own, with a Ray of its own where it wants one. The time that counts
begins when Ray is up (Daft needs none), and ends when all is written; Ray's own end is not in it. It holds listing,
planning, the start of workers, and of degrain all that the others do not do (metadata kept, noise measured, hashes, an
index, commits).

    ray-data         as "Working with images" in its documentation: `read_images`, `map_batches` with a class for the
                     network, `write_images`
    ray-data-tuned   by hand: bytes are read, one class decodes, denoises, encodes and writes them, so that no pixel
                     travels, with an actor for each core; the codecs are degrain's own
    daft             as "Images" in its documentation: `download`, `decode_image`, a class for the network,
                     `encode_image`, `upload`

The identity instead of the network leaves codecs, storage and bookkeeping; degrain still measures the noise.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from contest import compete, report, run_one
from noisy_photos import SIZES_PX, write_noisy

MODEL, TARGET = "DEGRAIN_BENCHMARK_MODEL", "DEGRAIN_BENCHMARK_TARGET"  # what the processes of contenders are told
CORES = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kind", choices=SIZES_PX, default="png")
    parser.add_argument("--count", type=int, default=164)
    parser.add_argument("--model", choices=("photo", "identity"), default="photo")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS))
    options = parser.parse_args()
    os.environ[MODEL] = options.model
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "noisy"
        write_noisy(options.photos, source, options.kind, options.count)
        seconds = compete(__file__, options.only, source, rounds=options.rounds, expected=options.count)
    width_px, height_px = SIZES_PX[options.kind]
    print(f"{options.count} {options.kind} of {width_px} x {height_px}, model: {options.model}")
    report(seconds, options.count, options.count * width_px * height_px / 1e6, ours=["degrain"])


def is_identity() -> bool:
    return os.environ[MODEL] == "identity"


def run_degrain(source: Path, target: Path) -> float:
    import ray
    from worker import without_network

    from pipeline.denoise import DenoiseConfig
    from pipeline.jobs import DenoiseJob, denoise_work
    from pipeline.run import do_work

    rays_own_s = 0.0

    def apart(call: Callable[..., Any]) -> Callable[..., Any]:  # Any: Ray's own
        def timed(*arguments: Any, **options: Any) -> Any:
            nonlocal rays_own_s
            before = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                rays_own_s += time.perf_counter() - before

        return timed

    ray.init, ray.shutdown = apart(ray.init), apart(ray.shutdown)
    start = time.perf_counter()
    work = denoise_work(DenoiseJob(source=str(source), target=str(target), denoise=DenoiseConfig(strength=1.0)))
    do_work(without_network(work) if is_identity() else work, lambda _: None)
    return time.perf_counter() - start - rays_own_s


class Network:
    """What Ray Data and Daft hold in each of their processes."""

    def __init__(self) -> None:
        from model import Denoiser

        self._denoiser = Denoiser.load("photo")

    def clean(self, noisy: np.ndarray) -> np.ndarray:
        return noisy if is_identity() else self._denoiser(noisy)


class DenoiseImages(Network):
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:  # Any: Ray Data's batches
        return {"image": [self.clean(image) for image in batch["image"]]}


class DenoiseFiles(Network):
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:  # Any: Ray Data's batches
        from pipeline.images import Pixels, decode, encode, inspect

        sizes = []
        for data, path in zip(batch["bytes"], batch["path"], strict=True):
            name = Path(path).name
            header = inspect(data, name=name)
            pixels = decode(data, header)
            encoded = encode(Pixels(self.clean(pixels.colour), pixels.alpha), data, header)
            sizes.append((Path(os.environ[TARGET]) / name).write_bytes(encoded))
        return {"size_bytes": sizes}


def start_ray(target: Path) -> float:
    import ray

    target.mkdir()
    variables = {MODEL: os.environ[MODEL], TARGET: str(target), "PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": variables},
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    return time.perf_counter()


def run_ray_data(source: Path, target: Path) -> float:
    import ray
    import ray.data

    start = start_ray(target)
    photos = ray.data.read_images(str(source))
    clean = photos.map_batches(DenoiseImages, compute=ray.data.ActorPoolStrategy(size=1), batch_size=8)
    clean.write_images(str(target), column="image", file_format=next(source.iterdir()).suffix[1:])
    return time.perf_counter() - start


def run_ray_data_tuned(source: Path, target: Path) -> float:
    import ray
    import ray.data

    start = start_ray(target)
    files = ray.data.read_binary_files(str(source), include_paths=True, ray_remote_args={"num_cpus": 0.1})
    written = files.map_batches(
        DenoiseFiles, compute=ray.data.ActorPoolStrategy(size=CORES), batch_size=4, num_cpus=0.9
    )
    written.materialize()
    return time.perf_counter() - start


def run_daft(source: Path, target: Path) -> float:
    import daft
    from daft.functions import decode_image, download, encode_image, replace, upload

    target.mkdir()
    kind = next(source.iterdir()).suffix[1:]

    @daft.cls
    class Denoise(Network):
        @daft.method(return_dtype=daft.DataType.image("RGB"))
        def __call__(self, image: np.ndarray) -> np.ndarray:
            return self.clean(image)

    start = time.perf_counter()
    photos = daft.from_glob_path(f"{source}/*")
    photos = photos.with_column("image", decode_image(download(photos["path"])))
    photos = photos.with_column("clean", Denoise()(photos["image"]))
    photos = photos.with_column("encoded", encode_image(photos["clean"], kind))
    photos = photos.with_column("target", upload(photos["encoded"], replace(photos["path"], str(source), str(target))))
    photos.select("target").collect()
    return time.perf_counter() - start


CONTENDERS = {
    "degrain": run_degrain,
    "ray-data": run_ray_data,
    "ray-data-tuned": run_ray_data_tuned,
    "daft": run_daft,
}


if __name__ == "__main__":
    if not run_one(CONTENDERS, sys.argv[1:]):
        main()
