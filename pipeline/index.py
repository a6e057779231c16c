"""The published index: parts of bounded size, in the order of their keys. What is committed is merged into them.

Pure: local Parquet files in, local Parquet files out. A part whose rows stay as they are is not written again.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.database import create_unique_view, in_batches, literal, open_database, scan
from pipeline.records import DUPLICATE_OF, GONE, INDEX_SCHEMA, Outcome, index_rows

PART_ROWS = 250_000  # of one part, at most: some 40 MB, and 150 MB in memory
ROW_GROUP_ROWS = 100_000  # of files that only we read


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an index: `kept` is its place among those that were there before, None where it is new."""

    path: Path
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """The keys from `low` on that come before `high`, or all of them where that is None."""

    low: str
    high: str | None

    @property
    def condition(self) -> str:
        """SQL, with parameters: keys may hold what no literal can."""
        return "key >= $low AND ($high IS NULL OR key < $high)"

    @property
    def parameters(self) -> dict[str, str | None]:
        return {"low": self.low, "high": self.high}


def merge(parts: Sequence[Path], committed: Path, folder: Path) -> list[Part]:
    """The index with committed rows in it: the newest row of each key, which is that of its last attempt.

    A photo that was gone when it was to be read keeps the row that it has, as that of this attempt: if the photo comes
    back, the next one does it again. Every row that has a photo in the set says in `duplicate_of` which is the first
    key with the same bytes, if that is another one.

    Args:
        parts: of the index that is published, in their order.
        committed: the rows to add, in any order; a key may be there more than once.
        folder: where new parts are written.
    """
    with open_database(folder) as database:
        committed = _keep_rows_of_gone(database, parts, committed, folder)
        _create_views(database, parts, _sorted(database, committed, folder))
        _find_corrections(database)
        bounds = ["", *(_first_key(part) for part in parts[1:]), None]
        merged: list[Part] = []
        for number, (low, high) in enumerate(pairwise(bounds)):
            in_part = Range(low or "", high)
            if parts and not _is_touched(database, in_part):
                merged.append(Part(parts[number], kept=number))
                continue
            published = _rows_of(parts[number : number + 1])
            for start, end in pairwise([low, *_cuts(database, in_part), high]):
                rows = _merge_rows(database, published, Range(start or "", end))
                merged += _write_parts(rows, folder, len(merged))
    return merged


def scan_index(parts: Sequence[Path], folder: Path) -> str:
    """SQL that reads parts as one table, with the columns that an older degrain did not know: null in its rows.

    Args:
        parts: of an index; there may be none.
        folder: where a file for those columns is written.
    """
    no_rows = folder / "no-rows.parquet"
    pq.write_table(INDEX_SCHEMA.empty_table(), no_rows)
    return scan([*parts, no_rows])


def count_outcomes(parts: Sequence[Path]) -> dict[Outcome, int]:
    """Rows of an index by outcome."""
    with duckdb.connect() as database:
        counted = database.sql(f"SELECT outcome, count(*) FROM {scan(parts)} GROUP BY outcome").fetchall()
    return {Outcome(outcome): count for outcome, count in sorted(counted)}


def _keep_rows_of_gone(
    database: duckdb.DuckDBPyConnection, parts: Sequence[Path], committed: Path, folder: Path
) -> Path:
    """What is committed, where in place of a row that says that a photo is gone stands the last one before it."""
    is_gone = f"coalesce(starts_with(reason, {literal(GONE)}), false)"
    if not database.sql(f"SELECT 1 FROM {scan([committed])} WHERE {is_gone} LIMIT 1").fetchall():
        return committed
    path = folder / "committed-kept.parquet"
    database.execute(
        f"""
        CREATE TEMP TABLE gone AS
            SELECT key, max(attempts) AS attempt FROM {scan([committed])} WHERE {is_gone} GROUP BY key;
        CREATE TEMP TABLE kept AS
            SELECT known.* REPLACE (greatest(attempts, attempt) AS attempts, NULL AS {DUPLICATE_OF})
            FROM {scan([*parts, committed])} AS known JOIN gone USING (key)
            QUALIFY row_number() OVER (PARTITION BY key ORDER BY {is_gone}, known.attempts DESC, run DESC) = 1;
        COPY (
            FROM kept UNION ALL BY NAME FROM {scan([committed])} ANTI JOIN gone USING (key)
        ) TO {literal(str(path))} (FORMAT parquet);
        """
    )
    return path


def _sorted(database: duckdb.DuckDBPyConnection, committed: Path, folder: Path) -> Path:
    """The newest row of each key, sorted: a run commits its shards in the order of their keys, and then it is so."""
    if is_sorted([committed]):
        return committed
    create_unique_view(database, "newest", scan([committed]), "attempts DESC, run DESC")
    path = folder / "committed-sorted.parquet"
    with pq.ParquetWriter(path, INDEX_SCHEMA) as writer:
        for batch in in_batches(database.sql("SELECT * FROM newest ORDER BY key"), ROW_GROUP_ROWS):
            writer.write_table(index_rows(batch))
    return path


