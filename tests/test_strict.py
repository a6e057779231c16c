"""Values of a file into dataclasses: nothing unknown, missing, or of another type gets in."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import pytest

from pipeline.strict import build


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int | None = None
    is_on: bool = False
    colour: Colour = Colour.RED
    strength: float | Literal["auto"] = 1.0
    inner: Inner = field(default_factory=Inner)
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count == 0:
            raise ValueError("count is 0: expected at least 1")


def test_values_become_what_they_are_declared_as() -> None:
    values = {"name": "a", "count": None, "colour": "blue", "strength": "auto", "inner": {"share": 1}}
    values["words"] = ["b", "c"]

    assert build(Outer, values) == Outer(name="a", colour=Colour.BLUE, strength="auto", words=("b", "c"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'name' is missing"),
        ({"name": "a", "cuont": 1}, "unknown setting 'cuont': expected one of name, count"),
        ({"name": "a", "inner": {"shore": 1}}, "unknown setting 'inner.shore'"),
        ({"name": "a", "inner": 3}, "inner is 3: expected settings by name"),
        ({"name": 1}, "name is 1: expected a text"),
        ({"name": "a", "count": 1.5}, "count is 1.5: expected a whole number"),
        ({"name": "a", "count": True}, "count is True: expected a whole number"),
        ({"name": "a", "is_on": 1}, "is_on is 1: expected true or false"),
        ({"name": "a", "colour": "green"}, "colour is 'green': expected red or blue"),
        ({"name": "a", "strength": "much"}, "strength is 'much': expected a number"),
        ({"name": "a", "inner": {"share": "1"}}, "inner.share is '1': expected a number"),
        ({"name": "a", "words": "b"}, "words is 'b': expected a list"),
        ({"name": "a", "words": ["b", 1]}, r"words\[1\] is 1: expected a text"),
        ({"name": "a", "count": 0}, "expected at least 1"),
        ([], r"the job is \[\]"),
    ],
)
def test_a_wrong_value_is_named(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Outer, values)
