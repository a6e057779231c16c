"""Storage through a proxy that fails a third of all requests: nothing is lost, and nothing is there twice.

The contract that every store keeps is also run through it: `pytest -m faults`.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import s3fs
from faults.proxy import Fault, FaultProxy

from pipeline import clouds, object_store
from pipeline.clouds import connect
from pipeline.errors import ObjectExists, ObjectRefused, StorageError
from pipeline.object_store import ObjectStore
from pipeline.retries import Patience
from pipeline.storage import open_store

pytestmark = pytest.mark.faults

HASTE = Patience(attempts=4, first_wait_s=0.02, longest_wait_s=0.1)


def test_many_objects_come_whole_and_in_order(faulty_url: str, proxy: FaultProxy) -> None:
    store = open_store(faulty_url)
    written = {f"{number:03}.jpg": os.urandom(500 * number) for number in range(60)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store.write, written, written.values()))

    read = {one.key: data for one, data in store.read_many(store.list())}

    assert read == written
    assert list(read) == sorted(written)
    assert {Fault.SLOW_DOWN, Fault.CUT, Fault.LOST_REQUEST, Fault.LOST_ANSWER} <= set(proxy.counts)
    assert store.retries > store.throttled > 0


def test_a_listing_has_every_object_once(faulty_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "PAGE", 2)
    store = open_store(faulty_url)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store.write, [f"{number:02}" for number in range(30)], [b"1"] * 30))

    assert [found.key for found in store.list()] == [f"{number:02}" for number in range(30)]
    assert proxy.counts[Fault.CUT] > 0


@pytest.mark.parametrize("is_warm", [False, True])  # a client may quietly send again what went over an old connection
def test_a_create_whose_answer_is_lost_has_created(is_warm: bool, proxied_url: str, proxy: FaultProxy) -> None:
    store = open_store(proxied_url)
    if is_warm:
        store.exists("commit")
    proxy.script = [Fault.LOST_ANSWER]

    store.create("commit", b"ours")

    assert proxy.script == []
    assert store.read("commit") == b"ours"


@pytest.mark.parametrize("fault", [Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.SLOW_DOWN])
def test_a_create_that_is_made_again_does_not_take_a_rivals_object_for_its_own(
    fault: Fault, proxied_url: str, proxy: FaultProxy
) -> None:
    store = open_store(proxied_url)
    store.create("commit", b"the same bytes")
    proxy.script = [fault]

    with pytest.raises(ObjectExists):
        store.create("commit", b"the same bytes")


def test_of_eight_racing_creators_one_wins_and_each_knows(faulty_url: str) -> None:
    stores, barrier = [open_store(faulty_url) for _ in range(8)], Barrier(8)

    def create(number: int, key: str) -> int | None:
        barrier.wait()
        try:
            stores[number].create(key, b"%d" % number)
        except ObjectExists:
            return None
        return number

    for key in ("first", "second", "third"):
        with ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(lambda n: create(n, key), range(8)) if number is not None]  # noqa: B023
        assert [b"%d" % number for number in winners] == [stores[0].read(key)]


def test_a_body_that_is_cut_is_read_again(proxied_url: str, proxy: FaultProxy) -> None:
    store = open_store(proxied_url)
    data = os.urandom(2_000_000)
    store.write("a.jpg", data)
    proxy.script = [Fault.CUT, Fault.CUT, None, Fault.CUT]

    assert store.read("a.jpg") == data
    assert store.read_range("a.jpg", 1_000, 1_000_000) == data[1_000:1_001_000]
    assert store.retries == 3


def test_a_server_that_goes_away_for_two_seconds_is_waited_for(proxied_url: str, proxy: FaultProxy) -> None:
    store = open_store(proxied_url)
    written = {f"{number:02}": os.urandom(1000) for number in range(40)}
    for key, data in written.items():
        store.write(key, data)
    reading = store.read_many(store.list(), at_once=2)
    read = dict([next(reading)])

    proxy.stop()
    back = threading.Timer(2, proxy.start)
    back.start()
    read |= dict(reading)
    back.join()

    assert {one.key: data for one, data in read.items()} == written
    assert store.retries > 0


def test_a_server_that_stays_away_is_one_clear_line(proxied_url: str, proxy: FaultProxy) -> None:
    store = ObjectStore(proxied_url, *connect(proxied_url), patience=HASTE)
    store.write("a.jpg", b"1")
    proxy.stop()
    verbs = [
        store.read,
        store.exists,
        lambda key: store.write(key, b"2"),
        lambda key: store.create(key, b"2"),
        lambda _: list(store.list()),
        lambda _: list(store.read_many(iter([]))) or store.size("a.jpg"),
    ]

    start = time.monotonic()
    for verb in verbs:
        with pytest.raises(StorageError, match=r": EndpointConnectionError: .* \(tried 4 times\)$") as caught:
            verb("a.jpg")
        assert not isinstance(caught.value, ObjectRefused)
        assert str(caught.value).isprintable()
    assert time.monotonic() - start < 20


def test_patience_outlasts_the_restart_of_a_server_and_ends_within_minutes() -> None:
    patience = Patience()

    waits_s = [min(patience.first_wait_s * 2**n, patience.longest_wait_s) for n in range(patience.attempts - 1)]
    refused_s = min(sum(waits_s) / 2, patience.total_s)  # at least: half of each wait is by chance
    silent_s = max(patience.total_s + clouds.READ_TIMEOUT_S, 3 * clouds.READ_TIMEOUT_S) + 2 * patience.longest_wait_s

    assert 30 < refused_s < 60
    assert silent_s < 120


@pytest.fixture
def silent_url(proxied_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on a server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(clouds, "READ_TIMEOUT_S", 0.3)
        monkeypatch.setattr(object_store, "SLOWEST_BYTES_PER_S", 40_000_000)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxied_url


@pytest.mark.parametrize("size_bytes", [10, 20_000_000])  # what the network takes, and what it does not
def test_a_server_that_takes_requests_and_never_answers_is_no_hang(size_bytes: int, silent_url: str) -> None:
    store = ObjectStore(silent_url, *connect(silent_url), patience=Patience(attempts=2))

    for verb in (store.read, lambda key: store.write(key, bytes(size_bytes))):
        with pytest.raises(StorageError, match=r"(ReadTimeoutError: |has stopped listening).* \(tried 2 times\)$"):
            verb("a.jpg")
