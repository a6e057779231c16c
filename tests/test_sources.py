"""What can be a source: a collection, what a table lists of one, an image set, what a filter chooses of one."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from loop import Loop, index_of, photos_of, plan_work
from photos import saved, scene

from pipeline import sources
from pipeline.denoise import DenoiseConfig
from pipeline.errors import ImageSetError, ObjectRefused
from pipeline.imageset import ImageSet
from pipeline.ingest import IngestJob, run_ingest
from pipeline.jobs import DenoiseJob, denoise_work, run_denoise
from pipeline.local_store import LocalStore
from pipeline.records import LISTING_SCHEMA, Layout, PlannedPhoto, SourceObject, Status
from pipeline.scratch import scratch_folder
from pipeline.sources import Source, open_both, read_photos
from pipeline.sources import photos_of as source_of
from pipeline.storage import open_store
from pipeline.subset import Subset
from pipeline.work import Summary

SIDES_PX = {"a.png": 32, "b.png": 48, "2019/c.png": 64}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DenoiseJob:
    """Three photos of different size."""
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source/2019").mkdir(parents=True)
    for seed, (key, side_px) in enumerate(SIDES_PX.items()):
        (tmp_path / "source" / key).write_bytes(saved(scene(seed=seed, side_px=side_px), "PNG"))
    return DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))


@pytest.fixture
def packed(job: DenoiseJob, tmp_path: Path) -> DenoiseJob:
    """The same photos in an image set."""
    run_ingest(IngestJob(source=job.source, target=str(tmp_path / "packed")), lambda progress: None)
    return dataclasses.replace(job, source=str(tmp_path / "packed"))


def run(job: DenoiseJob, **changes: object) -> Summary:
    return run_denoise(dataclasses.replace(job, **changes), lambda progress: None)


def table(path: Path, keys: Iterable[str]) -> str:
    path.write_text("key,size_bytes,etag\n" + "".join(f"{key},1,e\n" for key in keys))
    return str(path)


def listed(source: Source, tmp_path: Path, target: str = "elsewhere") -> dict[str, SourceObject]:
    """The listing of a source by key."""
    path = tmp_path / "listing.parquet"
    count = source.write_listing(path, target=open_store(target))
    written = pq.read_table(path)
    assert (len(written), written.schema) == (count, LISTING_SCHEMA)
    return {row["key"]: SourceObject(**row) for row in written.to_pylist()}


# How it is listed and read


def read_all(source: Source) -> list[tuple[str, bytes | ObjectRefused]]:
    return list(source.read(source.table().sort_by("key")))


def test_a_collection_is_listed_as_its_store_lists_it(job: DenoiseJob, tmp_path: Path) -> None:
    store = open_store(job.source)

    assert listed(source_of(store), tmp_path) == {found.key: found for found in store.list()}


def test_a_target_in_its_source_is_left_out(job: DenoiseJob, tmp_path: Path) -> None:
    run(dataclasses.replace(job, target=f"{job.source}/clean"))
    (Path(job.source) / "clean.png").write_bytes(b"not in the folder of that name")

    assert set(listed(source_of(open_store(job.source)), tmp_path, f"{job.source}/clean")) == {*SIDES_PX, "clean.png"}


def test_a_target_in_its_source_is_left_out_whatever_it_is_called_elsewhere(
    job: DenoiseJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "prefix_in", lambda *_: None)  # as of two mounts, or where case is ignored
    target = f"{job.source}/2019/clean"
    run(dataclasses.replace(job, target=target))

    assert set(listed(source_of(open_store(job.source)), tmp_path, target)) == set(SIDES_PX)


def test_a_packed_set_is_listed_by_its_index_with_the_place_of_each_photo(packed: DenoiseJob, tmp_path: Path) -> None:
    rows = index_of(packed.source)

    found = listed(source_of(open_store(packed.source)), tmp_path)

    assert found == {
        key: SourceObject(key, row["output_size_bytes"], row["output_sha256"], row["output_key"])
        for key, row in rows.items()
    }


def test_a_set_that_was_never_published_lists_nothing(job: DenoiseJob, tmp_path: Path) -> None:
    ImageSet(open_store(job.target)).open_for(job.source, Layout.PACKED)

    assert listed(source_of(open_store(job.target)), tmp_path) == {}
    assert read_all(source_of(open_store(job.target))) == []


def test_a_folder_with_a_manifest_of_something_else_is_a_collection(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')

    assert source_of(LocalStore(tmp_path)).image_set is None


def test_a_manifest_that_cannot_even_be_read_makes_no_image_set(tmp_path: Path) -> None:
    for name in ("folder", "link", "nested"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder/manifest.json").mkdir()
    (tmp_path / "link/manifest.json").symlink_to("nowhere")
    (tmp_path / "nested/manifest.json").write_text('{"a":' * 100_000)

    for folder in tmp_path.iterdir():
        assert source_of(LocalStore(folder)).image_set is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"format": "degrain image set", "vers', r"manifest\.json is damaged .*put a sound copy back"),
        (
            '{"format": "degrain image set", "version": 2}',
            r"'degrain image set' and version 2, and this degrain reads .* version 1",
        ),
    ],
)
def test_an_image_set_whose_manifest_cannot_be_read_is_no_collection(
    packed: DenoiseJob, data: str, message: str
) -> None:
    (Path(packed.source) / "manifest.json").write_text(data)

    with pytest.raises(ImageSetError, match=message):
        run(packed)
    assert not Path(packed.target).exists()


@pytest.mark.parametrize("kind", ["objects", "packed", "files"])
def test_all_photos_are_read_in_the_order_of_their_keys(job: DenoiseJob, packed: DenoiseJob, kind: str) -> None:
    expected = {key: (Path(job.source) / key).read_bytes() for key in sorted(SIDES_PX)}
    place = {"objects": job.source, "packed": packed.source, "files": job.target}[kind]
    if kind == "files":
        run(job)
        expected = dict(sorted(photos_of(job.target).items()))

    assert read_all(source_of(open_store(place))) == list(expected.items())


def test_of_exact_duplicates_in_a_set_the_first_alone_is_read(job: DenoiseJob, tmp_path: Path) -> None:
    (Path(job.source) / "copy.png").write_bytes((Path(job.source) / "a.png").read_bytes())
    run_ingest(IngestJob(source=job.source, target=str(tmp_path / "packed")), lambda progress: None)

    found = [key for key, _ in read_all(source_of(open_store(str(tmp_path / "packed"))))]

    assert found == ["2019/c.png", "a.png", "b.png"]
    assert len(listed(source_of(open_store(str(tmp_path / "packed"))), tmp_path)) == 4


@pytest.mark.parametrize("kind", ["objects", "packed"])
def test_what_refuses_one_photo_stands_in_its_place(job: DenoiseJob, packed: DenoiseJob, kind: str) -> None:
    store = open_store(job.source if kind == "objects" else packed.source)
    places = {} if kind == "objects" else {key: row["output_key"] for key, row in index_of(packed.source).items()}
    places["gone.png"] = places.get("a.png")
    wanted = [PlannedPhoto(key, 1, "e", 1, places.get(key)) for key in ("a.png", "gone.png", "b.png")]

    found = list(read_photos(store, wanted))

    assert [photo for photo, _ in found] == wanted
    assert [isinstance(data, ObjectRefused) for _, data in found] == [False, True, False]
    assert found[0][1] == (Path(job.source) / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("{tmp}", "{tmp}/", "source and target are both"),
        ("{tmp}/set/images", "{tmp}/set", "lies in the target"),
        ("memory://a", "{tmp}", "memory:// is seen by one process alone"),
        ("{tmp}", "memory://a", "memory:// is seen by one process alone"),
    ],
)
def test_what_cannot_be_used_together_is_refused(tmp_path: Path, source: str, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_both(source.format(tmp=tmp_path), target.format(tmp=tmp_path))


def test_a_bucket_is_one_place_under_all_names_of_its_scheme(s3_url: str) -> None:
    alias = s3_url.replace("s3://", "s3a://")
    open_store(s3_url).write("photos/a.png", b"a")
    open_store(s3_url).write("clean/images/a.png", b"b")

    for source, target in ((s3_url, alias), (f"{s3_url}/photos", alias)):
        with pytest.raises(ValueError, match=r"source and target are both|lies in the target"):
            open_both(source, target)

    source, target = open_both(s3_url, f"{alias}/clean")
    with scratch_folder() as folder:
        assert source.write_listing(folder / "listing", target=target) == 1


def test_a_target_in_an_image_set_is_refused(job: DenoiseJob) -> None:
    run(job)

    with pytest.raises(ValueError, match="lies in the image set"):
        open_both(job.target, f"{job.target}/images/again")


# What is taken of it


def test_a_run_takes_what_the_table_lists_and_says_what_is_gone(job: DenoiseJob, tmp_path: Path) -> None:
    keys = table(tmp_path / "keys.csv", ["a.png", "2019/c.png", "gone.png"])

    first, second = run(job, key_table=keys), run(job, key_table=keys)

    assert first.outcomes == {"denoised": 2, "untouched": 0, "rejected": 1}
    assert set(photos_of(job.target)) == {"a.png", "2019/c.png"}
    assert index_of(job.target)["gone.png"]["reason"].endswith("no such file or directory")
    assert (second.up_to_date, second.rejected_before) == (2, 1)


def test_a_target_in_its_source_is_left_out_of_a_table_too(job: DenoiseJob, tmp_path: Path) -> None:
    keys = table(tmp_path / "keys.csv", ["a.png", "clean/images/a.png"])

    work = denoise_work(dataclasses.replace(job, target=f"{job.source}/clean", key_table=keys))
    assert plan_work(work).photos == {Status.NEW: 1}


def test_a_run_takes_what_the_filter_chooses_of_an_image_set(packed: DenoiseJob) -> None:
    small = run(packed, where="width_px <= 48 AND format = 'png'")
    rest = run(packed)

    assert (small.outcomes["denoised"], rest.outcomes["denoised"], rest.up_to_date) == (2, 1, 2)
    assert set(photos_of(packed.target)) == set(SIDES_PX)


def test_photos_of_a_set_in_files_are_known_by_their_hash_too(job: DenoiseJob, tmp_path: Path) -> None:
    run(job)
    second = dataclasses.replace(
        job, source=job.target, target=str(tmp_path / "second"), denoise=DenoiseConfig(strength=1.0)
    )

    with pytest.raises(ValueError, match=r"^no photo of .* fulfils 'width_px < 1'$"):
        run(second, where="width_px < 1")
    filtered, whole = run(second, where="width_px < 64"), run(second)

    assert (filtered.outcomes["denoised"], whole.outcomes["denoised"], whole.up_to_date) == (2, 1, 2)


def test_all_photos_of_a_subset_can_be_read(packed: DenoiseJob) -> None:
    source = dataclasses.replace(source_of(open_store(packed.source)), subset=Subset(where="width_px >= 48"))

    assert [key for key, _ in read_all(source)] == ["2019/c.png", "b.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": "iso <= 400"}, "is no image set, and there is no index to filter by: ingest it first"),
        ({"where": "isoo <= 400"}, 'cannot filter by .*"isoo" not found'),
        ({"key_table": "{tmp}/nowhere.csv"}, r"there is no table at .*/nowhere\.csv"),
        ({"key_table": "{tmp}/source/a.png"}, r"source/a\.png"),
    ],
    ids=str,
)
def test_a_wrong_choice_is_refused_before_anything_starts(
    job: DenoiseJob, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    given = {name: value.format(tmp=tmp_path) for name, value in changes.items()}

    with pytest.raises(ValueError, match=message):
        run(job, **given)
    assert not Path(job.target).exists()


def test_a_table_of_keys_of_an_image_set_is_refused(packed: DenoiseJob, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is an image set: its own index lists its photos"):
        run(packed, key_table=table(tmp_path / "keys.csv", ["a.png"]))
