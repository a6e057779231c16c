"""How well a denoiser does: trials that add a known noise to clean photos, and the scores of what is left of it.

The noise here is made by other code than that of training: NumPy, OpenCV's demosaicing and libjpeg, and cameras whose
settings no training patch was drawn from. Photos are (H, W, 3); sigma and all differences are in 8-bit levels.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.estimate import estimate_noise
from model.metrics import PEAK, score_db, ssim

Photo = NDArray[np.uint8]
Floats = NDArray[np.float32]
Denoise = Callable[[Floats | Photo, "Told"], Floats | Photo]

JPEG_QUALITY = 90
PHOTO_ISOS = (800, 1600, 3200, 6400, 12800)


@dataclass(frozen=True, slots=True)
class Told:
    """What a peer may know of a noisy photo: the true sigma where there is one, and otherwise an estimate."""

    sigma: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One kind of noise, at one level.

    Attributes:
        name: as the table says it.
        add: makes the noisy photo: float32 in the protocol of papers, uint8 in that of files.
        sigma: the true level, where the noise is white; None elsewhere.
    """

    name: str
    add: Callable[[Photo, np.random.Generator, int], Floats | Photo]
    sigma: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What became of one photo.

    Attributes:
        noisy_psnr_db, psnr_db: against the clean photo, before and after; rounded to 8 bit as a file would be. At most
            `MOST_DB`.
        ssim: structural similarity after (Wang et al. 2004), 0–1.
        noise_left: the share of the noise that is still there: the error's projection on the noise; may leave 0–1.
        detail_lost: the share of the finest detail that is gone: the error's projection on what a blur of one pixel
            takes from the clean photo.
        sigma, estimated_sigma: of the noise, true and estimated from the noisy photo.
    """

    noisy_psnr_db: float
    psnr_db: float
    ssim: float
    noise_left: float
    detail_lost: float
    sigma: float
    estimated_sigma: float

    @property
    def gain_db(self) -> float:
        return self.psnr_db - self.noisy_psnr_db


def standard_trials() -> list[Trial]:
    """White noise in the protocols of papers and of files, salt and pepper, cameras, and none at all."""
    return [
        *(Trial(f"float, σ {sigma}", _float_noise(sigma), sigma) for sigma in (15, 25, 50)),
        *(Trial(f"file, σ {sigma}", _file_noise(sigma), sigma) for sigma in (15, 25, 50)),
        Trial("salt and pepper, 20 %", _salt_and_pepper),
        Trial(f"cameras, ISO {PHOTO_ISOS[0]}–{PHOTO_ISOS[-1]}", photograph),
        Trial("clean", lambda clean, _draw, _number: clean),
    ]


def run_trial(trial: Trial, denoise: Denoise, photos: Iterable[Photo], *, seed: int = 0) -> Iterator[Score]:
    """Scores of the photos, in their order. Equal seeds give equal noise, whatever denoises it."""
    draw = np.random.default_rng(seed)
    for number, clean in enumerate(photos):
        noisy = trial.add(clean, draw, number)
        estimate = estimate_noise(noisy).sigma
        result = denoise(noisy, Told(estimate if trial.sigma is None else trial.sigma))
        yield _score(clean, noisy, result, estimate)


def mean_score(scores: Iterable[Score]) -> Score:
    """The mean of each figure over the photos."""
    means = np.mean([dataclasses.astuple(score) for score in scores], axis=0)
    names = [field.name for field in dataclasses.fields(Score)]
    return Score(**dict(zip(names, means.tolist(), strict=True)))


def _score(clean: Photo, noisy: Floats | Photo, result: Floats | Photo, estimate: float) -> Score:
    truth = clean.astype(np.float32)
    seen, made = (np.rint(photo).clip(0, PEAK).astype(np.float32) for photo in (noisy, result))
    noise: Floats = (noisy - truth).astype(np.float32)
    error: Floats = made - truth
    detail = truth - _blurred(truth)
    return Score(
        noisy_psnr_db=score_db(seen, truth),
        psnr_db=score_db(made, truth),
        ssim=ssim(made.astype(np.uint8), clean),
        noise_left=_projection(error, noise),
        detail_lost=-_projection(error, detail),
        sigma=float(noise.std()),
        estimated_sigma=estimate,
    )


def _projection(error: Floats, direction: Floats) -> float:
    length = float(np.vdot(direction, direction))
    return float(np.vdot(error, direction)) / length if length else 0.0


def _blurred(photo: Floats) -> Floats:
    """By [1 2 1]² / 16, repeated at the edges."""
    padded = np.pad(photo, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return ((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4).astype(np.float32)


def _float_noise(sigma: float) -> Callable[[Photo, np.random.Generator, int], Floats]:
    def add(clean: Photo, draw: np.random.Generator, _number: int) -> Floats:
        noisy: Floats = clean.astype(np.float32) + draw.normal(0, sigma, clean.shape).astype(np.float32)
        return noisy

    return add


def _file_noise(sigma: float) -> Callable[[Photo, np.random.Generator, int], Photo]:
    add = _float_noise(sigma)
    return lambda clean, draw, number: np.rint(add(clean, draw, number)).clip(0, PEAK).astype(np.uint8)


def _salt_and_pepper(clean: Photo, draw: np.random.Generator, _number: int) -> Photo:
    """A fifth of the pixels is black or white, all channels at once."""
    drawn = draw.random(clean.shape[:2])
    noisy = clean.copy()
    noisy[drawn < 0.1] = 255
    noisy[drawn > 0.9] = 0
    return noisy


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera as physics sees it: light is counted in electrons.

    Attributes:
        full_well: electrons that make white at ISO 100.
        read_electrons: standard deviation of the read noise.
        gains: white balance of red and blue.
        max_iso: no photo is taken above it.
        mosaic: colours of the sensor's pixels from the top left: two in the first row, two in the second.
        is_edge_aware: OpenCV's edge-aware demosaicing; or else its variable number of gradients (VNG, 8 bit).
        contrast: exponent of the tone curve's slope in the mid-tones; 0 is none.
        sharpening: amount of an unsharp mask of one pixel.
        sampling: factors of the JPEG's components, as OpenCV writes them: 0x111111 is 4:4:4, 0x221111 is 4:2:0.
    """

    full_well: float
    read_electrons: float
    gains: tuple[float, float]
    max_iso: int
    mosaic: str
    is_edge_aware: bool
    contrast: float
    sharpening: float
    sampling: int


