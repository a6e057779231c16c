"""What every container format shares: the header of a photo and its pixels."""

import logging
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.haar import BLOCK_PX
from pipeline.ifd import Data, Shot

Samples = NDArray[np.unsignedinteger[Any]]  # uint8 or uint16: NumPy's type parameter for the width has no union

# imagecodecs logs what libpng remarks on damaged files. Those end with a reason of our own, or decode all the same.
logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)

SIGNED = "the photo carries Content Credentials, which a change of its pixels would break"
# How XMP says where they are, when they are not in the file itself (C2PA 2.1, 11.5): Photoshop may publish them so.
SIGNED_ELSEWHERE = re.compile(rb"dcterms:provenance[^<]{1,64}?https?://")
NO_ROOM = "other data lie behind the photo, and the denoised picture has no room before them"
PADDING = b"\x00\xff \r\n\x1a"
LOOK_BYTES = 1 << 20  # at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known about a photo before any pixel is decoded.

    Attributes:
        format: "jpeg", "png", "tiff", "webp"; else another lower-case name such as "gif" or "heif"; "" when the content
            is no known image format.
        mode: "1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "F" …: what the samples mean, whatever their bit depth.
        shot: what EXIF tells.
        untouched_reason: None when the photo can be denoised faithfully; else why it is copied as it is.
    """

    format: str
    width_px: int | None = None
    height_px: int | None = None
    mode: str | None = None
    bit_depth: int | None = None
    shot: Shot = field(default_factory=Shot)
    untouched_reason: str | None = None

    @property
    def orientation(self) -> int:
        """The EXIF value, 1 to 8; 1 when absent or invalid."""
        return self.shot.orientation

    @property
    def decoded_bytes(self) -> int:
        """What all its samples take in memory, 0 where their number is not known."""
        return self.pixels * len(self.mode or "") * max(1, (self.bit_depth or 0) // 8)

    @property
    def pixels(self) -> int:
        """Width times height, 0 where they are not known."""
        return (self.width_px or 0) * (self.height_px or 0)


@dataclass(frozen=True, slots=True)
class Pixels:
    """The samples of a photo, as stored: the EXIF orientation is not applied.

    Attributes:
        colour: (H, W, 3) or (H, W), uint8 or uint16.
        alpha: (H, W) of the same dtype, or None. It is carried over bit by bit.
        hides: whether it is transparency, and no mask of its own, as TIFF may have.
    """

    colour: Samples
    alpha: Samples | None = None
    hides: bool = True

    @classmethod
    def split(cls, samples: Samples, *, hides: bool = True) -> "Pixels":
        """Take (H, W), or (H, W, C) with C of 1 to 4, apart into views of colour and alpha."""
        if samples.ndim == 2:
            return cls(samples)
        channels = samples.shape[2]
        colour = samples[..., 0] if channels <= 2 else samples[..., :3]
        return cls(colour, samples[..., -1] if channels in (2, 4) else None, hides)

    @property
    def seen(self) -> Samples:
        """The colour, black in blocks of which alpha hides any: programs put there what they like, and nobody sees it.

        A block is seen whole or not at all: black pixels among others would pass for noise.
        """
        if self.alpha is None or not self.hides or self.alpha.all():
            return self.colour
        height_px, width_px = self.alpha.shape
        hidden = np.pad(self.alpha == 0, ((0, -height_px % BLOCK_PX), (0, -width_px % BLOCK_PX)))
        is_seen = ~hidden.reshape(-1, BLOCK_PX, hidden.shape[1] // BLOCK_PX, BLOCK_PX).any(axis=(1, 3))
        is_seen = is_seen.repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1)[:height_px, :width_px]
        return self.colour * (is_seen if self.colour.ndim == 2 else is_seen[..., None])

    def joined(self) -> Samples:
        """Colour and alpha as one contiguous array: (H, W) or (H, W, C) with C of 2 to 4."""
        joined = self.colour if self.alpha is None else np.dstack((self.colour, self.alpha))
        return np.ascontiguousarray(joined)


def is_trailed(data: Data, end: int) -> bool:
    """Whether more than padding lies behind the end of what is known of a file."""
    return any(data[start : start + LOOK_BYTES].strip(PADDING) for start in range(end, len(data), LOOK_BYTES))
