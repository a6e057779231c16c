"""Seconds a megapixel of degrain, OpenCV's non-local means and FFDNet, on the same photos in one run.

    python tests/benchmarks/denoisers.py FOLDER_OF_PHOTOS [--photos 8] [--rounds 3] [--threads 2] [--weights photo]

White noise of sigma 25 is added to the middle 512 × 512 pixels of photos, in 8 bits. Each denoiser is given a photo and
the same number of threads, and returns one in 8 bits; degrain finds the level of the noise, the others are told.
FFDNet is the network for colour of Zhang et al. 2018 (twelve layers of 96 channels at half the resolution, and a map of
the noise level) in torch, which does the same work whatever its weights are. They take turns; of the rounds the
fastest counts. The process keeps memory that it has freed, for all three. Seconds
of the CPU tell the same where other work disturbs the clock.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from contest import in_turn
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from model import Denoiser
from model.device import use_threads
from pipeline.clean_photos import find_clean_photos
from pipeline.room import keep_freed_memory

SIDE_PX = 512
SIGMA = 25
Photo = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--photos", dest="count", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="photo")
    options = parser.parse_args()
    keep_freed_memory()
    use_threads(options.threads)
    cv2.setNumThreads(options.threads)

    noisy = read_noisy(options.photos, options.count)
    denoisers = make_denoisers(options.weights)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in denoisers}
    for denoise in denoisers.values():
        denoise(noisy[0])
    for _, name in in_turn(denoisers, rounds=options.rounds):
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        for photo in noisy:
            denoisers[name](photo)
        times[name].append((time.perf_counter() - start_s, time.process_time() - start_cpu_s))

    megapixels = len(noisy) * SIDE_PX**2 / 1e6
    least = {name: np.min(rounds, axis=0) / megapixels for name, rounds in times.items()}
    print(f"{len(noisy)} photos of {SIDE_PX} × {SIDE_PX} pixels, {options.threads} threads, {options.rounds} rounds\n")
    print(f"{'':34} {'s/megapixel':>11} {'degrain is':>12} {'CPU s/megapixel':>18} {'degrain is':>12}")
    for name, (seconds, cpu_seconds) in least.items():
        ratio, cpu_ratio = (seconds, cpu_seconds) / least["degrain"]
        print(f"{name:34} {seconds:11.3f} {ratio:10.2f} × {cpu_seconds:18.3f} {cpu_ratio:10.2f} ×")


def read_noisy(folder: Path, count: int) -> list[Photo]:
    """The middle of photos, with white noise, as 8-bit files hold it."""
    draw = np.random.default_rng(0)
    noisy = []
    for photo in find_clean_photos(str(folder), min_side_px=SIDE_PX):
        top, left = ((extent - SIDE_PX) // 2 for extent in photo.pixels.shape[:2])
        middle = photo.pixels[top : top + SIDE_PX, left : left + SIDE_PX].astype(float)
        noisy.append(np.rint(middle + draw.normal(0, SIGMA, middle.shape)).clip(0, 255).astype(np.uint8))
        if len(noisy) == count:
            break
    return noisy


def make_denoisers(weights: str) -> dict[str, Callable[[Photo], Photo]]:
    published = FFDNet().eval()
    fast = FFDNet().eval().to(memory_format=torch.channels_last)
    return {
        "degrain": Denoiser.load(weights),
        "degrain, float32": Denoiser.load(weights, precision="float32"),
        "OpenCV non-local means": lambda noisy: cv2.fastNlMeansDenoisingColored(noisy, None, SIGMA, SIGMA, 7, 21),
        "FFDNet, float32": lambda noisy: run_ffdnet(published, noisy, torch.contiguous_format),
        "FFDNet, float32, channels last": lambda noisy: run_ffdnet(fast, noisy, torch.channels_last),
        "FFDNet, bfloat16, channels last": lambda noisy: run_ffdnet(
            fast, noisy, torch.channels_last, dtype=torch.bfloat16
        ),
    }


class FFDNet(nn.Module):
    """Zhang et al. 2018, "FFDNet: Toward a Fast and Flexible Solution for CNN-Based Image Denoising", for colour.

    Maps (B, 3, H, W) in [0, 1] and a sigma in the same units to the clean photo; H and W must be even.
    """

    def __init__(self, *, layers: int = 12, channels: int = 96) -> None:
        super().__init__()
        widths = [4 * 3 + 1, *[channels] * (layers - 1)]
        inner = [
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True))
        ]
        self.layers = nn.Sequential(*inner, nn.Conv2d(channels, 4 * 3, 3, padding=1))

    def forward(self, noisy_BCHW: Tensor, sigma: float) -> Tensor:
        quarters = pixel_unshuffle(noisy_BCHW, 2)
        level = torch.full_like(quarters[:, :1], sigma)
        return pixel_shuffle(self.layers(torch.cat([quarters, level], dim=1)), 2)


@torch.inference_mode()
def run_ffdnet(
    network: FFDNet, noisy: Photo, layout: torch.memory_format, *, dtype: torch.dtype | None = None
) -> Photo:
    noisy_BCHW = torch.from_numpy(noisy).permute(2, 0, 1)[None].float().div(255).contiguous(memory_format=layout)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        clean_BCHW = network(noisy_BCHW, SIGMA / 255)
    levels = clean_BCHW.float().mul(255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels[0].permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
