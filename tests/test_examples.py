"""What a step learns from is the same whoever makes it, when, and whether its photos were decoded before."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from photos import saved, scene

from model.patches import BLOCK_STEPS
from model.recipe import TrainConfig
from model.training import Examples
from pipeline import examples
from pipeline.errors import ObjectRefused
from pipeline.examples import ExampleStream
from pipeline.sources import Source, photos_of
from pipeline.storage import open_store

pytestmark = pytest.mark.usefixtures("one_thread")

PHOTOS, SIDE_PX = 40, 48  # three groups of the plan below
BYTES = SIDE_PX**2 * 3
CONFIG = TrainConfig(steps=320, batch_size=4, patch_px=32, small_share=0)
BLOCKS = range(0, CONFIG.steps, BLOCK_STEPS)  # the first step of each: in three of them, all photos are needed


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PHOTOS):
        (folder / f"{number}.png").write_bytes(saved(scene(sigma=2, side_px=SIDE_PX, seed=number), "PNG"))
    return photos_of(open_store(str(folder)))


@pytest.fixture
def reads(source: Source, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the photos that were read, in order."""
    keys: list[str] = []
    read = type(source).read

    def noted(self: Source, rows: pa.Table) -> Iterator[tuple[str, bytes | ObjectRefused]]:
        keys.extend(rows["key"].to_pylist())
        return read(self, rows)

    monkeypatch.setattr(type(source), "read", noted)
    return keys


def _steps(source: Source, steps: range, *, makes_ahead: bool = False) -> list[Examples]:
    with ExampleStream(source, source.table(), CONFIG, range(1), makes_ahead=makes_ahead) as stream:
        return [stream(step) for step in steps]


def _are_equal(some: list[Examples], others: list[Examples]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.equal(*both) for one, other in pairs for both in zip(one.tensors, other.tensors, strict=True))


def test_examples_are_the_same_ahead_of_the_step_and_between_two(source: Source) -> None:
    assert _are_equal(_steps(source, range(30, 40), makes_ahead=True), _steps(source, range(30, 40)))


def test_photos_that_stay_decoded_are_read_once(source: Source, reads: list[str]) -> None:
    _steps(source, BLOCKS)

    assert len(reads) == len(set(reads)) == PHOTOS


@pytest.mark.parametrize("kept", [0, 15])
def test_others_are_read_again_and_give_the_same(
    source: Source, reads: list[str], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    everything = _steps(source, BLOCKS)
    reads.clear()
    monkeypatch.setattr(examples, "KEPT_BYTES", kept * BYTES)

    again = _steps(source, BLOCKS)

    assert _are_equal(again, everything)
    read_once = [key for key in set(reads) if reads.count(key) == 1]
    assert len(read_once) <= kept
    assert len(reads) > 2 * PHOTOS


def test_photos_of_no_use_are_read_and_told_of_once(
    tmp_path: Path, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for key, photo in {"good": scene(side_px=SIDE_PX), "small": scene(side_px=31), "gray": scene()[..., 0]}.items():
        (tmp_path / f"{key}.png").write_bytes(saved(photo, "PNG"))
    (tmp_path / "broken.png").write_bytes(b"no photo")

    _steps(photos_of(open_store(str(tmp_path))), BLOCKS)

    assert sorted(reads) == ["broken.png", "good.png", "gray.png", "small.png"]
    assert sorted(line.split(": ")[0] for line in caplog.messages) == [
        f"left out {key}.png" for key in ("broken", "gray", "small")
    ]
    assert "left out small.png: a side has 31 pixels, and 32 are needed" in caplog.messages


def test_a_run_that_goes_on_has_the_examples_of_one_that_never_stopped(source: Source) -> None:
    assert _are_equal(_steps(source, range(31, 34)), _steps(source, range(34))[31:])
