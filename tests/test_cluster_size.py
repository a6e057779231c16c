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


def test_workers_that_are_asked_for_share_all_that_may_come() -> None:
    size = cluster_like([HEAD], [GPU] * 8).size_for(8)

    assert (size.gpus, size.threads) == (1, 8)
