"""What the commands do, with the real planner, workers and stores; a loop in this process replaces the cluster."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from photos import saved, scene

from pipeline import jobs
from pipeline.cluster import ClusterConfig, ShardWorker
from pipeline.denoise import DenoiseConfig
from pipeline.errors import ImageSetError, RunFailed
from pipeline.imageset import ImageSet
from pipeline.jobs import DenoiseJob, Summary, plan_denoise, run_denoise
from pipeline.one_photo import denoise_one
from pipeline.records import Receipt, ShardPlan, Status
from pipeline.storage import LocalStore


class Killed(BaseException):
    """Stands for the death of the process."""


class Loop:
    """Does shards one after the other here, and dies where it is told to."""

    def __init__(self) -> None:
        self.shards = 0
        self.dies_after = 10**9
        self.dies_before_commit = False

    def __call__(
        self, plans: Iterable[ShardPlan], make_worker: Callable[[int], ShardWorker], config: ClusterConfig
    ) -> Iterator[Receipt]:
        worker = make_worker(1)
        for plan in plans:
            if self.shards == self.dies_after:
                self._die(worker, plan)
            yield worker.run(plan, {})
            self.shards += 1

    def _die(self, worker: ShardWorker, plan: ShardPlan) -> None:
        if self.dies_before_commit:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ImageSet, "commit", lambda *_: None)
                worker.run(plan, {})
        raise Killed


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(jobs, "connected", lambda _: nullcontext())
    monkeypatch.setattr(jobs, "map_shards", loop)
    return loop


@pytest.fixture
def job(loop: Loop, tmp_path: Path) -> DenoiseJob:
    (tmp_path / "source").mkdir()
    for number in range(4):
        (tmp_path / f"source/{number}.png").write_bytes(saved(scene(seed=number, side_px=32), "PNG"))
    return DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))


def run(job: DenoiseJob) -> Summary:
    return run_denoise(job, lambda progress: None)


def with_strength(job: DenoiseJob, strength: float) -> DenoiseJob:
    return dataclasses.replace(job, denoise=DenoiseConfig(strength=strength))


def index_of(job: DenoiseJob) -> dict[str, dict]:
    target = Path(job.target)
    manifest = json.loads((target / "manifest.json").read_text())
    return {row["key"]: row for part in manifest["index"] for row in pq.read_table(target / part).to_pylist()}


def assert_sound(job: DenoiseJob) -> None:
    """Every row's object is there, and is the one that the row speaks of."""
    store = LocalStore(Path(job.target))
    for row in index_of(job).values():
        if row["output_key"] is not None:
            assert row["output_sha256"] == hashlib.sha256(store.read(row["output_key"])).hexdigest()


@pytest.mark.parametrize("dies_after", range(4))
@pytest.mark.parametrize("dies_before_commit", [False, True])
def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(
    job: DenoiseJob, loop: Loop, dies_after: int, dies_before_commit: bool
) -> None:
    loop.dies_after, loop.dies_before_commit = dies_after, dies_before_commit
    with pytest.raises(Killed):
        run(job)

    loop.dies_after = 10**9
    summary = run(job)

    assert (summary.inputs, summary.denoised, summary.up_to_date) == (4, 4 - dies_after, dies_after)
    assert len(index_of(job)) == 4
    assert_sound(job)
    assert len(list((Path(job.target) / "plans").iterdir())) == 1


@pytest.mark.parametrize("limit", [None, 1])
def test_what_an_abandoned_run_overwrote_is_made_right_again(job: DenoiseJob, loop: Loop, limit: int | None) -> None:
    run(job)
    loop.dies_after, loop.dies_before_commit = loop.shards + 1, True
    with pytest.raises(Killed):
        run(with_strength(job, 0.3))

    loop.dies_after = 10**9
    for _ in range(4):
        run(dataclasses.replace(job, limit=limit))

    assert_sound(job)
    assert {row["strength"] for row in index_of(job).values()} == {1.0}
    assert run(job).up_to_date == 4


def test_photos_that_came_while_a_run_lay_still_are_done_beside_it(job: DenoiseJob, loop: Loop) -> None:
    loop.dies_after = 2
    with pytest.raises(Killed):
        run(job)
    (Path(job.source) / "new.png").write_bytes(saved(scene(side_px=32), "PNG"))

    loop.dies_after = 10**9
    summary = run(job)

    assert (summary.inputs, summary.denoised, summary.up_to_date) == (5, 3, 2)
    assert len(list((Path(job.target) / "runs").iterdir())) == 2


