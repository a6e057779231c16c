"""Bytes <-> pixels: what must survive, what is left untouched, what is rejected, and what hostile bytes may not do."""

import base64
import io
import struct
import tracemalloc
import zipfile
import zlib
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, JpegImagePlugin

import pipeline.png
from model.estimate import estimate_noise
from pipeline import images
from pipeline.errors import PhotoKept, PhotoRejected
from pipeline.images import Limits, Pixels, decode, encode, inspect

HEIGHT, WIDTH = 40, 56
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NOTHING_LIKE_AN_IMAGE = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"


# ---------------------------------------------------------------- photos made here


@cache
def photo(channels: int = 3, bit_depth: int = 8, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth scene with some noise: (H, W, C), or (H, W) for one channel."""
    y, x = np.mgrid[:height, :width]
    scene = np.stack([90 + 60 * np.sin((x + 9 * c) / 9) + 40 * np.cos(y / (5 + c)) for c in range(channels)], axis=-1)
    noisy = scene + np.random.default_rng(channels).normal(0, 4, scene.shape)
    scale = 1 if bit_depth == 8 else 257
    samples = np.clip(noisy * scale, 0, 255 * scale).astype(f"uint{bit_depth}")
    samples.setflags(write=False)
    return samples[..., 0] if channels == 1 else samples


def saved(samples: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    picture = samples if isinstance(samples, Image.Image) else Image.fromarray(samples)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(samples: np.ndarray | None = None, *segments: bytes, **options: object) -> bytes:
    """A JPEG with further segments right behind its start marker."""
    if "qtables" not in options:
        options.setdefault("quality", 88)
    data = saved(photo() if samples is None else samples, "JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def png(samples: np.ndarray | None = None) -> bytes:
    return bytes(imagecodecs.png_encode(photo() if samples is None else samples, level=6))


def png_chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def subsampled_rgb_jpeg() -> bytes:
    """Its header is that of `cjpeg -rgb -sample 2x2`."""
    source = jpeg(keep_rgb=True, subsampling=0)
    return source.replace(b"R\x11\0", b"R\x22\0", 1)


def png_with(*chunks: bytes, behind: bytes = b"", samples: np.ndarray | None = None) -> bytes:
    """A PNG with `chunks` in front of its image data and `behind` after them."""
    data = png(samples)
    start, end = data.index(b"IDAT") - 4, len(data) - 12
    return data[:start] + b"".join(chunks) + data[start:end] + behind + data[end:]


def apples_png() -> bytes:
    """As Xcode writes it into apps: its own chunk first, and deflate without the header of zlib."""
    pixels = b"".join(b"\0" + row.tobytes() for row in photo())
    return b"".join(
        [
            PNG_SIGNATURE,
            png_chunk(b"CgBI", bytes.fromhex("50002002")),
            header_chunk(WIDTH, HEIGHT),
            png_chunk(b"IDAT", zlib.compress(pixels, wbits=-15)),
            png_chunk(b"IEND"),
        ]
    )


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Type and payload of all chunks, the image data merged into one."""
    found, start = [], 8
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        if not (kind == b"IDAT" and found[-1][0] == b"IDAT"):
            found.append((kind, b"" if kind == b"IDAT" else data[start + 8 : start + 8 + size]))
        start += 12 + size
    return found


def header_chunk(width: int, height: int, bit_depth: int = 8, colour_type: int = 2, interlace: int = 0) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, interlace))


def interlaced_png(samples: np.ndarray) -> bytes:
    """Adam7 by hand, unfiltered: no encoder at hand writes it."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [row for x, y, dx, dy in passes for row in samples[y::dy, x::dx] if row.size]
    raw = b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in rows)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2] if samples.ndim == 3 else 1]
    header = header_chunk(samples.shape[1], samples.shape[0], 8 * samples.itemsize, colour_type, interlace=1)
    return PNG_SIGNATURE + header + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND")


def tiff(samples: np.ndarray | None = None, *, big: bool = False, order: str = "<", **options: object) -> bytes:
    samples = photo() if samples is None else samples
    options.setdefault("photometric", "minisblack" if samples.ndim == 2 else "rgb")
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:
        writer.write(samples, metadata=None, **options)
    return file.getvalue()


def tiff_with_tag(code: int, payload: bytes) -> bytes:
    return tiff(extratags=[(code, 7, len(payload), payload, True)])


def retagged(data: bytes, tag: int, value: int, new_tag: int | None = None) -> bytes:
    """A little-endian TIFF in which one tag has another number and one 16-bit value."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        entry = file.pages[0].tags[tag].offset
    return data[:entry] + struct.pack("<HHIHH", new_tag or tag, 3, 1, value, 0) + data[entry + 12 :]


def webp(samples: np.ndarray | None = None, **options: object) -> bytes:
    return saved(photo() if samples is None else samples, "WEBP", **options)


def riff_chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, start = [], 12
    while start < len(data):
        kind, size = struct.unpack_from("<4sI", data, start)
        found.append((kind, data[start + 8 : start + 8 + size]))
        start += 8 + size + size % 2
    return found


def exif(**tags: int | str) -> bytes:
    """An EXIF block with GPS and a date; `orientation=6` sets the orientation."""
    block = Image.Exif()
    block[0x010F] = "Camera"
    if "orientation" in tags:
        block[0x0112] = tags["orientation"]
    block.get_ifd(0x8769)[0x9003] = "2019:07:01 12:00:00"
    block.get_ifd(0x8825)[1] = "N"
    return block.tobytes()


def read(data: bytes, name: str = "") -> Pixels:
    return images.decode(data, images.inspect(data, name=name))


def rewritten(data: bytes, pixels: Pixels | None = None) -> bytes:
    """The file with its own, or with new pixels."""
    header = images.inspect(data)
    return images.encode(pixels or images.decode(data, header), data, header)


def inverted(data: bytes) -> bytes:
    """The file with pixels that are nowhere those of the source."""
    pixels = read(data)
    return rewritten(data, Pixels(np.invert(pixels.colour), pixels.alpha))


def assert_same(found: Pixels, expected: Pixels) -> None:
    np.testing.assert_array_equal(found.colour, expected.colour, strict=True)
    if expected.alpha is None:
        assert found.alpha is None
    else:
        np.testing.assert_array_equal(found.alpha, expected.alpha, strict=True)


# ---------------------------------------------------------------- JPEG


def test_all_segments_of_a_jpeg_survive_byte_for_byte_and_in_order():
    profile = [segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 3]) + bytes([i]) * 60_000) for i in (1, 2, 3)]
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    extended_xmp = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40_000))
    iptc = segment(0xED, b"Photoshop 3.0\08BIM\x04\x04\0\0\0\0\0\x04\x1c\x02\x05\0")
    maker = segment(0xEB, b"HDR_RI ver=11")
    source = jpeg(None, segment(0xE1, exif(orientation=6)), xmp, extended_xmp, *profile, iptc, maker, comment=b"hello")

    result = inverted(source)

    expected, found = Image.open(io.BytesIO(source)), Image.open(io.BytesIO(result))
    assert found.applist == expected.applist
    assert len(found.applist) == 10
    assert (found.info["jfif_density"], found.getexif()[0x0112]) == (expected.info["jfif_density"], 6)


@pytest.mark.parametrize("quality", [35, 80, 98])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_keeps_its_tables_its_subsampling_and_its_kind_of_scans(quality, subsampling, progressive):
    source = jpeg(quality=quality, subsampling=subsampling, progressive=bool(progressive), dpi=(300, 240))

    result = Image.open(io.BytesIO(inverted(source)))

    assert result.quantization == Image.open(io.BytesIO(source)).quantization
    assert JpegImagePlugin.get_sampling(result) == subsampling
    assert result.info.get("progressive", 0) == progressive
    assert result.info["dpi"] == (300, 240)


@pytest.mark.parametrize(
    ("subsampling", "factors"),
    [(0, b"\x12\x12\x12"), (1, b"\x22\x12\x12"), (2, b"\x42\x21\x21")],
    ids=["444", "422", "420"],
)
def test_a_jpeg_keeps_its_subsampling_however_its_factors_tell_it(subsampling, factors):
    source = bytearray(jpeg(subsampling=subsampling))
    frame = source.index(b"\xff\xc0")
    source[frame + 11 : frame + 20 : 3] = factors

    result = images.encode(Pixels(photo()), bytes(source), inspect(bytes(source)))

    assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(result))) == subsampling