def is_sorted(files: Sequence[Path]) -> bool:
    """Whether each key is greater than the one before, over all files in their order."""
    last = None
    for batch in chain.from_iterable(
        pq.ParquetFile(path).iter_batches(ROW_GROUP_ROWS, columns=["key"]) for path in files
    ):
        keys = batch["key"]
        if last is not None and not last < keys[0].as_py():
            return False
        if not pc.all(pc.less(keys[:-1], keys[1:]), min_count=0).as_py():
            return False
        last = keys[-1].as_py()
    return True


def _create_views(database: duckdb.DuckDBPyConnection, parts: Sequence[Path], committed: Path) -> None:
    database.execute(f"CREATE TEMP VIEW committed AS SELECT * FROM {scan([committed], 'file_row_number = true')}")
    database.execute("CREATE TEMP VIEW no_rows AS SELECT * EXCLUDE file_row_number FROM committed WHERE false")
    database.execute(f"CREATE TEMP VIEW published AS {_rows_of(parts)}")


def _rows_of(parts: Sequence[Path]) -> str:
    """SQL for the rows of parts, with the columns that an older degrain did not know."""
    return f"FROM {scan(parts)} UNION ALL BY NAME FROM no_rows" if parts else "FROM no_rows"


def _find_corrections(database: duckdb.DuckDBPyConnection) -> None:
    """Make the table `corrections`: the keys whose `duplicate_of` is not, or no longer, what it must be.

    Hardly any photo is there twice: only the rows of those that may be, by a hash of their hash, are looked at.
    """
    database.execute(
        f"""
        CREATE TEMP TABLE hashed_twice AS
        SELECT hashed FROM (
            SELECT hash(source_sha256) AS hashed FROM committed WHERE output_key IS NOT NULL
            UNION ALL SELECT hash(source_sha256) FROM published WHERE output_key IS NOT NULL
        ) GROUP BY hashed HAVING count(*) > 1;

        CREATE TEMP TABLE corrections AS
        WITH alike AS (
            SELECT key, source_sha256, NULL AS marked FROM committed
            WHERE output_key IS NOT NULL AND hash(source_sha256) IN (FROM hashed_twice) AND NOT EXISTS (
                FROM published WHERE published.key = committed.key AND published.attempts > committed.attempts
            )
            UNION ALL
            SELECT key, source_sha256, {DUPLICATE_OF} FROM published
            WHERE (output_key IS NOT NULL AND hash(source_sha256) IN (FROM hashed_twice) OR {DUPLICATE_OF} IS NOT NULL)
            AND NOT EXISTS (
                FROM committed WHERE committed.key = published.key AND committed.attempts >= published.attempts
            )
        ),
        first AS (SELECT source_sha256, min(key) AS first_key FROM alike GROUP BY source_sha256)
        SELECT key, marked, nullif(first_key, key) AS duplicate FROM alike JOIN first USING (source_sha256)
        WHERE marked IS DISTINCT FROM duplicate
        """
    )


def _is_touched(database: duckdb.DuckDBPyConnection, within: Range) -> bool:
    tables = [f"EXISTS (FROM {table} WHERE {within.condition})" for table in ("committed", "corrections")]
    return database.execute(f"SELECT {' OR '.join(tables)}", within.parameters).fetchone() == (True,)


def _cuts(database: duckdb.DuckDBPyConnection, within: Range) -> list[str]:
    """Keys that cut what is committed in a part's range into pieces that can be merged in memory."""
    ((start, count),) = database.execute(
        f"SELECT min(file_row_number), count(*) FROM committed WHERE {within.condition}", within.parameters
    ).fetchall()
    pieces = math.ceil(count / PART_ROWS)
    rows = [start + count * piece // pieces for piece in range(1, pieces)]
    found = database.execute("SELECT key FROM committed WHERE file_row_number IN $rows ORDER BY key", {"rows": rows})
    return [key for (key,) in found.fetchall()] if rows else []


def _merge_rows(database: duckdb.DuckDBPyConnection, published: str, within: Range) -> duckdb.DuckDBPyRelation:
    """The rows of a range of keys, sorted: those of committed attempts come before published ones of the same."""
    database.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE piece AS
        WITH fresh AS (SELECT * EXCLUDE file_row_number FROM committed WHERE {within.condition}),
        old AS (FROM ({published}) WHERE {within.condition}),
        newest AS (
            FROM fresh ANTI JOIN old ON fresh.key = old.key AND fresh.attempts < old.attempts
            UNION ALL BY NAME
            FROM old ANTI JOIN fresh ON fresh.key = old.key AND fresh.attempts >= old.attempts
        )
        SELECT newest.* REPLACE (if(corrections.key IS NULL, newest.{DUPLICATE_OF}, duplicate) AS {DUPLICATE_OF})
        FROM newest LEFT JOIN corrections USING (key)
        """,
        within.parameters,
    )
    return database.sql("FROM piece ORDER BY key")


def _write_parts(rows: duckdb.DuckDBPyRelation, folder: Path, number: int) -> Iterator[Part]:
    """Write sorted rows as parts of one size."""
    count = len(rows)
    size = math.ceil(count / math.ceil(count / PART_ROWS)) if count else 1
    for place, batch in enumerate(in_batches(rows, size), number):
        path = folder / f"merged-{place}.parquet"
        pq.write_table(index_rows(batch), path, compression="zstd")
        yield Part(path)


def _first_key(part: Path) -> str:
    batch = next(pq.ParquetFile(part).iter_batches(1, columns=["key"]))
    return str(batch["key"][0])
