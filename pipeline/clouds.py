"""What differs between the file systems of fsspec: how to connect, read, create, and list a page.

Each library would repeat failed requests by itself, uncounted, and multiplied by our own attempts: that is turned off.
"""

import errno
import functools
import importlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from pipeline.errors import StorageError
from pipeline.range_file import RangeFile
from pipeline.redaction import explain, showable
from pipeline.storage import ALIASES

PAGE = 1000  # objects of a listing that a server sends at once, at most
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30  # between two pieces of an answer
CONNECTIONS = 64
LARGE_BYTES = 8 * 1024**2  # of a body that is worth reading a piece at a time
OF_OBJECTS = {"get_object", "head_object", "put_object"}  # requests to S3
WRITER = "degrain_writer"  # the metadata that tells who created an object

Found = tuple[str, int, str]  # path, size and etag of an object
Page = tuple[list[Found], Any]  # Any: the token for more, of each library's own kind; None at the end


def connect(url: str) -> tuple["Cloud", str]:
    """The file system of a URL, and the URL's path in it.

    Raises:
        ValueError: the URL's scheme is unknown, or the library for it is not installed or wants more settings.
        StorageError: the library finds no credentials that it can use.
    """
    scheme = url.partition("://")[0]
    kind = {"s3": S3, "gs": Google, "abfs": Azure}.get(ALIASES.get(scheme, scheme), Cloud)
    if "::" in url and kind is not Cloud:
        raise ValueError(f"{url} holds a '::', which joins two URLs: name a place without")
    try:
        return kind.connect(url)
    except ImportError as error:
        missing = explain(error)
        if kind.extra is not None:
            missing = f"the library for {scheme}:// is not installed: pip install 'degrain[{kind.extra}]'"
        raise ValueError(f"cannot open {url}: {missing}") from error
    except ValueError as error:
        raise ValueError(f"cannot open {url}: {explain(error)}") from showable(error)
    except Exception as error:  # noqa: BLE001 - raised again, as one of ours
        raise StorageError(f"cannot open {url}: {explain(error)}") from showable(error)


