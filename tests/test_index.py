"""The merge of committed rows into an index, against a simple model of what an index holds."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import row

from pipeline import index
from pipeline.index import Part, count_outcomes, merge
from pipeline.records import GONE, INDEX_SCHEMA, Outcome, PhotoRecord, index_table

PART_ROWS = 4


class Merger:
    """An index in a folder that rows are merged into, again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.merges = 0
        self.parts: list[Part] = []

    def __call__(self, rows: Sequence[PhotoRecord]) -> list[Part]:
        self.merges += 1
        folder = self.folder / str(self.merges)
        folder.mkdir()
        pq.write_table(index_table(rows), folder / "committed.parquet")
        self.parts = merge([part.path for part in self.parts], folder / "committed.parquet", folder)
        return self.parts

    @property
    def rows(self) -> list[dict]:
        return [row for part in self.parts for row in pq.read_table(part.path).to_pylist()]

    @property
    def duplicates(self) -> dict[str, str | None]:
        return {row["key"]: row["duplicate_of"] for row in self.rows}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PART_ROWS", PART_ROWS)


@pytest.fixture
def merger(tmp_path: Path) -> Merger:
    return Merger(tmp_path)


def test_an_index_of_nothing_is_one_part_without_rows(merger: Merger) -> None:
    (part,) = merger([])

    assert pq.read_table(part.path).equals(INDEX_SCHEMA.empty_table())
    assert len(merger([row("a")])) == 1


def test_only_parts_with_other_rows_are_new(merger: Merger) -> None:
    before = merger([row(key) for key in "bdfhjlnp"])

    after = merger([row("k"), row("z")])

    assert [part.kept for part in after] == [0, None, None]
    assert after[0].path == before[0].path
    assert [found["key"] for found in merger.rows] == list("bdfhjklnpz")


@pytest.mark.parametrize(
    ("attempts", "kept"),
    [([1, 2], 2), ([2, 1], 2), ([1, 1], 1)],
    ids=["newer", "older", "again"],
)
def test_the_row_of_the_last_attempt_stays(merger: Merger, attempts: list[int], kept: int) -> None:
    for attempt in attempts:
        merger([row("a", attempts=attempt)])

    assert [found["attempts"] for found in merger.rows] == [kept]


def gone(key: str, attempts: int) -> PhotoRecord:
    return row(key, attempts=attempts, outcome=Outcome.REJECTED, reason=f"{GONE}: no such object")


def test_a_photo_that_was_gone_when_it_was_to_be_read_keeps_its_row_as_one_of_that_attempt(merger: Merger) -> None:
    merger([row("a", "cat"), row("b", "cat"), row("c", outcome=Outcome.REJECTED, reason="bad")])

    merger([gone("b", 2), gone("c", 2), gone("d", 1)])

    assert [(found["key"], found["outcome"], found["reason"], found["attempts"]) for found in merger.rows] == [
        ("a", "denoised", None, 1),
        ("b", "denoised", None, 2),
        ("c", "rejected", "bad", 2),
        ("d", "rejected", f"{GONE}: no such object", 1),
    ]
    assert merger.duplicates["b"] == "a"

    merger([row("a", "dog", attempts=2), gone("b", 3)])
    assert merger.duplicates["b"] is None


def test_an_index_that_is_made_anew_of_all_commits_keeps_the_rows_of_what_was_gone(merger: Merger) -> None:
    merger([gone("a", 3), row("a", attempts=2), row("a", "old", attempts=1), gone("b", 2), gone("b", 1)])

    assert [(found["source_sha256"], found["outcome"], found["attempts"]) for found in merger.rows] == [
        ("only a", "denoised", 3),
        ("only b", "rejected", 2),
    ]


def test_a_photo_with_the_bytes_of_another_names_the_first(merger: Merger) -> None:
    merger([row("c", "cat"), row("a", "dog"), row("b", "cat")])

    assert merger.duplicates == {"a": None, "b": None, "c": "b"}


def test_a_mark_is_put_right_in_a_part_that_nothing_else_touches(merger: Merger) -> None:
    merger([*(row(key) for key in "bcdefgh"), row("z", "cat")])

    earlier = merger([row("a", "cat")])
    assert merger.duplicates["z"] == "a"
    assert [part.kept for part in earlier] == [None, None, None]

    merger([row("a", "no cat", attempts=2)])
    assert set(merger.duplicates.values()) == {None}


def test_a_photo_that_is_not_in_the_set_is_nobodys_duplicate(merger: Merger) -> None:
    merger([row("a", "cat", outcome=Outcome.REJECTED), row("b", "cat"), row("c", "cat", outcome=Outcome.REJECTED)])

    assert set(merger.duplicates.values()) == {None}


@pytest.mark.parametrize("key", ["it's", "a\x00b", "写真/ünï.png", '"', "\U0010ffff", " "], ids=ascii)
def test_an_odd_key_can_begin_a_part(merger: Merger, key: str) -> None:
    merger([row(f"{key}{number}") for number in range(PART_ROWS * 2)])
    merger([row(f"{key}{number}", attempts=2) for number in (0, PART_ROWS)])

    assert Counter(found["attempts"] for found in merger.rows) == {1: PART_ROWS * 2 - 2, 2: 2}


def test_a_part_from_before_a_column_was_known_gets_it_without_values(merger: Merger) -> None:
    (part,) = merger([row("b")])
    pq.write_table(pq.read_table(part.path).drop_columns(["duplicate_of", "iso"]), part.path)

    merger([row("a")])

    assert [found["iso"] for found in merger.rows] == [None, None]


def test_counts_are_those_of_the_rows(merger: Merger) -> None:
    parts = merger([row("a"), row("b", outcome=Outcome.REJECTED), row("c")])

    assert count_outcomes([part.path for part in parts]) == {Outcome.DENOISED: 2, Outcome.REJECTED: 1}


rows_of_a_merge = st.lists(
    st.builds(
        row,
        st.sampled_from("abcdefghijklmno'é"),
        st.sampled_from(["", "", "cat", "dog"]),
        st.integers(1, 3),
        outcome=st.sampled_from([Outcome.DENOISED, Outcome.REJECTED]),
    ),
    unique_by=lambda found: (found.key, found.attempts),
    max_size=25,
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


@settings(max_examples=25)
@given(st.lists(rows_of_a_merge, min_size=1, max_size=4))
def test_an_index_holds_what_the_model_does(folder: Path, merges: list[list[PhotoRecord]]) -> None:
    merger = Merger(folder / str(len(list(folder.iterdir()))))
    merger.folder.mkdir()
    newest: dict[str, PhotoRecord] = {}
    for rows in merges:
        merger(rows)
        for found in sorted(rows, key=lambda found: found.attempts):
            if found.key not in newest or newest[found.key].attempts <= found.attempts:
                newest[found.key] = found

    contents: dict[str, str] = {}
    for found in sorted(newest.values(), key=lambda found: found.key):
        if found.output_key is not None:
            contents.setdefault(str(found.source_sha256), found.key)
    expected = [
        (found.key, found.attempts, found.outcome, None if first in (None, found.key) else first)
        for found in sorted(newest.values(), key=lambda found: found.key)
        for first in [contents.get(str(found.source_sha256)) if found.output_key is not None else None]
    ]
    assert [(r["key"], r["attempts"], r["outcome"], r["duplicate_of"]) for r in merger.rows] == expected
    sizes = [len(pq.read_table(part.path)) for part in merger.parts]
    assert max(sizes) <= PART_ROWS
    assert len(sizes) == 1 or min(sizes) >= PART_ROWS // 2
