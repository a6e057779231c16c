"""What is new, changed, stale or failed, and how it is cut into shards. Pure: Parquet files in, a Parquet file out.

The joins run in DuckDB, which spills to disk, and shards are cut and named from whole columns: no archive is ever held
in Python objects.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.database import count_rows, create_unique_view, in_batches, literal, open_database, scan
from pipeline.footer import mark_footer
from pipeline.plan_file import PLAN_BATCH, PlanHeader, plan_schema, plan_writer
from pipeline.records import GONE, PLAN_SCHEMA, Status
from pipeline.subset import SAMPLE_HASH, sample_condition


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSize:
    """How large a shard may grow. Small archives get smaller shards, so that every worker has some.

    Attributes:
        max_photos: a shard's most photos: what a crash may cost, against one commit object for each shard.
        max_bytes: a shard's most source bytes, unless it is one larger photo.
        min_shards: as many shards at least, where there are as many photos. None has more than twice its share of the
            bytes, or a few huge photos among small ones would be one worker's alone.
    """

    max_photos: int = 64
    max_bytes: int = 128 * 1024**2
    min_shards: int = 32

    def limited_to(self, photos: int, size_bytes: int) -> "ShardSize":
        """The same for so much work in all."""
        max_photos = min(self.max_photos, photos // self.min_shards)
        max_bytes = min(self.max_bytes, 2 * size_bytes // self.min_shards)
        return dataclasses.replace(self, max_photos=max(1, max_photos), max_bytes=max(1, max_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What decides whether a photo is done again, and how many are.

    Attributes:
        header: what the plan is for; another one than that of a finished photo makes it stale.
        retry_failed: process inputs that were rejected before, too.
        sample: process that share of them, drawn by the hash of the key, and at least one; None for all.
        limit: process at most so many, in the order of their keys; what failed comes last, and first of it what was
            tried least often: what fails each time keeps nothing else waiting.
        is_subset: whether the listing leaves out photos that the source has.
        lists_gone: whether it may hold photos that the source no longer has.
        shard_size: how large the unit of work is.
        command: who plans, for the plan's own record.
    """

    header: PlanHeader
    command: str = ""
    retry_failed: bool = False
    sample: float | None = None
    limit: int | None = None
    is_subset: bool = False
    lists_gone: bool = False
    shard_size: ShardSize = ShardSize()


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier runs have done in the target, and what they have left.

    Attributes:
        done: index files: the newest row of each key that the target holds.
        pending: plan files whose photos another run is still to do: they are left out, whatever became of them since.
        tainted: plan files whose photos may have been written by a run that was given up before it committed them: what
            the index says of those is not to be trusted, unless it is of a later attempt.
        runs: names of those that go on.
    """

    done: Sequence[Path] = ()
    pending: Sequence[Path] = ()
    tainted: Sequence[Path] = ()
    runs: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How much some photos are.

    Attributes:
        megapixels: of those that have been opened before, and have not changed since.
        unopened_bytes: of the others.
    """

    photos: int = 0
    size_bytes: int = 0
    megapixels: float = 0.0
    unopened_bytes: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            photos=self.photos + other.photos,
            size_bytes=self.size_bytes + other.size_bytes,
            megapixels=self.megapixels + other.megapixels,
            unopened_bytes=self.unopened_bytes + other.unopened_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCounts:
    """What a listing holds by status, and what of it the plan does.

    Attributes:
        retried: of the planned photos, those that were rejected before.
        of_runs: photos by status, of those whose rows the runs that go on have made.
        is_complete: whether the plan holds all that is to be done, and no limit, sample or subset left some for later.
        unfinished_runs: how many were interrupted: what they have done may not be published.
    """

    amounts: dict[Status, Amount]
    planned: Amount
    shards: int
    of_runs: dict[Status, int]
    is_complete: bool
    retried: int = 0
    unfinished_runs: int = 0

    @property
    def photos(self) -> dict[Status, int]:
        return {status: amount.photos for status, amount in self.amounts.items()}

    @property
    def planned_photos(self) -> int:
        return self.planned.photos


