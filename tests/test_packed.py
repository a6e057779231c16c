"""Packed shards: what is written is read by key, by nothing but the row groups that hold it, and by other libraries."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from photos import saved, scene
from PIL import Image
from rows import row

from pipeline import packed
from pipeline.errors import ObjectMissing, ObjectRefused, StorageError
from pipeline.footer import MARK
from pipeline.local_store import LocalStore
from pipeline.packed import PackedReader, PackedWriter
from pipeline.records import PACKED_SCHEMA, Outcome, SourceObject, index_table

PLACE = "shards/s1.parquet"


def shard_of(photos: dict[str, bytes]) -> bytes:
    writer = PackedWriter()
    for key, photo in photos.items():
        writer.add(row(key, outcome=Outcome.PACKED, output_key=PLACE, iso=100, width_px=48, height_px=48), photo)
    return writer.finish()


class Counting(LocalStore):
    """Notes how much of its objects is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read_bytes = 0
        self.is_down = False

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if self.is_down:
            raise StorageError("the store is down")
        self.read_bytes += length
        return super().read_range(key, start, length)


def wanted(*keys: str, place: str = PLACE) -> list[SourceObject]:
    return [SourceObject(key, 1, "etag", place) for key in keys]


def found(store: LocalStore, photos: list[SourceObject]) -> dict[str, bytes | ObjectRefused]:
    return {photo.key: data for photo, data in PackedReader(store).read_many(photos)}


@pytest.fixture
def photos() -> dict[str, bytes]:
    """Twenty photos of about 10 kB, in the order of their keys."""
    draw = np.random.default_rng(0)
    return {f"2019/é {number:02}.jpg": draw.bytes(10_000 + number) for number in range(20)}


@pytest.fixture
def store(tmp_path: Path, photos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Counting:
    """A store with those photos in one shard of five row groups."""
    monkeypatch.setattr(packed, "ROW_GROUP_BYTES", 45_000)
    store = Counting(tmp_path)
    store.write(PLACE, shard_of(photos))
    return store


def test_a_shard_holds_the_photos_as_they_are_beside_their_rows() -> None:
    rows = [row("2019/a.jpg", width_px=1), row("写真.png")]
    writer = PackedWriter()
    for record, photo in zip(rows, [bytes(range(256)), b""], strict=True):
        writer.add(record, photo)

    table = pq.read_table(io.BytesIO(writer.finish()))

    assert table["image"].to_pylist() == [
        {"bytes": bytes(range(256)), "path": "2019/a.jpg"},
        {"bytes": b"", "path": "写真.png"},
    ]
    assert table.drop_columns("image").equals(index_table(rows).select(PACKED_SCHEMA.names[1:]))


@pytest.mark.parametrize("photos", [{}, {"a.jpg": b"1"}], ids=["empty", "one"])
def test_a_shard_says_that_its_images_are_images(photos: dict[str, bytes]) -> None:
    schema = pq.read_schema(io.BytesIO(shard_of(photos)))

    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    assert schema.equals(PACKED_SCHEMA)


def test_the_same_photos_give_the_same_bytes(photos: dict[str, bytes]) -> None:
    assert shard_of(photos) == shard_of(photos)


def test_row_groups_are_of_bounded_size_whatever_the_size_of_one_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "ROW_GROUP_BYTES", 100)
    monkeypatch.setattr(packed, "ROW_GROUP_PHOTOS", 3)
    sizes = {"a": 60, "b": 40, "c": 1, "d": 500, "e": 1, "f": 1, "g": 1, "h": 1}

    metadata = pq.read_metadata(io.BytesIO(shard_of({key: bytes(size) for key, size in sizes.items()})))

    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [2, 1, 1, 3, 1]


def test_photos_are_found_by_their_keys_in_the_order_asked(store: Counting, photos: dict[str, bytes]) -> None:
    keys = [list(photos)[number] for number in (0, 1, 2, 7, 8, 19, 3)]

    assert list(found(store, wanted(*keys)).items()) == [(key, photos[key]) for key in keys]


def test_only_the_footer_and_the_row_group_of_a_photo_are_read(store: Counting, photos: dict[str, bytes]) -> None:
    key = list(photos)[9]

    found(store, wanted(key))

    footer_bytes = 65_536
    assert store.read_bytes < footer_bytes + 50_000 < store.size(PLACE)


