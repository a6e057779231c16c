"""How good a denoised photo is: PSNR in dB, and the protocol that papers use."""

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

PEAK = 255.0
BAND_PX = 64


def psnr_db(photo: NDArray[np.generic], reference: NDArray[np.generic], *, peak: float = PEAK) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(peak² / MSE), over all samples; infinite where both are equal.

    Raises:
        ValueError: the shapes differ.
    """
    if photo.shape != reference.shape:
        raise ValueError(f"cannot compare a photo of shape {photo.shape} with one of shape {reference.shape}")
    # By bands of rows: a whole photo as float64 needs many times its memory.
    bands = ((photo[top : top + BAND_PX], reference[top : top + BAND_PX]) for top in range(0, len(photo), BAND_PX))
    mean_square = sum(float(np.square(np.subtract(*band, dtype=np.float64)).sum()) for band in bands) / photo.size
    return math.inf if mean_square == 0 else 10 * math.log10(peak**2 / mean_square)


def ssim(photo: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Structural similarity of two (H, W, 3) photos, at most 1: Wang et al. 2004, with its Gaussian window, a channel
    at a time. Both sides must have 11 pixels at least.
    """
    from skimage.metrics import structural_similarity

    similarity = structural_similarity(  # type: ignore[no-untyped-call]  # the library has no types
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
    """PSNR of each photo in the protocol of papers: float noise, unclipped; the output rounded to 8 bit; over RGB.

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
        scores.append(psnr_db(denoise(noisy).round().clip(0, PEAK), clean))
    return scores
