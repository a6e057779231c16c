"""Listings from tables of keys: our own, all forms of S3 Inventory, and what is wrong with the others."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import orc
from rows import row

from pipeline import key_table
from pipeline.errors import StorageError
from pipeline.key_table import write_listing_from_index, write_listing_from_table
from pipeline.local_store import LocalStore
from pipeline.records import DUPLICATE_OF, LISTING_SCHEMA, Outcome, PhotoRecord, SourceObject, index_table
from pipeline.subset import Split, Subset, split_of

SOURCE = "s3://photos/archive"
ODD_KEYS = ["a b+c.jpg", "100%.jpg", "写真/ünï.png", 'say "cheese".jpg', "it's,here.jpg", "a%2Fb", "👩‍👩‍👧.jpg"]
CSV_SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"


def listed(table: object, path: Path, source: str = SOURCE, **options: Any) -> list[SourceObject]:
    count = write_listing_from_table(str(table), source, path, **options)
    written = pq.read_table(path)
    assert (len(written), written.schema) == (count, LISTING_SCHEMA)
    return sorted((SourceObject(**found) for found in written.to_pylist()), key=lambda found: found.key)


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    return tmp_path / "listing.parquet"


def own_table(path: Path, keys: Iterable[str], **columns: list[object]) -> Path:
    """A table with the columns of a listing, in the form that its name says."""
    keys = list(keys)
    values = {"key": keys, "size_bytes": list(range(len(keys))), "etag": [f"e{n}" for n in range(len(keys))], **columns}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(values), path)
        return path
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(values)
    writer.writerows(zip(*values.values(), strict=True))
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# Our own


@pytest.mark.parametrize("name", ["keys.parquet", "keys.csv", "keys.csv.gz", "keys"])
def test_a_table_with_the_columns_of_a_listing_is_one(tmp_path: Path, listing: Path, name: str) -> None:
    table = own_table(tmp_path / name, ODD_KEYS)

    found = listed(table, listing)

    expected = [SourceObject(key, number, f"e{number}") for number, key in enumerate(ODD_KEYS)]
    assert found == sorted(expected, key=lambda expected: expected.key)


def test_keys_of_our_own_lie_below_any_source(tmp_path: Path, listing: Path) -> None:
    assert [found.key for found in listed(own_table(tmp_path / "t.csv", ["a/b.jpg"]), listing, "/photos")] == [
        "a/b.jpg"
    ]


def test_folders_and_what_is_to_be_left_out_are_not_listed(tmp_path: Path, listing: Path) -> None:
    table = own_table(tmp_path / "t.csv", ["2019/", "2019/a.jpg", "clean/images/a.jpg", "clean.jpg"])

    assert [found.key for found in listed(table, listing, leave_out="clean/")] == ["2019/a.jpg", "clean.jpg"]


def test_an_object_whose_name_is_that_of_a_folder_is_listed_if_it_holds_anything(tmp_path: Path, listing: Path) -> None:
    table = own_table(tmp_path / "t.csv", ["2019/", "photo/"])

    assert listed(table, listing) == [SourceObject("photo/", 1, "e1")]


def test_a_table_of_pandas_has_a_column_without_a_name(tmp_path: Path, listing: Path) -> None:
    (tmp_path / "t.csv").write_text(",key,size_bytes,etag\n0,a.jpg,3,e\n")

    assert listed(tmp_path / "t.csv", listing) == [SourceObject("a.jpg", 3, "e")]


def test_other_columns_and_other_spellings_do_no_harm(tmp_path: Path, listing: Path) -> None:
    pq.write_table(pa.table({"Size": [3.0], "E_Tag": ['"e"'], "camera": ["x"], "KEY": [b"\xc3\xa9"]}), tmp_path / "t")

    assert listed(tmp_path / "t", listing) == [SourceObject("é", 3, "e")]


def test_a_table_of_which_a_part_was_read_lists_nothing(
    tmp_path: Path, listing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, whole = own_table(tmp_path / "t.csv", ["a.jpg", "b.jpg"]), LocalStore.read_range
    monkeypatch.setattr(LocalStore, "read_range", lambda *asked: whole(*asked).rpartition(b"b.jpg")[0])

    with pytest.raises(StorageError, match=r"^\d+ bytes of \S+/t\.csv could be read, and it has \d+$"):
        listed(table, listing)


def test_a_table_can_lie_anywhere(memory_url: str, tmp_path: Path, listing: Path) -> None:
    data = own_table(tmp_path / "t.parquet", ["a.jpg"]).read_bytes()
    fsspec.filesystem("memory").pipe_file(f"{memory_url}/deep/t.parquet", data)

    assert [found.key for found in listed(f"{memory_url}/deep/t.parquet", listing)] == ["a.jpg"]


def test_a_large_table_streams(tmp_path: Path, listing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_table, "FETCH_BYTES", 100)
    monkeypatch.setattr(key_table, "LISTING_BATCH", 64)
    keys = [f"{number:04}.jpg" for number in range(200)]

    found = listed(own_table(tmp_path / "t.csv.gz", keys), listing)

    assert [one.key for one in found] == keys
    assert pq.ParquetFile(listing).metadata.num_row_groups > 1


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), unique=True, max_size=8))
def test_any_key_survives_in_each_form(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    keys = [key for key in keys if key and not key.endswith("/")] or ["a"]
    inventory = Inventory(folder, "CSV", [{"key": f"archive/{key}"} for key in keys])

    for table in (own_table(folder / "t.parquet", keys), own_table(folder / "t.csv.gz", keys), inventory.manifest):
        assert {found.key for found in listed(table, folder / "listing")} == set(keys)


# S3 Inventory


class Inventory:
    """An inventory as S3 writes it, downloaded: a manifest, and files of rows in one of the three formats."""

    def __init__(self, root: Path, kind: str, rows: list[dict[str, Any]], *, files: int = 1) -> None:
        defaults = {
            "bucket": "photos",
            "version_id": "v",
            "is_latest": True,
            "is_delete_marker": False,
            "size": 7,
            "last_modified_date": "2026-11-01T00:00:00.000Z",
            "e_tag": "e",
            "storage_class": "STANDARD",
        }
        self.root = root
        self.kind = kind
        self.rows = [{**defaults, **row} for row in rows]
        folder = root / "inventories/photos/daily"
        (folder / "data").mkdir(parents=True)
        (folder / "2026-11-01T00-00Z").mkdir()
        self.files = [folder / f"data/{number}.{kind.lower()}" for number in range(files)]
        for number, path in enumerate(self.files):
            path.write_bytes(self._data(self.rows[number::files]))
        self.manifest = folder / "2026-11-01T00-00Z/manifest.json"
        self.write_manifest()

    def write_manifest(self, **values: object) -> None:
        files = [
            {
                "key": path.relative_to(self.root).as_posix(),
                "size": path.stat().st_size,
                "MD5checksum": hashlib.md5(path.read_bytes()).hexdigest(),
            }
            for path in self.files
        ]
        manifest = {
            "sourceBucket": "photos",
            "destinationBucket": "arn:aws:s3:::inventories-of-photos",
            "version": "2016-11-30",
            "creationTimestamp": "1793491200000",
            "fileFormat": self.kind,
            "fileSchema": CSV_SCHEMA if self.kind == "CSV" else "message s3.inventory { required binary key (UTF8); }",
            "files": files,
        }
        self.manifest.write_text(json.dumps({**manifest, **values}))

    def _data(self, rows: list[dict[str, Any]]) -> bytes:
        buffer = io.BytesIO()
        if self.kind == "CSV":
            text = io.StringIO()
            names = [
                "bucket",
                "key",
                "version_id",
                "is_latest",
                "is_delete_marker",
                "size",
                "last_modified_date",
                "e_tag",
            ]
            for found in rows:
                values = {**found, "key": quote_plus(found["key"], safe="/")}
                cells = ["" if values[name] is None else str(values[name]) for name in [*names, "storage_class"]]
                cells[3], cells[4] = cells[3].lower(), cells[4].lower()
                csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(cells)
            return gzip.compress(text.getvalue().encode())
        table = pa.Table.from_pylist(rows)
        if self.kind == "ORC":
            orc.write_table(table, buffer, compression="zlib")
        else:
            pq.write_table(table, buffer)
        return buffer.getvalue()


@pytest.mark.parametrize("kind", ["CSV", "ORC", "Parquet"])
def test_an_inventory_is_read_by_its_manifest(tmp_path: Path, listing: Path, kind: str) -> None:
    rows = [{"key": f"archive/{key}", "size": number, "e_tag": key} for number, key in enumerate(ODD_KEYS)]
    inventory = Inventory(tmp_path, kind, rows, files=3)

    found = listed(inventory.manifest, listing)

    expected = [SourceObject(key, number, key.strip('"')) for number, key in enumerate(ODD_KEYS)]
    assert found == sorted(expected, key=lambda expected: expected.key)


@pytest.mark.parametrize("kind", ["CSV", "ORC", "Parquet"])
def test_only_the_newest_photos_of_the_source_are_taken(tmp_path: Path, listing: Path, kind: str) -> None:
    rows = [
        {"key": "archive/a.jpg", "e_tag": "new"},
        {"key": "archive/a.jpg", "e_tag": "old", "is_latest": False},
        {"key": "archive/gone.jpg", "size": None, "e_tag": None, "is_delete_marker": True},
        {"key": "archive/2019/", "size": 0},
        {"key": "archived/b.jpg"},
        {"key": "archive/c.jpg", "bucket": "others"},
        {"key": "archive/clean/images/a.jpg"},
    ]
    inventory = Inventory(tmp_path, kind, rows)

    assert listed(inventory.manifest, listing, leave_out="clean/") == [SourceObject("a.jpg", 7, "new")]


def test_an_inventory_of_a_whole_bucket_keeps_its_keys(tmp_path: Path, listing: Path) -> None:
    inventory = Inventory(tmp_path, "Parquet", [{"key": "archive/a.jpg"}])

    assert [found.key for found in listed(inventory.manifest, listing, "s3://photos")] == ["archive/a.jpg"]


def test_a_file_of_an_inventory_that_says_its_columns_needs_no_manifest(tmp_path: Path, listing: Path) -> None:
    inventory = Inventory(tmp_path, "Parquet", [{"key": "archive/a%20b.jpg"}])

    assert [found.key for found in listed(inventory.files[0], listing)] == ["a%20b.jpg"]


def test_an_inventory_is_found_in_its_bucket(s3_bucket: str, tmp_path: Path, listing: Path) -> None:
    inventory = Inventory(tmp_path / "local", "CSV", [{"key": f"archive/{number}.jpg"} for number in range(5)], files=2)
    inventory.write_manifest(destinationBucket=f"arn:aws:s3:::{s3_bucket.removeprefix('s3://')}")
    s3 = fsspec.filesystem("s3", skip_instance_cache=True)
    for path in (inventory.manifest, *inventory.files):
        s3.pipe_file(f"{s3_bucket}/{path.relative_to(inventory.root)}", path.read_bytes())

    found = listed(f"{s3_bucket}/{inventory.manifest.relative_to(inventory.root)}", listing)

    assert [one.key for one in found] == [f"{number}.jpg" for number in range(5)]


def test_a_file_that_changed_on_its_way_is_refused(tmp_path: Path, listing: Path) -> None:
    inventory = Inventory(tmp_path, "Parquet", [{"key": "archive/a.jpg"}])
    inventory.files[0].write_bytes(inventory.files[0].read_bytes() + b" ")

    with pytest.raises(StorageError, match=r"data/0\.parquet is not the file that .*manifest\.json speaks of"):
        listed(inventory.manifest, listing)


def test_the_inventory_of_another_bucket_is_refused(tmp_path: Path, listing: Path) -> None:
    inventory = Inventory(tmp_path, "CSV", [{"key": "archive/a.jpg"}])

    with pytest.raises(
        ValueError, match="is the inventory of the bucket photos, and the source is s3://others/archive"
    ):
        listed(inventory.manifest, listing, "s3://others/archive")
    with pytest.raises(ValueError, match="an inventory lists a bucket, and the source is /photos/archive"):
        listed(inventory.manifest, listing, "/photos/archive")


# What is wrong


GOOD = "key,size_bytes,etag\na.jpg,1,e\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "has no column key and no size_bytes and no etag"),
        ("key,etag\na,e\n", r"has no column size_bytes \(it has key, etag\): a table needs key, size_bytes and etag"),
        ("name,size_bytes,etag\na,1,e\n", r"has no column key \(it has name, size_bytes, etag\)"),
        ('"photos","archive/a.jpg","7"\n', "has no column key .*name its manifest.json"),
        ("key,key,etag\n", "two columns have one name"),
        ("key,size_bytes,etag,ETag\na.jpg,1,e,e\n", "two columns have one name"),
        ("key,size_bytes,etag\n", "lists nothing in s3://photos/archive"),
        ("key,size_bytes,etag\na.jpg,-1,e\n", "no size in bytes for 'a.jpg'"),
        ("key,size_bytes,etag\na.jpg,1.5,e\n", "no size in bytes for 'a.jpg'"),
        ("key,size_bytes,etag\na.jpg,many,e\n", "no size in bytes for 'a.jpg'"),
        ("key,size_bytes,etag\na.jpg,,e\n", "no size in bytes for 'a.jpg'"),
        ("key,size_bytes,etag\na.jpg,1,\n", "no etag for 'a.jpg'"),
        ("key,size_bytes,etag\n,1,e\n", "a row without a key"),
        ("key,size_bytes,etag\na.jpg,1,e\nb.jpg,1,e\na.jpg,2,f\n", "holds 'a.jpg' twice"),
        ("key,size_bytes,etag\na.jpg,1\n", "CSV Error on Line: 2 .*Expected Number of Columns: 3"),
        ('key,size_bytes,etag\n"a.jpg,1,e\n', "unterminated quote"),
        (b"key,size_bytes,etag\n\xff.jpg,1,e\n", "utf-8"),
        (b"\xff\xfek\0e\0y\0", "can't decode"),
        (gzip.compress(GOOD.encode(), mtime=0)[:-9], "end-of-stream"),
        (gzip.compress(GOOD.encode(), mtime=0)[:-8] + b"12345678", "CRC check failed"),
        (b"\x1f\x8b is no gzip", "cannot read .*table"),
        (b"PAR1 is no Parquet", "cannot read .*table"),
        (b"ORC or not", "cannot read .*table"),
        ("{}", "is no manifest of an S3 Inventory"),
        pytest.param('{"a":' * 100_000, "is no manifest of an S3 Inventory", id="nested"),
        ('{"sourceBucket": "photos", "destinationBucket": 3}', "is no manifest of an S3 Inventory"),
        ('{"name": ', "is no manifest of an S3 Inventory"),
    ],
    ids=repr,
)
def test_a_wrong_table_is_one_clear_line(tmp_path: Path, listing: Path, data: str | bytes, reason: str) -> None:
    table = tmp_path / "table"
    table.write_bytes(data.encode() if isinstance(data, str) else data)

    with pytest.raises(ValueError, match=reason) as caught:
        listed(table, listing)

    assert str(table) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not listing.exists()


def test_a_table_that_is_not_there_is_named(tmp_path: Path, listing: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no table at .*/nowhere\.csv"):
        listed(tmp_path / "nowhere.csv", listing)


def test_a_file_of_an_inventory_that_is_not_there_is_named(s3_bucket: str, tmp_path: Path, listing: Path) -> None:
    inventory = Inventory(tmp_path, "CSV", [{"key": "archive/a.jpg"}])
    inventory.write_manifest(
        destinationBucket=s3_bucket.removeprefix("s3://"), files=[{"key": "none.csv.gz", "size": 1, "MD5checksum": "0"}]
    )

    with pytest.raises(StorageError, match=r"none\.csv\.gz"):
        listed(inventory.manifest, listing)


# An image set


def of_set(tmp_path: Path, listing: Path, subset: Subset, *rows: PhotoRecord, is_packed: bool = True) -> dict[str, Any]:
    """What is listed of an index with these rows, by key."""
    pq.write_table(index_table(rows), tmp_path / "index.parquet")
    count = write_listing_from_index([tmp_path / "index.parquet"], subset, listing, is_packed=is_packed)
    written = pq.read_table(listing)
    assert (len(written), written.schema) == (count, LISTING_SCHEMA)
    return {found["key"]: SourceObject(**found) for found in written.to_pylist()}


def test_an_image_set_is_listed_by_its_photos(tmp_path: Path, listing: Path) -> None:
    rows = row("a.jpg", output_key="shards/s.parquet"), row("c.jpg", outcome=Outcome.REJECTED)

    packed = of_set(tmp_path, listing, Subset(), *rows)
    alone = of_set(tmp_path, listing, Subset(), row("a.jpg"), is_packed=False)

    assert packed == {"a.jpg": SourceObject("a.jpg", 9, "result of a.jpg", "shards/s.parquet")}
    assert alone == {"a.jpg": SourceObject("a.jpg", 9, "result of a.jpg", None)}


def test_a_subset_of_an_image_set_is_listed(tmp_path: Path, listing: Path) -> None:
    rows = [row(f"{number}.jpg", iso=100 * number) for number in range(20)]
    subset = Subset(where="iso <= 1000", split=Split.VALIDATION, validation_fraction=0.5)

    found = of_set(tmp_path, listing, subset, *rows)

    expected = {f"{number}.jpg" for number in range(11) if split_of(f"{number}.jpg", 0.5) == Split.VALIDATION}
    assert 0 < len(expected) < 11
    assert set(found) == expected


def test_an_index_of_an_older_degrain_is_listed_as_if_nothing_were_known_of_its_new_columns(
    tmp_path: Path, listing: Path
) -> None:
    older = index_table([row("a.jpg")]).drop_columns(["iso", "megapixels", DUPLICATE_OF])
    pq.write_table(older, tmp_path / "index.parquet")

    def count(where: str) -> int:
        subset = Subset(where=where)
        return write_listing_from_index(
            [tmp_path / "index.parquet"], subset, listing, is_packed=False, is_distinct=True
        )

    assert [count(where) for where in ("", "iso <= 400", "iso <= 400 OR iso IS NULL")] == [1, 0, 1]


def test_a_filter_that_meets_what_it_cannot_compare_is_one_clear_line(tmp_path: Path, listing: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot filter by 'camera::INT > 3': .*Could not convert string 'Leica'"):
        of_set(tmp_path, listing, Subset(where="camera::INT > 3"), row("a.jpg", camera="Leica"))
