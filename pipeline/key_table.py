"""Listings without LIST requests: from a table of keys, such as S3 Inventory writes, or from the index of an image set.

A table is Parquet, ORC or CSV, which may be gzipped; DuckDB reads it. It has the columns of a listing (`key`,
`size_bytes`, `etag`) with keys below the source; or those of S3 Inventory, with `bucket` among them and keys below the
bucket. A CSV file of an inventory has no header and URL-encoded keys: its `manifest.json` says what is in it, and is
named in its place. https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

import csv
import gzip
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import orc

from pipeline.database import count_rows, explained, identifier, in_batches, literal, open_database, scan
from pipeline.errors import ObjectMissing, StorageError
from pipeline.index import scan_index
from pipeline.listing import write_listing
from pipeline.records import DUPLICATE_OF, LISTING_SCHEMA
from pipeline.scratch import scratch_folder
from pipeline.storage import Store, open_store, split_url
from pipeline.subset import Subset

FETCH_BYTES = 16 * 1024**2  # of a table, held while it streams to a local file
LISTING_BATCH = 100_000
KINDS = {b"PAR1": "parquet", b"ORC": "orc", b"\x1f\x8b": "gzip", b"{": "manifest"}  # by how they begin; else CSV
SIZE, ETAG = ("size_bytes", "size"), ("etag", "e_tag")


def write_listing_from_table(table_url: str, source_url: str, path: Path, *, leave_out: str | None = None) -> int:
    """Write the listing of a source that a table holds to `path`; returns the number of objects.

    Of an inventory, the newest versions of the source's objects are taken: no delete markers. Folders, which are empty
    and whose keys end in `/`, are left out of any table.

    Args:
        table_url: path or URL of a table of keys, or of the `manifest.json` of an inventory.
        source_url: what the keys are below of; objects of an inventory that lie elsewhere are left out.
        path: where the listing is written.
        leave_out: what the keys begin with that are to be left out, such as those of a target in the source.

    Raises:
        ValueError: there is no such table, it is damaged, it lacks a column, or holds what no listing can.
        StorageError: it cannot be read.
    """
    with scratch_folder() as folder, open_database(folder) as database:
        database.execute("CREATE TABLE listed (key VARCHAR, size_bytes BIGINT, etag VARCHAR, place VARCHAR)")
        for table in _tables(table_url, source_url, folder):
            try:
                _insert(database, table, source_url, leave_out)
            except duckdb.Error as error:
                raise ValueError(f"cannot read {table.name}: {explained(error)}") from error
            table.path.unlink()
        _check(database, table_url, source_url)
        return _write(database.sql("FROM listed"), path)


def write_listing_from_index(
    parts: Sequence[Path], subset: Subset, path: Path, *, is_packed: bool, is_distinct: bool = False
) -> int:
    """Write the listing of an image set from its index to `path`; returns the number of photos.

    The etag of a photo is the hash of its bytes. Inputs that have no photo in the set are left out.

    Args:
        parts: local files of the index.
        subset: which photos are taken.
        path: where the listing is written.
        is_packed: whether the photos lie in shards, rather than each under its own key.
        is_distinct: whether of exact duplicates only the first is taken.

    Raises:
        ValueError: the subset's filter cannot be applied to what a column holds.
    """
    if not parts:
        return write_listing([], path)
    place = "output_key" if is_packed else "NULL"
    condition = f"output_key IS NOT NULL AND {subset.condition}"
    if is_distinct:
        condition += f" AND {DUPLICATE_OF} IS NULL"
    with scratch_folder() as folder, open_database(folder) as database:
        try:
            photos = database.sql(
                f"SELECT key, output_size_bytes AS size_bytes, output_sha256 AS etag, {place} AS place "
                f"FROM {scan_index(parts, folder)} AS photos WHERE {condition}"
            )
            return _write(photos, path)
        except duckdb.Error as error:
            raise ValueError(f"cannot filter by {subset.where!r}: {explained(error)}") from error


@dataclass(frozen=True, slots=True)
class _Table:
    """A local copy of a table, or of one file of an inventory.

    Attributes:
        name: its URL, for messages.
        rows: SQL that reads it.
        columns: their names.
        is_encoded: whether its keys are URL-encoded, with `+` for a space.
    """

    name: str
    path: Path
    rows: str
    columns: tuple[str, ...]
    is_encoded: bool = False

    def find(self, *names: str) -> str | None:
        """SQL for the column of one of these names, however it spells them; None where there is none."""
        found = (column for column in self.columns if _plain(column) in map(_plain, names))
        return next((f"{identifier(column)}::VARCHAR" for column in found), None)


def _tables(url: str, source_url: str, folder: Path) -> Iterator[_Table]:
    """The table, or the files of an inventory: one at a time, for as long as its local file is not removed."""
    store, key = _open(url)
    path = folder / "table"
    try:
        _fetch(store, key, path)
    except ObjectMissing as error:
        raise ValueError(f"there is no table at {url}") from error
    if _kind(path) != "manifest":
        yield _read_table(url, path)
        return
    manifest = _Manifest.parse(path.read_bytes(), url, source_url)
    for file_key, md5 in manifest.files:
        store, key = _open_data(url, manifest.bucket, file_key)
        file_url = f"{store.url}/{key}"
        if _fetch(store, key, path) != md5:
            raise StorageError(f"{file_url} is not the file that {url} speaks of: its MD5 is not {md5}")
        yield _read_table(file_url, path, manifest.csv_columns)


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What the `manifest.json` of an inventory says.

    Attributes:
        bucket: where its files lie.
        files: their keys there, and their MD5.
        csv_columns: of its files, if those are CSV.
    """

    bucket: str
    files: tuple[tuple[str, str], ...]
    csv_columns: tuple[str, ...] | None

    @classmethod
    def parse(cls, data: bytes, url: str, source_url: str) -> "_Manifest":
        try:
            values: dict[str, Any] = json.loads(data)  # Any: JSON
            source_bucket, bucket = values["sourceBucket"], values["destinationBucket"].rpartition(":")[2]
            files = tuple((str(file["key"]), str(file["MD5checksum"])) for file in values["files"])
            columns = tuple(column.strip() for column in values["fileSchema"].split(","))
            is_csv = values["fileFormat"].upper() == "CSV"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{url} is no manifest of an S3 Inventory ({type(error).__name__}: {error})") from error
        if source_bucket != _bucket_and_prefix(source_url)[0]:
            raise ValueError(f"{url} is the inventory of the bucket {source_bucket}, and the source is {source_url}")
        return cls(bucket, files, columns if is_csv else None)


