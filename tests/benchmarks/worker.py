"""What a worker adds to its network and codecs, in CPU seconds of one process: figures for machines that are not quiet.

    python tests/benchmarks/worker.py FOLDER_OF_PHOTOS [--kind png|jpeg] [--count 40] [--rounds 3]

Photo after photo, a bare loop reads, decodes, denoises, encodes and writes; then the worker of `degrain denoise` does
the same photos as shards, with all that it does beside that. Once with the network, and once with the identity for it,
for which the loop does not read or write either: the limit of the codecs. No Ray; torch has one thread.
"""

import argparse
import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from contest import in_turn
from noisy_photos import SIZES_PX, write_noisy

from model import Denoiser
from model.device import use_threads
from pipeline.denoise import DenoiseConfig, DenoiseWorkerFactory, denoise_photo
from pipeline.images import Pixels, decode, encode, inspect
from pipeline.imageset import ImageSet
from pipeline.local_store import LocalStore
from pipeline.records import Layout, PlannedPhoto, ShardPlan
from pipeline.registry import read_weights
from pipeline.shard import PhotoResult, Recipe, Worker
from pipeline.work import Work

SHARD_PHOTOS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kind", choices=SIZES_PX, default="png")
    parser.add_argument("--count", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    count = options.count or {"png": 40, "jpeg": 3}[options.kind]
    use_threads(1)
    config = DenoiseConfig(strength=1.0)
    weights, _ = read_weights("photo")
    recipe, identity = (
        make(source="", target="", layout=Layout.FILES, weights=weights, config=config).recipe(1)
        for make in (DenoiseWorkerFactory, WithoutNetwork)
    )
    denoiser = Denoiser.load("photo")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "noisy"
        write_noisy(options.photos, source, options.kind, count)
        held = [path.read_bytes() for path in sorted(source.iterdir())]
        contenders: dict[str, Callable[[Path], None]] = {
            "loop": lambda target: run_loop(source, target, denoiser),
            "worker": lambda target: run_worker(source, target, recipe),
            "codecs": lambda _: encode_again(held),
            "worker, identity": lambda target: run_worker(source, target, identity),
        }
        cpu_s: dict[str, list[float]] = {contender: [] for contender in contenders}
        for turn, contender in in_turn(contenders, rounds=options.rounds + 1):
            start = time.process_time()
            contenders[contender](folder / f"{turn}-{contender}")
            cpu_s[contender].append(time.process_time() - start)
    best = {contender: min(each[1:]) for contender, each in cpu_s.items()}  # the first turn warms up
    for ours, other in (("worker", "loop"), ("worker, identity", "codecs")):
        each_ms = [1e3 * best[contender] / count for contender in (other, ours)]
        ratio = each_ms[0] / each_ms[1]
        print(f"{options.kind}: {other} {each_ms[0]:.1f} ms, {ours} {each_ms[1]:.1f} ms of CPU, ratio {ratio:.2f}")


def run_loop(source: Path, target: Path, denoiser: Denoiser) -> None:
    target.mkdir()
    for path in sorted(source.iterdir()):
        data = path.read_bytes()
        header = inspect(data, name=path.name)
        pixels = decode(data, header)
        (target / path.name).write_bytes(encode(Pixels(denoiser(pixels.colour), pixels.alpha), data, header))


def encode_again(photos: list[bytes]) -> None:
    """All that the codecs have to do."""
    for data in photos:
        header = inspect(data)
        encode(decode(data, header), data, header)


class WithoutNetwork(DenoiseWorkerFactory):
    """The identity takes the place of the network: all else that is done to a photo is done."""

    def recipe(self, threads: int) -> Recipe:
        cores = threading.Semaphore(threads)  # as `PhotoDenoiser`

        def process(data: bytes, key: str) -> PhotoResult:
            return denoise_photo(data, key, lambda noisy, _: noisy, self.config, cores=cores)

        return dataclasses.replace(super().recipe(threads), process=process)


def without_network(work: Work) -> Work:
    """The same run with the identity."""
    factory = work.make_worker
    assert isinstance(factory, DenoiseWorkerFactory)
    fields = {each.name: getattr(factory, each.name) for each in dataclasses.fields(factory)}
    return dataclasses.replace(work, make_worker=WithoutNetwork(**fields))


def run_worker(source: Path, target: Path, recipe: Recipe) -> None:
    worker = Worker(LocalStore(source), ImageSet(LocalStore(target)), Layout.FILES, recipe)
    photos = iter(sorted(LocalStore(source).list(), key=lambda found: found.key))
    while some := list(islice(photos, SHARD_PHOTOS)):
        planned = tuple(PlannedPhoto(found.key, found.size_bytes, found.etag, 1) for found in some)
        receipt = worker.run(ShardPlan(some[0].key, "run", planned), {})
        assert set(receipt.outcomes) == {"denoised"}


if __name__ == "__main__":
    main()
