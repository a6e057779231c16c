"""Photos of several threads share one denoiser: the same results, whoever comes with whom."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import Denoiser
from model.device import Precision
from model.estimate import NoiseEstimate
from model.sharing import SharedDenoiser
from model.weights import Part

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE = NoiseEstimate(20.0, 20.0, 20.0, 2 / 3)


class GatedNetwork(nn.Module):
    """Halves photos once its gate opens, and records the shapes of its batches; white photos become no number."""

    multiple_px, halo_px = 8, 16

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.is_entered = threading.Event(), threading.Event()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, noisy_BCHW: Tensor, level_B2: Tensor) -> Tensor:
        self.is_entered.set()
        self.gate.wait()
        self.shapes.append(tuple(noisy_BCHW.shape))
        return torch.where(noisy_BCHW == 1, torch.nan, noisy_BCHW / 2)


class GatedWeights:
    def __init__(self, network: nn.Module) -> None:
        self.networks = lambda: {Part.GENERAL: network}


def denoise_together(
    network: GatedNetwork, photos: Sequence[np.ndarray], precision: Precision = Precision.BFLOAT16, tile_px: int = 1024
) -> list[Future[np.ndarray]]:
    """Denoise photos that have all come, in this order, before the network has done anything."""
    shared = SharedDenoiser(Denoiser(GatedWeights(network), device="cpu", precision=precision, tile_px=tile_px))
    with ThreadPoolExecutor(len(photos) + 1) as pool:
        pool.submit(shared, gray(100, 8, 8), strength=1.0, noise=NOISE)
        assert network.is_entered.wait(10)
        results = []
        for photo in photos:
            results.append(pool.submit(shared, photo, strength=1.0, noise=NOISE))
            while len(shared._turns) < len(results):
                pass
        network.gate.set()
    return results


def gray(level: int, *shape: int) -> np.ndarray:
    return np.full(shape, level, np.uint8)


def test_small_photos_of_several_threads_share_a_batch() -> None:
    network = GatedNetwork()

    results = denoise_together(network, [gray(level, 64, 64) for level in (20, 40, 60)])

    assert network.shapes[1:] == [(3, 3, 64, 64)]
    assert [int(future.result()[0, 0]) for future in results] == [10, 20, 30]


def test_photos_whose_bits_would_depend_on_their_company_stay_alone() -> None:
    network = GatedNetwork()

    denoise_together(network, [gray(level, 64, 64) for level in (20, 40, 60)], Precision.FLOAT32)

    assert network.shapes[1:] == 3 * [(1, 3, 64, 64)]


def test_a_small_photo_need_not_wait_for_all_tiles_of_a_large_one() -> None:
    network = GatedNetwork()

    denoise_together(network, [gray(20, 64, 1280), gray(40, 32, 32)], tile_px=256)

    assert [shape[2:] for shape in network.shapes[1:]].index((32, 32)) == 1


def test_a_photo_that_fails_fails_alone() -> None:
    results = denoise_together(GatedNetwork(), [gray(level, 64, 64) for level in (20, 255, 60)])

    assert isinstance(results[1].exception(), FloatingPointError)
    assert [int(results[n].result()[0, 0]) for n in (0, 2)] == [10, 30]


def test_a_photo_that_fails_leaves_the_denoiser_to_others() -> None:
    network = GatedNetwork()
    network.gate.set()
    shared = SharedDenoiser(Denoiser(GatedWeights(network), device="cpu", tile_px=64))
    with pytest.raises(FloatingPointError):
        shared(gray(255, 300, 300), strength=1.0, noise=NOISE)

    assert int(shared(gray(40, 300, 300), strength=1.0, noise=NOISE)[7, 7]) == 20


def test_the_results_of_the_shipped_weights_do_not_depend_on_the_company() -> None:
    draw = np.random.default_rng(0)
    photos = [draw.normal(120, 30, (64, 64, 3)).clip(0, 255).astype(np.uint8) for _ in range(6)]
    alone = [Denoiser.load("photo")(photo, noise=NOISE) for photo in photos]
    shared = SharedDenoiser(Denoiser.load("photo"))

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda photo: shared(photo, strength=1.0, noise=NOISE), photos))

    assert all(np.array_equal(first, second) for first, second in zip(alone, together, strict=True))


def test_strength_0_returns_the_photo_itself() -> None:
    photo = gray(40, 64, 64)

    assert np.array_equal(SharedDenoiser(Denoiser.load("photo"))(photo, strength=0.0, noise=NOISE), photo)