def _insert(database: duckdb.DuckDBPyConnection, table: _Table, source_url: str, leave_out: str | None) -> None:
    """Add the rows of a table that belong to the source, with keys below it."""
    key, size_bytes, etag = table.find("key"), table.find(*SIZE), table.find(*ETAG)
    missing = [names[0] for names, found in ((("key",), key), (SIZE, size_bytes), (ETAG, etag)) if found is None]
    if missing:
        raise ValueError(
            f"{table.name} has no column {' and no '.join(missing)} (it has {', '.join(table.columns)[:200]}): a table "
            "needs key, size_bytes and etag, or the columns of S3 Inventory (of CSV, name its manifest.json)"
        )
    if table.is_encoded:
        key = f"url_decode(replace({key}, '+', '%20'))"
    conditions = ["key IS NULL OR NOT ends_with(key, '/') OR try_cast(size_bytes AS DOUBLE) > 0"]
    bucket, prefix = table.find("bucket"), ""
    if bucket is not None:
        bucket_name, prefix = _bucket_and_prefix(source_url)
        conditions += [f"bucket = {literal(bucket_name)}", f"starts_with(key, {literal(prefix)})"]
        conditions.append(f"key <> {literal(prefix)}")  # of the source itself
    if leave_out is not None:
        conditions.append(f"NOT starts_with(key, {literal(prefix + leave_out)})")
    database.execute(
        f"""
        INSERT INTO listed
        SELECT substr(key, {len(prefix) + 1}),
            if(try_cast(size_bytes AS DOUBLE) = try_cast(size_bytes AS BIGINT), size_bytes, NULL)::BIGINT,
            trim(etag, '"'), NULL
        FROM (
            SELECT {key} AS key, {size_bytes} AS size_bytes, {etag} AS etag, {bucket or "''"} AS bucket
            FROM {table.rows}
            WHERE coalesce(try_cast({table.find("is_latest") or "true"} AS BOOLEAN), true)
            AND NOT coalesce(try_cast({table.find("is_delete_marker") or "false"} AS BOOLEAN), false)
        ) WHERE {" AND ".join(f"({condition})" for condition in conditions)}
        """
    )


def _check(database: duckdb.DuckDBPyConnection, table_url: str, source_url: str) -> None:
    """Refuse what no listing holds."""
    for condition, what in (
        ("key IS NULL OR key = ''", "a row without a key"),
        ("size_bytes IS NULL OR size_bytes < 0", "no size in bytes for {key!r}"),
        ("etag IS NULL OR etag = ''", "no etag for {key!r}"),
        (
            "hash(key) IN (SELECT hash(key) AS hashed FROM listed GROUP BY hashed HAVING count(*) > 1) "
            "GROUP BY key HAVING count(*) > 1",
            "{key!r} twice (of an inventory of all versions, is_latest must be among the columns)",
        ),
    ):
        found = database.execute(f"SELECT key FROM listed WHERE {condition} LIMIT 1").fetchone()
        if found is not None:
            raise ValueError(f"{table_url} holds {what.format(key=found[0])}")
    if not count_rows(database, "FROM listed"):
        raise ValueError(f"{table_url} lists nothing in {source_url}")


