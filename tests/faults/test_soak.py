"""An archive through a real S3 server, while workers and now and then the whole run are killed at random."""

import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import BytesIO
from os import kill
from signal import SIGKILL

import pyarrow.parquet as pq
import pytest
from commands import degrain, start_degrain, summary_of, wait_until_workers_are_gone
from photos import saved, scene

from pipeline.storage import Store, open_store


@pytest.mark.parametrize(
    ("photos", "kills", "pause_s"),  # between two kills
    [
        pytest.param(100, 1, (0.5, 1.5), marks=pytest.mark.faults),
        pytest.param(20_000, 40, (1.0, 6.0), marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_an_archive_survives_deaths_at_random_and_nothing_is_lost_or_there_twice(
    photos: int, kills: int, pause_s: tuple[float, float], seaweed_url: str, survived: Callable[[int], None]
) -> None:
    source, target = open_store(f"{seaweed_url}/source"), open_store(f"{seaweed_url}/target")
    write_photos(source, photos)
    chance = random.Random(photos)

    killed, is_finished = 0, False
    while not is_finished:
        process = start_degrain("denoise", source.url, target.url, "--workers", 2, "--json")
        killed += disturb(process, kills - killed, pause_s, chance)
        process.communicate()
        is_finished = process.returncode == 0
        wait_until_workers_are_gone(process)

    assert killed >= 1
    check(source, target, photos)
    assert summary_of(degrain("verify", target.url, "--json", timeout_s=1200))["findings"] == 0
    survived(killed)


def write_photos(source: Store, count: int) -> None:
    def write(number: int) -> None:
        source.write(f"{number % 100:02}/{number:05}.png", saved(scene(seed=number, side_px=24), "PNG"))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(count)))


def disturb(process: subprocess.Popen[str], most: int, pause_s: tuple[float, float], chance: random.Random) -> int:
    """Kill workers of a run, or one time in five the run itself, while it goes on; how often."""
    kills = 0
    while kills < most and process.poll() is None:
        time.sleep(chance.uniform(*pause_s))
        workers = subprocess.run(
            ["pgrep", "-s", str(process.pid), "-f", "ray::_Actor"], capture_output=True, text=True, check=False
        ).stdout.split()
        if workers and process.poll() is None:
            kill(process.pid if chance.random() < 0.2 else int(chance.choice(workers)), SIGKILL)
            kills += 1
    return kills


def check(source: Store, target: Store, photos: int) -> None:
    """Each photo has one row, each row one object, and each object is what its row says."""
    manifest = json.loads(target.read("manifest.json"))
    rows = [row for part in manifest["index"] for row in pq.read_table(BytesIO(target.read(part))).to_pylist()]
    assert Counter(row["key"] for row in rows) == Counter(listed.key for listed in source.list())
    assert Counter(row["outcome"] for row in rows) == {"denoised": photos}
    expected = {row["output_key"]: row["output_sha256"] for row in rows}
    found = {one.key: sha256(data).hexdigest() for one, data in target.read_many(target.list("images"))}
    assert found == expected
