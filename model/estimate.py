"""How noisy is this photo: the level of its noise, how much of it is colour, and whether it is noise at all.

Cheap, and without a network. Noise is measured where the photo shows nothing else, in its flattest blocks (as in Liu,
Tanaka and Okutomi 2013), by the diagonal band of the Haar transform, which edges hardly enter (Donoho and Johnstone
1994). For white noise the bands are independent, so that blocks that are flat in the *other* bands are a fair sample of
the noise in this one. Where a photo is texture all over, two things tell it from noise: noise has no direction, and the
next flattest blocks have no more of it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.blocks import (
    FEWEST_BLOCKS,
    LUMA_CHROMA,
    PEAKS,
    STRIP,
    axes_of,
    by_parts,
    clipped_share,
    few_of,
    find_flattest,
    find_usable,
    grid_step,
    is_neutral,
    only_channel,
    quantile,
    sample_blocks,
    shown,
)
from model.drawn import is_drawn
from model.haar import BLOCK_PX, Floats, band, squares
from model.impulses import LEAST_SHARE, Impulses, fill_impulses, find_impulses, impulse_density

Photo = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]
Share = TypeVar("Share", float, NDArray[np.float64])

SAMPLE_PX = 2**20  # a larger photo is judged by blocks on a grid that have about as many pixels
LEVEL_SAMPLE_PX = 2**17  # the same where only the level is asked for
MOST_CLIPPED_SHARE = 0.3  # what is clipped beyond this was black or white before the noise

# Colour noise that is as strong in single pixels as in cells of 2 × 2 was never demosaiced or halved: it is white.
WHITE_RATIO = 1.6
LEAST_WHITE_SIGMA = 0.8  # rounding makes 0.3
ROUNDING_POWER = 1 / 12
# How far from equal it may be where nothing has filtered it since, in cells and in the other bands: nearer in 97 of 100
# photos of 0.15 and 0.26 megapixels with 5 to 50 levels. Behind a mosaic it is 1.6 times and 1.3 in half of them.
UNFILTERED_RATIOS = (1.15, 1.08)
# How much stronger its power may be in the dark than in the light, or the reverse, in so many blocks: below 1.23 in 97
# of 100 photos with 5 levels of white noise, 1.1 with more; 2.4 to 3.5 where a sensor's was taken for it to its harm.
MOST_UNEVEN, EVENNESS_BLOCKS = 1.3, 256
# Luminance of white noise has at most 1.55 times the power of its colour in 726 photos with 2 to 50 levels; grain, and
# the noise of toned black and white photos, which all channels share, has more. That which is soft looks like texture,
# but for two things: it is far stronger than the colour, and as strong in one block as in the next.
MOST_WHITE_LUMA, LEAST_GRAIN, MOST_IN_COMMON = 1.7, 8, 0.5

IMPULSE_LEVELS, IMPULSE_SIGMAS = 64, 5  # how far an impulse stands out from all of its eight neighbours, at least


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
        sure_luma_sigma, sure_chroma_sigma: as much of them as no texture explains. It decides whether there is noise
            at all; how much there is, the others say, which err upward: a network told too little leaves noise.
        impulse_density: share of pixels that stand out from all of their neighbours, as salt, pepper and hot pixels
            do: at least so many. The sharpest photos have up to 1.5e-4 of them.
        impulses: salt and pepper that is to be filled before anything else; all of the above is what a photo has
            beside it, and then.
        is_white: the noise is white and as strong in the dark as in the light, as nothing leaves it that filters: no
            mosaic, no JPEG, no change of size. Seen in the colour, which texture hardly has, and no stronger in gray,
            as grain is: of a gray photo nobody knows.
        is_drawn: what looks like noise is letters, lines, dots or the pixels of a drawing, which no noise has touched.
        only_channel: of three, the one that shows all that there is, where two have one value throughout, as in
            fluorescence: all of the above is that of a gray photo.
        is_neutral: it shows no colour, though it could: black and white photos are often stored in three channels.
    """

    sigma: float
    luma_sigma: float
    chroma_sigma: float
    chroma_share: float
    sure_luma_sigma: float = 0.0
    sure_chroma_sigma: float = 0.0
    impulse_density: float = 0.0
    impulses: Impulses | None = None
    is_white: bool = False
    is_drawn: bool = False
    only_channel: int | None = None
    is_neutral: bool = False


