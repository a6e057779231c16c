"""TIFF: find the strips or tiles of the photo and rewrite them where they lie: all other bytes stay as they are.

A preview or thumbnail in a further directory (marked as a reduced-resolution image) is left as it is, like the
thumbnail in a JPEG's EXIF data.
"""

import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import imagecodecs
import numpy as np

from pipeline.container import LOOK_BYTES, NO_ROOM, SIGNED, SIGNED_ELSEWHERE, Header, Pixels, Samples, is_trailed
from pipeline.errors import PhotoKept, PhotoRejected
from pipeline.ifd import (
    CORRUPT,
    EXIF_IFD,
    MAX_VALUES,
    TRUNCATED,
    UNSIGNED,
    Data,
    Directory,
    File,
    find_shot,
    open_file,
    read_directory,
)

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
DESCRIPTION, DEPTH, METAMORPH_PLANES = 270, 32997, 33629
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_SIZES, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES, SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT = (
    *range(322, 326),
    330,
    338,
    339,
)
THUMBNAIL_OFFSET, THUMBNAIL_SIZE = 513, 514  # of a JPEG
DATA_TAGS = (STRIP_OFFSETS, STRIP_SIZES), (TILE_OFFSETS, TILE_SIZES), (THUMBNAIL_OFFSET, THUMBNAIL_SIZE)
LAYOUT_TAGS = {
    *(SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, ROWS_PER_STRIP, PLANAR),
    *(PREDICTOR, TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT, *DATA_TAGS[0], *DATA_TAGS[1]),
}
GPS_IFD, INTEROPERABILITY_IFD = 34853, 40965
POINTERS = SUB_IFDS, EXIF_IFD, GPS_IFD, INTEROPERABILITY_IFD  # to further directories
XMP, ICC_PROFILE, PHOTOSHOP_LAYERS, GDAL_NODATA = 700, 34675, 37724, 42113
DNG_VERSION, CONTENT_CREDENTIALS = 50706, 52545

REDUCED, MASK = 1, 4  # bits of SUBFILE_TYPE
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, SENSOR_MOSAIC, LINEAR_RAW = 0, 1, 2, 3, 5, 32803, 34892
MODES = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "YCbCr", 8: "LAB", 9: "LAB", 10: "LAB"}
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 7, 8, 32946, 32773, 34925, 50000
WRITABLE = {NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD}
HORIZONTAL = 2  # the predictor that stores differences between neighbours
UNSPECIFIED, ASSOCIATED_ALPHA = 0, 1  # of EXTRA_SAMPLES: a mask is unspecified, which shows and hides nothing
# How the descriptions of ImageJ and of tifffile begin, with how many planes there are, and of which shape together.
IMAGEJ = re.compile(rb"ImageJ=.*?\nimages=(\d{1,9})", re.DOTALL)
TRUNCATED_SERIES = re.compile(rb'\{"shape": \[([\d, ]{1,99})\].*"truncated": true')
MAX_DESCRIPTION_BYTES = 4096
OVERLAP_BYTES = 128
LAYER_KEYS = (b"Layr", b"Lr16", b"Lr32", b"ryaL", b"61rL", b"23rL")

LONG, LONG8 = 4, 16
# From fast to small: the next level is tried when the result does not fit into its old place. What fits saves nothing
# by being smaller, since the place stays.
DEFLATE_LEVELS = (1, 6, 9)
ZSTD_LEVELS = (1, 9)
# How far these can shrink a strip at best; the others have no bound.
MAX_RATIOS = {LZW: 2731, DEFLATE: 1032, OLD_DEFLATE: 1032, PACKBITS: 64}
MAX_TILE_PX = 1 << 24  # of a tile that is larger than its photo
MAX_DIRECTORIES = 64  # of one photo; more are hostile

UNDECODABLE = "the TIFF is damaged: its picture cannot be decoded"


