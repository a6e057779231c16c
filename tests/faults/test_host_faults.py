"""Three hosts with a GPU each, of which one is cut off in the middle, and a fourth that comes: nothing is lost.

What was cut when, and what came of it, is in `faults.log` beside the logs of all hosts, and on standard output (`-rA`).
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from containers import can_be_run
from faults.doomed import contents
from faults.hosts import GPU_HOSTS, SPARE, Hosts, hosts
from photos import saved, scene

from model.weights import load_weights
from pipeline.local_store import LocalStore

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_be_run(), reason="needs root, iproute2, util-linux, and a Python that others may read"),
]
PHOTOS = {f"{number % 7}/{number:03}.png": saved(scene(seed=number, side_px=256), "PNG") for number in range(480)}
CLUSTER = "ray-head:6379"


@pytest.fixture
def three_hosts(tmp_path: Path) -> Iterator[Hosts]:
    with hosts(tmp_path, PHOTOS) as running:
        yield running


def test_a_host_that_is_cut_off_from_denoise_costs_nothing_of_what_comes_out(
    three_hosts: Hosts, survived: Callable[[int], None]
) -> None:
    job = {"verb": "denoise", "source": "s3://photos/source", "target": "s3://photos/target"}
    is_cut = is_back = False
    for event in three_hosts.work({**job, "cluster": {"address": CLUSTER}}):
        if event.get("done", 0) > len(PHOTOS) / 6 and not is_cut:
            three_hosts.replace(GPU_HOSTS[0], SPARE)
            is_cut = True
        if "is lost" in event.get("message", "") and not is_back:
            three_hosts.reconnect(GPU_HOSTS[0])
            is_back = True

    assert is_back
    assert three_hosts.workers_said(SPARE, ":actor_name:_Actor")
    verified = three_hosts.on_laptop("degrain", "verify", "s3://photos/target", "--workers", "1", "--json")
    assert json.loads(verified.splitlines()[-1])["findings"] == 0
    target = three_hosts.copy("photos/target")
    keys = pq.read_table(target / "index").column("key").to_pylist()
    assert Counter(keys) == Counter(PHOTOS.keys())
    three_hosts.on_laptop("degrain", "denoise", job["source"], "s3://photos/undisturbed", "--workers", "1")
    assert contents(LocalStore(target)) == contents(LocalStore(three_hosts.copy("photos/undisturbed")))
    survived(1)


def test_a_host_that_is_cut_off_from_train_costs_the_steps_since_the_last_checkpoint(
    three_hosts: Hosts, survived: Callable[[int], None]
) -> None:
    config = {"steps": 60, "batch_size": 12, "patch_px": 32, "small_share": 0, "bfloat16": False}
    job = {"verb": "train", "source": "s3://photos/source", "checkpoint_every": 10, "config": config}
    is_cut = False
    said = ""
    for event in three_hosts.work({**job, "run": "s3://photos/run", "workers": 3, "address": CLUSTER}):
        if event.get("done", 0) > 23 and not is_cut:
            three_hosts.replace(GPU_HOSTS[0], SPARE)
            is_cut = True
        said += event.get("message", "")

    assert int(re.findall(r"all go on at step (\d+)", said)[0]) >= 20
    assert three_hosts.workers_said(SPARE, "going on at step")
    three_hosts.on_laptop(
        sys.executable, "-m", "pipeline.jobs", json.dumps({**job, "run": "s3://photos/undisturbed-run"})
    )
    disturbed, undisturbed = (
        load_weights(three_hosts.copy(f"photos/{run}") / "weights.safetensors") for run in ("run", "undisturbed-run")
    )
    for name, tensor in undisturbed.tensors.items():
        torch.testing.assert_close(disturbed.tensors[name], tensor, atol=1e-3, rtol=1e-3)
    survived(1)
