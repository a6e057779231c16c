"""JPEG: walk its segments, decode its scans, and put new scans between the source's own metadata."""

import functools
import io
import itertools
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pipeline.container import NO_ROOM, SIGNED, SIGNED_ELSEWHERE, Header, Pixels, Samples, is_trailed
from pipeline.errors import PhotoKept, PhotoRejected
from pipeline.ifd import open_file, read_directory, read_shot

SIGNATURE = b"\xff\xd8\xff"
START, END, SCAN, TABLES, HUFFMAN, RESTART_INTERVAL = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
PROGRESSIVE = 0xC2
ARITHMETIC = {0xC9, 0xCA}
FRAMES = frozenset(range(0xC0, 0xD0)) - {HUFFMAN, 0xC8, 0xCC}
# Markers of the coded picture. All other segments are metadata and survive byte for byte.
CODING = FRAMES | {HUFFMAN, SCAN, END, TABLES, RESTART_INTERVAL, 0xC8, 0xCC, 0xDC}
COLOUR_HEADERS = {0xE0, 0xEE}  # APP0 with JFIF and APP14 of Adobe tell YCbCr from RGB
# Of the Multi-Picture Format (CIPA DC-007, 5.2.3): the list of pictures, and the type of those that are of equal rank.
MP_ENTRIES, MP_ENTRY_BYTES, MULTI_FRAME = 0xB002, 16, 2
# What XMP names where it holds the picture of the other eye (Google's Photo Sphere XMP).
OTHER_EYE = (b"ns.google.com/photos/1.0/panorama", b"ns.google.com/photos/1.0/image")
SUBSAMPLINGS: dict[tuple[tuple[int, int], ...], int] = {
    ((1, 1), (1, 1), (1, 1)): 0,
    ((2, 1), (1, 1), (1, 1)): 1,
    ((2, 2), (1, 1), (1, 1)): 2,
}
MAX_SEGMENTS, MAX_SCANS = 1 << 16, 100  # real photos have a few dozen, and up to about ten

# Both start with a literal, which makes the search fast, and look a bounded way ahead, which keeps it linear.
FILL = re.compile(rb"\xff*(?=\xff)")  # bytes before a marker that mean nothing (ITU-T T.81, B.1.1.2)
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
RESTART_IN_SCAN = re.compile(rb"\xff\xff{0,8}+([\xd0-\xd7])")  # fill bytes may stand before a marker
RESTARTS = bytes(range(0xD0, 0xD8))
CANARY = bytes.fromhex("5a3c9971a6e2480d")  # entropy-coded data that no complete scan ever reads

ZIGZAG = [
    (row, diagonal - row)
    for diagonal in range(15)
    for row in (range(diagonal + 1) if diagonal % 2 else range(diagonal, -1, -1))
    if row < 8 and diagonal - row < 8
]
ZIGZAG_OF_NATURAL = np.argsort([8 * row + column for row, column in ZIGZAG])

PILLOW_BUFFER = 2  # bytes a pixel
BUFFER_LOCK = threading.Lock()

CORRUPT = "the JPEG is corrupt: its segments do not line up"
TRUNCATED = "the JPEG is cut off: its end is missing"
INCOMPLETE = "the JPEG is damaged: a part of its picture is missing"


@dataclass(frozen=True, slots=True)
class Segment:
    """One marker with its payload; a scan's segment includes its entropy-coded data."""

    marker: int
    start: int  # of the marker's 0xFF
    payload: int
    end: int


@dataclass(frozen=True, slots=True)
class Component:
    """One component of the frame: its identifier, sampling factors and quantisation table."""

    ident: int
    factors: tuple[int, int]  # horizontal, vertical
    table: int


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan: which components it codes, and where its entropy-coded data lies."""

    idents: bytes
    restart_interval: int  # in MCUs; 0 for none
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A JPEG taken apart. `end` is the offset behind its end marker."""

    segments: tuple[Segment, ...]
    scans: tuple[Scan, ...]
    frame: int  # the marker of the frame: which kind of JPEG this is
    bit_depth: int
    height_px: int
    width_px: int
    components: tuple[Component, ...]
    tables: dict[int, tuple[int, ...]]  # natural order, not zigzag
    are_tables_redefined: bool
    end: int


