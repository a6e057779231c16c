"""Small real photos that the tests make themselves: smooth scenes with white noise, as bytes of each format."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 48


def scene(*, sigma: float = 20.0, side_px: int = SIDE_PX, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth colour gradient with white noise of `sigma` 8-bit levels: (side, side, 3)."""
    ramp = np.linspace(60, 190, side_px)
    clean = np.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, np.full((side_px, side_px), 120.0)], axis=-1)
    noise = np.random.default_rng(seed).normal(0, sigma, clean.shape)
    return np.clip(np.round(clean + noise), 0, 255).astype(np.uint8)


def saved(photo: Image.Image | NDArray[np.uint8], kind: str, **options: object) -> bytes:
    """The bytes of a photo in one of Pillow's formats: "JPEG", "PNG", "TIFF", "WEBP", "GIF"."""
    image = photo if isinstance(photo, Image.Image) else Image.fromarray(photo)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_archive(folder: Path) -> dict[str, str]:
    """A folder such as people have: good photos, others, and broken ones. Returns the outcome that each must have."""
    noisy = scene()
    deep = (noisy.astype(np.uint16) * 257).copy()
    jpeg = saved(noisy, "JPEG", quality=92)
    files = {
        "2019/Straße am Meer/IMG_0042.jpg": (jpeg, "denoised"),
        "2019/gray.jpeg": (saved(Image.fromarray(noisy).convert("L"), "JPEG", quality=92), "denoised"),
        "2020/scan.png": (saved(noisy, "PNG"), "denoised"),
        "2020/scan-16-bit.png": (imagecodecs.png_encode(deep), "denoised"),
        "2020/scan.tif": (saved(noisy, "TIFF", compression="tiff_lzw"), "denoised"),
        "web.webp": (saved(noisy, "WEBP", lossless=True), "denoised"),
        "palette.png": (saved(Image.fromarray(noisy).quantize(16), "PNG"), "untouched"),
        "print.jpg": (saved(Image.fromarray(noisy).convert("CMYK"), "JPEG"), "untouched"),
        "notes.txt": (b"a holiday by the sea", "untouched"),
        "empty.jpg": (b"", "rejected"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "rejected"),
        "mislabelled.jpg": (saved(noisy, "PNG"), "rejected"),
        "no-photo.png": (b"<html>not found</html>", "rejected"),
    }
    for name, (data, _) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {name: outcome for name, (_, outcome) in files.items()}
