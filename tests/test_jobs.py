"""What denoising makes of a collection or an image set, with the real workers and stores."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
from loop import Loop, index_of, photos_of, plan_work
from photos import saved, scene, write_archive

from model.weights import dump_weights
from pipeline.clean_photos import find_clean_photos
from pipeline.denoise import DenoiseConfig
from pipeline.errors import StorageError
from pipeline.ingest import IngestConfig, IngestJob, run_ingest
from pipeline.jobs import DenoiseJob, denoise_work, run_denoise
from pipeline.local_store import LocalStore
from pipeline.one_photo import denoise_one
from pipeline.records import Layout, Status
from pipeline.registry import read_weights
from pipeline.work import Summary


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop.instead_of_cluster(monkeypatch)


@pytest.fixture
def job(loop: Loop, tmp_path: Path) -> DenoiseJob:
    (tmp_path / "source").mkdir()
    for number in range(4):
        (tmp_path / f"source/{number}.png").write_bytes(saved(scene(seed=number, side_px=32), "PNG"))
    return DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))


def run(job: DenoiseJob) -> Summary:
    return run_denoise(job, lambda progress: None)


def ingest(source: Path, target: Path) -> Summary:
    return run_ingest(IngestJob(source=str(source), target=str(target)), lambda progress: None)


def test_other_weights_do_every_photo_again_and_the_same_ones_under_another_name_none(
    job: DenoiseJob, tmp_path: Path
) -> None:
    shipped, weights = read_weights("photo")
    (tmp_path / "same.safetensors").write_bytes(shipped)
    card = dataclasses.replace(weights.card, noise="none", white=None)
    (tmp_path / "other.safetensors").write_bytes(dump_weights(weights.network(), card))
    run(job)

    same = run(dataclasses.replace(job, weights=str(tmp_path / "same.safetensors")))
    other = run(dataclasses.replace(job, weights=str(tmp_path / "other.safetensors")))

    assert (same.up_to_date, other.outcomes["denoised"], other.up_to_date) == (4, 4, 0)


def test_an_image_set_can_be_a_source(job: DenoiseJob, tmp_path: Path) -> None:
    run(job)

    second = run(dataclasses.replace(job, source=job.target, target=str(tmp_path / "second")))

    assert second.outcomes == {"denoised": 0, "untouched": 4, "rejected": 0}  # they are clean now
    assert sorted(path.name for path in (tmp_path / "second/images").iterdir()) == [f"{n}.png" for n in range(4)]


@pytest.mark.parametrize("layout", Layout)
def test_a_packed_image_set_is_denoised_as_its_source_would_be(loop: Loop, tmp_path: Path, layout: Layout) -> None:
    expected = write_archive(tmp_path / "source")
    ingest(tmp_path / "source", tmp_path / "packed")
    run(DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "direct")))

    summary = run(DenoiseJob(source=str(tmp_path / "packed"), target=str(tmp_path / "target"), layout=layout))

    assert summary.outcomes == {"denoised": 6, "untouched": 2, "rejected": 0}
    direct = photos_of(tmp_path / "direct")
    assert photos_of(tmp_path / "target") == {key: data for key, data in direct.items() if key != "notes.txt"}
    assert {key: row["outcome"] for key, row in index_of(tmp_path / "target").items()}.items() <= expected.items()


def test_what_ingest_made_smaller_is_a_png_for_whoever_reads_it_next(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(2):
        (tmp_path / f"source/{number}.jpg").write_bytes(saved(scene(seed=number, side_px=64), "JPEG", quality=92))
    small, again, clean, files = (str(tmp_path / name) for name in ("small", "again", "clean", "files"))
    config = IngestConfig(resize_px=32)

    run_ingest(IngestJob(source=str(tmp_path / "source"), target=small, ingest=config), lambda progress: None)
    packed = ingest(Path(small), Path(again))
    denoised = run(DenoiseJob(source=small, target=clean, layout=Layout.PACKED))
    run(DenoiseJob(source=small, target=files))

    assert packed.outcomes["packed"] == denoised.outcomes["denoised"] == 2
    assert [photo.pixels.shape for photo in find_clean_photos(small)] == [(32, 32, 3)] * 2
    assert [row["reason"] for row in index_of(files).values()] == ["the name says JPEG, but the content is PNG"] * 2


def test_of_a_packed_image_set_only_what_changed_is_denoised_again(loop: Loop, job: DenoiseJob, tmp_path: Path) -> None:
    packed = dataclasses.replace(job, source=str(tmp_path / "packed"))
    ingest(Path(job.source), tmp_path / "packed")
    run(packed)
    (Path(job.source) / "1.png").write_bytes(saved(scene(seed=11, side_px=32), "PNG"))
    (Path(job.source) / "4.png").write_bytes(saved(scene(seed=4, side_px=32), "PNG"))
    ingest(Path(job.source), tmp_path / "packed")

    plan, summary = plan_work(denoise_work(packed)), run(packed)

    assert plan.photos == {Status.NEW: 1, Status.CHANGED: 1, Status.UP_TO_DATE: 3}
    assert (summary.outcomes["denoised"], summary.up_to_date) == (2, 3)
    run(dataclasses.replace(job, target=str(tmp_path / "direct")))
    assert photos_of(job.target) == photos_of(tmp_path / "direct")


def test_a_photo_whose_bytes_in_a_packed_set_are_damaged_is_a_row(loop: Loop, job: DenoiseJob, tmp_path: Path) -> None:
    ingest(Path(job.source), tmp_path / "packed")
    photo = (Path(job.source) / "2.png").read_bytes()
    for shard in (tmp_path / "packed/shards").iterdir():
        shard.write_bytes(shard.read_bytes().replace(photo[-60:], bytes(60)))

    summary = run(dataclasses.replace(job, source=str(tmp_path / "packed")))

    assert (summary.outcomes["denoised"], summary.outcomes["rejected"]) == (3, 1)
    assert index_of(job.target)["2.png"]["reason"].endswith(".parquet are damaged")


def test_a_damaged_photo_of_a_set_in_files_is_not_passed_on_and_is_done_when_it_is_sound(
    job: DenoiseJob, tmp_path: Path
) -> None:
    run(job)
    other = dataclasses.replace(job, source=job.target, target=str(tmp_path / "other"))
    photo = Path(job.target) / "images/2.png"
    sound = photo.read_bytes()
    photo.write_bytes((Path(job.target) / "images/1.png").read_bytes())

    first = run(other)
    reason = index_of(other.target)["2.png"]["reason"]
    photo.write_bytes(sound)
    second = run(other)

    assert (first.outcomes["rejected"], second.outcomes["rejected"], second.up_to_date) == (1, 0, 3)
    assert "its bytes are not those that the index of its image set tells of" in reason


def test_a_folder_with_a_manifest_of_something_else_is_a_folder_of_photos(job: DenoiseJob) -> None:
    (Path(job.source) / "manifest.json").write_text('{"name": "a web page"}')

    summary = run(job)

    assert (summary.outcomes["denoised"], summary.outcomes["untouched"]) == (4, 1)


def test_a_target_in_its_source_is_left_out_however_it_is_spelt(job: DenoiseJob, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(job.source)
    inside = dataclasses.replace(job, target=str(tmp_path / "alias/clean"))

    first, second = run(inside), run(inside)

    assert (first.inputs, second.inputs) == (4, 4)


def test_photos_that_the_targets_file_system_would_take_for_one_are_refused_and_may_be_packed(
    job: DenoiseJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path(store: LocalStore, key: str) -> Path:
        return store.root / (key.lower() if store.url != job.source else key)  # as exFAT, but for how it shows names

    monkeypatch.setattr(LocalStore, "_path", path)
    source = Path(job.source)
    (source / "0.png").rename(source / "A.png")
    (source / "1.png").rename(source / "a.png")

    with pytest.raises(ValueError, match=r"A\.png and a\.png would be one file"):
        run(job)

    assert run(dataclasses.replace(job, target=f"{job.target}-packed", layout=Layout.PACKED)).inputs == 4


def test_the_record_of_a_run_tells_what_repeats_it(job: DenoiseJob) -> None:
    summary = run(dataclasses.replace(job, denoise=DenoiseConfig(strength=0.5)))

    facts = json.loads((Path(job.target) / f"runs/{summary.run}.json").read_text())
    assert facts["settings"]["denoise"]["strength"] == 0.5
    assert facts["denoised"] == 4
    assert facts["versions"]["torch"]


@pytest.mark.parametrize("spelling", ["{folder}/0.png", "{folder}/../source/0.png", "{folder}/link.png"])
def test_one_photo_never_replaces_itself_or_another(job: DenoiseJob, spelling: str) -> None:
    photo = Path(job.source) / "0.png"
    (Path(job.source) / "link.png").symlink_to(photo)
    before = photo.read_bytes()

    with pytest.raises(ValueError, match="exists already"):
        denoise_one(str(photo), spelling.format(folder=job.source), weights="photo", config=DenoiseConfig())

    assert photo.read_bytes() == before


def test_one_photo_may_be_a_link_to_another_folder_and_is_called_like_it(job: DenoiseJob, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/latest.png").symlink_to(Path(job.source) / "0.png")

    record = denoise_one(
        str(tmp_path / "links/latest.png"), f"{tmp_path}/clean/", weights="photo", config=DenoiseConfig()
    )

    assert record["output"] == f"{tmp_path}/clean/latest.png"
    assert (tmp_path / "clean/latest.png").is_file()


def test_one_photo_for_which_there_is_no_room_leaves_nothing_behind(
    job: DenoiseJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", fill_disk)
    with pytest.raises(StorageError, match="no space left"):
        denoise_one(f"{job.source}/0.png", f"{tmp_path}/clean/", weights="photo", config=DenoiseConfig())

    assert list((tmp_path / "clean").iterdir()) == []
