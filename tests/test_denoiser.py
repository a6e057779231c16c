"""The denoiser gives photos back in their own format, whatever their size, and whatever memory there is."""

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor, nn

from model import Denoiser
from model.denoiser import SMALLEST_TILE_PX
from model.device import Precision, thread_pools, use_threads
from model.estimate import NoiseEstimate, estimate_noise
from model.photo import PhotoNetwork
from model.seed import SeedNetwork
from model.weights import NETWORKS, Card, Part, Weights, dump_weights, parse_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def _weights(name: str) -> Weights:
    """Random weights that change a photo a lot, and look far: a seam between tiles would be seen."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    if isinstance(network, PhotoNetwork):
        with torch.no_grad():
            for module in (*network.up, *network.down):
                for parameter in module.parameters():
                    parameter.mul_(1.5)
            network.head[0].weight.mul_(3)
    return parse_weights(dump_weights(network, Card(network=name, data="none", licence="MIT", noise="none")))


@pytest.fixture(scope="module")
def weights() -> Weights:
    return _weights("photo")


@pytest.fixture(scope="module")
def pair(weights: Weights) -> Weights:
    """Two networks, of which that for white noise finds none."""
    white = PhotoNetwork()
    with torch.no_grad():
        white.head[0].weight.zero_()
    card = dataclasses.replace(weights.card, white=weights.card)
    torch.manual_seed(0)
    return parse_weights(dump_weights(PhotoNetwork(), card, white=white))


class FakeNetwork(nn.Module):
    """Halves the levels of a photo, records the shapes that it is given, and has a limited memory."""

    multiple_px, halo_px = 8, 16

    def __init__(self, *, memory_px: float = float("inf"), error: Exception | None = None) -> None:
        super().__init__()
        self.memory_px = memory_px
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.shapes: list[tuple[int, ...]] = []
        self.is_autocast: list[bool] = []
        self.levels: list[tuple[float, ...]] = []

    def forward(self, noisy_BCHW: Tensor, level_B2: Tensor) -> Tensor:
        if noisy_BCHW[:, 0].numel() > self.memory_px:
            raise self.error
        self.shapes.append(tuple(noisy_BCHW.shape))
        self.is_autocast.append(torch.is_autocast_enabled("cpu"))
        self.levels += [tuple(level) for level in (255 * level_B2).tolist()]
        return noisy_BCHW / 2


class FakeWeights:
    """Weights of a network that is already there."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def networks(self) -> dict[Part, nn.Module]:
        return {Part.GENERAL: self._network}


def _denoiser(network: nn.Module, **options: Any) -> Denoiser:  # Any: what Denoiser takes
    return Denoiser(FakeWeights(network), device="cpu", **options)


def _photo(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:  # Any: a dtype in all its forms
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 23, 3), (23, 1), (2, 5, 3), (8, 16, 3), (9, 17), (67, 90, 3)])
def test_a_photo_of_any_size_keeps_its_shape_and_dtype(weights, shape, dtype):
    noisy = _photo(*shape, dtype=dtype)
    before = noisy.copy()
    clean = Denoiser(weights, tile_px=32)(noisy)
    assert clean.shape == noisy.shape
    assert clean.dtype == noisy.dtype
    assert (noisy == before).all()


@pytest.mark.parametrize(("name", "shape", "tile_px"), [("photo", (131, 197), 64), ("seed", (301, 333), 160)])
def test_tiled_equals_untiled(name, shape, tile_px):
    noisy, weights = _photo(*shape, 3), _weights(name)
    whole, tiled = (Denoiser(weights, precision="float32", tile_px=size) for size in (1024, tile_px))
    floats = noisy.astype(np.float32)
    np.testing.assert_allclose(tiled.denoise_float(floats), whole.denoise_float(floats), rtol=0, atol=0.01)
    assert np.abs(tiled(noisy).astype(int) - whole(noisy)).max() <= 1