def inspect(data: bytes) -> Header:
    """Read the header.

    Raises:
        PhotoRejected: the JPEG is cut off or corrupt.
    """
    layout = _layout(data)
    exif = next((data[s.payload + 6 : s.end] for s in layout.segments if _is_exif(data, s)), b"")
    return Header(
        format="jpeg",
        width_px=layout.width_px,
        height_px=layout.height_px,
        mode={1: "L", 3: "RGB", 4: "CMYK"}.get(len(layout.components)),
        bit_depth=layout.bit_depth,
        shot=read_shot(exif),
        untouched_reason=_untouched_reason(data, layout),
    )


def decode(data: bytes) -> Pixels:
    """Decode the picture.

    libjpeg paints what is missing gray and says nothing. So the scans are decoded a second time with something else
    behind them: a picture that changes was not complete.

    Raises:
        PhotoRejected: a part of the picture is missing or cannot be decoded.
    """
    layout = _layout(data)
    _check_amount_of_data(data, layout)
    samples = _decode(_stripped(data, layout))
    if samples.shape[:2] != (layout.height_px, layout.width_px):
        raise PhotoRejected(CORRUPT)
    if _may_lack_data(layout, samples) and not np.array_equal(samples, _decode(_stripped(data, layout, CANARY))):
        raise PhotoRejected(INCOMPLETE)
    return Pixels(samples)


def encode(pixels: Pixels, data: bytes) -> bytes:
    """Write `pixels` with the tables, subsampling, scan kind, restarts and every other segment of the JPEG `data`.

    What lies behind the photo (previews, gain maps, videos, makers' own blocks) stays at its very offset, because
    segments of many kinds point there: fill bytes before the end marker make the new picture as long as the old one.

    Raises:
        PhotoRejected: the pixels need far more bytes than the source had.
        PhotoKept: something lies behind the photo, and the new picture has no room before it.
    """
    layout = _layout(data)
    metadata = [data[s.start : s.end] for s in layout.segments if s.marker not in CODING]
    new = _encode(pixels.colour, data, layout)
    *coding, end = (new[s.start : s.end] for s in _segments(new) if s.marker in CODING)
    picture = b"".join([b"\xff\xd8", *metadata, *coding])
    fill_bytes = layout.end - len(picture) - len(end) if is_trailed(data, layout.end) else 0
    if fill_bytes < 0:
        raise PhotoKept(NO_ROOM)
    return b"".join([picture, b"\xff" * fill_bytes, end, data[layout.end :]])


def _layout(data: bytes) -> Layout:
    segments: list[Segment] = []
    scans: list[Scan] = []
    frame: Segment | None = None
    tables: dict[int, tuple[int, ...]] = {}
    are_tables_redefined = False
    restart_interval = 0
    for segment in _segments(data):
        segments.append(segment)
        if len(segments) > MAX_SEGMENTS or len(scans) > MAX_SCANS:
            raise PhotoRejected(CORRUPT)
        payload = data[segment.payload : segment.end] if segment.marker != SCAN else b""
        if segment.marker in FRAMES:
            if frame is not None:
                raise PhotoRejected(CORRUPT)
            frame = segment
        elif segment.marker == TABLES:
            new = _tables(payload)
            are_tables_redefined |= bool(scans) and any(tables.get(i, new[i]) != new[i] for i in new)
            tables |= new
        elif segment.marker == RESTART_INTERVAL:
            restart_interval = int.from_bytes(payload[:2], "big")
        elif segment.marker == SCAN:
            scans.append(_scan(data, segment, restart_interval))
    if frame is None or not scans:
        raise PhotoRejected(CORRUPT)
    bit_depth, height_px, width_px, components = _frame(data[frame.payload : frame.end])
    return Layout(
        segments=tuple(segments),
        scans=tuple(scans),
        frame=frame.marker,
        bit_depth=bit_depth,
        height_px=height_px,
        width_px=width_px,
        components=components,
        tables=tables,
        are_tables_redefined=are_tables_redefined,
        end=segments[-1].end,
    )


