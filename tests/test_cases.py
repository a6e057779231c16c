"""What is done next about a shard whose worker died, took too long or was lost."""

from collections.abc import Collection, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cases import POISON_REASON, Case, End, Ending, Task, after
from pipeline.errors import RunFailed
from pipeline.records import PlannedPhoto, ShardPlan

KEYS = "abcdefgh"


def case(keys: str = KEYS, **state: int) -> Case:
    photos = tuple(PlannedPhoto(key, 1, "etag", 1) for key in keys)
    return Case(ShardPlan("shard", "run", photos), photo_timeout_s=60.0, **state)


def keys_of(tasks: list[Task]) -> list[str | None]:
    return [task.photo and task.photo.key for task in tasks]


def died(*suspects: str) -> Ending:
    return Ending(End.DIED, frozenset(suspects))


def play(found: Case, poison: Collection[str], suspects: Collection[str]) -> Iterator[str | None]:
    """Do a shard of which some photos kill their worker, until it is done; the keys that are tried, None for all."""
    tasks = [Task(found)]
    while tasks:
        task = tasks.pop(0)
        yield task.photo and task.photo.key
        dies = bool({photo.key for photo in task.photos} & set(poison) - set(found.poisonous))
        if task.photo is None and not dies:
            return
        tasks = after(task, died(*suspects) if dies else None) + tasks


def test_after_a_second_death_those_in_work_then_are_tried_first() -> None:
    found = case(deaths=1)

    assert keys_of(after(Task(found), died("c", "d"))) == ["c", "d"]


def test_where_it_was_none_of_those_in_work_all_others_are_tried() -> None:
    assert list(play(case("abcd"), {"b"}, {"c"})) == [None, None, "c", "a", "b", "b", "d", None]


def test_one_death_in_a_search_may_be_bad_luck_and_two_are_the_photos() -> None:
    found = case("ab", deaths=2, to_probe=2)
    photo = found.plan.photos[0]

    [again] = after(Task(found, photo), died())
    assert (again.photo, found.poisonous) == (photo, {})

    assert after(again, died()) == []
    assert found.poisonous == {"a": POISON_REASON}
    assert keys_of(after(Task(found, found.plan.photos[1]), None)) == [None]


@given(st.sets(st.sampled_from(KEYS)), st.sets(st.sampled_from(KEYS)))
def test_all_photos_that_kill_are_found_and_no_others_whatever_was_in_work(
    poison: set[str], suspects: set[str]
) -> None:
    found = case()

    list(play(found, poison, suspects))

    assert set(found.poisonous) == poison


def test_deaths_that_no_photo_explains_end_the_run() -> None:
    with pytest.raises(RunFailed, match="lost 6 workers, and no single photo of it is to blame"):
        after(Task(case("a", deaths=5)), died())


def test_what_was_lost_with_a_node_or_for_a_neighbour_is_done_again_and_not_blamed() -> None:
    found = case()

    for end in (End.NODE_LOST, End.NODE_LOST, End.LOST):
        assert keys_of(after(Task(found), Ending(end))) == [None]
    assert found.deaths == 0


def test_a_shard_under_which_node_after_node_goes_is_suspected_at_last() -> None:
    found = case()

    for _ in range(6):
        tasks = after(Task(found), Ending(End.NODE_LOST))

    assert keys_of(tasks) == list(KEYS)


def test_a_photo_that_was_slow_beside_others_is_tried_alone_before_it_is_blamed() -> None:
    found = case()

    [probe] = after(Task(found), Ending(End.TOO_SLOW, frozenset("c")))
    assert keys_of([probe]) == ["c"]
    assert not found.poisonous

    assert keys_of(after(probe, Ending(End.TOO_SLOW))) == [None]
    assert found.poisonous == {"c": "its processing took longer than 60 s, the limit for one photo"}


def test_after_a_false_alarm_a_shard_has_more_time_and_a_photo_alone_has_not() -> None:
    found = case()

    [probe] = after(Task(found), Ending(End.TOO_SLOW, frozenset("c")))
    [again] = after(probe, None)

    assert (probe.photo_timeout_s, again.photo_timeout_s) == (60.0, 120.0)
    assert not found.poisonous


def test_a_slow_photo_that_had_the_worker_for_itself_is_blamed_at_once() -> None:
    found = case()

    assert keys_of(after(Task(found), Ending(End.TOO_SLOW, frozenset("c"), is_certain=True))) == [None]
    assert set(found.poisonous) == {"c"}