def test_photos_that_went_while_a_run_lay_still_are_rows_and_the_counts_add_up(job: DenoiseJob, loop: Loop) -> None:
    loop.dies_after = 1
    with pytest.raises(Killed):
        run(job)
    for number in (2, 3):
        (Path(job.source) / f"{number}.png").unlink()

    loop.dies_after = 10**9
    summary = run(job)

    assert (summary.inputs, summary.denoised, summary.rejected, summary.up_to_date) == (4, 1, 2, 1)


def test_a_photo_that_changed_while_a_run_lay_still_ends_up_as_it_is_now(job: DenoiseJob, loop: Loop) -> None:
    loop.dies_after = 1
    with pytest.raises(Killed):
        run(job)
    (Path(job.source) / "3.png").write_bytes(saved(scene(seed=33, side_px=32), "PNG"))
    loop.dies_after = 10**9
    run(job)
    run(job)

    assert run(job).up_to_date == 4
    changed = index_of(job)["3.png"]
    assert changed["source_size_bytes"] == (Path(job.source) / "3.png").stat().st_size
    assert_sound(job)


def test_a_limit_is_kept_when_an_interrupted_run_goes_on(job: DenoiseJob, loop: Loop) -> None:
    loop.dies_after = 1
    with pytest.raises(Killed):
        run(job)

    loop.dies_after = 10**9
    limited = run(dataclasses.replace(job, limit=2))
    rest = run(job)

    assert (limited.inputs, limited.denoised, limited.up_to_date) == (3, 2, 1)
    assert (rest.inputs, rest.denoised, rest.up_to_date) == (4, 1, 3)


def test_too_many_rejected_photos_end_the_run_and_can_be_tried_again(job: DenoiseJob) -> None:
    good = {path: path.read_bytes() for path in Path(job.source).iterdir()}
    for path in good:
        path.write_bytes(b"")
    with pytest.raises(RunFailed, match=r"1 of 4 photos were rejected, more than the allowed share of 0;"):
        run(dataclasses.replace(job, max_rejected_fraction=0.0))
    assert [row["reason"] for row in index_of(job).values()] == ["the file is empty"]

    for path, data in good.items():
        times = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    summary = run(dataclasses.replace(job, retry_failed=True))

    assert (summary.denoised, summary.up_to_date) == (4, 0)


def test_an_image_set_can_be_a_source(job: DenoiseJob, tmp_path: Path) -> None:
    run(job)

    second = run(dataclasses.replace(job, source=job.target, target=str(tmp_path / "second")))

    assert second.denoised == 4
    assert sorted(path.name for path in (tmp_path / "second/images").iterdir()) == [f"{n}.png" for n in range(4)]


def test_a_folder_with_a_manifest_of_something_else_is_a_folder_of_photos(job: DenoiseJob) -> None:
    (Path(job.source) / "manifest.json").write_text('{"name": "a web page"}')

    summary = run(job)

    assert (summary.denoised, summary.untouched) == (4, 1)


def test_a_target_in_its_source_is_left_out_however_it_is_spelt(job: DenoiseJob, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(job.source)
    inside = dataclasses.replace(job, target=str(tmp_path / "alias/clean"))

    first, second = run(inside), run(inside)

    assert (first.inputs, second.inputs) == (4, 4)


@pytest.mark.parametrize("folder", ["plans", "commits", "index"])
def test_a_damaged_object_of_the_set_is_named(job: DenoiseJob, loop: Loop, folder: str) -> None:
    loop.dies_after = 2 if folder != "index" else 10**9
    if folder == "index":
        run(job)
    else:
        with pytest.raises(Killed):
            run(job)
    for path in (Path(job.target) / folder).iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    loop.dies_after = 10**9

    with pytest.raises(ImageSetError, match=rf"/{folder}/.*\.parquet is damaged"):
        run(job)


def test_files_that_a_desktop_leaves_behind_do_no_harm(job: DenoiseJob) -> None:
    Path(job.target).mkdir()
    (Path(job.target) / ".DS_Store").write_bytes(b"view")
    run(job)
    for folder in ("plans", "commits", "runs"):
        (Path(job.target) / folder / ".DS_Store").write_bytes(b"view")

    assert run(job).up_to_date == 4


def test_a_dry_run_tells_what_is_left_of_an_interrupted_run(job: DenoiseJob, loop: Loop) -> None:
    loop.dies_after = 1
    with pytest.raises(Killed):
        run(job)
    before = sorted(Path(job.target).rglob("*"))

    counts = plan_denoise(job)

    assert (counts.photos[Status.PLANNED], counts.planned_photos) == (3, 3)
    assert sorted(Path(job.target).rglob("*")) == before


def test_the_record_of_a_run_tells_what_repeats_it(job: DenoiseJob) -> None:
    summary = run(with_strength(job, 0.5))

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
