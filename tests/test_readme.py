"""What the README says is there: its files, the columns, the options."""

import re
from pathlib import Path

import pytest

from flows.cli import main
from pipeline.records import INDEX_SCHEMA, Outcome

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_file_that_it_links_or_runs_exists() -> None:
    linked = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README) + re.findall(r"python (tests/\S+\.py)", README)

    assert len(linked) >= 4
    assert [name for name in linked if not (ROOT / name).is_file()] == []


def test_it_names_every_column_of_the_index_and_no_other() -> None:
    table = README.split("### Columns of the index")[1].split("\n## ")[0]

    assert set(re.findall(r"`([a-z_0-9]+)`", table)) - set(Outcome) == set(INDEX_SCHEMA.names)


def test_it_names_every_option_of_denoise(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["denoise", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--verbose"}

    usage = README.split("degrain denoise SOURCE TARGET")[1].split("\ndegrain ")[0]
    assert set(re.findall(r"--[a-z-]+", usage)) == options


def test_it_names_every_module() -> None:
    code = README.split("## The code")[1].split("\n## ")[0]
    modules = [path.stem for package in ("model", "pipeline") for path in (ROOT / package).glob("[a-z]*.py")]

    containers = {"jpeg", "png", "tiff", "webp", "container", "ifd"}  # "images.py …"
    assert [name for name in modules if f"{name}.py" not in code and name not in containers] == []


def test_its_test_line_is_what_ci_runs() -> None:
    ci = (ROOT / ".ci/run").read_text()
    [pattern] = re.findall(r"grep -E '([^']+)' README.md", ci)

    assert len(re.findall(pattern, README, re.MULTILINE)) == 1
