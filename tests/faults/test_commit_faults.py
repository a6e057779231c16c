"""Runs of denoise in both layouts, and of ingest, that are killed by SIGKILL at every step of the commit protocol.

In a folder, or in a bucket; whatever was killed, and however often: the next run ends in what an undisturbed one ends
in. See `doomed.contents` for what is compared, and for the little that is not.
"""

import random
import uuid
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from faults.doomed import Work, contents, run_until
from photos import saved, scene
from seaweed import BUCKET

from pipeline.fault_points import FaultPoint
from pipeline.storage import open_store

pytestmark = pytest.mark.faults

PHOTOS = 6
BEGUN = 3  # of them are done by a run before, where a target is begun
POINTS = [point for point in FaultPoint if point != FaultPoint.WEIGHTS_COPIED]  # that one is of another command

Case = tuple[FaultPoint, Work, str, bool]


def is_passed(case: Case) -> bool:
    """Whether a run comes to the point at all: a step that it has not is no step to be killed at."""
    point, work, place, is_begun = case
    return {
        FaultPoint.OBJECT_HALF_WRITTEN: place == "folder",
        FaultPoint.PHOTO_WRITTEN: work == Work.FILES,
        FaultPoint.OLD_PART_REMOVED: is_begun,
    }.get(point, True)


CASES = [case for case in product(POINTS, Work, ["folder", "bucket"], [False, True]) if is_passed(case)]
SOME = [(Work.FILES, "folder", True), (Work.PACKED, "bucket", False), (Work.INGEST, "folder", True)]
IN_CI = [case for case in CASES if case[1:] in SOME][2::8]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(PHOTOS - 1):
        (folder / f"{number}.png").write_bytes(saved(scene(seed=number, side_px=32), "PNG"))
    (folder / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Work, bool], dict]:
    """What a target holds in the end."""
    found: dict[tuple[Work, bool], dict] = {}

    def of(work: Work, is_begun: bool) -> dict:
        if (work, is_begun) not in found:
            target = str(tmp_path_factory.mktemp("undisturbed") / "target")
            for limit in [BEGUN, None] if is_begun else [None]:
                assert not run_until("", source, target, work, limit=limit)
            found[work, is_begun] = contents(open_store(target))
        return found[work, is_begun]

    return of


@pytest.fixture
def new_target(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Makes the URL of an empty folder or of one of a bucket."""

    def make(place: str) -> str:
        name = uuid.uuid4().hex
        if place == "folder":
            return str(tmp_path / name)
        request.getfixturevalue("seaweed_url")
        return f"s3://{BUCKET}/{name}"

    return make


def kill_and_run_again(
    case: Case, nth: int, source: Path, new_target: Callable[[str], str], undisturbed: Callable[[Work, bool], dict]
) -> bool:
    """Whether the run was killed; in any case, what is there in the end is what should be."""
    point, work, place, is_begun = case
    target = new_target(place)
    if is_begun:
        assert not run_until("", source, target, work, limit=BEGUN)
    was_killed = run_until(f"{point}:{nth}", source, target, work)
    if was_killed:
        assert not run_until("", source, target, work, workers=3)
    assert contents(open_store(target)) == undisturbed(work, is_begun)
    return was_killed


@pytest.mark.parametrize("case", IN_CI, ids=lambda case: "-".join(map(str, case)))
def test_a_run_that_was_killed_ends_as_an_undisturbed_one(
    case: Case, source: Path, new_target: Callable, undisturbed: Callable, survived: Callable[[int], None]
) -> None:
    assert kill_and_run_again(case, 1, source, new_target, undisturbed)
    survived(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in IN_CI], ids=lambda case: "-".join(map(str, case))
)
def test_a_run_that_was_killed_at_any_step_ends_as_an_undisturbed_one(
    case: Case, source: Path, new_target: Callable, undisturbed: Callable, survived: Callable[[int], None]
) -> None:
    assert kill_and_run_again(case, 1, source, new_target, undisturbed)
    survived(1)


@pytest.mark.slow
@pytest.mark.timeout(600)  # some fifty runs, one after another
@pytest.mark.parametrize("work", Work)
def test_a_run_may_be_killed_at_any_of_its_writes(
    work: Work, source: Path, new_target: Callable, undisturbed: Callable, survived: Callable[[int], None]
) -> None:
    case, nth = (FaultPoint.OBJECT_HALF_WRITTEN, work, "folder", False), 1
    while kill_and_run_again(case, nth, source, new_target, undisturbed):
        nth += 1
    survived(nth - 1)
    assert nth > PHOTOS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_runs_that_are_killed_again_and_again_end_as_an_undisturbed_one(
    seed: int, source: Path, new_target: Callable, undisturbed: Callable, survived: Callable[[int], None]
) -> None:
    chance = random.Random(seed)
    work, place = chance.choice(list(Work)), chance.choice(["folder", "bucket"])
    target = new_target(place)

    kills = 0
    for _ in range(8):
        fault = f"{chance.choice(POINTS)}:{chance.randint(1, 4)}"
        kills += run_until(fault, source, target, work, workers=chance.randint(1, 4))
    run_until("", source, target, work)

    assert contents(open_store(target)) == undisturbed(work, False)
    survived(kills)
