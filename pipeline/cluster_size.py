"""What a cluster has, or may have, and what a worker takes of it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RaySystemError

from pipeline.connection import check_own_cluster

WORKER_BYTES = 1.5 * 1024**3  # what a worker needs beside photos of ordinary size
MOST_NODES = 1000  # of a kind, where the autoscaler knows no limit


@dataclass(frozen=True, slots=True)
class Node:
    """What a node offers."""

    cores: int
    gpus: int
    memory_bytes: float

    @classmethod
    def of(cls, resources: Mapping[str, float], *, use_gpus: bool) -> "Node":
        gpus = int(resources.get("GPU", 0)) if use_gpus else 0
        return cls(int(resources.get("CPU", 0)), gpus, resources.get("memory", 0.0))

    @property
    def room(self) -> int:
        """Workers that it has cores and memory for."""
        return min(self.cores, max(1, int(self.memory_bytes / WORKER_BYTES)))

    def places(self, threads: int, per_gpu: int) -> int:
        """Workers that find so many cores each, and a GPU that so many share; 0 of them need none."""
        return min(self.cores // threads, self.gpus * per_gpu if per_gpu else self.cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a cluster has.

    Attributes:
        nodes: ids of those that are alive.
        leaving: those of them that will go soon.
        staying: what each of the others offers.
        limit: what each node would offer if the autoscaler had brought all that it may; without one, those that stay.
    """

    nodes: frozenset[str]
    leaving: frozenset[str]
    staying: tuple[Node, ...]
    limit: tuple[Node, ...]

    @classmethod
    def now(cls, *, use_gpus: bool) -> "Cluster":
        check_own_cluster()
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        leaving = frozenset(_draining_nodes())
        staying = tuple(
            Node.of(resources, use_gpus=use_gpus) for node, resources in alive.items() if node not in leaving
        )
        limit = tuple(Node.of(resources, use_gpus=use_gpus) for resources in _autoscaled_nodes())
        return cls(nodes=frozenset(alive), leaving=leaving, staying=staying, limit=limit or staying)

    @property
    def without_gpus(self) -> "Cluster":
        """The same, as it is to work that asks for none."""
        staying, limit = (tuple(replace(node, gpus=0) for node in nodes) for nodes in (self.staying, self.limit))
        return replace(self, staying=staying, limit=limit)

    @property
    def possible(self) -> tuple[Node, ...]:
        """Whatever a worker may find itself on."""
        return (*self.staying, *self.limit)

    @property
    def has_gpus(self) -> bool:
        return any(node.gpus for node in self.possible)

    @property
    def room(self) -> int:
        """Workers that find a GPU each, or where there is none, a core and memory; one at least, to wait for a node."""
        return max(1, self._room(self.staying))

    @property
    def largest_room(self) -> int:
        """The same if the autoscaler brings all that it may."""
        return max(self.room, self._room(self.limit))

    def _room(self, nodes: Iterable[Node]) -> int:
        has_gpus = self.has_gpus  # looks at a thousand nodes, maybe
        return sum(node.gpus if has_gpus else node.room for node in nodes)

    def size_for(self, workers: int | None) -> "Size":
        """What a worker takes; without a number of them, so that each node holds as many as it has room for."""
        if workers is None and self.has_gpus:
            share = min(node.cores / node.gpus for node in self.possible if node.gpus)
            threads = max(1, int(share))
            return Size(threads=threads, cores=min(threads, share) or 1, gpus=1, memory_bytes=None)
        if workers is None:
            kinds = [node for node in self.possible if node.room]
            threads = min((node.cores // node.room for node in kinds), default=1)
            memory_bytes = min([WORKER_BYTES, *(node.memory_bytes for node in kinds if node.memory_bytes)])
            return Size(threads=threads, cores=threads, gpus=0, memory_bytes=memory_bytes)
        all_gpus = sum(node.gpus for node in self.limit)
        per_gpu = math.ceil(workers / all_gpus) if all_gpus else 0
        gpus = 1 / per_gpu if per_gpu else 0
        nodes = [node for node in self.limit if node.gpus or not per_gpu]
        for threads in range(max((node.cores for node in nodes), default=0), 0, -1):
            if sum(node.places(threads, per_gpu) for node in nodes) >= workers:
                return Size(threads=threads, cores=threads, gpus=gpus, memory_bytes=None)
        cores = sum(node.cores for node in nodes)
        share = 1 / math.ceil(workers / cores) if cores else 1
        return Size(threads=1, cores=share, gpus=gpus, memory_bytes=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a worker takes of its node, and how many threads it may run."""

    threads: int
    cores: float
    gpus: float
    memory_bytes: float | None


def _draining_nodes() -> Mapping[str, int]:
    """Nodes that had a notice that they will go, with the deadline. Ray has no public way to ask; its own libraries do
    it like this. A client of a cluster (ray://) cannot.
    """
    with suppress(AttributeError, RaySystemError):
        return ray._private.state.state.get_draining_nodes()
    return {}


def _autoscaled_nodes() -> Iterator[Mapping[str, float]]:
    """What each node would offer if the autoscaler had brought all that it may. Ray has no public way to ask; its own
    libraries do it like this.
    """
    with suppress(AttributeError, RaySystemError):
        config = ray._private.state.state.get_cluster_config()
        for group in config.node_group_configs if config is not None else ():
            count = group.max_count if group.max_count >= 0 else MOST_NODES
            yield from [dict(group.resources)] * min(count, MOST_NODES)
