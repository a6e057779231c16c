"""`degrain denoise` from a bucket into it, through a proxy that fails a third of all requests."""

import io
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults.proxy import BAD_DAY, Fault, FaultProxy
from photos import saved, scene, write_archive

from model import Denoiser
from pipeline.denoise import DenoiseConfig, PhotoDenoiser
from pipeline.storage import Store, open_store

pytestmark = pytest.mark.faults

MANY = 24


def denoise(source: str, target: str) -> dict:
    """The summary of a run."""
    command = [sys.executable, "-m", "flows.cli", "denoise", source, target, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows(target: Store) -> list[tuple]:
    """Of each row of the index, what does not depend on the run."""
    parts = json.loads(target.read("manifest.json"))["index"]
    found = [row for part in parts for row in pq.read_table(io.BytesIO(target.read(part))).to_pylist()]
    return sorted((row["key"], row["outcome"], row["output_sha256"]) for row in found)


@pytest.mark.usefixtures("one_thread")
def test_a_run_on_a_bad_day_ends_in_the_same_bytes_as_on_a_good_one(
    proxied_url: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    expected = write_archive(tmp_path)
    for number in range(MANY):
        (tmp_path / f"{number:02}.png").write_bytes(saved(scene(seed=number), "PNG"))
        expected[f"{number:02}.png"] = "denoised"
    source, target = open_store(f"{proxied_url}/source"), open_store(f"{proxied_url}/target")
    for key in expected:
        source.write(key, (tmp_path / key).read_bytes())

    proxy.shares = dict(BAD_DAY)
    summary = denoise(source.url, target.url)
    proxy.shares = {}

    work = PhotoDenoiser(Denoiser.load("photo"), DenoiseConfig())
    calm = {key: work((tmp_path / key).read_bytes(), key).data for key in expected}
    assert {one.key: data for one, data in target.read_many(target.list("images"))} == {
        f"images/{key}": data for key, data in calm.items() if data is not None
    }
    assert rows(target) == sorted(
        (key, outcome, calm[key] and sha256(calm[key]).hexdigest()) for key, outcome in expected.items()
    )
    assert summary["inputs"] == len(expected)
    assert {Fault.SLOW_DOWN, Fault.LOST_REQUEST, Fault.LOST_ANSWER} <= set(proxy.counts)
