"""Patches a second of `degrain train` with one and with two workers, against a bare torch loop, on the same photos.

The bare loop has one process with all cores, its photos in memory, and makes its noise between two steps: what one
writes by hand. It has the same network, noise, optimiser, batch and precision.

    python tests/benchmarks/training.py FOLDER_OF_PHOTOS [--patch-px 128] [--batch-size 16] [--steps 100] [--rounds 2]

The first steps of each run warm up and do not count. Prints patches a second, and each contender's share of the loop's.
"""

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from contest import in_turn

from model.device import use_threads
from model.patches import CROPS_PER_PHOTO
from model.recipe import TrainConfig
from model.training import Examples, StepMetrics, TrainState, rmse
from pipeline.clean_photos import find_clean_photos
from pipeline.train import run_train
from pipeline.train_job import TrainJob

WARM_UP_STEPS = 20
Ended = dict[int, float]  # when each step was done, counted from 1, in seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", metavar="FOLDER_OF_PHOTOS", help="folder, URL or image set of clean photos")
    parser.add_argument("--patch-px", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, default=100, help="of each contender in each round, once photos are decoded"
    )
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    # Patches are counted while a run decodes its photos, and when it has them in memory, as the loop does. Two workers
    # have met all of them after two passes.
    photos = find_clean_photos(options.photos).photos.num_rows
    one_pass = WARM_UP_STEPS + math.ceil(photos * CROPS_PER_PHOTO / options.batch_size)
    spans = {"first pass": (WARM_UP_STEPS, one_pass), "later": (2 * one_pass, 2 * one_pass + options.steps)}
    config = TrainConfig(
        steps=2 * one_pass + options.steps, patch_px=options.patch_px, batch_size=options.batch_size, small_share=0
    )
    contenders: dict[str, Callable[[str, TrainConfig], Ended]] = {
        "bare loop": bare_loop,
        "1 worker": lambda photos, config: degrain(photos, config, workers=1),
        "2 workers": lambda photos, config: degrain(photos, config, workers=2),
    }
    speeds: dict[tuple[str, str], list[float]] = {(span, name): [] for span in spans for name in contenders}
    for turn, name in in_turn(contenders, rounds=options.rounds):
        ended = contenders[name](options.photos, dataclasses.replace(config, seed=turn))
        for span, (first, last) in spans.items():
            speeds[span, name].append((last - first) * config.batch_size / (ended[last] - ended[first]))
        told = ", ".join(f"{speeds[span, name][-1]:7.1f} patches/s ({span})" for span in spans)
        print(f"round {turn + 1}: {name:10} {told}", flush=True)
    for (span, name), found in speeds.items():
        bare = np.mean(speeds[span, "bare loop"])
        print(f"{span:10} {name:10} {np.mean(found):7.1f} patches/s, {np.mean(found) / bare:.2f} of the bare loop")


def bare_loop(folder: str, config: TrainConfig) -> Ended:
    """A loop as one writes it."""
    use_threads(torch.get_num_threads())
    photos = [photo.pixels for photo in find_clean_photos(folder, min_side_px=config.patch_px)]
    state = TrainState(config)
    draw = np.random.default_rng(config.seed)
    ended: Ended = {}
    for step in range(config.steps):
        chosen = draw.choice(len(photos), config.batch_size)
        patches = np.stack([_crop(photos[number], config.patch_px, draw) for number in chosen])
        examples = Examples.make(patches, config, step=step, part=0)
        state.network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bfloat16):
            denoised = state.network(examples.noisy_BCHW.to(memory_format=torch.channels_last), examples.level_B2)
        rmse(denoised.float(), examples.clean_BCHW).backward()
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip)
        for optimizer in state.optimizers:
            optimizer.step()
        ended[step + 1] = time.perf_counter()
    return ended


def _crop(photo: np.ndarray, side_px: int, draw: np.random.Generator) -> np.ndarray:
    top, left = (int(draw.integers(extent - side_px + 1)) for extent in photo.shape[:2])
    return photo[top : top + side_px, left : left + side_px]


def degrain(folder: str, config: TrainConfig, *, workers: int) -> Ended:
    """A whole run."""
    ended: Ended = {}

    def note(metrics: StepMetrics) -> None:
        ended[metrics.step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as run:
        job = TrainJob(source=folder, run=str(Path(run) / "run"), workers=workers, config=config)
        run_train(job, note)
    return ended


if __name__ == "__main__":
    main()
