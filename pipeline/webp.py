"""WebP: walk its RIFF chunks, decode, and put a new bitstream between the source's own chunks."""

import io
from dataclasses import dataclass

import imagecodecs
from PIL import Image

from pipeline.container import SIGNED, SIGNED_ELSEWHERE, Header, Pixels, Samples
from pipeline.errors import PhotoRejected
from pipeline.ifd import read_shot

LOSSY, LOSSLESS, ALPHA, EXTENDED, ANIMATION = b"VP8 ", b"VP8L", b"ALPH", b"VP8X", b"ANIM"
START_CODE = b"\x9d\x01\x2a"
LOSSLESS_SIGNATURE = 0x2F
ALPHA_HINT = 0x10  # in byte 4 of VP8L
OPAQUE = 255
ANIMATION_FLAG, ALPHA_FLAG = 0x02, 0x10  # in byte 0 of VP8X
MAX_CHUNKS = 1 << 16
LOSSY_METHOD = 4
LOSSLESS_METHOD, LOSSLESS_EFFORT = 1, 0  # files 2.6 % larger than at 4 and 75, in a quarter of the time

CORRUPT = "the WebP is corrupt: its chunks do not line up"
TRUNCATED = "the WebP is cut off: it is shorter than it says"
UNDECODABLE = "the WebP is damaged: its picture cannot be decoded"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One RIFF chunk: its type, its start, its payload, and its end, padding included."""

    kind: bytes
    start: int
    payload: int
    payload_end: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A WebP taken apart. `end` is where the RIFF container says it ends."""

    chunks: tuple[Chunk, ...]
    bitstream: Chunk | None  # None in an animation
    width_px: int
    height_px: int
    has_alpha: bool
    end: int


def inspect(data: bytes) -> Header:
    """Read the header.

    Raises:
        PhotoRejected: the WebP is cut off or corrupt.
    """
    layout = _layout(data)
    exif = next((data[c.payload : c.payload_end] for c in layout.chunks if c.kind == b"EXIF"), b"")
    is_signed = any(
        c.kind == b"C2PA" or (c.kind == b"XMP " and SIGNED_ELSEWHERE.search(data, c.payload, c.payload_end))
        for c in layout.chunks
    )
    reason = "an animation is not denoised" if layout.bitstream is None else SIGNED if is_signed else None
    return Header(
        format="webp",
        width_px=layout.width_px,
        height_px=layout.height_px,
        mode="RGBA" if layout.has_alpha else "RGB",
        bit_depth=8,
        shot=read_shot(exif),
        untouched_reason=reason,
    )


def decode(data: bytes) -> Pixels:
    """Decode the picture.

    Raises:
        PhotoRejected: the bitstream is damaged or too short.
    """
    layout = _layout(data)
    return Pixels.split(_decoded(data, layout, has_alpha=layout.has_alpha))


def _decoded(data: bytes, layout: Layout, *, has_alpha: bool) -> Samples:
    try:
        return imagecodecs.webp_decode(_bare(data, layout), hasalpha=has_alpha)
    except (RuntimeError, ValueError) as error:
        raise PhotoRejected(UNDECODABLE) from error


