"""Image file directories: the tags of TIFF files and of EXIF blocks, which are TIFF files without a picture."""

import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

import numpy as np

from pipeline.errors import PhotoRejected

MAKE, MODEL, ORIENTATION, EXIF_IFD = 271, 272, 274, 34665
ISO, RECOMMENDED_INDEX, ISO_SPEED, TAKEN_AT = 34855, 34866, 34867, 36867
TYPE_SIZES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8, 129: 1
}  # fmt: skip
UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
RATIONAL, TEXTS = 5, {1, 2, 7, 129}  # bytes, ASCII, undefined, UTF-8: writers use all of them for text
MAX_TEXT_BYTES = 128
MAX_READ_BYTES = 1 << 30  # at once: the kernel gives no more than 2 GiB
ISO_TOO_LARGE = 65535  # the tag has 16 bits: the true value is in another
MAX_ISO = 2**31 - 1
MAX_TAGS = 4096  # real directories have a few dozen
MAX_VALUES = 1 << 21  # 400 megapixels in tiles of 16 × 16

CORRUPT = "the TIFF is corrupt: its directory makes no sense"
TRUNCATED = "the TIFF is cut off: parts of it lie beyond its end"


class FileBytes:
    """An open file that is sliced like bytes, and held by nobody as a whole. Safe to use from several threads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file  # which must stay open
        self._size_bytes = os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self._size_bytes

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(self._size_bytes)
        parts = []
        while start < stop and (part := os.pread(self._file.fileno(), min(stop - start, MAX_READ_BYTES), start)):
            parts.append(part)
            start += len(part)
        return b"".join(parts) if len(parts) > 1 else parts[0] if parts else b""


Data = bytes | FileBytes  # of a file, in memory or not


@dataclass(frozen=True, slots=True)
class Entry:
    """One tag of a directory: the type, number and place of its values, and the place of the entry itself."""

    kind: int
    count: int
    offset: int
    entry_offset: int

    @property
    def end(self) -> int:
        """The offset behind the last value."""
        return self.offset + self.count * TYPE_SIZES.get(self.kind, 0)


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory: its tags, the bytes that it takes itself, and where the next one is (0 for nowhere)."""

    entries: dict[int, Entry]
    start: int
    end: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class File:
    """A TIFF or an EXIF block with its byte order and the width of its offsets. Reads never run off its end."""

    data: Data
    order: str  # "<" or ">"
    is_big: bool

    @property
    def pointer(self) -> str:
        return "u8" if self.is_big else "u4"

    @property
    def pointer_bytes(self) -> int:
        return 8 if self.is_big else 4

    @property
    def header_bytes(self) -> int:
        return 16 if self.is_big else 8

    @property
    def first_offset(self) -> int:
        return self.numbers(self.header_bytes - self.pointer_bytes, self.pointer)[0]

    def numbers(self, offset: int, kind: str, count: int = 1) -> list[int]:
        """`count` unsigned numbers of the NumPy type `kind` at `offset`.

        Raises:
            PhotoRejected: they lie beyond the end of the file, or are too many.
        """
        dtype = np.dtype(self.order + kind)
        if offset + count * dtype.itemsize > len(self.data):
            raise PhotoRejected(TRUNCATED)
        if count > MAX_VALUES:
            raise PhotoRejected(CORRUPT)
        numbers: list[int] = np.frombuffer(
            self.data[offset : offset + count * dtype.itemsize], dtype, count=count
        ).tolist()
        return numbers

    def values(self, directory: Directory, tag: int, default: int | None = None) -> list[int]:
        """The unsigned values of a tag; `default` alone, or nothing, when it is absent or of another type."""
        entry = directory.entries.get(tag)
        if entry is None or entry.kind not in UNSIGNED or entry.count == 0:
            return [] if default is None else [default]
        return self.numbers(entry.offset, UNSIGNED[entry.kind], entry.count)

    def value(self, directory: Directory, tag: int, default: int) -> int:
        """The first value of a tag, or `default`."""
        entry = directory.entries.get(tag)
        if entry is None or entry.kind not in UNSIGNED or entry.count == 0:
            return default
        return self.numbers(entry.offset, UNSIGNED[entry.kind])[0]


