"""Bytes <-> pixels, and everything that must survive between them.

JPEG, PNG, TIFF and WebP are denoised. `inspect` tells what a file is and, if it is not denoised, why. `encode` puts new
pixels into the source's own container, so that its settings and metadata survive: each format's module says how.
"""

import errno
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline import jpeg, png, tiff, webp
from pipeline.container import Header, Pixels, Samples
from pipeline.errors import CodecFault, PhotoRejected
from pipeline.ifd import Data

__all__ = [
    "Header",
    "Limits",
    "Pixels",
    "Small",
    "can_be_a_file",
    "can_shrink",
    "codec_faults",
    "decode",
    "encode",
    "inspect",
    "promised_format",
    "shrink",
    "upright",
]


class Container(Protocol):
    """What the module of each format offers; only `images` calls it."""

    def inspect(self, data: Any) -> Header: ...  # Any: bytes, or of TIFF also `FileBytes`
    def decode(self, data: bytes) -> Pixels: ...
    def encode(self, pixels: Pixels, data: bytes) -> bytes: ...


OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE}
CONTAINERS: dict[str, Container] = {"jpeg": jpeg, "png": png, "tiff": tiff, "webp": webp}
EXTENSIONS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "tif": "tiff", "tiff": "tiff", "webp": "webp"}
DISPLAY_NAMES = {
    "": "not an image",
    "webp": "WebP",
    "heif": "HEIC",
    "jls": "JPEG-LS",
    "jp2": "JPEG 2000",
    "jxl": "JPEG XL",
    "jxr": "JPEG XR",
    "psd": "Photoshop",
    "exr": "OpenEXR",
    "raw": "camera raw",
}
SIGNATURES = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"8BPS": "psd",
    b"\xff\x0a": "jxl",
    b"\0\0\0\x0cJXL \r\n\x87\n": "jxl",
    b"\xff\x4f\xff\x51": "jp2",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jp2",
    b"II\xbc": "jxr",
    b"v/1\x01": "exr",
    b"FUJIFILMCCD-RAW": "raw",
    b"II\x1a\0\0\0HEAPCCDR": "raw",
    b"IIU\0": "raw",
    b"IIRO": "raw",
    b"IIRS": "raw",
    b"MMOR": "raw",
    b"\0MRM": "raw",
    b"FOVb": "raw",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
}
BRANDS = {
    b"avif": "avif",
    b"avis": "avif",
    b"heic": "heif",
    b"heix": "heif",
    b"hevc": "heif",
    b"mif1": "heif",
    b"msf1": "heif",
    b"crx ": "raw",
}
# Its frame comes first, or behind a SPIFF header and the end of its directory.
JPEG_LS = re.compile(rb"\xff\xd8(?:\xff\xe8\x00\x20SPIFF\x00.{24}\xff\xe8\x00\x08.{6})?\xff\xf7", re.DOTALL)
BMP_HEADER_SIZES = {12, 40, 52, 56, 64, 108, 124}
# Camera raws are TIFF files to the eye: the name is the only sure sign of some.
RAW_EXTENSIONS = {
    "3fr", "ari", "arw", "bay", "cap", "cr2", "cr3", "crw", "dcr", "dcs", "dng", "drf", "eip", "erf", "fff", "gpr",
    "iiq", "k25", "kdc", "mdc", "mef", "mos", "mrw", "nef", "nrw", "orf", "pef", "ptx", "pxn", "raf", "raw", "rw2",
    "rwl", "sr2", "srf", "srw", "x3f"
}  # fmt: skip
# Decoded by what their headers say of mode and depth, whatever it is that cannot be written back.
VIEWABLE = {"jpeg", "png"}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ROUNDED_ROWS = 16
SMALL_PNG_LEVEL = 3  # 91 ms a megapixel, and files 3 % larger than in 292
MOST_BYTES_PER_PX = 8  # four channels of 16 bits
MAX_PROFILE_BYTES = 1 << 20
HEAD_BYTES = 64  # which tell the format
MAX_SIDE_PX, MAX_BIT_DEPTH = 2**31 - 1, 64  # what the index can hold, and what any real photo has
APPLE_DOUBLE = b"\0\x05\x16\x07"  # what macOS keeps beside IMG.jpg as ._IMG.jpg
Image.MAX_IMAGE_PIXELS = None  # `Limits` decide what is too large, and Pillow decodes none of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a photo may be. Checked before any pixel is decoded."""

    max_megapixels: float = 400.0
    max_bytes: int = 2 * 1024**3

    def __post_init__(self) -> None:
        if not self.max_megapixels > 0 or self.max_bytes <= 0:
            raise ValueError(f"limits must be positive: {self.max_megapixels} megapixels, {self.max_bytes} bytes")

    @classmethod
    def of_megapixels(cls, most: float) -> "Limits":
        """Photos of so many megapixels, whatever their depth, and all files that the default allows.

        Raises:
            ValueError: that is no finite number above 0.
        """
        if not 0 < most < math.inf:
            raise ValueError(f"max_megapixels is {most}: expected a finite number above 0")
        return cls(max_megapixels=most, max_bytes=max(cls().max_bytes, int(most * 1e6 * MOST_BYTES_PER_PX)))


