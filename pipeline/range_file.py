"""A file of which nothing is fetched but what is asked for."""

import io
from collections.abc import Callable


class RangeFile(io.RawIOBase):
    """So many bytes that lie elsewhere, as a file to read.

    Args:
        size_bytes: of all.
        fetch: gives some of them, by the first one's place and their number.
    """

    def __init__(self, size_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size_bytes = size_bytes
        self._fetch = fetch
        self._position = 0

    def __len__(self) -> int:
        return self._size_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self)}[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = len(self) - self._position
        length = left if size < 0 else min(size, left)
        if length <= 0:
            return b""
        data = self._fetch(self._position, length)
        self._position += len(data)
        return data
