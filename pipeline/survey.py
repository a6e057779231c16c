"""Look at the photos of image sets with all workers of a cluster, and gather what they find as rows of one file."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bench import Bench, Look
from pipeline.cluster import ClusterConfig, ShardWorker, map_shards
from pipeline.connection import connected
from pipeline.records import PlannedPhoto, Receipt, ShardPlan

LOOSE_PHOTOS = 64  # that a worker looks at in one go, where each is an object of its own
PACKED_PHOTOS = 10_000  # and where they lie in one shard, which is read once: as many as `ingest` packs
P = TypeVar("P", bound=PlannedPhoto)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Receipt):
    """The receipt of a worker that looked at `objects`: `rows` are what it found."""

    objects: int
    rows: pa.Table

    @classmethod
    def among(cls, plan: ShardPlan, rows: pa.Table, *, bytes_read: int, seconds: float) -> "Found":
        return cls(
            shard=plan.shard,
            outcomes={},
            megapixels=0.0,
            bytes_read=bytes_read,
            bytes_written=0,
            seconds=seconds,
            objects=len(plan.photos),
            rows=rows,
        )


class Surveyor:
    """What the workers of a survey have in common; each finds other things. May be called from several threads."""

    def __init__(self) -> None:
        self.bench = Bench()

    def look(self) -> Look:
        return self.bench.look()

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Found:
        """Look at all that is in `plan`; what is `poisonous` is not read, and found with the reason why."""
        start = time.perf_counter()
        with self.bench.shard(plan.shard):
            rows = self.find(plan, poisonous)
        bytes_read = sum(photo.size_bytes for photo in plan.photos)
        return Found.among(plan, rows, bytes_read=bytes_read, seconds=time.perf_counter() - start)

    def probe(self, photo: PlannedPhoto) -> None:
        self.run(ShardPlan("probe", "", (photo,)), {})

    def find(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> pa.Table:
        """The rows of what is found."""
        raise NotImplementedError

    @contextmanager
    def looking_at(self, plan: ShardPlan, key: str, stage: str) -> Iterator[None]:
        """Inside, this thread looks at one photo of a plan."""
        with self.bench.photo(key, stage):
            yield
        self.bench.finish_photo(plan.shard)


@dataclass(frozen=True, slots=True)
class Seen:
    """How much was looked at."""

    objects: int = 0
    bytes_read: int = 0


def cut(photos: Iterable[P]) -> Iterator[ShardPlan]:
    """Units of work, as photos come: neighbours, and of one shard where they lie in shards."""
    for number, some in enumerate(_neighbours(photos)):
        yield ShardPlan(f"{number:08}", "", some)


def survey(
    photos: Iterable[PlannedPhoto],
    make_worker: Callable[[int], ShardWorker],
    config: ClusterConfig,
    *,
    path: Path,
    schema: pa.Schema,
    report: Callable[[int], None],
) -> Seen:
    """Have all photos looked at, and write what is found of them to `path`. Rows are held one unit of work at a time.

    No GPU is asked for: codecs and hashes have no use for one.

    Args:
        photos: read lazily.
        make_worker: its workers' receipts are `Found`, with rows of `schema`.
        report: called with the number of objects that were looked at so far, each time that there are more.

    Raises:
        RunFailed: as `map_shards` does.
    """
    seen, told = Seen(), 0

    def look(in_work: int) -> None:
        nonlocal told
        if seen.objects + in_work > told:  # what a worker that died had looked at does not count any more
            told = seen.objects + in_work
            report(told)

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        plans = cut(photos)
        first = next(plans, None)
        if first is None:
            return seen
        with connected(config.address):
            on_cores = dataclasses.replace(config, use_gpus=False)
            for found in map_shards(chain([first], plans), make_worker, on_cores, on_look=look):
                assert isinstance(found, Found), "a worker of a survey says what it found"
                if len(found.rows):
                    writer.write_table(found.rows)
                seen = Seen(seen.objects + found.objects, seen.bytes_read + found.bytes_read)
                look(0)
    return seen


def _neighbours(photos: Iterable[P]) -> Iterator[tuple[P, ...]]:
    for place, members in groupby(photos, attrgetter("place")):
        while some := tuple(islice(members, LOOSE_PHOTOS if place is None else PACKED_PHOTOS)):
            yield some
