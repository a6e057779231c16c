"""The hash before a footer: no reader of Parquet minds it, and no bit of a footer rots unseen."""

import io
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import footer
from pipeline.footer import MARK, mark_footer, read_footer


def parquet(columns: int = 1) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({f"column {number}": [1, 2, 3] for number in range(columns)}), file)
    return file.getvalue()


def marked(data: bytes) -> bytes:
    file = io.BytesIO(data)
    mark_footer(file)
    return file.getvalue()


def footer_of(data: bytes) -> bytes:
    return read_footer(len(data), lambda start, length: data[start : start + length])


def test_a_file_with_the_hash_is_read_by_others_as_before(tmp_path: Path) -> None:
    path = tmp_path / "marked.parquet"
    path.write_bytes(marked(parquet()))

    assert pq.read_table(path).equals(pq.read_table(io.BytesIO(parquet())))
    assert duckdb.sql(f"SELECT sum(\"column 0\") FROM '{path}'").fetchall() == [(6,)]


@pytest.mark.parametrize("columns", [1, 900], ids=["short", "longer than what is read at once"])
def test_the_footer_is_what_follows_the_hash(columns: int) -> None:
    data = marked(parquet(columns))

    found = footer_of(data)

    assert data.endswith(MARK + data[-len(found) - footer.HASH_BYTES : -len(found)] + found)
    assert pq.read_metadata(io.BytesIO(found)).num_columns == columns


def test_a_bit_that_rots_in_a_footer_or_its_hash_is_damage() -> None:
    data = marked(parquet())
    for place in range(1, len(footer_of(data)) + footer.HASH_BYTES + 1):
        rotten = bytearray(data)
        rotten[-place] ^= 1 << place % 8

        with pytest.raises((ValueError, OSError, pa.ArrowException)):
            pq.read_metadata(io.BytesIO(footer_of(bytes(rotten))))


@pytest.mark.parametrize("rows", [0, 3])
def test_a_footer_without_a_hash_is_that_of_an_older_degrain(rows: int) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"key": ["a.jpg"] * rows}), file)

    assert pq.read_metadata(io.BytesIO(footer_of(file.getvalue()))).num_rows == rows


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\xff" * 100])
def test_what_has_no_footer_is_damaged(data: bytes) -> None:
    with pytest.raises(ValueError, match="its footer would have"):
        footer_of(data)