class Cloud:
    """Any file system of fsspec whose writes are whole objects. Every call is one request that may be repeated."""

    extra: str | None = None  # of this package, that brings the library

    def __init__(self, filesystem: Any) -> None:  # Any: fsspec is untyped
        self.filesystem = filesystem if filesystem.async_impl else AsyncFileSystemWrapper(filesystem)

    @classmethod
    def connect(cls, url: str) -> tuple["Cloud", str]:
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return cls(filesystem), path

    async def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The object, or its bytes from `start` to `end`, of which there is at least one."""
        return bytes(await self.filesystem._cat_file(path, start=start, end=end))

    async def details(self, path: str) -> dict[str, Any]:  # Any: fsspec is untyped
        """`type` ("file", "directory"), `size` in bytes, and more."""
        return dict(await self.filesystem._info(path))

    async def put(self, path: str, data: bytes, content_type: str | None = None) -> None:
        del content_type  # there is no way to say it that all of them know
        await self.filesystem._pipe_file(path, data)

    async def put_file(self, path: str, local: Path) -> None:
        """Put a file, a part at a time; the object is there when all of them are."""
        await self.filesystem._put_file(str(local), path)

    async def create(self, path: str, data: bytes, writer: str) -> None:
        """Put the object if there is none, and `writer` into its metadata.

        Raises:
            FileExistsError: there is one. Of some servers, it is an error of their library, which `object_store` knows.
        """
        del writer  # nothing is lost on the way to memory
        await self.filesystem._pipe_file(path, data, mode="create")

    async def writer(self, path: str) -> str | None:
        """Who created the object; None where that is not known."""
        del path
        return None

    async def link(self, path: str, expires_s: int, content_type: str, endpoint: str | None) -> str | None:
        """An address that gives the object, as that type, to whoever has it; None where none can be signed."""
        del path, expires_s, content_type, endpoint
        return None

    async def remove(self, path: str) -> None:
        await self.filesystem._rm_file(path)

    async def page(self, folder: str, token: Any) -> Page:  # Any: see `Page`
        """Some objects in a folder, and the token for more: None at the end, as at the start.

        Here the objects of one folder after the other, for fsspec has no way to ask for less.
        """
        current, *others = [folder] if token is None else token
        try:
            entries = await self.filesystem._ls(current, detail=True)
        except FileNotFoundError:
            entries = []
        others += [entry["name"] for entry in entries if entry["type"] == "directory"]
        files = (entry for entry in entries if entry["type"] == "file" and entry["name"] != folder)
        return [(entry["name"], int(entry["size"]), etag_of(entry)) for entry in files], others or None


class S3(Cloud):
    """S3 and its kin. An object is one request either way: parts would add requests, and leave parts behind."""

    LARGEST = 5 * 1024**3  # bytes that S3 takes at once

    @classmethod
    def connect(cls, url: str) -> tuple["Cloud", str]:
        config = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": CONNECTIONS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }
        # With more than one request at an object, s3fs asks for the size of each first, however small it is.
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False, max_concurrency=1, config_kwargs=config)
        filesystem.retries = 1
        filesystem._call_s3 = functools.partial(_answered, filesystem)
        return cls(filesystem), path

    async def put_file(self, path: str, local: Path) -> None:
        if local.stat().st_size > self.LARGEST:
            await self.filesystem._put_file(str(local), path, max_concurrency=2)
            return
        bucket, key, _ = self.filesystem.split_path(path)
        with local.open("rb") as file:
            await self.filesystem._call_s3("put_object", Bucket=bucket, Key=key, Body=file)

    async def put(self, path: str, data: bytes, content_type: str | None = None) -> None:
        # A body in memory that is sent at once is there twice: asyncio's transport holds a copy until it is sent.
        is_large = len(data) > LARGE_BYTES
        body = RangeFile(len(data), lambda start, length: data[start : start + length]) if is_large else data
        kind = {} if content_type is None else {"ContentType": content_type}
        await self.filesystem._pipe_file(path, body, chunksize=self.LARGEST, **kind)

    async def create(self, path: str, data: bytes, writer: str) -> None:
        await self.filesystem._pipe_file(path, data, chunksize=self.LARGEST, mode="create", Metadata={WRITER: writer})

    async def writer(self, path: str) -> str | None:
        bucket, key, _ = self.filesystem.split_path(path)
        found = await self.filesystem._call_s3("head_object", Bucket=bucket, Key=key)
        return _text(found["Metadata"].get(WRITER))

    async def link(self, path: str, expires_s: int, content_type: str, endpoint: str | None) -> str | None:
        bucket, key, _ = self.filesystem.split_path(path)
        await self.filesystem.set_session()
        client = await self.filesystem.get_s3(bucket)  # the one that wrote it, and so knows the region of the bucket
        asked = {"Bucket": bucket, "Key": key, "ResponseContentType": content_type}
        async with AsyncExitStack() as stack:
            if endpoint is not None:  # what is signed has the name of the server in it
                options = {"region_name": client.meta.region_name, "config": client.meta.config}
                other = self.filesystem.session.create_client("s3", endpoint_url=endpoint, **options)
                client = await stack.enter_async_context(other)
            client.meta.events.register("choose-signer.s3.GetObject", _signed_by_version_4, unique_id="degrain-links")
            link = str(await client.generate_presigned_url("get_object", Params=asked, ExpiresIn=expires_s))
        return link if "X-Amz-Signature=" in link else None  # without credentials there is nothing to sign with

    async def page(self, folder: str, token: Any) -> Page:  # Any: see `Page`
        """The same, without holding all of it as s3fs does: a gigabyte for each million objects."""
        bucket, key, _ = self.filesystem.split_path(folder)
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": PAGE}
        if token is not None:
            asked["ContinuationToken"] = token
        page = await self.filesystem._call_s3("list_objects_v2", **asked)
        found = [(f"{bucket}/{one['Key']}", int(one["Size"]), etag_of(one)) for one in page.get("Contents", ())]
        return found, page["NextContinuationToken"] if page.get("IsTruncated") else None


class Google(Cloud):
    """Google Cloud Storage."""

    extra = "gs"

    @classmethod
    def connect(cls, url: str) -> tuple["Cloud", str]:
        from aiohttp import ClientTimeout
        from gcsfs.core import GCSFileSystem  # not its default, which asks about each bucket by gRPC first

        timeout = ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        filesystem = GCSFileSystem(use_listings_cache=False, requests_timeout=timeout)
        filesystem._request = functools.partial(GCSFileSystem._request.__wrapped__, filesystem)
        return cls(filesystem), filesystem._strip_protocol(url)

    async def put(self, path: str, data: bytes, content_type: str | None = None) -> None:
        kind = {} if content_type is None else {"content_type": content_type}
        await self.filesystem._pipe_file(path, data, chunksize=len(data) + 1, **kind)  # in one request

    async def create(self, path: str, data: bytes, writer: str) -> None:
        await self.filesystem._pipe_file(path, data, chunksize=len(data) + 1, mode="create", metadata={WRITER: writer})

    async def writer(self, path: str) -> str | None:
        found = await self.details(path)
        return _text((found.get("metadata") or {}).get(WRITER))

    async def page(self, folder: str, token: Any) -> Page:  # Any: see `Page`
        bucket, key, _ = self.filesystem.split_path(folder)
        page = await self.filesystem._call(
            "GET",
            "b/{}/o",
            bucket,
            prefix=f"{key}/" if key else None,
            maxResults=PAGE,
            pageToken=token,
            json_out=True,
        )
        found = [(f"{bucket}/{one['name']}", int(one["size"]), etag_of(one)) for one in page.get("items", ())]
        return found, page.get("nextPageToken")


class Azure(Cloud):
    """Azure's blob storage."""

    extra = "az"

    @classmethod
    def connect(cls, url: str) -> tuple["Cloud", str]:
        importlib.import_module("adlfs")  # says that it is missing before fsspec looks for it

        filesystem, path = fsspec.core.url_to_fs(
            url,
            use_listings_cache=False,
            max_concurrency=1,
            connection_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
        )
        filesystem.service_client._config.retry_policy.total_retries = 0
        filesystem._strip_protocol = str  # its own takes '?' and '#' in a key for parts of a URL, and drops some
        return cls(filesystem), path

    async def put(self, path: str, data: bytes, content_type: str | None = None) -> None:
        kind = {} if content_type is None else {"content_settings": {"content_type": content_type}}
        await self.filesystem._pipe_file(path, data, **kind)

    async def create(self, path: str, data: bytes, writer: str) -> None:
        async with self._blob(path) as blob:
            await blob.upload_blob(data, overwrite=False, metadata={"is_directory": "false", WRITER: writer})

    async def writer(self, path: str) -> str | None:
        async with self._blob(path) as blob:
            return _text((await blob.get_blob_properties()).metadata.get(WRITER))

    async def page(self, folder: str, token: Any) -> Page:  # Any: see `Page`
        container, key, _ = self.filesystem.split_path(folder)
        async with self.filesystem.service_client.get_container_client(container) as client:
            blobs = client.list_blobs(f"{key}/" if key else None, include=["metadata"], results_per_page=PAGE)
            pages = blobs.by_page(token)
            found = [
                (f"{container}/{blob.name}", int(blob.size), blob.etag.strip('"'))
                async for blob in await anext(pages)
                if "true" not in ((blob.metadata or {}).get(name) for name in ("hdi_isfolder", "is_directory"))
            ]
            return found, pages.continuation_token

    def _blob(self, path: str) -> Any:  # Any: azure.storage.blob is not installed everywhere
        container, key, _ = self.filesystem.split_path(path)
        return self.filesystem.service_client.get_blob_client(container, key)


