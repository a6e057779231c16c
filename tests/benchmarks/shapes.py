"""Pictures that no photo shows: what networks make of shapes in flat colours, and how much of it reaches the picture.

    python tests/benchmarks/shapes.py photo [OTHER.safetensors ...]

Each set of weights denoises the same pictures, by each of its networks, with `model.restraint` and without it. Printed
are the pictures of which more than a thousandth is painted over, and the share of all pixels that is: changed by more
than 40 levels and 8 times the noise.
"""

import argparse
import dataclasses
import io
from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model import Denoiser, request
from model.estimate import estimate_noise
from model.shapes import BLACK_OR_WHITE_SHARE, draw_shapes
from model.weights import Part

PICTURES, SIDE_PX = 100, 256
PANELS, PANEL_PX = 24, 384
COLOURS = ((255, 0, 0), (0, 0, 255), (255, 0, 255), (230, 20, 40), (30, 40, 220), (200, 30, 160))
PAINTED, PAINTED_SIGMAS = 40.0, 8.0  # 8-bit levels; times sigma
MANY = 0.001  # of a picture's pixels

Photo = NDArray[np.uint8]


def drawn(*, black_or_white_share: float = BLACK_OR_WHITE_SHARE) -> list[Photo]:
    """Shapes as training draws them, on grounds of any colour."""
    draw = np.random.default_rng(2026)
    grounds = (np.full((SIDE_PX, SIDE_PX, 3), draw.integers(256, size=3), np.uint8) for _ in range(PICTURES))
    return [draw_shapes(ground, draw, black_or_white_share=black_or_white_share) for ground in grounds]


def panels() -> list[Photo]:
    """One rectangle in a saturated colour on black, larger than any patch: the hardest that is known."""
    draw, found = np.random.default_rng(2026), []
    for number in range(PANELS):
        panel = np.zeros((PANEL_PX, PANEL_PX, 3), np.uint8)
        (top, left), (bottom, right) = draw.integers(40, 140, 2), draw.integers(220, 340, 2)
        panel[top:bottom, left:right] = COLOURS[number % len(COLOURS)]
        found.append(panel)
    return found


def as_jpeg(clean: Photo) -> Photo:
    file = io.BytesIO()
    Image.fromarray(clean).save(file, "JPEG", quality=90, subsampling=0)
    return np.asarray(Image.open(file))


def with_noise(sigma: float) -> Callable[[Photo], Photo]:
    def make(clean: Photo) -> Photo:
        noise = np.random.default_rng(int(clean.sum())).normal(0, sigma, clean.shape)
        return (clean + noise).round().clip(0, 255).astype(np.uint8)

    return make


KINDS = {
    "as drawn": (np.copy, 0.0),
    "JPEG 90": (as_jpeg, 0.0),
    "sigma 3": (with_noise(3), 3.0),
    "sigma 10": (with_noise(10), 10.0),
}


def painted_share(denoiser: Denoiser, noisy: Photo, part: Part, sigma: float) -> float:
    noise = dataclasses.replace(estimate_noise(noisy), is_white=part is Part.WHITE, impulses=None)
    change = np.abs(denoiser(noisy, strength=1.0, noise=noise).astype(int) - noisy).max(axis=2)
    return float((change > PAINTED + PAINTED_SIGMAS * sigma).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+")
    sets, held = {"shapes": drawn(), "panels": panels()}, request.hold_back
    print("| weights | network | pictures | painted over | with restraint |\n|---|---|---|---|---|")
    denoisers = {name: Denoiser.load(name) for name in parser.parse_args().weights}
    for (name, denoiser), part, (said, pictures), kind in product(denoisers.items(), Part, sets.items(), KINDS):
        (make, sigma), cells = KINDS[kind], []
        for hold_back in (lambda _noisy, clean, _sigma: clean, held):
            request.hold_back = hold_back
            shares = [painted_share(denoiser, make(clean), part, sigma) for clean in pictures]
            many = sum(share > MANY for share in shares)
            cells.append(f"{many} of {len(pictures)}, {100 * np.mean(shares):.3f} %")
        print(f"| {name} | {part} | {said}, {kind} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
