"""Stores: one contract that every store keeps."""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import ObjectExists, ObjectMissing, ObjectRefused, StorageError
from pipeline.local_store import LocalStore
from pipeline.records import SourceObject
from pipeline.storage import (
    CHANGED,
    PART_BYTES,
    QUEUED,
    TEMPORARY,
    Destination,
    Store,
    open_store,
    read_ahead,
    split_url,
    unsafe_reason,
)

UNSAFE_KEYS = [
    "",
    "/etc/passwd",
    "../out.jpg",
    "a/../../out.jpg",
    "./a.jpg",
    "a//b.jpg",
    "a/",
    "a\\b.jpg",
    "a\x00.jpg",
    "a\nb.jpg",
    "a\u2028b.jpg",
    "\udcff.jpg",
    f"{TEMPORARY}/a",
    "x" * 256,
    "é" * 128,
    "a.jpg?versionId=1",
    "a.jpg?versionid=1",
]
ODD_KEYS = [
    *("ünï/çödé 写真.jpg", "with space/and 'quotes' \".jpg", "100%/a+b#c?.jpg", "[a]*{b}.jpg", "👩‍👩‍👧.png", "-r"),
    *("who? #1.jpg", "a@b/c:d", "what?", "what#"),
]


LARGE_BODIES = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of their own libraries


