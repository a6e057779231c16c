"""One photo in memory. The network is a hand-written fake."""

import io
import struct
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from photos import saved, scene

import pipeline.denoise
from model import Denoiser
from model.estimate import estimate_noise
from model.strength import Dose, Strength
from pipeline.denoise import Change, Denoise, DenoiseConfig, PhotoDenoiser, denoise_photo
from pipeline.images import Limits, decode, inspect
from pipeline.records import Outcome
from pipeline.room import Room
from pipeline.shard import PhotoResult


def brighten(noisy: np.ndarray, dose: Dose) -> np.ndarray:
    """Adds ten levels to every sample."""
    return np.minimum(noisy.astype(np.int64) + round(10 * dose.strength), np.iinfo(noisy.dtype).max).astype(noisy.dtype)


def failing(error: Exception) -> Denoise:
    def raise_it(noisy: np.ndarray, dose: Dose) -> np.ndarray:
        raise error

    return raise_it


def test_a_denoised_photo_has_the_format_of_its_source_and_the_pixels_of_the_denoiser() -> None:
    data = saved(scene(), "PNG")

    result = denoise_photo(data, "a.png", brighten, DenoiseConfig())

    assert result.outcome == Outcome.DENOISED
    header = inspect(result.data or b"", name="a.png")
    assert np.array_equal(decode(result.data or b"", header).colour, scene() + 10)


def test_strength_reaches_the_denoiser() -> None:
    data = saved(scene(), "PNG")

    result = denoise_photo(data, "a.png", brighten, DenoiseConfig(strength=0.5))

    assert decode(result.data or b"", inspect(result.data or b"")).colour.mean() == pytest.approx(
        scene().mean() + 5, abs=0.1
    )


def test_what_is_measured_describes_the_photo_and_the_change() -> None:
    result = denoise_photo(saved(scene(side_px=128), "PNG"), "a.png", brighten, DenoiseConfig())

    assert result.noise_sigma_before == pytest.approx(20, rel=0.15)
    assert result.change_psnr_db == pytest.approx(28.1, abs=0.1)  # 20 log10(255 / 10)
    assert result.clipped_fraction == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("hidden", [np.uint8(0), scene(sigma=0, side_px=128), scene(sigma=40, side_px=128)])
def test_what_transparency_hides_is_not_taken_for_the_photo(hidden: np.ndarray) -> None:
    alpha = np.full((128, 128, 1), 255, np.uint8)
    alpha[40:] = 0
    cutout = np.dstack([np.where(alpha > 0, scene(side_px=128), hidden), alpha])

    result = denoise_photo(saved(cutout, "PNG"), "a.png", brighten, DenoiseConfig())

    assert result.outcome == Outcome.DENOISED
    assert result.noise_sigma_before == pytest.approx(20, rel=0.2)


def test_a_mask_that_is_saved_with_a_tiff_hides_nothing() -> None:
    masked = np.dstack([scene(side_px=128), np.zeros((128, 128), np.uint8)])
    file = io.BytesIO()
    tifffile.imwrite(file, masked, photometric="rgb", extrasamples=["unspecified"])

    assert denoise_photo(file.getvalue(), "a.tif", brighten, DenoiseConfig()).outcome == Outcome.DENOISED


def test_a_clean_photo_stays_as_it_was_byte_for_byte() -> None:
    data = saved(scene(sigma=0, side_px=128), "JPEG", quality=95)

    result = denoise_photo(data, "a.jpg", brighten, DenoiseConfig())

    assert (result.outcome, result.data) == (Outcome.UNTOUCHED, data)
    assert result.reason == "clean: less than 1 level of noise"
    assert (result.strength, result.change_psnr_db) == (0.0, None)
    assert result.noise_sigma_after == result.noise_sigma_before is not None


def test_a_strength_that_is_a_number_is_for_clean_photos_too() -> None:
    result = denoise_photo(saved(scene(sigma=0), "PNG"), "a.png", brighten, DenoiseConfig(strength=1.0))

    assert (result.outcome, result.strength) == (Outcome.DENOISED, 1.0)


def test_strength_0_leaves_every_photo_as_it_was() -> None:
    data = saved(scene(), "PNG")

    result = denoise_photo(data, "a.png", brighten, DenoiseConfig(strength=0.0))

    assert (result.outcome, result.reason, result.data) == (Outcome.UNTOUCHED, "the strength is 0", data)


@pytest.mark.parametrize("strength", ["auto", 1.0])
def test_a_gray_photo_whose_grain_is_kept_stays_as_it_was(strength: Strength) -> None:
    data = saved(scene()[..., 0], "PNG")

    result = denoise_photo(data, "a.png", brighten, DenoiseConfig(strength=strength, keeps_grain=True))

    assert (result.outcome, result.data) == (Outcome.UNTOUCHED, data)
    assert (result.reason or "").startswith("gray: ")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), "needs more memory than this worker has"), (FloatingPointError(), "values that are no numbers")],
)
def test_a_photo_that_the_network_cannot_do_is_rejected_with_a_reason(error: Exception, reason: str) -> None:
    result = denoise_photo(saved(scene(), "PNG"), "a.png", failing(error), DenoiseConfig())

    assert (result.outcome, result.data) == (Outcome.REJECTED, None)
    assert reason in (result.reason or "")


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "much"])
def test_a_strength_outside_of_its_range_is_refused(strength: Strength) -> None:
    with pytest.raises(ValueError, match="strength is"):
        DenoiseConfig(strength=strength)