# Orders of magnitude of published sensor measurements (photonstophotos.net): full frame, APS-C, Micro Four Thirds, a
# compact of 2006 and a phone. Columns: full well, read noise, gains, max ISO, mosaic, edge-aware, contrast, sharpening,
# JPEG.
CAMERAS = (
    Camera(80_000, 3.5, (2.1, 1.6), 12800, "RGGB", True, 0.3, 0.0, 0x211111),
    Camera(30_000, 3.0, (2.3, 1.5), 12800, "GBRG", True, 0.0, 0.5, 0x111111),
    Camera(25_000, 2.5, (1.8, 1.9), 12800, "GRBG", False, 0.5, 0.3, 0x221111),
    Camera(8_000, 8.0, (2.0, 2.0), 1600, "BGGR", True, 0.2, 0.8, 0x221111),
    Camera(6_000, 2.0, (1.9, 1.7), 3200, "RGGB", False, 0.4, 0.6, 0x221111),
)


def camera_of(number: int) -> tuple[Camera, int]:
    """The camera and the ISO of a photo by its number: five in a row have all of both, and 25 all pairs."""
    camera = CAMERAS[number % len(CAMERAS)]
    iso = PHOTO_ISOS[(number // len(CAMERAS) - number - 1) % len(PHOTO_ISOS)]  # of the first five none is capped
    return camera, min(camera.max_iso, iso)


def photograph(clean: Photo, draw: np.random.Generator, number: int) -> Photo:
    """The photo with the noise of the camera of this number, at the ISO of this number, opened again from its JPEG."""
    camera, iso = camera_of(number)
    electrons_at_white = camera.full_well * 100 / iso
    gains = np.array([camera.gains[0], 1.0, camera.gains[1]], np.float32)

    raw = _to_linear(_uncurved(clean.astype(np.float32) / PEAK, camera.contrast)) / gains
    counted = draw.poisson(raw * electrons_at_white) + draw.normal(0, camera.read_electrons, raw.shape)

    def develop(sensed: NDArray[Any]) -> Floats:
        linear = demosaic(sensed, camera.mosaic, is_edge_aware=camera.is_edge_aware) * gains
        return _curved(_to_display(linear.clip(0, 1)), camera.contrast) * PEAK

    # The noise alone: what demosaicing makes of the detail of photos as sharp as these is no noise.
    added = develop(counted / electrons_at_white) - develop(raw)
    developed = clean + added + camera.sharpening * (added - _blurred(added))
    return _through_jpeg(np.rint(developed).clip(0, PEAK).astype(np.uint8), camera.sampling)


def _through_jpeg(photo: Photo, sampling: int) -> Photo:
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, file = cv2.imencode(".jpg", photo[..., ::-1], options)
    opened = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(opened[..., ::-1])


def demosaic(linear: NDArray[Any], mosaic: str, *, is_edge_aware: bool) -> Floats:
    """An (H, W, 3) picture in [-1/15, 1] behind a mosaic of `Camera`, interpolated again by OpenCV.

    In 16 bits (edge-aware) or 8 (VNG, of the square root, to keep the shadows).
    """
    import cv2

    sensed = np.empty(linear.shape[:2])
    for place, colour in enumerate(mosaic):
        rows, columns = slice(place // 2, None, 2), slice(place % 2, None, 2)
        sensed[rows, columns] = linear[rows, columns, "RGB".index(colour)]
    # Black lies at 1/16 of the range, as in real raws, so that noise around black survives.
    shifted = sensed.clip(-1 / 15, 1) * 15 / 16 + 1 / 16
    if is_edge_aware:
        conversion = getattr(cv2, f"COLOR_Bayer{mosaic}2RGB_EA")
        rgb = cv2.cvtColor(np.rint(shifted * 65535).astype(np.uint16), conversion) / 65535
    else:
        conversion = getattr(cv2, f"COLOR_Bayer{mosaic}2RGB_VNG")
        rgb = (cv2.cvtColor(np.rint(np.sqrt(shifted) * 255).astype(np.uint8), conversion) / 255) ** 2
    return ((rgb - 1 / 16) * 16 / 15).astype(np.float32)


def _to_linear(srgb: Floats) -> Floats:
    """IEC 61966-2-1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _to_display(linear: Floats) -> Floats:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


def _curved(photo: Floats, contrast: float) -> Floats:
    """A curve through (0, 0), (1/2, 1/2) and (1, 1) that is steeper by `contrast` in the middle."""
    curved: Floats = photo - contrast / (2 * math.pi) * np.sin(2 * math.pi * photo)
    return curved


def _uncurved(photo: Floats, contrast: float) -> Floats:
    grid = np.linspace(0, 1, 4097, dtype=np.float32)
    return np.interp(photo, _curved(grid, contrast), grid).astype(np.float32)
