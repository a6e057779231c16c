"""A store that is a folder of this machine, or of a disk or a network mount in it."""

import errno
import io
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ObjectExists, ObjectMissing, ObjectRefused, StorageError
from pipeline.fault_points import FaultPoint, fault_point
from pipeline.records import SourceObject
from pipeline.redaction import explain
from pipeline.storage import AHEAD_BYTES, AT_ONCE, CHANGED, PART_BYTES, TEMPORARY, W, read_ahead, refuse_unsafe

TRIES = 100  # at a temporary file, while others tidy up
ABANDONED_S = 3600.0  # after which the writer of an unfinished file is taken for dead
PROBES = 8  # other files that are tried before a disk is taken for ill

# One folder cannot be listed: nobody may read it, or it lies so deep that it has no path.
_FOLDER_ERRORS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
# The disk or the network mount is ill, not the one file: the run must stop rather than reject photo after photo.
_MEDIUM_ERRORS = {
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EAGAIN),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOTCONN, errno.ESHUTDOWN, errno.EREMOTEIO),
}
# The file system cannot hold an object of this name beside those that it holds.
_NAME_ERRORS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
# One file may be the reason: its sector is bad, or it was replaced on the server that it comes from.
_SECTOR_ERRORS = (errno.EIO, errno.ESTALE)
# The file system knows no hard links.
_NO_LINKS_ERRORS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalStore:
    """A folder. Objects appear whole: they are written beside the root's objects, synced, and renamed into place.

    Links to files are followed within the root; a link that leads out of it, or to anything else than a file, is
    listed, and refused when it is read. So is a folder that may not be read, and a file on a bad sector: one that the
    disk cannot read, while it reads another file.
    """

    retries = 0
    throttled = 0

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))  # the same folder has the same URL, however it is named
        self.url = str(self.root)
        self._last_read: Path | None = None

    def list(self, prefix: str = "") -> Iterator[SourceObject]:
        first = self.root / prefix if prefix else self.root
        folders = [first]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if entry.name != TEMPORARY:
                                folders.append(Path(entry.path))
                        elif (found := self._describe(entry)) is not None:
                            yield found
            except FileNotFoundError:
                continue
            except OSError as error:
                if isinstance(error, NotADirectoryError) and folder != first:
                    continue  # a file has just taken its place
                if error.errno in _FOLDER_ERRORS and folder != first:
                    yield SourceObject(self._key(folder), 0, "unreadable")
                    continue
                raise StorageError(f"cannot list {folder}: {explain(error)}") from error

    def read(self, key: str) -> bytes:
        with self._readable(key) as path:
            return path.read_bytes()

    def read_many(
        self, wanted: Iterable[W], *, ahead_bytes: int = AHEAD_BYTES, at_once: int = AT_ONCE
    ) -> Iterator[tuple[W, bytes | ObjectRefused]]:
        with ThreadPoolExecutor(at_once, "read") as pool:
            yield from read_ahead(
                lambda key: pool.submit(self.read, key), wanted, ahead_bytes=ahead_bytes, at_once=at_once
            )

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._readable(key) as path, path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, key: str) -> int:
        with self._readable(key) as path:
            return path.stat().st_size

    @contextmanager
    def opened(self, key: str) -> Iterator[BinaryIO]:
        with self._readable(key) as path:
            file = path.open("rb")
        with file:
            before = os.fstat(file.fileno())
            yield file
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ObjectRefused(f"cannot read {key} in {self.url}: {CHANGED}")

    def write(self, key: str, data: bytes, *, content_type: str | None = None) -> None:
        del content_type  # a file's name tells
        with self._written(key, [data]) as temporary:
            _replace(temporary, self._path(key))

    def write_file(self, key: str, path: Path) -> None:
        with path.open("rb") as file, self._written(key, iter(partial(file.read, PART_BYTES), b"")) as temporary:
            _replace(temporary, self._path(key))

    def create(self, key: str, data: bytes) -> None:
        for _ in range(TRIES):
            with self._written(key, [data]) as temporary, suppress(FileNotFoundError):
                try:
                    _link(temporary, self._path(key))
                except FileExistsError as error:
                    raise ObjectExists(f"{key} is already in {self.url}") from error
                return
            # Whoever took the lease that we are claiming has just tidied our file away: see `clean`.
        raise StorageError(f"cannot write {key} to {self.url}: its temporary file keeps vanishing")

    def link(self, key: str, *, expires_s: int, content_type: str, endpoint: str | None = None) -> str | None:
        del key, expires_s, content_type, endpoint
        return None

    def exists(self, key: str) -> bool:
        try:
            return self._path(key).is_file()
        except OSError as error:
            raise StorageError(f"cannot look for {key} in {self.url}: {explain(error)}") from error

    def delete(self, key: str) -> None:
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                self._path(key).unlink()
        except OSError as error:
            raise StorageError(f"cannot delete {key} in {self.url}: {explain(error)}") from error

    def clean(self) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):  # others tidy the empty folder away meanwhile
            for path in (self.root / TEMPORARY).iterdir():
                with suppress(OSError):  # a folder is none of ours
                    path.unlink()
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            for path in (self.root / TEMPORARY).iterdir():
                if time.time() > path.stat().st_mtime + ABANDONED_S:
                    path.unlink()
            (self.root / TEMPORARY).rmdir()

    def _path(self, key: str) -> Path:
        refuse_unsafe(key)
        return self.root / key

    @contextmanager
    def _readable(self, key: str) -> Iterator[Path]:
        """The path of a file that may be read; what goes wrong with it meanwhile is the file's own, or the disk's."""
        path = self._path(key)
        try:
            mode = path.stat().st_mode  # first: `resolve` answers a link to itself with a RuntimeError
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise ObjectRefused(f"{key} is a link that leads out of {self.url}")
            if stat.S_ISDIR(mode):
                os.scandir(path).close()  # says why it is in the listing, if it cannot be listed itself
            if not stat.S_ISREG(mode):  # a pipe would never end
                raise ObjectRefused(f"cannot read {key} in {self.url}: it is no file")
            yield path
            self._last_read = path
        except OSError as error:
            is_bad_sector = error.errno in _SECTOR_ERRORS and self._reads_others(path)
            if error.errno in _MEDIUM_ERRORS and not is_bad_sector:
                raise StorageError(f"cannot read {key} in {self.url}: {explain(error)}") from error
            is_gone = isinstance(error, FileNotFoundError | NotADirectoryError) and not path.is_symlink()
            refusal = ObjectMissing if is_gone else ObjectRefused  # a link that leads nowhere is still listed
            raise refusal(f"cannot read {key} in {self.url}: {explain(error)}") from error

    def _reads_others(self, path: Path) -> bool:
        """Whether the disk still gives some other file: the one that was read last, or one of the first."""
        first = (self.root / found.key for found in islice(self.list(), PROBES))
        others = (other for other in (self._last_read, *first) if other not in (None, path))
        return any(_reads_from_disk(other) for other in others if other is not None)

    def _describe(self, entry: os.DirEntry[str]) -> SourceObject | None:
        """What a listing says of a file or a link; None for what is neither, or has just been removed."""
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        if entry.is_symlink():
            with suppress(OSError):  # it leads nowhere, or where nobody may look: the link itself is listed
                followed = entry.stat()
                status = followed if stat.S_ISREG(followed.st_mode) else status
        elif not stat.S_ISREG(status.st_mode):
            return None
        return SourceObject(self._key(Path(entry.path)), status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix().encode("utf-8", "backslashreplace").decode()

    @contextmanager
    def _written(self, key: str, parts: Iterable[bytes]) -> Iterator[Path]:
        """A temporary file that holds the parts safely on the disk, and is gone afterwards."""
        temporary = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            self._path(key).parent.mkdir(parents=True, exist_ok=True)
            with _open_new(temporary) as file:
                for part in parts:
                    view = memoryview(part)
                    while view:
                        view = view[file.write(view) :]
                os.fsync(file.fileno())
            fault_point(FaultPoint.OBJECT_HALF_WRITTEN)
            yield temporary
        except OSError as error:
            kind = ObjectRefused if error.errno in _NAME_ERRORS else StorageError
            raise kind(f"cannot write {key} to {self.url}: {explain(error)}") from error
        finally:
            with suppress(OSError):
                temporary.unlink()


def _reads_from_disk(path: Path) -> bool:
    """Whether the file's first byte can be read, and not only remembered."""
    try:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.read(1)
    except OSError:
        return False
    return True


def _replace(temporary: Path, path: Path) -> None:
    """Give the file its name, in place of a file or of an empty folder: that is no object."""
    try:
        temporary.replace(path)
    except IsADirectoryError:
        with suppress(OSError):
            path.rmdir()
        temporary.replace(path)


def _link(temporary: Path, path: Path) -> None:
    """Give the file its name, unless that is taken. FAT and exFAT know no links: there, of two at once both may win."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not os.path.samestat(temporary.lstat(), path.lstat()):  # or NFS asked again for what was done
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS_ERRORS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "it exists", str(path)) from error
        temporary.replace(path)


def _open_new(path: Path) -> io.FileIO:
    """Create a file, and its folder; again, where another process has just tidied the empty folder away."""
    for _ in range(TRIES):
        path.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            return io.FileIO(path, "xb")
    raise FileNotFoundError(errno.ENOENT, "its folder keeps vanishing", str(path))