DEFAULT_LIMITS = Limits()
NO_LIMITS = Limits(max_megapixels=1e9, max_bytes=2**62)


def can_be_a_file(head: bytes) -> bool:
    """Whether `inspect` takes the file that starts so as `FileBytes`, which memory need not hold.

    It does a TIFF, and what is not denoised for what it is.
    """
    return _sniff(head) not in CONTAINERS.keys() - {"tiff"}


@contextmanager
def codec_faults() -> Iterator[None]:
    """What a codec raises inside is a `CodecFault`, unless it says something of the photo, or blames no photo."""
    try:
        yield
    except (PhotoRejected, MemoryError, FloatingPointError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise
        raise CodecFault(f"it could not be processed: {type(error).__name__}: {error}") from error


def inspect(data: Data, *, name: str = "", limits: Limits = DEFAULT_LIMITS) -> Header:
    """Tell what a file is, without decoding it.

    Args:
        data: the file, in memory unless `can_be_a_file`.
        name: the object's key. An extension that promises a format which the content is not gives a rejection.

    Raises:
        PhotoRejected: the file is empty, mislabelled, cut off, corrupt or larger than `limits`; here and in all that
            follows, it is a `CodecFault` where a codec raised anything else.
    """
    if not data:
        raise PhotoRejected("the file is empty")
    base = name.rpartition("/")[2]
    extension = _extension(name)
    head = data[:HEAD_BYTES]
    if base.startswith("._") and head.startswith(APPLE_DOUBLE):
        return Header(format="", untouched_reason="not a photo")
    content = _sniff(head)
    expected = promised_format(name) or content
    if content != expected:
        raise PhotoRejected(f"the name says {_display(expected)}, but the content is {_display(content)}")
    if extension in RAW_EXTENSIONS and content in {"tiff", "raw"}:
        return Header(format=extension, untouched_reason="camera raw is not denoised")
    if content not in CONTAINERS:
        reason = f"{_display(content)} is not denoised" if content else "not a photo"
        width_px, height_px = _plain_size(head, content)
        return Header(format=content, width_px=width_px, height_px=height_px, untouched_reason=reason)
    if len(data) > limits.max_bytes:
        raise PhotoRejected(f"the file has {len(data) / 1e6:,.1f} MB, the limit is {limits.max_bytes / 1e6:,.1f} MB")
    with codec_faults():
        header = CONTAINERS[content].inspect(data)
    _check_size(header, limits)
    return header


def decode(data: bytes, header: Header) -> Pixels:
    """Decode a photo that `inspect` found fit to be denoised.

    Raises:
        PhotoRejected: the picture is damaged or incomplete.
        ValueError: the header says that the photo is to be left untouched.
    """
    container = _container(header)
    with codec_faults():
        return container.decode(data)


def encode(pixels: Pixels, data: bytes, header: Header) -> bytes:
    """Put `pixels` into the place of those in `data`: the same format, settings and metadata. Equal input, equal bytes.

    Args:
        pixels: as `decode` returned them, with another colour; the alpha must be the source's.
        data: the bytes of the source, to which `header` belongs.

    Raises:
        PhotoRejected: the source's format cannot hold the new pixels (no photo is known for which that happens).
        ValueError: the pixels are not of the source's size, depth or channels.
    """
    container = _container(header)
    channels = 3 if header.mode in {"RGB", "RGBA"} else 1
    size = (header.height_px, header.width_px)
    shape = size if channels == 1 else (*size, channels)
    has_alpha = header.mode in {"LA", "RGBA"}
    if pixels.colour.shape != shape or pixels.colour.dtype != f"uint{header.bit_depth}":
        found = f"{pixels.colour.shape} of {pixels.colour.dtype}"
        raise ValueError(f"the photo needs colour of shape {shape} and {header.bit_depth} bits, not {found}")
    if has_alpha != (pixels.alpha is not None):
        raise ValueError(f"a photo of mode {header.mode} {'needs an' if has_alpha else 'has no'} alpha channel")
    if pixels.alpha is not None and (pixels.alpha.shape != size or pixels.alpha.dtype != pixels.colour.dtype):
        raise ValueError(f"the photo needs alpha of shape {size}, not {pixels.alpha.shape} of {pixels.alpha.dtype}")
    with codec_faults():
        return container.encode(pixels, data)


@dataclass(frozen=True, slots=True)
class Small:
    """A smaller copy of a photo: an 8-bit PNG."""

    data: bytes
    width_px: int
    height_px: int


def can_shrink(header: Header) -> bool:
    """Whether `shrink` understands the colours of a photo; it need not be one that can be denoised."""
    if header.untouched_reason is not None and header.format not in VIEWABLE:
        return False
    return header.mode in {"L", "LA", "RGB", "RGBA"} and header.bit_depth in {8, 16}


def shrink(data: bytes, header: Header, *, side_px: int) -> Small:
    """A copy whose shorter side has `side_px` pixels, or of the photo's size where that is smaller already.

    Upright, 8-bit, RGB or gray, as PNG with the photo's colour profile, and with whatever else tells the colours of a
    PNG. 16 bits are rounded to 8, alpha is left out, and so is all other metadata. Lanczos, whose support grows with
    the reduction: what is too fine for the copy is averaged.

    Raises:
        PhotoRejected: the picture is damaged or incomplete.
        ValueError: `can_shrink` says no.
    """
    photo = upright(data, header)
    scale = min(1.0, side_px / min(photo.size))
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    profile = photo.info["icc_profile"]
    buffer = io.BytesIO()
    with codec_faults():
        if size != photo.size:
            photo = photo.resize(size, Image.Resampling.LANCZOS)
        told = PngInfo()
        for kind, payload in png.colour_chunks(data) if header.format == "png" else ():
            told.add(kind, payload)
        photo.save(buffer, "PNG", compress_level=SMALL_PNG_LEVEL, icc_profile=profile, pnginfo=told)
    return Small(buffer.getvalue(), *size)


def upright(data: bytes, header: Header) -> Image.Image:
    """A photo as a person looks at it, RGB or gray in 8 bits; its `info` holds the colour profile, or None.

    Raises:
        PhotoRejected: the picture is damaged or incomplete.
        ValueError: `can_shrink` says no.
    """
    if not can_shrink(header):
        raise ValueError(f"a {_display(header.format)} of mode {header.mode} and {header.bit_depth} bits is not shown")
    with codec_faults():
        colour = CONTAINERS[header.format].decode(data).colour
    photo = Image.fromarray(np.ascontiguousarray(colour) if colour.dtype == np.uint8 else _rounded(colour))
    profile = _colour_profile(data, header)
    if header.orientation in UPRIGHT:
        photo = photo.transpose(UPRIGHT[header.orientation])
    photo.info["icc_profile"] = profile
    return photo


def to_png(photo_HWC: NDArray[np.uint8]) -> bytes:
    """A PNG of its own, of an (H, W, 3) sRGB picture that no file held before."""
    buffer = io.BytesIO()
    Image.fromarray(photo_HWC).save(buffer, "PNG", compress_level=SMALL_PNG_LEVEL)
    return buffer.getvalue()


def promised_format(name: str) -> str | None:
    """The format that a file of this name must have to be denoised, or None where the name promises none."""
    return EXTENSIONS.get(_extension(name))


def _extension(name: str) -> str:
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base else ""


def _container(header: Header) -> Container:
    if header.untouched_reason is not None:
        raise ValueError(f"this photo is to be copied as it is: {header.untouched_reason}")
    return CONTAINERS[header.format]


def _sniff(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in BMP_HEADER_SIZES:
        return "bmp"
    if JPEG_LS.match(data):
        return "jls"
    if data[:4] == b"II*\0" and data[8:10] == b"CR":
        return "raw"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(64, int.from_bytes(data[:4], "big"))]
        return next((name for brand, name in BRANDS.items() if brand in brands), "")
    return next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), "")


