"""Stores: list as a stream, read, write whole objects. The only module that knows fsspec and the file system.

A key is relative to the store's root, its parts divided by `/`. A key that could leave the root, or that other systems
could not hold, is unsafe: `unsafe_reason` says why, and every store refuses it with `ObjectRefused`.
"""

import contextlib
import errno
import io
import os
import re
import stat
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec

from pipeline.errors import ObjectExists, ObjectMissing, ObjectRefused, StorageError
from pipeline.records import SourceObject

T = TypeVar("T")

TEMPORARY = ".degrain-tmp"
MAX_PART_BYTES = 255  # of a file name, on every file system in common use
S3_PAGE = 1000  # objects of a listing that S3 sends at once, at most


class Store(Protocol):
    """A root in some storage. Safe to use from several threads; each process opens its own."""

    url: str

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

    def write(self, key: str, data: bytes) -> None:
        """Put the whole object, replacing what was there: readers see the old one or the new one, never a part.

        Raises:
            ObjectRefused: the store cannot hold an object of this name.
        """

    def create(self, key: str, data: bytes) -> None:
        """Put the whole object only where there is none yet.

        Raises:
            ObjectExists: someone else was first; their object stays.
        """

    def exists(self, key: str) -> bool:
        """Whether there is an object of this very name; a folder is none."""

    def delete(self, key: str) -> None:
        """Remove the object; it is no error if there is none."""

    def clean(self) -> None:
        """Remove what a killed writer left behind. Only while nobody else writes."""

    def close(self) -> None:
        """Leave nothing in the store but objects. Others may go on writing."""


def open_store(url: str) -> Store:
    """The store at a path or an fsspec URL (`s3://bucket/folder`, `memory://…`); nothing is created.

    Raises:
        ValueError: the URL's scheme is unknown, or the library for it is not installed, or it holds a password: URLs
            go into messages and manifests.
    """
    if (shown := re.sub(r"//[^/@]*:[^/@]*@", "//…@", url)) != url:
        raise ValueError(f"{shown} holds a password: leave it out, and put it where the library for it finds it")
    if "://" not in url or url.startswith(("file://", "local://")):
        return LocalStore(Path(url.split("://", 1)[-1]))
    try:
        filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot open {url}: {_explain(error)}") from error
    return ObjectStore(url.rstrip("/"), filesystem, root)


