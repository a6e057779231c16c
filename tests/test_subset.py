"""Filters that can do nothing but choose, and a split that gives the same answer everywhere, now and later."""

import re

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import INDEX_SCHEMA
from pipeline.subset import Split, Subset, check_filter, split_of

ISO = {"a.jpg": 100, "b.jpg": 6400, "c.jpg": None}


def chosen(keys: dict[str, int | None], subset: Subset) -> list[str]:
    """The keys of an index that a subset holds, by SQL."""
    columns = {"key": list(keys), "iso": list(keys.values())}
    rows = pa.table(
        [pa.array(columns.get(column.name, [None] * len(keys)), column.type) for column in INDEX_SCHEMA],
        INDEX_SCHEMA.names,
    )
    with duckdb.connect() as database:
        database.register("photos", rows)
        found = database.sql(f"SELECT key FROM photos WHERE {subset.condition} ORDER BY key").fetchall()
    return [key for (key,) in found]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", ["a.jpg", "b.jpg", "c.jpg"]),
        ("iso <= 400", ["a.jpg"]),
        ("iso <= 400 OR key > 'b'", ["a.jpg", "b.jpg", "c.jpg"]),
        ("iso IS NULL", ["c.jpg"]),
        ("photos.iso > 400 -- the noisy ones", ["b.jpg"]),
    ],
)
def test_a_filter_chooses_by_the_columns_of_the_index(where: str, expected: list[str]) -> None:
    assert chosen(ISO, Subset(where=where)) == expected


@pytest.mark.parametrize(
    "where", ["iso <= 400 and megapixels >= 0.2", "camera ILIKE 'canon%'", "taken_at > '2019-05-01'"]
)
def test_what_an_archive_is_asked_for_is_a_filter(where: str) -> None:
    check_filter(where)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("isoo < 3", 'column "isoo" not found.*Candidate bindings: "iso"'),
        ("iso = 'many'", "Could not convert string 'many' to INT32"),
        ("iso >", "syntax error at end of input$"),
        ("iso > (", "syntax error at end of input$"),
        ("iso > 3)", r'syntax error at or near "\)"$'),
        ("iso /*", r'unterminated /\* comment at or near "/\*"$'),
        ("camera = 'x", """unterminated quoted string at or near "'x"$"""),
        ("iso", "expected one condition, and it is INTEGER"),
        ("camera", "expected one condition, and it is VARCHAR"),
        ("COLUMNS(*) IS NOT NULL", "expected one condition"),
        ("iso > 3; DROP TABLE photos", "expected one condition"),
        ("iso > 3; FROM photos", "expected one condition"),
        ("true ORDER BY iso", "expected one condition"),
        ("true LIMIT 1", "expected one condition"),
        ("true UNION SELECT * FROM read_csv('/etc/passwd')", "expected one condition"),
        ("iso < 400) OR (iso > 1000", r'syntax error at or near "\)"$'),
        ("true) LIMIT (1", r'syntax error at or near "\)"$'),
        ("true) UNION SELECT * FROM read_csv('/etc/passwd') WHERE (true", r'syntax error at or near "\)"$'),
        ("EXISTS (FROM read_text('/etc/passwd'))", "it holds a query of its own"),
        ("iso IN (SELECT 1)", "it holds a query of its own"),
        ("iso = ALL (FROM photos SELECT iso)", "it holds a query of its own"),
        ("iso > $1", "expected one condition"),
        ("count(*) > 1", "aggregates"),
        ("row_number() OVER () < 3", "window functions"),
        ("random() < 0.5", r"random\(\) gives another answer each time"),
        ("getenv('HOME') <> ''", "getenv does not exist"),
    ],
)
def test_what_is_no_filter_is_one_clear_line(where: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Subset(where=where)

    message = str(caught.value)
    assert message.startswith(f"cannot filter by {where!r}: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_is_one(fraction: float) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"validation_fraction is {fraction}: expected a number from 0 to 1")
    ):
        Subset(validation_fraction=fraction)


def test_a_split_is_that_of_all_other_versions() -> None:
    keys = [f"{number:02}/IMG_{number}.jpg" for number in range(40)]

    validation = [number for number, key in enumerate(keys) if split_of(key, 0.2) == Split.VALIDATION]

    assert validation == [13, 20]


@settings(max_examples=20)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=20), st.floats(0, 1))
def test_sql_and_python_split_alike_and_every_key_is_in_one_part(keys: list[str], fraction: float) -> None:
    parts = {split: chosen(dict.fromkeys(keys), Subset(split=split, validation_fraction=fraction)) for split in Split}

    assert sorted(parts[Split.TRAIN] + parts[Split.VALIDATION]) == sorted(keys)
    assert {key: split for split, members in parts.items() for key in members} == {
        key: split_of(key, fraction) for key in keys
    }


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_validation_set_holds_the_smaller_one(key: str, one: float, other: float) -> None:
    smaller, larger = sorted([one, other])

    if split_of(key, smaller) == Split.VALIDATION:
        assert split_of(key, larger) == Split.VALIDATION


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_a_split_has_the_size_that_it_was_asked_for(fraction: float) -> None:
    keys = [f"2019/{number}.jpg" for number in range(10_000)]

    count = sum(split_of(key, fraction) == Split.VALIDATION for key in keys)

    assert count == pytest.approx(fraction * len(keys), rel=0.1)


def test_a_filter_and_a_split_hold_together() -> None:
    keys = {f"{number}.jpg": number for number in range(200)}

    found = chosen(keys, Subset(where="iso < 100 OR iso > 150", split=Split.VALIDATION, validation_fraction=0.3))

    assert found == sorted(
        key for key, iso in keys.items() if (iso < 100 or iso > 150) and split_of(key, 0.3) == Split.VALIDATION
    )