def _segments(data: bytes) -> Iterator[Segment]:
    """Every segment behind the start marker, the end marker included."""
    position = 2
    while True:
        start = position
        if (fill := FILL.match(data, position)) is not None:
            position = fill.end()
        if position + 2 > len(data):
            raise PhotoRejected(TRUNCATED)
        marker = data[position + 1]
        if data[position] != 0xFF or marker <= 0x01 or marker == START or 0xD0 <= marker <= 0xD7:
            raise PhotoRejected(CORRUPT)
        if marker == END:
            yield Segment(END, start, position + 2, position + 2)
            return
        payload = position + 4
        end = position + 2 + int.from_bytes(data[position + 2 : payload], "big")
        if end > len(data):
            raise PhotoRejected(TRUNCATED)
        if end < payload:
            raise PhotoRejected(CORRUPT)
        if marker == SCAN:
            found = MARKER_IN_SCAN.search(data, end)
            if found is None:
                raise PhotoRejected(TRUNCATED)
            end += len(data[end : found.start()].rstrip(b"\xff"))
        yield Segment(marker, start, payload, end)
        position = end


def _scan(data: bytes, segment: Segment, restart_interval: int) -> Scan:
    start = segment.payload - 2 + int.from_bytes(data[segment.payload - 2 : segment.payload], "big")
    count = data[segment.payload] if start > segment.payload else 0
    if not count or start != segment.payload + 2 * count + 4:
        raise PhotoRejected(CORRUPT)
    idents = data[segment.payload + 1 : segment.payload + 1 + 2 * count : 2]
    return Scan(idents=idents, restart_interval=restart_interval, start=start, end=segment.end)


def _frame(payload: bytes) -> tuple[int, int, int, tuple[Component, ...]]:
    """Bit depth, height, width and components of a frame header."""
    if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
        raise PhotoRejected(CORRUPT)
    components = tuple(
        Component(ident=payload[i], factors=(payload[i + 1] >> 4, payload[i + 1] & 15), table=payload[i + 2])
        for i in range(6, len(payload), 3)
    )
    if not all(1 <= factor <= 4 for component in components for factor in component.factors):
        raise PhotoRejected(CORRUPT)
    return payload[0], int.from_bytes(payload[1:3], "big"), int.from_bytes(payload[3:5], "big"), components


def _tables(payload: bytes) -> dict[int, tuple[int, ...]]:
    """The quantisation tables of one segment, in natural order, by their destination."""
    tables = {}
    while payload:
        is_wide, destination = payload[0] >> 4, payload[0] & 15
        size = 128 if is_wide else 64
        if is_wide > 1 or destination > 3 or len(payload) < 1 + size:
            raise PhotoRejected(CORRUPT)
        zigzag = np.frombuffer(payload, ">u2" if is_wide else "u1", count=64, offset=1)
        tables[destination] = tuple(zigzag[ZIGZAG_OF_NATURAL].tolist())
        payload = payload[1 + size :]
    return tables