def test_a_row_group_is_read_once_though_keys_alternate_between_shards(
    store: Counting, photos: dict[str, bytes]
) -> None:
    store.write("shards/s2.parquet", shard_of(photos))
    keys = list(photos)[:4]
    found(store, [*wanted(keys[0]), *wanted(keys[0], place="shards/s2.parquet")])
    once, store.read_bytes = store.read_bytes, 0

    alternating = [*wanted(*keys), *wanted(*keys, place="shards/s2.parquet")]
    found(store, sorted(alternating, key=lambda photo: photo.key))

    assert store.read_bytes == once


def test_what_is_not_there_or_damaged_stands_in_its_place(store: Counting, photos: dict[str, bytes]) -> None:
    key = next(iter(photos))
    store.write("shards/cut.parquet", shard_of(photos)[:-9])
    store.write("shards/empty.parquet", b"")
    damaged = bytearray(shard_of(photos))
    damaged[20:40_000] = bytes(39_980)
    store.write("shards/damaged.parquet", bytes(damaged))
    places = ["shards/none.parquet", "shards/cut.parquet", "shards/empty.parquet", "shards/damaged.parquet"]

    results = dict(PackedReader(store).read_many([photo for place in places for photo in wanted(key, place=place)]))

    by_place = {photo.place: data for photo, data in results.items()}
    assert isinstance(by_place["shards/none.parquet"], ObjectMissing)
    for place in places[1:3]:
        assert isinstance(by_place[place], ObjectRefused)
        assert f"{place} is damaged: " in str(by_place[place])
    assert by_place["shards/damaged.parquet"] != photos[key]
    assert isinstance(found(store, wanted("0", "2019/é 05 and a half.jpg", "z"))["z"], ObjectMissing)


@pytest.mark.parametrize("word", [b"2019/", b"image"], ids=["keys", "a column"])
def test_a_footer_whose_words_are_damaged_is_that_of_a_damaged_shard(
    store: Counting, photos: dict[str, bytes], word: bytes
) -> None:
    key, data = next(iter(photos)), shard_of(photos)
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
    rotten = data.removesuffix(footer) + footer.replace(word, b"\xff" + word[1:])
    store.write("shards/rotten.parquet", rotten)

    result = found(store, wanted(key, place="shards/rotten.parquet"))[key]

    assert "rotten.parquet is damaged: " in str(result)


def test_a_byte_that_rots_among_the_rows_of_a_shard_is_damage_and_no_other_value(store: Counting) -> None:
    data = shard_of({"a.jpg": b"photo"})
    for number in range(1, len(PACKED_SCHEMA.names) + 1):
        column = pq.read_metadata(io.BytesIO(data)).row_group(0).column(number)
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        rotten = bytearray(data)
        rotten[start + column.total_compressed_size - 1] ^= 1
        store.write("shards/rotten.parquet", bytes(rotten))

        with pytest.raises(ObjectRefused, match=r"rotten.parquet is damaged: "):
            PackedReader(store).read_rows("shards/rotten.parquet")


def test_a_bit_that_rots_in_a_footer_is_damage_and_no_other_value(store: Counting) -> None:
    data = shard_of({"a.jpg": b"photo"})
    footer_bytes = 8 + int.from_bytes(data[-8:-4], "little")
    for place in range(1, footer_bytes + 1):
        rotten = bytearray(data)
        rotten[-place] ^= 1 << place % 8
        store.write(PLACE, bytes(rotten))

        with pytest.raises(ObjectRefused, match=r"s1.parquet is damaged: "):
            PackedReader(store).read_rows(PLACE)
        assert isinstance(found(store, wanted("a.jpg"))["a.jpg"], ObjectRefused)


def test_a_column_whose_name_rots_is_damage_and_one_of_another_degrain_is_none(store: Counting) -> None:
    data = shard_of({"a.jpg": b"photo"})
    table = pq.read_table(io.BytesIO(data))
    older, newer = (io.BytesIO() for _ in range(2))
    pq.write_table(table.drop_columns("iso"), older)
    pq.write_table(table.append_column("mood", [["merry"]]), newer)
    rotten = data.replace(b"iso", b"ico").replace(MARK, bytes(len(MARK)))  # as of a degrain that knew no hash of it
    for name, shard in (("older", older.getvalue()), ("newer", newer.getvalue()), ("r", rotten)):
        store.write(f"shards/{name}.parquet", shard)

    keys = [PackedReader(store).read_rows(f"shards/{name}.parquet")["key"].to_pylist() for name in ("older", "newer")]

    assert keys == [["a.jpg"]] * 2
    with pytest.raises(ObjectRefused, match="it has the columns"):
        PackedReader(store).read_rows("shards/r.parquet")