def encode(pixels: Pixels, data: bytes) -> bytes:
    """Write `pixels` with the kind of bitstream and every other chunk of the WebP `data`, in their order.

    Lossless stays lossless, with the colours under transparent pixels. Lossy is encoded at the quality that has the
    source's mean quantiser, to within one step of libwebp's scale of 100; the chunk with its alpha stays as it is.

    Raises:
        PhotoRejected: libwebp cannot encode the pixels.
    """
    layout = _layout(data)
    source = layout.bitstream
    assert source is not None  # an animation is never encoded
    if source.kind == LOSSLESS:
        options = {"lossless": True, "exact": True, "quality": LOSSLESS_EFFORT, "method": LOSSLESS_METHOD}
        if not layout.has_alpha:  # as it says; RFC 9649, 3.4, calls that a hint
            alpha = _decoded(data, layout, has_alpha=True)[..., 3]
            pixels = pixels if (alpha == OPAQUE).all() else Pixels(pixels.colour, alpha)
        samples = pixels.joined()
    else:
        options = {"quality": _lossy_quality(data[source.payload : source.payload_end]), "method": LOSSY_METHOD}
        samples = pixels.colour
    webp = io.BytesIO()
    try:
        Image.fromarray(samples).save(webp, "WEBP", **options)
    except (OSError, ValueError) as error:
        raise PhotoRejected("the denoised photo does not fit into a WebP like the source") from error
    new = webp.getvalue()
    written = _layout(new).bitstream
    assert written is not None
    payload = bytearray(new[written.payload : written.payload_end])
    if source.kind == LOSSLESS:
        payload[4] = payload[4] & ~ALPHA_HINT | data[source.payload + 4] & ALPHA_HINT
    image = _chunk(source.kind, payload)
    chunks = [image if chunk is source else data[chunk.start : chunk.end] for chunk in layout.chunks]
    rest = data[layout.chunks[-1].end : layout.end]  # too short to be a chunk
    return _riff([*chunks, rest]) + data[layout.end :]


def _layout(data: bytes) -> Layout:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data) or len(data) < 12:
        raise PhotoRejected(TRUNCATED)
    chunks = _chunks(data, end)
    extended = data[chunks[0].payload : chunks[0].payload_end] if chunks[0].kind == EXTENDED else b""
    if chunks[0].kind not in (LOSSY, LOSSLESS, EXTENDED) or len(extended) not in (0, 10):
        raise PhotoRejected(CORRUPT)
    canvas = (1 + int.from_bytes(extended[4:7], "little"), 1 + int.from_bytes(extended[7:10], "little"))
    if (extended and extended[0] & ANIMATION_FLAG) or any(chunk.kind == ANIMATION for chunk in chunks):
        return Layout(chunks, None, *canvas, has_alpha=bool(extended) and bool(extended[0] & ALPHA_FLAG), end=end)
    bitstreams = [chunk for chunk in chunks if chunk.kind in (LOSSY, LOSSLESS)]
    if len(bitstreams) != 1:
        raise PhotoRejected(CORRUPT)
    bitstream = data[bitstreams[0].payload : bitstreams[0].payload_end]
    is_lossless = bitstreams[0].kind == LOSSLESS
    size = _lossless_size(bitstream) if is_lossless else _lossy_size(bitstream)
    if extended and size != canvas:
        raise PhotoRejected(CORRUPT)
    has_alpha = bool(bitstream[4] & ALPHA_HINT) if is_lossless else any(chunk.kind == ALPHA for chunk in chunks)
    return Layout(chunks, bitstreams[0], *size, has_alpha=has_alpha, end=end)


def _chunks(data: bytes, end: int) -> tuple[Chunk, ...]:
    chunks: list[Chunk] = []
    start = 12
    while start + 8 <= end:
        payload = start + 8
        payload_end = payload + int.from_bytes(data[start + 4 : payload], "little")
        if payload_end > end:
            raise PhotoRejected(TRUNCATED)
        if len(chunks) == MAX_CHUNKS:
            raise PhotoRejected(CORRUPT)
        next_start = payload_end + payload_end % 2
        chunks.append(Chunk(data[start : start + 4], start, payload, payload_end, min(next_start, end)))
        start = next_start
    if not chunks:
        raise PhotoRejected(CORRUPT)
    return tuple(chunks)


def _lossy_size(bitstream: bytes) -> tuple[int, int]:
    """Width and height in the frame header of VP8: RFC 6386, 9.1. The two top bits of each ask for scaling."""
    if len(bitstream) < 12 or bitstream[0] & 1 or bitstream[3:6] != START_CODE:
        raise PhotoRejected(CORRUPT)
    return int.from_bytes(bitstream[6:8], "little") & 0x3FFF, int.from_bytes(bitstream[8:10], "little") & 0x3FFF


def _lossless_size(bitstream: bytes) -> tuple[int, int]:
    """Width and height in the header of VP8L: RFC 9649, 3.4. Its alpha hint is bit 4 of byte 4."""
    if len(bitstream) < 5 or bitstream[0] != LOSSLESS_SIGNATURE:
        raise PhotoRejected(CORRUPT)
    packed = int.from_bytes(bitstream[1:5], "little")
    return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)


