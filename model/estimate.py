"""How noisy is this photo: the level of its noise, and how much of it is colour. Cheap, and without a network.

Noise is measured where the photo shows nothing else, in its flattest blocks (as in Liu, Tanaka and Okutomi 2013), by
the diagonal band of the Haar transform, which edges hardly enter (Donoho and Johnstone 1994). For white noise the
bands are independent, so that blocks that are flat in the *other* bands are a fair sample of the noise in this one.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# What white is in each dtype.
PEAKS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 255}
BLOCK_PX = 16  # a multiple of 8, so that no block crosses those of a JPEG
SAMPLE_PX = 2**20  # a larger photo is judged by blocks on a grid that have about as many pixels
FLATTEST_SHARE = 0.05
FEWEST_BLOCKS = 8
BLOCKS_AT_ONCE = 128  # they stay in the cache, and what they need is not given back to the system each time
CLIPPED_SHARE = 0.02  # with more clipped samples than this, a block's noise is no longer that of the sensor


@dataclass(frozen=True, slots=True)
class NoiseEstimate:
    """The noise of a photo, in 8-bit levels whatever its depth.

    Luminance is (r + g + b) / √3, and two axes of chrominance complete it to an orthonormal basis: white noise is
    equally strong on each, and 3 sigma² = luma_sigma² + 2 chroma_sigma². A gray photo has sigma = luma_sigma.

    Attributes:
        sigma: standard deviation in a channel; the quadratic mean over the channels.
        luma_sigma: standard deviation of the luminance.
        chroma_sigma: standard deviation on an axis of the chrominance; the quadratic mean of the two.
        chroma_share: the part of the variance that is chrominance, 0 to 1: 2/3 for white noise, 0 for gray photos.
    """

    sigma: float
    luma_sigma: float
    chroma_sigma: float
    chroma_share: float

    def scaled(self, factor: float) -> "NoiseEstimate":
        """Noise of the same colour, `factor` times as strong."""
        return NoiseEstimate(
            self.sigma * factor, self.luma_sigma * factor, self.chroma_sigma * factor, self.chroma_share
        )


def estimate_noise(photo: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]) -> NoiseEstimate:
    """Estimate the noise of an (H, W, 3) or (H, W) photo of any size; float32 is in 8-bit levels, and never clipped.

    Noise is measured at two scales, single pixels and cells of 2 × 2, and the stronger counts: demosaicing and JPEG
    take the finest noise away and leave the coarser. White noise of 2–50 levels is met within 12 % or one level on
    most photos; a photo that is texture all over reads as noisier than it is.

    Raises:
        ValueError: not such a photo.
    """
    is_photo = photo.ndim == 2 or (photo.ndim == 3 and photo.shape[2] == 3)
    if not is_photo or photo.dtype not in PEAKS or photo.size == 0:
        raise ValueError(
            f"cannot estimate the noise of an array of shape {photo.shape} and dtype {photo.dtype}: expected (H, W, 3) "
            "or (H, W) of uint8, uint16 or float32, at least one pixel"
        )
    return _estimate(_sample_blocks(photo))


def _estimate(blocks_NPC: NDArray[Any]) -> NoiseEstimate:
    """By the blocks that are sampled of a photo, as stored."""
    blocks_NPC = blocks_NPC[_flattest(blocks_NPC)].astype(np.float32) * np.float32(255 / PEAKS[blocks_NPC.dtype])
    fine = _measure(blocks_NPC, level=1)
    coarse = _measure(blocks_NPC, level=2).scaled(math.sqrt(_noise_likeness(blocks_NPC, level=2)))
    return max(fine, coarse, key=lambda estimate: estimate.sigma)


class NoiseSampler:
    """Estimates the noise of a photo of which only some rows are at hand at a time.

    Of the blocks on the grid it keeps what comes by, and says in the end what `estimate_noise` says of the whole photo.

    Args:
        shape: (H, W, 3) or (H, W) of the photo, 16 pixels a side at least.
        dtype: of the photo.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._rows, self._columns = (extent // BLOCK_PX for extent in shape[:2])
        self._step = _step(self._rows, self._columns)
        blocks = -(-self._rows // self._step), -(-self._columns // self._step)
        self._sample = np.zeros((blocks[0], BLOCK_PX, blocks[1], BLOCK_PX, *shape[2:]), dtype)

    @property
    def wanted(self) -> range:
        """The first of each 16 rows that are sampled."""
        return range(0, self._rows * BLOCK_PX, self._step * BLOCK_PX)

    def add(self, top: int, rows: NDArray[Any]) -> None:
        """Take what is sampled of some rows of the photo, of which the first is its row `top`. Any: its dtype."""
        bottom = top + len(rows)
        for number in range(max(0, top - BLOCK_PX) // self.wanted.step, -(-bottom // self.wanted.step)):
            start = number * self.wanted.step
            first, last = max(top, start), min(bottom, start + BLOCK_PX)
            if number < len(self._sample) and first < last:
                whole = rows[first - top : last - top, : self._columns * BLOCK_PX]
                blocks = whole.reshape(last - first, self._columns, BLOCK_PX, *rows.shape[2:])[:, :: self._step]
                self._sample[number, first - start : last - start] = blocks

    def estimate(self) -> NoiseEstimate:
        blocks_NPC = self._sample.reshape(*self._sample.shape[:4], -1).swapaxes(1, 2)
        return _estimate(blocks_NPC.reshape(-1, BLOCK_PX**2, blocks_NPC.shape[-1]))


def measure_noise(noise: NDArray[np.float32], noisy: NDArray[np.float32]) -> NoiseEstimate:
    """What `estimate_noise` would say of a photo whose noise is known, if no texture misled it.

    It is measured in the same blocks, the flattest of the noisy photo: those of a camera are darker than others, and
    less noisy.

    Args:
        noise: (H, W, 3) or (H, W), the noisy photo minus the clean one, in 8-bit levels; 16 pixels a side at least.
        noisy: the noisy photo, of the same shape and unit.
    """
    noise_NPC, noisy_NPC = _sample_blocks(noise), _sample_blocks(noisy)
    blocks_NPC = noise_NPC[_flattest(noisy_NPC)]
    return max((_measure(blocks_NPC, level) for level in (1, 2)), key=lambda estimate: estimate.sigma)


def _step(rows: int, columns: int) -> int:
    """Of so many rows and columns of blocks every how manieth is sampled."""
    return math.ceil(math.sqrt(rows * columns * BLOCK_PX**2 / SAMPLE_PX))


def _sample_blocks(photo: NDArray[Any]) -> NDArray[Any]:
    """Blocks on a regular grid, (N, P, C) with the P pixels of each in rows, in the photo's dtype."""
    photo_HWC = photo if photo.ndim == 3 else photo[..., None]
    missing = [(0, max(0, BLOCK_PX - extent)) for extent in photo_HWC.shape[:2]]
    if any(after for _, after in missing):  # repeated, because a mirrored photo would look smoother than it is
        photo_HWC = np.pad(photo_HWC, [*missing, (0, 0)], mode="wrap")
    rows, columns = (extent // BLOCK_PX for extent in photo_HWC.shape[:2])
    step = _step(rows, columns)
    whole_HWC = photo_HWC[: rows * BLOCK_PX, : columns * BLOCK_PX]
    grid = whole_HWC.reshape(rows, BLOCK_PX, columns, BLOCK_PX, -1)[::step, :, ::step].swapaxes(1, 2)
    return grid.reshape(-1, BLOCK_PX**2, photo_HWC.shape[2])


def _flattest(blocks_NPC: NDArray[Any]) -> NDArray[np.intp]:
    """Which are the flattest among the blocks that are hardly clipped."""
    parts = [blocks_NPC[start : start + BLOCKS_AT_ONCE] for start in range(0, len(blocks_NPC), BLOCKS_AT_ONCE)]
    clipped_N = np.concatenate([_clipped(part) for part in parts])
    texture_N = np.concatenate([_texture(part) for part in parts])
    usable = np.flatnonzero(clipped_N <= max(CLIPPED_SHARE, np.quantile(clipped_N, 0.2)))
    count = max(FEWEST_BLOCKS, round(FLATTEST_SHARE * len(usable)))
    return usable[np.argsort(texture_N[usable], kind="stable")[:count]]


def _clipped(blocks_NPC: NDArray[Any]) -> NDArray[np.float64]:
    """The share of each block's samples that is at either end of their range: (N,)."""
    peak = PEAKS[blocks_NPC.dtype]
    is_clipped = (blocks_NPC == 0) | (blocks_NPC == peak) if blocks_NPC.dtype != np.float32 else np.isnan(blocks_NPC)
    # Counted as bits, which takes a fifth of the time of a mean over truth values.
    bits = np.packbits(is_clipped.reshape(len(blocks_NPC), -1), axis=1)
    clipped_N: NDArray[np.float64] = np.bitwise_count(bits).sum(axis=1) / is_clipped[0].size
    return clipped_N


def _texture(blocks_NPC: NDArray[Any]) -> Floats:
    """How much each block shows, other than noise: (N,)."""
    luma_NP = blocks_NPC.astype(np.float32) @ np.ones(blocks_NPC.shape[2], np.float32)
    texture_NK = luma_NP @ _texture_basis()
    texture_N: Floats = np.einsum("nk,nk->n", texture_NK, texture_NK)
    return texture_N


def _measure(blocks_NPC: Floats, level: int) -> NoiseEstimate:
    """The noise in the diagonal band of one level of the transform: the median over the blocks."""
    band_NCK = _transform(blocks_NPC, level, "diagonal")
    channels, coefficients = band_NCK.shape[1:]
    power_N = _power(band_NCK)
    variance = float(np.median(power_N))
    variance /= (1 - 2 / (9 * channels * coefficients)) ** 3  # chi-square: median over mean (Wilson and Hilferty 1931)
    power = float(power_N.sum())
    luma_share = float(_power(band_NCK.mean(axis=1)).sum()) / power if power else 1.0
    chroma_share = max(0.0, 1 - luma_share)
    return NoiseEstimate(
        sigma=math.sqrt(variance),
        luma_sigma=math.sqrt(channels * variance * (1 - chroma_share)),
        chroma_sigma=math.sqrt(channels * variance * chroma_share / 2),
        chroma_share=chroma_share,
    )


def _noise_likeness(blocks_NPC: Floats, level: int) -> float:
    """1 where the bands of a level are as strong as noise makes them, down to 0 where only texture explains them.

    Noise has no direction: with white noise the row and column bands are as strong as the diagonal one, with JPEG's up
    to 1.6 times, with bilinear demosaicing's about twice. In the flattest blocks of clean photos it is 2 to 6 times.
    """
    rows, columns, diagonal = (
        float(np.median(_power(_transform(blocks_NPC, level, kind)))) for kind in ("rows", "columns", "diagonal")
    )
    return float(np.clip(3 - (rows + columns) / 2 / diagonal, 0, 1)) if diagonal else 0.0


def _transform(blocks_NPC: Floats, level: int, kind: str) -> Floats:
    # NumPy multiplies a view with its axes swapped by a plain loop, in three times the time.
    band_NCK: Floats = np.ascontiguousarray(blocks_NPC.swapaxes(1, 2)) @ _band(level, kind)
    return band_NCK


def _power(band: Floats) -> Floats:
    """The mean square of each block's coefficients: (N,)."""
    power_N: Floats = (band**2).reshape(len(band), -1).mean(axis=1)
    return power_N


@functools.cache
def _texture_basis() -> Floats:
    """Vectors whose squared products with a block add up to its texture: (P, K). The measured bands are not in it."""
    bands = [_band(level, kind) for level in (1, 2, 3) for kind in ("rows", "columns")]
    bands.append(_band(3, "diagonal"))
    return np.concatenate([band / np.float32(math.sqrt(band.shape[1])) for band in bands], axis=1)


@functools.cache
def _band(level: int, kind: str) -> Floats:
    """One band of the orthonormal Haar transform of a block: (P, K), a vector of length 1 for each coefficient."""
    cell = 2**level
    smooth = np.ones(cell)
    step = np.repeat([1.0, -1.0], cell // 2)
    vertical, horizontal = {"rows": (step, smooth), "columns": (smooth, step), "diagonal": (step, step)}[kind]
    places = np.eye(BLOCK_PX // cell)
    vectors_PK: Floats = (np.kron(np.kron(places, vertical), np.kron(places, horizontal)).T / cell).astype(np.float32)
    return vectors_PK
