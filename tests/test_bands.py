"""TIFFs that memory does not hold are denoised by bands of rows, and come out as those that it holds."""

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import tifffile
from photos import scene

from model import Denoiser
from model.estimate import NoiseSampler, estimate_noise
from model.sharing import SharedDenoiser
from model.strength import Dose
from pipeline import bands as bands_module
from pipeline import tiff_segments
from pipeline.bands import Bands
from pipeline.denoise import DenoiseConfig, denoise_by_bands, denoise_photo
from pipeline.ifd import FileBytes
from pipeline.records import Outcome
from pipeline.shard import PhotoResult

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, dict[str, Any]] = {  # Any: what tifffile takes
    "strips": {"rowsperstrip": 7},
    "one-strip": {"rowsperstrip": 1000},
    "uneven-strips": {"rowsperstrip": 100},
    "lzw": {"compression": "lzw", "predictor": True, "rowsperstrip": 16},
    "deflate-tiles": {"compression": "zlib", "predictor": True, "tile": (64, 48)},
    "tiles": {"tile": (32, 32)},
    "planes": {"planarconfig": "separate", "compression": "zlib", "rowsperstrip": 20},
    "big-tiff": {"bigtiff": True, "byteorder": ">", "compression": "zlib", "rowsperstrip": 30},
}


def photo(*, height_px: int = 300, width_px: int = 200) -> np.ndarray:
    return np.ascontiguousarray(scene(side_px=max(height_px, width_px))[:height_px, :width_px])


def tiff_of(pixels: np.ndarray, **options: Any) -> bytes:  # Any: what tifffile takes
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", **options)
    return buffer.getvalue()


def halved(noisy: np.ndarray, *_: object) -> np.ndarray:
    return noisy // 2


def halve_windows(photo: Bands, *_: object) -> None:
    """In tiles of an odd size, each with the pixels around it."""
    height_px, width_px = photo.shape[:2]
    for top in range(0, height_px, 90):
        for left in range(0, width_px, 77):
            rows, columns = slice(top, min(top + 90, height_px)), slice(left, min(left + 77, width_px))
            around = photo[slice(max(0, top - 16), min(rows.stop + 16, height_px)), columns]
            photo[rows, columns] = around[min(16, top) :][: rows.stop - top] // 2


def both_ways(data: bytes, folder: Path, **config: Any) -> tuple[PhotoResult, PhotoResult, bytes]:
    """The result for a file in memory, that for one on the disk, and the bytes of the latter."""
    settings = DenoiseConfig(**config)
    (folder / "source.tif").write_bytes(data)
    with (folder / "source.tif").open("rb") as file:
        on_disk = denoise_by_bands(file, "a.tif", folder / "result", halve_windows, settings)
    written = (folder / "result").read_bytes()
    return denoise_photo(data, "a.tif", halved, settings), on_disk, written


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kind", ["rgb", "gray", "deep", "alpha", "premultiplied"])
def test_a_photo_by_bands_becomes_the_same_file_as_in_memory(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pixels = photo()
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 77, np.uint8)])
    deep = pixels.astype(np.uint16) * 257
    kinds = {"rgb": pixels, "gray": pixels[..., 1], "deep": deep, "alpha": alpha, "premultiplied": alpha}
    pixels = kinds[kind]
    if "planarconfig" in options:
        pixels = np.moveaxis(pixels, 2, 0).copy() if pixels.ndim == 3 else pixels
        options = options if pixels.ndim == 3 else {}
    alphas = {"alpha": "unassalpha", "premultiplied": "assocalpha"}
    extra = {"extrasamples": [alphas[kind]]} if kind in alphas else {}

    in_memory, on_disk, written = both_ways(tiff_of(pixels, **options, **extra), tmp_path)

    assert (on_disk.outcome, on_disk.reason) == (Outcome.DENOISED, None)
    assert written == in_memory.data


