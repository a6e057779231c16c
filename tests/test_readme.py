"""What the README says is there: its files, the columns, the options. And the messages that the runbook quotes."""

import dataclasses
import errno
import os
import re
from fnmatch import fnmatch
from pathlib import Path

import duckdb
import pytest
from loop import Loop
from photos import saved, scene

from flows.cli import main
from pipeline.images import DEFAULT_LIMITS, Limits
from pipeline.ingest import IngestJob, run_ingest
from pipeline.records import INDEX_SCHEMA, Outcome
from pipeline.run import Summary

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
VERBS = ["denoise", "plan", "ingest", "verify", "diff", "report", "demo", "train", "evaluate", "up"]
VERBS += [f"weights {action}" for action in ("list", "show", "promote")]


def test_every_file_that_it_links_or_runs_exists() -> None:
    linked = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README) + re.findall(r"python (tests/\S+\.py)", README)

    assert len(linked) >= 4
    assert [name for name in linked if not (ROOT / name).is_file()] == []


def test_it_names_every_column_of_the_index_and_no_other() -> None:
    table = README.split("### Columns of the index")[1].split("\n## ")[0]

    assert set(re.findall(r"`([a-z_0-9]+)`", table)) - set(Outcome) == set(INDEX_SCHEMA.names)


def test_its_queries_see_each_photo_once_though_a_part_of_another_index_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source").mkdir()
    for number in range(3):
        (tmp_path / f"source/{number}.png").write_bytes(saved(scene(seed=number, side_px=32), "PNG"))
    target = tmp_path / "target"
    run_ingest(IngestJob(source=str(tmp_path / "source"), target=str(target)), lambda _: None)
    [part] = (target / "index").iterdir()
    (target / "index/part-other.parquet").write_bytes(part.read_bytes())

    with duckdb.connect() as database:
        reasons, photos = (
            database.execute(query.replace("TARGET", str(target))).fetchall()
            for query in re.findall(r"```sql\n(.+?)```", README, re.DOTALL)
        )

    assert reasons == [(None, 3)]
    assert len(photos) == 3


def test_it_names_all_that_is_printed_as_json() -> None:
    told = README.split("- **JSON**")[1].split("\n\n")[0]

    printed = {field.name for field in dataclasses.fields(Summary)} - {"outcomes"} | set(Outcome)
    assert set(re.findall(r"`([a-z_]+)`", told)) - {"denoise", "ingest"} == printed


def test_it_tells_how_large_a_photo_may_be() -> None:
    limits = Limits.of_megapixels(DEFAULT_LIMITS.max_megapixels)

    assert f"{limits.max_megapixels:g} megapixels in files of up to {limits.max_bytes / 1e9:g} GB" in README


def options_of(verb: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """By the verb's help; of those that have a short name, that is to be told."""
    with pytest.raises(SystemExit):
        main([*verb.split(), "--help"])
    return set(re.findall(r"(?<!, )--[a-z0-9-]+", capsys.readouterr().out))


@pytest.mark.parametrize("verb", VERBS)
def test_it_names_every_option_and_once_those_that_denoise_has(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    usage = README.split("\n## Use\n")[1].split("```")[1]
    texts = [text for text in usage.split("\ndegrain ") if text.startswith(verb.split(maxsplit=1)[0])]
    named = set(re.findall(r"--[a-z0-9-]+", "".join(texts)))

    told_before = set() if verb == "denoise" else options_of("denoise", capsys)
    assert options_of(verb, capsys) - told_before - named == set()
    if len(texts) == 1:  # else it names those of each
        assert named - told_before - options_of(verb, capsys) == set()


def test_it_names_every_module_and_no_other() -> None:
    code = README.split("## The code")[1].split("\n### ")[0]
    named = set(re.findall(r"(?<!/)\b[a-z_*]+\.py", code))

    modules = {path.name for room in ("model", "pipeline", "flows") for path in (ROOT / room).glob("[a-z]*.py")}
    assert {name for name in modules if not any(fnmatch(name, each) for each in named)} == set()
    assert {each for each in named if not any(fnmatch(name, each) for name in modules)} == set()


def test_the_runbook_quotes_messages_that_there_are() -> None:
    runbook = (ROOT / "deploy/README.md").read_text().split("### What to do when")[1].split("\n### ")[0]
    quoted = [text.strip("… ") for text in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", runbook)]
    code = "".join(path.read_text() for room in ("model", "pipeline", "flows") for path in (ROOT / room).glob("*.py"))
    messages = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\s*\n\s*f?"', "", code)) + os.strerror(errno.ENOSPC).lower()

    assert len(quoted) > 8
    assert [text for text in quoted if text not in messages] == []


def test_its_test_line_is_what_ci_runs() -> None:
    ci = (ROOT / ".ci/run").read_text()
    [pattern] = re.findall(r"grep -E '([^']+)' README.md", ci)

    assert len(re.findall(pattern, README, re.MULTILINE)) == 1