def _plain_size(data: bytes, content: str) -> tuple[int | None, int | None]:
    """Width and height of those formats that are not denoised and say so at a fixed place."""
    start, size_bytes = {"gif": (6, 2), "bmp": (18, 2 if data[14:15] == b"\x0c" else 4)}.get(content, (0, 0))
    ends = start + size_bytes, start + 2 * size_bytes
    if not start or len(data) < ends[1]:
        return None, None
    width_px = int.from_bytes(data[start : ends[0]], "little")
    height_px = int.from_bytes(data[ends[0] : ends[1]], "little")
    if content == "bmp" and height_px > MAX_SIDE_PX:  # negative: the rows go from top to bottom
        height_px = 2**32 - height_px
    return (width_px, height_px) if max(width_px, height_px) <= MAX_SIDE_PX else (None, None)


def _rounded(colour: Samples) -> NDArray[np.uint8]:
    """16 bits as 8; some rows at a time, because on the way a sample takes 32."""
    rounded = np.empty(colour.shape, np.uint8)
    for top in range(0, len(colour), ROUNDED_ROWS):
        rows = colour[top : top + ROUNDED_ROWS]
        rounded[top : top + ROUNDED_ROWS] = (rows.astype(np.uint32) + 128) // 257
    return rounded


def _display(name: str) -> str:
    return DISPLAY_NAMES.get(name, name.upper())