@pytest.mark.parametrize("hidden_rows", [0, 70])
def test_what_is_measured_by_bands_is_what_is_measured_in_memory(hidden_rows: int, tmp_path: Path) -> None:
    alpha = np.full(photo().shape[:2], 255, np.uint8)
    alpha[:hidden_rows] = 0
    data = tiff_of(np.dstack([photo(), alpha]), rowsperstrip=10, extrasamples=["unassalpha"])

    in_memory, on_disk, _ = both_ways(data, tmp_path)

    measured = ("noise_sigma_before", "noise_sigma_after", "chroma_share", "clipped_fraction", "strength")
    assert [getattr(on_disk, name) for name in measured] == [getattr(in_memory, name) for name in measured]
    assert on_disk.change_psnr_db == pytest.approx(in_memory.change_psnr_db)


def test_strength_0_by_bands_changes_no_pixel(tmp_path: Path) -> None:
    data = tiff_of(photo(), rowsperstrip=10)

    _, on_disk, written = both_ways(data, tmp_path, strength=0.0)

    assert written == data
    assert on_disk.change_psnr_db is None


def test_a_clean_photo_by_bands_stays_as_it_was_byte_for_byte(tmp_path: Path) -> None:
    data = tiff_of(scene(sigma=0, side_px=200), rowsperstrip=10)

    in_memory, on_disk, written = both_ways(data, tmp_path)

    assert written == in_memory.data == data
    assert (on_disk.outcome, on_disk.reason) == (in_memory.outcome, in_memory.reason)
    assert (on_disk.reason or "").startswith("clean: ")


def test_a_photo_that_is_not_denoised_is_copied(tmp_path: Path) -> None:
    data = tiff_of(photo().astype(np.float32))

    _, on_disk, written = both_ways(data, tmp_path)

    assert (on_disk.outcome, written) == (Outcome.UNTOUCHED, data)


def test_a_photo_with_no_room_before_what_lies_behind_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_segments, "DEFLATE_LEVELS", (0,))
    data = tiff_of(photo(), compression="zlib", rowsperstrip=50) + b"an archive"

    in_memory, on_disk, written = both_ways(data, tmp_path)

    assert written == in_memory.data == data
    assert on_disk.outcome == in_memory.outcome == Outcome.UNTOUCHED
    assert on_disk.reason == in_memory.reason
    assert "behind the photo" in (on_disk.reason or "")
    assert on_disk.noise_sigma_before == in_memory.noise_sigma_before is not None


def test_a_damaged_band_is_a_rejection(tmp_path: Path) -> None:
    data = bytearray(tiff_of(photo(), compression="zlib", rowsperstrip=50))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages[0].dataoffsets[3]
    data[offset : offset + 64] = b"\xaa" * 64

    _, on_disk, _ = both_ways(bytes(data), tmp_path)

    assert on_disk.outcome == Outcome.REJECTED
    assert "damaged" in (on_disk.reason or "")


def test_a_file_that_is_cut_while_it_is_looked_at_is_a_rejection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(FileBytes):
        def __init__(self, file: BinaryIO) -> None:
            super().__init__(file)
            os.truncate(file.fileno(), 40)

    monkeypatch.setattr("pipeline.denoise.FileBytes", Cut)
    (tmp_path / "source.tif").write_bytes(tiff_of(photo()))

    with (tmp_path / "source.tif").open("r+b") as file:
        result = denoise_by_bands(file, "a.tif", tmp_path / "result", halve_windows, DenoiseConfig())

    assert (result.outcome, result.size_bytes) == (Outcome.REJECTED, None)
    assert "could not be processed" in (result.reason or "")


def test_a_strip_that_is_too_large_to_be_decoded_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands_module, "LARGEST_BAND_BYTES", 10_000)

    _, on_disk, _ = both_ways(tiff_of(photo(), compression="zlib", rowsperstrip=100), tmp_path)

    assert on_disk.outcome == Outcome.REJECTED
    assert "by parts of up to" in (on_disk.reason or "")


@pytest.mark.parametrize("shape", [(300, 15), (15, 300)])
def test_a_photo_that_is_too_narrow_for_its_noise_to_be_told_is_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    height_px, width_px = shape

    _, on_disk, _ = both_ways(tiff_of(photo(height_px=height_px, width_px=width_px)), tmp_path)

    assert on_disk.outcome == Outcome.REJECTED
    assert "one of its sides has 15 pixels" in (on_disk.reason or "")


