"""The strips and tiles of a TIFF, one at a time: decoded into samples, and encoded over their old places."""

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import BinaryIO

import imagecodecs
import numpy as np

from pipeline.container import NO_ROOM, Pixels, Samples
from pipeline.errors import PhotoKept, PhotoRejected
from pipeline.ifd import UNSIGNED
from pipeline.tiff_layout import (
    ASSOCIATED_ALPHA,
    DEFLATE,
    HORIZONTAL,
    LZMA,
    LZW,
    NONE,
    OLD_DEFLATE,
    PACKBITS,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    ZSTD,
    Layout,
    Segment,
)

LONG, LONG8 = 4, 16  # types of numbers
# From fast to small: the next level is tried when the result does not fit into its old place. What fits saves nothing
# by being smaller, since the place stays.
DEFLATE_LEVELS = (1, 6, 9)
ZSTD_LEVELS = (1, 9)
# How far these can shrink a strip at best; the others have no bound.
MAX_RATIOS = {LZW: 2731, DEFLATE: 1032, OLD_DEFLATE: 1032, PACKBITS: 64}

UNDECODABLE = "the TIFF is damaged: its picture cannot be decoded"


def check_claim(layout: Layout) -> None:
    """Refuse a claim of more samples than its bytes can hold: it must not allocate.

    Raises:
        PhotoRejected: it is one.
    """
    ratio = MAX_RATIOS.get(layout.compression)
    if ratio and any(layout.decoded_bytes(s) > ratio * s.size_bytes for s in layout.segments):
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
        PhotoKept: it does not fit there, and something else lies at the end, which may be found by that.
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


def _place(layout: Layout, segment: Segment, first_row: int) -> tuple[slice, slice, slice]:
    """Which rows, counted from `first_row`, columns and planes of the photo a strip or tile holds."""
    bottom = min(segment.top + segment.rows, layout.height_px)
    right = min(segment.left + layout.segment_width_px, layout.width_px)
    planes = slice(segment.plane, segment.plane + 1) if layout.is_planar else slice(0, layout.samples)
    return slice(segment.top - first_row, bottom - first_row), slice(segment.left, right), planes


def _decode(layout: Layout, segment: Segment) -> Samples:
    """The samples of a strip or tile, padding included: (rows, columns, planes), in the file's byte order."""
    shape = (segment.rows, layout.segment_width_px, 1 if layout.is_planar else layout.samples)
    size_bytes = layout.decoded_bytes(segment)
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
