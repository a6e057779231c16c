"""A store in the cloud: S3 and its kin, Google's and Azure's storage, or whatever else fsspec reaches."""

import asyncio
import errno
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec.asyn import sync

from pipeline import clouds
from pipeline.clouds import Cloud, Page, connect
from pipeline.errors import ObjectExists, ObjectMissing, ObjectRefused, StorageError
from pipeline.records import SourceObject
from pipeline.redaction import explain, showable
from pipeline.retries import GaveUp, Patience, Retries, answer_of, passes
from pipeline.storage import AHEAD_BYTES, AT_ONCE, CHANGED, PART_BYTES, W, read_ahead, refuse_unsafe

T = TypeVar("T")

SLOWEST_BYTES_PER_S = 250_000  # of an upload; one that is slower is taken for stuck
PROBES = 8  # other objects that are tried before a refusal is taken for that of the whole store


class ObjectStore:
    """A folder of a bucket, or of anything like it, through fsspec. Requests run in fsspec's event loop.

    Each is made again where that helps; `retries` says how often. An object that was created is known by its metadata:
    a create that was done, and whose answer was lost, finds its own object when it is made again.

    What a server refuses is an object's own where another object can be read at that moment: the one that was read
    last, or one of a few of the listing. Otherwise none can be read, and that is an error of the store. Its own is also
    what fails at every attempt, and once more so while the last one can be read: the server has lost its bytes.
    """

    def __init__(self, url: str, cloud: Cloud, root: str, *, patience: Patience | None = None) -> None:
        self.url = url
        self._cloud = cloud
        self._root = root.rstrip("/")
        self._retries = Retries(url, patience or Patience())
        self._last_read: str | None = None

    @classmethod
    def open(cls, url: str) -> "ObjectStore":
        """Raises ValueError if nothing that is installed knows the URL's scheme."""
        return cls(url.rstrip("/"), *connect(url))

    @property
    def retries(self) -> int:
        return self._retries.count

    @property
    def throttled(self) -> int:
        """Of the requests that were made again, those that the server had put off."""
        return self._retries.throttled

    def list(self, prefix: str = "") -> Iterator[SourceObject]:
        folder = f"{self._root}/{prefix}" if prefix else self._root
        token = None
        while True:
            before = token
            page, token = self._run(self._page, folder, before)
            for path, size_bytes, etag in page:
                key = path.removeprefix(self._root + "/")
                if key and (size_bytes or not key.endswith("/")):  # or it is a folder that a web console made
                    yield SourceObject(key, size_bytes, etag)
            if token is None:
                return
            if token == before:
                raise StorageError(f"cannot list {self.url}: the server gives the same page again and again")

    def read(self, key: str) -> bytes:
        return self._run(self._read, key)

    def read_many(
        self, wanted: Iterable[W], *, ahead_bytes: int = AHEAD_BYTES, at_once: int = AT_ONCE
    ) -> Iterator[tuple[W, bytes | ObjectRefused]]:
        turns = asyncio.Semaphore(at_once)

        async def read(key: str) -> bytes:
            async with turns:
                return await self._read(key)

        def begin(key: str) -> Future[bytes]:
            return asyncio.run_coroutine_threadsafe(read(key), self._cloud.filesystem.loop)

        return read_ahead(begin, wanted, ahead_bytes=ahead_bytes, at_once=at_once)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            self.size(key)
            return b""
        return self._run(self._read, key, start, start + length)

    def size(self, key: str) -> int:
        return self._size_and_etag(key)[0]

    def _size_and_etag(self, key: str) -> tuple[int, str]:
        details = self._run(self._details, key)
        if details["type"] != "file":
            raise ObjectMissing(f"cannot read {key} in {self.url}: it is a folder")
        return int(details["size"]), clouds.etag_of(details)

    def write(self, key: str, data: bytes, *, content_type: str | None = None) -> None:
        self._run(self._put, key, data, content_type)

    @contextmanager
    def opened(self, key: str) -> Iterator[BinaryIO]:
        size_bytes, etag = self._size_and_etag(key)
        with tempfile.TemporaryFile(prefix="degrain-") as file:
            while missing := size_bytes - file.tell():
                if not (part := self.read_range(key, file.tell(), min(missing, PART_BYTES))):
                    break
                file.write(part)
            if missing or self._size_and_etag(key) != (size_bytes, etag):
                raise ObjectRefused(f"cannot read {key} in {self.url}: {CHANGED}")
            file.seek(0)
            yield file

    def write_file(self, key: str, path: Path) -> None:
        self._run(self._put_file, key, path)

    def create(self, key: str, data: bytes) -> None:
        self._run(self._create, key, data)

    def link(self, key: str, *, expires_s: int, content_type: str, endpoint: str | None = None) -> str | None:
        return self._run(self._sign, key, expires_s, content_type, endpoint)

    def exists(self, key: str) -> bool:
        try:
            return bool(self._run(self._details, key)["type"] == "file")
        except ObjectMissing:
            return False

    def delete(self, key: str) -> None:
        self._run(self._remove, key)

    def clean(self) -> None:
        """Nothing: each write is one request, which leaves an object or nothing."""

    def close(self) -> None:
        """Nothing else than objects was left."""

    def _run(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:  # Any: what the work takes
        result: T = sync(self._cloud.filesystem.loop, work, *arguments)
        return result

    async def _page(self, folder: str, token: Any) -> Page:  # Any: see `Page`
        try:
            return await self._request(f"list {self.url}", lambda: self._cloud.page(folder, token))
        except ObjectMissing as error:
            raise StorageError(f"cannot list {self.url}: there is no such bucket") from error

    async def _read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        path = self._path(key)
        data = await self._request(f"read {key} in {self.url}", self._getting(path, start, end), path)
        self._last_read = path
        return data

    def _getting(self, path: str, start: int | None, end: int | None) -> Callable[[], Awaitable[bytes]]:
        async def get() -> bytes:
            try:
                data = await self._cloud.get(path, start, end)
            except Exception as error:
                if answer_of(error).status == 416:  # the object ends before the range starts
                    return b""
                raise
            if start is not None and end is not None and len(data) > end - start:
                raise OSError(errno.EPROTO, "the server gives more than the range that it is asked for")
            return data

        return get

    async def _details(self, key: str) -> dict[str, Any]:  # Any: fsspec is untyped
        path = self._path(key)
        return await self._request(f"look for {key} in {self.url}", lambda: self._cloud.details(path), path)

    async def _put(self, key: str, data: bytes, content_type: str | None) -> None:
        path = self._path(key)
        put = _uploading(len(data), lambda: self._cloud.put(path, data, content_type))
        await self._request(f"write {key} in {self.url}", put)

    async def _put_file(self, key: str, local: Path) -> None:
        path = self._path(key)
        put = _uploading(local.stat().st_size, lambda: self._cloud.put_file(path, local))
        await self._request(f"write {key} in {self.url}", put)

    async def _create(self, key: str, data: bytes) -> None:
        path, writer = self._path(key), uuid.uuid4().hex
        what = f"create {key} in {self.url}"

        async def create() -> bool:
            try:
                await self._cloud.create(path, data, writer)
            except Exception as error:
                if _means_taken(error):
                    return False
                raise
            return True

        if await self._request(what, _uploading(len(data), create)):
            return
        creator = None
        with suppress(ObjectMissing):  # whoever was first has removed it again
            creator = await self._request(what, lambda: self._cloud.writer(path))
        if creator != writer:
            raise ObjectExists(f"{key} is already in {self.url}")

    async def _sign(self, key: str, expires_s: int, content_type: str, endpoint: str | None) -> str | None:
        path = self._path(key)
        return await self._request(
            f"sign a link to {key} in {self.url}", lambda: self._cloud.link(path, expires_s, content_type, endpoint)
        )

    async def _remove(self, key: str) -> None:
        path = self._path(key)
        try:
            await self._request(f"delete {key} in {self.url}", lambda: self._cloud.remove(path))
        except ObjectMissing:
            return

    def _path(self, key: str) -> str:
        refuse_unsafe(key)
        return f"{self._root}/{key}"

    async def _request(
        self, what: str, request: Callable[[], Awaitable[T]], path: str | None = None, *, is_again: bool = False
    ) -> T:
        """What the request gives, in some attempts; in as many again where another object can be read after them.

        Args:
            what: the store is asked for, for messages.
            request: to make.
            path: the object whose own refusal this may be.
            is_again: whether these are the attempts after that.
        """
        try:
            return await self._retries.call(request)
        except Exception as error:  # noqa: BLE001 - raised again, as one of ours
            last = error.__cause__ if isinstance(error, GaveUp) and isinstance(error.__cause__, Exception) else error
            kind, reason = _meaning(last)
            gave_up = isinstance(error, GaveUp)
            if path is not None and kind is StorageError and await self._is_its_own(last, path, gave_up=gave_up):
                if gave_up and not is_again:  # or an outage that has just ended would be the object's fault
                    return await self._request(what, request, path, is_again=True)
                kind = ObjectRefused
            tried = f" (tried {error.attempts} times)" if isinstance(error, GaveUp) else ""
            raise kind(f"cannot {what}: {reason}{tried}") from showable(last)

    async def _is_its_own(self, error: Exception, path: str, *, gave_up: bool) -> bool:
        """Whether others can be read: beside an object that is refused, or one that fails at every attempt."""
        if gave_up:
            return not answer_of(error).is_throttling and await self._reads_last_again(path)
        return _may_be_its_own(error) and await self._reads_others(path)

    async def _reads_last_again(self, path: str) -> bool:
        """Whether the object that was read last, if it is another one, can be read at the first attempt."""
        if self._last_read in (None, path):
            return False
        with suppress(Exception):
            await self._getting(self._last_read, 0, 1)()
            return True
        return False

    async def _reads_others(self, path: str) -> bool:
        """Whether some other object can be read now."""
        last = self._last_read
        if last is not None and last != path and await self._reads(last):
            return True
        try:
            page, _ = await self._page(self._root, None)
        except StorageError:
            return False
        others = [other for other, size_bytes, _ in page if size_bytes and other != path]
        for other in others[:: max(1, len(others) // PROBES)][:PROBES]:
            if await self._reads(other):
                return True
        return False

    async def _reads(self, path: str) -> bool:
        try:
            await self._request(f"read {path}", self._getting(path, 0, 1))
        except StorageError:
            return False
        return True


def _uploading(size_bytes: int, request: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """The request, ended when it takes so long that the server must have stopped listening: no timeout sees that."""

    async def limited() -> T:
        limit = asyncio.timeout(clouds.READ_TIMEOUT_S + size_bytes / SLOWEST_BYTES_PER_S)
        try:
            async with limit:
                return await request()
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(errno.ETIMEDOUT, "the server has stopped listening") from error
            raise

    return limited


def _means_taken(error: Exception) -> bool:
    """Whether a create found an object. Some S3 servers do not say which condition was not met."""
    answer = answer_of(error)
    return isinstance(error, FileExistsError) or answer.status == 412 or answer.code == "BlobAlreadyExists"


def _may_be_its_own(error: Exception) -> bool:
    """Whether a server refuses what may be one object only: nobody may read it, or it is encrypted by a key of others.

    Not that the credentials are unknown or expired, nor what passes by itself.
    """
    answer = answer_of(error)
    if answer.status is None:
        return isinstance(error, PermissionError) or str(error).startswith("Forbidden: ")
    is_refusal = 400 <= answer.status < 500 and answer.status != 401
    return is_refusal and answer.code not in _OF_CREDENTIALS and not passes(error)


# Of whoever asks, and not of what is asked for.
_OF_CREDENTIALS = {
    *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("AuthorizationHeaderMalformed", "RequestTimeTooSkewed", "AuthenticationFailed", "InvalidAuthenticationInfo"),
}
# The store cannot hold an object of this name beside those that it holds: of MinIO and of Azure.
_OF_NAMES = {
    *("XMinioParentIsObject", "XMinioObjectExistsAsDirectory", "XMinioInvalidObjectName", "XMinioInvalidResourceName"),
    *("InvalidResourceName", "InvalidUri"),
}


def _meaning(error: Exception) -> tuple[type[StorageError], str]:
    """Whether one object is missing or refused, or the store as a whole does not work; and why, in one line."""
    answer = answer_of(error)
    if answer.code in ("NoSuchBucket", "ContainerNotFound"):
        return StorageError, explain(error)
    if isinstance(error, FileNotFoundError) or answer.status == 404:
        return ObjectMissing, "there is no such object"
    if answer.code in ("InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"):
        return ObjectRefused, "it lies in an archive class (restore it, and try again)"
    if answer.code == "KeyTooLongError" or getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return ObjectRefused, "its name is too long"
    if answer.code in _OF_NAMES:
        return ObjectRefused, f"it cannot hold an object of this name: {explain(error)}"
    if answer.code == "EntityTooLarge":
        return ObjectRefused, "it is larger than the store takes"
    return StorageError, explain(error)
