"""Image sets that are damaged in every way that we know of: each is found, named, and made right again."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import degrain
from loop import Killed, Loop, index_of, photos_of
from photos import saved, scene, write_archive

from flows.cli import main
from model.weights import dump_weights
from pipeline import check
from pipeline.cluster import ClusterConfig
from pipeline.denoise import DenoiseConfig
from pipeline.errors import ImageSetError, StorageError, TargetInUse
from pipeline.ingest import IngestConfig, IngestJob, run_ingest
from pipeline.jobs import DenoiseJob, run_denoise
from pipeline.lease import Process
from pipeline.listing import write_listing
from pipeline.local_store import LocalStore
from pipeline.records import Fault, Layout
from pipeline.registry import read_weights
from pipeline.repair import Repaired, RepairJob, run_repair
from pipeline.storage import Store, open_store
from pipeline.verify import Examined, Verdict, VerifyJob, examined, format_verdict, run_verify


def silent(*_: object) -> None:
    """Nobody watches."""


def verify(target: str | Path) -> Verdict:
    return run_verify(VerifyJob(target=str(target)), silent)


def repair(target: str | Path, **options: str) -> Repaired:
    return run_repair(RepairJob(verify=VerifyJob(target=str(target)), **options), silent, silent)


def found(target: str | Path) -> list[tuple[Fault, str]]:
    return [(finding.kind, finding.key) for finding in verify(target).first]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop.instead_of_cluster(monkeypatch)


def write_photos(folder: Path, count: int = 4) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(saved(scene(seed=number, side_px=32), "PNG"))


def make_set(kind: str, folder: Path, url: str) -> str:
    """An image set of four photos."""
    write_photos(folder / "source")
    if kind == "ingest":
        job = IngestJob(source=str(folder / "source"), target=url, ingest=IngestConfig(resize_px=16))
        run_ingest(job, silent)
    else:
        layout = Layout.PACKED if kind == "packed" else Layout.FILES
        run_denoise(DenoiseJob(source=str(folder / "source"), target=url, layout=layout), silent)
    return url


@pytest.fixture(params=["packed", "ingest", "seaweed"])
def target(request: pytest.FixtureRequest, loop: Loop, tmp_path: Path) -> str:
    """Packed by either verb, and in a bucket of a real S3 server."""
    url = request.getfixturevalue("seaweed_url") if request.param == "seaweed" else str(tmp_path / "target")
    return make_set(request.param, tmp_path, url)


@pytest.fixture
def folder(loop: Loop, tmp_path: Path) -> Path:
    return Path(make_set("files", tmp_path, str(tmp_path / "target")))


def keys(store: Store, folder: str) -> list[str]:
    return sorted(listed.key for listed in store.list(folder))


def payload(store: Store) -> list[str]:
    return keys(store, "images") + keys(store, "shards")


def change(store: Store, key: str, how: Callable[[bytes], bytes]) -> None:
    store.write(key, how(store.read(key)))


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in payload(store)}


def flipped(data: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def delete_one(store: Store) -> None:
    store.delete(payload(store)[0])


def truncate_one(store: Store) -> None:
    change(store, payload(store)[1], lambda data: data[:-20])


def flip_one(store: Store) -> None:
    change(store, payload(store)[2], flipped)


def swap_two(store: Store) -> None:
    first, second = payload(store)[:2]
    one, other = store.read(first), store.read(second)
    store.write(first, other)
    store.write(second, one)


def add_strangers(store: Store) -> None:
    store.write("images/stranger.png", b"nobody knows me")
    store.write("shards/stranger.parquet", b"nor this")


def delete_part(store: Store) -> None:
    store.delete(keys(store, "index")[0])


def flip_part(store: Store) -> None:
    change(store, keys(store, "index")[0], flipped)


def add_part(store: Store) -> None:
    store.write("index/part-old-00000-00000000.parquet", store.read(keys(store, "index")[0]))


def delete_commit(store: Store) -> None:
    store.delete(keys(store, "commits")[0])


def truncate_commit(store: Store) -> None:
    change(store, keys(store, "commits")[1], lambda data: data[:-9])


def flip_commit(store: Store) -> None:
    change(store, keys(store, "commits")[2], lambda data: flipped(data[:200]) + data[200:])  # among its rows


def exchange_commits(store: Store) -> None:
    first, second = keys(store, "commits")[:2]
    store.write(first, store.read(second))


def miscount(store: Store) -> None:
    change(store, "manifest.json", lambda data: data.replace(b": 4", b": 5"))


def damage_record(store: Store) -> None:
    change(store, keys(store, "runs")[0], lambda data: data[:-9])


def nest_record(store: Store) -> None:
    store.write(keys(store, "runs")[0], b"[" * 100_000)


def damage_plan(store: Store) -> None:
    change(store, keys(store, "plans")[0], lambda data: data[:4] + b"\xff" * 56 + data[60:])  # in its first page


def add_leftover(store: Store) -> None:
    folder = Path(store.url) / ".degrain-tmp"
    folder.mkdir(exist_ok=True)
    (folder / "f3a1").write_bytes(b"half a ph")


def damage_photos(store: Store) -> None:
    for damage in (delete_one, truncate_one, flip_one):
        damage(store)


def damage_commits(store: Store) -> None:
    for damage in (delete_commit, truncate_commit, flip_commit):
        damage(store)


def lose_much(store: Store) -> None:
    for damage in (damage_photos, add_strangers, flip_part, damage_commits):
        damage(store)


DAMAGES = {
    damage_photos: {Fault.MISSING, Fault.WRONG_SIZE, Fault.WRONG_BYTES},
    swap_two: {Fault.WRONG_SIZE},
    add_strangers: {Fault.ORPHAN},
    delete_part: {Fault.DAMAGED_PART},
    flip_part: {Fault.DAMAGED_PART},
    add_part: {Fault.STRAY_PART},
    damage_commits: {Fault.MISSING_COMMIT, Fault.DAMAGED_COMMIT},
    exchange_commits: {Fault.DAMAGED_COMMIT},
    miscount: {Fault.WRONG_COUNTS},
    damage_record: {Fault.DAMAGED_RECORD},
    nest_record: {Fault.DAMAGED_RECORD},
    damage_plan: {Fault.DAMAGED_PLAN},
    add_leftover: {Fault.LEFTOVER},
}


def test_a_sound_set_gives_nothing_to_report(target: str) -> None:
    verdict = verify(target)

    assert (verdict.first, verdict.kinds, verdict.interrupted) == ((), {}, 0)
    assert verdict.objects == 8  # photos and commits


def test_no_gpu_is_taken_to_look_at_photos(loop: Loop, tmp_path: Path) -> None:
    target = make_set("files", tmp_path, str(tmp_path / "target"))
    assert loop.config.use_gpus  # as they were denoised

    verify(target)

    assert not loop.config.use_gpus


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
def test_damage_is_named_and_made_right(folder: Path, damage: Callable[[Store], None]) -> None:
    store = open_store(str(folder))
    before = contents(store)
    damage(store)

    repaired = repair(folder)

    assert set(repaired.before.kinds) == DAMAGES[damage]
    assert (repaired.after.first, contents(store)) == ((), before)


@pytest.mark.parametrize("damage", [damage_photos, lose_much], ids=lambda each: each.__name__)
def test_a_set_of_any_kind_ends_as_it_was_and_plain_readers_find_no_damage(
    target: str, damage: Callable[[Store], None]
) -> None:
    store = open_store(target)
    before = contents(store)
    damage(store)

    repaired = repair(target)

    assert repaired.before.findings
    assert repaired.after.first == ()
    after = contents(store)
    assert after == before or [key for key in after if key.startswith("images/")] == []
    for key, data in after.items():
        if key.startswith("shards/"):
            assert len(pq.read_table(pa.BufferReader(data)))
    assert len(photos_with_rows(store)) == 4


def photos_with_rows(store: Store) -> dict[str, dict]:
    parts = json.loads(store.read("manifest.json"))["index"]
    rows = [row for part in parts for row in pq.read_table(pa.BufferReader(store.read(part))).to_pylist()]
    return {row["key"]: row for row in rows if row["output_key"] in payload(store)}


def test_a_photo_that_was_planned_and_has_no_row_is_found_and_done(folder: Path) -> None:
    (row_of_0,) = pq.read_table(folder / "index", filters=[("key", "=", "0.png")]).to_pylist()
    delete_part(store := open_store(str(folder)))
    store.delete(f"commits/{row_of_0['shard']}.parquet")
    store.delete("images/0.png")

    repaired = repair(folder)

    assert (repaired.processed, repaired.after.kinds, len(photos_of(folder))) == (1, {}, 4)


def test_what_is_moved_is_not_lost(folder: Path) -> None:
    add_strangers(open_store(str(folder)))

    repair(folder)

    assert (folder / "removed/images/stranger.png").read_bytes() == b"nobody knows me"


def test_a_damaged_photo_is_moved_and_not_overwritten(folder: Path) -> None:
    flip_one(open_store(str(folder)))
    retouched = (folder / "images/2.png").read_bytes()

    repaired = repair(folder)

    assert (repaired.processed, repaired.moved, repaired.after.kinds) == (1, 1, {})
    assert (folder / "removed/images/2.png").read_bytes() == retouched


def test_a_damaged_photo_for_which_there_is_no_other_place_is_not_overwritten(folder: Path) -> None:
    flip_one(open_store(str(folder)))
    before = contents(open_store(str(folder)))
    (folder / "removed").touch()

    with pytest.raises(StorageError, match=r"^cannot move images/2\.png out of the way: .*: not a directory$"):
        repair(folder)

    assert contents(open_store(str(folder))) == before


def test_what_somebody_put_beside_the_index_is_moved_and_not_deleted(folder: Path) -> None:
    store = open_store(str(folder))
    store.write("index/query.sql", b"SELECT")
    add_part(store)
    strangers = {key: store.read(key) for key in ("index/query.sql", "index/part-old-00000-00000000.parquet")}

    repaired = repair(folder)

    assert (repaired.before.kinds, repaired.after.kinds) == ({Fault.STRAY_PART: 2}, {})
    assert {key: store.read(f"removed/{key}") for key in strangers} == strangers


def test_damaged_commits_and_parts_of_the_index_are_moved_and_not_deleted(folder: Path) -> None:
    store = open_store(str(folder))
    for damage, place in ((truncate_commit, "commits"), (flip_part, "index")):
        damage(store)
        [(_, damaged)] = found(folder)
        before = store.read(damaged)

        assert repair(folder).after.kinds == {}
        assert (damaged.startswith(place), store.read(f"removed/{damaged}") == before) == (True, True)


def test_a_damaged_shard_whose_rows_are_lost_is_moved_and_not_overwritten(loop: Loop, tmp_path: Path) -> None:
    store = open_store(make_set("packed", tmp_path, str(tmp_path / "target")))
    truncate_one(store)
    damaged = payload(store)[1]
    before = store.read(damaged)
    flip_part(store)
    store.delete(f"commits/{Path(damaged).name}")

    assert repair(store.url).after.kinds == {}

    assert store.read(f"removed/{damaged}") == before


def test_what_someone_put_where_a_new_photo_belongs_is_moved_and_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source/9.png").write_bytes(saved(scene(seed=9, side_px=32), "PNG"))
    (folder / "images/9.png").write_bytes(b"by hand")

    assert repair(folder).processed == 1

    assert (folder / "removed/images/9.png").read_bytes() == b"by hand"
    assert "9.png" in photos_of(folder)


@pytest.mark.parametrize("held", [[], ["stranger"]], ids=repr)
def test_a_folder_in_place_of_a_photo_gives_way_to_it(folder: Path, held: list[str]) -> None:
    before = photos_of(folder)
    (folder / "images/0.png").unlink()
    (folder / "images/0.png").mkdir()
    for name in held:
        (folder / "images/0.png" / name).write_bytes(b"nobody knows me")

    repaired = repair(folder)

    assert (repaired.rejected, repaired.moved, repaired.after.kinds) == (0, len(held), {})
    assert photos_of(folder) == before


def test_a_photo_that_cannot_be_made_again_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images/0.png").unlink()
    (tmp_path / "source/0.png").write_bytes(b"\x89PNG\r\n")

    assert main(["verify", str(folder), "--repair"]) == 1

    assert index_of(folder)["0.png"]["outcome"] == "rejected"
    assert "1 of these photos had a result and are rejected now" in capsys.readouterr().out


def test_a_sound_photo_beside_a_damaged_one_stays_if_its_source_has_changed(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.SHARDS_PER_WORKER", 1)
    write_photos(tmp_path / "source")
    target = tmp_path / "target"
    one_shard = ClusterConfig(workers=1)
    run_ingest(IngestJob(source=str(tmp_path / "source"), target=str(target), cluster=one_shard), silent)
    [place] = {row["output_key"] for row in index_of(target).values()}
    before = photos_of(target)
    change(open_store(str(target)), place, lambda data: data.replace(before["1.png"], flipped(before["1.png"])))
    (tmp_path / "source/0.png").write_bytes(b"\x89PNG\r\n")

    repaired = repair(target)

    assert (repaired.processed, repaired.rejected, repaired.after.kinds) == (3, 0, {})
    assert photos_of(target) == before


def test_only_what_is_wrong_is_processed_again_and_new_photos_wait(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source/new.png").write_bytes(saved(scene(seed=9, side_px=32), "PNG"))
    delete_one(open_store(str(folder)))

    assert repair(folder).processed == 1
    assert {key: row["attempts"] for key, row in index_of(folder).items()} == {
        "0.png": 2, "1.png": 1, "2.png": 1, "3.png": 1
    }  # fmt: skip


def test_a_photo_is_made_again_by_the_settings_that_made_it_whatever_came_later(loop: Loop, tmp_path: Path) -> None:
    write_photos(tmp_path / "source")
    job = DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))
    run_denoise(dataclasses.replace(job, denoise=DenoiseConfig(strength=0.5)), silent)
    run_denoise(dataclasses.replace(job, denoise=DenoiseConfig(strength=0.25), limit=1), silent)
    before = photos_of(job.target)
    damage_photos(open_store(job.target))

    repaired = repair(job.target)

    assert (repaired.processed, repaired.after.kinds) == (3, {})
    assert photos_of(job.target) == before


@pytest.mark.parametrize(("source", "where"), [("clean", ""), ("clean", "width_px > 1"), ("clean/images", "")])
def test_photos_of_an_image_set_are_made_again_from_it_and_are_up_to_date(
    folder: Path, tmp_path: Path, source: str, where: str
) -> None:
    folder.rename(tmp_path / "clean")
    job = DenoiseJob(
        source=str(tmp_path / source), target=str(folder), where=where, denoise=DenoiseConfig(strength=0.5)
    )
    run_denoise(job, silent)
    delete_one(open_store(job.target))

    repaired = repair(job.target)

    assert (repaired.processed, repaired.after.kinds) == (1, {})
    assert run_denoise(job, silent).up_to_date == 4


def test_a_photo_is_made_again_whatever_a_later_run_filtered_by(folder: Path, tmp_path: Path) -> None:
    job = DenoiseJob(source=str(folder), target=str(tmp_path / "other"), denoise=DenoiseConfig(strength=0.5))
    for where in ("key < '2'", "key >= '2'"):
        run_denoise(dataclasses.replace(job, where=where), silent)
    delete_one(open_store(job.target))

    repaired = repair(job.target)

    assert (repaired.processed, repaired.after.kinds) == (1, {})


@pytest.mark.parametrize("tables", [[None, "3.png"], ["0.png", "3.png"]])
def test_a_photo_is_made_again_whatever_a_later_table_lists(
    loop: Loop, tmp_path: Path, tables: list[str | None]
) -> None:
    write_photos(tmp_path / "source")
    job = DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"), limit=1)
    for key in tables:
        table = tmp_path / f"{key}.parquet"
        write_listing((each for each in open_store(job.source).list() if each.key == key), table)
        run_denoise(dataclasses.replace(job, key_table=str(table) if key else None), silent)
        table.unlink()
    delete_one(open_store(job.target))

    repaired = repair(job.target)

    assert (repaired.processed, repaired.after.kinds) == (1, {})


def test_a_record_that_does_not_say_what_made_its_photos_is_passed_over(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(folder))
    [record] = keys(store, "runs")
    store.write(record, json.dumps({"settings": json.loads(store.read(record))["settings"]}).encode())
    delete_one(store)

    assert repair(folder).after.kinds == {Fault.MISSING: 1}
    assert re.search(r"no record in .* tells how photos were made", caplog.text)


def test_a_photo_that_cannot_be_made_again_keeps_no_other_from_it(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photos(tmp_path / "source")
    job = IngestJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"), ingest=IngestConfig(resize_px=16))
    loop.dies_after = 1
    with pytest.raises(Killed):
        run_ingest(job, silent)
    loop.dies_after = 10**9
    (tmp_path / "source/0.png").unlink()
    run_ingest(dataclasses.replace(job, ingest=IngestConfig(resize_px=12)), silent)  # and that run is given up
    for key in ("0.png", "2.png"):
        (tmp_path / "target" / index_of(job.target)[key]["output_key"]).unlink()

    repaired = repair(job.target)

    assert (repaired.processed, repaired.after.kinds) == (1, {Fault.MISSING_SHARD: 1})
    assert "tells how photos were made" in caplog.text


def test_weights_that_are_gone_are_asked_for(loop: Loop, tmp_path: Path) -> None:
    _, weights = read_weights("photo")
    other = dump_weights(weights.network(), dataclasses.replace(weights.card, white=None))
    (tmp_path / "other.safetensors").write_bytes(other)
    write_photos(tmp_path / "source")
    job = DenoiseJob(
        source=str(tmp_path / "source"), target=str(tmp_path / "target"), weights=str(tmp_path / "other.safetensors")
    )
    run_denoise(job, silent)
    delete_one(open_store(job.target))
    (tmp_path / "other.safetensors").rename(tmp_path / "moved.safetensors")

    with pytest.raises(ValueError, match=r"there are no weights at .*other\.safetensors"):
        repair(job.target)
    with pytest.raises(ValueError, match=r"the weights photo are not those of the run, whose SHA-256 is .*--weights"):
        repair(job.target, weights="photo")

    assert repair(job.target, weights=str(tmp_path / "moved.safetensors")).after.kinds == {}


def test_weights_that_are_named_are_no_matter_to_what_ingest_made(loop: Loop, tmp_path: Path) -> None:
    write_photos(tmp_path / "source")
    job = IngestJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"), ingest=IngestConfig())
    run_ingest(job, silent)
    (tmp_path / "target" / index_of(job.target)["0.png"]["output_key"]).unlink()

    assert repair(job.target, weights="photo").after.kinds == {}


def test_a_set_that_two_weights_made_is_repaired_where_those_of_one_have_moved(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, weights = read_weights("photo")
    paths = [tmp_path / f"{name}.safetensors" for name in ("first", "second")]
    for path in paths:
        card = dataclasses.replace(weights.card, white=None, data=path.name)
        path.write_bytes(dump_weights(weights.network(), card))
    write_photos(tmp_path / "source")
    job = DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"), weights=str(paths[0]))
    run_denoise(job, silent)
    run_denoise(dataclasses.replace(job, weights=str(paths[1]), limit=1), silent)
    for photo in (tmp_path / "target/images").iterdir():
        photo.unlink()
    moved = [path.rename(tmp_path / f"moved-{path.name}") for path in paths[:1]]

    with pytest.raises(ValueError, match=r"there are no weights at .*first\.safetensors"):
        repair(job.target)
    assert repair(job.target, weights=str(moved[0])).after.kinds == {}

    for photo in (tmp_path / "target/images").iterdir():
        photo.unlink()
    moved.append(paths[1].rename(tmp_path / "moved-second.safetensors"))
    left = repair(job.target, weights=str(moved[0]))
    assert left.processed > 0
    assert left.after.kinds.keys() == {Fault.MISSING}
    assert "there are no weights at" in caplog.text
    assert repair(job.target, weights=str(moved[1])).after.kinds == {}


def test_a_photo_whose_source_is_gone_stays_a_finding(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source/0.png").unlink()
    delete_one(open_store(str(folder)))

    repaired = repair(folder)

    assert (repaired.processed, repaired.after.kinds) == (0, {Fault.MISSING: 1})
    assert repaired.after.first[0].key == "0.png"


def test_a_result_that_its_photo_outlived_is_moved_and_not_lost(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source/0.png").write_bytes(b"")
    run_denoise(DenoiseJob(source=str(tmp_path / "source"), target=str(folder)), silent)
    assert found(folder) == [(Fault.ORPHAN, "images/0.png")]

    assert repair(folder).after.kinds == {}
    assert (folder / "removed/images/0.png").exists()


def test_what_an_interrupted_run_wrote_is_no_fault_and_is_left_to_it(loop: Loop, tmp_path: Path) -> None:
    write_photos(tmp_path / "source")
    job = DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))
    run_denoise(dataclasses.replace(job, limit=1), silent)
    loop.dies_after, loop.dies_before_commit = loop.shards + 1, True
    with pytest.raises(Killed):
        run_denoise(job, silent)
    loop.dies_after = 10**9

    assert (found(job.target), verify(job.target).interrupted) == ([], 2)
    delete_one(open_store(job.target))
    with pytest.raises(ValueError, match="was interrupted, and has 2 photos to do: run the same command again"):
        repair(job.target)

    run_denoise(job, silent)
    assert repair(job.target).after.kinds == {}


@pytest.mark.parametrize("layout", Layout)
def test_what_a_run_at_work_has_under_way_is_left_out_and_other_damage_is_found(
    loop: Loop, tmp_path: Path, layout: Layout
) -> None:
    job = sound_set_with_changes(tmp_path, layout)
    open_store(job.target).delete(f"commits/{index_of(job.target)['0.png']['shard']}.parquet")
    seen: list[Verdict] = []

    def look(_: object) -> None:
        for name in (".degrain-tmp/5", "index/part-new.parquet"):
            (tmp_path / "target" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "target" / name).touch()
        seen.append(verify(job.target))

    run_denoise(job, look)

    assert [(verdict.kinds, verdict.is_in_use) for verdict in seen] == [({Fault.MISSING_COMMIT: 1}, True)] * len(seen)
    assert "a run was at work meanwhile" in format_verdict(seen[-1])
    assert (verify(job.target).kinds, verify(job.target).is_in_use) == ({Fault.MISSING_COMMIT: 1}, False)


@pytest.mark.parametrize("before", ["index/", "0.png"])
def test_a_run_that_comes_and_goes_meanwhile_is_no_fault(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    job = sound_set_with_changes(tmp_path, Layout.FILES)
    read, read_many, waiting = LocalStore.read, LocalStore.read_many, [job]

    def run_before(first: str) -> None:
        if first.startswith(before) and waiting:
            run_denoise(waiting.pop(), silent)

    def late_read(store: LocalStore, key: str) -> bytes:
        run_before(key)
        return read(store, key)

    def late_read_many(store: LocalStore, wanted: list, **options: int) -> object:
        run_before(wanted[0].key)
        return read_many(store, wanted, **options)

    monkeypatch.setattr(LocalStore, "read", late_read)
    monkeypatch.setattr(LocalStore, "read_many", late_read_many)

    verdict = verify(job.target)

    assert (verdict.kinds, verdict.is_in_use, waiting) == ({}, True, [])


def test_a_repair_leaves_a_set_alone_that_a_run_has_changed_since_it_was_verified(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_one(open_store(str(folder)))
    (tmp_path / "source/2.png").write_bytes(saved(scene(seed=9, side_px=32), "PNG"))

    @contextmanager
    def examined_before_a_run(*arguments: Any) -> Iterator[Examined]:
        with examined(*arguments) as seen:
            run_denoise(DenoiseJob(source=str(tmp_path / "source"), target=str(folder)), silent)
            yield seen

    monkeypatch.setattr("pipeline.repair.examined", examined_before_a_run)
    with pytest.raises(TargetInUse, match=r"^a run was at work on \S+ while it was verified, .*: repair it again$"):
        repair(folder)

    assert found(folder) == []


def test_a_repair_beside_a_run_is_refused_before_it_reads_anything(loop: Loop, tmp_path: Path) -> None:
    job = sound_set_with_changes(tmp_path, Layout.FILES)
    seen: list[int] = []

    def look(_: object) -> None:
        with pytest.raises(TargetInUse, match="is in use by 'degrain denoise'"):
            run_repair(RepairJob(verify=VerifyJob(target=job.target)), lambda done, _: seen.append(done), silent)

    run_denoise(job, look)

    assert seen == []


def test_a_shard_that_a_repair_makes_anew_meanwhile_is_no_finding(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, size = open_store(make_set("packed", tmp_path, str(tmp_path / "target"))), LocalStore.size
    truncate_one(store)
    waiting = [store.url]

    def late_size(store: LocalStore, key: str) -> int:
        if waiting:
            assert repair(waiting.pop()).processed == 1
        return size(store, key)

    monkeypatch.setattr(LocalStore, "size", late_size)
    verdict = verify(store.url)

    assert (verdict.kinds, verdict.is_in_use) == ({}, True)


def sound_set_with_changes(folder: Path, layout: Layout) -> DenoiseJob:
    """Of four photos, after which one was changed, and one came new."""
    write_photos(folder / "source")
    job = DenoiseJob(source=str(folder / "source"), target=str(folder / "target"), layout=layout)
    run_denoise(job, silent)
    for number in (3, 4):
        (folder / f"source/{number}.png").write_bytes(saved(scene(seed=9 + number, side_px=32), "PNG"))
    return job


@pytest.mark.parametrize(("kind", "dies_before_commit"), [("files", True), ("packed", False)])
def test_a_repair_is_killed_at_each_of_its_shards_and_ends_whole(
    loop: Loop, tmp_path: Path, kind: str, dies_before_commit: bool
) -> None:
    target = make_set(kind, tmp_path, str(tmp_path / "target"))
    before = photos_of(target)
    lose_much(open_store(target))
    loop.dies_before_commit = dies_before_commit
    kills = 0

    while kills < 99:
        loop.dies_after = loop.shards + kills
        try:
            verdict = repair(target).after
            break
        except Killed:
            kills += 1

    assert (verdict.first, verdict.interrupted) == ((), 0)
    assert photos_of(target) == before
    assert kills >= 3


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(900)  # some thirty times three repairs
@pytest.mark.parametrize("kind", ["files", "packed"])
def test_a_repair_may_be_killed_before_any_of_its_changes_and_loses_nothing(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    damaged = Path(make_set(kind, tmp_path, str(tmp_path / "damaged")))
    lose_much(open_store(str(damaged)))
    monkeypatch.setattr(Process, "is_gone", True)  # the death of this one is a `Killed`
    target, was_killed, kills = tmp_path / "target", True, 0

    while was_killed:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(damaged, target)
        was_killed = dies_at_change(kills, lambda: repair(target))
        kills += was_killed
        verdict = repair(target).after

        assert (verdict.kinds, verdict.interrupted) == ({}, 0)
        assert bytes_of(damaged) <= bytes_of(target)
        job = DenoiseJob(source=str(tmp_path / "source"), target=str(target), layout=Layout(kind))
        assert run_denoise(job, silent).up_to_date == 4

    assert kills > 20


def dies_at_change(nth: int, work: Callable[[], object]) -> bool:
    """Whether the process died before the change of that number, from 0 on."""
    changes = count()

    def dying(change: Callable) -> Callable:
        def die_or_change(*arguments: object, **options: object) -> object:
            if next(changes) >= nth:
                raise Killed
            return change(*arguments, **options)

        return die_or_change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "create", "delete"):
            patch.setattr(LocalStore, name, dying(getattr(LocalStore, name)))
        try:
            work()
        except Killed:
            return True
    return False


def bytes_of(target: Path) -> set[bytes]:
    """All that lies in a set, but for whose turn it is and what says which index counts."""
    return {path.read_bytes() for path in target.glob("*/**/*") if path.is_file() and path.parent.name != "lease"}


@pytest.mark.parametrize("damage", [truncate_commit, damage_plan, delete_one], ids=lambda each: each.__name__)
def test_a_run_that_damage_stopped_goes_on_after_a_repair(
    loop: Loop, tmp_path: Path, damage: Callable[[Store], None]
) -> None:
    write_photos(tmp_path / "source")
    job = DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))
    loop.dies_after = 3
    with pytest.raises(Killed):
        run_denoise(job, silent)
    loop.dies_after = 10**9
    damage(open_store(job.target))
    if damage is not delete_one:
        with pytest.raises(ImageSetError):
            run_denoise(job, silent)
        repair(job.target)

    run_denoise(job, silent)

    assert repair(job.target).after.kinds == {}
    assert len(photos_of(job.target)) == 4


def test_a_byte_that_rots_beside_packed_photos_is_found_and_made_right(loop: Loop, tmp_path: Path) -> None:
    target = make_set("ingest", tmp_path, str(tmp_path / "target"))
    store = open_store(target)
    before, shard = contents(store), payload(store)[1]
    column = pq.read_metadata(pa.BufferReader(store.read(shard))).row_group(0).column(4)
    assert (column.path_in_schema, column.has_dictionary_page) == ("source_size_bytes", True)
    end = column.dictionary_page_offset + column.total_compressed_size
    change(store, shard, lambda data: data[: end - 1] + flipped(data[end - 1 : end]) + data[end:])

    repaired = repair(target)

    assert [(each.kind, each.key) for each in repaired.before.first] == [(Fault.DAMAGED_SHARD, shard)]
    assert (repaired.after.first, len(photos_with_rows(store))) == ((), len(before))


def ignore_case(environment: pytest.MonkeyPatch) -> None:
    """Let folders find what differs from a name in its case alone, as exFAT and NTFS do."""
    exact = LocalStore._path

    def path(self: LocalStore, key: str) -> Path:
        found = self.root
        for part in exact(self, key).relative_to(self.root).parts:
            names = {each.name.lower(): each for each in found.iterdir()} if found.is_dir() else {}
            found = found / part if (found / part).exists() else names.get(part.lower(), found / part)
        return found

    environment.setattr(LocalStore, "_path", path)


def test_two_folders_that_a_disk_keeps_as_one_are_no_fault(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in enumerate(("Sea", "sea")):
        (tmp_path / "source" / folder).mkdir(parents=True)
        (tmp_path / f"source/{folder}/{name}.png").write_bytes(saved(scene(seed=name, side_px=32), "PNG"))
    target = tmp_path / "target"
    ignore_case(monkeypatch)
    run_denoise(DenoiseJob(source=str(tmp_path / "source"), target=str(target)), silent)

    assert len(list((target / "images").iterdir())) == 1
    assert repair(target).before.first == ()


def test_packed_photos_that_changed_since_leave_a_shard_that_is_no_fault(loop: Loop, tmp_path: Path) -> None:
    write_photos(tmp_path / "source")
    job = IngestJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))
    run_ingest(job, silent)
    (tmp_path / "source/1.png").write_bytes(saved(scene(seed=11, side_px=32), "PNG"))
    run_ingest(job, silent)

    assert found(job.target) == []


def test_an_archive_with_everything_in_it_is_sound(loop: Loop, tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    for layout in Layout:
        job = DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / layout), layout=layout)
        run_denoise(job, silent)

        assert found(job.target) == []


def test_a_photo_that_memory_should_not_hold_is_checked_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(check, "PART_BYTES", 1000)
    assert found(folder) == []

    damage_photos(open_store(str(folder)))

    assert [kind for kind, _ in found(folder)] == [Fault.MISSING, Fault.WRONG_SIZE, Fault.WRONG_BYTES]


@pytest.mark.parametrize(
    ("place", "kind"),
    [("plans", Fault.DAMAGED_PLAN), ("runs", Fault.DAMAGED_RECORD), ("commits", Fault.DAMAGED_COMMIT)],
)
def test_an_object_that_cannot_be_read_is_a_finding_and_is_told_with_the_reason_why_it_stays(
    folder: Path, tmp_path: Path, place: str, kind: Fault
) -> None:
    key = keys(open_store(str(folder)), place)[0]
    (folder / key).rename(tmp_path / "elsewhere")
    (folder / key).symlink_to(tmp_path / "elsewhere")  # refused, as what nobody may read: the superuser reads all

    first = found(folder)
    after = repair(folder).after

    assert first == [(kind, key)]
    if kind != Fault.DAMAGED_COMMIT:  # which is written again
        assert [(each.kind, each.key) for each in after.first] == first
        assert "and it cannot be made right: " in after.first[0].detail


def test_a_folder_in_place_of_a_commit_stays_and_keeps_nothing_else_from_being_made_right(folder: Path) -> None:
    store = open_store(str(folder))
    before = contents(store)
    key = f"commits/{index_of(folder)['1.png']['shard']}.parquet"
    store.delete(key)
    store.write(f"{key}/somebody's.txt", b"notes")
    damage_photos(store)

    after = repair(folder).after

    assert [(each.kind, each.key) for each in after.first] == [(Fault.MISSING_COMMIT, key)]
    assert "and it cannot be made right: cannot write" in after.first[0].detail
    assert contents(store) == before


def test_all_findings_are_written_where_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    damage_photos(open_store(str(folder)))

    verdict = run_verify(VerifyJob(target=str(folder), findings=str(tmp_path / "findings.parquet")), silent)

    rows = pq.read_table(tmp_path / "findings.parquet").to_pylist()
    assert [row["kind"] for row in rows] == [finding.kind for finding in verdict.first]
    assert [row["key"] for row in rows] == ["0.png", "2.png", "3.png"]


def test_a_repair_writes_what_is_left_even_where_nothing_was_found(folder: Path, tmp_path: Path) -> None:
    job = VerifyJob(target=str(folder), findings=str(tmp_path / "findings.parquet"))

    for damage in (lambda _: None, damage_photos):
        damage(open_store(str(folder)))
        run_repair(RepairJob(verify=job), silent, silent)

        rows = pq.read_table(tmp_path / "findings.parquet")
        assert (rows.num_rows, rows.column_names) == (0, ["kind", "key", "detail"])
        (tmp_path / "findings.parquet").unlink()


def test_a_place_that_cannot_be_written_is_known_before_the_work_or_costs_no_verdict(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_photos(open_store(str(folder)))
    (tmp_path / "file").touch()
    job = VerifyJob(target=str(folder), findings=str(tmp_path / "file/findings.parquet"))
    seen: list[int] = []
    for run in (run_verify, lambda job, look: run_repair(RepairJob(verify=job), look, silent)):
        with pytest.raises(StorageError, match=r"^cannot write findings\.parquet to \S+: "):
            run(job, lambda done, _: seen.append(done))
    assert seen == []

    def fill_disk(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(LocalStore, "write", fill_disk)
    with pytest.raises(StorageError, match=r"^the disk is full; what was found: .*: 1 missing, 1 wrong_bytes, "):
        run_verify(dataclasses.replace(job, findings=str(tmp_path / "findings.parquet")), silent)


def test_what_cannot_be_moved_is_told_with_the_reason(folder: Path, tmp_path: Path) -> None:
    (folder / "images/linked").symlink_to(tmp_path / "source")

    [finding] = repair(folder).after.first

    assert (finding.kind, finding.key) == (Fault.ORPHAN, "images/linked")
    assert "points to it, and it cannot be made right: images/linked is a link that leads out of " in finding.detail


def test_a_byte_that_rots_in_a_plan_is_damage_and_no_other_key(folder: Path) -> None:
    store = open_store(str(folder))
    [plan] = keys(store, "plans")
    change(store, plan, lambda data: data.replace(b"0.png1.png", b"0.qng1.png"))
    assert pq.read_table(folder / plan)["key"][0].as_py() == "0.qng"

    assert found(folder) == [(Fault.DAMAGED_PLAN, plan)]


def test_one_repair_makes_an_index_and_a_plan_right_that_are_both_damaged(folder: Path) -> None:
    store = open_store(str(folder))
    for place in ("index", "plans"):
        change(store, keys(store, place)[0], lambda _: b"garbage")

    assert repair(folder).after.kinds == {}

    assert verify(folder).kinds == {}


def test_a_repair_says_that_its_source_is_empty(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    delete_one(open_store(str(folder)))
    (tmp_path / "source").rename(tmp_path / "elsewhere")

    assert repair(folder).after.kinds == {Fault.MISSING: 1}

    assert caplog.messages == [f"there are no photos in {tmp_path / 'source'}: it is empty, or does not exist"]


def test_a_photo_without_a_row_is_told_with_the_plan_that_holds_it(folder: Path) -> None:
    plan = folder / keys(open_store(str(folder)), "plans")[0]
    rows = pq.read_table(plan)
    strange = pa.array(["0.qng", *rows["key"].to_pylist()[1:]])
    pq.write_table(rows.set_column(0, rows.schema.field("key"), strange), plan)

    assert [finding.detail for finding in verify(folder).first] == [f"plans/{plan.name} holds it, and it has no row"]


def test_what_is_no_image_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no image set at"):
        verify(tmp_path)


def test_the_command_says_what_is_wrong_and_ends_with_1_until_it_is_repaired(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images/2.png").unlink()

    first = degrain("verify", folder)
    repaired, again = (main(["verify", str(folder), *options]) for options in (["--repair"], ["--json"]))

    assert (first.returncode, repaired, again) == (1, 0, 0)
    assert "missing           2.png" in first.stdout
    said = capsys.readouterr().out
    assert "1 findings: 1 photos processed again, 0 objects moved" in said
    assert json.loads(said.splitlines()[-1])["findings"] == 0


def test_a_name_that_nobody_may_use_is_shown_harmlessly_and_left_to_a_person(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images/\x1b[31mred.png").write_bytes(b"a name that would colour the terminal")

    assert main(["verify", str(folder), "--repair"]) == 1

    assert "\x1b" not in (said := capsys.readouterr().out)
    assert "images/\\x1b[31mred.png" in said
