"""PNG: walk its chunks, decode, and put new image data between the source's own chunks."""

import functools
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from pipeline.container import LOOK_BYTES, SIGNED, SIGNED_ELSEWHERE, Header, Pixels, Samples
from pipeline.errors import PhotoRejected
from pipeline.ifd import read_shot

IsalError: Any = isal_zlib.IsalError  # Any: its stub says that it is no class
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
PALETTE = 3
CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
# Apple's private kind begins with this: deflate without zlib's header, and blue before red.
APPLE = b"CgBI"
# Apple's index into the compressed data: it would point to the wrong places.
DROPPED = {b"iDOT"}
# What tells the colours other than an ICC profile, and the bytes that it takes.
COLOUR_CHUNKS = {b"cHRM": 32, b"cICP": 4, b"gAMA": 4, b"sRGB": 1}
# Left, top, step across and step down of the seven passes of an interlaced picture; one pass holds all of another.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
ONE_PASS = ((0, 0, 1, 1),)
# The head of a text chunk whose XMP is compressed: keyword, flag and method, language, translated keyword.
PACKED_XMP = re.compile(rb"XML:com\.adobe\.xmp\0\x01\0[^\0]{0,255}+\0[^\0]{0,255}+\0")
MAX_DEFLATE_RATIO = 1032
AVERAGE = 3
STRIPE_BYTES = 1 << 18  # they stay in the cache
# Of ISA-L: see "PNG" in tests/benchmarks/RESULTS.md
DEFLATE_LEVEL = 2
CHUNK_BYTES = 1 << 20
MAX_SIDE_PX = 1_000_000  # that libpng decodes
INFLATED_BYTES = 1 << 26  # a larger picture is left to libpng, which needs no second one in memory
STORED_BYTES = 0xFFFF  # in a block of deflate that is not compressed
MAX_CHUNKS = 1 << 20  # 2 GiB in IDAT chunks of 8 KiB, which libpng writes, have a quarter of that

Part = bytes | memoryview

CORRUPT = "the PNG is corrupt: its chunks do not line up"
TRUNCATED = "the PNG is cut off: its end is missing"
UNDECODABLE = "the PNG is damaged: its picture cannot be decoded"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: its type, and where it starts and ends, length and checksum included."""

    kind: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A PNG taken apart. `chunks` are all from IHDR to IEND."""

    chunks: tuple[Chunk, ...]
    width_px: int
    height_px: int
    bit_depth: int
    colour_type: int
    is_interlaced: bool


def inspect(data: bytes) -> Header:
    """Read the header.

    Raises:
        PhotoRejected: the PNG is cut off or corrupt.
    """
    layout = _layout(data)
    exif = next((data[c.start + 8 : c.end - 4] for c in layout.chunks if c.kind == b"eXIf"), b"")
    mode = None if _is_apples(layout.chunks) else MODES[layout.colour_type]
    return Header(
        format="png",
        width_px=layout.width_px,
        height_px=layout.height_px,
        mode="1" if mode == "L" and layout.bit_depth == 1 else mode,
        bit_depth=layout.bit_depth,
        shot=read_shot(exif),
        untouched_reason=_untouched_reason(data, layout),
    )


def decode(data: bytes) -> Pixels:
    """Decode the picture.

    Raises:
        PhotoRejected: the image data are damaged or too short, or a side is too long.
    """
    layout = _layout(data)
    if max(layout.width_px, layout.height_px) > MAX_SIDE_PX:
        size = f"{layout.width_px:,} × {layout.height_px:,}"
        raise PhotoRejected(f"the PNG has {size} pixels, and only sides of up to {MAX_SIDE_PX:,} can be decoded")
    packed_bytes = sum(chunk.end - chunk.start for chunk in layout.chunks if chunk.kind == b"IDAT")
    row_bytes = layout.width_px * CHANNELS[layout.colour_type] * layout.bit_depth // 8
    if layout.height_px * row_bytes > packed_bytes * MAX_DEFLATE_RATIO:
        raise PhotoRejected(UNDECODABLE)  # such a claim must not allocate
    # The decoder sees no metadata: it would inflate profiles and texts, and has no need of them.
    view = memoryview(data)
    bare: list[Part] = [view[chunk.start : chunk.end] for chunk in layout.chunks if chunk.kind in CRITICAL - {b"PLTE"}]
    inflated_bytes = layout.height_px * (1 + row_bytes)  # the number of its filter in front of each row
    if layout.bit_depth >= 8 and not layout.is_interlaced and inflated_bytes <= INFLATED_BYTES:
        packed = b"".join(view[chunk.start + 8 : chunk.end - 4] for chunk in layout.chunks if chunk.kind == b"IDAT")
        stored = _stored(packed, inflated_bytes)
        if stored is not None:
            bare = [bare[0], *_chunk(b"IDAT", stored), bare[-1]]
    try:
        samples = imagecodecs.png_decode(b"".join([SIGNATURE, *bare]))
    except (RuntimeError, ValueError) as error:
        raise PhotoRejected(UNDECODABLE) from error
    if samples.shape[:2] != (layout.height_px, layout.width_px):
        raise PhotoRejected(UNDECODABLE)
    return Pixels.split(samples)