def _write(rows: duckdb.DuckDBPyRelation, path: Path) -> int:
    count = 0
    with pq.ParquetWriter(path, LISTING_SCHEMA) as writer:
        for batch in in_batches(rows, LISTING_BATCH):
            writer.write_table(batch.cast(LISTING_SCHEMA))
            count += len(batch)
    return count


def _read_table(name: str, path: Path, csv_columns: Sequence[str] | None = None) -> _Table:
    """A local table, unpacked where it is gzipped: DuckDB takes one that is cut off for one that ends there."""
    try:
        kind = _kind(path)
        if kind == "orc":
            _convert_orc(path)
        if kind in ("orc", "parquet"):
            columns = pq.read_schema(path).names
            rows = scan([path], "binary_as_string = true")
            return _Table(name, path, rows, tuple(columns))
        if kind == "gzip":
            _unzip(path)
        columns = tuple(csv_columns or _read_header(path))
    except (OSError, EOFError, ValueError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"cannot read {name}: {explained(error)}") from error
    types = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in columns)
    rows = (
        f"read_csv({literal(str(path))}, columns = {{{types}}}, header = {csv_columns is None}, auto_detect = false, "
        f"delim = ',', quote = '\"', escape = '\"', hive_partitioning = false)"
    )
    return _Table(name, path, rows, columns, is_encoded=csv_columns is not None)


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    return next((kind for signature, kind in KINDS.items() if start.startswith(signature)), "csv")


def _read_header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    names = [name or f"column {number}" for number, name in enumerate(header, 1)]  # pandas gives its index no name
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("two columns have one name")
    return names


def _unzip(path: Path) -> None:
    unpacked = path.with_suffix(".csv")
    with gzip.open(path) as zipped, unpacked.open("wb") as file:
        shutil.copyfileobj(zipped, file, FETCH_BYTES)
    unpacked.replace(path)


def _convert_orc(path: Path) -> None:
    file, converted = orc.ORCFile(path), path.with_suffix(".parquet")
    columns = [
        name for name in file.schema.names if file.schema.field(name).type in (pa.string(), pa.int64(), pa.bool_())
    ]
    with pq.ParquetWriter(converted, pa.schema([file.schema.field(name) for name in columns])) as writer:
        for stripe in range(file.nstripes):
            writer.write_batch(file.read_stripe(stripe, columns))
    converted.replace(path)


def _fetch(store: Store, key: str, path: Path) -> str:
    """Stream an object to a local file; returns its MD5.

    Raises:
        StorageError: it cannot be read, or not all of it: a table that is cut may still be one.
    """
    md5, size_bytes = hashlib.md5(usedforsecurity=False), store.size(key)
    with path.open("wb") as file:
        for start in range(0, size_bytes, FETCH_BYTES):
            data = store.read_range(key, start, FETCH_BYTES)
            md5.update(data)
            file.write(data)
        if file.tell() != size_bytes:
            raise StorageError(f"{file.tell():,} bytes of {store.url}/{key} could be read, and it has {size_bytes:,}")
    return md5.hexdigest()


def _open(url: str) -> tuple[Store, str]:
    root, key = split_url(url)
    return open_store(root), key


def _open_data(manifest_url: str, bucket: str, key: str) -> tuple[Store, str]:
    """Where a file of an inventory lies: in its bucket, or beside the manifest where both have been downloaded."""
    if "://" in manifest_url:
        return open_store(f"{urlsplit(manifest_url).scheme}://{bucket}"), key
    for folder in Path(manifest_url).resolve().parents:
        if (folder / key).is_file():
            return open_store(str(folder)), key
    return open_store(f"s3://{bucket}"), key


def _bucket_and_prefix(source_url: str) -> tuple[str, str]:
    """The bucket of a source, and what its keys there begin with."""
    if "://" not in source_url:
        raise ValueError(f"an inventory lists a bucket, and the source is {source_url}")
    bucket, _, folder = source_url.split("://", 1)[1].partition("/")
    return bucket, f"{folder.strip('/')}/" if folder.strip("/") else ""


def _plain(name: str) -> str:
    """A column's name as all forms of an inventory have it in common: `ETag` and `e_tag`."""
    return name.replace("_", "").strip().lower()
