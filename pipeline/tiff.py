"""TIFF: find the strips or tiles of the photo and rewrite them where they lie: all other bytes stay as they are.

A preview or thumbnail in a further directory (marked as a reduced-resolution image) is left as it is, like the
thumbnail in a JPEG's EXIF data.
"""

import io
import math
import re
from collections.abc import Iterator

import numpy as np

from pipeline.container import LOOK_BYTES, SIGNED, SIGNED_ELSEWHERE, Header, Pixels
from pipeline.errors import PhotoRejected
from pipeline.ifd import CORRUPT, UNSIGNED, Data, Directory, File, find_shot, open_file, read_directory
from pipeline.tiff_layout import (
    BITS,
    BLACK_IS_ZERO,
    CMYK,
    COMPRESSION,
    DEFLATE,
    FILL_ORDER,
    HEIGHT,
    HORIZONTAL,
    JPEG,
    LAYOUT_TAGS,
    LINEAR_RAW,
    LZMA,
    LZW,
    NONE,
    OLD_DEFLATE,
    PACKBITS,
    PALETTE,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    RGB,
    SAMPLE_FORMAT,
    SAMPLES,
    SENSOR_MOSAIC,
    STRIP_OFFSETS,
    SUBFILE_TYPE,
    TILE_OFFSETS,
    WHITE_IS_ZERO,
    WIDTH,
    ZSTD,
    Layout,
    check_segments_lie_inside,
    layout_of,
    overlaps,
    read_directories,
    read_layout,
)
from pipeline.tiff_segments import check_claim, decode_into, to_pixels, to_samples, write_places, write_segment

DESCRIPTION, DEPTH, METAMORPH_PLANES = 270, 32997, 33629
XMP, ICC_PROFILE, PHOTOSHOP_LAYERS, GDAL_NODATA = 700, 34675, 37724, 42113
DNG_VERSION, CONTENT_CREDENTIALS = 50706, 52545

REDUCED, MASK = 1, 4  # bits of SUBFILE_TYPE
MODES = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "YCbCr", 8: "LAB", 9: "LAB", 10: "LAB"}
WRITABLE = {NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD}
# How the descriptions of ImageJ and of tifffile begin, with how many planes there are, and of which shape together.
IMAGEJ = re.compile(rb"ImageJ=.*?\nimages=(\d{1,9})", re.DOTALL)
TRUNCATED_SERIES = re.compile(rb'\{"shape": \[([\d, ]{1,99})\].*"truncated": true')
MAX_DESCRIPTION_BYTES = 4096
OVERLAP_BYTES = 128
LAYER_KEYS = (b"Layr", b"Lr16", b"Lr32", b"ryaL", b"61rL", b"23rL")


def inspect(data: Data) -> Header:
    """Read the header.

    Raises:
        PhotoRejected: the TIFF is cut off or corrupt.
    """
    file = open_file(data)
    pages, others = read_directories(file)
    photo = pages[0]
    if any(entry.kind not in UNSIGNED for tag, entry in photo.entries.items() if tag in LAYOUT_TAGS):
        raise PhotoRejected(CORRUPT)  # or a default would stand for what it says
    width_px, height_px = file.value(photo, WIDTH, 0), file.value(photo, HEIGHT, 0)
    samples = file.value(photo, SAMPLES, 1)
    bit_depth = file.value(photo, BITS, 1)
    reason = _untouched_reason(file, pages, others)
    if reason is None and width_px and height_px:
        layout = layout_of(file, photo)
        if overlaps(layout, [*pages, *others]):
            reason = "TIFF whose parts overlap cannot be written back"
        elif _is_of_reversed_lzw(layout):
            reason = "TIFF of the old kind of LZW cannot be written back"
    else:
        check_segments_lie_inside(file, photo)
    return Header(
        format=_format(file, [*pages, *others]),
        width_px=width_px,
        height_px=height_px,
        mode=_mode(file, photo, samples, bit_depth),
        bit_depth=bit_depth,
        shot=find_shot(file, photo),
        untouched_reason=reason,
    )


def decode(data: bytes) -> Pixels:
    """Decode the strips or tiles of the photo.

    Raises:
        PhotoRejected: one of them cannot be decoded.
    """
    layout = read_layout(data)
    check_claim(layout)
    samples = np.empty((layout.height_px, layout.width_px, layout.samples), layout.dtype.newbyteorder("="))
    for segment in layout.segments:
        decode_into(samples, layout, segment)
    return to_pixels(samples, layout)


def encode(pixels: Pixels, data: bytes) -> bytes:
    """Write `pixels` over the strips or tiles of the TIFF `data`, with its compression and predictor.

    What no longer fits into its old place goes to the end of the file. All other bytes stay, but for the offsets and
    sizes of the strips or tiles.

    Raises:
        PhotoRejected: the file would outgrow the offsets of its kind of TIFF.
        PhotoKept: something else lies at the end, which may be found by that, as an archive is.
    """
    layout = read_layout(data)
    samples = to_samples(pixels, layout)
    out = io.BytesIO(data)
    write_places(out, layout, [write_segment(out, layout, segment, samples) for segment in layout.segments])
    return out.getvalue()


def colour_profile(data: Data) -> bytes:
    """The ICC profile of the photo; empty where it has none, or not all of it."""
    file = open_file(data)
    entry = read_directory(file, file.first_offset).entries.get(ICC_PROFILE)
    return b"" if entry is None or entry.end > len(data) else data[entry.offset : entry.end]


