"""Salt and pepper: found by where it stands, and filled from what it did not hit.

An impulse tells nothing of what it hit, so that no denoiser can weigh it against its neighbours: it is found first, and
then filled from them alone, as in the adaptive median filters (Hwang and Haddad 1995), but not by a median. Impulses
are samples at either end of their range, black or white, of a photo that has both kinds. Whether it has is decided for
the photo, by blocks of it (`find_impulses`); which of its samples they are follows from that (`fill_impulses`).

What is left to the network: hot pixels, and all that is salt or pepper alone, which may be stars. Salt and pepper that
has been through JPEG no longer stands at the ends of the range, and floats have no ends.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.blocks import PEAKS, by_parts
from model.haar import BLOCK_PX

REACH_PX = 48  # what lies further away does not change how a pixel is filled

LEAST_SHARE = 0.003  # of salt, and of pepper; what noise of 50 levels leaves in a haze comes to 0.002
FEWEST = 12  # of each, in the blocks
MOST_UNEVEN = 3.0  # how many times as many there may be of one as of the other
# How far an impulse stands out from all values around it, as a part of the range; and by half of theirs at least.
LEAST_GAP = 24 / 255
FEWEST_KNOWN = 8  # of the 24 around, or nothing can stand out from them
# Edges of smooth letters come to 0.6 and more, of both together. Fewer are believed: a frame has none of them.
LEAST_DOUBTED = 0.4
MOST_AROUND = 12  # of the 24 are at one end where a photo is white, or black
# Of the impulses that are expected there, in photos of any contrast 0.4 to 4 times as many; in pages of text up to 0.1.
LEAST_FOUND = 0.25

# Where more of the 24 around are as white, or as black, the photo is so. A fifth of the pixels hit: 2.4 are by chance.
MOST_ALIKE, MOST_ALIKE_SIGMAS = 10, 3

NEAR_SIGMA_PX, FAR_SIGMA_PX = 0.55, 2.0
LEAST_WEIGHT = 1e-4  # of what is known near by; where there is less, it is looked for further away
CELL_PX = 2
WINDOW_SIGMA_CELLS = 1.8
RIDGE = 0.3  # squared 8-bit levels
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Impulses:
    """The salt and pepper of a photo.

    Attributes:
        salt, pepper: which shares of the samples they hit.
        is_gray: whether the channels of a pixel fail together, or each on its own.
    """

    salt: float
    pepper: float
    is_gray: bool


def find_impulses(blocks_NYXC: NDArray[Any], *, peak: int) -> Impulses | None:
    """The salt and pepper of a photo, by blocks of it in its own levels, of which `peak` is white; None if it has none.

    A place counts where all that is around it and at no end of the range is far from this end: what is at the end
    there has been put there. Strong noise comes near the ends before it is clipped; clipped skies and shadows, line art
    and halftone have hardly anything else around them; stars and highlights are salt alone; lines are not scattered.
    And where all is white or black, impulses of the other kind are as frequent: on the paper of a page are none.
    """
    least_gap = math.ceil(LEAST_GAP * peak)
    if not (_may_have_salt(blocks_NYXC, peak, least_gap) and _may_have_salt(peak - blocks_NYXC, peak, least_gap)):
        return None
    pixels_YXCN = np.ascontiguousarray(blocks_NYXC.transpose(1, 2, 3, 0))  # rows are long for what follows
    is_salt, is_pepper = pixels_YXCN == peak, pixels_YXCN == 0
    is_end = is_salt | is_pepper
    # Unsigned all through, which is several times as fast: what is at one end wraps around to the other, and is out.
    highest = _around(pixels_YXCN + 1, np.maximum) - 1
    below_peak = peak - highest
    is_judged = _around((~is_end).view(np.uint8), np.add) >= FEWEST_KNOWN
    lowest = _around(pixels_YXCN - 1, np.minimum) + 1
    spread = highest - lowest
    spread -= spread >> 1
    could_be_salt = is_judged & (below_peak >= np.maximum(spread, least_gap))
    could_be_pepper = is_judged & (lowest >= np.maximum(spread, least_gap))
    salt, pepper = _share(is_salt, could_be_salt), _share(is_pepper, could_be_pepper)
    if min(salt, pepper) < LEAST_SHARE or max(salt, pepper) > MOST_UNEVEN * min(salt, pepper):
        return None
    if salt + pepper > LEAST_DOUBTED and (
        _is_missing(pepper, is_pepper, is_salt, is_judged) or _is_missing(salt, is_salt, is_pepper, is_judged)
    ):
        return None
    fails_together = is_salt.all(axis=2) | is_pepper.all(axis=2)
    stands_out = _inner(is_end) & (could_be_salt | could_be_pepper)
    together = np.count_nonzero(stands_out & _inner(fails_together)[:, :, None])
    return Impulses(salt, pepper, is_gray=bool(2 * together > np.count_nonzero(stands_out)))


def impulse_density(blocks_NYXC: NDArray[Any], least_levels: float) -> float:
    """The share of pixels that are brighter, or darker, than all of their neighbours by so many of their levels.

    Less twice its standard error, so that a few of them in a small photo prove nothing.
    """
    distance = blocks_NYXC.dtype.type(min(PEAKS[blocks_NYXC.dtype], least_levels))
    count = float(by_parts(functools.partial(_standing_out, distance=distance), blocks_NYXC).sum())
    return max(0.0, count - 2 * math.sqrt(count)) / (len(blocks_NYXC) * (BLOCK_PX - 2) ** 2)


def _standing_out(blocks_NYXC: NDArray[Any], distance: np.generic) -> NDArray[np.intp]:
    """How many pixels of each block do, by more than the distance."""
    samples, channels = blocks_NYXC.reshape(-1), blocks_NYXC.shape[3]

    def stands_out(here: NDArray[Any], lowest: NDArray[Any], highest: NDArray[Any]) -> NDArray[np.bool_]:
        # Unsigned: differences count only where they are positive.
        is_higher, is_lower = here > highest, here < lowest
        is_higher &= here - highest > distance
        is_lower &= lowest - here > distance
        return is_higher | is_lower

    # Few stand out from both beside them, and only those are compared with the rest.
    before, here, behind = samples[: -2 * channels], samples[channels:-channels], samples[2 * channels :]
    some = np.flatnonzero(stands_out(here, np.minimum(before, behind), np.maximum(before, behind))) + channels
    row, column = (some // (channels * BLOCK_PX)) % BLOCK_PX, (some // channels) % BLOCK_PX
    some = some[(row % (BLOCK_PX - 1) > 0) & (column % (BLOCK_PX - 1) > 0)]
    rows, columns = np.divmod([0, 1, 2, 3, 5, 6, 7, 8], 3)
    around = samples[some[:, None] + ((rows - 1) * BLOCK_PX + columns - 1) * channels]
    found = some[stands_out(samples[some], around.min(axis=1), around.max(axis=1))]
    return np.bincount(np.unique(found // channels) // BLOCK_PX**2, minlength=len(blocks_NYXC))


def fill_impulses(photos_BHWC: NDArray[Any], impulses: Impulses, *, peak: int) -> NDArray[Any]:
    """Fill what impulses have hit in photos, or windows of one: (B, H, W, C) of uint8 or uint16; the rest is the same.

    The first guess is the weighted mean of what is known near by: the normalised convolution of Knutsson and Westin
    (1993) with a narrow Gaussian. It is made better by how it errs on the known samples around: a local regression, as
    in edge-directed interpolation (Li and Orchard 2001), on the differences between opposite pairs of neighbours and,
    where channels fail each on its own, on how the same guess errs in the other channels of the pixel.
    """
    seen_BCHW = torch.from_numpy(photos_BHWC.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    is_hit_BCHW = _hit(seen_BCHW, impulses, peak).expand_as(seen_BCHW)
    filled_BCHW, is_hit_BCHW = _first_guess(seen_BCHW, is_hit_BCHW)
    for _ in range(ROUNDS):
        filled_BCHW = _better_guess(filled_BCHW, is_hit_BCHW, is_gray=impulses.is_gray, peak=peak)
    filled_BHWC: NDArray[Any] = filled_BCHW.round_().permute(0, 2, 3, 1).numpy().astype(photos_BHWC.dtype)
    return filled_BHWC


def _may_have_salt(blocks_NYXC: NDArray[Any], peak: int, least_gap: int) -> bool:
    """Whether enough samples are white where nothing near white is around them: a look in a fifth of the time.

    All samples are one row, in which those of a place's neighbours are at fixed distances; at the edges of blocks they
    are others, which makes no difference to speak of.
    """
    samples = blocks_NYXC.reshape(-1)
    is_far = samples + 1 <= peak + 1 - least_gap  # white wraps around to 0, and is no neighbour that counts
    side, channels = blocks_NYXC.shape[1], blocks_NYXC.shape[3]
    for stride in (channels, side * channels):
        pairs = is_far[:-stride] & is_far[stride:]
        is_far = pairs[: -3 * stride] & pairs[2 * stride : -stride] & is_far[4 * stride :]
    skipped = 2 * (1 + side) * channels
    found = np.count_nonzero(is_far & (samples[skipped:-skipped] == peak))
    return bool(found >= max(FEWEST, LEAST_SHARE / 2 * np.count_nonzero(is_far)))


def _inner(pixels_YXCN: NDArray[Any]) -> NDArray[Any]:
    """Those that have 24 around."""
    return pixels_YXCN[2:-2, 2:-2]


def _around(pixels_YXCN: NDArray[Any], joined: np.ufunc) -> NDArray[Any]:
    """What the 5 × 5 samples around each inner one come to."""
    for _ in range(2):
        pairs = joined(pixels_YXCN[:-1], pixels_YXCN[1:])
        pixels_YXCN = joined(joined(pairs[:-3], pairs[2:-1]), pixels_YXCN[4:]).swapaxes(0, 1)
    return pixels_YXCN


def _share(is_at_end: NDArray[np.bool_], is_judged: NDArray[np.bool_]) -> float:
    """How many of the places that can be judged are at this end; 0 if they are too few, or not scattered."""
    found = _inner(is_at_end) & is_judged
    count = int(np.count_nonzero(found))
    if count < FEWEST:
        return 0.0
    share = count / int(np.count_nonzero(is_judged))
    alike = float((_around(is_at_end.view(np.uint8), np.add)[found] - 1).mean()) / 24
    # In lines, letters and posters, of those around more are at the same end than of all: 1.7 times as many, and more.
    return share if alike < 1.25 * share + 0.01 else 0.0


def _is_missing(
    share: float, is_at_end: NDArray[np.bool_], is_at_other: NDArray[np.bool_], is_judged: NDArray[np.bool_]
) -> bool:
    """Whether impulses of a share at this end are not found where nearly all is at the other one."""
    is_blank = ~is_judged & (_around(is_at_other.view(np.uint8), np.add) - _inner(is_at_other) >= MOST_AROUND)
    expected = share * int(np.count_nonzero(is_blank))
    return expected >= FEWEST and int(np.count_nonzero(_inner(is_at_end) & is_blank)) < LEAST_FOUND * expected


def _hit(seen_BCHW: Tensor, impulses: Impulses, peak: int) -> Tensor:
    """Which samples were hit; of channels that fail together (B, 1, H, W)."""
    is_hit_BCHW = torch.zeros((), dtype=torch.bool)
    for end, share in ((peak, impulses.salt), (0, impulses.pepper)):
        is_at_end = seen_BCHW == end
        if impulses.is_gray:
            is_at_end = is_at_end.all(dim=1, keepdim=True)
        spread = math.sqrt(24 * share * (1 - share))
        most_alike = max(MOST_ALIKE, int(24 * share + MOST_ALIKE_SIGMAS * spread))
        at_end = is_at_end.to(torch.uint8)
        alike = _convolved(at_end, (1, 1, 1, 1, 1), beyond="constant") - at_end  # nothing there is alike
        is_hit_BCHW = is_hit_BCHW | (is_at_end & (alike <= most_alike))
    return is_hit_BCHW


def _first_guess(seen_BCHW: Tensor, is_hit_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Every hit sample by the mean of those that were not; and which are filled: not where none is in sight."""
    known_BCHW = (~is_hit_BCHW).float()
    near, far = (_gaussian(sigma) for sigma in (NEAR_SIGMA_PX, FAR_SIGMA_PX))
    weight = _convolved(known_BCHW, near)
    guess = _convolved(seen_BCHW * known_BCHW, near) / weight.clamp(min=LEAST_WEIGHT)
    if bool((weight < LEAST_WEIGHT).any()):
        wide = _convolved(known_BCHW, far)
        guess = torch.where(weight < LEAST_WEIGHT, _convolved(seen_BCHW * known_BCHW, far) / wide, guess)
        is_hit_BCHW = is_hit_BCHW & ((weight >= LEAST_WEIGHT) | (wide > LEAST_WEIGHT))
    return torch.where(is_hit_BCHW, guess, seen_BCHW), is_hit_BCHW