@dataclass(frozen=True, slots=True)
class Segment:
    """One strip or tile: the samples that it holds, and its bytes in the file."""

    plane: int
    top: int
    left: int
    rows: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How the samples of the photo are laid out."""

    file: File
    directory: Directory
    width_px: int
    height_px: int
    samples: int
    dtype: np.dtype[np.unsignedinteger[Any]]  # in the file's byte order
    photometric: int
    compression: int
    predictor: int
    is_planar: bool
    alpha_kind: int
    segment_width_px: int
    segment_height_px: int
    offsets_tag: int
    sizes_tag: int
    segments: tuple[Segment, ...]
    is_trailed: bool = False  # by data to which nothing known points, or by what is said to be there and is not


def inspect(data: Data) -> Header:
    """Read the header.

    Raises:
        PhotoRejected: the TIFF is cut off or corrupt.
    """
    file = open_file(data)
    pages, others = _directories(file)
    photo = pages[0]
    if any(entry.kind not in UNSIGNED for tag, entry in photo.entries.items() if tag in LAYOUT_TAGS):
        raise PhotoRejected(CORRUPT)  # or a default would stand for what it says
    width_px, height_px = file.value(photo, WIDTH, 0), file.value(photo, HEIGHT, 0)
    samples = file.value(photo, SAMPLES, 1)
    bit_depth = file.value(photo, BITS, 1)
    reason = _untouched_reason(file, pages, others)
    if reason is None and width_px and height_px:
        layout = _layout(file, photo)
        if _overlap(layout, [*pages, *others]):
            reason = "TIFF whose parts overlap cannot be written back"
        elif _is_of_reversed_lzw(layout):
            reason = "TIFF of the old kind of LZW cannot be written back"
    else:
        _check_segments_lie_inside(file, photo)
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


def check_claim(layout: Layout) -> None:
    """Refuse a claim of more samples than its bytes can hold: it must not allocate.

    Raises:
        PhotoRejected: it is one.
    """
    ratio = MAX_RATIOS.get(layout.compression)
    if ratio and any(_size_bytes(layout, s) > ratio * s.size_bytes for s in layout.segments):
        raise PhotoRejected(UNDECODABLE)


def decode_into(samples: Samples, layout: Layout, segment: Segment, *, first_row: int = 0) -> None:
    """Decode a strip or tile into the samples of the photo, (H, W, C), or of its rows from `first_row` on.

    Raises:
        PhotoRejected: it cannot be decoded.
    """
    block = _decode(layout, segment)
    rows, columns, planes = _place(layout, segment, first_row)
    samples[rows, columns, planes] = block[: rows.stop - rows.start, : columns.stop - columns.start]


def to_pixels(samples: Samples, layout: Layout) -> Pixels:
    """The photo that samples stand for, (H, W, C) or rows of it."""
    pixels = Pixels.split(samples, hides=layout.alpha_kind != UNSPECIFIED)
    if layout.photometric == WHITE_IS_ZERO:
        return replace(pixels, colour=np.invert(pixels.colour))
    return pixels


def to_samples(pixels: Pixels, layout: Layout) -> Samples:
    """The samples that stand for a photo, (H, W, C), or for rows of it."""
    colour = np.invert(pixels.colour) if layout.photometric == WHITE_IS_ZERO else pixels.colour
    return Pixels(colour, pixels.alpha).joined().reshape(len(colour), layout.width_px, layout.samples)


def write_segment(
    out: BinaryIO, layout: Layout, segment: Segment, samples: Samples, *, first_row: int = 0
) -> tuple[int, int]:
    """Write a strip or tile of the photo's samples, or of those from `first_row` on, into a copy of the file.

    Returns: the offset and the size of what was written: in its old place, or where it does not fit there at the end.

    Raises:
        PhotoKept: see `encode`.
    """
    encoded = _encode(layout, segment, samples, first_row)
    offset = segment.offset
    if len(encoded) <= segment.size_bytes:
        out.seek(offset)
        out.write(encoded)
        out.write(bytes(segment.size_bytes - len(encoded)))
    elif layout.is_trailed:
        raise PhotoKept(NO_ROOM)
    else:
        offset = out.seek(0, io.SEEK_END)
        offset += out.write(bytes(offset % 2))  # offsets must be even
        out.write(encoded)
    return offset, len(encoded)


def write_places(out: BinaryIO, layout: Layout, places: Sequence[tuple[int, int]]) -> None:
    """Write the offset and size of each strip or tile, in the order of the layout, into a copy of the file.

    Raises:
        PhotoRejected: the file has outgrown the offsets of its kind of TIFF.
    """
    if layout.compression != NONE:
        for tag, values in zip((layout.offsets_tag, layout.sizes_tag), zip(*places, strict=True), strict=True):
            _patch(out, layout, tag, values)


def _directories(file: File) -> tuple[list[Directory], list[Directory]]:
    """The main chain of directories, and those that hang below it: sub-images, EXIF, GPS."""
    pages: list[Directory] = []
    others: list[Directory] = []
    seen: set[int] = set()
    offset = file.first_offset
    while offset and offset not in seen and len(seen) < MAX_DIRECTORIES:
        seen.add(offset)
        pages.append(read_directory(file, offset))
        offset = pages[-1].next_offset
    if not pages:
        raise PhotoRejected(CORRUPT)
    queue = list(pages)
    while queue:
        directory = queue.pop(0)
        for tag in POINTERS:
            for offset in file.values(directory, tag)[:MAX_DIRECTORIES]:
                if offset and offset not in seen and len(seen) < MAX_DIRECTORIES:
                    seen.add(offset)
                    # Programs copy the tag of EXIF into files without it: in no format does that fail the photo.
                    with nullcontext() if tag == SUB_IFDS else suppress(PhotoRejected):
                        others.append(read_directory(file, offset))
                        queue.append(others[-1])
    return pages, others


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
            value(photo, COMPRESSION, 1) == PACKBITS and value(photo, PREDICTOR, 1) != 1,
            "TIFF of PackBits with a predictor is not denoised: programs disagree on what it shows",
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


def read_layout(data: Data) -> Layout:
    file = open_file(data)
    pages, others = _directories(file)
    layout = _layout(file, pages[0])
    directories = [*pages, *others]
    known = (*_spans(layout, directories), *_data_spans(file, pages[0]))  # some writers state a strip too many
    pointers = (start for each in directories for tag in POINTERS for start in file.values(each, tag)[:MAX_DIRECTORIES])
    end = max(*(end for _, end, _ in known), *(start + 1 for start in pointers))
    return replace(layout, is_trailed=end > len(data) or is_trailed(data, end))


def _layout(file: File, photo: Directory) -> Layout:
    value = file.value
    width_px, height_px = value(photo, WIDTH, 0), value(photo, HEIGHT, 0)
    samples, is_planar = value(photo, SAMPLES, 1), value(photo, PLANAR, 1) == 2
    is_tiled = TILE_OFFSETS in photo.entries
    dtype: np.dtype[np.unsignedinteger[Any]] = np.dtype(f"{file.order}u{value(photo, BITS, 8) // 8}")
    offsets_tag, sizes_tag = (TILE_OFFSETS, TILE_SIZES) if is_tiled else (STRIP_OFFSETS, STRIP_SIZES)
    segment_width_px = value(photo, TILE_WIDTH, 0) if is_tiled else width_px
    segment_height_px = (
        value(photo, TILE_HEIGHT, 0) if is_tiled else min(value(photo, ROWS_PER_STRIP, height_px), height_px)
    )
    offsets, sizes = file.values(photo, offsets_tag), file.values(photo, sizes_tag)
    planes = samples if is_planar else 1
    if not 0 < segment_width_px * segment_height_px <= width_px * height_px + MAX_TILE_PX:
        raise PhotoRejected(CORRUPT)
    count = planes * -(-width_px // segment_width_px) * -(-height_px // segment_height_px)
    compression = value(photo, COMPRESSION, NONE)
    if not any(sizes) and compression == NONE:
        sizes = [len(file.data)] * len(offsets)  # some writers leave out what can be computed
    if not 0 < count <= min(len(offsets), len(sizes)):  # some writers state one too many
        raise PhotoRejected(CORRUPT)
    layout = Layout(
        file=file,
        directory=photo,
        width_px=width_px,
        height_px=height_px,
        samples=samples,
        dtype=dtype,
        photometric=value(photo, PHOTOMETRIC, BLACK_IS_ZERO),
        compression=compression,
        predictor=value(photo, PREDICTOR, 1),
        is_planar=is_planar,
        alpha_kind=value(photo, EXTRA_SAMPLES, UNSPECIFIED) if samples in (2, 4) else UNSPECIFIED,
        segment_width_px=segment_width_px,
        segment_height_px=segment_height_px,
        offsets_tag=offsets_tag,
        sizes_tag=sizes_tag,
        segments=(),
    )
    return replace(layout, segments=tuple(_segments(layout, offsets[:count], sizes[:count], is_tiled=is_tiled)))


def _segments(layout: Layout, offsets: list[int], sizes: list[int], *, is_tiled: bool) -> Iterator[Segment]:
    tops = range(0, layout.height_px, layout.segment_height_px)
    lefts = range(0, layout.width_px, layout.segment_width_px)
    planes = range(layout.samples if layout.is_planar else 1)
    for (plane, top, left), offset, size in zip(itertools.product(planes, tops, lefts), offsets, sizes, strict=True):
        rows = layout.segment_height_px if is_tiled else min(layout.segment_height_px, layout.height_px - top)
        segment = Segment(plane, top, left, rows, offset, size)
        if layout.compression == NONE:
            segment = replace(segment, size_bytes=_size_bytes(layout, segment))  # some writers state too many
        if segment.size_bytes > size or offset + segment.size_bytes > len(layout.file.data):
            raise PhotoRejected(TRUNCATED)
        yield segment


def _check_segments_lie_inside(file: File, photo: Directory) -> None:
    if any(end > len(file.data) for _, end, _ in _data_spans(file, photo)):
        raise PhotoRejected(TRUNCATED)


def _overlap(layout: Layout, directories: list[Directory]) -> bool:
    """Whether a strip or tile of the photo shares bytes with anything else that is known of the file."""
    end_of_any = end_of_segments = 0
    for start, end, is_segment in sorted(_spans(layout, directories)):
        if start < (end_of_any if is_segment else end_of_segments):
            return True
        end_of_any = max(end_of_any, end)
        end_of_segments = max(end_of_segments, end) if is_segment else end_of_segments
    return False


def _spans(layout: Layout, directories: list[Directory]) -> list[tuple[int, int, bool]]:
    """From where to where all lies that is known of the file, and whether it is a strip or tile of the photo.

    Raises:
        PhotoRejected: its previews have more strips than real ones: many directories may point to one long list.
    """
    others = [directory for directory in directories if directory.start != layout.directory.start]
    counts = (d.entries[tag].count for d in others for tag in itertools.chain(*DATA_TAGS) if tag in d.entries)
    if sum(counts) > MAX_VALUES:
        raise PhotoRejected(CORRUPT)
    spans = [(s.offset, s.offset + s.size_bytes, True) for s in layout.segments]
    spans.append((0, layout.file.header_bytes, False))
    for directory in directories:
        spans.append((directory.start, directory.end, False))
        spans += [(entry.offset, entry.end, False) for entry in directory.entries.values()]
    for directory in others:
        spans += _data_spans(layout.file, directory)
    return spans


def _data_spans(file: File, directory: Directory) -> Iterator[tuple[int, int, bool]]:
    """The same of the strips, tiles and thumbnail that a directory lists."""
    for tags in DATA_TAGS:
        starts, sizes = (file.values(directory, tag) for tag in tags)
        yield from ((start, start + size, False) for start, size in zip(starts, sizes, strict=False))


def _is_of_reversed_lzw(layout: Layout) -> bool:
    """Whether the codes start at the lowest bit, as before TIFF 6.0: the first one, 256, looks like this then."""
    starts = [layout.file.data[s.offset : s.offset + 2] for s in layout.segments]
    return layout.compression == LZW and any(len(start) == 2 and start[0] == 0 and start[1] & 1 for start in starts)


def _size_bytes(layout: Layout, segment: Segment) -> int:
    samples = segment.rows * layout.segment_width_px * (1 if layout.is_planar else layout.samples)
    return samples * layout.dtype.itemsize


def _place(layout: Layout, segment: Segment, first_row: int) -> tuple[slice, slice, slice]:
    """Which rows, counted from `first_row`, columns and planes of the photo a strip or tile holds."""
    bottom = min(segment.top + segment.rows, layout.height_px)
    right = min(segment.left + layout.segment_width_px, layout.width_px)
    planes = slice(segment.plane, segment.plane + 1) if layout.is_planar else slice(0, layout.samples)
    return slice(segment.top - first_row, bottom - first_row), slice(segment.left, right), planes


def _decode(layout: Layout, segment: Segment) -> Samples:
    """The samples of a strip or tile, padding included: (rows, columns, planes), in the file's byte order."""
    shape = (segment.rows, layout.segment_width_px, 1 if layout.is_planar else layout.samples)
    size_bytes = _size_bytes(layout, segment)
    full_bytes = size_bytes // segment.rows * layout.segment_height_px  # some writers fill up the last strip
    data = layout.file.data[segment.offset : segment.offset + segment.size_bytes]
    try:
        raw = _decompress(layout.compression, data, full_bytes)
    except (RuntimeError, ValueError) as error:
        raise PhotoRejected(UNDECODABLE) from error
    if len(raw) < size_bytes:
        raise PhotoRejected(UNDECODABLE)
    samples = np.frombuffer(raw, layout.dtype, count=math.prod(shape)).reshape(shape)
    if layout.predictor == HORIZONTAL and layout.compression != NONE:
        samples = imagecodecs.delta_decode(samples, axis=1)
    return samples