def test_a_jpeg_keeps_a_table_of_its_own_for_each_component():
    tables = [[3] * 64, list(range(1, 65)), [9] * 64]
    source = jpeg(qtables=tables)
    assert Image.open(io.BytesIO(inverted(source))).quantization == {i: list(tables[i]) for i in range(3)}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_an_unchanged_jpeg_keeps_its_picture(options):
    source = jpeg(quality=95, **options)
    change = read(rewritten(source)).colour.astype(int) - read(source).colour
    assert np.abs(change).mean() < 0.6


def test_a_gray_jpeg_stays_gray():
    result = inverted(jpeg(photo(1)))
    assert images.inspect(result).mode == "L"
    assert read(result).colour.shape == (HEIGHT, WIDTH)


def test_a_jpeg_coded_as_rgb_stays_so():
    source = jpeg(keep_rgb=True, subsampling=0)
    assert b"Adobe" in source
    result = inverted(source)
    assert Image.open(io.BytesIO(result)).applist == Image.open(io.BytesIO(source)).applist
    assert np.abs(read(result).colour.astype(int) - np.invert(photo())).mean() < 3


@pytest.mark.parametrize("mark", ["identifiers", "Adobe", "both"])
def test_a_jpeg_is_known_to_be_coded_as_rgb_by_either_mark(mark):
    source = jpeg(np.full((16, 16, 3), (200, 90, 30), np.uint8), keep_rgb=True, subsampling=0)
    if mark == "identifiers":
        source = source.replace(source[2:18], b"", 1)
    if mark == "Adobe":
        source = source.replace(b"R\x11\0G\x11\0B\x11\0", b"\1\x11\0\2\x11\0\3\x11\0").replace(
            b"R\0G\0B\0", b"\1\0\2\0\3\0"
        )
    colour = read(rewritten(source)).colour
    np.testing.assert_allclose(colour, np.broadcast_to((200, 90, 30), colour.shape), atol=3)


def test_the_sampling_factors_of_a_gray_jpeg_mean_nothing():
    source = jpeg(photo(1)).replace(b"\1\1\x11\0", b"\1\1\x22\0", 1)
    np.testing.assert_array_equal(read(source).colour, read(jpeg(photo(1))).colour)
    assert rewritten(source) == rewritten(jpeg(photo(1)))


def test_the_restart_interval_of_a_jpeg_survives():
    source = jpeg(restart_marker_blocks=3)
    interval = segment(0xDD, b"\0\3")
    assert interval in source
    assert interval in inverted(source)


@pytest.mark.parametrize("is_optimised", [True, False])
def test_a_jpeg_keeps_optimised_or_standard_huffman_tables(is_optimised):
    source = jpeg(optimize=is_optimised)
    assert (huffman_tables(source) == huffman_tables(jpeg())) is not is_optimised
    assert (huffman_tables(inverted(source)) == huffman_tables(jpeg())) is not is_optimised


def huffman_tables(data: bytes) -> list[bytes]:
    starts = [i for i in range(data.index(b"\xff\xda")) if data[i : i + 2] == b"\xff\xc4"]
    return [data[i : i + 2 + int.from_bytes(data[i + 2 : i + 4], "big")] for i in starts]


def test_padding_behind_the_end_of_a_jpeg_survives():
    source = jpeg() + bytes(700)
    assert inverted(source).endswith(b"\xff\xd9" + bytes(700))


def pillow_rgb(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


TRAILERS = {"picture": jpeg, "video": lambda: ftyp(b"mp42") + bytes(300), "maker": lambda: b"SEFH\0\0\0SEFT"}


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_what_lies_behind_a_jpeg_stays_at_its_very_offset(trailer, options):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    source = jpeg(noise, segment(0xE5, b"an offset of what lies behind"), **options) + trailer()
    result = encode(Pixels(np.full_like(noise, 90)), source, inspect(source))
    assert len(result) == len(source)
    assert result.endswith(b"\xff\xff\xff\xd9" + trailer())
    assert result.index(b"an offset") == source.index(b"an offset")
    assert np.abs(pillow_rgb(result).astype(int) - 90).max() <= 1
    np.testing.assert_array_equal(decode(result, inspect(result)).colour, pillow_rgb(result))


def test_the_second_picture_of_a_multi_picture_file_is_still_found():
    noise, preview = (np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in (0, 1))
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "MPO", save_all=True, append_images=[Image.fromarray(preview)])
    source = file.getvalue()
    result = encode(Pixels(np.full_like(noise, 90)), source, inspect(source))
    before, after = Image.open(io.BytesIO(source)), Image.open(io.BytesIO(result))
    before.seek(1)
    after.seek(1)
    assert np.array_equal(np.asarray(after), np.asarray(before))


def test_a_result_with_no_room_before_what_lies_behind_is_not_written():
    source = jpeg(np.full((64, 64, 3), 90, np.uint8)) + b"SEFH"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(PhotoKept, match="no room before them"):
        encode(Pixels(noise), source, inspect(source))


def test_megabytes_of_fill_bytes_do_not_matter():
    source = jpeg()[:-2] + b"\xff" * 20_000_000 + b"\xff\xd9"
    np.testing.assert_array_equal(decode(source, inspect(source)).colour, pillow_rgb(jpeg()))


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}], ids=str)
def test_a_jpeg_of_pure_noise_at_the_highest_quality_is_encoded(options, capfd, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "MAXBLOCK", 1 << 20)  # Pillow's own guess is too small for such a picture
        source = jpeg(noise, qtables=[[1] * 64], subsampling=0, **options)
    assert len(inverted(source)) > 2 * 400 * 400
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- PNG

ANCILLARY = [
    png_chunk(b"gAMA", struct.pack(">I", 45455)),
    png_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    png_chunk(b"sRGB", b"\0"),
    png_chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(5000))),
    png_chunk(b"cICP", b"\x01\x0d\0\x01"),
    png_chunk(b"sBIT", b"\x08\x08\x08"),
    png_chunk(b"bKGD", bytes(6)),
    png_chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
    png_chunk(b"tIME", b"\x07\xe3\x07\x01\x0c\0\0"),
    png_chunk(b"tEXt", b"Author\0somebody"),
    png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"hello")),
    png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta/>"),
    png_chunk(b"eXIf", exif(orientation=8)[6:]),
    png_chunk(b"prVt", b"whatever"),
]


def test_all_chunks_of_a_png_survive_byte_for_byte_and_in_order():
    source = png_with(*ANCILLARY, behind=png_chunk(b"tEXt", b"After\0the image") + png_chunk(b"prVt", b""))
    result = inverted(source)
    assert png_chunks(result) == png_chunks(source)
    assert images.inspect(result).orientation == 8


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("write", [png, interlaced_png], ids=["plain", "interlaced"])
def test_a_png_of_each_kind_is_written_exactly(channels, bit_depth, write):
    source = write(photo(channels, bit_depth))
    header, pixels = images.inspect(source), read(source)
    assert (header.mode, header.bit_depth) == (["L", "LA", "RGB", "RGBA"][channels - 1], bit_depth)
    np.testing.assert_array_equal(pixels.joined(), photo(channels, bit_depth), strict=True)
    new = Pixels(np.invert(pixels.colour), pixels.alpha)
    result = rewritten(source, new)
    assert images.inspect(result) == header
    assert_same(read(result), new)
    assert png_chunks(result)[0] == png_chunks(source)[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 5)], ids=str)
def test_an_interlaced_png_too_small_for_some_passes_is_written_exactly(size):
    source = interlaced_png(photo(3, 16)[: size[0], : size[1]])
    assert_same(read(inverted(source)), Pixels(np.invert(photo(3, 16)[: size[0], : size[1]])))


@pytest.mark.parametrize("width", [1, 2, 6])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("write", [png, interlaced_png])
def test_a_narrow_and_tall_png_is_written_exactly(write, channels, width):
    samples = photo(channels, 8, 3000, width)
    assert_same(read(inverted(write(samples))), Pixels(np.invert(samples)))


def png_of_stream(stream: bytes) -> bytes:
    return PNG_SIGNATURE + header_chunk(WIDTH, HEIGHT) + png_chunk(b"IDAT", stream) + png_chunk(b"IEND")


def changed(stream: bytes) -> st.SearchStrategy[bytes]:
    """A zlib stream with some bytes written over, cut off, or more behind it."""
    places = st.lists(st.tuples(st.integers(0, len(stream) - 1), st.integers(0, 255)), max_size=3)

    def change(places: list[tuple[int, int]], length: int, behind: bytes) -> bytes:
        some = bytearray(stream)
        for place, value in places:
            some[place] = value
        return bytes(some[:length]) + behind

    return st.builds(change, places, st.integers(1, len(stream)) | st.just(len(stream)), st.binary(max_size=4))


