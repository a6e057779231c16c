"""The threat model of deploy/THREATS.md: every test that it names is one."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
THREATS = (TESTS.parent / "deploy/THREATS.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", THREATS)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_shows_it_is_there(file: str, name: str) -> None:
    tree = ast.parse((TESTS / file).read_text())

    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_threat_names_what_shows_it_or_says_that_nothing_does() -> None:
    rows = [line for line in THREATS.splitlines() if line.startswith("| ") and not line.startswith("| they try")]

    assert len(rows) >= 25
    assert [row for row in rows if "::" not in row and "no test" not in row] == []


def test_it_is_a_page() -> None:
    words = re.sub(r"`[^`]*::[^`]*`", "", THREATS).split()

    assert len(words) < 1200