def _encode(layout: Layout, segment: Segment, samples: Samples, first_row: int) -> bytes | bytearray:
    rows, columns, planes = _place(layout, segment, first_row)
    block = samples[rows, columns, planes]
    if layout.alpha_kind == ASSOCIATED_ALPHA:  # more colour than coverage would glow, unless it did so before
        noisy, alpha = _decode(layout, segment)[: block.shape[0], : block.shape[1]], samples[rows, columns, -1:]
        block = np.where(noisy > alpha, block, np.minimum(block, alpha))
    if block.shape[:2] != (segment.rows, layout.segment_width_px):
        padded = _decode(layout, segment).copy()  # the padding of a tile at the edge survives too
        padded[: block.shape[0], : block.shape[1]] = block
        block = padded
    if layout.predictor == HORIZONTAL and layout.compression != NONE:
        block = imagecodecs.delta_encode(np.ascontiguousarray(block), axis=1)
    return _compress(layout.compression, block.astype(layout.dtype).tobytes(), segment)


def _decompress(compression: int, data: bytes, size_bytes: int) -> bytes | bytearray:
    if compression == NONE:
        return data
    decoders = {
        LZW: imagecodecs.lzw_decode,
        PACKBITS: imagecodecs.packbits_decode,
        LZMA: imagecodecs.lzma_decode,
        ZSTD: imagecodecs.zstd_decode,
    }
    decode_segment = decoders.get(compression, imagecodecs.deflate_decode)
    return decode_segment(data, out=size_bytes)


