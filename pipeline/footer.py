"""A hash before the footer of a Parquet file, where Parquet's readers do not look.

Pages have checksums that Parquet knows, and the footer has none: a bit that rots there may make other values of sound
pages, or end the process that opens the file.
"""

import hashlib
import io
from collections.abc import Callable
from typing import BinaryIO

MARK = b"SHA-256 of the footer: "  # and the hash itself
HASH_BYTES = 32
END_BYTES = 8  # of a Parquet file: how long its footer is, and its signature
TAIL_BYTES = 64 * 1024  # that are read at once: most footers are shorter


def mark_footer(file: BinaryIO) -> None:
    """Put the hash into a whole Parquet file that is open for reading and writing."""
    file.seek(-END_BYTES, io.SEEK_END)
    start = file.seek(-_footer_bytes(file.read()), io.SEEK_END)
    footer = file.read()
    file.seek(start)
    file.write(_mark_of(footer) + footer)


def read_footer(size_bytes: int, read: Callable[[int, int], bytes]) -> bytes:
    """The footer of a file, to its end. That an older degrain wrote has no hash.

    Args:
        size_bytes: of the file.
        read: gives some of its bytes, by the first one's place and their number.

    Raises:
        ValueError: it is damaged.
    """
    tail_bytes = min(size_bytes, TAIL_BYTES)
    tail = read(size_bytes - tail_bytes, tail_bytes)
    footer_bytes = _footer_bytes(tail[-END_BYTES:])
    if footer_bytes > size_bytes:
        raise ValueError(f"its footer would have {footer_bytes:,} bytes, and the file has {size_bytes:,}")
    wanted_bytes = min(size_bytes, len(MARK) + HASH_BYTES + footer_bytes)
    if wanted_bytes > tail_bytes:
        tail = read(size_bytes - wanted_bytes, wanted_bytes)
    mark, footer = tail[-wanted_bytes:-footer_bytes], tail[-footer_bytes:]
    if mark.startswith(MARK) and mark != _mark_of(footer):
        raise ValueError("its footer is not as it was written")
    return footer


def _footer_bytes(end: bytes) -> int:
    """With the end of the file, by which it is told."""
    return END_BYTES + int.from_bytes(end[:4], "little")


def _mark_of(footer: bytes) -> bytes:
    return MARK + hashlib.sha256(footer).digest()