def test_a_photo_that_rots_takes_no_neighbour_with_it(store: Counting, photos: dict[str, bytes]) -> None:
    key, photo = next(iter(photos.items()))
    store.write(PLACE, shard_of(photos).replace(photo, photo[:-1] + bytes([photo[-1] ^ 1])))

    read = found(store, wanted(*photos))

    assert [each for each in photos if read[each] != photos[each]] == [key]


def test_a_shard_that_goes_while_it_is_read_refuses_the_rest_of_its_photos(
    store: Counting, photos: dict[str, bytes]
) -> None:
    store.write("shards/s2.parquet", shard_of({"z.jpg": b"photo"}))
    reader = PackedReader(store).read_many([*wanted(*photos), *wanted("z.jpg", place="shards/s2.parquet")])
    first = [next(reader)]
    store.delete(PLACE)

    read = {photo.key: data for photo, data in [*first, *reader]}

    assert list(read) == [*photos, "z.jpg"]
    assert isinstance(read["2019/é 19.jpg"], ObjectMissing)
    assert read["z.jpg"] == b"photo"


def test_a_store_that_is_down_is_no_photos_fault(store: Counting, photos: dict[str, bytes]) -> None:
    reader = PackedReader(store).read_many(wanted(*photos))
    next(reader)
    store.is_down = True

    with pytest.raises(StorageError, match="the store is down"):
        list(reader)


def test_a_reader_that_is_left_early_stops(store: Counting, photos: dict[str, bytes]) -> None:
    reader: Iterator[object] = PackedReader(store).read_many(wanted(*photos))
    next(reader)
    read = store.read_bytes

    del reader

    assert read < store.size(PLACE)


# What other libraries make of a shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two shards with three PNG photos."""
    for name, seeds in (("s1", (0, 1)), ("s2", (2,))):
        shard = shard_of({f"{seed}.png": saved(scene(seed=seed), "PNG") for seed in seeds})
        LocalStore(tmp_path).write(f"shards/{name}.parquet", shard)
    return tmp_path / "shards"


def assert_is_photo(data: bytes, seed: int) -> None:
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), scene(seed=seed))


def test_pandas_opens_it(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")

    frame = pandas.read_parquet(folder, columns=["key", "image", "iso"]).set_index("key")

    assert_is_photo(frame.loc["2.png", "image"]["bytes"], 2)
    assert frame["iso"].tolist() == [100] * 3


def test_polars_opens_it(folder: Path) -> None:
    polars = pytest.importorskip("polars")

    frame = polars.scan_parquet(folder / "*.parquet").filter(polars.col("key") == "2.png").collect()

    assert_is_photo(frame["image"].struct.field("bytes")[0], 2)
    assert frame["iso"].to_list() == [100]


def test_duckdb_opens_it(folder: Path) -> None:
    import duckdb

    [(data, iso)] = duckdb.sql(f"SELECT image.bytes, iso FROM '{folder}/*.parquet' WHERE key = '2.png'").fetchall()

    assert_is_photo(data, 2)
    assert iso == 100


@pytest.mark.slow
def test_ray_data_opens_it(folder: Path) -> None:
    script = f"""
import hashlib, logging, ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8, logging_level="ERROR", log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
rows = ray.data.read_parquet({str(folder)!r}).take_all()
for row in sorted(rows, key=lambda row: row["key"]):
    print("ROW", row["key"], hashlib.sha256(row["image"]["bytes"]).hexdigest(), row["iso"])
"""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=folder
    )

    hashes = [hashlib.sha256(saved(scene(seed=seed), "PNG")).hexdigest() for seed in range(3)]
    rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ROW")]
    assert rows == [[f"{seed}.png", hashes[seed], "100"] for seed in range(3)]


def test_hugging_face_datasets_decodes_it(folder: Path) -> None:
    pytest.importorskip("datasets")
    script = f"""
import datasets
datasets.disable_progress_bars()
photos = datasets.load_dataset("parquet", data_files={str(folder / "*.parquet")!r}, split="train", cache_dir="cache")
assert photos.features["image"] == datasets.Image()
for photo in photos.sort("key"):
    print(photo["key"], photo["image"].size, photo["image"].getpixel((5, 7)), photo["iso"])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=folder
    )

    pixels = [tuple(int(level) for level in scene(seed=seed)[7, 5]) for seed in range(3)]
    assert done.stdout.splitlines() == [f"{seed}.png (48, 48) {pixels[seed]} 100" for seed in range(3)]