def test_the_parameters_hash_changes_with_whatever_changes_a_result() -> None:
    assert DenoiseConfig().parameters != DenoiseConfig(strength=0.5).parameters
    assert DenoiseConfig().parameters != DenoiseConfig(keeps_grain=True).parameters
    assert DenoiseConfig().parameters == DenoiseConfig(limits=Limits(max_megapixels=1)).parameters
    assert DenoiseConfig().parameters == DenoiseConfig(strength="auto").parameters
    assert DenoiseConfig(strength=1).parameters == DenoiseConfig(strength=1.0).parameters


@pytest.mark.parametrize("height_px", [40, 3000])
def test_a_large_photo_is_measured_by_rows_that_stand_for_it(height_px: int) -> None:
    draw = np.random.default_rng(0)
    noisy = draw.integers(0, 256, (height_px, 1500), dtype=np.uint8)
    clean = np.clip(noisy + draw.normal(0, 5, noisy.shape), 0, 255).astype(np.uint8)
    whole, sample = Change(noisy.dtype), Change(noisy.dtype)
    whole.add(noisy, clean)

    sample.add_sample(noisy, clean)

    results = PhotoResult(outcome=Outcome.DENOISED), PhotoResult(outcome=Outcome.DENOISED)
    for change, result in zip((whole, sample), results, strict=True):
        change.tell(result, estimate_noise(noisy), 1.0)
    assert results[1].change_psnr_db == pytest.approx(results[0].change_psnr_db, abs=0.05)
    assert results[1].clipped_fraction == pytest.approx(results[0].clipped_fraction, rel=0.05)


def test_no_more_threads_compute_than_a_worker_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stage they are at; the network has a thread of its own, and is not counted."""
    lock, at_work, most = threading.Lock(), [0], [0]

    def counted(stage: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            with lock:
                at_work[0] += 1
                most[0] = max(most[0], at_work[0])
            try:
                time.sleep(0.01)
                return stage(*arguments)
            finally:
                with lock:
                    at_work[0] -= 1

        return run

    for name in ("decode", "estimate_noise", "estimate_sigma", "encode"):
        monkeypatch.setattr(pipeline.denoise, name, counted(getattr(pipeline.denoise, name)))
    photos = PhotoDenoiser(Denoiser.load("photo", device="cpu"), DenoiseConfig(strength=1.0), threads=2)
    data = saved(scene(), "PNG")

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(photos, [data] * 12, [f"{number}.png" for number in range(12)]))

    assert {result.outcome for result in results} == {Outcome.DENOISED}
    assert most[0] == 2


def test_the_noisy_pixels_are_let_go_before_the_clean_ones_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy: list[weakref.ref[np.ndarray]] = []

    def denoise(colour: np.ndarray, _: Dose) -> np.ndarray:
        noisy.append(weakref.ref(colour))
        return colour // 2

    def encode(*_: object) -> bytes:
        assert noisy[0]() is None
        return b"encoded"

    monkeypatch.setattr(pipeline.denoise, "encode", encode)

    result = denoise_photo(saved(scene(), "JPEG"), "a.jpg", denoise, DenoiseConfig(strength=1.0))

    assert (result.outcome, result.data) == (Outcome.DENOISED, b"encoded")


@pytest.mark.parametrize(("kind", "copies"), [("JPEG", 3), ("WEBP", 9)])
def test_a_photo_takes_the_room_that_its_codec_needs(kind: str, copies: int) -> None:
    taken = []

    class NotedRoom(Room):
        def take(self, size_bytes: int) -> None:
            taken.append(size_bytes)
            super().take(size_bytes)

    denoise_photo(saved(scene(), kind), f"a.{kind.lower()}", brighten, DenoiseConfig(), room=NotedRoom())

    assert taken == [copies * scene().nbytes]


MANY_BYTES = 20_000_000


def head_of_layers() -> bytes:
    """Of a TIFF that is one pixel, and behind it all the layers that Photoshop keeps for itself."""
    tags = {256: 1, 257: 1, 258: 8, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = [*((tag, 4, 1, value) for tag, value in tags.items()), (37724, 7, MANY_BYTES - 200, 200)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return (struct.pack("<2sHI2x", b"II", 42, 10) + directory).ljust(200, b"\0") + b"MIB8ryaL"


@pytest.mark.parametrize(
    ("head", "name", "outcome", "most_bytes"),
    [
        (b"\0\0\0\x20ftypisom", "a.mp4", Outcome.UNTOUCHED, 0),
        (b"II*\0\x10\0\0\0CR\x02\0", "a.cr2", Outcome.UNTOUCHED, 0),
        (head_of_layers(), "a.tif", Outcome.UNTOUCHED, 0),
        (b"\x89PNG\r\n\x1a\n", "a.png", Outcome.REJECTED, MANY_BYTES),
    ],
)
def test_a_file_is_held_in_memory_once_at_most(
    head: bytes, name: str, outcome: Outcome, most_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.denoise, "COPIED_BYTES", 1 << 20)
    photos = PhotoDenoiser(Denoiser.load("photo", device="cpu"), DenoiseConfig())
    (tmp_path / "source").write_bytes(head + bytes(MANY_BYTES - len(head)))

    with (tmp_path / "source").open("rb") as file:
        tracemalloc.start()
        result = photos.denoise_file(file, name, tmp_path / "result")
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert result.outcome == outcome
    assert peak_bytes < most_bytes + MANY_BYTES // 4
    if outcome == Outcome.UNTOUCHED:
        assert (tmp_path / "result").read_bytes() == (tmp_path / "source").read_bytes()