def _untouched_reason(data: bytes, layout: Layout) -> str | None:
    reasons = (
        (layout.frame in (0xC3, 0xC7, 0xCB, 0xCF), "lossless JPEG is not denoised"),
        (layout.frame in (0xC5, 0xC6, 0xCD, 0xCE), "hierarchical JPEG is not denoised"),
        (layout.frame in ARITHMETIC, "JPEG with arithmetic coding is not denoised"),
        (layout.bit_depth != 8, f"{layout.bit_depth}-bit JPEG is not denoised"),
        (len(layout.components) == 4, "CMYK is not denoised"),
        (len(layout.components) not in (1, 3, 4), f"JPEG of {len(layout.components)} channels is not denoised"),
        (_is_signed(data, layout), SIGNED),
        (_is_multi_frame(data, layout), "JPEG of several pictures is not denoised"),
        (
            _is_out_of_place(data, layout),
            "JPEG with metadata amid its tables and data behind it cannot be written back",
        ),
        (_is_subsampled_oddly(data, layout), "JPEG with this chroma subsampling cannot be written back"),
        (layout.are_tables_redefined, "JPEG that changes its quantisation tables midway cannot be written back"),
        (
            max(map(max, layout.tables.values()), default=0) > 255,
            "JPEG with 16-bit quantisation tables cannot be written back",
        ),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _is_out_of_place(data: bytes, layout: Layout) -> bool:
    """Whether metadata that may point behind the photo would move: they are written before all tables."""
    is_coding = [segment.marker in CODING for segment in layout.segments]
    return is_trailed(data, layout.end) and not all(is_coding[is_coding.index(True) :])


def _is_exif(data: bytes, segment: Segment) -> bool:
    return segment.marker == 0xE1 and data[segment.payload : segment.end].startswith(b"Exif\0")


def _is_signed(data: bytes, layout: Layout) -> bool:
    return any(
        b"c2pa" in data[s.payload : s.end] if s.marker == 0xEB else SIGNED_ELSEWHERE.search(data, s.payload, s.end)
        for s in layout.segments
        if s.marker in {0xE1, 0xEB}
    )


def _is_multi_frame(data: bytes, layout: Layout) -> bool:
    """Whether it is one of a panorama, a stereo pair or several angles; a preview or a gain map is none of these."""
    if any(
        s.marker == 0xE1 and all(data.find(name, s.payload, s.end) > 0 for name in OTHER_EYE) for s in layout.segments
    ):
        return True
    lists = [data[s.payload + 4 : s.end] for s in layout.segments if _is_list_of_pictures(data, s)]
    return any(attribute >> 16 & 0xFF == MULTI_FRAME for pictures in lists for attribute in _attributes(pictures))


def _is_list_of_pictures(data: bytes, segment: Segment) -> bool:
    return segment.marker == 0xE2 and data[segment.payload : segment.end].startswith(b"MPF\0")


def _attributes(pictures: bytes) -> list[int]:
    """The first number of each entry of a list of pictures; none where it is damaged."""
    with suppress(PhotoRejected):
        file = open_file(pictures)
        entry = read_directory(file, file.first_offset).entries.get(MP_ENTRIES)
        if entry is not None:
            numbers = file.numbers(entry.offset, "u4", entry.count // MP_ENTRY_BYTES * (MP_ENTRY_BYTES // 4))
            return numbers[:: MP_ENTRY_BYTES // 4]
    return []


def _is_coded_as_rgb(data: bytes, layout: Layout) -> bool:
    """Decide as libjpeg does: JFIF means YCbCr, Adobe says it, and else the identifiers tell."""
    if len(layout.components) != 3:
        return False
    headers = [(s.marker, data[s.payload : s.end]) for s in layout.segments if s.marker in COLOUR_HEADERS]
    if any(marker == 0xE0 and payload.startswith(b"JFIF\0") and len(payload) >= 14 for marker, payload in headers):
        return False
    transforms = [p[11] for marker, p in headers if marker == 0xEE and p[:5] == b"Adobe" and len(p) >= 12]
    if transforms:
        return transforms[-1] == 0
    return bytes(component.ident for component in layout.components) == b"RGB"


def _subsampling(layout: Layout) -> int | None:
    """Pillow's number of the chroma subsampling, None where it has none."""
    if len(layout.components) == 1:
        return 0  # sampling factors mean nothing for a single component
    factors = [component.factors for component in layout.components]
    across, down = (math.gcd(*numbers) for numbers in zip(*factors, strict=True))  # FFmpeg writes 4:4:4 as 1 × 2 thrice
    return SUBSAMPLINGS.get(tuple((horizontal // across, vertical // down) for horizontal, vertical in factors))


def _is_subsampled_oddly(data: bytes, layout: Layout) -> bool:
    """Whether Pillow cannot write such sampling factors: of RGB, only equal ones."""
    subsampling = _subsampling(layout)
    return subsampling is None or (subsampling != 0 and _is_coded_as_rgb(data, layout))


def _stripped(data: bytes, layout: Layout, canary: bytes = b"") -> bytes:
    """The JPEG without metadata, which a decoder has no need to parse, with `canary` behind all entropy-coded data."""
    parts = [b"\xff\xd8"]
    for segment in layout.segments:
        if segment.marker in CODING or segment.marker in COLOUR_HEADERS:
            parts.append(data[segment.start : segment.end])
        if segment.marker == SCAN and canary:
            parts[-1] = RESTART_IN_SCAN.sub(canary + rb"\g<0>", parts[-1]) + canary
    return b"".join(parts)


def _decode(jpeg: bytes) -> NDArray[np.uint8]:
    try:
        samples: NDArray[np.uint8] = imagecodecs.jpeg8_decode(jpeg)
    except (RuntimeError, ValueError) as error:
        raise PhotoRejected("the JPEG is damaged: its picture cannot be decoded") from error
    return samples


def _may_lack_data(layout: Layout, samples: NDArray[np.uint8]) -> bool:
    """Whether a part may be missing. A single scan without restarts that ends early has a gray last corner.

    Of arithmetic coding nobody knows: its encoders leave out zeros at the end, and a scan reads what is behind it.
    """
    is_plain = len(layout.scans) == 1 and layout.scans[0].restart_interval == 0
    return layout.frame not in ARITHMETIC and (not is_plain or bool(np.all(samples[-1, -1] == 128)))


def _check_amount_of_data(data: bytes, layout: Layout) -> None:
    """Reject scans that are short or not there, or whose restart markers are not in order: libjpeg paints over that.

    Raises:
        PhotoRejected: data are missing between restart markers.
    """
    if 8 * (layout.scans[0].end - layout.scans[0].start) < _mcu_count(layout, layout.scans[0]):
        raise PhotoRejected(INCOMPLETE)  # an MCU takes a bit at least: such a claim must not allocate
    if {component.ident for component in layout.components} - set(b"".join(scan.idents for scan in layout.scans)):
        raise PhotoRejected(INCOMPLETE)
    for scan in layout.scans:
        most = _mcu_count(layout, scan)
        restarts = RESTART_IN_SCAN.finditer(data, scan.start, scan.end)
        numbers = bytes(restart[1][0] for restart in itertools.islice(restarts, most + 1))
        if len(numbers) > most:  # to put a canary before each of them would take 70 times their room
            raise PhotoRejected("the JPEG is corrupt: it has more restart markers than blocks")
        expected = (most - 1) // scan.restart_interval if scan.restart_interval else 0
        if len(numbers) < expected or numbers[:expected] != (RESTARTS * (expected // 8 + 1))[:expected]:
            raise PhotoRejected(INCOMPLETE)


def _mcu_count(layout: Layout, scan: Scan) -> int:
    """How many MCUs a scan has: ITU-T T.81, A.2."""
    widest = max(component.factors[0] for component in layout.components)
    tallest = max(component.factors[1] for component in layout.components)
    if len(scan.idents) > 1:
        return math.ceil(layout.width_px / widest / 8) * math.ceil(layout.height_px / tallest / 8)
    horizontal, vertical = next((c.factors for c in layout.components if c.ident == scan.idents[0]), (widest, tallest))
    return math.ceil(layout.width_px * horizontal / widest / 8) * math.ceil(layout.height_px * vertical / tallest / 8)


def _encode(colour: Samples, data: bytes, layout: Layout) -> bytes:
    # Pillow gives component i table i, and the last table to all behind: tables shared at the end are stated once.
    chosen = [component.table for component in layout.components]
    while len(chosen) > 1 and chosen[-1] == chosen[-2]:
        chosen.pop()
    is_optimised = not _huffman_tables(data, layout) <= _standard_huffman_tables()
    is_progressive = layout.frame == PROGRESSIVE
    is_roomy = 2 * len(data) <= PILLOW_BUFFER * colour.shape[0] * colour.shape[1]
    jpeg = io.BytesIO()
    try:
        with _buffer_of(2 * len(data)) if (is_progressive or is_optimised) and not is_roomy else nullcontext():
            Image.fromarray(colour).save(
                jpeg,
                "JPEG",
                qtables=[layout.tables[table] for table in chosen],
                subsampling=_subsampling(layout),
                progressive=is_progressive,
                optimize=is_optimised,
                keep_rgb=_is_coded_as_rgb(data, layout),
                restart_marker_blocks=layout.scans[0].restart_interval,
            )
    except OSError as error:
        raise PhotoRejected("the denoised photo does not fit into a JPEG like the source") from error
    return jpeg.getvalue()


@contextmanager
def _buffer_of(size_bytes: int) -> Iterator[None]:
    """Let Pillow give libjpeg a buffer of at least this size.

    A progressive or optimised JPEG must fit into it as a whole. Pillow's guess is too small for photos of the highest
    quality, and it can only be changed by a variable of its module. A larger value harms no other thread.
    """
    with BUFFER_LOCK:
        before = ImageFile.MAXBLOCK
        ImageFile.MAXBLOCK = max(before, size_bytes)
        try:
            yield
        finally:
            ImageFile.MAXBLOCK = before


def _huffman_tables(data: bytes, layout: Layout) -> set[bytes]:
    """The Huffman tables as (class, destination, lengths, values); several may share a segment."""
    found = set()
    for segment in layout.segments:
        if segment.marker != HUFFMAN:
            continue
        payload = data[segment.payload : segment.end]
        while len(payload) >= 17:
            size = 17 + sum(payload[1:17])
            found.add(payload[:size])
            payload = payload[size:]
    return found


@functools.cache
def _standard_huffman_tables() -> set[bytes]:
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    return _huffman_tables(jpeg.getvalue(), _layout(jpeg.getvalue()))
