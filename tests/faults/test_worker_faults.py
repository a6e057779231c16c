"""Workers of a real cluster that are killed by SIGKILL at each of their steps: the run ends as if nothing was.

The undisturbed run has no cluster and another number of workers.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from commands import degrain, summary_of
from faults.doomed import WORKERS, Work, contents, run_until
from photos import write_archive

from pipeline.fault_points import VARIABLE, FaultPoint
from pipeline.local_store import LocalStore

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.parametrize(
    ("point", "work"),
    [
        (FaultPoint.PHOTO_WRITTEN, Work.FILES),
        *product([FaultPoint.SHARD_WRITTEN, FaultPoint.SHARD_COMMITTED], Work),
    ],
)
def test_a_worker_that_is_killed_at_a_step_changes_nothing_of_what_comes_out(
    point: FaultPoint,
    work: Work,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    survived: Callable[[int], None],
) -> None:
    source, killed = tmp_path / "source", tmp_path / "killed"
    expected = write_archive(source)
    assert not run_until("", source, str(tmp_path / "undisturbed"), work, workers=3)

    monkeypatch.setenv(VARIABLE, f"{point}:2:{killed}")
    summary = summary_of(degrain(*work.words, source, tmp_path / "target", "--workers", WORKERS, "--json"))

    assert killed.exists()
    assert summary["inputs"] == len(expected)
    assert contents(LocalStore(tmp_path / "target")) == contents(LocalStore(tmp_path / "undisturbed"))
    survived(1)
