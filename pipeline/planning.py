"""What is new, changed, stale or failed, and how it is cut into shards. Pure: Parquet files in, a Parquet file out.

The joins run in DuckDB, which spills to disk: no archive is ever held in Python objects.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.records import LISTING_SCHEMA, PLAN_SCHEMA, PlannedPhoto, ShardPlan, SourceObject, Status

T = TypeVar("T")

PLAN_HEADER = "degrain_plan"
LISTING_BATCH = 50_000  # rows held while a listing streams to its file
PLAN_BATCH = 20_000  # rows held while a plan streams to its file


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSize:
    """How large a shard may grow. Small archives get smaller shards, so that every worker has some.

    Attributes:
        max_photos: a shard's most photos: what a crash may cost, against one commit object for each shard.
        max_bytes: a shard's most source bytes, unless it is one larger photo.
        min_shards: as many shards at least, where there are as many photos.
    """

    max_photos: int = 64
    max_bytes: int = 128 * 1024**2
    min_shards: int = 32


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What decides whether a photo is done again, and how many are.

    Attributes:
        header: what the plan is for; another one than that of a finished photo makes it stale.
        retry_failed: process inputs that were rejected before, too.
        limit: process at most so many, in the order of their keys.
    """

    header: PlanHeader
    retry_failed: bool = False
    limit: int | None = None
    shard_size: ShardSize = ShardSize()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCounts:
    """Photos and bytes of a listing by status, and what of it the plan holds."""

    photos: dict[Status, int]
    size_bytes: dict[Status, int]
    planned_photos: int
    planned_bytes: int

    is_complete: bool  # whether the plan holds all that is to be done, and no limit left some for later


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
    listing: Path,
    done: Sequence[Path],
    plan: Path,
    options: PlanOptions,
    *,
    pending: Sequence[Path] = (),
    tainted: Sequence[Path] = (),
) -> PlanCounts:
    """Compare a listing with what is done, and write the photos to process, cut into shards, to `plan`.

    A photo is processed if and only if its etag or size, the weights' hash or the parameters' hash differ from those of
    its row (and, where `retry_failed`, if it was rejected). The same inputs give the same plan.

    Args:
        listing: a file that `write_listing` wrote. Of a key that is in it twice, one row counts.
        done: index files: the newest row of each key that the target holds.
        plan: where to write; sorted by key, columns as `PLAN_SCHEMA`.
        options: what makes a finished photo stale, and how large shards are.
        pending: plan files whose photos another run is still to do: they are left out, whatever became of them since.
        tainted: plan files whose photos may have been written by a run that was given up before it committed them: what
            the index says of those is not to be trusted.
    """
    with duckdb.connect(config={"temp_directory": str(plan.parent)}) as database:
        database.execute("SET preserve_insertion_order = false")
        _create_views(database, listing, done, pending, tainted)
        database.execute(
            """
            CREATE TEMP TABLE compared AS
            SELECT listing.*,
                CASE WHEN pending.key IS NOT NULL THEN 'planned'
                     WHEN done.key IS NULL THEN 'new'
                     WHEN done.source_etag <> listing.etag THEN 'changed'
                     WHEN done.source_size_bytes <> listing.size_bytes THEN 'changed'
                     WHEN done.weights <> $weights OR done.parameters <> $parameters THEN 'stale'
                     WHEN tainted.attempt > done.attempts THEN 'stale'
                     WHEN done.outcome = 'rejected' THEN 'failed'
                     ELSE 'up_to_date' END AS status,
                coalesce(done.attempts, 0) + 1 AS attempt
            FROM listing LEFT JOIN done USING (key) LEFT JOIN pending USING (key) LEFT JOIN tainted USING (key)
            """,
            {"weights": options.header.weights, "parameters": options.header.parameters},
        )
        counted = database.execute("SELECT status, count(*), sum(size_bytes) FROM compared GROUP BY status").fetchall()
        photos = {Status(status): int(count) for status, count, _ in counted}
        wanted = processed_statuses(options.retry_failed)
        wanted_photos = sum(photos.get(status, 0) for status in wanted)
        planned_photos = wanted_photos if options.limit is None else min(wanted_photos, options.limit)
        todo = database.sql(
            "SELECT * FROM compared WHERE list_contains($wanted, status) ORDER BY key LIMIT $limit",
            params={"wanted": [str(status) for status in wanted], "limit": planned_photos},
        )
        planned_bytes = _write_shards(todo.to_arrow_reader(PLAN_BATCH), planned_photos, plan, options)
    return PlanCounts(
        photos=photos,
        size_bytes={Status(status): int(size) for status, _, size in counted},
        planned_photos=planned_photos,
        planned_bytes=planned_bytes,
        is_complete=planned_photos == wanted_photos,
    )