def write_plan(listing: Path, earlier: Earlier, plan: Path, options: PlanOptions) -> PlanCounts:
    """Compare a listing with what is done, and write the photos to process, cut into shards, to `plan`.

    A photo is processed if and only if its etag or size, the weights' hash or the parameters' hash differ from those of
    its row, or it was gone and is there again (and, where `retry_failed`, if it was rejected). The same inputs give the
    same plan, byte for byte.

    Args:
        listing: a file that `write_listing` wrote. Of a key that is in it twice, one row counts.
        earlier: what the target holds.
        plan: where to write; sorted by key, columns as `PLAN_SCHEMA`.
        options: what makes a finished photo stale, and how large shards are.
    """
    with open_database(plan.parent) as database:
        create_unique_view(database, "listing", scan([listing]), "etag DESC, size_bytes DESC, place DESC")
        _compare(database, options, earlier)
        amounts = _amounts(database)
        of_runs = database.sql("SELECT status, count(*) FROM compared WHERE is_of_runs GROUP BY status").fetchall()
        wanted = processed_statuses(options.retry_failed)
        found = [amounts[status] for status in wanted if status in amounts]
        wanted_photos, wanted_bytes = sum(each.photos for each in found), sum(each.size_bytes for each in found)
        statuses = ", ".join(literal(status) for status in wanted)
        database.execute(f"CREATE TEMP VIEW wanted AS SELECT * FROM compared WHERE status IN ({statuses})")
        photos, chosen = wanted_photos, "true"
        if options.sample is not None:
            open_keys = f"FROM compared WHERE status IN ({statuses}, 'planned')"
            first = f"{SAMPLE_HASH} = (SELECT min({SAMPLE_HASH}) {open_keys})"  # one at least
            chosen = f"({sample_condition(options.sample)} OR {first})"
            photos = count_rows(database, f"FROM wanted WHERE {chosen}")
        photos = photos if options.limit is None else min(photos, options.limit)
        todo = database.sql(f"SELECT * FROM wanted WHERE {chosen}")
        if photos < wanted_photos:  # what failed waits for all else, and for what was tried less often
            todo = todo.order(f"if(status = '{Status.FAILED}', attempt, 0), key").limit(photos)
        todo = todo.order("key")
        size = options.shard_size.limited_to(photos, wanted_bytes * photos // max(1, wanted_photos))
        planned, shards = _write_shards(in_batches(todo, PLAN_BATCH), size, plan, options)
        retried = 0
        if options.retry_failed and Status.FAILED in amounts:
            retried = count_rows(database, f"FROM {scan([plan])} WHERE status = '{Status.FAILED}'")
        is_complete = photos == wanted_photos and not (options.is_subset and _has_unlisted(database, earlier))
    return PlanCounts(
        amounts=amounts,
        planned=planned,
        shards=shards,
        of_runs={Status(status): photos for status, photos in sorted(of_runs)},
        is_complete=is_complete,
        retried=retried,
    )


def shard_ends(size_bytes: NDArray[np.int64], *, max_photos: int, max_bytes: int) -> NDArray[np.int64]:
    """Where shards of neighbours end, each as full as the limits let it be. A larger photo is a shard of its own.

    Args:
        size_bytes: of the photos, in their order.

    Returns:
        For each shard the place behind its last photo; the last is the number of photos.
    """
    count = len(size_bytes)
    before = np.concatenate([[0], np.cumsum(size_bytes)])  # bytes before each photo
    fitting = np.searchsorted(before, before[:-1] + max_bytes, side="right") - 1
    ends_from = np.maximum(np.minimum(fitting, np.arange(count) + max_photos), np.arange(count) + 1)
    ends = [0]
    while ends[-1] < count:
        ends.append(int(ends_from[ends[-1]]))
    return np.array(ends[1:], np.int64)


def processed_statuses(retry_failed: bool) -> list[Status]:
    """Which inputs a plan holds."""
    return [Status.NEW, Status.CHANGED, Status.STALE, *([Status.FAILED] if retry_failed else [])]


def count_outside_sample(plan: Path, sample: float) -> int:
    """Photos of a plan that do not belong to that share of all keys."""
    with duckdb.connect() as database:
        return count_rows(database, f"FROM {scan([plan])} WHERE NOT {sample_condition(sample)}")


def is_overtaken(plan: Path, done: Sequence[Path]) -> bool:
    """Whether another run has done photos of a plan since: the attempts that it holds are no longer their newest.

    Args:
        plan: what is left of one to be done.
        done: as for `Earlier`.
    """
    if not done:
        return False
    with open_database(plan.parent) as database:
        newer = f"FROM {scan([plan])} AS plan JOIN {scan(done)} AS done USING (key) WHERE done.attempts >= plan.attempt"
        return bool(database.sql(f"SELECT 1 {newer} LIMIT 1").fetchall())


def find_twins(listing: Path, done: Sequence[Path]) -> tuple[str, str] | None:
    """Two keys, if there are any, that a disk which ignores case keeps as one file: of a listing, or with a result.

    FAT and exFAT also drop dots at the end of a name.
    """
    with open_database(listing.parent) as database:
        keys = f"SELECT key FROM {scan([listing])}"
        if done:
            keys += f" UNION ALL SELECT key FROM {scan(done)} WHERE output_key IS NOT NULL"
        spelled = "regexp_replace(lower(key), '[.]+(/|$)', '\\1', 'g')"
        twins = f"SELECT min(key), max(key) FROM ({keys}) GROUP BY {spelled} HAVING min(key) <> max(key)"
        found: tuple[str, str] | None = database.sql(f"{twins} ORDER BY ALL LIMIT 1").fetchone()
        return found


def amount_of(plan: Path) -> Amount:
    """How much a plan holds; none of it counts as opened."""
    batches = pq.ParquetFile(plan).iter_batches(PLAN_BATCH, columns=["size_bytes"])
    sizes = [(len(batch), pc.sum(batch["size_bytes"]).as_py() or 0) for batch in batches]
    size_bytes = sum(size for _, size in sizes)
    return Amount(photos=sum(photos for photos, _ in sizes), size_bytes=size_bytes, unopened_bytes=size_bytes)


def _compare(database: duckdb.DuckDBPyConnection, options: PlanOptions, earlier: Earlier) -> None:
    """Make the table `compared`: a row for each of the view `listing`.

    Of what is up to date, which is most of an archive, only its size is kept.
    """
    done_rows = (
        "SELECT key, source_etag, source_size_bytes, attempts, run, outcome = 'rejected' AS is_rejected, "
        f"starts_with(reason, {literal(GONE)}) AND NOT $lists_gone AS is_back, "
        "weights <> $weights OR parameters <> $parameters AS is_stale, width_px::BIGINT * height_px AS pixels "
        f"FROM {scan(earlier.done)}"
        if earlier.done
        else "SELECT '' AS key, '' AS source_etag, 0 AS source_size_bytes, 0 AS attempts, '' AS run, "
        "false AS is_rejected, $lists_gone AS is_back, $weights = $parameters AS is_stale, 0 AS pixels WHERE false"
    )
    database.execute(
        f"""
        CREATE TEMP TABLE compared AS
        WITH done AS ({done_rows}),
        pending AS ({_plan_rows(earlier.pending)}),
        tainted AS ({_plan_rows(earlier.tainted)}),
        judged AS (
            SELECT listing.*, coalesce(greatest(done.attempts, tainted.attempt), 0) + 1 AS attempt, done.pixels,
                list_contains($runs, done.run) AS is_of_runs,
                CASE WHEN pending.key IS NOT NULL THEN 'planned'
                     WHEN done.key IS NULL THEN 'new'
                     WHEN done.source_etag <> listing.etag THEN 'changed'
                     WHEN done.source_size_bytes <> listing.size_bytes THEN 'changed'
                     WHEN done.is_stale THEN 'stale'
                     WHEN tainted.attempt >= done.attempts THEN 'stale'
                     WHEN done.is_back THEN 'new'
                     WHEN done.is_rejected THEN 'failed'
                     ELSE 'up_to_date' END AS status
            FROM listing LEFT JOIN done USING (key) LEFT JOIN pending USING (key) LEFT JOIN tainted USING (key)
        )
        SELECT if(status = 'up_to_date', NULL, key) AS key, if(status = 'up_to_date', NULL, etag) AS etag,
            if(status = 'up_to_date', NULL, place) AS place, if(status = 'changed', NULL, pixels) AS pixels,
            is_of_runs, size_bytes, attempt, status
        FROM judged
        """,
        {
            "weights": options.header.weights,
            "parameters": options.header.parameters,
            "runs": list(earlier.runs),
            "lists_gone": options.lists_gone,
        },
    )


def _has_unlisted(database: duckdb.DuckDBPyConnection, earlier: Earlier) -> bool:
    """Whether the listing lacks a photo that was done, and what its row says is not to be trusted."""
    if not (earlier.done and earlier.tainted):
        return False
    unlisted = (
        f"FROM ({_plan_rows(earlier.tainted)}) AS tainted JOIN {scan(earlier.done)} AS done USING (key) "
        "ANTI JOIN listing USING (key)"
    )
    return bool(database.sql(f"SELECT 1 {unlisted} WHERE tainted.attempt >= done.attempts LIMIT 1").fetchall())


def _plan_rows(plans: Sequence[Path]) -> str:
    if not plans:
        return "SELECT '' AS key, 0 AS attempt WHERE false"
    if len(plans) == 1:
        return f"SELECT key, attempt FROM {scan(plans)}"
    return f"SELECT key, max(attempt) AS attempt FROM {scan(plans)} GROUP BY key"


def _amounts(database: duckdb.DuckDBPyConnection) -> dict[Status, Amount]:
    rows = database.execute(
        """
        SELECT status, count(*), sum(size_bytes), coalesce(sum(pixels), 0) / 1e6,
            coalesce(sum(size_bytes) FILTER (pixels IS NULL), 0)
        FROM compared GROUP BY status
        """
    ).fetchall()
    found = {
        Status(status): Amount(
            photos=photos, size_bytes=int(size_bytes), megapixels=float(megapixels), unopened_bytes=int(unopened_bytes)
        )
        for status, photos, size_bytes, megapixels, unopened_bytes in rows
    }
    return {status: found[status] for status in Status if status in found}


def _write_shards(todo: Iterator[pa.Table], size: ShardSize, plan: Path, options: PlanOptions) -> tuple[Amount, int]:
    """Cut sorted rows into shards, and write them as they come. Returns how much they are, and the number of shards."""
    schema = plan_schema(options.header, options.command)
    planned, shards = Amount(), 0
    open_shard: list[pa.Table] = []  # the last photos so far, which more may join
    with plan_writer(plan, schema) as writer:
        for batch in chain(todo, [None]):
            rows = pa.concat_tables([*open_shard, *([] if batch is None else [batch])]).combine_chunks()
            ends = shard_ends(_numbers(rows["size_bytes"]), max_photos=size.max_photos, max_bytes=size.max_bytes)
            if batch is not None:
                ends = ends[:-1]
            closed = int(ends[-1]) if len(ends) else 0
            cut, open_shard = rows.slice(0, closed), [rows.slice(closed)]
            names = pa.array(list(_shard_names(cut, ends, options.header)), pa.string())
            shard = names.take(pa.array(np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))))
            writer.write_table(cut.append_column("shard", shard).select(PLAN_SCHEMA.names).cast(schema))
            planned, shards = planned + _amount(cut), shards + len(ends)
    with plan.open("r+b") as file:
        mark_footer(file)
    return planned, shards