def _better_guess(filled_BCHW: Tensor, is_hit_BCHW: Tensor, *, is_gray: bool, peak: int) -> Tensor:
    """One round of the regression: coefficients for every sample that was hit, by the known ones in a window."""
    channels = filled_BCHW.shape[1]
    guess_BCHW, terms = _guess_and_terms(filled_BCHW)
    error_BCHW = filled_BCHW - guess_BCHW
    if channels == 3 and not is_gray:
        terms += [error_BCHW[:, [1, 0, 0]], error_BCHW[:, [2, 2, 1]]]
    # Channels that fail together have their coefficients in common.
    for group in [slice(0, channels)] if is_gray else [slice(each, each + 1) for each in range(channels)]:
        is_hit_B1HW = is_hit_BCHW[:, group][:, :1]
        hit_B, hit_Y, hit_X = is_hit_B1HW[:, 0].nonzero(as_tuple=True)
        ours, known_B1HW = [term[:, group] for term in terms], (~is_hit_B1HW).float()
        weighted = [term * known_B1HW for term in ours]
        ours.append(error_BCHW[:, group])
        pairs = [(first, second) for first in range(len(terms)) for second in range(first, len(ours))]
        cells = torch.cat([_in_cells(weighted[first] * ours[second]) for first, second in pairs], dim=1)
        around = _convolved(cells, _gaussian(WINDOW_SIGMA_CELLS))[hit_B, :, hit_Y // CELL_PX, hit_X // CELL_PX]
        coefficients = _solved(dict(zip(pairs, around.T.contiguous(), strict=True)), RIDGE * (peak / 255) ** 2)
        for channel in range(group.start, group.stop):
            better = guess_BCHW[hit_B, channel, hit_Y, hit_X]
            for coefficient, term in zip(coefficients, terms, strict=True):
                better.addcmul_(coefficient, term[hit_B, channel, hit_Y, hit_X])
            filled_BCHW[hit_B, channel, hit_Y, hit_X] = better.clamp_(0, peak)
    return filled_BCHW


def _guess_and_terms(filled_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the eight neighbours say of each sample, and three terms that any other guess adds to it.

    The terms are differences between the means of opposite pairs: along rows and along columns, along the diagonals,
    and of those two to these two.
    """
    padded = F.pad(filled_BCHW, (1, 1, 1, 1), mode="replicate")
    above, below, row = padded[..., :-2, :], padded[..., 2:, :], padded[..., 1:-1, :]
    beside, upright = row[..., :-2] + row[..., 2:], above[..., 1:-1] + below[..., 1:-1]
    falling, rising = above[..., :-2] + below[..., 2:], above[..., 2:] + below[..., :-2]
    sides, corners = beside + upright, falling + rising
    nearness = math.exp(-1 / (2 * NEAR_SIGMA_PX**2))  # of a corner, to that of a side
    guess_BCHW = sides.add(corners, alpha=nearness).div_(4 + 4 * nearness)
    return guess_BCHW, [beside.sub_(upright), falling.sub_(rising), sides.sub_(corners)]


def _in_cells(values_BCHW: Tensor) -> Tensor:
    """Their means over the cells, and sum over the channels: (B, 1, Y, X)."""
    if values_BCHW.shape[1] > 1:
        values_BCHW = values_BCHW.sum(dim=1, keepdim=True)
    return F.avg_pool2d(values_BCHW, CELL_PX, ceil_mode=True)


def _solved(moments: dict[tuple[int, int], Tensor], ridge: float) -> list[Tensor]:
    """The coefficients of many ridge regressions at once, by Cholesky's decomposition.

    Args:
        moments: of the terms (rows and columns of a symmetric matrix), and in the last column of what they are to meet.
        ridge: is added on the diagonal.
    """
    size = max(column for _, column in moments)
    upper: dict[tuple[int, int], Tensor] = {}  # on its diagonal the inverse
    for (row, column), moment in moments.items():
        rest = moment  # less what the terms before it meet
        for before in range(row):
            rest = rest - upper[before, row] * upper[before, column]
        upper[row, column] = (rest + ridge).rsqrt_() if row == column else rest * upper[row, row]
    found: dict[int, Tensor] = {}
    for row in reversed(range(size)):
        rest = upper[row, size]
        for after in range(row + 1, size):
            rest = rest - upper[row, after] * found[after]
        found[row] = rest * upper[row, row]
    return [found[row] for row in range(size)]


def _convolved(photos_BCHW: Tensor, profile: Sequence[float], *, beyond: str = "replicate") -> Tensor:
    """By the profile in both directions; beyond the edges lies what `F.pad` calls so.

    By shifted sums: torch's own convolutions of single channels take three times as long.
    """
    radius = len(profile) // 2
    for axis, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        extent = photos_BCHW.shape[axis]
        padded = F.pad(photos_BCHW, padding, mode=beyond)
        photos_BCHW = padded.narrow(axis, radius, extent) * profile[radius]
        for shift in range(radius):
            pair = padded.narrow(axis, shift, extent) + padded.narrow(axis, 2 * radius - shift, extent)
            photos_BCHW.add_(pair, alpha=profile[shift])
    return photos_BCHW


@functools.cache
def _gaussian(sigma: float) -> tuple[float, ...]:
    radius = math.ceil(2.5 * sigma)
    profile = np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    return tuple((profile / profile.sum()).tolist())
