"""Stores: list as a stream, read, write whole objects.

A key is relative to the store's root, its parts divided by `/`. A key that could leave the root, or that other systems
could not hold, is unsafe: `unsafe_reason` says why, and every store refuses it with `ObjectRefused`.
"""

import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from pipeline.errors import ObjectExists, ObjectRefused, StorageError
from pipeline.records import SourceObject
from pipeline.redaction import redacted, without_password

TEMPORARY = ".degrain-tmp"
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
        from pipeline.local_store import LocalStore

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


@dataclass(frozen=True, slots=True)
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
            with suppress(StorageError):  # whoever may write, and not delete
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
