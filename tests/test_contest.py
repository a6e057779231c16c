"""Benchmarks are fair."""

from benchmarks.contest import in_turn


def test_whoever_is_first_in_a_round_is_last_in_the_next_one() -> None:
    assert [name for _, name in in_turn("abc", rounds=3)] == list("abccbaabc")
    assert [turn for turn, _ in in_turn("abc", rounds=3)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