RAW = b"".join(b"\0" + row.tobytes() for row in photo())
STREAMS = {
    "as it should be": zlib.compress(RAW),
    "stored": zlib.compress(RAW, 0),
    "a row too few": zlib.compress(RAW[: -1 - 3 * WIDTH]),
    "a byte too many": zlib.compress(RAW + b"\0"),
    "far too much": zlib.compress(RAW + bytes(10**6)),
    "of two streams": zlib.compress(RAW[:999]) + zlib.compress(RAW[999:]),
    "of a small window": zlib.compressobj(wbits=9).compress(b"") + zlib.compress(RAW)[2:],
    "nothing": b"",
}


def outcome(data: bytes) -> tuple[str, bytes]:
    try:
        return "decoded", read(data).joined().tobytes()
    except PhotoRejected as error:
        return str(error), b""


@pytest.mark.parametrize("name", STREAMS)
def test_image_data_of_any_kind_come_to_what_libpng_alone_makes_of_them(name, monkeypatch):
    found = outcome(png_of_stream(STREAMS[name]))
    monkeypatch.setattr(pipeline.png, "INFLATED_BYTES", 0)
    assert found == outcome(png_of_stream(STREAMS[name]))


@settings(max_examples=300, deadline=None)
@given(stream=st.sampled_from(list(STREAMS.values())[:2]).flatmap(changed))
def test_damaged_image_data_come_to_what_libpng_alone_makes_of_them(stream):
    found = outcome(png_of_stream(stream))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.png, "INFLATED_BYTES", 0)
        assert found == outcome(png_of_stream(stream))


def test_an_index_into_the_old_image_data_is_dropped():
    assert b"iDOT" not in inverted(png_with(png_chunk(b"iDOT", bytes(28))))


def test_a_png_too_long_for_libpng_is_rejected_for_that():
    source = png(np.zeros((1, 1_000_000), np.uint8))
    assert read(source).colour.shape == (1, 1_000_000)
    header = header_chunk(1_000_000, 1, 8, 0)
    longer = source.replace(header, header_chunk(1_000_001, 1, 8, 0))
    with pytest.raises(PhotoRejected, match="1,000,001 × 1 pixels, and only sides of up to 1,000,000 can be decoded"):
        read(longer)


def test_bytes_behind_the_end_of_a_png_survive():
    assert inverted(png() + b"trailer").endswith(b"IEND\xae\x42\x60\x82trailer")


def test_compressed_metadata_of_a_png_are_never_inflated():
    broken = [png_chunk(b"zTXt", b"Comment\0\0not a zlib stream"), png_chunk(b"iCCP", b"name\0\0nor this")]
    source = png_with(*broken)
    assert all(chunk in inverted(source) for chunk in broken)


# ---------------------------------------------------------------- TIFF

COMPRESSIONS = [None, "lzw", "zlib", "packbits", "lzma", "zstd", "adobe_deflate"]
LAYOUTS = [{"rowsperstrip": 16}, {"tile": (16, 32)}, {"planarconfig": "separate", "rowsperstrip": 8}, {"big": True}]


def planes_first(samples: np.ndarray, options: dict) -> np.ndarray:
    return samples.transpose(2, 0, 1) if "planarconfig" in options else samples


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize(("order", "bit_depth", "predictor"), [("<", 8, True), (">", 16, True), (">", 8, False)])
def test_a_tiff_keeps_its_tags_and_is_written_exactly(compression, options, order, bit_depth, predictor):
    predictor = predictor and compression not in (None, "packbits")
    samples = planes_first(photo(3, bit_depth), options)
    source = tiff(samples, compression=compression, predictor=predictor, order=order, **options)

    result = inverted(source)

    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(result)), np.invert(samples))
    assert_same(read(result), Pixels(np.invert(photo(3, bit_depth))))
    assert stable_tags(result) == stable_tags(source)


def stable_tags(data: bytes) -> dict:
    moving = {"StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts"}
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = {tag.name: (tag.dtype, tag.count, tag.value) for tag in file.pages[0].tags if tag.name not in moving}
        return tags | {"order": file.byteorder, "big": file.is_bigtiff}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_a_tiff_of_each_mode_is_written_exactly(channels, bit_depth):
    extra = ["unassalpha"] if channels in (2, 4) else None
    photometric = "rgb" if channels > 2 else "minisblack"
    options = {"planarconfig": "contig", "photometric": photometric, "extrasamples": extra}
    source = tiff(photo(channels, bit_depth), compression="zlib", **options)
    pixels = read(source)
    assert images.inspect(source).mode == ["L", "LA", "RGB", "RGBA"][channels - 1]
    np.testing.assert_array_equal(pixels.joined(), photo(channels, bit_depth), strict=True)
    assert_same(read(inverted(source)), Pixels(np.invert(pixels.colour), pixels.alpha))


def test_a_tiff_changes_nowhere_but_in_its_strips():
    source = tiff(compression="zlib", rowsperstrip=8, software="maker", extratags=[(37500, 7, 9, b"makernote", True)])
    result = rewritten(source, Pixels(np.zeros_like(photo())))  # fits everywhere
    with tifffile.TiffFile(io.BytesIO(source)) as file:
        page = file.pages[0]
        spans = [*zip(page.dataoffsets, page.databytecounts, strict=True)]
        counts = page.tags["StripByteCounts"]
        spans.append((counts.valueoffset, counts.valuebytecount))
    expected, found = bytearray(source), bytearray(result)
    for start, size in spans:
        expected[start : start + size] = found[start : start + size] = bytes(size)
    assert found == expected


def test_the_rest_of_a_strip_that_became_smaller_is_zero():
    source = tiff(compression="zlib")
    result = rewritten(source, Pixels(np.zeros_like(photo())))
    with tifffile.TiffFile(io.BytesIO(source)) as old, tifffile.TiffFile(io.BytesIO(result)) as new:
        start, size = old.pages[0].dataoffsets[0], old.pages[0].databytecounts[0]
        assert new.pages[0].dataoffsets[0] == start
        rest = result[start + new.pages[0].databytecounts[0] : start + size]
    assert rest == bytes(len(rest))
    assert rest


def test_exif_and_gps_directories_of_a_tiff_survive():
    block = Image.Exif()
    block.load(exif(orientation=3))
    source = saved(photo(), "TIFF", exif=block, icc_profile=bytes(500), dpi=(300, 300))
    found = Image.open(io.BytesIO(inverted(source)))
    assert found.getexif().get_ifd(0x8769) == {0x9003: "2019:07:01 12:00:00"}
    assert found.getexif().get_ifd(0x8825) == {1: "N"}
    assert (found.info["icc_profile"], found.info["dpi"]) == (bytes(500), (300, 300))
    assert images.inspect(source).orientation == 3


@pytest.mark.parametrize("rows", [400, 100], ids=["one strip", "four strips"])
def test_a_strip_that_outgrows_its_place_and_its_size_field_goes_to_the_end(rows):
    flat = np.zeros((400, 400, 3), np.uint8)
    source = tiff(flat, compression="zlib", rowsperstrip=rows)
    source = with_short_sizes(source)
    noise = np.random.default_rng(0).integers(0, 256, flat.shape, dtype=np.uint8)
    result = rewritten(source, Pixels(noise))
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(result)), noise)
    assert result[8 : len(source)].count(0) > 0
    assert stable_tags(result) == stable_tags(source)


