"""DuckDB as we open it."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Tokyo"])
def test_a_time_without_a_zone_is_the_same_instant_on_each_machine(zone: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.database import open_database\n"
        "print(open_database(Path(sys.argv[1])).sql(\"SELECT epoch('2026-12-01 04:00:00'::TIMESTAMPTZ)\").fetchall())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "TZ": zone},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[(1796097600.0,)]\n"
