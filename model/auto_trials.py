"""How well the noise is estimated, and what `auto` makes of it: against fixed strengths, and on clean photos.

The noise is white, in files: clipped and rounded to 8 bits. Sigma is in 8-bit levels.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.denoiser import Denoiser
from model.estimate import estimate_noise
from model.metrics import PEAK, score_db
from model.strength import why_left_alone
from model.texture import Removed

Photo = NDArray[np.uint8]

ESTIMATED_SIGMAS = (2, 5, 10, 15, 25, 35, 50)
STRENGTH_SIGMAS = (0, 5, 15, 25, 50)
FIXED_STRENGTHS = tuple(number / 20 for number in range(21))
MET_SHARE, CLOSE_SHARE, MET_LEVELS = 0.12, 0.08, 1.0
INVISIBLE_DB = 50.0  # what is closer to the clean photo counts as so close: nobody sees the difference


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateScore:
    """Estimates of one level of noise: the shares of the photos where it was met within 12 % or one level, and 8 %."""

    sigma: float
    photos: int
    median: float
    met: float
    close: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoScore:
    """`auto` at one level of noise: mean PSNR in dB beside that of the fixed strength that is best at this level."""

    sigma: float
    photos: int
    left_alone: float
    psnr_db: float
    best_strength: float
    best_psnr_db: float

    @property
    def loss_db(self) -> float:
        return self.best_psnr_db - self.psnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanScore:
    """`auto` on clean photos: the share that it left alone, and the PSNR of the others against the photo in dB."""

    photos: int
    left_alone: float
    rest_mean_psnr_db: float | None
    rest_worst_psnr_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoScores:
    estimates: Sequence[EstimateScore]
    strengths: Sequence[AutoScore]
    clean: CleanScore


def score_auto(
    denoiser: Denoiser, photos: Iterable[Photo], *, seed: int = 0, watch: Callable[[], None] = lambda: None
) -> AutoScores:
    """Try the photos with noise of every level.

    Args:
        photos: gone over for each level.
        watch: called for each photo at each of `STRENGTH_SIGMAS`.
    """
    strengths, clean = [], None
    for sigma in STRENGTH_SIGMAS:
        found = []
        for number, photo in enumerate(photos):
            found.append(_try_strengths(denoiser, photo, _noisy(photo, sigma, seed, number)))
            watch()
        strengths.append(_mean_strengths(sigma, found))
        clean = clean or _clean_score(found)
    assert clean is not None  # the first sigma is none
    return AutoScores(
        estimates=[score_estimates(photos, sigma, seed=seed) for sigma in ESTIMATED_SIGMAS],
        strengths=strengths,
        clean=clean,
    )


def score_estimates(photos: Iterable[Photo], sigma: float, *, seed: int = 0) -> EstimateScore:
    """Estimate the noise of every photo at one level."""
    noisy = (_noisy(photo, sigma, seed, number) for number, photo in enumerate(photos))
    found = np.array([estimate_noise(photo).sigma for photo in noisy])
    errors = np.abs(found - sigma)
    return EstimateScore(
        sigma=sigma,
        photos=len(found),
        median=float(np.median(found)),
        met=float(np.mean(errors <= max(MET_SHARE * sigma, MET_LEVELS))),
        close=float(np.mean(errors <= CLOSE_SHARE * sigma)),
    )


@dataclass(frozen=True, slots=True)
class _Tried:
    """One photo: its PSNR with each of `FIXED_STRENGTHS`, with auto, and whether that left it alone."""

    fixed_db: list[float]
    auto_db: float
    is_left_alone: bool


def _try_strengths(denoiser: Denoiser, clean: Photo, noisy: Photo) -> _Tried:
    noise = estimate_noise(noisy)
    is_left_alone = why_left_alone(noise, "auto", keeps_grain=False, is_gray=False) is not None
    if is_left_alone and np.array_equal(clean, noisy):  # no strength above 0 could be better
        return _Tried([math.inf] + [-math.inf] * (len(FIXED_STRENGTHS) - 1), math.inf, is_left_alone)
    denoised = denoiser(noisy, noise=noise)
    if not is_left_alone:
        removed = Removed(tells_blur=noise.impulses is None)
        removed.add(noisy, denoised)
        is_left_alone = removed.is_texture
    change = denoised.astype(np.float32) - noisy
    fixed_db = [score_db(np.rint(noisy + strength * change), clean) for strength in FIXED_STRENGTHS]
    return _Tried(fixed_db, fixed_db[0 if is_left_alone else -1], is_left_alone)


def _mean_strengths(sigma: float, found: Sequence[_Tried]) -> AutoScore:
    fixed_db = np.minimum([tried.fixed_db for tried in found], INVISIBLE_DB).mean(axis=0)
    best = int(np.argmax(fixed_db))
    return AutoScore(
        sigma=sigma,
        photos=len(found),
        left_alone=float(np.mean([tried.is_left_alone for tried in found])),
        psnr_db=float(np.mean([min(tried.auto_db, INVISIBLE_DB) for tried in found])),
        best_strength=FIXED_STRENGTHS[best],
        best_psnr_db=float(fixed_db[best]),
    )


def _clean_score(found: Sequence[_Tried]) -> CleanScore:
    rest_db = [tried.auto_db for tried in found if not tried.is_left_alone]
    return CleanScore(
        photos=len(found),
        left_alone=1 - len(rest_db) / len(found),
        rest_mean_psnr_db=float(np.mean(rest_db)) if rest_db else None,
        rest_worst_psnr_db=min(rest_db) if rest_db else None,
    )


def _noisy(clean: Photo, sigma: float, seed: int, number: int) -> Photo:
    if sigma == 0:
        return clean
    noise = np.random.default_rng([seed, number, round(sigma)]).normal(0, sigma, clean.shape)
    return np.rint(clean + noise).clip(0, PEAK).astype(np.uint8)
