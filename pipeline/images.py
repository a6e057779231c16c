"""Bytes <-> pixels, and everything that must survive between them.

JPEG, PNG, TIFF and WebP are denoised. `inspect` tells what a file is and, if it is not denoised, why. `encode` puts new
pixels into the source's own container, so that its settings and metadata survive: each format's module says how.
"""

from dataclasses import dataclass
from typing import Protocol

from pipeline import jpeg, png, tiff, webp
from pipeline.container import Header, Pixels
from pipeline.errors import PhotoRejected

__all__ = ["Header", "Limits", "Pixels", "decode", "encode", "inspect", "promised_format"]


class Container(Protocol):
    """What the module of each format offers; only `images` calls it."""

    def inspect(self, data: bytes) -> Header: ...
    def decode(self, data: bytes) -> Pixels: ...
    def encode(self, pixels: Pixels, data: bytes) -> bytes: ...


CONTAINERS: dict[str, Container] = {"jpeg": jpeg, "png": png, "tiff": tiff, "webp": webp}
EXTENSIONS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "tif": "tiff", "tiff": "tiff", "webp": "webp"}
DISPLAY_NAMES = {
    "": "not an image",
    "webp": "WebP",
    "heif": "HEIC",
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
BMP_HEADER_SIZES = {12, 40, 52, 56, 64, 108, 124}
# Camera raws are TIFF files to the eye: the name is the only sure sign of some.
RAW_EXTENSIONS = {
    "3fr", "ari", "arw", "bay", "cap", "cr2", "cr3", "crw", "dcr", "dcs", "dng", "drf", "eip", "erf", "fff", "gpr",
    "iiq", "k25", "kdc", "mdc", "mef", "mos", "mrw", "nef", "nrw", "orf", "pef", "ptx", "pxn", "raf", "raw", "rw2",
    "rwl", "sr2", "srf", "srw", "x3f"
}  # fmt: skip
APPLE_DOUBLE = b"\0\x05\x16\x07"  # what macOS keeps beside IMG.jpg as ._IMG.jpg


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a photo may be. Checked before any pixel is decoded."""

    max_megapixels: float = 400.0
    max_bytes: int = 2 * 1024**3

    def __post_init__(self) -> None:
        if self.max_megapixels <= 0 or self.max_bytes <= 0:
            raise ValueError(f"limits must be positive: {self.max_megapixels} megapixels, {self.max_bytes} bytes")


DEFAULT_LIMITS = Limits()


def inspect(data: bytes, *, name: str = "", limits: Limits = DEFAULT_LIMITS) -> Header:
    """Tell what a file is, without decoding it.

    Args:
        name: the object's key. An extension that promises a format which the content is not gives a rejection.

    Raises:
        PhotoRejected: the file is empty, mislabelled, cut off, corrupt or larger than `limits`.
    """
    if not data:
        raise PhotoRejected("the file is empty")
    base = name.rpartition("/")[2]
    extension = _extension(name)
    if base.startswith("._") and data.startswith(APPLE_DOUBLE):
        return Header(format="", untouched_reason="not a photo")
    content = _sniff(data)
    expected = promised_format(name) or content
    if content != expected:
        raise PhotoRejected(f"the name says {_display(expected)}, but the content is {_display(content)}")
    if extension in RAW_EXTENSIONS and content in {"tiff", "raw"}:
        return Header(format=extension, untouched_reason="camera raw is not denoised")
    if content not in CONTAINERS:
        reason = f"{_display(content)} is not denoised" if content else "not a photo"
        return Header(format=content, untouched_reason=reason)
    if len(data) > limits.max_bytes:
        raise PhotoRejected(f"the file has {len(data) / 1e6:,.1f} MB, the limit is {limits.max_bytes / 1e6:,.1f} MB")
    header = CONTAINERS[content].inspect(data)
    _check_size(header, limits)
    return header


def decode(data: bytes, header: Header) -> Pixels:
    """Decode a photo that `inspect` found fit to be denoised.

    Raises:
        PhotoRejected: the picture is damaged or incomplete.
        ValueError: the header says that the photo is to be left untouched.
    """
    return _container(header).decode(data)


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
    return container.encode(pixels, data)


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
    if data[:4] == b"II*\0" and data[8:10] == b"CR":
        return "raw"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(64, int.from_bytes(data[:4], "big"))]
        return next((name for brand, name in BRANDS.items() if brand in brands), "")
    return next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), "")


def _display(name: str) -> str:
    return DISPLAY_NAMES.get(name, name.upper())


def _check_size(header: Header, limits: Limits) -> None:
    if not header.width_px or not header.height_px:
        raise PhotoRejected(f"the photo has no pixels: {header.width_px} × {header.height_px}")
    megapixels = header.width_px * header.height_px / 1e6
    if header.untouched_reason is None and megapixels > limits.max_megapixels:
        raise PhotoRejected(f"the photo has {megapixels:,.1f} megapixels, the limit is {limits.max_megapixels:,.1f}")