@pytest.mark.parametrize("options", [KINDS["strips"], KINDS["deflate-tiles"]], ids=["strips", "tiles"])
def test_only_some_rows_are_held(options: dict[str, Any], tmp_path: Path) -> None:
    data = tiff_of(np.tile(photo(height_px=100, width_px=64), (30, 1, 1)), **options)
    (tmp_path / "source.tif").write_bytes(data)
    held = []
    with (tmp_path / "source.tif").open("rb") as file:
        bands = Bands(FileBytes(file), io.BytesIO(data))
        bands.finished = lambda *_: held.append(sum(band.noisy is not None for band in bands._bands) * band_rows)
        band_rows = bands._bands[0].bottom
        halve_windows(bands)

    assert max(held) <= 256 + 2 * 90 + 2 * 64


def test_the_network_denoises_by_bands_as_in_memory(tmp_path: Path) -> None:
    data = tiff_of(photo(height_px=420, width_px=333), compression="zlib", rowsperstrip=50)
    (tmp_path / "source.tif").write_bytes(data)
    denoisers = []
    for _ in range(2):
        denoiser = Denoiser.load("photo")
        denoiser._tile_px = 128
        denoisers.append(SharedDenoiser(denoiser))

    def denoise(noisy: np.ndarray, dose: Dose) -> np.ndarray:
        return denoisers[0](noisy, strength=dose.strength, noise=dose.noise)

    in_memory = denoise_photo(data, "a.tif", denoise, DenoiseConfig())
    with (tmp_path / "source.tif").open("rb") as file:
        by_windows = partial(_by_windows, denoisers[1])
        denoise_by_bands(file, "a.tif", tmp_path / "result", by_windows, DenoiseConfig())

    assert (tmp_path / "result").read_bytes() == in_memory.data


def test_a_photo_of_100_megapixels_takes_a_fraction_of_its_size_in_memory(tmp_path: Path) -> None:
    band = np.random.default_rng(0).integers(60, 200, (100, 10_000, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "small.tif", band[:, :100], photometric="rgb")
    shape = (10_000, 10_000, 3)
    tifffile.imwrite(
        tmp_path / "large.tif",
        (band for _ in range(100)),
        shape=shape,
        dtype=np.uint8,
        photometric="rgb",
        rowsperstrip=100,
    )

    peaks_bytes = [_peak_of_denoising(tmp_path / name) for name in ("small.tif", "large.tif")]

    assert (tmp_path / "large-clean.tif").read_bytes() == (tmp_path / "large.tif").read_bytes()
    assert peaks_bytes[1] - peaks_bytes[0] < 100 * 1024**2  # decoded it has three times as much


WITHOUT_NETWORK = """
import sys
from pathlib import Path
from pipeline.denoise import DenoiseConfig, denoise_by_bands

def keep(photo, _dose):
    for top in range(0, photo.shape[0], 64):
        window = slice(top, min(top + 64, photo.shape[0])), slice(0, photo.shape[1])
        photo[window] = photo[window]

with open(sys.argv[1], "rb") as file:
    result = denoise_by_bands(file, "a.tif", Path(sys.argv[2]), keep, DenoiseConfig(strength=1.0))
assert result.outcome == "denoised"
"""


def _peak_of_denoising(photo: Path) -> int:
    """The peak resident set of a process that sends a photo through everything but the network."""
    target = photo.with_stem(f"{photo.stem}-clean")
    command = [sys.executable, "-c", WITHOUT_NETWORK, photo, target]
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def _by_windows(denoiser: SharedDenoiser, photo: Bands, dose: Dose) -> None:
    denoiser.denoise_windowed(photo, strength=dose.strength, noise=dose.noise)


@pytest.mark.parametrize("shape", [(64, 80, 3), (2100, 1300, 3), (1500, 2000)])
@pytest.mark.parametrize("rows", [7, 16, 50])
def test_noise_is_estimated_of_rows_as_of_the_whole(shape: tuple[int, ...], rows: int) -> None:
    noisy = np.random.default_rng(0).normal(120, 20, shape).clip(0, 255).astype(np.uint8)
    sampler = NoiseSampler(noisy.shape, noisy.dtype)

    for top in range(0, shape[0], rows):
        sampler.add(top, noisy[top : top + rows])

    assert sampler.estimate() == estimate_noise(noisy)
