"""DuckDB, kept within bounds: how much memory it may take, where it spills, and how SQL names our files and columns."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline.room import usable_cores

MEMORY_LIMIT = "1GiB"  # beyond it, joins and sorts of ten million keys spill to disk
IN_UTC = "SET TimeZone = 'UTC'"  # what a time without a zone is, in conditions that users write: else the machine's
MAX_THREADS = 4  # the buffers of each count against the memory limit


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills to `folder`; rows come in no order but the one asked for.

    It keeps nothing of a file that it has read: of another with the same name and size, written soon after, it would
    take the first one's footer.
    """
    threads = min(usable_cores(), MAX_THREADS)
    database = duckdb.connect(
        config={"temp_directory": str(folder / "spilled"), "memory_limit": MEMORY_LIMIT, "threads": threads}
    )
    database.execute("SET preserve_insertion_order = false")
    database.execute("SET enable_external_file_cache = false")
    database.execute(IN_UTC)
    return database


def scan(files: Sequence[Path], *options: str) -> str:
    """SQL that reads Parquet files as one table: DuckDB takes no parameters in a view or a COPY.

    By itself DuckDB would take a folder `run=7` of their path for a column, and its value for that of every row.
    """
    paths = ", ".join(literal(str(path)) for path in files)
    return f"read_parquet({', '.join((f'[{paths}]', 'union_by_name = true', 'hive_partitioning = false', *options))})"


def in_batches(rows: duckdb.DuckDBPyRelation, size: int) -> Iterator[pa.Table]:
    """The rows of a query, `size` at a time, the last batch what is left: equal rows give equal batches. One at least.

    Columns are in one chunk each.
    """
    reader = rows.to_arrow_reader(size)
    waiting = reader.schema.empty_table()
    for batch in reader:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while len(waiting) > size:
            yield waiting.slice(0, size).combine_chunks()
            waiting = waiting.slice(size)
    yield waiting.combine_chunks()


def count_rows(database: duckdb.DuckDBPyConnection, rows: str) -> int:
    """How many rows there are, by SQL from FROM on."""
    ((count,),) = database.sql(f"SELECT count(*) {rows}").fetchall()
    return int(count)


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def create_unique_view(database: duckdb.DuckDBPyConnection, name: str, table: str, order: str) -> None:
    """Make a view of those rows of `table` that come first of their key in `order`.

    Hardly any key is there twice: only those that may be, by a hash of the key, are sorted.
    """
    database.execute(
        f"CREATE TEMP TABLE {name}_twice AS "
        f"SELECT hashed FROM (SELECT hash(key) AS hashed FROM {table}) GROUP BY hashed HAVING count(*) > 1"
    )
    twice = f"hash(key) IN (SELECT hashed FROM {name}_twice)"
    first = f"SELECT * FROM {table} WHERE {twice} QUALIFY row_number() OVER (PARTITION BY key ORDER BY {order}) = 1"
    if not count_rows(database, f"FROM {name}_twice"):
        database.execute(f"CREATE TEMP VIEW {name} AS SELECT * FROM {table}")
    else:
        database.execute(f"CREATE TEMP VIEW {name} AS SELECT * FROM {table} WHERE NOT {twice} UNION ALL ({first})")


def explained(error: Exception) -> str:
    """What was wrong, on one line, without the query or what one might have done instead."""
    text = str(error).split("\n\nLINE ")[0].split("\nPossible ")[0]
    return " ".join(text.split())[:300]