def unsafe_reason(key: str) -> str | None:
    """Why a key must not be used as a name below a target, or None where it may."""
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in key):
        return "the name holds control characters"
    if "\\" in key:
        return "the name holds a backslash, or bytes that are no text"
    if "?versionId=" in key:
        return "the name holds '?versionId=', which clients of S3 take for a version of another object"
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
    listed, and refused when it is read. So is a folder that may not be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))  # the same folder has the same URL, however it is named
        self.url = str(self.root)

    def list(self, prefix: str = "") -> Iterator[SourceObject]:
        folders = [self.root / prefix if prefix else self.root]
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
            except PermissionError as error:
                if folder == self.root:
                    raise StorageError(f"cannot list {self.url}: {_explain(error)}") from error
                yield SourceObject(self._key(folder), 0, "unreadable")
            except OSError as error:
                raise StorageError(f"cannot list {folder}: {_explain(error)}") from error

    def read(self, key: str) -> bytes:
        path = self._path(key)
        try:
            mode = path.stat().st_mode  # first: `resolve` answers a link to itself with a RuntimeError
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise ObjectRefused(f"{key} is a link that leads out of {self.url}")
            if not stat.S_ISREG(mode):  # a pipe would never end
                raise ObjectRefused(f"cannot read {key} in {self.url}: it is no file")
            return path.read_bytes()
        except OSError as error:
            if error.errno in _MEDIUM_ERRORS:
                raise StorageError(f"cannot read {key} in {self.url}: {_explain(error)}") from error
            refusal = ObjectMissing if isinstance(error, FileNotFoundError | NotADirectoryError) else ObjectRefused
            raise refusal(f"cannot read {key} in {self.url}: {_explain(error)}") from error

    def write(self, key: str, data: bytes) -> None:
        with self._written(key, data) as temporary:
            temporary.replace(self._path(key))

    def create(self, key: str, data: bytes) -> None:
        with self._written(key, data) as temporary:
            try:
                _link(temporary, self._path(key))
            except FileExistsError as error:
                raise ObjectExists(f"{key} is already in {self.url}") from error

    def exists(self, key: str) -> bool:
        try:
            return self._path(key).is_file()
        except OSError as error:
            raise StorageError(f"cannot look for {key} in {self.url}: {_explain(error)}") from error

    def delete(self, key: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._path(key).unlink()
        except OSError as error:
            raise StorageError(f"cannot delete {key} in {self.url}: {_explain(error)}") from error

    def clean(self) -> None:
        folder = self.root / TEMPORARY
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            (self.root / TEMPORARY).rmdir()

    def _path(self, key: str) -> Path:
        _refuse_unsafe(key)
        return self.root / key

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
    def _written(self, key: str, data: bytes) -> Iterator[Path]:
        """A temporary file that holds `data` safely on the disk, and is gone afterwards."""
        temporary = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            self._path(key).parent.mkdir(parents=True, exist_ok=True)
            with _open_new(temporary) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            yield temporary
        except OSError as error:
            kind = ObjectRefused if error.errno in _NAME_ERRORS else StorageError
            raise kind(f"cannot write {key} to {self.url}: {_explain(error)}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


# The disk or the network mount is ill, not the one file: the run must stop rather than reject photo after photo.
_MEDIUM_ERRORS = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# The file system cannot hold an object of this name beside those that it holds.
_NAME_ERRORS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)

_NO_LINKS_ERRORS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class ObjectStore:
    """Any fsspec file system whose writes are whole objects: S3 and its kin, `memory://`."""

    def __init__(self, url: str, filesystem: Any, root: str) -> None:  # Any: fsspec is untyped
        self.url = url
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def list(self, prefix: str = "") -> Iterator[SourceObject]:
        folder = f"{self._root}/{prefix}" if prefix else self._root
        is_s3 = hasattr(self._filesystem, "call_s3")
        for path, size_bytes, etag in self._find_s3(folder) if is_s3 else self._find(folder):
            key = path.removeprefix(self._root + "/")
            if not key.endswith("/"):
                yield SourceObject(key, size_bytes, etag)

    def read(self, key: str) -> bytes:
        path = self._path(key)
        return bytes(self._call(f"read {key} in {self.url}", lambda: self._filesystem.cat_file(path)))

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._call(f"write {key} in {self.url}", lambda: self._filesystem.pipe_file(path, data))

    def create(self, key: str, data: bytes) -> None:
        path = self._path(key)

        def put() -> None:
            try:
                self._filesystem.pipe_file(path, data, mode="create")
            except FileExistsError as error:
                raise ObjectExists(f"{key} is already in {self.url}") from error
            except OSError as error:
                # Some S3 servers answer a lost create-only PUT with "invalid argument" instead of "exists".
                if error.errno == errno.EINVAL and self._filesystem.exists(path):
                    raise ObjectExists(f"{key} is already in {self.url}") from error
                raise

        self._call(f"create {key} in {self.url}", put)

    def exists(self, key: str) -> bool:
        path = self._path(key)
        try:
            found = self._call(f"look for {key} in {self.url}", lambda: self._filesystem.info(path))
        except ObjectMissing:
            return False
        return bool(found["type"] == "file")

    def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(ObjectMissing):
            self._call(f"delete {key} in {self.url}", lambda: self._filesystem.rm_file(path))

    def clean(self) -> None:
        """An object store keeps no unfinished writes under their names."""

    def close(self) -> None:
        """Nor anything else but objects."""

    def _path(self, key: str) -> str:
        _refuse_unsafe(key)
        return f"{self._root}/{key}"

    def _find(self, folder: str) -> Iterator[tuple[str, int, str]]:
        """Path, size and etag of everything in a folder. fsspec has no way to ask for a part of it."""
        found = self._call(f"list {self.url}", lambda: self._filesystem.find(folder, detail=True))
        for path, details in found.items():
            if details["type"] == "file" and path != folder:
                yield path, int(details["size"]), _etag(details)

    def _find_s3(self, folder: str) -> Iterator[tuple[str, int, str]]:
        """The same, a page at a time: s3fs itself would hold all of it, a gigabyte for each million objects."""
        bucket, key, _ = self._filesystem.split_path(folder)
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": S3_PAGE}
        while True:
            page = self._call(f"list {self.url}", lambda: self._filesystem.call_s3("list_objects_v2", **asked))
            for found in page.get("Contents", ()):
                yield f"{bucket}/{found['Key']}", int(found["Size"]), str(found["ETag"]).strip('"')
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _call(self, what: str, request: Callable[[], T]) -> T:
        try:
            return request()
        except StorageError:
            raise
        except Exception as error:
            raise _translated(error, what) from error


def _link(temporary: Path, path: Path) -> None:
    """Give the file its name, unless that is taken. FAT and exFAT know no links: there, of two at once both may win."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS_ERRORS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "it exists", str(path)) from error
        temporary.replace(path)


def _open_new(path: Path) -> io.FileIO:
    """Create a file, and its folder; again, where another process has just tidied the empty folder away."""
    for _ in range(100):
        path.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return io.FileIO(path, "xb")
    raise FileNotFoundError(errno.ENOENT, "its folder keeps vanishing", str(path))


def split_url(url: str) -> tuple[str, str]:
    """The root and the last part of a path or URL: where one photo lies, and its key there."""
    if "://" in url:
        root, _, name = url.rstrip("/").rpartition("/")
        return root, name
    path = Path(url)
    return str(path.parent), path.name


def _refuse_unsafe(key: str) -> None:
    if (reason := unsafe_reason(key)) is not None:
        raise ObjectRefused(f"{key!r} is not used as a name: {reason}")


def _translated(error: Exception, what: str) -> StorageError:
    """What an object store's error means: one object is missing or refused, or the store as a whole does not work."""
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return ObjectMissing(f"cannot {what}: there is no such object")
    if code == "InvalidObjectState":
        return ObjectRefused(f"cannot {what}: it lies in an archive class (restore it, and try again)")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return ObjectRefused(f"cannot {what}: its name is too long")
    return StorageError(f"cannot {what}: {_explain(error)}")


def _etag(details: dict[str, Any]) -> str:  # Any: what a listing says differs by backend
    for name in ("ETag", "etag", "md5", "md5Hash"):
        if details.get(name):
            return str(details[name]).strip('"')
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        if details.get(name):
            return f"{details[name]}-{details['size']}"
    return f"{details['size']}"


def _explain(error: BaseException) -> str:
    """One short line: what a person can act on."""
    if isinstance(error, OSError) and error.strerror:
        return " ".join(error.strerror.lower().split())[:200]
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
