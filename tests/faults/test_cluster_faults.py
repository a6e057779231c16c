"""Shards over the nodes of a real cluster that come, go, and die."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from noting import Guest, WorkerFactory, rejected_of, shard
from photos import saved, scene
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import ClusterConfig as AutoscalerConfig

from model.recipe import TrainConfig
from pipeline import cluster as module
from pipeline.cluster import ClusterConfig, map_shards
from pipeline.connection import connected
from pipeline.errors import RunFailed
from pipeline.records import ShardPlan
from pipeline.train import run_train
from pipeline.train_job import TrainJob

pytestmark = pytest.mark.faults

NODE = {"object_store_memory": 80 * 1024**2, "include_dashboard": False}
SHARDS = 10


@contextmanager
def cluster_of(*nodes: int) -> Iterator[tuple[Cluster, list]]:
    """A cluster with so many cores on each node; its head has none. This process is connected to it."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
    try:
        added = [cluster.add_node(num_cpus=cores, **NODE) for cores in nodes]
        with connected(cluster.address):
            yield cluster, added
    finally:
        cluster.shutdown()


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESIZE_S", 0.5)
    monkeypatch.setattr(module, "LOOK_S", 0.2)


def plans(kind: str = "slow") -> list[ShardPlan]:
    return [shard(f"s{number:02}", f"{kind}-{number:02}") for number in range(SHARDS)]


def seen_by(folder: Path) -> list[tuple[int, str]]:
    """The process and the node of each that has seen a photo."""
    notes = [path.read_text().split() for path in folder.glob("slow-*")]
    return [(int(note[place]), note[place + 1]) for note in notes for place in range(0, len(note) - 1, 2)]


def nodes_of(folder: Path) -> set[str]:
    return {node for _, node in seen_by(folder)}


