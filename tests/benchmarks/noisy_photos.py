"""Photos for benchmarks: clean ones of a folder, at the size that is asked for, with noise of their own each."""

import io
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZES_PX = {"png": (512, 512), "jpeg": (4000, 3000)}  # width, height


def write_noisy(clean: Path, folder: Path, kind: str, count: int, *, sigma: float = 25.0) -> dict[str, Path]:
    """Write `count` noisy photos: 8-bit PNGs of 512², or JPEGs of 12 megapixels. Returns of which clean one each is.

    Args:
        clean: a folder of photos; they are scaled, and taken again where they are too few.
        folder: where to write; it is made.
        kind: "png" or "jpeg".
        count: how many.
        sigma: of the white noise, in 8-bit levels.
    """
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    size = SIZES_PX[kind]
    origins = {}
    for number, path in enumerate(islice(cycle(sorted(clean.iterdir())), count)):
        name = f"{number:05}-{path.stem}.{kind}"
        photo = scaled(path, size)
        noise = draw.standard_normal(photo.shape, np.float32) * np.float32(sigma)
        noisy = (photo + noise).round().clip(0, 255).astype(np.uint8)
        (folder / name).write_bytes(saved(noisy, kind))
        origins[name] = path
    return origins


def scaled(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def saved(photo: NDArray[np.uint8], kind: str) -> bytes:
    buffer = io.BytesIO()
    options = {"compress_level": 1} if kind == "png" else {"quality": 92}
    Image.fromarray(photo).save(buffer, kind, **options)
    return buffer.getvalue()