async def _answered(filesystem: Any, method: str, *arguments: Any, **options: Any) -> dict[str, Any]:  # Any: s3fs
    """What S3 answers, unless it says nothing, as some proxies do for a server that is away.

    botocore takes that for an object without bytes, for one that is written, or for the last page of a listing. Of
    objects S3 and its kin tell an ETag.
    """
    answer: dict[str, Any] = await type(filesystem)._call_s3(filesystem, method, *arguments, **options)
    is_empty_page = method == "list_objects_v2" and not answer.keys() - {"ResponseMetadata"}
    is_no_object = method in OF_OBJECTS and "ETag" not in answer and "RequestId" not in answer["ResponseMetadata"]
    if is_empty_page or is_no_object:
        if "Body" in answer:
            answer["Body"].close()
        raise ConnectionError(errno.ECONNRESET, "the server's answer is empty")
    return answer


def _signed_by_version_4(signature_version: str, **_: object) -> str | None:
    """By default botocore signs links by version 2, which new buckets refuse, and which lets them last for ever."""
    return "s3v4-query" if signature_version == "v4-query" else None


def _text(value: Any) -> str | None:  # Any: what a library found
    return None if value is None else str(value)


def etag_of(details: dict[str, Any]) -> str:  # Any: what a library says of an object differs by library
    for name in ("md5Hash", "ETag", "etag", "md5"):
        if etag := str(details.get(name) or "").strip('"'):
            return etag
    size_bytes = details.get("size", details.get("Size"))
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        if details.get(name):
            return f"{details[name]}-{size_bytes}"
    return str(size_bytes)