def drain(cluster: Cluster, node: str) -> None:
    """A notice that a node will be taken away, as a cloud gives it."""
    command = [Path(sys.executable).parent / "ray", "drain-node", "--address", cluster.address, "--node-id", node]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    subprocess.run([*command, *why], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_a_node_that_joins_gets_work_and_what_a_dying_one_had_is_done_by_others(
    tmp_path: Path, survived: Callable[[int], None]
) -> None:
    with cluster_of(1) as (cluster, [first]):
        receipts = map_shards(plans(), WorkerFactory(tmp_path), ClusterConfig(shards_per_worker=1))
        ended = [next(receipts)]
        cluster.add_node(num_cpus=1, **NODE)
        while len(nodes_of(tmp_path)) < 2:
            ended.append(next(receipts))
        cluster.remove_node(first, allow_graceful=False)
        ended += receipts

    assert rejected_of(ended) == {plan.shard: 0 for plan in plans()}
    assert len(ended) == SHARDS
    survived(1)


@pytest.mark.slow
def test_a_node_with_a_notice_finishes_what_it_has_and_gets_nothing_more(
    tmp_path: Path, survived: Callable[[int], None]
) -> None:
    with cluster_of(1, 1) as (cluster, [first, _]):
        receipts = map_shards(plans(), WorkerFactory(tmp_path), ClusterConfig(shards_per_worker=1))
        ended = [next(receipts)]
        while len(nodes_of(tmp_path)) < 2:
            ended.append(next(receipts))
        drain(cluster, first.node_id)
        had = [node for _, node in seen_by(tmp_path)].count(first.node_id)
        ended += receipts

    assert rejected_of(ended) == {plan.shard: 0 for plan in plans()}
    assert [node for _, node in seen_by(tmp_path)].count(first.node_id) <= had + 1  # that was given before it was heard
    assert {len(path.read_text().splitlines()) for path in tmp_path.glob("slow-*")} == {1}
    survived(1)


@pytest.mark.slow
def test_workers_for_which_there_is_no_room_are_not_waited_for(tmp_path: Path) -> None:
    with cluster_of(2):
        guest = ray.remote(num_cpus=1)(Guest).remote()
        ray.get(guest.stay.remote())

        receipts = list(map_shards(plans("quick"), WorkerFactory(tmp_path), ClusterConfig()))

        assert len(receipts) == SHARDS


@pytest.mark.slow
def test_a_cluster_without_any_room_is_said_so(tmp_path: Path) -> None:
    with cluster_of(1):
        guest = ray.remote(num_cpus=1)(Guest).remote()
        ray.get(guest.stay.remote())

        with pytest.raises(
            RunFailed, match=r"^nothing moved for 3 s; the cluster has had no room for any of 1 workers$"
        ):
            list(map_shards(plans(), WorkerFactory(tmp_path), ClusterConfig(stall_s=3.0)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_worker_trains_with_the_cores_of_one_node(tmp_path: Path) -> None:
    """It would wait for ever for those of both."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(saved(scene(sigma=0), "PNG"))
    config = TrainConfig(steps=2, batch_size=1, patch_px=32)
    steps: list[int] = []

    with cluster_of(1, 1) as (cluster, _):
        address = cluster.address
        ray.shutdown()
        job = TrainJob(source=str(photos), run=str(tmp_path / "run"), address=address, config=config)
        run_train(job, lambda metrics: steps.append(metrics.step))

    assert steps == [1, 2]


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from noting import Guest, WorkerFactory, shard
from pipeline.cluster import ClusterConfig, map_shards
from pipeline.connection import connected
config = ClusterConfig(address={address!r})
with connected(config.address):
    list(map_shards([shard("s0", "endless")], WorkerFactory(Path({folder!r})), config))
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_worker_at_work(tmp_path: Path, survived: Callable[[int], None]) -> None:
    with cluster_of(1) as (cluster, _):
        code = DRIVER.format(tests=str(Path(__file__).parents[1]), address=cluster.address, folder=str(tmp_path))
        driver = subprocess.Popen([sys.executable, "-c", code])
        wait_for((tmp_path / "endless").exists, driver)
        worker = int((tmp_path / "endless").read_text().split()[0])

        driver.send_signal(signal.SIGKILL)
        driver.wait()

        wait_for(lambda: not Path(f"/proc/{worker}").exists())
    survived(1)


def wait_for(is_so: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
def test_what_an_autoscaler_may_bring_is_asked_for_as_long_as_there_is_work(tmp_path: Path) -> None:
    with cluster_of() as (cluster, _):
        groups = AutoscalerConfig()
        groups.node_group_configs.add(name="cpu", max_count=3, resources={"CPU": 1})
        ray._raylet.GcsClient(address=cluster.address).report_cluster_config(groups.SerializeToString())
        cluster.add_node(num_cpus=1, **NODE)
        receipts = map_shards(plans(), WorkerFactory(tmp_path), ClusterConfig(shards_per_worker=1))
        ended = [next(receipts), next(receipts)]

        waiting = [actor for actor in ray._private.state.actors().values() if actor["State"] == "PENDING_CREATION"]
        cluster.add_node(num_cpus=1, **NODE)
        ended += receipts

    assert len(waiting) == 1  # as many again as have started: it is what the autoscaler sees
    assert len(ended) == SHARDS
    assert len(nodes_of(tmp_path)) == 2


@pytest.mark.slow  # and Ray may end this whole process first, which is the race that we run against it
@pytest.mark.parametrize("process", ["gcs_server", "raylet"])
def test_a_ray_of_its_own_that_dies_ends_a_run_soon_and_in_one_line(
    tmp_path: Path, process: str, survived: Callable[[int], None]
) -> None:
    with connected(None):
        receipts = map_shards(plans(), WorkerFactory(tmp_path), ClusterConfig(workers=1))
        next(receipts)
        [dying] = ray._private.worker._global_node.all_processes[process]
        dying.process.kill()
        killed_s = time.monotonic()

        with pytest.raises(RunFailed, match=rf"^Ray has died on this machine \({process}\)"):
            list(receipts)

        assert time.monotonic() - killed_s < 20
    survived(1)