def _compress(compression: int, raw: bytes, segment: Segment) -> bytes | bytearray:
    if compression == NONE:
        return raw
    if compression == LZW:
        return imagecodecs.lzw_encode(raw)
    if compression == PACKBITS:
        rows = np.frombuffer(raw, np.uint8).reshape(segment.rows, -1)
        return imagecodecs.packbits_encode(rows, axis=-1)
    if compression == LZMA:
        return imagecodecs.lzma_encode(raw)
    levels, encode_at = (
        (ZSTD_LEVELS, imagecodecs.zstd_encode) if compression == ZSTD else (DEFLATE_LEVELS, imagecodecs.deflate_encode)
    )
    for level in levels:
        encoded = encode_at(raw, level=level)
        if len(encoded) <= segment.size_bytes:
            break
    return encoded


def _patch(out: BinaryIO, layout: Layout, tag: int, values: Sequence[int]) -> None:
    """Write the first values of a tag over the old ones, or all at the end in a wider type when they outgrow theirs.

    Raises:
        PhotoRejected: the widest type of this kind of TIFF is too narrow.
    """
    file, entry = layout.file, layout.directory.entries[tag]
    wide = LONG8 if file.is_big else LONG
    if max(values) >= 256**file.pointer_bytes:
        raise PhotoRejected("the denoised TIFF would be larger than the 4 GB that its kind can hold")
    dtype = np.dtype(file.order + UNSIGNED[entry.kind])
    if max(values) <= np.iinfo(dtype).max:
        out.seek(entry.offset)
        out.write(np.array(values, dtype).tobytes())
        return
    values = [*values, *file.values(layout.directory, tag)[len(values) :]]
    new = np.array(values, file.order + UNSIGNED[wide]).tobytes()
    if len(new) > file.pointer_bytes:
        offset = out.seek(0, io.SEEK_END)
        offset += out.write(bytes(offset % 2))
        out.write(new)
        new = np.array([offset], file.order + file.pointer).tobytes()
    out.seek(entry.entry_offset + 2)
    out.write(np.array([wide], file.order + "u2").tobytes())
    out.seek(entry.entry_offset + 4 + file.pointer_bytes)
    out.write(new)