def with_short_sizes(data: bytes) -> bytes:
    """The same little-endian TIFF with its strip sizes stored as 16-bit numbers, as many writers do."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = file.pages[0].tags["StripByteCounts"]
    sizes = tag.value if isinstance(tag.value, tuple) else (tag.value,)
    new = bytearray(data)
    packed = struct.pack(f"<{len(sizes)}H", *sizes)
    struct.pack_into("<H", new, tag.offset + 2, 3)
    if len(packed) <= 4:
        new[tag.offset + 8 : tag.offset + 12] = packed.ljust(4, b"\0")
    else:
        struct.pack_into("<I", new, tag.offset + 8, len(new))
        new += packed
    return bytes(new)


def test_what_lies_behind_a_tiff_stays_at_its_end_and_else_the_tiff_stays_as_it_is():
    flat = tiff(np.zeros((400, 400, 3), np.uint8), compression="zlib")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("original.raw", np.random.default_rng(0).bytes(100_000))
    source = flat + archive.getvalue()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)

    assert zipfile.ZipFile(io.BytesIO(inverted(source))).testzip() is None
    with pytest.raises(PhotoKept, match="no room before them"):
        rewritten(source, Pixels(noise))
    assert_same(read(rewritten(flat + bytes(1000), Pixels(noise))), Pixels(noise))


@pytest.mark.parametrize("tag", [0x8769, 0x8825, 50000], ids=["EXIF", "GPS", "unknown"])
def test_nothing_is_written_where_a_tag_of_a_tiff_points_behind_its_end(tag):
    kind, count = (4, 1) if tag != 50000 else (7, 1000)
    flat = tiff(np.zeros((400, 400, 3), np.uint8), compression="zlib", software="x" * 50)
    with tifffile.TiffFile(io.BytesIO(flat)) as file:
        entry = file.pages[0].tags["Software"].offset
    source = flat[:entry] + struct.pack("<HHII", tag, kind, count, len(flat)) + flat[entry + 12 :]
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)

    assert_same(read(inverted(source)), Pixels(np.full_like(noise, 255)))
    with pytest.raises(PhotoKept):
        rewritten(source, Pixels(noise))


def test_a_tiff_is_rejected_for_a_tag_of_its_picture_that_is_no_unsigned_number():
    source = tiff(compression="lzw")
    with tifffile.TiffFile(io.BytesIO(source)) as file:
        entry = file.pages[0].tags["Compression"].offset
    source = source[: entry + 2] + struct.pack("<H", 8) + source[entry + 4 :]
    with pytest.raises(PhotoRejected, match="its directory makes no sense"):
        inspect(source)


def test_a_tiff_whose_white_is_zero_shows_its_colours_the_right_way():
    source = tiff(np.invert(photo(1)), photometric="miniswhite")
    np.testing.assert_array_equal(read(source).colour, photo(1))
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(inverted(source))), photo(1))


def test_the_padding_of_tiles_at_the_edge_survives():
    source = bytearray(tiff(tile=(32, 32)))
    with tifffile.TiffFile(io.BytesIO(bytes(source))) as file:
        last = file.pages[0].dataoffsets[-1] + file.pages[0].databytecounts[-1]
    source[last - 3 : last] = b"\x11\x22\x33"
    assert inverted(bytes(source))[last - 3 : last] == b"\x11\x22\x33"


def test_premultiplied_colour_never_exceeds_its_alpha():
    colour, alpha = np.full((16, 16, 3), 90, np.uint8), np.full((16, 16), 100, np.uint8)
    source = tiff(np.dstack((colour, alpha)), extrasamples=["assocalpha"])
    result = read(rewritten(source, Pixels(colour + 80, alpha)))
    assert_same(result, Pixels(np.full_like(colour, 100), alpha))


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_premultiplied_colour_that_exceeds_its_alpha_in_the_source_is_no_less_denoised(options):
    samples = np.maximum(photo(4), 1)
    samples[..., 3] = np.where(np.arange(WIDTH) < 20, 0, 255)
    source = tiff(planes_first(samples, options), compression="zlib", extrasamples=["assocalpha"], **options)
    assert_same(read(inverted(source)), Pixels(np.invert(samples[..., :3]), samples[..., 3]))


def test_a_raw_tiff_without_strip_sizes_is_written_exactly():
    source = retagged(tiff(), 279, 0, new_tag=50000)
    assert_same(read(inverted(source)), Pixels(np.invert(photo())))


def test_a_raw_tiff_whose_strip_sizes_are_zero_is_written_exactly():
    source = retagged(tiff(), 279, 0)
    assert_same(read(inverted(source)), Pixels(np.invert(photo())))


@pytest.mark.parametrize("with_sizes", [with_short_sizes, bytes], ids=["16-bit sizes", "32-bit sizes"])
def test_a_tiff_that_states_a_strip_too_many_is_written_exactly(with_sizes):
    flat = np.zeros((400, 400, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    source = retagged(with_sizes(tiff(flat, compression="zlib", rowsperstrip=100)), 257, 300)

    result = rewritten(source, Pixels(noise))

    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result))), noise)
    assert last_strip(result) == last_strip(source)


def last_strip(data: bytes) -> list[int]:
    """What the tags tell of it: offset and size."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return [file.pages[0].tags[name].value[-1] for name in ("StripOffsets", "StripByteCounts")]


def test_a_tiff_of_the_old_lzw_is_left_untouched():
    source = bytearray(tiff(compression="lzw"))
    with tifffile.TiffFile(io.BytesIO(bytes(source))) as file:
        start = file.pages[0].dataoffsets[0]
    source[start : start + 2] = b"\x00\x01"
    assert images.inspect(bytes(source)).untouched_reason == "TIFF of the old kind of LZW cannot be written back"


def test_a_thumbnail_in_a_tiff_is_left_as_it_is():
    source = tiff_pages(photo(), photo(3, 8, 16, 16), subfiletype=1)
    result = inverted(source)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(result), key=0), np.invert(photo()))
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(result), key=1), photo(3, 8, 16, 16))


def tiff_pages(first: np.ndarray, second: np.ndarray, *, subfiletype: int = 0, sub: bool = False, **options) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(first, photometric="rgb", metadata=None, subifds=1 if sub else None)
        options = {"photometric": "rgb", **options}
        writer.write(second, metadata=None, subfiletype=subfiletype, **options)
    return file.getvalue()


# ---------------------------------------------------------------- WebP


def test_all_chunks_of_a_webp_survive_byte_for_byte_and_in_order():
    source = webp(exif=exif(orientation=5), xmp=b"<x:xmpmeta/>", icc_profile=bytes(333))
    source = riff(*(riff_chunk(*chunk) for chunk in riff_chunks(source)), riff_chunk(b"prVt", b"odd")) + b"trailer"
    result = inverted(source)
    kept = [chunk for chunk in riff_chunks(source[:-7]) if chunk[0] != b"VP8 "]
    assert [chunk for chunk in riff_chunks(result[:-7]) if chunk[0] != b"VP8 "] == kept
    assert [kind for kind, _ in riff_chunks(result[:-7])] == [kind for kind, _ in riff_chunks(source[:-7])]
    assert result.endswith(b"trailer")
    assert images.inspect(result) == images.inspect(source)
    assert images.inspect(result).orientation == 5


def test_bytes_too_few_for_a_chunk_at_the_end_of_a_webp_survive():
    source = riff(*(riff_chunk(*chunk) for chunk in riff_chunks(webp())), b"1234567")
    result = inverted(source)
    assert result.endswith(b"1234567")
    assert int.from_bytes(result[4:8], "little") == len(result) - 8


@pytest.mark.parametrize("channels", [3, 4])
def test_a_lossless_webp_is_written_exactly_even_under_transparent_pixels(channels):
    samples = photo(channels).copy()
    samples[:10, :, 3:] = 0
    source = webp(samples, lossless=True, exact=True)
    result = inverted(source)
    assert [kind for kind, _ in riff_chunks(result)] == [b"VP8L"]
    assert_same(read(result), Pixels(np.invert(samples[..., :3]), samples[..., 3] if channels == 4 else None))


def test_an_opaque_alpha_of_a_lossless_webp_stays():
    source = bytearray(webp(lossless=True))
    source[24] |= 0x10  # the hint in VP8L that alpha is used
    result = rewritten(bytes(source))
    assert images.inspect(result).mode == "RGBA"
    assert_same(read(result), Pixels(photo(), np.full((HEIGHT, WIDTH), 255, np.uint8)))


def test_the_alpha_of_a_lossy_webp_survives_bit_by_bit():
    source = webp(photo(4), quality=70)
    result = inverted(source)
    assert dict(riff_chunks(result))[b"ALPH"] == dict(riff_chunks(source))[b"ALPH"]
    np.testing.assert_array_equal(read(result).alpha, photo(4)[..., 3])


@pytest.mark.parametrize("quality", [20, 50, 75, 80, 90, 95, 100])
def test_a_lossy_webp_keeps_its_quality(quality):
    noisy = photo(3, 8, 200, 300)
    source = webp(noisy, quality=quality)
    same_quality = webp(read(source).colour, quality=quality)
    result = rewritten(source)
    assert [kind for kind, _ in riff_chunks(result)] == [b"VP8 "]
    assert len(result) == pytest.approx(len(same_quality), rel=0.05)
    if quality >= 75:  # where most photos are, to the very step
        assert result == same_quality


# ---------------------------------------------------------------- headers and all formats


