"""A training run takes the photos that it is told to, holds others back, and starts from what it is given."""

from pathlib import Path

import pytest
from loop import Loop
from photos import saved, scene

from model.training import TrainConfig
from model.weights import load_weights
from pipeline.ingest import IngestJob, run_ingest
from pipeline.subset import Split, split_of
from pipeline.train import TrainJob, load_photos, run_train

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES_PX = {f"{side_px}.png": side_px for side_px in range(32, 52)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty photos, each of its own size."""
    (tmp_path / "photos").mkdir()
    for name, side_px in SIDES_PX.items():
        (tmp_path / "photos" / name).write_bytes(saved(scene(sigma=2, side_px=side_px, seed=side_px), "PNG"))
    return tmp_path / "photos"


@pytest.fixture
def image_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same photos, packed, one of them twice."""
    Loop.instead_of_cluster(monkeypatch)
    (folder / "again.png").write_bytes((folder / "40.png").read_bytes())
    run_ingest(IngestJob(source=str(folder), target=str(folder.parent / "set")), lambda progress: None)
    return folder.parent / "set"


def _sides(job: TrainJob, split: Split) -> list[int]:
    return sorted(len(photo) for photo in load_photos(job.source, job.subset(split)))


def _job(source: Path, **changes: object) -> TrainJob:
    config = TrainConfig(steps=2, batch_size=1, patch_px=32)
    return TrainJob(**({"source": str(source), "run": str(source.parent / "run"), "config": config} | changes))


def test_held_back_photos_are_the_same_in_a_folder_and_in_an_image_set(image_set: Path, folder: Path) -> None:
    expected = sorted(side for name, side in SIDES_PX.items() if split_of(name, 0.3) == Split.VALIDATION)
    assert 1 <= len(expected) < 15

    for source in (folder, image_set):
        assert set(_sides(_job(source, validation_fraction=0.3), Split.VALIDATION)) == set(expected)
        assert set(_sides(_job(source, validation_fraction=0.3), Split.TRAIN)) == set(SIDES_PX.values()) - set(expected)


def test_a_photo_that_is_in_an_image_set_twice_is_trained_on_once(image_set: Path, folder: Path) -> None:
    assert _sides(_job(image_set), Split.TRAIN) == sorted(SIDES_PX.values())
    assert _sides(_job(folder), Split.TRAIN).count(40) == 2


def test_a_filter_chooses_by_the_columns_of_the_index(image_set: Path) -> None:
    assert _sides(_job(image_set, where="width_px >= 48 and mode = 'RGB'"), Split.TRAIN) == [48, 49, 50, 51]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": "width_px >= 48"}, "is no image set, and there is no index to filter by"),
        ({"where": "widht >= 48"}, "cannot filter by 'widht >= 48'"),
        ({"validation_fraction": 1.5}, "validation_fraction is 1.5"),
        ({"validation_fraction": 1.0}, "there are no 8-bit colour photos"),
    ],
)
def test_what_chooses_nothing_is_refused_in_one_line(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_train(_job(folder, **changes), lambda metrics: None)


def test_weights_are_scored_on_what_was_held_back(folder: Path) -> None:
    scores = run_train(_job(folder, validation_fraction=0.3), lambda metrics: None)

    card = load_weights(folder.parent / "run/weights.safetensors").card
    assert card.scores == scores
    assert scores["psnr_db_sigma_15"] > scores["psnr_db_sigma_50"] > 10


def test_a_run_starts_from_the_weights_that_it_is_given(folder: Path) -> None:
    config = TrainConfig(steps=1, batch_size=1, patch_px=32, learning_rate=1e-9, weight_decay=0.0)

    run_train(_job(folder, start_from="photo", config=config), lambda metrics: None)

    before, after = load_weights("photo").tensors, load_weights(folder.parent / "run/weights.safetensors").tensors
    assert all((after[name] - before[name]).abs().max() < 1e-6 for name in before)


def test_weights_of_another_network_are_no_start(folder: Path) -> None:
    config = TrainConfig(network="seed", steps=1, batch_size=1, patch_px=32, small_share=0)

    with pytest.raises(ValueError, match="photo holds a network 'photo', not 'seed'"):
        run_train(_job(folder, start_from="photo", config=config), lambda metrics: None)
