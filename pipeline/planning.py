"""What is new, changed, stale or failed, and how it is cut into shards. Pure: Parquet files in, a Parquet file out.

The joins run in DuckDB, which spills to disk: no archive is ever held in Python objects.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import LISTING_SCHEMA, PLAN_SCHEMA, PlannedPhoto, ShardPlan, SourceObject, Status

PLAN_HEADER = "degrain_plan"
LISTING_BATCH = 50_000  # rows held while a listing streams to its file


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSize:
    """How large a shard may grow. Small archives get smaller shards, so that every worker has some.

    Attributes:
        max_photos: a shard's most photos: what a crash may cost, against one commit object for each shard.
        max_bytes: a shard's most source bytes, unless it is one larger photo.
        min_shards: as many shards at least, where there are as many photos.
    """

    max_photos: int = 256
    max_bytes: int = 256 * 1024**2
    min_shards: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What decides whether a photo is done again, and how many are.

    Attributes:
        source: where the listing came from; kept with the plan.
        weights, parameters: content hashes of what the run would work with.
        retry_failed: process inputs that were rejected before, too.
        limit: process at most so many, in the order of their keys.
    """

    source: str
    weights: str
    parameters: str
    retry_failed: bool = False
    limit: int | None = None
    shard_size: ShardSize = ShardSize()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanHeader:
    """What a plan was made for, kept in its Parquet metadata: work may go on only with the same."""

    source: str
    weights: str
    parameters: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCounts:
    """Photos and bytes of a listing by status, and what of it the plan holds."""

    photos: dict[Status, int]
    size_bytes: dict[Status, int]
    planned_photos: int
    planned_bytes: int

    @property
    def listed_photos(self) -> int:
        return sum(self.photos.values())


def write_listing(objects: Iterable[SourceObject], path: Path) -> int:
    """Stream a listing to a Parquet file, a batch at a time; returns the number of objects."""
    count = 0
    batch: list[SourceObject] = []
    with pq.ParquetWriter(path, LISTING_SCHEMA) as writer:
        for listed in objects:
            batch.append(listed)
            if len(batch) == LISTING_BATCH:
                writer.write_table(_listing_table(batch))
                count += len(batch)
                batch = []
        writer.write_table(_listing_table(batch))
    return count + len(batch)


def write_plan(
    listing: Path, done: Sequence[Path], pending: Sequence[Path], plan: Path, options: PlanOptions
) -> PlanCounts:
    """Compare a listing with what is done, and write the photos to process, cut into shards, to `plan`.

    A photo is processed if and only if its etag or size, the weights' hash or the parameters' hash differ from those of
    its row (and, where `retry_failed`, if it was rejected). The same inputs give the same plan.

    Args:
        listing: a file that `write_listing` wrote. Of a key that is in it twice, one row counts.
        done: index files: the newest row of each key that the target holds.
        pending: plan files with the same weights and parameters that are still to be finished, oldest first; what
            they hold counts as done, the newest of them coming first.
        plan: where to write; sorted by key, columns as `PLAN_SCHEMA`.
        options: what makes a finished photo stale, and how large shards are.
    """
    with duckdb.connect(config={"temp_directory": str(plan.parent)}) as database:
        database.execute("SET preserve_insertion_order = false")
        database.execute(
            f"CREATE VIEW listing AS SELECT * FROM read_parquet({_quoted([listing])}) "
            "QUALIFY row_number() OVER (PARTITION BY key ORDER BY etag DESC, size_bytes DESC) = 1"
        )
        _create_done_view(database, done, pending, options)
        database.execute(
            """
            CREATE TEMP TABLE compared AS
            SELECT listing.*,
                CASE WHEN done.key IS NULL THEN 'new'
                     WHEN done.etag <> listing.etag OR done.size_bytes <> listing.size_bytes THEN 'changed'
                     WHEN done.weights <> $weights OR done.parameters <> $parameters THEN 'stale'
                     WHEN done.outcome = 'rejected' THEN 'failed'
                     ELSE 'up_to_date' END AS status,
                CASE WHEN done.etag = listing.etag AND done.size_bytes = listing.size_bytes
                     THEN done.attempts + 1 ELSE 1 END AS attempt
            FROM listing LEFT JOIN done USING (key)
            """,
            {"weights": options.weights, "parameters": options.parameters},
        )
        counted = database.execute("SELECT status, count(*), sum(size_bytes) FROM compared GROUP BY status").fetchall()
        wanted = [Status.NEW, Status.CHANGED, Status.STALE, *([Status.FAILED] if options.retry_failed else [])]
        database.execute(
            """
            CREATE TEMP TABLE todo AS
            SELECT * FROM compared WHERE list_contains($wanted, status) ORDER BY key LIMIT $limit
            """,
            {"wanted": [str(status) for status in wanted], "limit": options.limit},
        )
        planned_photos, planned_bytes = _cut_into_shards(database, options)
        columns = ", ".join(f"CAST({field.name} AS {_sql_type(field)}) AS {field.name}" for field in PLAN_SCHEMA)
        header = json.dumps({"source": options.source, "weights": options.weights, "parameters": options.parameters})
        database.execute(
            f"COPY (SELECT {columns} FROM sharded ORDER BY key) TO {_quoted([plan])} "
            f"(FORMAT parquet, KV_METADATA {{{PLAN_HEADER}: {_literal(header)}}})"
        )
    return PlanCounts(
        photos={Status(status): count for status, count, _ in counted},
        size_bytes={Status(status): int(size) for status, _, size in counted},
        planned_photos=planned_photos,
        planned_bytes=planned_bytes,
    )


