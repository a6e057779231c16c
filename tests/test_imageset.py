"""Image sets: started once, committed once, published again and again, and whole whatever dies in between."""

import io
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import imageset, index
from pipeline.errors import ImageSetError, ObjectExists, ObjectMissing
from pipeline.imageset import MANIFEST, ImageSet, parse_commit
from pipeline.local_store import LocalStore
from pipeline.manifest import Manifest
from pipeline.records import INDEX_SCHEMA, Layout, Outcome, PhotoRecord, index_table
from pipeline.storage import Store, open_store

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SOURCE = "s3://photos"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each store in turn; a local one's folder is yet to be made."""
    if request.param == "local":
        return open_store(str(tmp_path / "target"))
    return open_store(request.getfixturevalue("memory_url"))


def test_folders_for_temporary_files_whose_names_look_like_columns_change_no_row(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights=v2" / "run=7" / "key=k"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for run in ("run-1", "run-2"):
        images.commit(run, [row(f"{run}.jpg", run)])
        images.publish(run, [run])
    found = [(each["key"], each["weights"], each["run"]) for each in published(images).to_pylist()]
    assert sorted(found) == [("run-1.jpg", "w1", "run-1"), ("run-2.jpg", "w1", "run-2")]


@pytest.fixture
def images(store: Store) -> ImageSet:
    """A set that has just been started."""
    images = ImageSet(store)
    images.open_for(SOURCE, Layout.FILES)
    return images


def row(key: str, run: str = "run-1", *, outcome: Outcome = Outcome.DENOISED, **columns: Any) -> PhotoRecord:
    values: dict[str, Any] = {"source_etag": "e1", "attempts": 1, **columns}
    return PhotoRecord(
        key=key,
        source_size_bytes=1,
        outcome=outcome,
        weights="w1",
        parameters="p1",
        run=run,
        shard="s",
        finished_at=NOW,
        **values,
    )


def commit(images: ImageSet, shards: dict[str, Sequence[PhotoRecord]]) -> None:
    for shard, rows in shards.items():
        images.commit(shard, rows)


def keys(store: Store, folder: str) -> list[str]:
    return sorted(found.key for found in store.list(folder))


def published(images: ImageSet) -> pa.Table:
    """What a reader finds who follows the manifest."""
    manifest = images.read_manifest()
    assert manifest is not None
    parts = [pq.read_table(io.BytesIO(images.store.read(key))) for key in manifest.index]
    return pa.concat_tables(parts) if parts else INDEX_SCHEMA.empty_table()


def runs_by_key(images: ImageSet) -> dict[str, str]:
    table = published(images)
    assert len(set(table["key"].to_pylist())) == table.num_rows
    return dict(zip(table["key"].to_pylist(), table["run"].to_pylist(), strict=True))


# Started once


def test_an_empty_place_becomes_a_set_that_opens_again(store: Store) -> None:
    images = ImageSet(store)
    assert images.read_manifest() is None

    started = images.open_for(SOURCE, Layout.PACKED)

    assert started == Manifest(source=SOURCE, layout=Layout.PACKED)
    assert images.open_for(SOURCE, Layout.PACKED) == images.read_manifest() == started


def test_checking_a_place_writes_nothing(store: Store) -> None:
    images = ImageSet(store)

    assert images.check_for(SOURCE, Layout.FILES) == Manifest(source=SOURCE, layout=Layout.FILES)
    assert keys(store, "") == []


def test_a_set_of_another_source_is_refused_and_stays(images: ImageSet) -> None:
    with pytest.raises(ValueError, match="holds the photos of s3://photos, not of s3://others: name another target"):
        images.open_for("s3://others", Layout.FILES)

    assert images.read_manifest() == Manifest(source=SOURCE, layout=Layout.FILES)


def test_a_set_of_another_layout_is_refused(images: ImageSet) -> None:
    with pytest.raises(ValueError, match="has the layout 'files': it cannot become 'packed'"):
        images.open_for(SOURCE, Layout.PACKED)


def test_a_folder_with_other_things_in_it_is_refused_and_left_as_it_was(store: Store) -> None:
    store.write("holiday/a.jpg", b"mine")

    with pytest.raises(ValueError, match=r"is not empty \(it holds holiday/a\.jpg\)"):
        ImageSet(store).open_for(SOURCE, Layout.FILES)

    assert keys(store, "") == ["holiday/a.jpg"]


SOUND = {
    "format": "degrain image set",
    "version": 1,
    "source": SOURCE,
    "layout": "files",
    "run": "",
    "index": [],
    "counts": {},
    "published_at": "",
}


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "another thing"},
        {"version": 2},
        {"layout": "fi\nles"},
        {"index": "index/part-0.parquet"},
        {"index": [7]},
        {"counts": {"eaten": 1}},
        {"counts": {"denoised": "many"}},
        {"source": None},
        {"unheard\nof": 1},
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be_trusted_is_one_clear_line(store: Store, damage: dict[str, object]) -> None:
    store.write(MANIFEST, json.dumps({**SOUND, **damage}).encode())

    with pytest.raises(ImageSetError, match=f"^{store.url}") as caught:
        ImageSet(store).open_for(SOURCE, Layout.FILES)

    assert str(caught.value).isprintable()


