"""`degrain denoise` without its network against the limit of its codecs: pure decoding and encoding on all cores.

    python tests/benchmarks/codecs.py FOLDER_OF_PHOTOS [--kind png|jpeg] [--count 1640] [--rounds 3]

The limit is one process for each core that decodes and encodes the photos, which it holds in memory: no storage, no
hashes, nothing measured. degrain runs with the identity in place of its network: it lists, plans, reads, decodes,
measures the noise twice and the change, encodes, hashes, writes, syncs and commits. Its time is the `seconds` that it
reports, and its steady state, from the moment when a tenth of the photos is finished.
"""

import argparse
import os
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bare_loop import steady_s
from contest import in_turn, report, run_together
from noisy_photos import SIZES_PX, write_noisy
from worker import encode_again, without_network

from pipeline.denoise import DenoiseConfig
from pipeline.jobs import DenoiseJob, denoise_work
from pipeline.records import Outcome
from pipeline.run import do_work

CORES = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kind", choices=SIZES_PX, default="png")
    parser.add_argument("--count", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    count = options.count or {"png": 1640, "jpeg": 123}[options.kind]
    seconds: dict[str, list[float]] = {"codecs alone": [], "degrain": [], "degrain, steady": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "noisy"
        write_noisy(options.photos, source, options.kind, count)
        for turn, name in in_turn(("codecs alone", "degrain"), rounds=options.rounds):
            if name == "codecs alone":
                seconds[name].append(run_codecs(source))
            else:
                seconds[name].append(run_degrain(source, folder / f"{turn}"))
                seconds["degrain, steady"].append(steady_s(folder / f"{turn}", count))
    width_px, height_px = SIZES_PX[options.kind]
    report(seconds, count, count * width_px * height_px / 1e6, ours=["degrain", "degrain, steady"])


def run_codecs(source: Path) -> float:
    """Seconds of one process for each core, from when all hold their photos to when all have encoded them."""
    paths = sorted(source.iterdir())
    return run_together(loop, [(paths[first::CORES],) for first in range(CORES)])


def run_degrain(source: Path, target: Path) -> float:
    """Seconds that a run reports for the work on photos."""
    job = DenoiseJob(source=str(source), target=str(target), denoise=DenoiseConfig(strength=1.0))
    summary = do_work(without_network(denoise_work(job)), lambda _: None)
    assert summary.outcomes[Outcome.DENOISED] == summary.inputs
    return summary.seconds


def loop(paths: list[Path], barrier: Barrier) -> None:
    photos = [path.read_bytes() for path in paths]
    barrier.wait()
    encode_again(photos)


if __name__ == "__main__":
    main()
