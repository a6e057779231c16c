"""The life of a run, the same for every verb, with the real planner, workers and stores."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loop import Killed, Loop, index_of, photos_of, plan_work
from photos import saved, scene

from pipeline.cluster import ClusterConfig
from pipeline.denoise import DenoiseConfig
from pipeline.errors import ImageSetError, ObjectMissing, RunFailed, TargetInUse
from pipeline.ingest import IngestConfig, IngestJob, ingest_work, run_ingest
from pipeline.jobs import DenoiseJob, denoise_work, run_denoise
from pipeline.listing import write_listing
from pipeline.local_store import LocalStore
from pipeline.planning import PlanCounts
from pipeline.records import Layout, Status
from pipeline.verify import VerifyJob, run_verify
from pipeline.work import Progress, Summary, Work

ONE_A_SHARD = ClusterConfig(workers=4)


@dataclass(frozen=True)
class Verb:
    """How a verb is called, what most photos end as, and its settings, which are other ones in `others`."""

    job: Callable[..., Any]
    work: Callable[[Any], Work]
    do: Callable[..., Summary]
    outcome: str
    others: dict[str, Any]

    def plan(self, job: Any) -> PlanCounts:
        return plan_work(self.work(job))

    def __call__(self, job: Any, **changes: Any) -> Summary:
        return self.do(dataclasses.replace(job, **changes), lambda progress: None)


VERBS = {
    "denoise": Verb(DenoiseJob, denoise_work, run_denoise, "denoised", {"denoise": DenoiseConfig(strength=0.3)}),
    "ingest": Verb(IngestJob, ingest_work, run_ingest, "packed", {"ingest": IngestConfig(resize_px=16)}),
}


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop.instead_of_cluster(monkeypatch)


@pytest.fixture(params=VERBS.values(), ids=VERBS)
def verb(request: pytest.FixtureRequest) -> Verb:
    return request.param


@pytest.fixture
def job(loop: Loop, verb: Verb, tmp_path: Path) -> Any:
    """Four photos, each in a shard of its own."""
    (tmp_path / "source").mkdir()
    for number in range(4):
        (tmp_path / f"source/{number}.png").write_bytes(saved(scene(seed=number, side_px=32), "PNG"))
    return verb.job(source=str(tmp_path / "source"), target=str(tmp_path / "target"), cluster=ONE_A_SHARD)


def killed(verb: Verb, job: Any, loop: Loop, *, after: int, before_commit: bool = False, **changes: Any) -> None:
    """Run until so many more shards are done."""
    loop.dies_after, loop.dies_before_commit = loop.shards + after, before_commit
    with pytest.raises(Killed):
        verb(job, **changes)
    loop.dies_after = 10**9


def counts(summary: Summary, verb: Verb) -> tuple[int, int, int]:
    return summary.inputs, summary.outcomes[verb.outcome], summary.up_to_date


@pytest.mark.parametrize("dies_after", range(4))
@pytest.mark.parametrize("dies_before_commit", [False, True])
def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(
    verb: Verb, job: Any, loop: Loop, tmp_path: Path, dies_after: int, dies_before_commit: bool
) -> None:
    verb(job, target=str(tmp_path / "undisturbed"))
    killed(verb, job, loop, after=dies_after, before_commit=dies_before_commit)

    summary = verb(job)

    assert counts(summary, verb) == (4, 4 - dies_after, dies_after)
    assert photos_of(job.target) == photos_of(tmp_path / "undisturbed")
    assert len(photos_of(job.target)) == 4
    assert len(list((Path(job.target) / "plans").iterdir())) == 1


def test_a_second_run_on_the_target_is_refused_while_the_first_is_at_work_and_does_no_harm(
    verb: Verb, job: Any, loop: Loop
) -> None:
    def try_another(progress: Progress) -> None:
        with pytest.raises(TargetInUse, match=r"is in use by 'degrain (denoise|ingest)' \(process"):
            verb(job)
        assert verb.plan(job).planned_photos == 4 - progress.done

    assert verb.do(job, try_another).inputs == 4
    assert verb(job).up_to_date == 4


def test_a_run_that_is_interrupted_says_what_stays(verb: Verb, job: Any) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^interrupted: what is finished stays, and the same command does"):
        verb.do(job, interrupt)


@pytest.mark.parametrize("limit", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_what_an_abandoned_run_overwrote_is_made_right_again(
    verb: Verb, job: Any, loop: Loop, limit: int | None
) -> None:
    verb(job)
    before, [parameters] = photos_of(job.target), {row["parameters"] for row in index_of(job.target).values()}
    killed(verb, job, loop, after=1, before_commit=True, **verb.others)

    for _ in range(4):
        verb(job, limit=limit)

    assert photos_of(job.target) == before
    assert {row["parameters"] for row in index_of(job.target).values()} == {parameters}
    assert verb(job).up_to_date == 4


def test_what_an_abandoned_run_overwrote_is_made_right_again_after_a_subset_was_done(
    verb: Verb, job: Any, loop: Loop, tmp_path: Path
) -> None:
    verb(job)
    before = photos_of(job.target)
    killed(verb, job, loop, after=0, before_commit=True, **verb.others)
    write_listing((each for each in LocalStore(Path(job.source)).list() if each.key == "3.png"), tmp_path / "keys")

    subset, whole = verb(job, key_table=str(tmp_path / "keys")), verb(job)

    assert (counts(subset, verb), counts(whole, verb)) == ((1, 1, 0), (4, 3, 1))
    assert photos_of(job.target) == before
    assert run_verify(VerifyJob(target=job.target), lambda *_: None).findings == 0


def test_what_was_tried_with_other_settings_in_the_middle_of_a_run_is_never_mistaken_for_its_own(
    verb: Verb, job: Any, loop: Loop, tmp_path: Path
) -> None:
    verb(job, target=str(tmp_path / "others"), **verb.others)
    killed(verb, job, loop, after=0)
    verb(job, limit=1, **verb.others)
    killed(verb, job, loop, after=0, before_commit=True)

    assert verb(job, **verb.others).inputs == 4
    assert photos_of(job.target) == photos_of(tmp_path / "others")


def test_a_run_that_goes_on_after_other_settings_were_tried_does_each_photo_as_a_new_attempt(
    verb: Verb, job: Any, loop: Loop
) -> None:
    killed(verb, job, loop, after=1)
    verb(job, limit=2, **verb.others)

    assert counts(verb(job), verb) == (4, 4, 0)
    assert {key: row["attempts"] for key, row in index_of(job.target).items()} == {
        "0.png": 3, "1.png": 3, "2.png": 2, "3.png": 2
    }  # fmt: skip
    assert len(photos_of(job.target)) == 4
    assert verb(job).up_to_date == 4


def test_what_an_abandoned_run_packed_and_never_committed_does_not_stay(job: Any, verb: Verb, loop: Loop) -> None:
    killed(verb, job, loop, after=0, before_commit=True, **verb.others)
    verb(job)

    shards = {row["shard"] for row in index_of(job.target).values() if row["output_key"].startswith("shards/")}
    assert {path.stem for path in (Path(job.target) / "shards").glob("*")} == shards


def test_other_settings_do_every_photo_again(verb: Verb, job: Any) -> None:
    verb(job)

    summary = verb(job, **verb.others)

    assert counts(summary, verb) == (4, 4, 0)
    assert len(photos_of(job.target)) == 4


def test_photos_that_came_while_a_run_lay_still_are_done_beside_it(verb: Verb, job: Any, loop: Loop) -> None:
    killed(verb, job, loop, after=2)
    (Path(job.source) / "new.png").write_bytes(saved(scene(side_px=32), "PNG"))

    summary = verb(job)

    assert counts(summary, verb) == (5, 3, 2)
    assert len(list((Path(job.target) / "runs").iterdir())) == 2


def test_photos_that_went_while_a_run_lay_still_are_rows_and_the_counts_add_up(
    verb: Verb, job: Any, loop: Loop
) -> None:
    killed(verb, job, loop, after=1)
    for number in (2, 3):
        (Path(job.source) / f"{number}.png").unlink()

    summary = verb(job)

    assert counts(summary, verb) == (4, 1, 1)
    assert summary.outcomes["rejected"] == 2
    assert sum(summary.outcomes.values()) + summary.up_to_date == summary.inputs


def test_a_photo_that_went_before_it_was_done_is_done_when_it_comes_back(
    verb: Verb, job: Any, loop: Loop, tmp_path: Path
) -> None:
    killed(verb, job, loop, after=0)
    (Path(job.source) / "3.png").rename(tmp_path / "3.png")
    assert verb(job).outcomes["rejected"] == 1
    (tmp_path / "3.png").rename(Path(job.source) / "3.png")

    assert counts(verb(job), verb) == (4, 1, 3)
    assert len(photos_of(job.target)) == 4


def test_a_photo_that_went_before_it_was_done_again_keeps_its_row_and_its_result_and_may_come_back(
    verb: Verb, job: Any, loop: Loop
) -> None:
    verb(job)
    before, rows = photos_of(job.target), index_of(job.target)
    killed(verb, job, loop, after=0, **verb.others)
    (Path(job.source) / "3.png").rename(Path(job.source).with_name("3.png"))

    assert verb(job, **verb.others).outcomes["rejected"] == 1

    assert photos_of(job.target)["3.png"] == before["3.png"]
    assert index_of(job.target)["3.png"] == {**rows["3.png"], "attempts": 2}
    assert run_verify(VerifyJob(target=job.target), lambda *_: None).kinds == {}

    Path(job.source).with_name("3.png").rename(Path(job.source) / "3.png")
    verb(job, **verb.others)
    assert photos_of(job.target)["3.png"] != before["3.png"]


def test_a_photo_that_changed_while_a_run_lay_still_ends_up_as_it_is_now(verb: Verb, job: Any, loop: Loop) -> None:
    killed(verb, job, loop, after=1)
    (Path(job.source) / "3.png").write_bytes(saved(scene(seed=33, side_px=32), "PNG"))
    verb(job)
    verb(job)

    assert verb(job).up_to_date == 4
    assert index_of(job.target)["3.png"]["source_size_bytes"] == (Path(job.source) / "3.png").stat().st_size
    assert len(photos_of(job.target)) == 4


def test_a_limit_is_kept_when_an_interrupted_run_goes_on(verb: Verb, job: Any, loop: Loop) -> None:
    killed(verb, job, loop, after=1)

    limited = verb(job, limit=2)
    rest = verb(job)

    assert counts(limited, verb) == (3, 2, 1)
    assert counts(rest, verb) == (4, 1, 3)


def test_a_sample_does_its_share_and_the_whole_run_the_rest(verb: Verb, job: Any, tmp_path: Path) -> None:
    sample = verb(job, sample=0.001)
    before = {key: row["run"] for key, row in index_of(job.target).items()}

    whole = verb(job)

    assert (counts(sample, verb), counts(whole, verb)) == ((1, 1, 0), (4, 3, 1))
    assert before.items() <= {key: row["run"] for key, row in index_of(job.target).items()}.items()
    verb(job, target=str(tmp_path / "undisturbed"))
    assert photos_of(job.target) == photos_of(tmp_path / "undisturbed")


def test_a_sample_that_was_killed_goes_on(verb: Verb, job: Any, loop: Loop) -> None:
    killed(verb, job, loop, after=0, sample=0.001)

    assert counts(verb(job, sample=0.001), verb) == (1, 1, 0)


def test_a_sample_is_refused_where_a_whole_run_was_interrupted(verb: Verb, job: Any, loop: Loop) -> None:
    killed(verb, job, loop, after=1)

    with pytest.raises(ValueError, match="was interrupted, and has 3 photos to do: go on with it without a sample"):
        verb(job, sample=0.001)

    assert counts(verb(job), verb) == (4, 3, 1)


def test_a_changed_photo_alone_is_done_again(verb: Verb, job: Any, tmp_path: Path) -> None:
    verb(job)
    before = index_of(job.target)
    (Path(job.source) / "2.png").write_bytes(saved(scene(seed=22, side_px=32), "PNG"))
    os.utime(Path(job.source) / "1.png")  # another etag: it may have changed

    summary = verb(job)

    again = {key for key, row in index_of(job.target).items() if row["run"] != before[key]["run"]}
    assert (counts(summary, verb), again) == ((4, 2, 2), {"1.png", "2.png"})
    verb(job, target=str(tmp_path / "fresh"))
    assert photos_of(job.target) == photos_of(tmp_path / "fresh")


def test_too_many_rejected_photos_end_the_run_and_can_be_tried_again(verb: Verb, job: Any) -> None:
    good = {path: path.read_bytes() for path in Path(job.source).iterdir()}
    for path in good:
        path.write_bytes(b"")
    with pytest.raises(RunFailed, match=r"1 of 4 photos were rejected, more than the allowed share of 0;"):
        verb(job, max_rejected_fraction=0.0)
    assert [row["reason"] for row in index_of(job.target).values()] == ["the file is empty"]

    for path, data in good.items():
        times = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert counts(verb(job, retry_failed=True), verb) == (4, 4, 0)


def test_what_was_rejected_before_and_is_left_for_later_is_an_input_all_the_same(verb: Verb, job: Any) -> None:
    for path in Path(job.source).iterdir():
        path.write_bytes(b"")
    verb(job)

    summary = verb(job, retry_failed=True, limit=1)

    assert (summary.inputs, summary.outcomes["rejected"], summary.rejected_before) == (4, 1, 3)


def test_as_many_rejected_photos_as_are_allowed_are_not_too_many(verb: Verb, job: Any) -> None:
    for number in range(15):
        (Path(job.source) / f"empty-{number}.png").write_bytes(b"")
    for number in range(4, 7):
        (Path(job.source) / f"{number}.png").write_bytes(saved(scene(seed=number, side_px=32), "PNG"))

    assert verb(job, max_rejected_fraction=15 / 22).outcomes["rejected"] == 15  # 15 / 22 * 22 is less than 15


@pytest.mark.parametrize(("finished", "fraction"), [pytest.param(1, 0.0, marks=pytest.mark.slow), (4, 0.9)])
def test_too_many_rejected_photos_are_too_many_however_often_their_run_is_taken_up(
    verb: Verb, job: Any, loop: Loop, finished: int, fraction: float
) -> None:
    for path in Path(job.source).iterdir():
        path.write_bytes(b"")
    if finished > 1:
        killed(verb, job, loop, after=finished - 1)
    for _ in range(3):
        with pytest.raises(RunFailed, match=f"{finished} of 4 photos were rejected"):
            verb(job, max_rejected_fraction=fraction)
        assert len(index_of(job.target)) == finished

    summary = verb(job)

    assert (summary.inputs, summary.outcomes["rejected"], summary.rejected_before) == (4, 4 - finished, finished)
    assert verb(job, max_rejected_fraction=0.0).rejected_before == 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("limit", 0),
        ("sample", 0),
        ("sample", 1.1),
        ("sample", float("nan")),
        ("max_rejected_fraction", -0.1),
        ("max_rejected_fraction", float("nan")),
    ],
)
def test_a_setting_outside_of_its_range_is_refused_before_anything_starts(
    verb: Verb, job: Any, setting: str, value: float
) -> None:
    with pytest.raises(ValueError, match=f"{setting} is {value}: expected"):
        verb(job, **{setting: value})

    assert not Path(job.target).exists()


@pytest.mark.parametrize("folder", ["plans", "commits", "index"])
def test_a_damaged_object_of_the_set_is_named_with_what_to_do(verb: Verb, job: Any, loop: Loop, folder: str) -> None:
    if folder == "index":
        verb(job)
    else:
        killed(verb, job, loop, after=2)
    for path in (Path(job.target) / folder).iterdir():
        path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(
        ImageSetError, match=rf"/{folder}/.*\.parquet is damaged: .* \(degrain verify {job.target} --repair"
    ):
        verb(job)


def test_a_part_of_the_index_that_is_gone_is_named_with_what_to_do(verb: Verb, job: Any) -> None:
    verb(job)
    for path in (Path(job.target) / "index").iterdir():
        path.unlink()

    with pytest.raises(ObjectMissing, match=rf"cannot read index/.* \(degrain verify {job.target} --repair"):
        verb(job)


def test_files_that_a_desktop_leaves_behind_do_no_harm(verb: Verb, job: Any) -> None:
    Path(job.target).mkdir()
    (Path(job.target) / ".DS_Store").write_bytes(b"view")
    verb(job)
    for folder in ("plans", "commits", "runs"):
        (Path(job.target) / folder / ".DS_Store").write_bytes(b"view")

    assert verb(job).up_to_date == 4


def test_a_dry_run_tells_what_is_left_of_an_interrupted_run(verb: Verb, job: Any, loop: Loop) -> None:
    killed(verb, job, loop, after=1)
    before = sorted(Path(job.target).rglob("*"))

    counts = verb.plan(job)

    assert (counts.photos[Status.PLANNED], counts.planned_photos) == (3, 3)
    assert sorted(Path(job.target).rglob("*")) == before


@pytest.mark.parametrize("verb", [VERBS["ingest"]], ids=["ingest"])
def test_a_set_that_one_verb_began_is_refused_to_another(verb: Verb, job: Any, loop: Loop) -> None:
    killed(verb, job, loop, after=1)
    other = DenoiseJob(source=job.source, target=job.target, layout=Layout.PACKED, limit=1)

    with pytest.raises(ValueError, match="holds photos that are packed, which another command made"):
        run_denoise(other, lambda progress: None)
    assert counts(verb(job), verb) == (4, 3, 1)


@pytest.mark.parametrize("verb", [VERBS["ingest"]], ids=["ingest"])
def test_a_set_that_one_verb_made_is_refused_to_another(verb: Verb, job: Any) -> None:
    verb(job)
    other = DenoiseJob(source=job.source, target=job.target, layout=Layout.PACKED)

    for refused in (lambda job: plan_work(denoise_work(job)), lambda job: run_denoise(job, lambda progress: None)):
        with pytest.raises(ValueError, match="holds photos that are packed, which another command made"):
            refused(other)
