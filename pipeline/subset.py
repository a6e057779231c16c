"""Parts of an image set: a filter over the columns of its index, and a split by key that never changes. Pure."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.database import IN_UTC, explained, literal
from pipeline.records import INDEX_SCHEMA

HASH_DIGITS = 8  # hexadecimal, of a key's MD5: a split is exact to one photo in four thousand millions
SAMPLE_HASH = f"md5('sample ' || key)[:{HASH_DIGITS}]"  # SQL


class Split(StrEnum):
    """Which of two parts of a collection a photo belongs to."""

    TRAIN = "train"
    VALIDATION = "validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Some of the photos of an image set.

    Attributes:
        where: a condition in SQL over the columns of the index; photos of which it is not known are left out. Empty for
            all photos.
        split: one part of the collection; None for both.
        validation_fraction: share of the photos that are for validation. A larger one only adds to them.

    Raises:
        ValueError: `where` is no condition over those columns, or does more than to choose; or the fraction is none.
    """

    where: str = ""
    split: Split | None = None
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction <= 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}: expected a number from 0 to 1")
        if self.where:
            check_filter(self.where)

    @property
    def condition(self) -> str:
        """SQL that is true for the rows of an index that belong to this subset."""
        conditions = ["true"]
        if self.where:
            conditions.append(f"(\n{self.where}\n)")  # on a line of its own: it may end in a comment
        if self.split is not None:
            hashed = f"md5(key)[:{HASH_DIGITS}] < {literal(_threshold(self.validation_fraction))}"
            conditions.append(hashed if self.split == Split.VALIDATION else f"NOT {hashed}")
        return " AND ".join(conditions)


def split_of(key: str, validation_fraction: float) -> Split:
    """Which part of the collection a key belongs to: the same on every machine, now and later, whatever else is there.

    Args:
        key: of the photo, in the image set.
        validation_fraction: share of the photos that are for validation, 0–1.
    """
    hashed = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()[:HASH_DIGITS]
    return Split.VALIDATION if hashed < _threshold(validation_fraction) else Split.TRAIN


def sample_condition(fraction: float) -> str:
    """SQL that is true for that share of all keys: the same ones each time, and a larger share only adds to them.

    They are drawn independently of a split: a sample holds as large a share of each part as there is of it.
    """
    return f"{SAMPLE_HASH} < {literal(_threshold(fraction))}"


def check_filter(where: str) -> None:
    """Make sure that `where` chooses rows of an index, and can do nothing else.

    Raises:
        ValueError: it is no SQL condition over the columns of the index, or looks at more than one row.
    """
    with duckdb.connect(config={"enable_external_access": False}) as database:
        try:
            database.execute(IN_UTC)
            _check(database, where)
        except (duckdb.Error, ValueError) as error:
            raise ValueError(f"cannot filter by {where!r}: {explained(error)}") from error


def _check(database: duckdb.DuckDBPyConnection, where: str) -> None:
    nodes = list(_parsed(database, where))
    if any(node["class"] == "SUBQUERY" for node in nodes):
        raise ValueError("it holds a query of its own, and only the columns of a photo are looked at")
    called = [node["function_name"] for node in nodes if node["class"] == "FUNCTION"]
    changing = database.execute(
        "SELECT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE' AND function_name IN $called",
        {"called": called},
    ).fetchall()
    if changing:
        raise ValueError(f"{changing[0][0]}() gives another answer each time")
    unknown = pa.table([pa.nulls(1, column.type) for column in INDEX_SCHEMA], INDEX_SCHEMA.names)
    database.register("photos", unknown)
    kinds = database.sql(f"SELECT (\n{where}\n) FROM photos").types
    if kinds != ["BOOLEAN"]:
        raise ValueError(f"expected one condition, and it is {' and '.join(map(str, kinds))}")
    database.execute(f"SELECT * FROM photos WHERE (\n{where}\n)").fetchall()


def _parsed(database: duckdb.DuckDBPyConnection, where: str) -> Iterator[dict[str, Any]]:  # Any: DuckDB's own JSON
    """The nodes of the condition's syntax tree, once it is certain that it is one condition and no more."""

    def parse(condition: str) -> dict[str, Any]:
        sql = f"SELECT * FROM photos WHERE {condition}"  # not in brackets: it could close them, and open others
        (text,) = database.execute("SELECT json_serialize_sql($sql)", {"sql": sql}).fetchall()[0]
        answer: dict[str, Any] = json.loads(text)
        if answer["error"]:
            database.extract_statements(sql)  # tells of it in better words
            raise ValueError("expected one condition")
        return answer

    found = parse(where)
    expression = found["statements"][0]["node"].pop("where_clause", None)
    expected = parse("true")
    expected["statements"][0]["node"].pop("where_clause")
    if found != expected:
        raise ValueError("expected one condition")
    waiting = [expression]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
            if "class" in node:
                yield node
        elif isinstance(node, list):
            waiting += node


def _threshold(fraction: float) -> str:
    """What the hashes of that share of all keys come before, as text."""
    limit = round(fraction * 16**HASH_DIGITS)
    return f"{limit:0{HASH_DIGITS}x}" if limit < 16**HASH_DIGITS else "g"