def _stored(packed: bytes, size_bytes: int) -> list[Part] | None:
    """The same zlib stream without compression: ISA-L inflates, and libpng does the rest, in 0.6 of libpng's own time.

    None where anything is unusual about it: libpng decides what to make of that.
    """
    inflate = isal_zlib.decompressobj()
    try:
        raw = inflate.decompress(packed, size_bytes)
        more = b"" if inflate.eof else inflate.decompress(inflate.unconsumed_tail, 1)
    except IsalError:
        return None
    if len(raw) != size_bytes or more or not inflate.eof or inflate.unused_data:
        return None
    parts: list[Part] = [b"\x78\x01"]
    for start in range(0, size_bytes, STORED_BYTES):
        block = memoryview(raw)[start : start + STORED_BYTES]
        is_last = start + STORED_BYTES >= size_bytes
        parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return [*parts, struct.pack(">I", isal_zlib.adler32(raw))]


def encode(pixels: Pixels, data: bytes) -> bytes:
    """Write `pixels` with the depth, interlacing and every other chunk of the PNG `data`, in their order."""
    layout = _layout(data)
    samples = pixels.joined()
    deflate = isal_zlib.compressobj(DEFLATE_LEVEL)
    parts: list[bytes] = []
    for left, top, across, down in ADAM7 if layout.is_interlaced else ONE_PASS:
        parts += map(deflate.compress, _filtered(samples[top::down, left::across]))
    packed = memoryview(b"".join([*parts, deflate.flush()]))
    image = [
        part
        for start in range(0, len(packed), CHUNK_BYTES)
        for part in _chunk(b"IDAT", [packed[start : start + CHUNK_BYTES]])
    ]

    kept = [chunk for chunk in layout.chunks if chunk.kind not in DROPPED]
    first = [chunk.kind for chunk in kept].index(b"IDAT")
    before = [data[chunk.start : chunk.end] for chunk in kept[:first]]
    behind = [data[chunk.start : chunk.end] for chunk in kept[first:] if chunk.kind != b"IDAT"]
    return b"".join([SIGNATURE, *before, *image, *behind, data[kept[-1].end :]])