@pytest.fixture(
    params=[
        "local",
        "memory",
        pytest.param("s3", marks=pytest.mark.slow),
        "seaweed",
        pytest.param("faulty", marks=[pytest.mark.faults, pytest.mark.slow]),
        pytest.param("gs", marks=LARGE_BODIES),
        pytest.param("az", marks=LARGE_BODIES),
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each store in turn, empty."""
    if request.param == "local":
        (tmp_path / "root").mkdir()
        return open_store(str(tmp_path / "root"))
    return open_store(request.getfixturevalue(f"{request.param}_url"))


def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(found.key for found in store.list(prefix))


def etag(store: Store, key: str) -> str:
    return next(found.etag for found in store.list() if found.key == key)


# The contract


@pytest.mark.parametrize("data", [b"", b"\x00\xff", bytes(range(256)) * 4096], ids=["empty", "small", "megabyte"])
def test_reads_back_what_was_written(store: Store, data: bytes) -> None:
    store.write("a.jpg", data)

    assert store.read("a.jpg") == data


@pytest.mark.parametrize("key", ["a", "2019/07/14/IMG_0042.JPG", *ODD_KEYS])
def test_keeps_an_object_under_any_safe_key(store: Store, key: str) -> None:
    store.write(key, key.encode())

    assert store.read(key) == key.encode()
    assert store.exists(key)
    assert keys(store) == [key]


def test_reads_many_in_the_order_asked(store: Store) -> None:
    for number in range(20):
        store.write(f"{number}.jpg", b"%d" % number * number)
    wanted = [SourceObject(f"{number}.jpg", number, "") for number in range(19, -1, -1)]

    found = list(store.read_many(wanted, ahead_bytes=50, at_once=4))

    assert [(one.key, data) for one, data in found] == [(f"{n}.jpg", b"%d" % n * n) for n in range(19, -1, -1)]


def test_what_refuses_one_object_stands_in_its_place(store: Store) -> None:
    store.write("a.jpg", b"1")
    wanted = [SourceObject(key, 1, "") for key in ("no.jpg", "a.jpg", "../out.jpg", "a.jpg")]

    missing, first, unsafe, again = (found for _, found in store.read_many(wanted))

    assert (first, again) == (b"1", b"1")
    assert isinstance(missing, ObjectMissing)
    assert isinstance(unsafe, ObjectRefused)


def test_reading_many_may_be_given_up(store: Store) -> None:
    for number in range(8):
        store.write(f"{number}", b"1")
    before = {thread.name for thread in threading.enumerate()}

    reading = store.read_many(store.list(), at_once=2)
    next(reading)
    reading.close()

    assert [
        name for name in {thread.name for thread in threading.enumerate()} - before if name.startswith("read")
    ] == []
    assert store.read("7") == b"1"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 10, b"0123456789"), (0, 1, b"0"), (7, 2, b"78"), (7, 99, b"789"), (10, 1, b""), (99, 9, b""), (3, 0, b"")],
)
def test_reads_a_range_as_far_as_the_object_goes(store: Store, start: int, length: int, expected: bytes) -> None:
    store.write("a.parquet", b"0123456789")

    assert store.read_range("a.parquet", start, length) == expected


def test_a_range_of_an_empty_object_is_empty(store: Store) -> None:
    store.write("a.parquet", b"")

    assert store.read_range("a.parquet", 0, 8) == b""


@pytest.mark.parametrize("length", [0, 1])
def test_a_range_and_the_size_of_what_is_not_there_are_missing(store: Store, length: int) -> None:
    for ask in (lambda: store.read_range("no.parquet", 0, length), lambda: store.size("no.parquet")):
        with pytest.raises(ObjectMissing, match=r"no\.parquet in "):
            ask()


def test_says_how_large_an_object_is(store: Store) -> None:
    store.write("a.parquet", bytes(12_345))

    assert store.size("a.parquet") == 12_345


@pytest.mark.parametrize("size_bytes", [0, 1000, PART_BYTES + 1])
def test_a_file_becomes_an_object_and_an_object_a_file(store: Store, tmp_path: Path, size_bytes: int) -> None:
    if store.url.startswith("gs://") and size_bytes > PART_BYTES:
        pytest.skip("the stand-in for Google's storage knows no uploads in parts")
    data = bytes(range(256)) * (size_bytes // 256 + 1)
    (tmp_path / "large").write_bytes(data[:size_bytes])

    store.write_file("2019/large.tif", tmp_path / "large")

    with store.opened("2019/large.tif") as file:
        assert file.read() == data[:size_bytes]
    assert store.size("2019/large.tif") == size_bytes


def test_what_is_not_there_is_not_opened(store: Store) -> None:
    with pytest.raises(ObjectMissing), store.opened("none"):
        pass


@pytest.mark.parametrize("change", [b"longer than before", b"other"], ids=["longer", "as long"])
def test_an_object_that_changes_while_it_is_opened_is_refused(
    store: Store, change: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a.tif", b"first")
    read_range = type(store).read_range

    def reading(*arguments: Any) -> bytes:  # Any: a store, and what it is asked for
        part = read_range(*arguments)
        store.write("a.tif", change)
        return part

    def change_file() -> None:
        if isinstance(store, LocalStore):  # which opens the object itself
            (store.root / "a.tif").write_bytes(change)
            os.utime(store.root / "a.tif", (1, 1))  # the clock of a file system has steps of its own

    monkeypatch.setattr(type(store), "read_range", reading)
    with pytest.raises(ObjectRefused, match=CHANGED), store.opened("a.tif"):
        change_file()


def test_a_second_write_replaces_the_whole_object(store: Store) -> None:
    store.write("a.jpg", b"a long first version")
    store.write("a.jpg", b"second")

    assert store.read("a.jpg") == b"second"
    assert [found.size_bytes for found in store.list()] == [len(b"second")]


def test_create_refuses_the_second_and_keeps_the_first(store: Store) -> None:
    store.create("commits/a", b"first")

    with pytest.raises(ObjectExists, match=r"^commits/a is already in "):
        store.create("commits/a", b"second")

    assert store.read("commits/a") == b"first"


@pytest.mark.parametrize(
    "store", ["local", "s3", "seaweed"], indirect=True
)  # memory belongs to one process: it only looks first
def test_of_eight_racing_creators_one_wins(store: Store) -> None:
    barrier = Barrier(8)

    def create(number: int) -> int | None:
        barrier.wait()
        try:
            store.create("commit", b"%d" % number)
        except ObjectExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]

    assert [b"%d" % number for number in winners] == [store.read("commit")]


def test_a_destination_is_tried_and_left_as_it_was(store: Store) -> None:
    store.write("old.html", b"1")

    old, new = (Destination.at(f"{store.url}/{name}.html") for name in ("old", "new"))

    assert (keys(store), store.read("old.html")) == (["old.html"], b"1")
    for destination in (old, new):
        destination.write(b"2", found="nothing")
    assert (keys(store), store.read("old.html")) == (["new.html", "old.html"], b"2")


def test_an_object_that_is_not_there_is_missing(store: Store) -> None:
    store.write("there", b"")

    with pytest.raises(ObjectMissing, match=r"^cannot read 2019/no\.jpg in "):
        store.read("2019/no.jpg")
    assert not store.exists("2019/no.jpg")


def test_lists_every_object_with_its_size(store: Store) -> None:
    sizes = {f"{folder}/{number}.jpg": number for folder in ("a", "a/b", "c/d/e") for number in range(3)}
    for key, size_bytes in sizes.items():
        store.write(key, bytes(size_bytes))

    listed = list(store.list())

    assert sorted((found.key, found.size_bytes) for found in listed) == sorted(sizes.items())


def test_lists_a_folder_without_the_sibling_whose_name_begins_like_it(store: Store) -> None:
    for key in ("index/part-0", "index/old/part-1", "index2/part-0", "index.json", "other/index/part-0"):
        store.write(key, b"1")

    assert keys(store, "index") == ["index/old/part-1", "index/part-0"]
    assert keys(store, "other/index") == ["other/index/part-0"]


def test_lists_nothing_where_nothing_is(store: Store) -> None:
    assert keys(store) == []
    assert keys(store, "index") == []


def test_the_etag_changes_with_the_content_and_not_without(store: Store) -> None:
    store.write("a.jpg", b"first")
    first = etag(store, "a.jpg")
    store.write("b.jpg", b"another object")

    assert etag(store, "a.jpg") == first
    store.write("a.jpg", b"second version")
    assert etag(store, "a.jpg") != first


def test_a_deleted_object_is_gone_and_may_be_deleted_again(store: Store) -> None:
    store.write("a/b.jpg", b"1")

    for key in ("a/b.jpg/below", "never/there", "a/b.jpg", "a/b.jpg"):
        store.delete(key)

    assert keys(store) == []


def test_a_folder_is_no_object(store: Store) -> None:
    store.write("2019/a.jpg", b"1")

    assert not store.exists("2019")
    for verb in (store.read, store.size):
        with pytest.raises(ObjectRefused):
            verb("2019")


@pytest.mark.parametrize("key", UNSAFE_KEYS, ids=ascii)
def test_refuses_an_unsafe_key_in_every_verb(store: Store, key: str) -> None:
    verbs = [
        store.read,
        store.size,
        store.exists,
        lambda key: store.read_range(key, 0, 1),
        store.delete,
        lambda key: store.write(key, b""),
        lambda key: store.create(key, b""),
    ]

    for verb in verbs:
        with pytest.raises(ObjectRefused, match="is not used as a name: "):
            verb(key)
    assert keys(store) == []


def test_cleaning_and_closing_keep_every_object(store: Store) -> None:
    store.write("a.jpg", b"1")

    store.clean()
    store.close()

    assert keys(store) == ["a.jpg"]


# Reading ahead

Sizes = st.lists(st.integers(0, 40), max_size=30)


def listing(sizes: list[int]) -> list[SourceObject]:
    return [SourceObject(str(number), size_bytes, "") for number, size_bytes in enumerate(sizes)]


@given(Sizes, st.integers(0, 100), st.integers(1, 4))
def test_no_more_is_read_ahead_than_there_is_room_for(sizes: list[int], ahead_bytes: int, at_once: int) -> None:
    waiting: list[int] = []

    class Waiting(Future[bytes]):
        """Read, and waiting to be taken."""

        def result(self, timeout: float | None = None) -> bytes:
            waiting.pop(0)
            return super().result(timeout)

    def begin(key: str) -> Future[bytes]:
        waiting.append(sizes[int(key)])
        assert len(waiting) == 1 or sum(waiting) <= ahead_bytes
        assert len(waiting) <= QUEUED * at_once
        future = Waiting()
        future.set_result(key.encode())
        return future

    found = list(read_ahead(begin, listing(sizes), ahead_bytes=ahead_bytes, at_once=at_once))

    assert [(one.key, data) for one, data in found] == [(str(n), b"%d" % n) for n in range(len(sizes))]


def test_the_next_is_read_while_one_is_looked_at() -> None:
    begun: list[str] = []

    def begin(key: str) -> Future[bytes]:
        begun.append(key)
        future: Future[bytes] = Future()
        future.set_result(b"")
        return future

    reading = read_ahead(begin, listing([100, 100, 100]), ahead_bytes=1, at_once=1)
    next(reading)

    assert begun == ["0", "1"]


def test_giving_up_cancels_what_is_read() -> None:
    futures: list[Future[bytes]] = []

    def begin(key: str) -> Future[bytes]:
        futures.append(Future())
        if key == "0":
            futures[-1].set_result(b"")
        return futures[-1]

    reading = read_ahead(begin, listing([1, 1, 1]), ahead_bytes=9, at_once=9)
    next(reading)
    reading.close()

    assert [future.cancelled() for future in futures] == [False, True, True]


def test_a_store_that_fails_ends_the_reading() -> None:
    futures: list[Future[bytes]] = []

    def begin(key: str) -> Future[bytes]:
        futures.append(Future())
        if key == "0":
            futures[-1].set_exception(StorageError("the store is down"))
        return futures[-1]

    with pytest.raises(StorageError, match="the store is down"):
        next(read_ahead(begin, listing([1, 1, 1]), ahead_bytes=9, at_once=9))
    assert [future.cancelled() for future in futures] == [False, True, True]


# Names


@given(st.text(st.characters(), max_size=40) | st.from_regex(r"[./a~\\-]{1,12}", fullmatch=True))
@example("a/..")
@example("..")
def test_a_safe_key_stays_below_the_root(key: str) -> None:
    if unsafe_reason(key) is None:
        joined = os.path.normpath(os.path.join("/bucket/target", key))  # noqa: PTH118

        assert joined == f"/bucket/target/{key}"


@pytest.mark.parametrize("key", UNSAFE_KEYS, ids=ascii)
def test_says_in_one_line_why_a_key_is_unsafe(key: str) -> None:
    reason = unsafe_reason(key)

    assert reason is not None
    assert reason.isprintable()


def test_a_name_that_is_no_text_is_not_said_to_hold_control_characters() -> None:
    assert unsafe_reason("caf\udce9.html") == "the name holds bytes that are no text"
    assert unsafe_reason("a\nb.html") == "the name holds control characters"


@pytest.mark.parametrize(
    ("url", "root", "name"),
    [
        ("s3://photos/2019/a.jpg", "s3://photos/2019", "a.jpg"),
        ("/photos/a.jpg", "/photos", "a.jpg"),
        ("a.jpg", ".", "a.jpg"),
    ],
)
def test_splits_where_one_photo_lies(url: str, root: str, name: str) -> None:
    assert split_url(url) == (root, name)


def test_opens_a_file_url_as_a_folder(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}").url == open_store(str(tmp_path)).url == str(tmp_path)


def test_an_unknown_scheme_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match=r"^cannot open gopher://photos: .*gopher"):
        open_store("gopher://photos")


@pytest.mark.parametrize("password", ["a-secret", "a/secret", "a:secret"])
def test_a_url_with_a_password_is_refused_without_telling_it(password: str) -> None:
    with pytest.raises(ValueError, match=r"^sftp://…@host/photos holds a password") as caught:
        open_store(f"sftp://user:{password}@host/photos")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3:///photos", "s3a:////photos/2019", "gs:///a\nb", "s3:///photos?X-Amz-Signature=1"])
def test_a_url_without_a_bucket_is_refused_without_telling_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match=r"names no bucket: expected \w+://bucket/folder|holds credentials") as caught:
        open_store(url)

    assert "Signature=1" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://photos/who?/2019", "gs://photos/who?x"])
def test_a_name_with_a_question_mark_is_not_taken_for_credentials(url: str) -> None:
    with pytest.raises(ValueError, match=r"^\w+://photos/who\?… holds a '\?', which begins parameters in a URL: "):
        open_store(url)


def test_a_url_that_would_lead_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^s3://photos/a::b holds a .::., which joins two URLs: "):
        open_store("s3://photos/a::b")


def test_a_url_may_hold_a_user_and_a_name_that_looks_like_a_password() -> None:
    for url in ("memory://user@host/a:b@c", "memory://host:9000/a@b"):
        assert open_store(url).url == url