def shard_starts(sizes_bytes: Iterable[int], *, max_photos: int, max_bytes: int) -> Iterator[int]:
    """The positions at which neighbours are cut into shards, each as full as the limits let it be.

    A photo that is larger than `max_bytes` is a shard of its own.
    """
    shard_photos = shard_bytes = 0
    for position, size_bytes in enumerate(sizes_bytes):
        is_full = shard_photos == max_photos or shard_bytes + size_bytes > max_bytes
        if position == 0 or is_full:
            yield position
            shard_photos = shard_bytes = 0
        shard_photos += 1
        shard_bytes += size_bytes


def read_header(plan: Path) -> PlanHeader:
    """What a plan was made for."""
    return PlanHeader(**json.loads(pq.read_schema(plan).metadata[PLAN_HEADER.encode()]))


def read_shards(plan: Path, run: str) -> Iterator[ShardPlan]:
    """The shards of a plan, in the order of their keys, read a batch of rows at a time."""
    rows = (row for batch in pq.ParquetFile(plan).iter_batches() for row in batch.to_pylist())
    for shard, members in groupby(rows, key=lambda row: row["shard"]):
        photos = tuple(PlannedPhoto(row["key"], row["size_bytes"], row["etag"], row["attempt"]) for row in members)
        yield ShardPlan(shard, run, photos)


def _create_done_view(
    database: duckdb.DuckDBPyConnection, done: Sequence[Path], pending: Sequence[Path], options: PlanOptions
) -> None:
    """What the target holds or is about to hold: the newest pending plan that holds a key comes before the index."""
    indexed = pended = (
        "SELECT '' AS key, '' AS etag, 0::BIGINT AS size_bytes, '' AS outcome, '' AS weights, '' AS parameters, "
        "0 AS attempts WHERE false"
    )
    if done:
        indexed = (
            "SELECT key, source_etag AS etag, source_size_bytes AS size_bytes, outcome, weights, parameters, attempts "
            f"FROM read_parquet({_quoted(done)})"
        )
    if pending:
        plans = " UNION ALL ".join(
            f"SELECT *, {age} AS age FROM read_parquet({_quoted([plan])})" for age, plan in enumerate(reversed(pending))
        )
        pended = (
            "SELECT key, etag, size_bytes, 'pending' AS outcome, getvariable('weights') AS weights, "
            "getvariable('parameters') AS parameters, attempt AS attempts "
            f"FROM ({plans}) QUALIFY row_number() OVER (PARTITION BY key ORDER BY age) = 1"
        )
    database.execute("SET VARIABLE weights = $weights", {"weights": options.weights})
    database.execute("SET VARIABLE parameters = $parameters", {"parameters": options.parameters})
    database.execute(f"CREATE TEMP TABLE pending AS {pended}")
    database.execute(
        f"""
        CREATE TEMP VIEW done AS
        SELECT * FROM pending UNION ALL SELECT * FROM ({indexed}) WHERE key NOT IN (SELECT key FROM pending)
        """
    )


def _cut_into_shards(database: duckdb.DuckDBPyConnection, options: PlanOptions) -> tuple[int, int]:
    """Cut neighbours in key order into shards, and name each by a hash of its work. Returns photos and bytes."""
    size = options.shard_size
    photos, size_bytes = database.execute("SELECT count(*), coalesce(sum(size_bytes), 0) FROM todo").fetchall()[0]
    max_photos = max(1, min(size.max_photos, photos // size.min_shards))
    batches = database.sql("SELECT size_bytes FROM todo ORDER BY key").to_arrow_reader(LISTING_BATCH)
    sizes = chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
    starts = pa.array(shard_starts(sizes, max_photos=max_photos, max_bytes=size.max_bytes), pa.int64())
    database.register("starts", pa.table({"start": starts}))
    database.execute(
        """
        CREATE TEMP TABLE grouped AS
        SELECT numbered.*, starts.start
        FROM (SELECT *, row_number() OVER (ORDER BY key) - 1 AS position FROM todo) AS numbered
        ASOF JOIN starts ON numbered.position >= starts.start
        """
    )
    # Lengths stand before what a stranger may choose, so that no two lists of photos read the same.
    database.execute(
        """
        CREATE TEMP TABLE sharded AS
        SELECT grouped.*, named.shard FROM grouped JOIN (
            SELECT start, left(sha256(concat_ws(' ', $weights, $parameters, string_agg(
                concat_ws(' ', strlen(key), key, size_bytes, strlen(etag), etag, attempt), ' ' ORDER BY key
            ))), 32) AS shard
            FROM grouped GROUP BY start
        ) AS named USING (start)
        """,
        {"weights": options.weights, "parameters": options.parameters},
    )
    return int(photos), int(size_bytes)


def _sql_type(field: pa.Field) -> str:
    return {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.int32(): "INTEGER"}[field.type]


def _quoted(paths: Sequence[Path]) -> str:
    """File names as a SQL list: DuckDB takes no parameters in a view or a COPY."""
    names = [_literal(str(path)) for path in paths]
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _listing_table(batch: Sequence[SourceObject]) -> pa.Table:
    columns = [
        pa.array([listed.key for listed in batch], pa.string()),
        pa.array([listed.size_bytes for listed in batch], pa.int64()),
        pa.array([listed.etag for listed in batch], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=LISTING_SCHEMA)