def _untouched_reason(file: File, pages: list[Directory], others: list[Directory]) -> str | None:
    photo, *further = pages
    value = file.value
    photometric = value(photo, PHOTOMETRIC, -1)
    samples = value(photo, SAMPLES, 1)
    extra = samples - (3 if photometric == RGB else 1)
    bits = set(file.values(photo, BITS, 1))
    sub_images = [directory for directory in others if WIDTH in directory.entries]
    is_raw = _format(file, [*pages, *others]) != "tiff"
    reasons = (
        (is_raw, "camera raw is not denoised"),
        (value(photo, SUBFILE_TYPE, 0) & REDUCED, "TIFF that begins with a preview is not denoised"),
        (
            any(not value(page, SUBFILE_TYPE, 0) & (REDUCED | MASK) for page in further) or _is_stack(file, photo),
            "TIFF of several pages is not denoised",
        ),
        (
            any(not value(sub, SUBFILE_TYPE, 0) & (REDUCED | MASK) for sub in sub_images),
            "TIFF of several pictures is not denoised",
        ),
        (photometric == PALETTE, "a palette is not denoised"),
        (photometric == CMYK, "CMYK is not denoised"),
        (photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB), "TIFF in this colour space is not denoised"),
        (set(file.values(photo, SAMPLE_FORMAT, 1)) != {1}, "TIFF of floating point or signed numbers is not denoised"),
        (max(bits) < 8, f"a {max(bits)}-bit picture is not denoised"),
        (len(bits) > 1 or not bits <= {8, 16}, f"{max(bits)}-bit TIFF is not denoised"),
        (extra < 0 or extra > 1, "TIFF with further channels is not denoised"),
        (value(photo, COMPRESSION, 1) == JPEG, "TIFF with JPEG inside cannot be written back"),
        (value(photo, COMPRESSION, 1) not in WRITABLE, "TIFF of this compression cannot be written back"),
        (value(photo, PREDICTOR, 1) not in (1, HORIZONTAL), "TIFF of this predictor cannot be written back"),
        (
            value(photo, COMPRESSION, 1) in (NONE, PACKBITS) and value(photo, PREDICTOR, 1) != 1,
            "TIFF with a predictor and PackBits or nothing is not denoised: programs disagree on what it shows",
        ),
        (value(photo, PLANAR, 1) not in (1, 2), "TIFF of this planar configuration cannot be written back"),
        (value(photo, FILL_ORDER, 1) != 1, "TIFF of reversed bits cannot be written back"),
        (_has_layers(file, photo), "TIFF with Photoshop layers is not denoised: its layers would not match"),
        (GDAL_NODATA in photo.entries, "GeoTIFF whose missing pixels have a value of their own is not denoised"),
        (
            any(0 in file.values(photo, tag) for tag in (STRIP_OFFSETS, TILE_OFFSETS)),
            "TIFF that leaves out empty strips or tiles cannot be written back",
        ),
        (b"GDAL_STRUCTURAL_METADATA" in file.data[:64], "cloud-optimised GeoTIFF cannot be written back"),
        (CONTENT_CREDENTIALS in photo.entries, SIGNED),
        (any(map(SIGNED_ELSEWHERE.search, _parts(file, photo, XMP))), SIGNED),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _is_stack(file: File, photo: Directory) -> bool:
    """Whether more planes than the photo share its directory."""
    entry = photo.entries.get(DESCRIPTION)
    text = file.data[entry.offset : min(entry.end, entry.offset + MAX_DESCRIPTION_BYTES)] if entry is not None else b""
    planes, series = IMAGEJ.match(text), TRUNCATED_SERIES.match(text)
    samples = math.prod(file.value(photo, tag, 1) for tag in (WIDTH, HEIGHT, SAMPLES))
    return (
        file.value(photo, DEPTH, 1) > 1
        or (METAMORPH_PLANES in photo.entries and photo.entries[METAMORPH_PLANES].count > 1)
        or (planes is not None and int(planes[1]) > 1)
        or (series is not None and math.prod(map(int, re.findall(rb"\d+", series[1]))) > samples)
    )


def _has_layers(file: File, photo: Directory) -> bool:
    return any(key in part for part in _parts(file, photo, PHOTOSHOP_LAYERS) for key in LAYER_KEYS)


def _parts(file: File, photo: Directory, tag: int) -> Iterator[bytes]:
    """What a tag holds, which may be gigabytes, in parts that overlap: what is looked for may be cut apart."""
    if (entry := photo.entries.get(tag)) is not None:
        end = min(entry.end, len(file.data))
        for start in range(entry.offset, end, LOOK_BYTES - OVERLAP_BYTES):
            yield file.data[start : min(end, start + LOOK_BYTES)]


def _format(file: File, directories: list[Directory]) -> str:
    if any(DNG_VERSION in directory.entries for directory in directories):
        return "dng"
    photometrics = {file.value(directory, PHOTOMETRIC, -1) for directory in directories}
    return "raw" if photometrics & {SENSOR_MOSAIC, LINEAR_RAW} else "tiff"


def _mode(file: File, photo: Directory, samples: int, bit_depth: int) -> str | None:
    mode = MODES.get(file.value(photo, PHOTOMETRIC, -1))
    if mode == "L" and bit_depth == 1:
        return "1"
    if mode == "L" and file.value(photo, SAMPLE_FORMAT, 1) == 3:
        return "F"
    has_alpha = (mode == "L" and samples == 2) or (mode == "RGB" and samples == 4)
    return f"{mode}A" if has_alpha else mode


def _is_of_reversed_lzw(layout: Layout) -> bool:
    """Whether the codes start at the lowest bit, as before TIFF 6.0: the first one, 256, looks like this then."""
    starts = [layout.file.data[s.offset : s.offset + 2] for s in layout.segments]
    return layout.compression == LZW and any(len(start) == 2 and start[0] == 0 and start[1] & 1 for start in starts)
