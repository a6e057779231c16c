"""Classical denoisers to measure beside: a median filter, OpenCV's non-local means, and BM3D on a few photos.

They are told the true sigma of the noise where there is one, and an estimate elsewhere.
"""

import importlib.util
from collections.abc import Sequence

import numpy as np

from model.evaluate import Denoise, Floats, Photo, Told, Trial

BM3D_PHOTOS = 3  # it takes a minute and a half a megapixel, and is made for white noise: it is tried on that alone


def median(noisy: Floats | Photo, _told: Told) -> Photo:
    """3 × 3, a channel at a time."""
    import cv2

    return np.asarray(cv2.medianBlur(_as_file(noisy), 3))


def non_local_means(noisy: Floats | Photo, told: Told) -> Photo:
    """Buades et al. 2005, as OpenCV has it for colour, with its own windows of 7 and 21 pixels."""
    import cv2

    level = float(told.sigma)
    return np.asarray(cv2.fastNlMeansDenoisingColored(_as_file(noisy), None, level, level, 7, 21))


def bm3d(noisy: Floats | Photo, told: Told) -> Floats:
    """Dabov et al. 2007, for colour."""
    import bm3d

    return np.asarray(bm3d.bm3d_rgb(noisy.astype(np.float64), max(told.sigma, 0.5)), np.float32)


PEERS: dict[str, Denoise] = {"median": median, "nlm": non_local_means, "bm3d": bm3d}


def is_tried(name: str, trial: Trial, number: int) -> bool:
    """Whether the peer of this name, or any other denoiser, is given the photo of this number."""
    return name != "bm3d" or (trial.sigma is not None and number < BM3D_PHOTOS)


def check_libraries(peers: Sequence[str]) -> None:
    """Raises ValueError if a library that measuring needs, or one of these peers, is missing."""
    for library in ("cv2", "matplotlib", "skimage", *(["bm3d"] if "bm3d" in peers else [])):
        if importlib.util.find_spec(library) is None:
            extra = "peers" if library == "bm3d" else "evaluate"
            raise ValueError(f"{library} is missing: pip install 'degrain[{extra}]'")


def _as_file(noisy: Floats | Photo) -> Photo:
    return np.rint(noisy).clip(0, 255).astype(np.uint8)
