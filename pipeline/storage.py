"""Stores: list as a stream, read, write whole objects; and the one that is a folder.

A key is relative to the store's root, its parts divided by `/`. A key that could leave the root, or that other systems
could not hold, is unsafe: `unsafe_reason` says why, and every store refuses it with `ObjectRefused`.
"""

import contextlib
import dataclasses
import errno
import io
import os
import re
import stat
import time
import unicodedata
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from pipeline.errors import ObjectExists, ObjectMissing, ObjectRefused, StorageError
from pipeline.fault_points import FaultPoint, fault_point
from pipeline.records import SourceObject
from pipeline.redaction import explain, redacted, without_password

TEMPORARY = ".degrain-tmp"
TRIES = 100  # at a temporary file, while others tidy up
ABANDONED_S = 3600.0  # after which the writer of an unfinished file is taken for dead
MAX_PART_BYTES = 255  # of a file name, on every file system in common use

CHANGED = "it was changed while it was read"
PART_BYTES = 16 * 1024**2  # of a file that is read or written in parts
AHEAD_BYTES = 64 * 1024**2
AT_ONCE = 32
QUEUED = 4  # objects that wait or are read, for each request at once: it also bounds a queue of empty objects


class Sized(Protocol):
    """What has a key and the size that a listing gave it: a `SourceObject`, a `PlannedPhoto`."""

    @property
    def key(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


W = TypeVar("W", bound=Sized)


class Store(Protocol):
    """A root in some storage. Safe to use from several threads; each process opens its own."""

    url: str

    @property
    def retries(self) -> int:
        """Requests that failed and were made again so far, to whoever counts."""

    @property
    def throttled(self) -> int:
        """Of the requests that were made again, those that the server had put off."""

    def list(self, prefix: str = "") -> Iterator[SourceObject]:
        """Every object whose key starts with the folder `prefix`, in no promised order; keys stay relative to the root.

        Names that are no valid text come with their bytes escaped by backslashes, which makes them unsafe keys.
        """

    def read(self, key: str) -> bytes:
        """The whole object.

        Raises:
            ObjectMissing: there is none; a root that does not exist (a target yet to be made) holds none either.
            ObjectRefused: there is one, but this one cannot be read.
            StorageError: the store cannot be read.
        """

    def read_many(
        self, wanted: Iterable[W], *, ahead_bytes: int = AHEAD_BYTES, at_once: int = AT_ONCE
    ) -> Iterator[tuple[W, bytes | ObjectRefused]]:
        """Each object that is wanted with its bytes, in the order asked; others are read meanwhile.

        What refuses one object stands in its place. Closing the iterator early stops what is under way.

        Args:
            wanted: what to read; taken only as far as there is room.
            ahead_bytes: of objects (by their listed sizes) that are read, or being read, before they are taken. An
                object that is larger comes alone.
            at_once: requests under way, at most.

        Raises:
            StorageError: the store cannot be read.
        """

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start`, fewer where it ends before; raises what `read` raises."""

    def size(self, key: str) -> int:
        """Bytes of an object; raises what `read` raises."""

    def write(self, key: str, data: bytes, *, content_type: str | None = None) -> None:
        """Put the whole object, replacing what was there: readers see the old one or the new one, never a part.

        Args:
            key: of the object.
            data: all of it.
            content_type: what a browser takes it for, where stores keep that. None for bytes of strangers, which no
                browser is to run.

        Raises:
            ObjectRefused: the store cannot hold an object of this name.
        """

    def opened(self, key: str) -> AbstractContextManager[BinaryIO]:
        """The whole object as a local file, for one that memory should not hold; raises what `read` raises.

        Also ObjectRefused, when it is closed at the latest: it was changed meanwhile, and what was read may be mixed.
        """

    def write_file(self, key: str, path: Path) -> None:
        """Put the content of a local file as the whole object; in all else as `write`."""

    def create(self, key: str, data: bytes) -> None:
        """Put the whole object only where there is none yet.

        Raises:
            ObjectExists: someone else was first; their object stays.
        """

    def link(self, key: str, *, expires_s: int, content_type: str, endpoint: str | None = None) -> str | None:
        """An address at which anybody's browser gets the object for so long; None where the store can sign none.

        With an endpoint, the address is there: the store may have another one for browsers than for us.

        Of the credentials it tells the key's id, and of temporary ones the session's token, with which it ends: they
        are of no use without the secret key, which it does not tell.
        """

    def exists(self, key: str) -> bool:
        """Whether there is an object of this very name; a folder is none."""

    def delete(self, key: str) -> None:
        """Remove the object; it is no error if there is none."""

    def clean(self) -> None:
        """Remove what a killed writer left behind. Only while nobody else writes."""

    def close(self) -> None:
        """Leave nothing in the store but objects, and what others write at the moment."""


def open_store(url: str) -> Store:
    """The store at a path or an fsspec URL (`s3://bucket/folder`, `memory://…`); nothing is created.

    Raises:
        ValueError: there is no URL or nothing behind its scheme, or that is unknown, or the library for it is not
            installed, or it holds credentials or parameters: URLs go into messages and manifests.
        StorageError: the library for it finds no credentials that it can use.
    """
    refuse_empty(url)
    if (shown := without_password(url)) != url:
        raise ValueError(f"{shown} holds a password: leave it out, and put it where the library for it finds it")
    if "://" in url and (query := url.partition("?")[2]) and redacted(query) != query:
        raise ValueError(
            f"{redacted(url)} holds credentials: leave them out, and put them where the library for it finds them"
        )
    if "://" in url and "?" in url:
        raise ValueError(f"{redacted(url)} holds a '?', which begins parameters in a URL: name a place without")
    # With one slash, it is where an object of the URL s3://name would lie; with three, the bucket is what follows.
    if re.fullmatch(r"\w+:/+|(?!(file|local):)\w+:///.*", url, re.DOTALL):
        raise ValueError(f"{url} names no bucket: expected {url.partition(':')[0]}://bucket/folder")
    if one_slash := re.match(r"(\w\w+):/(?!/)", url):  # else results would lie in a folder s3: here, and nobody be told
        raise ValueError(f"{url} is no URL: expected {one_slash[1]}://… with two slashes (or ./{url} for a folder)")
    if url.partition("/")[0] == "~":  # as in --output=~/x: who tidies such a folder up by rm -r ~ loses another
        raise ValueError(f"{url}: the ~ has not been replaced by your shell: name the place in full (or ./{url})")
    if "://" not in url or url.startswith(("file://", "local://")):
        return LocalStore(Path(url.split("://", 1)[-1]))
    from pipeline.object_store import ObjectStore

    return ObjectStore.open(url)


# Schemes that mean the same, by the one that is taken for all of them.
ALIASES = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs", "ssh": "sftp", "local": "file"}


def spelled_out(url: str) -> str:
    """A path or URL as all others are spelled out that lead to the same place."""
    scheme, path = url.split("://", 1) if "://" in url else ("file", url)
    scheme = ALIASES.get(scheme, scheme)
    return os.path.realpath(path) if scheme == "file" else f"{scheme}://{path.rstrip('/')}"


def prefix_in(store: Store, other: Store) -> str | None:
    """What the keys of a store begin with in another one that holds it, as `clean/`; None where none of it lies there.

    It is empty where both are one place.
    """
    place, holder = (f"{spelled_out(each.url).rstrip('/')}/" for each in (store, other))
    return place.removeprefix(holder) if place.startswith(holder) else None


def unsafe_reason(key: str) -> str | None:
    """Why a key must not be used as a name below a target, or None where it may."""
    categories = {unicodedata.category(character) for character in key}
    if categories & {"Cc", "Zl", "Zp"}:
        return "the name holds control characters"
    if "Cs" in categories:
        return "the name holds bytes that are no text"
    if "\\" in key:
        return "the name holds a backslash, or bytes that are no text"
    if "?versionid=" in key.lower():
        return "the name holds '?versionId=', which clients of S3 and Azure take for a version of another object"
    parts = key.split("/")
    if ".." in parts or "." in parts:
        return "the name steps through '.' or '..'"
    if "" in parts:
        return "the name has an empty part: it starts or ends with '/', or has two in a row"
    if TEMPORARY in parts:
        return f"the name holds '{TEMPORARY}', which is kept for unfinished writes"
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"a part of the name is longer than {MAX_PART_BYTES} bytes"
    return None


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

    @contextlib.contextmanager
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
            with self._written(key, [data]) as temporary, contextlib.suppress(FileNotFoundError):
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
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._path(key).unlink()
        except OSError as error:
            raise StorageError(f"cannot delete {key} in {self.url}: {explain(error)}") from error

    def clean(self) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # others tidy the empty folder away meanwhile
            for path in (self.root / TEMPORARY).iterdir():
                with contextlib.suppress(OSError):  # a folder is none of ours
                    path.unlink()
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            for path in (self.root / TEMPORARY).iterdir():
                if time.time() > path.stat().st_mtime + ABANDONED_S:
                    path.unlink()
            (self.root / TEMPORARY).rmdir()

    def _path(self, key: str) -> Path:
        refuse_unsafe(key)
        return self.root / key

    @contextlib.contextmanager
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
            with contextlib.suppress(OSError):  # it leads nowhere, or where nobody may look: the link itself is listed
                followed = entry.stat()
                status = followed if stat.S_ISREG(followed.st_mode) else status
        elif not stat.S_ISREG(status.st_mode):
            return None
        return SourceObject(self._key(Path(entry.path)), status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix().encode("utf-8", "backslashreplace").decode()

    @contextlib.contextmanager
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
            with contextlib.suppress(OSError):
                temporary.unlink()


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
PROBES = 8  # other files that are tried before a disk is taken for ill

_NO_LINKS_ERRORS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def read_ahead(
    begin: Callable[[str], Future[bytes]], wanted: Iterable[W], *, ahead_bytes: int, at_once: int
) -> Iterator[tuple[W, bytes | ObjectRefused]]:
    """What `Store.read_many` promises, where `begin` starts to read an object, or queues it."""
    queue = iter(wanted)
    following = next(queue, None)
    under_way: deque[tuple[W, Future[bytes]]] = deque()
    room = ahead_bytes
    taken: tuple[W, bytes | ObjectRefused] | None = None
    try:
        while True:
            while following is not None and (
                not under_way or (following.size_bytes <= room and len(under_way) < QUEUED * at_once)
            ):
                room -= following.size_bytes
                under_way.append((following, begin(following.key)))
                following = next(queue, None)
            if taken is not None:
                yield taken
            if not under_way:
                return
            one, future = under_way.popleft()
            room += one.size_bytes
            try:
                taken = one, future.result()
            except ObjectRefused as error:
                taken = one, error
    finally:
        for _, future in under_way:
            future.cancel()


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
        with contextlib.suppress(OSError):
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
        with contextlib.suppress(FileNotFoundError):
            return io.FileIO(path, "xb")
    raise FileNotFoundError(errno.ENOENT, "its folder keeps vanishing", str(path))


@dataclasses.dataclass(frozen=True, slots=True)
class Destination:
    """Where one object is written at the end of long work."""

    store: Store
    key: str

    @classmethod
    def at(cls, url: str) -> "Destination":
        """Of a path or URL; an object that is there stays until it is replaced.

        Raises:
            StorageError: nothing can be written there, which is tried: better now than when the work is done.
        """
        root, key = split_url(url)
        store = open_store(root)
        try:
            store.create(key, b"")
            with contextlib.suppress(StorageError):  # whoever may write, and not delete
                store.delete(key)
        except ObjectExists:
            if not store.exists(key):
                raise ObjectRefused(f"cannot write {key} to {store.url}: a folder has this name") from None
        store.close()
        return cls(store, key)

    def write(self, data: bytes, *, found: str) -> None:
        """Write it; an error tells what was `found`, so that the work was not for nothing."""
        try:
            self.store.write(self.key, data)
        except StorageError as error:
            raise StorageError(f"{error}; what was found: {found}") from error
        self.store.close()


def refuse_empty(url: str) -> None:
    """Raise ValueError for a place without a name: to the system, that is the folder one happens to be in."""
    if not url:
        raise ValueError("a path or URL is empty: name a place")


def split_url(url: str) -> tuple[str, str]:
    """The root and the last part of a path or URL: where one photo lies, and its key there."""
    if "://" in url:
        root, _, name = url.rstrip("/").rpartition("/")
        return root, name
    path = Path(url)
    return str(path.parent), path.name


def refuse_unsafe(key: str) -> None:
    if (reason := unsafe_reason(key)) is not None:
        raise ObjectRefused(f"{key!r} is not used as a name: {reason}")