@pytest.mark.parametrize("orientation", [1, 6, 8, 0, 9, 65535])
def test_the_orientation_is_read_and_an_invalid_one_is_1(orientation):
    block = exif(orientation=orientation)
    blocks_in_png = [png_with(png_chunk(b"eXIf", payload)) for payload in (block, block[6:])]
    blocks_in_webp = [webp(exif=payload) for payload in (block, block[6:])]
    sources = [jpeg(exif=block), *blocks_in_png, *blocks_in_webp]
    expected = orientation if 1 <= orientation <= 8 else 1
    assert [images.inspect(source).orientation for source in sources] == [expected] * 5


@pytest.mark.parametrize("block", [b"", b"II", b"Exif\0\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_says_nothing_about_orientation_and_survives(block):
    source = jpeg(None, segment(0xE1, b"Exif\0\0" + block))
    assert images.inspect(source).orientation == 1
    assert segment(0xE1, b"Exif\0\0" + block) in inverted(source)


@pytest.mark.parametrize("tag", [34665, 34853], ids=["EXIF", "GPS"])
@pytest.mark.parametrize("offset", [60_000, 1_000], ids=["behind the end", "amid the pixels"])
def test_a_tiff_whose_exif_is_elsewhere_than_it_says_is_denoised(tag, offset):
    source = retagged(tiff(software="x"), 305, offset, new_tag=tag)
    np.testing.assert_array_equal(read(inverted(source)).colour, 255 - photo())


def test_pixels_are_as_stored_without_the_orientation_applied():
    assert read(jpeg(exif=exif(orientation=6))).colour.shape == (HEIGHT, WIDTH, 3)


FORMATS = {"jpeg": jpeg, "png": png, "tiff": tiff, "webp": webp}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_header_tells_what_the_photo_is(kind):
    header = images.inspect(FORMATS[kind](), name=f"2019/IMG.{kind}")
    assert (header.format, header.mode, header.bit_depth, header.orientation) == (kind, "RGB", 8, 1)
    assert (header.width_px, header.height_px, header.untouched_reason) == (WIDTH, HEIGHT, None)


@pytest.mark.parametrize(
    ("source", "mode", "bit_depth"),
    [
        (lambda: jpeg(Image.fromarray(photo()).convert("CMYK")), "CMYK", 8),
        (lambda: saved(Image.fromarray(photo()).convert("1"), "PNG"), "1", 1),
        (lambda: saved(Image.fromarray(photo()).convert("P"), "PNG"), "P", 8),
        (lambda: saved(Image.fromarray(photo()).convert("1"), "TIFF"), "1", 1),
        (lambda: saved(Image.fromarray(photo()).convert("P"), "TIFF"), "P", 8),
        (lambda: saved(Image.fromarray(photo()).convert("CMYK"), "TIFF"), "CMYK", 8),
        (lambda: tiff(photo(1).astype(np.float32)), "F", 32),
        (lambda: webp(photo(4)), "RGBA", 8),
        (lambda: webp(photo(4), lossless=True), "RGBA", 8),
        (lambda: animated("WEBP"), "RGB", 8),
        (apples_png, None, 8),
    ],
)
def test_the_header_names_the_mode_also_of_what_is_left_untouched(source, mode, bit_depth):
    header = images.inspect(source())
    assert (header.mode, header.bit_depth, header.width_px, header.height_px) == (mode, bit_depth, WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_pixels_give_the_same_bytes(kind):
    source = FORMATS[kind]()
    assert rewritten(source) == rewritten(source)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_photo_of_one_pixel_is_denoised(kind):
    source = FORMATS[kind](photo()[:1, :1])
    assert read(inverted(source)).colour.shape == (1, 1, 3)


@pytest.mark.parametrize("shape", [(100, 90, 3), (100, 90), (5, 7, 3)])
def test_blocks_in_which_alpha_hides_anything_are_not_seen(shape):
    alpha = np.full(shape[:2], 200, np.uint8)
    alpha[::31, ::31] = 0  # at 0, 31, 62 and 93
    colour = np.full(shape, 100, np.uint8)
    seen = Pixels(colour, alpha).seen
    rows, columns = (np.isin(np.arange(extent) // 16, np.arange(0, extent, 31) // 16) for extent in shape[:2])
    expected = ~(rows[:, None] & columns)
    assert ((seen.reshape(*shape[:2], -1) == 100).all(axis=2) == expected).all()


@pytest.mark.parametrize("share", [0.03, 0.5])
def test_holes_strewn_over_a_photo_are_no_noise(share):
    photo = np.asarray(Image.open(Path(images.__file__).parent / "demo_photos/kingfisher.jpg").convert("RGB"))
    alpha = np.where(np.random.default_rng(0).random(photo.shape[:2]) < share, 0, 255).astype(np.uint8)
    assert estimate_noise(Pixels(photo, alpha).seen).sigma < estimate_noise(photo).sigma + 1


def test_alpha_that_a_lossless_webp_says_it_has_not_survives():
    alpha = photo()[..., 0]
    source = bytearray(webp(np.dstack([photo(), alpha]), lossless=True, exact=True))
    source[source.index(b"VP8L") + 12] &= ~0x10
    assert images.inspect(bytes(source)).mode == "RGB"
    result = inverted(bytes(source))
    assert result[result.index(b"VP8L") + 12] & 0x10 == 0
    decoded = imagecodecs.webp_decode(result, hasalpha=True)
    np.testing.assert_array_equal(decoded, np.dstack([255 - photo(), alpha]))


def test_the_colour_of_an_opaque_photo_is_seen_without_a_copy():
    pixels = Pixels.split(np.dstack([photo(), np.full((HEIGHT, WIDTH), 1, np.uint8)]))
    assert np.shares_memory(pixels.seen, pixels.colour)


@pytest.mark.parametrize(
    "pixels",
    [
        Pixels(photo()[:-1]),
        Pixels(photo(1)),
        Pixels(photo(3, 16)),
        Pixels(photo(), photo(1)),
        Pixels(photo(), photo(1)[:-1]),
        Pixels(photo(), photo(1, 16)),
        Pixels(photo()),
    ],
    ids=["size", "channels", "depth", "alpha", "size of alpha", "depth of alpha", "no alpha"],
)
def test_pixels_that_do_not_belong_to_the_source_are_the_callers_mistake(pixels, request):
    source = png(photo(4)) if "of alpha" in request.node.name or "no alpha" in request.node.name else png()
    with pytest.raises(ValueError, match="photo"):
        images.encode(pixels, source, images.inspect(source))


def test_decoding_what_is_left_untouched_is_the_callers_mistake():
    source = saved(photo(), "GIF")
    with pytest.raises(ValueError, match="copied as it is: GIF is not denoised"):
        images.decode(source, images.inspect(source))


# ---------------------------------------------------------------- untouched


def ftyp(brand: bytes) -> bytes:
    return struct.pack(">I4s4sI4s", 20, b"ftyp", brand, 0, b"mif1" if brand == b"heic" else brand) + bytes(100)


def jpeg_with_frame(marker: int, bit_depth: int = 8) -> bytes:
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0\0\x11")
    data[frame + 1], data[frame + 4] = marker, bit_depth
    return bytes(data)


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(photo()), Image.fromarray(np.invert(photo()))]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


def stereo_pair() -> bytes:
    """A multi-picture file whose second picture is of the type that cameras with two lenses write."""
    frames = [Image.fromarray(photo()), Image.fromarray(np.invert(photo()))]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    entries = data.index(b"MPF\0") + 4 + 8 + 2 + 3 * 12 + 4
    return data[: entries + 16] + struct.pack("<I", 0x020002) + data[entries + 20 :]


def tiff_of_planes(**options: object) -> bytes:
    """A TIFF of five planes that has a single directory."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack([photo(1)] * 5), photometric="minisblack", **options)
    return file.getvalue()


def cloud_optimised_tiff() -> bytes:
    """The directory at the end, behind the marks of a layout that a rewrite would break."""
    data = bytearray(tiff(rowsperstrip=20))
    (start,), (count,) = struct.unpack_from("<I", data, 4), struct.unpack_from("<H", data, 8)
    directory = data[start : start + 2 + 12 * count + 4]
    struct.pack_into("<I", data, 4, len(data))
    data[8:51] = b"GDAL_STRUCTURAL_METADATA_SIZE=000140 bytes\n"
    return bytes(data + directory)


def tiff_of_overlapping_strips() -> bytes:
    data = bytearray(tiff(rowsperstrip=20))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tag = file.pages[0].tags["StripOffsets"]
    struct.pack_into("<I", data, tag.valueoffset + 4, tag.value[0])
    return bytes(data)


def sparse_tiff(**options: object) -> bytes:
    """As GDAL writes it with SPARSE_OK: a tile that has neither a place nor bytes."""
    data = bytearray(tiff(tile=(16, 16), **options))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages[0].tags
        for name in ("TileOffsets", "TileByteCounts"):
            width = tags[name].valuebytecount // tags[name].count
            start = tags[name].valueoffset
            data[start : start + width] = bytes(width)
    return bytes(data)


def packed_xmp(xmp: bytes) -> bytes:
    return png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0en\0\0" + zlib.compress(xmp))


CREDENTIALS = riff_chunk(b"C2PA", b"jumb")
SIGNED_ELSEWHERE = (
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF><rdf:Description rdf:about=''>"
    b"<dcterms:provenance>https://cai-manifests.adobe.com/manifests/adobe-urn-uuid-1</dcterms:provenance>"
)
OTHER_EYE = (
    b"<rdf:Description xmlns:GPano='http://ns.google.com/photos/1.0/panorama/' GImage:Mime='image/jpeg'"
    b" xmlns:GImage='http://ns.google.com/photos/1.0/image/'/>"
)
WIDE_TABLE = segment(0xDB, b"\x10" + struct.pack(">64H", *[300] * 64))
FOUR_BYTES = png_chunk(b"IDAT", zlib.compress(bytes(5)))

UNTOUCHED = {
    "CMYK": lambda: jpeg(Image.fromarray(photo()).convert("CMYK")),
    "CMYK is not": lambda: tiff(photo(4), photometric="separated"),
    "lossless JPEG": lambda: jpeg_with_frame(0xC3),
    "hierarchical JPEG": lambda: jpeg_with_frame(0xC5),
    "arithmetic coding": lambda: jpeg_with_frame(0xC9),
    "12-bit JPEG": lambda: jpeg_with_frame(0xC1, bit_depth=12),
    "metadata amid its tables": lambda: jpeg().replace(b"\xff\xc0", segment(0xE5, b"late") + b"\xff\xc0", 1) + b"SEFH",
    "chroma subsampling": lambda: bytes(imagecodecs.jpeg8_encode(photo(), subsampling="440")),
    "chroma subsampling cannot": subsampled_rgb_jpeg,
    "this chroma subsampling": lambda: bytes(imagecodecs.jpeg8_encode(photo(), subsampling="411")),
    "16-bit quantisation": lambda: jpeg().replace(b"\xff\xc0", WIDE_TABLE + b"\xff\xc0", 1),
    "Content Credentials": lambda: jpeg(None, segment(0xEB, b"JP\0\1\0\0\0\1\0\0\0\x20jumb\0\0\0\x18jumdc2pa")),
    "the photo carries Content": lambda: tiff_with_tag(52545, b"jumb"),
    "photo carries Content Credentials": lambda: riff(*(riff_chunk(*c) for c in riff_chunks(webp())), CREDENTIALS),
    "carries Content Credentials": lambda: png_with(png_chunk(b"caBX", bytes(9))),
    " photo carries Content": lambda: jpeg(None, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SIGNED_ELSEWHERE)),
    " photo carries Content Credentials": lambda: tiff_with_tag(700, bytes(2**20 - 100) + SIGNED_ELSEWHERE),
    " carries Content Credentials": lambda: webp(xmp=SIGNED_ELSEWHERE),
    " Content Credentials": lambda: png_with(png_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + SIGNED_ELSEWHERE)),
    "carries Content Credentials ": lambda: png_with(packed_xmp(SIGNED_ELSEWHERE)),
    "photo carries Content Credentials ": lambda: png_with(packed_xmp(bytes(2**20 + 1))),
    "JPEG of several pictures": stereo_pair,
    "JPEG of several pictures is": lambda: jpeg(None, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + OTHER_EYE)),
    "a palette": lambda: saved(Image.fromarray(photo()).convert("P"), "PNG"),
    "a palette is": lambda: saved(Image.fromarray(photo()).convert("P"), "TIFF"),
    "a 1-bit picture": lambda: saved(Image.fromarray(photo()).convert("1"), "PNG"),
    "a 1-bit picture is": lambda: saved(Image.fromarray(photo()).convert("1"), "TIFF"),
    "a 4-bit picture": lambda: PNG_SIGNATURE + header_chunk(8, 1, 4, 0) + FOUR_BYTES + png_chunk(b"IEND"),
    "transparent colour": lambda: png_with(png_chunk(b"tRNS", bytes(6))),
    "Apple's private": apples_png,
    "Apple's private kind": lambda: png_with(png_chunk(b"CgBI", bytes(4))),
    "unknown critical parts (ABcd)": lambda: png_with(png_chunk(b"ABcd")),
    "an animation": lambda: animated("PNG"),
    "an animation is": lambda: animated("WEBP"),
    "GIF": lambda: animated("GIF"),
    "BMP": lambda: saved(photo(), "BMP"),
    "AVIF": lambda: ftyp(b"avif"),
    "HEIC": lambda: ftyp(b"heic"),
    "JPEG-LS": lambda: bytes(imagecodecs.jpegls_encode(photo())),
    "JPEG-LS is": lambda: b"\xff\xd8\xff\xf7\0\x11" + bytes(30),
    "JPEG 2000": lambda: bytes(imagecodecs.jpeg2k_encode(photo())),
    "JPEG XL": lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20),
    "Photoshop": lambda: b"8BPS\0\1" + bytes(30),
    "camera raw": lambda: ftyp(b"crx "),
    " camera raw is": lambda: b"II\x1a\0\0\0HEAPCCDR" + bytes(30),
    "camera raw is": lambda: b"II*\0\x10\0\0\0CR\x02\0" + bytes(30),
    "camera raw is not": lambda: tiff(extratags=[(50706, 1, 4, (1, 4, 0, 0), True)]),
    "camera raw is not denoised": lambda: tiff_pages(photo(), photo(1), sub=True, photometric=32803),
    "begins with a preview": lambda: tiff(subfiletype=1),
    "several pages is": lambda: animated("TIFF"),
    "several pages": lambda: tiff_pages(photo(), photo()),
    "of several pages": lambda: tiff_of_planes(imagej=True, truncate=True),
    "of several pages is": lambda: tiff_of_planes(truncate=True),
    "TIFF of several pages": lambda: tiff_of_planes(volumetric=True),
    "TIFF of several pages is": lambda: tiff(photo(1), extratags=[(33629, 5, 2, (1, 1, 1, 1), True)]),
    "several pictures": lambda: tiff_pages(photo(), photo(), sub=True),
    "floating point": lambda: tiff(photo().astype(np.float32)),
    "signed numbers": lambda: tiff(photo().astype(np.int16)),
    "32-bit TIFF": lambda: tiff(photo().astype(np.uint32)),
    "further channels": lambda: tiff(photo(5), planarconfig="contig", extrasamples=["unassalpha", "unspecified"]),
    "colour space": lambda: tiff(photometric="cielab"),
    "JPEG inside": lambda: tiff(photo(1), compression="jpeg"),
    "this compression": lambda: tiff(compression="webp"),
    "this predictor": lambda: retagged(tiff(compression="zlib", predictor=True), 317, 3),
    "a predictor and PackBits or nothing": lambda: retagged(tiff(software="x"), 305, 2, new_tag=317),
    "with a predictor and PackBits": lambda: retagged(tiff(compression="packbits", software="x"), 305, 2, new_tag=317),
    "missing pixels have a value": lambda: tiff(extratags=[(42113, 2, 2, "0", True)]),
    "reversed bits": lambda: retagged(tiff(subfiletype=0, software="x"), 305, 2, new_tag=266),
    "cloud-optimised GeoTIFF": cloud_optimised_tiff,
    "Photoshop layers": lambda: tiff_with_tag(37724, b"Adobe Photoshop Document Data Block\0MIB8ryaL" + bytes(20)),
    "TIFF with Photoshop layers": lambda: tiff_with_tag(37724, bytes(2**20 - 2) + b"Layr"),
    "empty strips or tiles": sparse_tiff,
    "empty strips or tiles cannot": lambda: sparse_tiff(compression="zlib"),
    "parts overlap": tiff_of_overlapping_strips,
    "not a photo": lambda: NOTHING_LIKE_AN_IMAGE,
    "not a photo ": lambda: ftyp(b"qt  "),
}


@pytest.mark.parametrize("reason", UNTOUCHED)
def test_what_cannot_be_denoised_faithfully_is_left_untouched(reason):
    header = images.inspect(UNTOUCHED[reason]())
    assert header.untouched_reason is not None
    assert reason.strip() in header.untouched_reason
    assert "\n" not in header.untouched_reason


@pytest.mark.parametrize("options", [{"imagej": True}, {"truncate": True}, {}], ids=str)
@pytest.mark.parametrize("shape", [(40, 56), (40, 56, 3), (1, 40, 56)], ids=str)
def test_a_tiff_whose_description_tells_of_one_plane_is_denoised(shape, options):
    file = io.BytesIO()
    samples = np.zeros(shape, np.uint8)
    tifffile.imwrite(file, samples, photometric="rgb" if shape[-1] == 3 else "minisblack", **options)
    assert images.inspect(file.getvalue()).untouched_reason is None


@pytest.mark.parametrize("name", ["DSC.NEF", "a/b.dng", "IMG.Cr2"])
def test_a_name_of_a_camera_raw_is_believed(name):
    header = images.inspect(tiff(), name=name)
    assert (header.format, header.untouched_reason) == (name[-3:].lower(), "camera raw is not denoised")


@pytest.mark.parametrize("name", ["IMG.jpg.xmp", "notes.txt", "no_extension", ".hidden", "._IMG.jpg"])
def test_companions_of_photos_are_not_photos(name):
    content = b"\0\x05\x16\x07" + bytes(60) if name.startswith("._") else NOTHING_LIKE_AN_IMAGE
    header = images.inspect(content, name=name)
    assert (header.format, header.untouched_reason) == ("", "not a photo")


def test_a_jpeg_with_the_header_of_jpeg_ls_is_told_by_its_frame():
    spiff = b"\xff\xe8\0\x20SPIFF\0\1\0\0\3" + bytes(20)
    source = jpeg()
    comment = b"\xff\xfe\0\4\xff\xf7"  # looks like the frame of JPEG-LS
    assert images.inspect(source[:2] + spiff + comment + source[2:], name="a.jpg").format == "jpeg"


# ---------------------------------------------------------------- rejected


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (png, "IMG.JPG", "the name says JPEG, but the content is PNG"),
        (png, "._IMG.jpg", "the name says JPEG, but the content is PNG"),
        (jpeg, "a.b/IMG.png", "the name says PNG, but the content is JPEG"),
        (webp, "IMG.tif", "the name says TIFF, but the content is WebP"),
        (tiff, "IMG.webp", "the name says WebP, but the content is TIFF"),
        (lambda: ftyp(b"heic"), "IMG.jpeg", "the name says JPEG, but the content is HEIC"),
        (lambda: NOTHING_LIKE_AN_IMAGE, "IMG.tiff", "the name says TIFF, but the content is not an image"),
        (lambda: b"\xff", "IMG.jpg", "the name says JPEG, but the content is not an image"),
        (lambda: b"", "IMG.jpg", "the file is empty"),
        (lambda: b"", "notes.txt", "the file is empty"),
    ],
)
def test_a_mislabelled_or_empty_file_is_rejected(content, name, reason):
    with pytest.raises(PhotoRejected) as caught:
        images.inspect(content(), name=name)
    assert str(caught.value) == reason


def test_too_many_bytes_are_rejected_with_the_number_and_the_limit():
    with pytest.raises(PhotoRejected, match=r"the file has 0\.\d MB, the limit is 0\.0 MB"):
        images.inspect(tiff(photo(3, 16, 100, 100)), limits=Limits(max_bytes=1000))


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="limits must be positive"):
        Limits(max_megapixels=0)
    with pytest.raises(ValueError, match="limits must be positive"):
        Limits(max_bytes=-1)


def test_too_many_pixels_are_rejected_with_the_number_and_the_limit():
    with pytest.raises(PhotoRejected, match=r"the photo has 0\.0 megapixels, the limit is 0\.0"):
        images.inspect(jpeg(), limits=Limits(max_megapixels=0.001))


def huge(kind: str, width: int, height: int) -> bytes:
    """A small file that claims to be a large picture."""
    data = bytearray(FORMATS[kind]())
    if kind == "png":
        return png().replace(header_chunk(WIDTH, HEIGHT), header_chunk(width, height))
    if kind == "jpeg":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    if kind == "webp":
        struct.pack_into("<HH", data, 26, width, height)
    if kind == "tiff":
        with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
            tags = file.pages[0].tags
        for tag, value in (("ImageWidth", width), ("ImageLength", height), ("RowsPerStrip", height)):
            struct.pack_into("<HIH", data, tags[tag].offset + 2, 3, 1, value)
    return bytes(data)


@pytest.mark.parametrize(("kind", "size"), [("png", 60000), ("jpeg", 60000)])
def test_a_claim_of_too_many_pixels_is_rejected(kind, size):
    with pytest.raises(PhotoRejected, match=r"the photo has 3,600\.0 megapixels, the limit is 400\.0"):
        images.inspect(huge(kind, size, size))


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff"])
def test_a_claim_within_the_limits_that_the_data_cannot_fill_is_rejected_without_allocating(kind):
    source = huge(kind, 16000, 16000)
    tracemalloc.start()
    with pytest.raises(PhotoRejected):
        images.decode(source, images.inspect(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits"])
def test_a_tiff_that_claims_more_than_its_compression_can_shrink_does_not_allocate(compression):
    source = tiff(np.zeros((16, 16, 3), np.uint8), compression=compression, rowsperstrip=16)
    source = retagged(retagged(retagged(source, 256, 16000), 257, 16000), 278, 16000)
    tracemalloc.start()
    with pytest.raises(PhotoRejected):
        read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_jpeg_of_restart_markers_and_nothing_else_does_not_allocate():
    source = jpeg(np.full((8, 8), 128, np.uint8))
    source = source[:-2] + b"\xff\xd0" * 1_000_000 + source[-2:]
    tracemalloc.start()
    with pytest.raises(PhotoRejected, match="more restart markers than blocks"):
        read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def tiff_directory(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + rows + struct.pack("<I", following)


def test_a_tiff_whose_previews_share_one_long_list_of_strips_is_rejected():
    strips, previews = 1 << 17, 16
    preview = tiff_directory((254, 4, 1, 1), (256, 4, 1, 8), (257, 4, 1, 8), (273, 4, strips, 8), (279, 4, strips, 8))
    offsets = [8 + 4 * strips + number * len(preview) for number in range(previews)]
    tree = offsets[-1] + len(preview)
    pixels = tree + 4 * previews
    tags = {256: 8, 257: 8, 258: 8, 262: 1, 273: pixels, 277: 1, 278: 8, 279: 64}
    photo_at_end = tiff_directory(*((tag, 4, 1, value) for tag, value in tags.items()), (330, 4, previews, tree))
    source = b"".join(
        [
            struct.pack("<2sHI", b"II", 42, pixels + 64),
            bytes(4 * strips),
            preview * previews,
            struct.pack(f"<{previews}I", *offsets),
            bytes(64),
            photo_at_end,
        ]
    )
    with pytest.raises(PhotoRejected, match="makes no sense"):
        images.inspect(source)


def test_a_tiff_whose_previews_share_one_long_list_of_pictures_does_not_allocate():
    pictures, previews = 1 << 17, 20
    pixels = 8 + 4 * pictures
    tags = {256: 8, 257: 8, 258: 8, 262: 1, 273: pixels, 277: 1, 278: 8, 279: 64}
    first = pixels + 64
    photo_at_end = tiff_directory(*((tag, 4, 1, value) for tag, value in tags.items()), following=first + 102)
    size = len(tiff_directory(*[(0, 0, 0, 0)] * 2))
    chain = [first + 102 + size * number for number in range(1, previews)] + [0]
    source = b"".join(
        [
            struct.pack("<2sHI", b"II", 42, first) + bytes(4 * pictures + 64) + photo_at_end,
            *(tiff_directory((254, 4, 1, 1), (330, 4, pictures, 8), following=following) for following in chain),
        ]
    )
    tracemalloc.start()
    assert read(source).colour.shape == (8, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_a_tile_far_larger_than_its_photo_is_rejected():
    source = retagged(retagged(tiff(tile=(16, 16)), 322, 65520), 323, 65520)
    with pytest.raises(PhotoRejected, match="makes no sense"):
        images.inspect(source)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_photo_without_pixels_is_rejected(kind):
    with pytest.raises(PhotoRejected, match="no pixels"):
        images.inspect(huge(kind, 0, 16))


TRUNCATABLE = {
    "jpeg": lambda: jpeg(exif=exif(orientation=6)),
    "progressive jpeg": lambda: jpeg(progressive=True),
    "png": lambda: png_with(*ANCILLARY),
    "tiff": lambda: tiff(compression="zlib", rowsperstrip=8),
    "raw tiff": lambda: tiff(rowsperstrip=8),
    "big tiff": lambda: tiff(big=True, compression="lzw"),
    "webp": lambda: webp(exif=exif(orientation=6)),
    "lossless webp": lambda: webp(lossless=True),
}


@pytest.mark.parametrize("kind", TRUNCATABLE)
def test_a_photo_cut_off_anywhere_is_rejected(kind):
    source = TRUNCATABLE[kind]()
    extension = kind.split()[-1]
    for size in {*range(1, len(source) - 1, 1 + len(source) // 150), *range(len(source) - 20, len(source) - 1)}:
        with pytest.raises(PhotoRejected):
            read(source[:size], name=f"cut.{extension}")


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}], ids=str
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_that_lacks_data_before_its_end_marker_is_rejected(options, share):
    source = jpeg(photo(3, 8, 120, 160), **options)
    first_scan = source.index(b"\xff\xda") + 20
    cut = first_scan + int((len(source) - first_scan) * share)
    with pytest.raises(PhotoRejected, match="part of its picture is missing"):
        read(source[:cut].rstrip(b"\xff") + b"\xff\xd9")


def test_a_jpeg_that_lacks_data_between_restarts_is_rejected():
    source = jpeg(photo(3, 8, 120, 160), restart_marker_rows=1)
    third, fourth = source.index(b"\xff\xd2"), source.index(b"\xff\xd3")
    with pytest.raises(PhotoRejected, match="part of its picture is missing"):
        read(source[: third + 12] + source[fourth:])
    with pytest.raises(PhotoRejected, match="part of its picture is missing"):
        read(source[:third] + source[fourth:])


def test_a_jpeg_that_lacks_the_scans_of_its_colour_is_rejected():
    source = jpeg(photo(1))
    frame = source.index(b"\xff\xc0")
    components = b"".join(struct.pack("BBB", ident, 0x11, 0) for ident in (1, 2, 3))
    in_colour = segment(0xC0, struct.pack(">BHHB", 8, HEIGHT, WIDTH, 3) + components)
    with pytest.raises(PhotoRejected, match="part of its picture is missing"):
        read(source[:frame] + in_colour + source[frame + 13 :])


def test_an_arithmetic_jpeg_that_ends_in_zeros_is_not_taken_for_one_that_lacks_data():
    # `cjpeg -arithmetic -progressive`, which leaves them out.
    source = base64.b64decode(
        "/9j/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTmCNl4x9lnN+gXz/ygALCAAYABgB"
        "AREA/8wABAAQ/9oACAEBAAAAAfkdH//MAAQQBf/aAAgBAQABBQIC5SzM/8wABBAF/9oACAEBAAY/AsD/zAAEEAX/2gAIAQEAAT8hS8YoUnVa"
        "MPL0ma+U7P8AinegYP/aAAgBAQAAABC9/8wABBAF/9oACAEBAAE/EPfaby96hiiF/iO7s8d3tKI1lWyXzKNkmidmmroY4T0jhpGhFqFLRllT"
        "QqHUah8yizlXMZz/2Q=="
    )
    assert images.shrink(source, inspect(source), side_px=24).height_px == 24


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
def test_a_jpeg_that_is_gray_all_over_is_not_taken_for_one_that_lacks_data(options):
    assert (read(jpeg(np.full((40, 40, 3), 128, np.uint8), **options)).colour == 128).all()


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_pixels_that_a_library_cannot_encode_are_a_rejection(kind, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("broken data stream when writing image file")

    source = FORMATS[kind]()
    rewritten(source)
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(PhotoRejected, match="the denoised photo does not fit into a"):
        rewritten(source)


DAMAGED = {
    "a checksum is wrong": lambda: png().replace(b"IHDR\0", b"IHDR\1", 1),
    "its chunks do not line up": lambda: png_with(png_chunk(b"IDAT", b""), png_chunk(b"tEXt")),
    "its chunks do not": lambda: riff(riff_chunk(b"EXIF", b"")),
    "its picture cannot be decoded": lambda: PNG_SIGNATURE + header_chunk(8, 8) + FOUR_BYTES + png_chunk(b"IEND"),
    "the JPEG is corrupt": lambda: jpeg(None, segment(0xC0, b"\x08\0\x08\0\x08\x01\1\x11\0")),
    "the JPEG is": lambda: jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x0e\x08", 1),
    "its segments do not line up": lambda: jpeg(None, segment(0xEC, b""), b"\0\0"),
    "the TIFF is damaged: its picture cannot be decoded": lambda: tiff_of_height(HEIGHT + 1, HEIGHT + 1),
    "the TIFF is corrupt: its directory makes no sense": lambda: tiff_of_height(HEIGHT + 1, HEIGHT),
    "its directory makes no sense": lambda: b"II*\0" + bytes(24),
}


def tiff_of_height(height: int, rows_per_strip: int) -> bytes:
    """A TIFF of one compressed strip that claims another height."""
    return retagged(retagged(tiff(compression="zlib", rowsperstrip=HEIGHT), 257, height), 278, rows_per_strip)


@pytest.mark.parametrize("reason", DAMAGED)
def test_a_damaged_file_is_rejected_with_a_reason(reason):
    with pytest.raises(PhotoRejected, match=reason):
        read(DAMAGED[reason]())


def test_overwritten_image_data_are_rejected():
    for source in (png(), tiff(compression="zlib")):
        middle = len(source) // 2
        broken = source[:middle] + bytes(len(source) - middle - 12) + source[-12:]
        with pytest.raises(PhotoRejected) as caught:
            read(broken)
        assert caught.value.args[0].startswith("the ")


# ---------------------------------------------------------------- hostile bytes


@cache
def victims() -> list[bytes]:
    small = photo(3, 8, 24, 24)
    deep = photo(4, 16, 24, 24)
    return [
        jpeg(small, exif=exif(orientation=6), icc_profile=bytes(100)),
        jpeg(small, progressive=True, restart_marker_blocks=2),
        png_with(*ANCILLARY, samples=small),
        interlaced_png(deep),
        tiff(deep, compression="zlib", predictor=True, tile=(16, 16), order=">", extrasamples=["unassalpha"]),
        tiff(small, big=True, compression="lzw", rowsperstrip=8),
        tiff(small, compression="packbits"),
        webp(small, exif=exif(orientation=6)),
        webp(photo(4, 8, 24, 24)),
        webp(photo(4, 8, 24, 24), lossless=True),
    ]


def assert_valid_or_rejected(data: bytes, name: str = "") -> None:
    reason = ""
    try:
        header = images.inspect(data, name=name, limits=Limits(max_megapixels=1))
        if header.untouched_reason is None:
            result = images.encode(images.decode(data, header), data, header)
            assert images.inspect(result) == header
    except PhotoRejected as error:
        reason = str(error)
    assert "\n" not in reason
    assert len(reason) < 120


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    victim=st.integers(0, 9),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    near_the_start=st.booleans(),
    repair=st.booleans(),
)
def test_flipped_bytes_give_a_valid_photo_or_a_rejection(victim, flips, near_the_start, repair):
    data = bytearray(victims()[victim])
    reach = min(len(data), 300) if near_the_start else len(data)
    for place, value in flips:
        data[int(place * reach)] = value
    assert_valid_or_rejected(with_right_checksums(data) if repair else bytes(data))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    victim=st.integers(0, 9),
    place=st.floats(0, 1, exclude_max=True),
    gap=st.integers(1, 40),
    junk=st.binary(max_size=40),
)
def test_removed_and_inserted_bytes_give_a_valid_photo_or_a_rejection(victim, place, gap, junk):
    data = victims()[victim]
    start = int(place * len(data))
    assert_valid_or_rejected(data[:start] + junk + data[start + gap :])


@settings(max_examples=200, deadline=None)
@given(
    signature=st.sampled_from([b"", *(victim[:12] for victim in victims())]),
    rest=st.binary(max_size=200),
    name=st.text(),
)
def test_any_bytes_give_a_header_or_a_rejection(signature, rest, name):
    assert_valid_or_rejected(signature + rest, name)


def with_right_checksums(data: bytearray) -> bytes:
    """The PNG with the checksums of its chunks made right, so that damage gets past them; others as they are."""
    start = 8
    while data.startswith(PNG_SIGNATURE) and start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[start + 4 : end]))
        start = end + 4
    return bytes(data)