def _bare(data: bytes, layout: Layout) -> bytes:
    """The WebP without metadata, which a decoder has no need to parse."""
    assert layout.bitstream is not None  # an animation is never decoded
    kinds = (ALPHA, LOSSY) if layout.bitstream.kind == LOSSY else (LOSSLESS,)
    chunks = [data[c.start : c.end] for c in layout.chunks if c.kind in kinds]
    if len(chunks) > 1:
        canvas = (layout.width_px - 1).to_bytes(3, "little") + (layout.height_px - 1).to_bytes(3, "little")
        chunks.insert(0, _chunk(EXTENDED, bytes([ALPHA_FLAG, 0, 0, 0]) + canvas))
    return _riff(chunks)


def _riff(chunks: list[bytes]) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _chunk(kind: bytes, payload: bytes | bytearray) -> bytes:
    return kind + len(payload).to_bytes(4, "little") + bytes(payload) + bytes(len(payload) % 2)


def _lossy_quality(bitstream: bytes) -> int:
    """The quality on libwebp's scale for the mean quantiser of a frame: the inverse of its QualityToCompression.

    The quantiser there is cut to an integer in each segment; 0.7 makes up for it, by measurement on photos.
    """
    quantiser = _mean_quantiser(bitstream)
    if quantiser == 0:
        return 100
    linear = max(0.0, 1 - (quantiser + 0.7) / 127) ** 3
    return round(100 * (linear * 1.5 if linear < 0.5 else (linear + 1) / 2))


def _mean_quantiser(bitstream: bytes) -> float:
    """The quantiser index (0 to 127), averaged over the macroblocks: the frame header of RFC 6386, 9.2–9.6 and 19.2."""
    bits = _Bits(bitstream[10:])
    bits.number(2)  # colour space, clamping
    is_segmented = bits.number(1)
    are_absolute, levels, shares = 0, [0, 0, 0, 0], [1.0, 0.0, 0.0, 0.0]
    if is_segmented:
        has_map, has_levels = bits.number(1), bits.number(1)
        if has_levels:
            are_absolute = bits.number(1)
            levels = [bits.optional_signed(7) for _ in range(4)]
            for _ in range(4):
                bits.optional_signed(6)  # loop filter strengths
        if has_map:
            first, low, high = [(bits.number(8) if bits.number(1) else 255) / 255 for _ in range(3)]
            shares = [first * low, first * (1 - low), (1 - first) * high, (1 - first) * (1 - high)]
    bits.number(1 + 6 + 3)  # the loop filter's kind, strength and sharpness
    if bits.number(1) and bits.number(1):
        for _ in range(8):
            bits.optional_signed(6)
    bits.number(2)  # number of partitions
    base = bits.number(7)
    if are_absolute:
        base = 0
    return sum(share * min(127, max(0, base + level)) for share, level in zip(shares, levels, strict=True))


class _Bits:
    """The boolean decoder of VP8 (RFC 6386, 7.3) at even odds, in which headers are written. Zeros follow the end."""

    def __init__(self, data: bytes) -> None:
        self.bits = iter("".join(f"{byte:08b}" for byte in data[:64]))  # no header is longer
        self.range = 255
        self.value = 0
        self._shift(8)

    def number(self, width: int) -> int:
        number = 0
        for _ in range(width):
            number = 2 * number + self._bit()
        return number

    def optional_signed(self, width: int) -> int:
        """A flag, and behind it magnitude and sign; 0 when the flag is not set."""
        if not self._bit():
            return 0
        magnitude = self.number(width)
        return -magnitude if self._bit() else magnitude

    def _bit(self) -> int:
        split = (self.range + 1) // 2
        bit = int(self.value >= split)
        if bit:
            self.value -= split
            self.range -= split
        else:
            self.range = split
        while self.range < 128:
            self.range *= 2
            self._shift(1)
        return bit

    def _shift(self, count: int) -> None:
        for _ in range(count):
            self.value = 2 * self.value + int(next(self.bits, "0"))