def open_file(data: Data) -> File:
    """Read the first bytes of a TIFF, a BigTIFF or an EXIF block.

    Raises:
        PhotoRejected: they are not a TIFF's.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise PhotoRejected(CORRUPT)
    file = File(data, order, is_big=False)
    version = file.numbers(2, "u2")[0]
    if version == 43 and file.numbers(4, "u2", 2) == [8, 0]:
        return File(data, order, is_big=True)
    if version != 42:
        raise PhotoRejected(CORRUPT)
    return file


def read_directory(file: File, offset: int) -> Directory:
    """Read the directory at `offset`, not the values that lie outside it.

    Raises:
        PhotoRejected: it does not lie inside the file, or has more tags than a real one.
    """
    count_kind = "u8" if file.is_big else "u2"
    count = file.numbers(offset, count_kind)[0]
    if count > MAX_TAGS:
        raise PhotoRejected(CORRUPT)
    start = offset + int(count_kind[1])
    dtype = np.dtype(
        [(name, file.order + kind) for name, kind in zip("tkcv", ("u2", "u2", *[file.pointer] * 2), strict=True)]
    )
    end = start + count * dtype.itemsize
    next_offset = file.numbers(end, file.pointer)[0]  # proves that the entries before it lie inside the file
    entries: dict[int, Entry] = {}
    rows = np.frombuffer(file.data[start:end], dtype, count=count).tolist()
    for entry_offset, (tag, kind, values, pointer) in zip(range(start, end, dtype.itemsize), rows, strict=True):
        is_inline = values * TYPE_SIZES.get(kind, 0) <= file.pointer_bytes
        value_offset = entry_offset + 4 + file.pointer_bytes if is_inline else pointer
        entries.setdefault(tag, Entry(kind, values, value_offset, entry_offset))
    return Directory(entries, offset, end + file.pointer_bytes, next_offset)


@dataclass(frozen=True, slots=True)
class Shot:
    """What EXIF tells of how a photo was taken; the defaults where it tells nothing, or nothing sound.

    Attributes:
        orientation: 1 to 8.
        camera: make and model, the make left out where the model repeats it.
        iso: sensitivity, at least 1.
        taken_at: what the camera's clock showed, without a time zone.
    """

    orientation: int = 1
    camera: str | None = None
    iso: int | None = None
    taken_at: datetime | None = None


def read_shot(exif: bytes) -> Shot:
    """What an EXIF block tells, which may be damaged or empty."""
    try:
        file = open_file(exif.removeprefix(b"Exif\0\0"))  # JPEG's prefix, which some writers put into PNG and WebP too
        return find_shot(file, read_directory(file, file.first_offset))
    except PhotoRejected:
        return Shot()


def find_shot(file: File, directory: Directory) -> Shot:
    """What the directory of a photo tells. What is damaged is left out, and the rest is told."""
    try:
        exif = read_directory(file, file.value(directory, EXIF_IFD, 0))
    except PhotoRejected:
        exif = Directory({}, 0, 0, 0)
    orientation = _number(file, directory, ORIENTATION)
    iso = _number(file, exif, ISO)
    if iso is None or iso == ISO_TOO_LARGE:
        others = (_number(file, exif, tag) for tag in (ISO_SPEED, RECOMMENDED_INDEX))
        iso = next((other for other in others if other), iso)
    return Shot(
        orientation=orientation if orientation is not None and 1 <= orientation <= 8 else 1,
        camera=_camera(_text(file, directory, MAKE), _text(file, directory, MODEL)),
        iso=iso if iso is not None and 0 < iso <= MAX_ISO else None,
        taken_at=_time(_text(file, exif, TAKEN_AT)),
    )


def _number(file: File, directory: Directory, tag: int) -> int | None:
    """The first value of a tag that should hold a whole number; a fraction is rounded."""
    entry = directory.entries.get(tag)
    if entry is None or entry.count == 0:
        return None
    try:
        if entry.kind == RATIONAL:
            numerator, denominator = file.numbers(entry.offset, "u4", 2)
            return round(numerator / denominator) if denominator else None
        return file.numbers(entry.offset, UNSIGNED[entry.kind])[0] if entry.kind in UNSIGNED else None
    except PhotoRejected:
        return None


def _text(file: File, directory: Directory, tag: int) -> str:
    """The text of a tag up to its first NUL, without control characters; empty when there is none."""
    entry = directory.entries.get(tag)
    if entry is None or entry.kind not in TEXTS or entry.end > len(file.data):
        return ""
    data = file.data[entry.offset : min(entry.end, entry.offset + MAX_TEXT_BYTES)].split(b"\0")[0]
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _camera(make: str, model: str) -> str | None:
    if model.lower().startswith(tuple(make.lower().split())):
        make = ""
    return f"{make} {model}".strip() or None


def _time(text: str) -> datetime | None:
    """The time that EXIF writes as 2019:07:04 12:30:00."""
    if not re.fullmatch(r"\d{4}([:/-]\d\d){2}[ T]\d\d(:\d\d){2}", text, re.ASCII):
        return None
    try:
        return datetime.fromisoformat(re.sub("[:/]", "-", text[:10]) + text[10:])
    except ValueError:  # such as 0000:00:00, which cameras without a set clock write
        return None
