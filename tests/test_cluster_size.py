"""How many workers a run takes, and of what size: by what is there, and by what an autoscaler may bring."""

import pytest

from pipeline.cluster_size import Cluster, Node

GPU, CORES, HEAD = Node(8, 1, 32e9), Node(16, 0, 64e9), Node(0, 0, 8e9)


def cluster_like(staying: list[Node], limit: list[Node] | None = None) -> Cluster:
    return Cluster(nodes=frozenset(), leaving=frozenset(), staying=tuple(staying), limit=tuple(limit or staying))


@pytest.mark.parametrize(
    ("cluster", "room", "largest_room", "gpus", "threads"),
    [
        (cluster_like([HEAD, CORES]), 16, 16, 0, 1),
        (cluster_like([HEAD, GPU, GPU]), 2, 2, 1, 8),
        (cluster_like([HEAD, GPU, CORES]), 1, 1, 1, 8),  # 16 threads would find no room beside the GPU
        (cluster_like([HEAD], [CORES] * 4), 1, 64, 0, 1),
        (cluster_like([HEAD], [GPU] * 8), 1, 8, 1, 8),
        (cluster_like([HEAD, CORES], [CORES] * 4 + [GPU] * 8), 1, 8, 1, 8),  # GPUs may come, and are worth waiting for
    ],
)
def test_a_worker_is_of_the_size_of_what_is_there_or_may_come(
    cluster: Cluster, room: int, largest_room: int, gpus: int, threads: int
) -> None:
    size = cluster.size_for(None)

    assert (cluster.room, cluster.largest_room) == (room, largest_room)
    assert (size.gpus, size.threads, size.cores) == (gpus, threads, threads)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "cores"),
    [
        ([GPU] * 8, 8, 1, 8),
        ([CORES] * 2, 1, 0, 16),  # what a single host has, and not all of them together
        ([Node(3, 0, 8e9)] * 2, 3, 0, 1),  # of two cores, each host would hold one
        ([Node(8, 4, 8e9), Node(64, 0, 8e9)], 3, 1, 2),
        ([Node(1, 0, 8e9)] * 2, 3, 0, 0.5),
        ([Node(8, 4, 8e9)], 8, 0.5, 1),  # without a share of one, all of them would take the first
        ([Node(8, 2, 8e9), CORES], 5, 1 / 3, 1),
        ([HEAD], 2, 0, 1),  # until a node comes
    ],
)
def test_so_many_workers_as_are_asked_for_find_room_on_their_nodes(
    nodes: list[Node], workers: int, gpus: float, cores: float
) -> None:
    size = cluster_like([HEAD], nodes).size_for(workers)

    assert (size.gpus, size.cores, size.threads) == (gpus, cores, max(1, cores))


def test_what_has_gpus_has_the_same_cores_for_work_without_any() -> None:
    cluster = cluster_like([HEAD, GPU], [GPU] * 8).without_gpus

    assert (cluster.has_gpus, cluster.room, cluster.largest_room) == (False, 8, 64)