def cut_into_shards(
    photos: Iterable[T], size_bytes: Callable[[T], int], *, max_photos: int, max_bytes: int
) -> Iterator[list[T]]:
    """Cut neighbours into shards, each as full as the limits let it be. A larger photo is a shard of its own."""
    shard: list[T] = []
    shard_bytes = 0
    for photo in photos:
        if shard and (len(shard) == max_photos or shard_bytes + size_bytes(photo) > max_bytes):
            yield shard
            shard, shard_bytes = [], 0
        shard.append(photo)
        shard_bytes += size_bytes(photo)
    if shard:
        yield shard


def processed_statuses(retry_failed: bool) -> list[Status]:
    """Which inputs a plan holds."""
    return [Status.NEW, Status.CHANGED, Status.STALE, *([Status.FAILED] if retry_failed else [])]


def read_header(plan: Path) -> PlanHeader:
    """What a plan was made for."""
    return PlanHeader(**json.loads(pq.read_schema(plan).metadata[PLAN_HEADER.encode()]))


def read_shards(plan: Path, run: str) -> Iterator[ShardPlan]:
    """The shards of a plan, in the order of their keys, read a batch of rows at a time."""
    rows = (row for batch in pq.ParquetFile(plan).iter_batches() for row in batch.to_pylist())
    for shard, members in groupby(rows, key=lambda row: row["shard"]):
        photos = tuple(PlannedPhoto(row["key"], row["size_bytes"], row["etag"], row["attempt"]) for row in members)
        yield ShardPlan(shard, run, photos)


def write_open_part(plan: Path, committed: Collection[str], path: Path) -> None:
    """Write those rows of a plan to `path` whose shards are not committed."""
    file = pq.ParquetFile(plan)
    done = pa.array(list(committed), pa.string())
    with pq.ParquetWriter(path, file.schema_arrow) as writer:
        for batch in file.iter_batches():
            writer.write_batch(batch.filter(pc.invert(pc.is_in(batch["shard"], done))))


def count_photos(plan: Path, *, without: Collection[str] = ()) -> int:
    """Photos of a plan that are not in the given shards."""
    file = pq.ParquetFile(plan)
    if not without:
        return int(file.metadata.num_rows)
    done = pa.array(list(without), pa.string())
    batches = file.iter_batches(columns=["shard"])
    return sum(batch.num_rows - int(pc.sum(pc.is_in(batch["shard"], done)).as_py() or 0) for batch in batches)


def _create_views(
    database: duckdb.DuckDBPyConnection,
    listing: Path,
    done: Sequence[Path],
    pending: Sequence[Path],
    tainted: Sequence[Path],
) -> None:
    no_rows = (
        "SELECT '' AS key, '' AS source_etag, 0::BIGINT AS source_size_bytes, '' AS outcome, '' AS weights, "
        "'' AS parameters, 0 AS attempts WHERE false"
    )
    database.execute(
        f"CREATE VIEW listing AS SELECT * FROM read_parquet({_quoted([listing])}) "
        "QUALIFY row_number() OVER (PARTITION BY key ORDER BY etag DESC, size_bytes DESC) = 1"
    )
    database.execute(f"CREATE VIEW done AS {_select_from(done) or no_rows}")
    for name, plans in (("pending", pending), ("tainted", tainted)):
        rows = _select_from(plans) or "SELECT '' AS key, 0 AS attempt WHERE false"
        database.execute(f"CREATE VIEW {name} AS SELECT key, max(attempt) AS attempt FROM ({rows}) GROUP BY key")


def _select_from(files: Sequence[Path]) -> str:
    return f"SELECT * FROM read_parquet({_quoted(files)})" if files else ""


def _write_shards(todo: pa.RecordBatchReader, photos: int, plan: Path, options: PlanOptions) -> int:
    """Cut sorted rows into shards, and write them as they come: DuckDB could do this only in memory. Returns bytes."""
    size = options.shard_size
    max_photos = max(1, min(size.max_photos, photos // size.min_shards))
    rows = (row for batch in todo for row in batch.to_pylist())
    schema = PLAN_SCHEMA.with_metadata({PLAN_HEADER: json.dumps(dataclasses.asdict(options.header))})
    planned_bytes = 0
    waiting: list[dict[str, Any]] = []  # Any: a row of a plan
    with pq.ParquetWriter(plan, schema) as writer:
        for shard in cut_into_shards(rows, itemgetter("size_bytes"), max_photos=max_photos, max_bytes=size.max_bytes):
            name = _shard_name(shard, options.header)
            waiting.extend({**row, "shard": name} for row in shard)
            planned_bytes += sum(row["size_bytes"] for row in shard)
            if len(waiting) >= PLAN_BATCH:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema))
    return planned_bytes


def _shard_name(shard: Sequence[dict[str, Any]], header: PlanHeader) -> str:  # Any: a row of a plan
    """A hash of the work, which two different lists of photos never share, whatever a stranger calls his photos."""
    photos = [[row["key"], row["size_bytes"], row["etag"], row["attempt"]] for row in shard]
    return hashlib.sha256(json.dumps([header.weights, header.parameters, photos]).encode()).hexdigest()[:32]


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