def colour_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Type and payload of the chunks that tell what the colours are, without an ICC profile."""
    return [
        (chunk.kind, data[chunk.start + 8 : chunk.end - 4])
        for chunk in _layout(data).chunks
        if COLOUR_CHUNKS.get(chunk.kind) == chunk.end - chunk.start - 12
    ]


def colour_profile(data: bytes, *, most_bytes: int) -> bytes:
    """The ICC profile; empty where there is none that can be inflated, or where it is larger."""
    chunk = next((chunk for chunk in _layout(data).chunks if chunk.kind == b"iCCP"), None)
    if chunk is None:
        return b""
    _, _, packed = data[chunk.start + 8 : chunk.end - 4].partition(b"\0")  # behind its name
    inflate = isal_zlib.decompressobj()
    try:
        profile = inflate.decompress(packed[1:], most_bytes)
    except IsalError:
        return b""
    return profile if inflate.eof else b""


def _layout(data: bytes) -> Layout:
    chunks = _chunks(data)
    kinds = [chunk.kind for chunk in chunks]
    first, last = chunks[1 if _is_apples(chunks) else 0], chunks[-1]
    count = kinds.count(b"IDAT")
    start = kinds.index(b"IDAT") if count else 0
    is_sound = (
        kinds.count(b"IHDR") == 1
        and first.kind == b"IHDR"
        and first.end - first.start == 25
        and last.end - last.start == 12
        and count > 0
        and kinds[start : start + count] == [b"IDAT"] * count
    )
    if not is_sound:
        raise PhotoRejected(CORRUPT)
    width_px, height_px, bit_depth, colour_type, *methods = struct.unpack_from(">IIBBBBB", data, first.start + 8)
    if bit_depth not in DEPTHS.get(colour_type, ()) or methods[:2] != [0, 0] or methods[2] > 1:
        raise PhotoRejected(CORRUPT)
    return Layout(chunks, width_px, height_px, bit_depth, colour_type, is_interlaced=methods[2] == 1)


def _chunks(data: bytes) -> tuple[Chunk, ...]:
    """All chunks from the first to IEND. The checksums of those that make the picture are right."""
    chunks: list[Chunk] = []
    start = len(SIGNATURE)
    while not chunks or chunks[-1].kind != b"IEND":
        if start + 12 > len(data):
            raise PhotoRejected(TRUNCATED)
        size, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + size
        if end > len(data):
            raise PhotoRejected(TRUNCATED)
        if not kind.isalpha() or len(chunks) == MAX_CHUNKS:
            raise PhotoRejected(CORRUPT)
        checksum = int.from_bytes(data[end - 4 : end], "big")
        if kind in CRITICAL and isal_zlib.crc32(memoryview(data)[start + 4 : end - 4]) != checksum:
            raise PhotoRejected("the PNG is damaged: a checksum is wrong")
        chunks.append(Chunk(kind, start, end))
        start = end
    return tuple(chunks)


def _is_apples(chunks: tuple[Chunk, ...]) -> bool:
    return chunks[0].kind == APPLE


def _untouched_reason(data: bytes, layout: Layout) -> str | None:
    kinds = {chunk.kind for chunk in layout.chunks}
    unknown = sorted(kind.decode() for kind in kinds - CRITICAL if kind[:1].isupper())
    reasons = (
        (b"acTL" in kinds, "an animation is not denoised"),
        (layout.colour_type == PALETTE, "a palette is not denoised"),
        (layout.bit_depth < 8, f"a {layout.bit_depth}-bit picture is not denoised"),
        (b"tRNS" in kinds, "PNG with a transparent colour is not denoised: that colour would change"),
        (APPLE in kinds, "Apple's private kind of PNG is not denoised"),
        (bool(unknown), f"PNG with unknown critical parts ({', '.join(unknown)}) is not denoised"),
        (b"caBX" in kinds, SIGNED),
        (any(_is_signed_elsewhere(data, chunk) for chunk in layout.chunks if chunk.kind == b"iTXt"), SIGNED),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _is_signed_elsewhere(data: bytes, text: Chunk) -> bool:
    """Whether an iTXt chunk says so; one that is compressed does where it is too long to be read."""
    head = PACKED_XMP.match(data, text.start + 8, text.end)
    if head is None:
        return SIGNED_ELSEWHERE.search(data, text.start, text.end) is not None
    inflate = zlib.decompressobj()
    try:
        xmp = inflate.decompress(data[head.end() : text.end], LOOK_BYTES)
    except zlib.error:
        return False  # no program can read it
    return not inflate.eof or SIGNED_ELSEWHERE.search(xmp) is not None


def _filtered(samples: Samples) -> Iterator[NDArray[np.uint8]]:
    """Some rows at a time, filtered by Average (PNG, third edition, section 9.2), each behind that filter's number."""
    if not samples.size:
        return  # a pass of Adam7 that has no pixel
    step = samples[0, 0].nbytes
    rows_at_once = max(1, STRIPE_BYTES // samples[0].nbytes)
    above_B = np.zeros(samples[0].nbytes, np.uint8)
    for top in range(0, len(samples), rows_at_once):
        stripe = np.ascontiguousarray(samples[top : top + rows_at_once], samples.dtype.newbyteorder(">"))
        row_HB = stripe.reshape(len(stripe), -1).view(np.uint8)
        above_HB = np.vstack([above_B, row_HB[:-1]])
        left_HB = np.zeros_like(row_HB)
        left_HB[:, step:] = row_HB[:, :-step]
        filtered_HB = np.empty((len(stripe), 1 + len(above_B)), np.uint8)
        filtered_HB[:, 0] = AVERAGE
        filtered_HB[:, 1:] = row_HB - (left_HB & above_HB) - ((left_HB ^ above_HB) >> 1)  # the mean, rounded down
        above_B = row_HB[-1]
        yield filtered_HB


def _chunk(kind: bytes, payload: list[Part]) -> list[Part]:
    """All of it, in parts, so that it is copied once."""
    checksum = functools.reduce(
        lambda sum_so_far, part: isal_zlib.crc32(part, sum_so_far), payload, isal_zlib.crc32(kind)
    )
    return [struct.pack(">I4s", sum(map(len, payload)), kind), *payload, struct.pack(">I", checksum)]