def _colour_profile(data: bytes, header: Header) -> bytes | None:
    """The ICC profile of a photo, where it has one for its kind of colour."""
    profile: object
    try:
        if header.format == "tiff":  # of which Pillow opens fewer kinds
            profile = tiff.colour_profile(data)
        elif header.format == "png":  # which Pillow does not open for what is wrong with any other chunk
            profile = png.colour_profile(data, most_bytes=MAX_PROFILE_BYTES)
        else:
            profile = Image.open(io.BytesIO(data)).info.get("icc_profile")
    except Exception:  # noqa: BLE001  # Pillow need not understand what our own modules do
        return None
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
        return None
    return profile if profile[16:20] == (b"GRAY" if header.mode in {"L", "LA"} else b"RGB ") else None


def _check_size(header: Header, limits: Limits) -> None:
    if not header.width_px or not header.height_px:
        raise PhotoRejected(f"the photo has no pixels: {header.width_px} × {header.height_px}")
    if max(header.width_px, header.height_px) > MAX_SIDE_PX or (header.bit_depth or 0) > MAX_BIT_DEPTH:
        claim = f"{header.width_px} × {header.height_px} pixels of {header.bit_depth} bits"
        raise PhotoRejected(f"the photo is corrupt: it claims to have {claim}")
    megapixels = header.width_px * header.height_px / 1e6
    if header.untouched_reason is None and megapixels > limits.max_megapixels:
        raise PhotoRejected(f"the photo has {megapixels:,.1f} megapixels, the limit is {limits.max_megapixels:,.1f}")