def estimate_noise(photo: Photo) -> NoiseEstimate:
    """Estimate the noise of an (H, W, 3) or (H, W) photo of any size; float32 is in 8-bit levels, and never clipped.

    Noise is measured at two scales, single pixels and cells of 2 × 2, and the stronger counts: demosaicing and JPEG
    take the finest noise away and leave the coarser. White noise counts as it is in single pixels, where texture is
    weaker. `degrain evaluate` says for how many photos white noise of 2–50 levels is met within 12 % or one level.

    Raises:
        ValueError: not such a photo.
    """
    _check_is_photo(photo)
    return _estimate(sample_blocks(photo, SAMPLE_PX), is_repeated=min(photo.shape[:2]) < BLOCK_PX)


def estimate_sigma(photo: Photo) -> float:
    """Only the level, in a fifth of the time: of what is left of noise, by fewer blocks.

    Impulses are not looked for, and count as whatever they look like.

    Raises:
        ValueError: not such a photo.
    """
    _check_is_photo(photo)
    return _estimate_sigma(sample_blocks(photo, LEVEL_SAMPLE_PX))


def _check_is_photo(photo: Photo) -> None:
    is_photo = photo.ndim == 2 or (photo.ndim == 3 and photo.shape[2] == 3)
    if not is_photo or photo.dtype not in PEAKS or photo.size == 0:
        raise ValueError(
            f"cannot estimate the noise of an array of shape {photo.shape} and dtype {photo.dtype}: expected (H, W, 3) "
            "or (H, W) of uint8, uint16 or float32, at least one pixel"
        )


def _estimate(blocks_NPC: NDArray[Any], *, is_repeated: bool = False) -> NoiseEstimate:
    """By the blocks that are sampled of a photo, as stored; in those that repeat it nothing is scattered by chance."""
    if blocks_NPC.shape[2] == 3 and (only := only_channel(blocks_NPC)) is not None:
        of_gray = _estimate(shown(blocks_NPC), is_repeated=is_repeated)
        return dataclasses.replace(of_gray, impulses=None, only_channel=only)
    clipped_N = by_parts(clipped_share, blocks_NPC)
    few_NYXC, peak = few_of(blocks_NPC), PEAKS[blocks_NPC.dtype]
    impulses = None
    if not is_repeated and clipped_N.mean() > 2 * LEAST_SHARE:
        impulses = find_impulses(few_NYXC, peak=peak)
    if impulses is not None:
        few_NYXC = fill_impulses(few_NYXC, impulses, peak=peak)
        blocks_NPC = few_NYXC.reshape(len(few_NYXC), *blocks_NPC.shape[1:])
        clipped_N = by_parts(clipped_share, blocks_NPC)
    measured = _Measured.of(blocks_NPC, clipped_N)
    fine, coarse, gain, is_white = measured.fine, measured.coarse, measured.gain, measured.is_white
    sure_luma = max(fine.luma.sure_power, coarse.luma.sure_power)
    sure_chroma = max(fine.chroma.sure_power, coarse.chroma.sure_power)
    if is_white:
        sure_chroma = fine.chroma.power
    luma, chroma = measured.powers
    is_white = is_white and luma < MOST_WHITE_LUMA * chroma
    found = _from_powers(luma * gain, chroma * gain, channels=blocks_NPC.shape[2])
    density = impulse_density(few_NYXC, max(IMPULSE_LEVELS, IMPULSE_SIGMAS * found.sigma) / 255 * peak)
    looks_noisy = not is_repeated and (density > 0 or max(sure_luma, sure_chroma) * gain > 1)
    return dataclasses.replace(
        found,
        sure_luma_sigma=math.sqrt(sure_luma * gain),
        sure_chroma_sigma=math.sqrt(sure_chroma * gain),
        impulse_density=density,
        impulses=impulses,
        is_white=is_white and _is_unfiltered(fine, coarse) and _is_even(blocks_NPC, clipped_N, measured.usable),
        is_drawn=looks_noisy and is_drawn(blocks_NPC[measured.flat], found.sigma),
        is_neutral=blocks_NPC.shape[2] == 3 and is_neutral(blocks_NPC),
    )


