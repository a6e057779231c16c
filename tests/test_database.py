"""DuckDB as we open it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.database import open_database, scan


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    sizes = []
    with open_database(tmp_path) as database:
        for key, etag in (("a.jpg", "a longer etag"), ("a longer name", "e.tag")):  # other offsets, and one size
            pq.write_table(pa.table({"key": [key], "etag": [etag]}), path, use_dictionary=False, write_statistics=False)
            sizes.append(path.stat().st_size)
            assert database.sql(f"FROM {scan([path])}").fetchall() == [(key, etag)]
    assert sizes[0] == sizes[1]
