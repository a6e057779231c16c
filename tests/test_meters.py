"""What Prometheus sees of a run by Ray's own endpoint, and that the dashboard asks for nothing else."""

import json
import re
from pathlib import Path

import pytest
from photos import write_archive
from ray.util.metrics import Counter
from stack import Stack, wait_until

from pipeline.meters import Meters
from pipeline.records import Outcome, Receipt

DASHBOARD = Path(__file__).parents[1] / "deploy/monitoring/grafana-degrain.json"


@pytest.mark.parametrize("has_cluster", [True, False])
def test_a_shard_is_counted_where_there_is_a_cluster(has_cluster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[str, float] = {}

    def count(counter: Counter, amount: float, tags: dict[str, str]) -> None:
        counted[" ".join([counter.info["name"], *tags.values()])] = amount

    monkeypatch.setattr(Counter, "inc", count)
    monkeypatch.setattr("ray.is_initialized", lambda: has_cluster)
    receipt = Receipt(
        shard="s", outcomes={Outcome.DENOISED: 2}, megapixels=3.0, bytes_read=1, bytes_written=4, seconds=1.0
    )

    Meters("denoise").count(receipt)

    expected = {
        "degrain_photos denoise denoised": 2,
        "degrain_megapixels denoise": 3.0,
        "degrain_bytes denoise in": 1,
        "degrain_bytes denoise out": 4,
        "degrain_shards denoise": 1,
    }
    assert counted == (expected if has_cluster else {})


@pytest.mark.flows
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_can_be_watched_by_what_the_dashboard_asks_for(up: Stack, tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    places = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target"), "ray": {"workers": 1}}
    up.begin("denoise", {"settings": places})
    seen: set[str] = set()

    def is_rejected_counted() -> bool:
        seen.update(up.metrics().splitlines())
        return any("ray_degrain_photos_total{" in line and 'outcome="rejected"' in line for line in seen)

    wait_until(is_rejected_counted, 120)
    names = {line.partition("{")[0] for line in seen if not line.startswith("#")}
    asked = set(re.findall(r"ray_\w+", DASHBOARD.read_text()))
    quiet = {"ray_degrain_retries_total", "ray_degrain_throttled_total"}  # nothing had to be made again
    assert asked - quiet <= names
    assert len(json.loads(DASHBOARD.read_text())["panels"]) == 8