def test_tiles_that_saw_too_little_would_be_noticed(weights, monkeypatch):
    noisy = _photo(131, 197, 3).astype(np.float32)
    whole = Denoiser(weights, precision="float32").denoise_float(noisy)
    monkeypatch.setattr(PhotoNetwork, "halo_px", 16)
    tiled = Denoiser(weights, precision="float32", tile_px=64).denoise_float(noisy)
    assert np.abs(tiled - whole).max() > 5


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_tiled_equals_untiled_with_the_shipped_weights(precision):
    noisy = _photo(139, 150, 3)
    whole, tiled = (Denoiser(Denoiser.load("photo").weights, precision=precision, tile_px=px) for px in (1024, 64))
    assert np.abs(tiled(noisy).astype(int) - whole(noisy)).max() <= 1


def test_the_shipped_weights_remove_noise_and_spare_clean_photos():
    rows, columns = np.mgrid[:128, :128]
    clean = np.stack([rows + 40, columns + 60, 200 - columns], axis=2).astype(np.uint8)
    noisy = (clean + np.random.default_rng(0).normal(0, 15, clean.shape)).round().clip(0, 255).astype(np.uint8)
    denoiser = Denoiser.load("photo")
    assert np.abs(denoiser(noisy).astype(float) - clean).mean() < 0.25 * np.abs(noisy.astype(float) - clean).mean()
    assert np.abs(denoiser(clean).astype(float) - clean).mean() < 1


def test_strength_0_returns_the_photo_itself_as_a_copy(weights):
    noisy = _photo(20, 30, 3)
    clean = Denoiser(weights)(noisy, strength=0)
    assert (clean == noisy).all()
    assert not np.shares_memory(clean, noisy)


def test_strength_blends_between_the_photo_and_the_result():
    noisy = np.full((16, 16, 3), 200, dtype=np.uint8)
    denoiser = _denoiser(FakeNetwork())
    assert [int(denoiser(noisy, strength=strength)[0, 0, 0]) for strength in (0, 0.25, 0.5, 1)] == [200, 175, 150, 100]


def test_gray_is_the_mean_of_three_equal_channels(weights):
    gray = _photo(30, 41)
    denoiser = Denoiser(weights, precision="float32")
    colour = np.repeat(gray[..., None], 3, axis=2).astype(np.float32)
    expected = denoiser.denoise_float(colour).mean(axis=2).round().clip(0, 255)
    assert np.abs(denoiser(gray) - expected).max() <= 1


