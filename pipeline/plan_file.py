"""A plan as a Parquet file: what it was made for, its shards, and how much of it is left. Read a batch at a time."""

import dataclasses
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.records import PLAN_SCHEMA, PlannedPhoto, ShardPlan

PLAN_HEADER = "degrain_plan"
PLAN_COMMAND = "degrain_command"
PLAN_BATCH = 100_000  # rows held while a plan streams to its file, or its columns from it
READ_BATCH = 10_000  # rows held while its photos do


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanHeader:
    """What a plan was made for, kept in its Parquet metadata: work may go on only with the same.

    Attributes:
        source: where the listing came from.
        weights, parameters: content hashes of what the run works with.
    """

    source: str
    weights: str
    parameters: str


def plan_schema(header: PlanHeader, command: str) -> pa.Schema:
    """That of a plan which was made for this, by this command."""
    return PLAN_SCHEMA.with_metadata({PLAN_HEADER: json.dumps(dataclasses.asdict(header)), PLAN_COMMAND: command})


def read_header(plan: Path) -> PlanHeader:
    """What a plan was made for."""
    return PlanHeader(**json.loads(pq.read_schema(plan).metadata[PLAN_HEADER.encode()]))


def read_command(plan: Path) -> str:
    """Who made a plan; empty where that was an older degrain."""
    return str(pq.read_schema(plan).metadata.get(PLAN_COMMAND.encode(), b"").decode())


def read_shards(plan: Path, run: str) -> Iterator[ShardPlan]:
    """The shards of a plan, in the order of their keys, read a batch of rows at a time."""
    columns = ["shard", "key", "size_bytes", "etag", "attempt", "place"]
    batches = pq.ParquetFile(plan).iter_batches(READ_BATCH, columns=columns)
    rows = chain.from_iterable(zip(*(batch[name].to_pylist() for name in columns), strict=True) for batch in batches)
    for shard, members in groupby(rows, key=itemgetter(0)):
        yield ShardPlan(shard, run, tuple(PlannedPhoto(*values) for _, *values in members))


def read_shard_sizes(plan: Path) -> dict[str, int]:
    """What the shards of a plan are called, in the order of their keys, and how many photos each holds."""
    sizes: dict[str, int] = {}
    for batch in pq.ParquetFile(plan).iter_batches(PLAN_BATCH, columns=["shard"]):
        for shard, photos in zip(*pc.value_counts(batch["shard"]).flatten(), strict=True):
            sizes[shard.as_py()] = sizes.get(shard.as_py(), 0) + photos.as_py()
    return sizes


def count_photos(plan: Path, *, without: Collection[str] = ()) -> int:
    """Photos of a plan that are not in the given shards."""
    file = pq.ParquetFile(plan)
    if not without:
        return int(file.metadata.num_rows)
    done = pa.array(list(without), pa.string())
    batches = file.iter_batches(PLAN_BATCH, columns=["shard"])
    return sum(batch.num_rows - int(pc.sum(pc.is_in(batch["shard"], done)).as_py() or 0) for batch in batches)


def write_open_part(plan: Path, committed: Collection[str], path: Path) -> None:
    """Write those rows of a plan to `path` whose shards are not committed."""
    file = pq.ParquetFile(plan)
    done = pa.array(list(committed), pa.string())
    with plan_writer(path, file.schema_arrow) as writer:
        for batch in file.iter_batches(PLAN_BATCH):
            writer.write_batch(batch.filter(pc.invert(pc.is_in(batch["shard"], done))))


def plan_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """What writes a plan. Keys in order are short when each is written as what it adds to the one before.

    Args:
        path: where the file is written.
        schema: of `plan_schema`, or of another plan.
    """
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["status", "shard", "place"],
        column_encoding={"key": "DELTA_BYTE_ARRAY"},
        write_page_checksum=True,  # or a byte that rots in a key would be another key
    )
