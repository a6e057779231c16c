"""Shards over real Ray actors: bounded, retried, and searched for the photo that kills its worker."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from noting import NotingWorker, WorkerFactory, rejected_of, shard
from ray.exceptions import OutOfMemoryError

from pipeline import cluster
from pipeline.cases import POISON_REASON, TOO_SLOW_REASON
from pipeline.cluster import STALL_S, ClusterConfig, map_shards
from pipeline.connection import connected
from pipeline.errors import RunFailed, StorageError
from pipeline.records import ShardPlan
from pipeline.room import KEEPING_FREED_MEMORY


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connected(None):
        yield


@pytest.fixture
def folder(ray_here: None, tmp_path: Path) -> Path:
    return tmp_path


def test_every_shard_ends_once_whatever_the_number_of_workers(folder: Path) -> None:
    plans = [shard(f"s{number}", f"a{number}", f"b{number}") for number in range(9)]

    receipts = list(map_shards(plans, WorkerFactory(folder), ClusterConfig(workers=2)))

    assert sorted(found.shard for found in receipts) == [f"s{number}" for number in range(9)]
    assert sum(found.photos for found in receipts) == 18


def test_few_shards_are_shared_and_do_not_all_fall_to_the_worker_that_is_up_first(folder: Path) -> None:
    plans = [shard("s0", "slow0"), shard("s1", "slow1")]

    list(map_shards(plans, WorkerFactory(folder), ClusterConfig(workers=2)))

    processes = {(folder / key).read_text().split()[0] for key in ("slow0", "slow1")}
    assert len(processes) == 2


def test_there_are_no_more_workers_than_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(cluster, "_Worker", lambda actor, make=cluster._Worker: made.append(actor) or make(actor))

    receipts = list(map_shards([shard("s0", "a"), shard("s1", "b")], WorkerFactory(folder), ClusterConfig(workers=5)))

    assert len(receipts) == len(made) == 2
    assert list(map_shards([], WorkerFactory(folder), ClusterConfig(workers=5))) == []
    assert len(made) == 2


def test_plans_are_read_only_as_fast_as_they_are_worked_on(folder: Path) -> None:
    read = []

    def plans() -> Iterator[ShardPlan]:
        for number in range(20):
            read.append(number)
            yield shard(f"s{number}", f"a{number}")

    receipts = map_shards(plans(), WorkerFactory(folder), ClusterConfig(workers=1, shards_per_worker=2))
    next(receipts)

    assert len(read) <= 4
    receipts.close()


def test_a_worker_that_dies_once_costs_a_retry_and_nothing_else(folder: Path) -> None:
    plans = [shard("s0", "a", "once", "b"), shard("s1", "c")]

    receipts = list(map_shards(plans, WorkerFactory(folder), ClusterConfig(workers=1)))

    assert rejected_of(receipts) == {"s0": 0, "s1": 0}


def test_the_photo_that_kills_its_worker_each_time_is_found_and_the_rest_of_its_shard_is_done(folder: Path) -> None:
    plans = [shard("s0", "a", "poison", "b"), *(shard(f"s{number}", f"k{number}") for number in range(1, 6))]

    receipts = list(map_shards(plans, WorkerFactory(folder), ClusterConfig(workers=2)))

    assert rejected_of(receipts) == {"s0": 1, **{f"s{n}": 0 for n in range(1, 6)}}
    assert (folder / "done-s0").read_text() == f"poison: {POISON_REASON}"
    assert (folder / "done-s1").read_text() == ""


def test_two_poisonous_photos_in_one_shard_are_both_found(folder: Path) -> None:
    plans = [shard("s0", "poison1", "a", "poison2")]

    receipts = list(map_shards(plans, WorkerFactory(folder), ClusterConfig(workers=1)))

    assert rejected_of(receipts) == {"s0": 2}


def test_a_worker_that_ray_kills_for_its_memory_is_a_death_like_any_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_get, deaths = ray.get, [OutOfMemoryError("the memory monitor killed the worker")]

    def get(call: object) -> object:
        if deaths:
            raise deaths.pop()
        return real_get(call)

    monkeypatch.setattr(ray, "get", get)
    receipts = list(map_shards([shard("s0", "a"), shard("s1", "b")], WorkerFactory(folder), ClusterConfig(workers=1)))

    assert sorted(found.shard for found in receipts) == ["s0", "s1"]


def test_a_fault_in_a_worker_is_one_clear_line(folder: Path) -> None:
    def faulty(threads: int) -> NotingWorker:
        raise ValueError("expected 3 channels\nand got 5")

    with pytest.raises(RunFailed, match=r"^a worker failed: ValueError: expected 3 channels and got 5$"):
        list(map_shards([shard("s0", "a")], faulty, ClusterConfig(workers=1)))


def test_what_a_worker_raises_reaches_the_caller_as_it_was(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"^cannot write: no space left on device$"):
        list(map_shards([shard("s0", "full-disk")], WorkerFactory(folder), ClusterConfig(workers=1)))


def test_a_worker_that_cannot_be_made_is_an_error_and_not_a_death(folder: Path) -> None:
    def broken(threads: int) -> NotingWorker:
        raise RuntimeError("no such weights")

    with pytest.raises(RunFailed, match="no such weights"):
        list(map_shards([shard("s0", "a")], broken, ClusterConfig(workers=1)))


def test_workers_keep_the_memory_that_they_free(folder: Path) -> None:
    def asking(threads: int) -> NotingWorker:
        raise StorageError(" ".join(f"{name}={os.environ.get(name)}" for name in KEEPING_FREED_MEMORY))

    with pytest.raises(StorageError) as told:
        list(map_shards([shard("s0", "a")], asking, ClusterConfig(workers=1)))
    assert str(told.value).split() == [f"{name}={value}" for name, value in KEEPING_FREED_MEMORY.items()]


def test_a_shard_that_never_ends_is_named(folder: Path) -> None:
    config = ClusterConfig(workers=1, stall_s=3.0)

    with pytest.raises(RunFailed, match=r"^nothing moved for 3 s; in flight: s0, at endless \(denoise, \d s\)$"):
        list(map_shards([shard("s0", "endless")], WorkerFactory(folder), config))


def test_a_photo_that_takes_too_long_is_rejected_and_the_rest_of_its_shard_is_done(folder: Path) -> None:
    config = ClusterConfig(workers=1, photo_timeout_s=2.0)
    plans = [shard("s0", "a", "endless", "b"), shard("s1", "c")]

    receipts = list(map_shards(plans, WorkerFactory(folder), config))

    assert rejected_of(receipts) == {"s0": 1, "s1": 0}
    assert (folder / "done-s0").read_text() == f"endless: {TOO_SLOW_REASON.format(2.0)}"


def test_photos_with_little_time_leave_workers_time_to_start() -> None:
    assert ClusterConfig(photo_timeout_s=2.0).longest_stall_s == STALL_S
    assert ClusterConfig().longest_stall_s == 7200


def test_how_many_photos_of_shards_in_work_are_finished_is_told_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOOK_S", 0.1)
    told: list[int] = []

    list(
        map_shards(
            [shard("s0", "a", "b", "slow")], WorkerFactory(folder), ClusterConfig(workers=1), on_look=told.append
        )
    )

    assert 2 in told


def test_workers_whose_driver_does_not_look_any_more_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.cloudpickle.register_pickle_by_value(cluster)
    monkeypatch.setattr(cluster, "ORPHANED_S", 0.5)
    receipts = map_shards([shard("s0", "a"), shard("s1", "endless")], WorkerFactory(folder), ClusterConfig(workers=1))
    next(receipts)
    worker = int((folder / "a").read_text().split()[0])

    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    receipts.close()
    ray.cloudpickle.unregister_pickle_by_value(cluster)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_clear_line_at_once(address: str) -> None:
    with (
        pytest.raises(RunFailed, match=rf"^no Ray cluster at {address}: connection refused$"),
        connected(address),
    ):
        pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "127.0.0.1", "head:", "local", ""])
def test_what_is_no_address_of_a_head_is_a_wrong_call(address: str) -> None:
    with pytest.raises(ValueError, match=rf"^{address} is no .* expected HOST:PORT of its head"), connected(address):
        pass


def test_an_address_of_ipv6_is_looked_for_as_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        joined: list[str] = []
        monkeypatch.setattr(ray, "init", lambda *, address, **_: joined.append(address))

        with connected(f"[::1]:{server.getsockname()[1]}"):
            pass

    assert len(joined) == 1


@pytest.mark.parametrize(("scheme", "has_it"), [("", True), ("ray://", False)])
def test_a_client_of_a_cluster_is_given_nothing_that_it_cannot_send(
    scheme: str, has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []
    monkeypatch.setattr(ray, "init", lambda **options: given.append(options))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        connected(f"{scheme}127.0.0.1:{server.getsockname()[1]}"),
    ):
        pass

    assert ["job_config" in options for options in given] == [has_it]


def test_a_cluster_that_does_not_know_our_token_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*, address: str, **_: object) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}")

    monkeypatch.setattr(ray, "init", init)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(RunFailed, match=r"RAY_AUTH_TOKEN its token\?"),
        connected(f"127.0.0.1:{server.getsockname()[1]}"),
    ):
        pass


@pytest.mark.parametrize("field", ["workers", "shards_per_worker", "photo_timeout_s"])
def test_an_impossible_number_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 0"):
        ClusterConfig(**{field: 0})