@pytest.mark.parametrize("missing", SOUND)
def test_a_manifest_without_a_field_is_damaged_unless_the_field_has_a_default(store: Store, missing: str) -> None:
    store.write(MANIFEST, json.dumps({name: value for name, value in SOUND.items() if name != missing}).encode())

    if missing in ("run", "published_at"):
        assert ImageSet(store).read_manifest() == Manifest(source=SOURCE, layout=Layout.FILES)
    else:
        with pytest.raises(ImageSetError):
            ImageSet(store).read_manifest()


def test_a_manifest_cut_short_anywhere_is_damaged(images: ImageSet) -> None:
    whole = images.store.read(MANIFEST).rstrip()

    for length in range(len(whole)):
        images.store.write(MANIFEST, whole[:length])
        with pytest.raises(ImageSetError, match="damaged"):
            images.read_manifest()


@pytest.mark.parametrize(
    "data", [b"null", b"[]", b'"text"', b"\xff\xfe", b"PAR1", b"[" * 100_000], ids=lambda data: repr(data[:9])
)
def test_a_manifest_that_is_something_else_is_damaged(store: Store, data: bytes) -> None:
    store.write(MANIFEST, data)

    with pytest.raises(ImageSetError, match="damaged"):
        ImageSet(store).read_manifest()


# Planned and committed once


def test_a_plan_is_frozen(images: ImageSet, tmp_path: Path) -> None:
    first, second = index_table([row("first.jpg")]), index_table([row("second.jpg")])
    pq.write_table(first, tmp_path / "plan")
    images.write_plan("run-1", tmp_path / "plan")
    pq.write_table(second, tmp_path / "plan")

    with pytest.raises(ObjectExists):
        images.write_plan("run-1", tmp_path / "plan")
    assert pq.read_table(io.BytesIO(images.read_plan("run-1"))).equals(first)


@pytest.mark.parametrize("place", [4, 300, -9], ids=["page", "another page", "footer"])
def test_a_plan_that_is_damaged_anywhere_is_named(images: ImageSet, tmp_path: Path, place: int) -> None:
    pq.write_table(index_table([row("a.jpg")]), tmp_path / "plan")
    images.write_plan("run-1", tmp_path / "plan")
    data = bytearray(images.read_plan("run-1"))
    data[place : place + 8] = b"\xff" * 8
    images.store.write("plans/run-1.parquet", data)

    with pytest.raises(ImageSetError, match=r"/plans/run-1\.parquet is damaged: it is no whole Parquet file$"):
        images.read_plan("run-1")


def test_a_bit_that_rots_in_a_plan_takes_no_row_from_it(images: ImageSet, tmp_path: Path) -> None:
    plan = pa.table({"key": ["a.jpg", "b.jpg"], "size_bytes": [1, 2]})
    pq.write_table(plan, tmp_path / "plan", write_page_checksum=True)
    data = (tmp_path / "plan").read_bytes()
    found = []
    for place in range(pq.read_metadata(tmp_path / "plan").row_group(0).total_byte_size + 4):
        rotten = bytearray(data)
        rotten[place] ^= 1 << place % 8
        images.store.write("plans/run-1.parquet", bytes(rotten))
        with suppress(ImageSetError):
            batches = pq.ParquetFile(io.BytesIO(images.read_plan("run-1"))).iter_batches()
            found.append(pa.Table.from_batches(batches, plan.schema))

    assert found
    assert all(each.equals(plan) for each in found)


