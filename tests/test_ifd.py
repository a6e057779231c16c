"""What EXIF tells of a shot, in either byte order, from any container, and however damaged it is."""

import io
import struct
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import saved, scene
from PIL import Image

from pipeline.ifd import Shot, read_shot
from pipeline.images import inspect

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SIGNED_SHORT, UTF8 = 1, 2, 3, 4, 5, 7, 8, 129
MAKE, MODEL, ORIENTATION, EXIF_IFD = 271, 272, 274, 34665
ISO, RECOMMENDED_INDEX, ISO_SPEED, TAKEN_AT = 34855, 34866, 34867, 36867
FORMATS = {BYTE: "s", ASCII: "s", SHORT: "H", LONG: "I", RATIONAL: "I", UNDEFINED: "s", SIGNED_SHORT: "h", UTF8: "s"}
Tags = dict[int, tuple[int, object]]


def block(main: Tags, exif: Tags | None = None, *, order: str = "<") -> bytes:
    """An EXIF block. A value is bytes for a text, or a list of numbers."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    main = {**main, EXIF_IFD: (LONG, [0])}
    first = directory(main, 8, order)
    main[EXIF_IFD] = (LONG, [8 + len(first)])
    return mark + struct.pack(f"{order}I", 8) + directory(main, 8, order) + directory(exif or {}, 8 + len(first), order)


def directory(tags: Tags, offset: int, order: str) -> bytes:
    entries, values = b"", b""
    beyond = offset + 2 + 12 * len(tags) + 4
    for tag, (kind, value) in sorted(tags.items()):
        count = len(value) // (2 if kind == RATIONAL else 1)
        data = value if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}{FORMATS[kind]}", *value)
        place = data.ljust(4, b"\0")
        if len(data) > 4:
            place = struct.pack(f"{order}I", beyond + len(values))
            values += data + bytes(len(data) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, count) + place
    return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values


CANON: Tags = {MAKE: (ASCII, b"Canon\0"), MODEL: (ASCII, b"Canon EOS 5D\0"), ORIENTATION: (SHORT, [6])}
EVENING: Tags = {ISO: (SHORT, [1600]), TAKEN_AT: (ASCII, b"2019:07:04 21:30:05\0")}
SHOT = Shot(6, "Canon EOS 5D", 1600, datetime(2019, 7, 4, 21, 30, 5))  # noqa: DTZ001  # a camera's clock has no zone


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_shot_is_told_in_either_byte_order(order: str) -> None:
    assert read_shot(block(CANON, EVENING, order=order)) == SHOT


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_container_tells_its_shot(kind: str) -> None:
    data = saved(scene(), kind, exif=b"Exif\0\0" + block(CANON, EVENING))

    assert inspect(data).shot == SHOT


def test_the_tags_of_a_tiff_tell_its_shot() -> None:
    exif = Image.Exif()
    exif.load(block(CANON, EVENING))
    data = saved(scene(), "TIFF", exif=exif)

    assert inspect(data).shot == SHOT


@pytest.mark.parametrize(
    ("tags", "iso"),
    [
        ({ISO: (SHORT, [400])}, 400),
        ({ISO: (LONG, [204_800])}, 204_800),
        ({ISO: (SHORT, [200, 0])}, 200),
        ({ISO: (SHORT, [100, 200, 300, 400])}, 100),
        ({ISO: (RATIONAL, [640, 2])}, 320),
        ({ISO: (RATIONAL, [640, 0])}, None),
        ({ISO: (SHORT, [0])}, None),
        ({ISO: (SHORT, [])}, None),
        ({ISO: (ASCII, b"400\0")}, None),
        ({ISO: (SIGNED_SHORT, [-1])}, None),
        ({ISO: (LONG, [2**32 - 1])}, None),
        ({ISO: (SHORT, [65535]), RECOMMENDED_INDEX: (LONG, [102_400])}, 102_400),
        ({ISO: (SHORT, [65535]), ISO_SPEED: (LONG, [0]), RECOMMENDED_INDEX: (LONG, [80_000])}, 80_000),
        ({ISO: (SHORT, [65535])}, 65535),
        ({ISO_SPEED: (LONG, [50])}, 50),
        ({}, None),
    ],
)
def test_the_iso_is_the_one_that_the_camera_meant(tags: Tags, iso: int | None) -> None:
    assert read_shot(block(CANON, tags)).iso == iso


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        (b"Canon\0", b"Canon EOS 5D\0", "Canon EOS 5D"),
        (b"NIKON CORPORATION\0", b"NIKON D70\0", "NIKON D70"),
        (b"EASTMAN KODAK COMPANY\0", b"KODAK DC290 Zoom Digital Camera\0", "KODAK DC290 Zoom Digital Camera"),
        (b"SONY\0", b"ILCE-7M3\0", "SONY ILCE-7M3"),
        (b"  Apple \0\0", b"iPhone\0junk", "Apple iPhone"),
        ("富士フイルム".encode(), b"X100\0", "富士フイルム X100"),
        (b"L\xe9ica\0", b"M8\0", "Léica M8"),
        (b"a\x07b\nc\0", b"\0", "a b c"),
        (b"\0", b"M8", "M8"),
        (b"", b"", None),
        (b"x" * 5000, b"", "x" * 128),
    ],
)
def test_a_camera_is_make_and_model_as_a_person_would_write_them(make: bytes, model: bytes, camera: str) -> None:
    assert read_shot(block({MAKE: (ASCII, make), MODEL: (ASCII, model)})).camera == camera


@pytest.mark.parametrize("kind", [BYTE, UNDEFINED, UTF8])
def test_a_text_of_another_type_is_a_text_all_the_same(kind: int) -> None:
    assert read_shot(block({MODEL: (kind, b"Lumix DMC-TZ10\0")})).camera == "Lumix DMC-TZ10"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"2019:07:04 21:30:05\0", datetime(2019, 7, 4, 21, 30, 5)),  # noqa: DTZ001
        (b"2019-07-04T21:30:05\0", datetime(2019, 7, 4, 21, 30, 5)),  # noqa: DTZ001
        (b"0000:00:00 00:00:00\0", None),
        (b"2019:02:30 00:00:00\0", None),
        (b"    :  :     :  :  \0", None),
        (b"2019:07:04\0", None),
        ("２０１９:07:04 21:30:05".encode(), None),
        (b"", None),
    ],
)
def test_a_time_is_that_of_the_cameras_clock_or_none(text: bytes, expected: datetime | None) -> None:
    assert read_shot(block({}, {TAKEN_AT: (ASCII, text)})).taken_at == expected


def test_a_damaged_part_takes_nothing_else_with_it() -> None:
    exif = bytearray(block(CANON, EVENING))
    pointer = exif.index(struct.pack("<HHI", EXIF_IFD, LONG, 1)) + 8
    exif[pointer : pointer + 4] = b"\xff\xff\xff\x7f"

    assert read_shot(bytes(exif)) == Shot(6, "Canon EOS 5D")


@given(st.data())
def test_no_damage_ever_fails_a_photo(data: st.DataObject) -> None:
    exif = bytearray(block(CANON, EVENING))
    for _ in range(data.draw(st.integers(1, 6))):
        exif[data.draw(st.integers(0, len(exif) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(exif[: data.draw(st.integers(0, len(exif)))])

    shot = read_shot(cut)

    assert 1 <= shot.orientation <= 8
    assert shot.iso is None or 1 <= shot.iso < 2**31
    assert shot.camera is None or shot.camera.isprintable()


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"II*\0", b"MM\0*\0\0\0\x08", b"II*\0\xff\xff\xff\xff", bytes(100)])
def test_what_is_no_exif_tells_nothing(exif: bytes) -> None:
    assert read_shot(exif) == Shot()


def test_a_photo_with_hostile_exif_is_a_photo() -> None:
    hostile = block({MAKE: (ASCII, b"M" * 100), ORIENTATION: (LONG, [2**32 - 1])}, {ISO: (RATIONAL, [2**32 - 1, 1])})
    photo = io.BytesIO()
    Image.fromarray(scene()).save(photo, "JPEG", exif=b"Exif\0\0" + hostile[:-3])

    assert inspect(photo.getvalue()).untouched_reason is None