def _shard_names(photos: pa.Table, ends: NDArray[np.int64], header: PlanHeader) -> Iterator[str]:
    """A hash of each shard's work, which two different lists of photos never share, whatever a stranger calls his.

    What is hashed can be read back in one way only: what makes the result, the number of photos, all numbers of a
    fixed length with the lengths of keys and etags among them, and then those themselves.
    """
    made_by = hashlib.sha256(json.dumps([header.weights, header.parameters]).encode())
    key_places, keys = _text(photos["key"])
    etag_places, etags = _text(photos["etag"])
    numbers = np.column_stack(
        [np.diff(key_places), np.diff(etag_places), _numbers(photos["size_bytes"]), _numbers(photos["attempt"])]
    ).astype("<i8")
    for start, end in pairwise([0, *ends.tolist()]):
        shard = made_by.copy()
        shard.update((end - start).to_bytes(8, "little"))
        shard.update(numbers[start:end].data)
        shard.update(keys[key_places[start] : key_places[end]])
        shard.update(etags[etag_places[start] : etag_places[end]])
        yield shard.hexdigest()[:32]


def _text(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], memoryview]:
    """Where each text of a column starts in its bytes, and the last ends; and those bytes."""
    texts = column.cast(pa.large_string()).combine_chunks()
    _, places, data = texts.buffers()
    starts = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1] if len(texts) else [0]
    return np.asarray(starts, np.int64), memoryview(data or b"")


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.cast(pa.int64()))


def _amount(rows: pa.Table) -> Amount:
    unopened = rows["size_bytes"].filter(pc.is_null(rows["pixels"]))
    return Amount(
        photos=len(rows),
        size_bytes=pc.sum(rows["size_bytes"]).as_py() or 0,
        megapixels=float(pc.sum(rows["pixels"]).as_py() or 0) / 1e6,
        unopened_bytes=pc.sum(unopened).as_py() or 0,
    )
