"""Patches a second of `degrain train` with one and with two workers, against a bare torch loop, on the same photos.

The bare loop has one process with all cores, its photos in memory, and makes its noise between two steps: what one
writes by hand. It has the same network, noise, optimiser, batch and precision.

    python tests/benchmarks/training.py FOLDER_OF_PHOTOS
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from model.denoiser import use_threads
from model.training import Examples, StepMetrics, TrainConfig, TrainState, rmse
from pipeline.clean_photos import find_clean_photos
from pipeline.train import run_train
from pipeline.training_run import TrainJob

WARM_UP_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", metavar="FOLDER_OF_PHOTOS", help="folder, URL or image set of clean photos")
    parser.add_argument("--patch-px", type=int, default=128)
    parser.add_argument("--steps", type=int, default=120, help="of each contender in each round")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    config = TrainConfig(steps=options.steps, patch_px=options.patch_px, small_share=0)
    contenders: dict[str, Callable[[str, TrainConfig], float]] = {
        "bare loop": bare_loop,
        "1 worker": lambda photos, config: degrain(photos, config, workers=1),
        "2 workers": lambda photos, config: degrain(photos, config, workers=2),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, run in contenders.items():
            speeds[name].append(run(options.photos, dataclasses.replace(config, seed=number)))
            print(f"round {number + 1}: {name:10} {speeds[name][-1]:7.1f} patches/s", flush=True)
    bare = float(np.mean(speeds["bare loop"]))
    for name, all_speeds in speeds.items():
        print(f"{name:10} {np.mean(all_speeds):7.1f} patches/s, {np.mean(all_speeds) / bare:.2f} of the bare loop")


def bare_loop(folder: str, config: TrainConfig) -> float:
    """Patches a second of a loop as one writes it."""
    use_threads(torch.get_num_threads())
    photos = [photo.pixels for photo in find_clean_photos(folder, min_side_px=config.patch_px)]
    state = TrainState(config)
    start = 0.0
    draw = np.random.default_rng(config.seed)
    for step in range(config.steps):
        if step == WARM_UP_STEPS:
            start = time.perf_counter()
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
    return (config.steps - WARM_UP_STEPS) * config.batch_size / (time.perf_counter() - start)


def _crop(photo: np.ndarray, side_px: int, draw: np.random.Generator) -> np.ndarray:
    top, left = (int(draw.integers(extent - side_px + 1)) for extent in photo.shape[:2])
    return photo[top : top + side_px, left : left + side_px]


def degrain(folder: str, config: TrainConfig, *, workers: int) -> float:
    """Patches a second of a whole run, without its start."""
    ended: dict[int, float] = {}

    def note(metrics: StepMetrics) -> None:
        ended[metrics.step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as run:
        job = TrainJob(source=folder, run=str(Path(run) / "run"), workers=workers, config=config)
        run_train(job, note)
    return (config.steps - WARM_UP_STEPS) * config.batch_size / (ended[config.steps] - ended[WARM_UP_STEPS])


if __name__ == "__main__":
    main()