def test_a_run_is_unfinished_from_its_plan_to_its_end(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(b"")
    runs = [f"202611{day:02}T000000Z-a" for day in range(1, 8)]
    for run in reversed(runs):
        images.write_plan(run, tmp_path / "plan")

    images.end_run(runs[3], {})

    assert images.unfinished_runs() == [*runs[:3], *runs[4:]]


def test_the_end_of_a_run_is_written_once(images: ImageSet) -> None:
    images.end_run("run-1", {"denoised": 3, "folder": Path("/photos"), "layout": Layout.FILES})
    images.end_run("run-1", {"denoised": 0})

    assert json.loads(images.store.read("runs/run-1.json")) == {"denoised": 3, "folder": "/photos", "layout": "files"}


def test_the_first_commit_of_a_shard_stays(images: ImageSet) -> None:
    images.commit("s1", [row("a.jpg", "run-1")])
    images.commit("s1", [row("a.jpg", "run-2")])

    assert images.committed_shards() == {"s1"}
    images.publish("run-2", ["s1"])
    assert runs_by_key(images) == {"a.jpg": "run-1"}


def test_a_commit_keeps_every_column(images: ImageSet) -> None:
    rows = [
        row("写真/a.jpg", noise_sigma_before=1.5, width_px=3, reason="it's\nodd", output_sha256="x"),
        row("b.jpg", outcome=Outcome.REJECTED),
    ]

    images.commit("s1", rows)

    table = pq.read_table(io.BytesIO(images.store.read("commits/s1.parquet")))
    assert table.equals(index_table(rows))
    assert table.schema.equals(INDEX_SCHEMA)


# Published again and again


def test_publishing_takes_the_newest_row_of_each_key(images: ImageSet) -> None:
    shards = {
        "s1": [row("a.jpg", "run-1"), row("b.jpg", "run-1")],
        "s2": [row("b.jpg", "run-2"), row("c.jpg", "run-2")],
    }
    commit(images, shards)

    images.publish("run-2", ["s2", "s1"])

    assert runs_by_key(images) == {"a.jpg": "run-1", "b.jpg": "run-2", "c.jpg": "run-2"}


def test_a_committed_row_comes_before_a_published_one(images: ImageSet) -> None:
    commit(images, {"s1": [row("a.jpg", "run-1"), row("b.jpg", "run-1")], "s2": [row("b.jpg", "run-2")]})

    images.publish("run-1", ["s1"])
    images.publish("run-2", ["s2"])

    assert runs_by_key(images) == {"a.jpg": "run-1", "b.jpg": "run-2"}


def test_counts_are_facts_of_the_index(images: ImageSet) -> None:
    outcomes = [Outcome.DENOISED, Outcome.REJECTED, Outcome.DENOISED, Outcome.UNTOUCHED]
    images.commit("s1", [row(str(number), outcome=outcome) for number, outcome in enumerate(outcomes)])

    manifest = images.publish("run-1", ["s1"])

    assert manifest.counts == Counter(outcomes)
    assert sum(manifest.counts.values()) == published(images).num_rows
    assert images.read_manifest() == manifest


def test_an_index_is_sorted_and_keeps_its_columns(images: ImageSet) -> None:
    rows = [row(key, width_px=7, noise_sigma_before=0.1) for key in ("é", "b/c.jpg", "b.jpg", "'", "Z")]
    images.commit("s1", rows)

    images.publish("run-1", ["s1"])

    assert published(images).equals(index_table(sorted(rows, key=lambda row: row.key)))


def test_an_old_index_is_removed_and_the_new_one_is_there(images: ImageSet) -> None:
    commit(images, {"s1": [row("a.jpg")], "s2": [row("b.jpg", "run-2")]})
    images.store.write("index2/mine.txt", b"not ours")

    images.publish("run-1", ["s1"])
    manifest = images.publish("run-2", ["s2"])

    assert keys(images.store, "index") == sorted(manifest.index)
    assert images.store.exists("index2/mine.txt")
    assert images.store.exists("commits/s1.parquet")


def test_publishing_again_ends_in_the_same_objects(images: ImageSet) -> None:
    commit(images, {"s1": [row("a.jpg"), row("c.jpg")], "s2": [row("b.jpg")]})

    first = images.publish("run-1", ["s1", "s2"])
    objects = {key: images.store.read(key) for key in keys(images.store, "index")}
    second = images.publish("run-1", iter(["s2", "s1", "s2"]))

    assert (second.index, second.counts) == (first.index, first.counts)
    assert {key: images.store.read(key) for key in keys(images.store, "index")} == objects


def test_publishing_nothing_is_an_index_without_rows(images: ImageSet) -> None:
    manifest = images.publish("run-1", [])

    assert (len(manifest.index), manifest.counts) == (1, {})
    assert published(images).schema.equals(INDEX_SCHEMA)


def test_a_shard_without_a_commit_is_not_published(images: ImageSet) -> None:
    images.commit("s1", [row("a.jpg")])
    before = images.publish("run-1", ["s1"])

    with pytest.raises(ObjectMissing, match="s2"):
        images.publish("run-2", ["s1", "s2"])

    assert images.read_manifest() == before


def test_many_shards_are_gathered(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imageset, "PARALLEL_READS", 3)
    shards = {f"s{number}": [row(f"{number}.jpg")] for number in range(8)}
    commit(images, shards)

    assert images.publish("run-1", shards).counts == {Outcome.DENOISED: 8}


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (4, [2, 2]), (9, [3, 3, 3]), (11, [2, 3, 3, 3])])
def test_an_index_is_split_into_parts(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, count: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(index, "PART_ROWS", 3)
    images.commit("s1", [row(f"{number:02}") for number in range(count)])

    manifest = images.publish("run-1", ["s1"])

    parts = [pq.read_table(io.BytesIO(images.store.read(key))) for key in manifest.index]
    assert [part.num_rows for part in parts] == sizes
    assert published(images)["key"].to_pylist() == [f"{number:02}" for number in range(count)]


def test_a_part_that_no_commit_touches_stays_as_it_is(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PART_ROWS", 2)
    commit(images, {"s1": [row(key, "run-1") for key in "bdfh"], "s2": [row("g", "run-2")]})

    first = images.publish("run-1", ["s1"])
    second = images.publish("run-2", ["s2"])

    assert (len(first.index), len(second.index)) == (2, 3)
    assert second.index[0] == first.index[0]
    assert published(images)["key"].to_pylist() == list("bdfgh")


def test_what_is_set_aside_replaces_nothing_that_was_before(images: ImageSet) -> None:
    for data in (b"first", b"second", b"first"):
        images.store.write("images/a.jpg", data)
        images.set_aside("images/a.jpg")

    moved = keys(images.store, "removed")
    assert (keys(images.store, "images"), len(moved)) == ([], 2)
    assert images.store.read("removed/images/a.jpg") == b"first"
    assert {images.store.read(key) for key in moved} == {b"first", b"second"}


def test_what_is_set_aside_finds_a_place_beside_a_folder_or_a_file_of_its_name(images: ImageSet) -> None:
    for key in ("images/a/b.jpg", "images/a", "images/a/b.jpg/c"):
        images.store.write(key, key.encode())
        images.set_aside(key)

    moved = [images.store.read(key) for key in keys(images.store, "removed")]
    assert sorted(moved) == [b"images/a", b"images/a/b.jpg", b"images/a/b.jpg/c"]


def test_a_byte_that_rots_in_a_commit_is_damage_and_no_other_key(images: ImageSet) -> None:
    commit(images, {"s1": [row("a.jpg")]})
    rotten = images.store.read("commits/s1.parquet").replace(b"a.jpg", b"b.jpg")
    assert pq.read_table(io.BytesIO(rotten))["key"].to_pylist() == ["b.jpg"]

    with pytest.raises(ImageSetError, match="is damaged"):
        parse_commit(rotten, "commits/s1.parquet")


def test_a_bit_that_rots_in_the_footer_of_a_commit_is_damage(images: ImageSet) -> None:
    commit(images, {"s1": [row("a.jpg")]})
    rotten = images.store.read("commits/s1.parquet").replace(b"source_etag", b"sourcf_etag")
    assert pq.read_table(io.BytesIO(rotten)).num_rows == 1

    with pytest.raises(ImageSetError, match="is damaged"):
        parse_commit(rotten, "commits/s1.parquet")


def test_an_index_can_be_read_as_if_shards_were_published(images: ImageSet) -> None:
    commit(images, {"s1": [row("a"), row("b")], "s2": [row("b", "run-2")]})
    images.publish("run-1", ["s1"])
    before = keys(images.store, "")

    with images.local_index(["s2"]) as parts:
        found = pa.concat_tables([pq.read_table(part) for part in parts])

    assert found.select(["key", "run"]).to_pylist() == [{"key": "a", "run": "run-1"}, {"key": "b", "run": "run-2"}]
    assert keys(images.store, "") == before


@pytest.mark.parametrize("times", [1, 9])
def test_an_index_that_is_published_anew_while_it_is_read_is_read_anew_a_few_times(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    runs = [f"run-{number}" for number in range(times + 1)]
    commit(images, {run: [row("a", run, attempts=number)] for number, run in enumerate(runs, 1)})
    images.publish(runs[0], [runs[0]])
    late, read, following = ImageSet(images.store), images.store.read, runs[1:]

    def read_late(key: str) -> bytes:
        if key.startswith("index/") and following:
            monkeypatch.undo()
            images.publish(following[0], [following.pop(0)])
            monkeypatch.setattr(images.store, "read", read_late)
        return read(key)

    monkeypatch.setattr(images.store, "read", read_late)

    if times == 1:
        with late.local_index() as [part]:
            assert pq.read_table(part)["run"].to_pylist() == ["run-1"]
    else:
        with pytest.raises(ImageSetError, match="was published anew 4 times while it was read"), late.local_index():
            pass


def test_a_part_that_is_gone_and_still_named_is_missing(images: ImageSet) -> None:
    commit(images, {"s1": [row("a")]})
    [part] = images.publish("run-1", ["s1"]).index
    images.store.delete(part)

    with pytest.raises(ObjectMissing, match=part), images.local_index():
        pass


@pytest.mark.parametrize("shards", [[], ["s2"]])
def test_a_part_in_which_one_bit_flipped_is_named_and_not_published_anew(images: ImageSet, shards: list[str]) -> None:
    commit(images, {"s1": [row("a")], "s2": [row("b")]})
    manifest = images.publish("run-1", ["s1"])
    damaged = bytearray(images.store.read(manifest.index[0]))
    damaged[40] ^= 1
    images.store.write(manifest.index[0], damaged)

    with pytest.raises(ImageSetError, match=r"/index/part-run-1-.* is damaged: .*\(degrain verify .* --repair"):
        images.publish("run-2", shards)
    with pytest.raises(ImageSetError, match="is damaged"), images.local_index(shards):
        pass
    assert images.read_manifest() == manifest


def test_a_publish_leaves_alone_what_is_no_part_of_an_index(images: ImageSet) -> None:
    commit(images, {"s1": [row("a")]})
    strangers = ["index/.DS_Store", "index/query.sql"]
    for key in strangers:
        images.store.write(key, b"somebody's")

    manifest = images.publish("run-1", ["s1"])

    assert sorted(listed.key for listed in images.list_parts()) == sorted([*strangers, *manifest.index])


def test_a_manifest_that_goes_while_a_run_is_at_work_is_missed(images: ImageSet) -> None:
    commit(images, {"s1": [row("a")]})
    images.store.delete(MANIFEST)

    with pytest.raises(ImageSetError, match=r"manifest\.json is gone since the run began"):
        images.publish("run-1", ["s1"])


def test_a_local_index_lasts_as_long_as_its_context(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PART_ROWS", 3)
    images.commit("s1", [row(str(number)) for number in range(5)])
    images.publish("run-1", ["s1"])

    with images.local_index() as parts:
        assert [pq.read_table(part).num_rows for part in parts] == [2, 3]
    assert not any(part.exists() for part in parts)


def test_there_is_no_local_index_before_the_first_is_published(store: Store) -> None:
    with ImageSet(store).local_index() as parts:
        assert parts == []
    ImageSet(store).open_for(SOURCE, Layout.FILES)
    with ImageSet(store).local_index() as parts:
        assert parts == []


published_runs = st.lists(
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True), max_size=3), min_size=1, max_size=3
)


@settings(max_examples=8)
@given(published_runs, st.integers(1, 4))
def test_an_index_holds_the_last_row_of_every_key(runs: list[list[list[str]]], part_rows: int) -> None:
    images = ImageSet(open_store(f"memory://{uuid4().hex}"))
    images.open_for(SOURCE, Layout.FILES)
    expected = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "PART_ROWS", part_rows)
        for number, shards in enumerate(runs):
            run = f"run-{number}"
            named = {f"{run}-{place}": [row(key, run) for key in shard] for place, shard in enumerate(shards)}
            commit(images, named)
            images.publish(run, named)
            expected |= {key: run for shard in shards for key in shard}

    assert runs_by_key(images) == expected


# Whole whatever dies in between


class Killed(Exception):
    """Stands for the end of the process."""


class Mortal:
    """A store whose process dies before one of its writes or deletes; the others pass."""

    def __init__(self, store: Store, *, changes: int) -> None:
        self._store = store
        self._changes_left = changes

    def write(self, key: str, data: bytes) -> None:
        self._live()
        self._store.write(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._live()
        self._store.create(key, data)

    def delete(self, key: str) -> None:
        self._live()
        self._store.delete(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _live(self) -> None:
        if self._changes_left == 0:
            raise Killed
        self._changes_left -= 1


# Four new parts, the manifest, and two old parts to delete.
CHANGES = 7


@pytest.fixture
def in_two_parts(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """A set with five published rows in two parts, and a committed shard that replaces two of them and adds three."""
    monkeypatch.setattr(index, "PART_ROWS", 3)
    commit(images, {"s1": [row(key, "run-1") for key in "bdfhj"], "s2": [row(key, "run-2") for key in "abcdi"]})
    images.publish("run-1", ["s1"])
    return images


OLD = dict.fromkeys("bdfhj", "run-1")
NEW = OLD | dict.fromkeys("abcdi", "run-2")


@pytest.mark.parametrize("changes", range(CHANGES))
@pytest.mark.parametrize("run", ["run-1", "run-2"])
def test_a_publish_that_dies_anywhere_is_finished_by_the_next(in_two_parts: ImageSet, run: str, changes: int) -> None:
    dying = ImageSet(Mortal(in_two_parts.store, changes=changes))
    with pytest.raises(Killed):
        dying.publish(run, ["s2"])
    assert runs_by_key(in_two_parts) in (OLD, NEW)

    manifest = in_two_parts.publish(run, ["s2"])

    assert runs_by_key(in_two_parts) == NEW
    assert keys(in_two_parts.store, "index") == sorted(manifest.index)
    assert sum(manifest.counts.values()) == len(NEW)


def test_a_publish_makes_as_many_changes_as_were_tried(in_two_parts: ImageSet) -> None:
    ImageSet(Mortal(in_two_parts.store, changes=CHANGES)).publish("run-2", ["s2"])

    assert runs_by_key(in_two_parts) == NEW


def test_a_start_that_dies_is_finished_by_the_next(store: Store) -> None:
    with pytest.raises(Killed):
        ImageSet(Mortal(store, changes=0)).open_for(SOURCE, Layout.FILES)

    assert ImageSet(store).open_for(SOURCE, Layout.FILES) == ImageSet(store).read_manifest()


def test_a_set_lies_where_it_was_put(tmp_path: Path) -> None:
    images = ImageSet(LocalStore(tmp_path / "deep" / "target"))
    images.open_for(SOURCE, Layout.FILES)
    images.store.write(images.output_key("2019/a.jpg"), b"1")

    assert (tmp_path / "deep/target/images/2019/a.jpg").read_bytes() == b"1"
    assert (tmp_path / "deep/target/manifest.json").is_file()
