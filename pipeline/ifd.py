"""Image file directories: the tags of TIFF files and of EXIF blocks, which are TIFF files without a picture."""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import PhotoRejected

ORIENTATION = 274
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
MAX_TAGS = 4096  # real directories have a few dozen
MAX_VALUES = 1 << 21  # 400 megapixels in tiles of 16 × 16

CORRUPT = "the TIFF is corrupt: its directory makes no sense"
TRUNCATED = "the TIFF is cut off: parts of it lie beyond its end"


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

    data: bytes
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
        numbers: list[int] = np.frombuffer(self.data, dtype, count=count, offset=offset).tolist()
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


def open_file(data: bytes) -> File:
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
    rows = np.frombuffer(file.data, dtype, count=count, offset=start).tolist()
    for entry_offset, (tag, kind, values, pointer) in zip(range(start, end, dtype.itemsize), rows, strict=True):
        is_inline = values * TYPE_SIZES.get(kind, 0) <= file.pointer_bytes
        value_offset = entry_offset + 4 + file.pointer_bytes if is_inline else pointer
        entries.setdefault(tag, Entry(kind, values, value_offset, entry_offset))
    return Directory(entries, offset, end + file.pointer_bytes, next_offset)


def orientation(file: File, directory: Directory) -> int:
    """The EXIF orientation, 1 to 8; 1 when it is absent or invalid."""
    value = file.value(directory, ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def exif_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block tells; 1 when it tells none or is damaged."""
    try:
        file = open_file(exif.removeprefix(b"Exif\0\0"))  # JPEG's prefix, which some writers put into PNG and WebP too
        return orientation(file, read_directory(file, file.first_offset))
    except PhotoRejected:
        return 1
