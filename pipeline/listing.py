"""The listing of a source as a Parquet file, written as a stream."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import LISTING_SCHEMA, SourceObject

LISTING_BATCH = 50_000  # rows held while a listing streams to its file


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


def _listing_table(batch: Sequence[SourceObject]) -> pa.Table:
    columns = [[getattr(listed, name) for listed in batch] for name in LISTING_SCHEMA.names]
    arrays = [pa.array(values, column.type) for values, column in zip(columns, LISTING_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=LISTING_SCHEMA)