@pytest.mark.parametrize("options", [{}, {"strength": 0.5}, {"keeps_grain": True}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_photo_of_three_equal_channels_shows_no_colour_after(weights, dtype, options):
    gray = _photo(150, 41).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    noisy = np.repeat(gray[..., None], 3, axis=2)
    clean = Denoiser(weights, tile_px=64)(noisy, **options)
    assert np.ptp(clean, axis=2).max() == 0
    assert (clean == noisy).all() == ("keeps_grain" in options)


def test_channels_that_are_equal_but_for_a_level_stay_as_they_are_to_each_other(weights):
    noisy = np.repeat(_photo(150, 41)[..., None] // 2 + 60, 3, axis=2) + _photo(150, 41, 3, seed=1) % 2
    change = Denoiser(weights, tile_px=64, precision="float32")(noisy).astype(int) - noisy
    inside = np.all((change + noisy > 1) & (change + noisy < 254), axis=2)
    assert inside.any()
    assert np.ptp(change[inside], axis=1).max() == 0


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_photo_of_one_channel_is_gray_in_that_channel(weights, channel):
    gray = _photo(150, 41)
    noisy = np.full((*gray.shape, 3), 7, np.uint8)
    noisy[..., channel] = gray
    denoiser = Denoiser(weights, device="cpu", tile_px=64)

    clean = denoiser(noisy)

    assert np.abs(clean[..., channel].astype(int) - denoiser(gray)).max() <= 1
    assert (np.delete(clean, channel, axis=2) == 7).all()
    assert (denoiser(noisy, keeps_grain=True) == noisy).all()


@pytest.mark.parametrize("part", ["one channel", "no colour"])
def test_a_part_that_shows_one_channel_or_no_colour_has_no_seam_with_the_rest(weights, part):
    noisy = _photo(64, 384, 3)
    noisy[:, 100:] = noisy[:, 100:, :1] * np.array([1, 0, 0] if part == "one channel" else [1, 1, 1], np.uint8)
    whole, tiled = (Denoiser(weights, precision="float32", tile_px=px) for px in (1024, 64))
    assert np.abs(tiled(noisy).astype(int) - whole(noisy)).max() <= 1


def test_gray_noise_is_told_as_luminance_of_three_equal_channels_and_not_as_all_of_it(weights):
    gray = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    level = Denoiser(weights, device="cpu").request(gray, strength=1.0, noise=None).level
    sigma = estimate_noise(gray).sigma
    assert sigma < level[0] < sigma * 3**0.5
    assert level[1] == 0


def test_a_little_colour_in_a_gray_photo_survives():
    network = FakeNetwork()
    network.forward = lambda noisy_BCHW, _level_B2: noisy_BCHW
    photo = np.repeat(_photo(150, 41)[..., None], 3, axis=2)
    photo[3, 3] = 200, 30, 30
    assert (_denoiser(network, tile_px=64)(photo) == photo).all()


def test_the_right_and_bottom_edges_are_mirrored():
    network = FakeNetwork()
    network.forward = lambda noisy_BCHW, _level_B2: noisy_BCHW.flip(3)
    noisy = np.arange(13, dtype=np.uint8)[None].repeat(8, axis=0)
    assert _denoiser(network)(noisy)[0].tolist() == [9, 10, 11, *range(12, 2, -1)]


def test_a_photo_too_small_to_be_mirrored_repeats_its_edge():
    network = FakeNetwork()
    network.forward = lambda noisy_BCHW, _level_B2: noisy_BCHW.flip(3)
    assert _denoiser(network)(np.array([[5, 7]], dtype=np.uint8)).tolist() == [[7, 7]]


def test_16_bit_photos_keep_every_one_of_their_levels():
    network = FakeNetwork()
    network.forward = lambda noisy_BCHW, _level_B2: noisy_BCHW
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (_denoiser(network, tile_px=64)(ramp) == ramp).all()


def test_16_bit_photos_and_floats_are_not_computed_in_16_bit_floats():
    network = FakeNetwork()
    denoiser = _denoiser(network)
    denoiser(_photo(8, 8, 3, dtype=np.uint16))
    denoiser.denoise_float(np.zeros((8, 8, 3), np.float32))
    assert network.is_autocast == [False, False]


def test_a_precision_that_is_asked_for_is_used():
    network = FakeNetwork()
    _denoiser(network, precision="bfloat16")(_photo(8, 8, 3))
    _denoiser(network, precision="float32")(_photo(8, 8, 3))
    assert network.is_autocast == [True, False]


def test_bfloat16_hardly_differs_from_float32():
    torch.manual_seed(0)
    network = PhotoNetwork()
    noisy = _photo(64, 64, 3)
    exact, fast = (
        _denoiser(network, precision=precision)(noisy).astype(float) for precision in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - fast).mean() < 0.5


def test_floats_are_neither_clipped_nor_rounded():
    noisy = np.array([[-41.0, 300.5, 0.25]], dtype=np.float32)
    clean = _denoiser(FakeNetwork()).denoise_float(noisy)
    np.testing.assert_allclose(clean, noisy / 2, rtol=1e-6)


def test_results_beyond_black_and_white_are_clipped():
    network = FakeNetwork()
    network.forward = lambda noisy_BCHW, _level_B2: 4 * noisy_BCHW - 1
    noise = NoiseEstimate(60.0, 60.0, 60.0, 0.5)
    assert _denoiser(network)(np.array([[0, 64, 255]], dtype=np.uint8), noise=noise).tolist() == [[0, 1, 255]]


def test_many_photos_come_back_in_their_order_and_with_their_own_strength():
    photos = [np.full(shape, 100, dtype=np.uint8) for shape in ((8, 8, 3), (20, 9), (8, 8, 3), (8, 8, 3))]
    cleans = _denoiser(FakeNetwork()).denoise_many(photos, [1, 0.5, 0, 0.5])
    assert [clean.shape for clean in cleans] == [photo.shape for photo in photos]
    assert [int(clean.flat[0]) for clean in cleans] == [50, 75, 100, 75]


def test_many_photos_equal_those_photos_one_by_one(weights):
    photos = [_photo(*shape, seed=seed) for seed, shape in enumerate([(40, 33, 3), (37, 40, 3), (90, 33), (5, 5, 3)])]
    denoiser = Denoiser(weights, precision="float32", tile_px=48, batch_px=2**20)
    for photo, clean in zip(photos, denoiser.denoise_many(photos), strict=True):
        assert np.abs(denoiser(photo).astype(int) - clean).max() <= 1


def test_tiles_of_one_padded_size_share_a_batch_up_to_its_budget():
    network = FakeNetwork()
    photos = [_photo(7 + index % 2, 16, 3) for index in range(5)]
    _denoiser(network, batch_px=2 * 8 * 16).denoise_many([*photos, _photo(8, 24, 3)])
    assert network.shapes == [(2, 3, 8, 16), (2, 3, 8, 16), (1, 3, 8, 16), (1, 3, 8, 24)]


def test_8_and_16_bit_photos_do_not_share_a_batch():
    network = FakeNetwork()
    eight, sixteen = _denoiser(network).denoise_many([_photo(8, 8, 3), _photo(8, 8, 3, dtype=np.uint16)])
    assert (eight.dtype, sixteen.dtype) == (np.uint8, np.uint16)
    assert len(network.shapes) == 2


def test_no_photos_are_no_work(weights):
    assert Denoiser(weights).denoise_many([]) == []


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_when_memory_runs_out_the_batch_halves(error, caplog):
    network = FakeNetwork(memory_px=3 * 8 * 8, error=error)
    photos = [_photo(8, 8, 3, seed=seed) for seed in range(10)]
    with caplog.at_level(logging.WARNING):
        cleans = _denoiser(network, batch_px=2**20).denoise_many(photos)
    for photo, clean in zip(photos, cleans, strict=True):
        assert np.abs(clean - photo / 2).max() <= 0.5
    assert "batches now have at most" in caplog.text


def test_when_memory_runs_out_for_one_tile_the_tile_halves(caplog):
    network = FakeNetwork(memory_px=160 * 160)
    noisy = _photo(300, 211, 3)
    with caplog.at_level(logging.WARNING):
        clean = _denoiser(network)(noisy)
    assert np.abs(clean - noisy / 2).max() <= 0.5
    assert "tiles now have a side of at most" in caplog.text


def test_what_was_learnt_about_memory_is_kept_for_the_next_photos(caplog):
    denoiser = _denoiser(FakeNetwork(memory_px=160 * 160))
    denoiser(_photo(300, 211, 3))
    caplog.clear()
    denoiser.denoise_many([_photo(300, 211, 3), _photo(211, 300, 3)])
    assert caplog.text == ""


def test_no_memory_for_the_smallest_tile_is_an_error():
    with pytest.raises(MemoryError, match=f"a tile of {SMALLEST_TILE_PX} pixels"):
        _denoiser(FakeNetwork(memory_px=10))(_photo(300, 211, 3))


def test_another_error_of_the_network_is_not_taken_for_a_lack_of_memory():
    network = FakeNetwork(memory_px=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        _denoiser(network)(_photo(8, 8, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_result_that_is_not_a_number_is_an_error(value):
    network = FakeNetwork()

    def forward(noisy_BCHW: Tensor, _level_B2: Tensor) -> Tensor:
        return noisy_BCHW.index_fill(3, torch.tensor([5]), value)

    network.forward = forward
    with pytest.raises(FloatingPointError, match=r"for a photo of shape \(20, 20, 3\) is not finite"):
        _denoiser(network)(_photo(20, 20, 3))


@pytest.mark.parametrize(
    "photo",
    [
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), bool),
        np.zeros((8, 8, 3), ">u2"),
    ],
)
def test_what_is_not_a_photo_is_refused(weights, photo):
    with pytest.raises(ValueError, match="cannot denoise an array of shape"):
        Denoiser(weights)(photo)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_0_to_1_is_refused(weights, strength):
    with pytest.raises(ValueError, match="strength is"):
        Denoiser(weights)(_photo(8, 8, 3), strength=strength)


def test_a_strength_is_needed_for_each_photo(weights):
    with pytest.raises(ValueError, match="2 photos, 1 strengths and 2 noises"):
        Denoiser(weights).denoise_many([_photo(8, 8), _photo(8, 8)], [1.0])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "float8"}, "unknown precision 'float8': expected one of auto, float32, bfloat16, float16"),
        ({"device": "toaster"}, "unknown device 'toaster'"),
        ({"tile_px": 0}, "must be at least 1"),
        ({"batch_px": 0}, "must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(weights, option, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(weights, **option)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(weights):
    with pytest.raises(ValueError, match="torch finds no GPU here"):
        Denoiser(weights, device="cuda")


def test_a_denoiser_is_loaded_from_a_file(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(dump_weights(SeedNetwork(), Card(network="seed", data="none", licence="MIT", noise="none")))
    denoiser = Denoiser.load(path, device="cpu", precision="float32")
    assert denoiser.weights.card.network == "seed"
    assert (denoiser.device.type, denoiser.precision) == ("cpu", Precision.FLOAT32)


def test_the_network_is_told_how_noisy_the_photo_is():
    network, noisy = FakeNetwork(), _photo(64, 64, 3)
    _denoiser(network)(noisy)
    estimate = estimate_noise(noisy)
    assert network.levels == [pytest.approx((estimate.luma_sigma, estimate.chroma_sigma), rel=1e-4)]


def test_the_network_is_told_what_the_caller_says_of_each_photo():
    network, photos = FakeNetwork(), [_photo(32, 32, 3), _photo(32, 32, 3, seed=1)]
    noises = [NoiseEstimate(5.0, 6.0, 4.0, 0.5), NoiseEstimate(20.0, 10.0, 25.0, 0.8)]
    _denoiser(network).denoise_many(photos, noises=noises)
    assert network.levels == [pytest.approx((6, 4), rel=1e-4), pytest.approx((10, 25), rel=1e-4)]


def test_each_photo_meets_the_network_for_its_noise(pair):
    white = (128 + np.random.default_rng(0).normal(0, 15, (192, 128, 3))).round().astype(np.uint8)
    blurred = (white[:, 1:] // 2 + white[:, :-1] // 2).astype(np.uint8)
    first, second, gray = Denoiser(pair, device="cpu", tile_px=64).denoise_many([white, blurred, white[..., 0]])
    general = Denoiser(dataclasses.replace(pair, tensors=pair.part(Part.GENERAL), card=pair.card.white), tile_px=64)
    assert (first == white).all()
    assert (second == general(blurred)).all()
    assert (gray == general(white[..., 0])).all()
    assert (second != blurred).any()


def test_what_the_caller_says_of_the_noise_decides_on_the_network(pair):
    noisy = _photo(64, 64, 3)
    noise = estimate_noise(noisy)
    denoiser = Denoiser(pair, device="cpu")
    assert (denoiser(noisy, noise=dataclasses.replace(noise, is_white=True)) == noisy).all()
    assert (denoiser(noisy, noise=dataclasses.replace(noise, is_white=False)) != noisy).any()


def test_beside_the_network_numpy_computes_with_one_thread() -> None:
    before = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):
        use_threads(before)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
    assert torch.get_num_threads() == before


def test_a_denoiser_alone_keeps_numpy_to_one_thread_only_while_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    def measure(photo: Any) -> NoiseEstimate:
        during.append(threads())
        return estimate_noise(photo)

    during: list[set[int]] = []
    monkeypatch.setattr("model.request.estimate_noise", measure)
    thread_pools.cache_clear()  # other tests may have loaded libraries since
    with threadpool_limits(2, user_api="blas"):
        Denoiser.load("photo")(_photo(64, 64, 3))
        assert (during, threads()) == ([{1}], {2})