def _estimate_sigma(blocks_NPC: NDArray[Any]) -> float:
    blocks_NPC = shown(blocks_NPC)
    measured = _Measured.of(blocks_NPC, by_parts(clipped_share, blocks_NPC))
    luma, chroma = measured.powers
    return _from_powers(luma * measured.gain, chroma * measured.gain, channels=blocks_NPC.shape[2]).sigma


class NoiseSampler:
    """Estimates the noise of a photo of which only some rows are at hand at a time.

    Of the blocks on the grid it keeps what comes by, and says in the end what `estimate_noise` says of the whole photo,
    or `estimate_sigma`.

    Args:
        shape: (H, W, 3) or (H, W) of the photo, 16 pixels a side at least.
        dtype: of the photo.
        only_level: it will be asked for sigma alone.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, only_level: bool = False) -> None:
        self._rows, self._columns = (extent // BLOCK_PX for extent in shape[:2])
        self._step = grid_step(self._rows, self._columns, LEVEL_SAMPLE_PX if only_level else SAMPLE_PX)
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
        return _estimate(self._blocks())

    def sigma(self) -> float:
        return _estimate_sigma(self._blocks())

    def _blocks(self) -> NDArray[Any]:
        """The sampled blocks, (N, P, C)."""
        blocks = self._sample.reshape(*self._sample.shape[:4], -1).swapaxes(1, 2)
        return blocks.reshape(-1, BLOCK_PX**2, blocks.shape[-1])


def measure_noise(noise: NDArray[np.float32], noisy: NDArray[np.float32]) -> NoiseEstimate:
    """What `estimate_noise` would say of a photo whose noise is known, if no texture misled it.

    It is measured in the same blocks, the flattest of the noisy photo: those of a camera are darker than others, and
    less noisy.

    Args:
        noise: (H, W, 3) or (H, W), the noisy photo minus the clean one, in 8-bit levels; 16 pixels a side at least.
        noisy: the noisy photo, of the same shape and unit.
    """
    noise_NPC, noisy_NPC = (sample_blocks(photo, SAMPLE_PX) for photo in (noise, noisy))
    flat, _ = find_flattest(noisy_NPC, find_usable(noisy_NPC, by_parts(clipped_share, noisy_NPC)))
    axes_NAP = axes_of(noise_NPC[flat])
    return max((_measure(axes_NAP, level) for level in (1, 2)), key=lambda found: found.sigma)


@dataclass(frozen=True, slots=True)
class _Noise:
    """What looks like noise on the luminance or the chrominance, at one scale; all are variances.

    Attributes:
        power: of the diagonal band, in the flattest blocks.
        sideways: of the bands of rows and of columns, on the average, in the same blocks.
        following: of the diagonal band, in the blocks that follow.
    """

    power: float
    sideways: float
    following: float

    @property
    def sure_power(self) -> float:
        """What is left of the power where it has a direction, or rises with the texture."""
        is_undirected = _falling(self.sideways, self.power, 1.4, 2)
        return self.power * is_undirected * _falling(self.following, self.power, 1.5, 2.5)


@dataclass(frozen=True, slots=True)
class _Scale:
    """What looks like noise at one level of the transform."""

    luma: _Noise
    chroma: _Noise

    @classmethod
    def of(cls, flat_NAP: Floats, following_NAP: Floats, *, level: int) -> "_Scale":
        power = _powers(flat_NAP, level, "diagonal")
        rows, columns = (_powers(flat_NAP, level, kind) for kind in ("rows", "columns"))
        following = _powers(following_NAP, level, "diagonal")
        luma, chroma = (_Noise(power[axis], (rows[axis] + columns[axis]) / 2, following[axis]) for axis in (0, 1))
        return cls(luma, chroma)

    @property
    def power(self) -> float:
        return self.luma.power + 2 * self.chroma.power

    @property
    def likeness(self) -> float:
        """1 where the bands are as strong as noise makes them, down to 0 where only texture explains them.

        With white noise the row and column bands are as strong as the diagonal one, with JPEG's up to 1.6 times, with
        bilinear demosaicing's about twice. In the flattest blocks of clean photos it is 2 to 6 times.
        """
        return _falling(self.luma.sideways + 2 * self.chroma.sideways, self.power, 2, 3)


@dataclass(frozen=True, slots=True)
class _Measured:
    """The noise of the flattest blocks.

    Attributes:
        usable, flat: which blocks may be looked at, and which of them were.
        fine, coarse: what they have in single pixels, and in cells of 2 × 2.
        gain: what makes up for clipping.
        is_white: whether the noise is as strong in single pixels as in cells, and no grain.
    """

    usable: NDArray[np.intp]
    flat: NDArray[np.intp]
    fine: _Scale
    coarse: _Scale
    gain: float
    is_white: bool

    @classmethod
    def of(cls, blocks_NPC: NDArray[Any], clipped_N: NDArray[np.float64]) -> "_Measured":
        usable = find_usable(blocks_NPC, clipped_N)
        flat, following = find_flattest(blocks_NPC, usable)
        axes = [axes_of(blocks_NPC[chosen]) for chosen in (flat, following)]
        fine, coarse = (_Scale.of(*axes, level=level) for level in (1, 2))
        is_white = _is_white(fine, coarse) and not _is_grain(fine, coarse, axes)
        return cls(usable, flat, fine, coarse, 1 / _left_by_clipping(float(clipped_N[flat].mean())), is_white)

    @property
    def powers(self) -> tuple[float, float]:
        """Of luminance and chrominance, whatever the noise is, before the gain."""
        return _white_powers(self.fine) if self.is_white else _stronger_powers(self.fine, self.coarse)


def _is_white(fine: _Scale, coarse: _Scale) -> bool:
    """Whether colour noise is as strong in single pixels as in cells: texture and what cameras write are not."""
    return fine.chroma.power > LEAST_WHITE_SIGMA**2 and coarse.chroma.power < WHITE_RATIO**2 * fine.chroma.power


def _is_grain(fine: _Scale, coarse: _Scale, axes: Sequence[Floats]) -> bool:
    """Whether luminance has noise of its own, which may be soft, beside less that is white."""
    if max(fine.luma.sure_power, coarse.luma.sure_power) <= LEAST_GRAIN * fine.chroma.power:
        return False
    luma_N1P = np.concatenate([axes_NAP[:, :1] for axes_NAP in axes])
    return _in_common(luma_N1P) + 1 / math.sqrt(len(luma_N1P)) < MOST_IN_COMMON


def _in_common(luma_N1P: Floats) -> float:
    """How the power of the finest diagonal band goes with that of other bands, over the blocks: the mean correlation.

    Of noise they are independent, whatever its spectrum. Where texture is strong in one band, it is so in all.
    NaN where all blocks are alike.
    """
    bands = ((1, "diagonal"), (1, "rows"), (1, "columns"), (2, "diagonal"))
    diagonal_N, rows_N, columns_N, coarse_N = (squares(luma_N1P, *band)[:, 0] for band in bands)
    powers = np.stack([diagonal_N, rows_N + columns_N, coarse_N])
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(np.log(powers + ROUNDING_POWER))[0, 1:].mean())


def _is_unfiltered(fine: _Scale, coarse: _Scale) -> bool:
    """Whether colour noise is as strong in cells, in rows and in columns as in single pixels and along diagonals."""
    in_cells, in_bands = (ratio**2 for ratio in UNFILTERED_RATIOS)
    return (
        fine.chroma.power / in_cells < coarse.chroma.power < fine.chroma.power * in_cells
        and fine.chroma.power / in_bands < fine.chroma.sideways < fine.chroma.power * in_bands
    )


def _is_even(blocks_NPC: NDArray[Any], clipped_N: NDArray[np.float64], usable: NDArray[np.intp]) -> bool:
    """Whether colour noise is as strong in dark blocks as in bright ones, by the quiet fifth of each, which show least.

    A few blocks tell nothing.
    """
    if len(usable) < FEWEST_BLOCKS:
        return False
    few = usable[:: max(1, len(usable) // EVENNESS_BLOCKS)]
    samples_NS = blocks_NPC[few].astype(np.float32).reshape(len(few), -1)
    chroma_NK = (samples_NS.reshape(-1, 3 * math.prod(STRIP)) @ _chroma_diagonals()).reshape(len(few), -1)
    power_N = np.einsum("nk,nk->n", chroma_NK, chroma_NK) / _left_by_clipping(clipped_N[few])
    by_brightness = np.argsort(samples_NS.sum(axis=1), kind="stable")
    quiet = [quantile(third, 0.2) for third in np.array_split(power_N[by_brightness], 3)]
    return max(quiet) < MOST_UNEVEN * min(quiet)


def _white_powers(fine: _Scale) -> tuple[float, float]:
    """Of luminance and chrominance. White noise is as strong on both: more of luminance may be grain, or texture."""
    excess = _Noise(fine.luma.power - fine.chroma.power, fine.luma.sideways - fine.chroma.sideways, fine.luma.following)
    if excess.power <= 0:
        return fine.luma.power, fine.chroma.power
    grain = excess.power * _falling(excess.sideways, excess.power, 1.2, 1.8)
    return fine.chroma.power + grain, fine.chroma.power


def _stronger_powers(fine: _Scale, coarse: _Scale) -> tuple[float, float]:
    """Of luminance and chrominance, at the scale where noise is stronger."""
    if fine.power >= coarse.power * coarse.likeness:
        return fine.luma.power, fine.chroma.power
    return coarse.luma.power * coarse.likeness, coarse.chroma.power * coarse.likeness


def _falling(value: float, unit: float, first: float, last: float) -> float:
    """1 up to `first` units, down to 0 at `last` units."""
    return min(1.0, max(0.0, (last - value / unit) / (last - first))) if unit > 0 else 0.0


def _powers(axes_NAP: Floats, level: int, kind: str) -> tuple[float, float]:
    """Variance of luminance and of chrominance in one band: the median over the blocks. Gray has no chrominance."""
    squares_NA = squares(axes_NAP, level, kind)
    luma = _median_square(squares_NA[:, :1], level)
    return luma, _median_square(squares_NA[:, 1:], level) if squares_NA.shape[1] > 1 else 0.0


def _measure(axes_NAP: Floats, level: int) -> NoiseEstimate:
    """Of noise alone, where no texture misleads one axis more than another: all of them tell its level."""
    squares_NA = squares(axes_NAP, level, "diagonal")
    axes = squares_NA.shape[1]
    power, total = axes * _median_square(squares_NA, level), float(squares_NA.sum())
    luma, chroma = (float(share.sum()) / total if total else 0.0 for share in (squares_NA[:, :1], squares_NA[:, 1:]))
    return _from_powers(power * luma, power * chroma / 2, channels=axes)


def _median_square(squares_NA: Floats, level: int) -> float:
    coefficients = squares_NA.shape[1] * (BLOCK_PX // 2**level) ** 2
    # Chi-square: median over mean (Wilson and Hilferty 1931).
    return quantile(squares_NA.mean(axis=1), 0.5) / float((1 - 2 / (9 * coefficients)) ** 3)


def _from_powers(luma_power: float, chroma_power: float, *, channels: int) -> NoiseEstimate:
    power = luma_power + 2 * chroma_power
    return NoiseEstimate(
        sigma=math.sqrt(power / channels),
        luma_sigma=math.sqrt(luma_power),
        chroma_sigma=math.sqrt(chroma_power),
        chroma_share=2 * chroma_power / power if power else 0.0,
    )


def _left_by_clipping(share: Share) -> Share:
    """How much variance a Gaussian has left whose lowest (or highest) share is clipped: within 0.01 up to 0.5."""
    share = np.minimum(share, MOST_CLIPPED_SHARE)
    return 1 - 1.7 * share + 0.8 * share**2


@functools.cache
def _chroma_diagonals() -> Floats:
    """The finest diagonal band of the chrominance, of a strip whose samples are in the order of a photo: (P C, K)."""
    diagonals_SK: Floats = np.kron(band(1, "diagonal", STRIP), LUMA_CHROMA[1:].T)
    return diagonals_SK
