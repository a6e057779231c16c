"""Object stores: what only they go through, on a real server, behind a proxy, and with file systems that refuse."""

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import s3fs
from faults.proxy import Fault, FaultProxy, Refuse
from seaweed import BUCKET

from pipeline import clouds
from pipeline.clouds import Cloud, Page, connect
from pipeline.errors import ObjectExists, ObjectMissing, ObjectRefused, StorageError
from pipeline.object_store import ObjectStore
from pipeline.records import SourceObject
from pipeline.retries import Patience
from pipeline.storage import Destination, Store, open_store

HASTE = Patience(attempts=3, first_wait_s=0, longest_wait_s=0)


def keys(store: Store) -> list[str]:
    return sorted(found.key for found in store.list())


def path_of(url: str, key: str) -> tuple[str, str]:
    """Bucket and key on the server."""
    bucket, _, folder = url.partition("://")[2].partition("/")
    return bucket, f"{folder}/{key}"


class Unwilling(Cloud):
    """Answers every request with one error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(fsspec.filesystem("memory"))
        self.error = error
        self.asked = 0

    async def get(self, *_: object, **__: object) -> bytes:
        self.asked += 1
        raise self.error

    details = put = create = remove = page = writer = get


def unwilling(error: Exception) -> ObjectStore:
    return ObjectStore("s3://photos", Unwilling(error), "photos", patience=HASTE)


def test_a_server_that_knows_no_ranges_is_told_of() -> None:
    store = ObjectStore("memory://photos", Whole(fsspec.filesystem("memory")), "photos")
    store.write("a.parquet", b"0123456789")

    with pytest.raises(StorageError, match="more than the range"):
        store.read_range("a.parquet", 2, 3)


class Whole(Cloud):
    """Gives the whole object, whatever is asked for."""

    async def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        del start, end
        return await super().get(path)


# Listings


@pytest.mark.parametrize("server", ["s3", "seaweed", "gs", "az"])
def test_a_listing_is_read_a_page_at_a_time(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clouds, "PAGE", 2)
    store = open_store(request.getfixturevalue(f"{server}_url"))
    for number in range(5):
        store.write(f"{number}", b"1")

    listing = store.list()
    first = next(listing)
    store.delete("4")

    assert [first.key, *(found.key for found in listing)] == ["0", "1", "2", "3"]


def test_a_page_that_comes_empty_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def page(name: str, more: str) -> bytes:
        found = f"<Contents><Key>photos/{name}</Key><Size>1</Size><ETag>e</ETag></Contents>{more}"
        return f"<ListBucketResult><Name>{BUCKET}</Name>{found}</ListBucketResult>".encode()

    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    with answering([page("a", more), None, page("b", "")], monkeypatch):
        assert keys(open_store(f"s3://{BUCKET}/photos")) == ["a", "b"]


@pytest.mark.parametrize("verb", ["read", "read_range", "size", "write", "create"])
def test_an_object_of_which_nothing_is_said_is_asked_for_again(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"read_range": (0, 5), "write": (b"photo",), "create": (b"photo",)}.get(verb, ())
    with answering([None, b"" if verb in ("write", "create") else b"photo"], monkeypatch):
        store = open_store(f"s3://{BUCKET}/photos")
        found = getattr(store, verb)("a.jpg", *arguments)

    assert (found, store.retries) == ({"size": 5, "write": None, "create": None}.get(verb, b"photo"), 1)


@contextmanager
def answering(answers: list[bytes | None], environment: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server that gives these answers, one after the other, whatever it is asked; None is one without a word."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # or nobody is told to go on with what is put

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = answers.pop(0)
            self.send_response(200)
            body = answer or b""
            self.send_header("Content-Length", str(len(body)))
            if answer is not None:
                self.send_header("ETag", "e")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_PUT = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            environment.setenv(f"AWS_{name}", "nobody")
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()


def test_where_a_listing_tells_no_etag_the_time_of_the_last_change_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def page(time: str) -> bytes:
        found = f'<Contents><Key>a</Key><Size>1</Size><ETag>""</ETag><LastModified>{time}</LastModified></Contents>'
        return f"<ListBucketResult><Name>{BUCKET}</Name>{found}</ListBucketResult>".encode()

    with answering([page(f"2026-11-30T{hour}:00:00.000Z") for hour in ("09", "09", "10")], monkeypatch):
        first, same, changed = (next(open_store(f"s3://{BUCKET}").list()).etag for _ in range(3))

    assert first == same != changed


def test_a_server_that_gives_one_page_for_ever_is_told_of() -> None:
    class Repeating(Cloud):
        async def page(self, folder: str, token: object) -> Page:
            del token
            return [(f"{folder}/a", 1, "e")], "again"

    store = ObjectStore("memory://photos", Repeating(fsspec.filesystem("memory")), "photos")

    with pytest.raises(StorageError, match="the same page again and again"):
        list(store.list())


def test_a_listing_of_any_other_file_system_goes_folder_by_folder(memory_url: str) -> None:
    store = open_store(memory_url)
    for key in ("a/1", "b/2"):
        store.write(key, b"1")

    listing = store.list()
    first = next(listing)
    store.delete("b/2" if first.key == "a/1" else "a/1")

    assert list(listing) == []


def test_an_object_whose_name_is_that_of_a_folder_is_one_if_it_holds_anything(s3_url: str) -> None:
    store = open_store(s3_url)
    for name, data in (("", b""), ("empty/", b""), ("photo/", b"1")):
        bucket, key = path_of(s3_url, name)
        s3fs.S3FileSystem().call_s3("put_object", Bucket=bucket, Key=key, Body=data)

    assert keys(store) == ["photo/"]


def test_a_folder_that_the_web_console_made_is_no_object(s3_url: str) -> None:
    store = open_store(s3_url)
    bucket, folder = path_of(s3_url, "2019/")
    s3fs.S3FileSystem().call_s3("put_object", Bucket=bucket, Key=folder, Body=b"")
    store.write("2019/a.jpg", b"1")

    assert keys(store) == ["2019/a.jpg"]


@pytest.mark.parametrize(("server", "scheme"), [("s3", "s3"), ("seaweed", "s3"), ("gs", "gs"), ("az", "az")])
def test_a_bucket_that_is_not_there_cannot_be_listed(server: str, scheme: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{server}_url")

    with pytest.raises(StorageError, match=r"^cannot list \w+://no-such-bucket/photos: ") as caught:
        list(open_store(f"{scheme}://no-such-bucket/photos").list())
    assert not isinstance(caught.value, ObjectRefused)


# Reading


def test_no_more_requests_are_under_way_than_may_be() -> None:
    class Counting(Cloud):
        """Holds each request for a moment, and counts those that it holds."""

        def __init__(self) -> None:
            super().__init__(fsspec.filesystem("memory"))
            self.held = self.most = 0

        async def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
            self.held += 1
            self.most = max(self.most, self.held)
            await asyncio.sleep(0.01)
            self.held -= 1
            return b"1"

    cloud = Counting()
    store = ObjectStore("memory://", cloud, "", patience=HASTE)

    found = list(store.read_many([SourceObject(f"{number}", 1, "") for number in range(50)], at_once=5))

    assert len(found) == 50
    assert 1 < cloud.most <= 5


def test_giving_up_a_reading_ends_its_requests() -> None:
    begun, ended = threading.Event(), threading.Event()

    class Stuck(Cloud):
        """Answers the first request, and none after."""

        async def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
            if path.endswith("0"):
                return b"1"
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

    store = ObjectStore("memory://", Stuck(fsspec.filesystem("memory")), "", patience=HASTE)
    reading = store.read_many([SourceObject("0", 1, ""), SourceObject("1", 1, "")])

    next(reading)
    assert begun.wait(10)
    reading.close()

    assert ended.wait(10)


def test_an_object_is_read_and_written_by_one_request(proxy: FaultProxy, proxied_url: str) -> None:
    store = open_store(proxied_url)
    store.write("a.jpg", bytes(3_000_000))
    store.create("b.jpg", bytes(3_000_000))
    store.read("a.jpg")
    store.read_range("a.jpg", 1_000_000, 10)

    assert proxy.seen == {"PUT": 2, "GET": 2}


@pytest.mark.parametrize("verb", ["write", "create"])
def test_a_large_object_is_written_at_once_and_leaves_no_parts(
    verb: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(1_000_000) * 110  # s3fs itself would send it in parts

    store = open_store(s3_url)
    getattr(store, verb)("shard", data)

    assert store.read("shard") == data
    found = s3fs.S3FileSystem().call_s3("head_object", Bucket=BUCKET, Key=path_of(s3_url, "shard")[1])
    assert "-" not in found["ETag"]


def test_an_archived_object_is_refused_and_the_store_works_on(s3_url: str) -> None:
    store = open_store(s3_url)
    bucket, key = path_of(s3_url, "cold.jpg")
    s3fs.S3FileSystem().call_s3("put_object", Bucket=bucket, Key=key, Body=b"1", StorageClass="GLACIER")

    with pytest.raises(ObjectRefused, match=r"^cannot read cold\.jpg in s3://\S+: it lies in an archive class"):
        store.read("cold.jpg")


def test_a_blob_in_azures_archive_is_refused_like_it() -> None:
    class ArchivedError(Exception):
        status_code, error_code = 409, "BlobArchived"

    with pytest.raises(ObjectRefused, match="it lies in an archive class"):
        unwilling(ArchivedError()).read("cold.jpg")


def test_a_bucket_that_is_not_there_is_no_missing_object(s3_bucket: str) -> None:
    store = open_store("s3://no-such-bucket/photos")

    for verb in (store.read, store.exists, store.size, lambda key: store.write(key, b"")):
        with pytest.raises(StorageError, match=r"bucket does not exist$") as caught:
            verb("a.jpg")
        assert not isinstance(caught.value, ObjectRefused)


# Refused: one object, or all


def deny(*keys: str, status: int = 403, code: str = "AccessDenied") -> Refuse:
    """All that is asked about these keys is answered with this error."""
    return lambda method, path: (status, code) if path.partition("?")[0].rpartition("/")[2] in keys else None


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (400, "InvalidRequest"),  # S3's, of what is encrypted by a key that its owner alone has
        (400, "KMS.DisabledException"),
        (409, "BlobUsesCustomerSpecifiedEncryption"),
    ],
)
def test_an_object_that_nobody_may_read_is_refused_where_others_can_be_read(
    proxy: FaultProxy, proxied_url: str, status: int, code: str
) -> None:
    store = open_store(proxied_url)
    for key in ("a.jpg", "b.jpg", "c.jpg"):
        store.write(key, b"1")
    proxy.refuse = deny("b.jpg", status=status, code=code)

    for verb in (store.read, store.size, lambda key: store.read_range(key, 0, 1)):
        with pytest.raises(ObjectRefused, match=r"b\.jpg in s3://\S+: \w"):
            verb("b.jpg")
    found = [data for _, data in store.read_many(store.list())]
    assert [type(data) for data in found] == [bytes, ObjectRefused, bytes]


def test_a_page_is_written_where_nothing_can_be_deleted(proxy: FaultProxy, proxied_url: str) -> None:
    proxy.refuse = lambda method, _: (403, "AccessDenied") if method == "DELETE" else None

    Destination.at(f"{proxied_url}/report.html").write(b"a page", found="nothing")

    assert open_store(proxied_url).read("report.html") == b"a page"


def test_a_store_in_which_nothing_can_be_read_is_no_refused_object(proxy: FaultProxy, proxied_url: str) -> None:
    store = open_store(proxied_url)
    for key in ("a.jpg", "b.jpg"):
        store.write(key, b"1")
        store.read(key)
    proxy.refuse = deny("a.jpg", "b.jpg")

    for key in ("a.jpg", "b.jpg"):
        with pytest.raises(StorageError) as caught:
            store.read(key)
        assert not isinstance(caught.value, ObjectRefused)


def test_an_object_that_fails_at_every_attempt_is_refused_where_another_can_be_read(
    proxy: FaultProxy, proxied_url: str
) -> None:
    store = ObjectStore(proxied_url, *connect(proxied_url), patience=HASTE)
    for key in ("a.jpg", "b.jpg"):
        store.write(key, b"1")
    proxy.refuse = deny("b.jpg", status=500, code="InternalError")

    found = [data for _, data in store.read_many([SourceObject(key, 1, "") for key in ("a.jpg", "b.jpg", "a.jpg")])]
    assert [type(data) for data in found] == [bytes, ObjectRefused, bytes]
    proxy.refuse = deny("a.jpg", "b.jpg", status=500, code="InternalError")
    with pytest.raises(StorageError) as caught:
        store.read("b.jpg")
    assert not isinstance(caught.value, ObjectRefused)


def test_an_outage_that_ends_with_the_last_attempt_is_no_objects_fault(proxy: FaultProxy, proxied_url: str) -> None:
    store = ObjectStore(proxied_url, *connect(proxied_url), patience=HASTE)
    for key in ("a.jpg", "b.jpg"):
        store.write(key, b"1")
        store.read(key)
    proxy.script = [Fault.ERROR] * HASTE.attempts

    assert store.read("a.jpg") == b"1"


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_credentials_that_the_server_does_not_take_are_no_refused_object(
    proxy: FaultProxy, proxied_url: str, code: str
) -> None:
    store = open_store(proxied_url)
    store.write("a.jpg", b"1")
    store.read("a.jpg")
    proxy.refuse = lambda method, path: (403, code) if path.endswith("b.jpg") else None

    with pytest.raises(StorageError) as caught:
        store.read("b.jpg")

    assert not isinstance(caught.value, ObjectRefused)
    assert store.retries == 0


def test_a_target_that_may_not_be_written_is_no_refused_object(proxy: FaultProxy, proxied_url: str) -> None:
    store = open_store(proxied_url)
    store.write("a.jpg", b"1")
    proxy.refuse = lambda method, path: (403, "AccessDenied") if method == "PUT" else None

    for verb in (store.write, store.create):
        with pytest.raises(StorageError, match=r"b\.jpg in s3://\S+: PermissionError: Said by") as caught:
            verb("b.jpg", b"1")
        assert not isinstance(caught.value, ObjectRefused)


@pytest.mark.parametrize(
    ("status", "code"), [(400, "XMinioParentIsObject"), (409, "XMinioObjectExistsAsDirectory"), (400, "InvalidUri")]
)
def test_a_name_that_the_server_cannot_hold_is_refused(
    proxy: FaultProxy, proxied_url: str, status: int, code: str
) -> None:
    proxy.refuse = deny("a.jpg", status=status, code=code)

    for verb in ("write", "create"):
        with pytest.raises(ObjectRefused, match=r"a\.jpg in s3://\S+: it cannot hold an object of this name: "):
            getattr(open_store(proxied_url), verb)("a.jpg", b"1")


# Errors in words


@pytest.mark.parametrize("error", [OSError(errno.EBUSY, "slow\ndown " * 999), RuntimeError("slow\ndown " * 999)])
def test_a_long_answer_becomes_one_short_line(error: Exception) -> None:
    store = unwilling(error)

    for verb in (store.read, store.exists, store.delete, lambda key: store.write(key, b""), lambda _: [*store.list()]):
        with pytest.raises(StorageError) as caught:
            verb("a.jpg")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_a_key_too_long_for_the_server_is_refused() -> None:
    store = unwilling(OSError(errno.ENAMETOOLONG, "KeyTooLongError"))

    with pytest.raises(ObjectRefused, match=r"its name is too long$"):
        store.write("a.jpg", b"")


def test_says_how_often_it_has_tried(caplog: pytest.LogCaptureFixture) -> None:
    store = unwilling(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))

    with pytest.raises(
        StorageError, match=r"^cannot read a\.jpg in s3://photos: connection reset .* \(tried 3 times\)$"
    ):
        store.read("a.jpg")

    assert (store.retries, store.throttled) == (2, 0)
    assert "s3://photos: request number 1 that is made again" in caplog.text


def test_what_will_not_pass_is_asked_once() -> None:
    cloud = Unwilling(PermissionError("Access Denied"))
    store = ObjectStore("s3://photos", cloud, "photos", patience=HASTE)

    with pytest.raises(StorageError):
        store.write("a.jpg", b"")

    assert cloud.asked == 1


def test_an_object_that_is_deleted_again_because_the_answer_was_lost_is_gone() -> None:
    unwilling(FileNotFoundError(errno.ENOENT, "No such file")).delete("a.jpg")


# Create-only


class Forgetful(Cloud):
    """Creates the object, and loses the answer once."""

    def __init__(self, filesystem: object) -> None:
        super().__init__(filesystem)
        self.created: dict[str, tuple[bytes, str]] = {}
        self.is_lost = False

    async def create(self, path: str, data: bytes, writer: str) -> None:
        if path in self.created:
            raise FileExistsError(errno.EEXIST, "it is there")
        self.created[path] = data, writer
        if not self.is_lost:
            self.is_lost = True
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    async def writer(self, path: str) -> str | None:
        return self.created[path][1]


def test_a_create_whose_answer_was_lost_finds_its_own_object() -> None:
    cloud = Forgetful(fsspec.filesystem("memory"))
    store = ObjectStore("s3://photos", cloud, "photos", patience=HASTE)

    store.create("commit", b"1")

    assert store.retries == 1
    with pytest.raises(ObjectExists):  # even with the same bytes
        store.create("commit", b"1")


def test_a_create_that_met_an_object_which_is_gone_by_now_was_not_the_first() -> None:
    class Passing(Cloud):
        async def create(self, path: str, data: bytes, writer: str) -> None:
            raise FileExistsError(errno.EEXIST, "it is there")

        async def writer(self, path: str) -> str | None:
            raise FileNotFoundError(errno.ENOENT, "it is gone")

    with pytest.raises(ObjectExists):
        ObjectStore("s3://photos", Passing(fsspec.filesystem("memory")), "photos", patience=HASTE).create("a", b"1")


@pytest.mark.parametrize("server", ["s3", "seaweed", "gs", "az"])
def test_an_object_knows_its_creator_whatever_its_bytes(server: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{server}_url")
    cloud, root = connect(url)
    store = ObjectStore(url, cloud, root)
    store.create("a", b"1")
    store.write("b", b"1")

    async def writers() -> list[str | None]:
        return [await cloud.writer(f"{root}/{key}") for key in ("a", "b")]

    created, written = fsspec.asyn.sync(cloud.filesystem.loop, writers)

    assert len(created or "") == 32
    assert written is None


# Credentials

SECRET = "s3cr3t-Value/of+the=tests"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Secrets in the environment; what is said meanwhile, to which a test adds errors."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-OF-THE-TESTS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"token-{SECRET}")
    s3fs.S3FileSystem.clear_instance_cache()
    caplog.set_level(logging.DEBUG, "pipeline")
    said: list[str] = []
    yield said
    s3fs.S3FileSystem.clear_instance_cache()
    said += [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert said
    for line in said:
        for secret in (SECRET, "pass-phrase", "AKIA-OF-THE-TESTS"):
            assert secret not in line


def told(error: BaseException) -> list[str]:
    """All that a traceback would show."""
    import traceback

    return ["".join(traceback.format_exception(error)), str(error), repr(error)]


def test_a_server_that_does_not_answer_is_one_line_without_credentials(planted: list[str]) -> None:
    store = ObjectStore("s3://photos", *connect("s3://photos"), patience=HASTE)

    with pytest.raises(StorageError, match=r"^cannot read a\.jpg in s3://photos: EndpointConnectionError: ") as caught:
        store.read("a.jpg")

    assert str(caught.value).isprintable()
    planted += [*told(caught.value), repr(store), repr(vars(store))]


def test_a_password_in_the_servers_address_is_not_told(planted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:pass-phrase@127.0.0.1:9")
    store = ObjectStore("s3://photos", *connect("s3://photos"), patience=HASTE)

    with pytest.raises(StorageError) as caught:
        store.read("a.jpg")

    planted += [*told(caught.value), repr(store), repr(vars(store))]


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://photos.s3.amazonaws.com/a.jpg?X-Amz-Credential=AKIA-OF-THE-TESTS&X-Amz-Signature={SECRET} failed",
        f"the signature of {SECRET} does not match",
        f"AccountName=photos;AccountKey={SECRET};EndpointSuffix=core.windows.net",
        "Authorization: Bearer pass-phrase.of-a-token",
    ],
)
def test_an_error_that_quotes_credentials_is_told_without_them(planted: list[str], text: str) -> None:
    store = unwilling(RuntimeError(text))

    for verb in (store.read, store.exists, lambda key: store.create(key, b""), lambda _: [*store.list()]):
        with pytest.raises(StorageError) as caught:
            verb("a.jpg")
        planted += told(caught.value)


def test_requests_that_are_made_again_are_logged_without_credentials(planted: list[str]) -> None:
    store = unwilling(ConnectionError(f"http://someone:pass-phrase@host/photos?sig={SECRET}"))

    with pytest.raises(StorageError) as caught:
        store.read("a.jpg")

    planted += told(caught.value)


def test_the_root_is_missing_where_nothing_was_written(s3_url: str) -> None:
    with pytest.raises(ObjectMissing):
        open_store(s3_url).size("manifest.json")


def test_pages_have_one_shape(memory_url: str) -> None:
    cloud, root = connect(memory_url)

    async def page() -> Page:
        return await cloud.page(root, None)

    assert fsspec.asyn.sync(cloud.filesystem.loop, page) == ([], None)
