"""How good a denoised photo is: PSNR in dB, and the protocol that papers use."""

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

PEAK = 255.0
MOST_DB = 99.0  # of a score: the PSNR of a photo that is as it should be is infinite, which JSON and means cannot hold
BAND_SAMPLES = 2**16  # of differences at a time: they stay in the cache, and so few are added up in float32


def psnr_db(photo: NDArray[np.generic], reference: NDArray[np.generic], *, peak: float = PEAK) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(peak² / MSE), over all samples; infinite where both are equal.

    Raises:
        ValueError: the shapes differ.
    """
    return psnr_of(squared_error(photo, reference), photo.size, peak=peak)


def score_db(photo: NDArray[np.generic], reference: NDArray[np.generic]) -> float:
    """The PSNR in dB of 8-bit levels as all scores have it: at most `MOST_DB`.

    Raises:
        ValueError: the shapes differ.
    """
    return min(psnr_db(photo, reference), MOST_DB)


def psnr_of(squares: float, samples: int, *, peak: float = PEAK) -> float:
    """PSNR in dB by the sum of the squared differences of so many samples."""
    return math.inf if squares == 0 else 10 * math.log10(peak**2 * samples / squares)


def squared_error(photo: NDArray[np.generic], reference: NDArray[np.generic]) -> float:
    """The sum of the squared differences of all samples.

    Raises:
        ValueError: the shapes differ.
    """
    if photo.shape != reference.shape:
        raise ValueError(f"cannot compare a photo of shape {photo.shape} with one of shape {reference.shape}")
    rows = max(1, BAND_SAMPLES * len(photo) // photo.size)
    squares = 0.0
    for top in range(0, len(photo), rows):
        change = np.subtract(photo[top : top + rows], reference[top : top + rows], dtype=np.float32).ravel()
        squares += float(change @ change)
    return squares


def ssim(photo: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Structural similarity of two (H, W, 3) photos, at most 1: Wang et al. 2004, with its Gaussian window, a channel
    at a time. Both sides must have 11 pixels at least.
    """
    from skimage.metrics import structural_similarity

    similarity = structural_similarity(
        photo,
        reference,
        data_range=PEAK,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(similarity)


def gaussian_psnr_db(
    denoise: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    photos: Iterable[NDArray[np.uint8]],
    *,
    sigma: float,
    seed: int = 0,
) -> list[float]:
    """The score of each photo in the protocol of papers: float noise, unclipped; the output rounded to 8 bit; over RGB.

    Args:
        denoise: maps an (H, W, 3) float32 photo in 8-bit levels, not clipped, to its estimate of the clean one.
        photos: clean (H, W, 3) uint8 photos.
        sigma: standard deviation of the noise in 8-bit levels.
        seed: of the noise. It is drawn photo after photo, so that their order counts.
    """
    draw = np.random.default_rng(seed)
    scores = []
    for clean in photos:
        noisy = clean.astype(np.float32) + draw.normal(0, sigma, clean.shape).astype(np.float32)
        scores.append(score_db(denoise(noisy).round().clip(0, PEAK), clean))
    return scores
