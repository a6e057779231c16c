"""A training run takes the photos that it is told to, holds others back, and starts from what it is given."""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from commands import degrain
from loop import Loop
from photos import saved, scene
from PIL import Image
from ray.exceptions import RayActorError
from tensorboardX.proto.event_pb2 import Event, SessionLog

from model.metrics import MOST_DB
from model.photo import FineNetwork, PhotoNetwork
from model.recipe import OptimizerName, TrainConfig
from model.training import StepMetrics, TrainState, read_checkpoint_header
from model.weights import Card, Part, dump_weights, load_weights, parse_weights
from pipeline import train, train_job
from pipeline.clean_photos import CleanPhoto, find_clean_photos
from pipeline.errors import RunFailed, StorageError, TargetInUse
from pipeline.ingest import IngestJob, run_ingest
from pipeline.interruption import Interruption
from pipeline.lease import leased, refuse_if_lost
from pipeline.run_folder import CHECKPOINT, METRICS, read_metrics, read_origin, read_state, read_step
from pipeline.storage import open_store
from pipeline.subset import Split, split_of
from pipeline.train import read_run, run_train
from pipeline.train_job import TrainJob
from pipeline.training_run import Worker, train_worker

pytestmark = pytest.mark.usefixtures("one_thread")

SEED_FOR_WHITE = TrainConfig(network="seed", part=Part.WHITE, steps=1, batch_size=3, patch_px=32, small_share=0)
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
    return sorted(len(photo.pixels) for photo in find_clean_photos(job.source, job.subset(split)))


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
        ({"validation_fraction": 1.0}, "there are no photos to train on"),
        ({"validation_fraction": 1e-9}, "is 1e-09, which holds none of the photos of .*/photos back"),
        ({"config": TrainConfig(steps=1, batch_size=1, patch_px=64)}, "no 8-bit colour photos of at least 64 pixels"),
        ({"workers": 2}, r"1 to 1, the parts that a batch of 1 patches has; .* a batch_size of 4 for each"),
    ],
)
def test_what_chooses_nothing_is_refused_in_one_line(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_train(_job(folder, **changes), lambda metrics: None)


@pytest.mark.parametrize("name", ["start_from", "teacher"])
def test_weights_that_are_not_there_leave_no_folder_of_a_run(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        run_train(_job(folder, **{name: str(folder / "nowhere.safetensors")}), lambda metrics: None)

    assert not (folder.parent / "run").exists()


@pytest.mark.parametrize("name", ["start_from", "teacher"])
def test_weights_that_do_not_fit_their_card_leave_no_folder_of_a_run(folder: Path, name: str) -> None:
    wrong = folder.parent / "wrong.safetensors"
    wrong.write_bytes(dump_weights(torch.nn.Linear(1, 1), Card(network="photo", data="", licence="", noise="")))

    with pytest.raises(ValueError, match="the weights do not fit the network 'photo'"):
        run_train(_job(folder, **{name: str(wrong)}), lambda metrics: None)

    assert not (folder.parent / "run").exists()


@pytest.mark.parametrize("place", ["photos", "photos/run", "others", "others/run"])
def test_no_run_writes_among_photos(folder: Path, place: str) -> None:
    (folder.parent / "others").mkdir()
    before = sorted(folder.parent.rglob("*"))

    with pytest.raises(ValueError, match=r"lies in the photos .*: name a folder outside of them"):
        run_train(_job(folder, run=str(folder.parent / place), validation=str(folder.parent / "others")), print)

    assert sorted(folder.parent.rglob("*")) == before


def test_photos_lie_in_no_folder_that_a_run_has_for_its_own(folder: Path) -> None:
    (folder.parent / "run").mkdir()
    folder.rename(folder.parent / "run/validation")
    before = sorted(folder.parent.rglob("*"))

    with pytest.raises(ValueError, match=r"writes to .*/run/validation, which lies in the photos .*/run/validation:"):
        run_train(_job(folder, validation=str(folder.parent / "run/validation")), print)

    assert sorted(folder.parent.rglob("*")) == before


def test_weights_are_scored_on_what_was_held_back(folder: Path) -> None:
    scores = run_train(_job(folder, validation_fraction=0.3), lambda metrics: None)

    card = load_weights(folder.parent / "run/weights.safetensors").card
    assert card.scores == scores
    assert scores["psnr_db_sigma_15"] > scores["psnr_db_sigma_50"] > 10
    curve = ET.fromstring((folder.parent / "run/loss.svg").read_text())
    assert "step 2" in {text.text for text in curve.iter("{http://www.w3.org/2000/svg}text")}


@pytest.mark.parametrize(("place", "is_told"), [("photos", True), ("photos/some", True), ("others", False)])
def test_weights_that_are_scored_on_what_they_are_trained_on_come_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, place: str, is_told: bool
) -> None:
    (folder.parent / place).mkdir(exist_ok=True)
    (folder.parent / place / "held.png").write_bytes((folder / "40.png").read_bytes())

    run_train(_job(folder, validation=str(folder.parent / place)), lambda metrics: None)

    assert ("scored on photos that they are trained on" in caplog.text) == is_told


def test_photos_that_come_out_as_they_were_do_not_spoil_the_scores(folder: Path) -> None:
    (folder.parent / "dots").mkdir()
    for number in range(12):
        (folder.parent / f"dots/{number}.png").write_bytes(saved(np.zeros((1, 1, 3), np.uint8), "PNG"))

    scores = run_train(_job(folder, validation=str(folder.parent / "dots"), start_from="photo"), lambda metrics: None)

    assert max(scores.values()) < MOST_DB
    assert max(row["validation_psnr_db"] or 0 for row in read_metrics(open_store(str(folder.parent / "run")))) < MOST_DB


def test_few_of_the_photos_that_weights_are_scored_on_are_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pixels(np.ndarray):
        """An array that can be watched."""

    seen: list[weakref.ref[Pixels]] = []
    in_memory: list[int] = []

    class Photos:
        def __iter__(self) -> Iterator[CleanPhoto]:
            for number in range(6):
                pixels = np.zeros((16, 16, 3), np.uint8).view(Pixels)
                seen.append(weakref.ref(pixels))
                in_memory.append(sum(each() is not None for each in seen))
                yield CleanPhoto(str(number), "", pixels)

    monkeypatch.setattr(train_job, "find_clean_photos", lambda _: Photos())
    run_train(_job(folder, validation="clean"), lambda metrics: None)

    assert max(in_memory) <= 3


def test_a_run_starts_from_the_weights_that_it_is_given(folder: Path) -> None:
    config = TrainConfig(steps=1, batch_size=1, patch_px=32, learning_rate=1e-9, weight_decay=0.0)

    run_train(_job(folder, start_from="photo", config=config), lambda metrics: None)

    before, after = load_weights("photo").tensors, load_weights(folder.parent / "run/weights.safetensors").tensors
    assert all((after[name] - before[name]).abs().max() < 1e-6 for name in before)


def test_weights_that_change_while_a_run_goes_on_from_them_are_not_put_beside_what_it_trained(folder: Path) -> None:
    config = TrainConfig(steps=1, batch_size=1, patch_px=32, part=Part.WHITE)
    start = folder.parent / "start.safetensors"
    before = dump_weights(PhotoNetwork(), Card(network="photo", data="", licence="", noise="before"))
    start.write_bytes(before)
    job = _job(folder, start_from=str(start), config=config)

    def change(_: StepMetrics) -> None:
        start.write_bytes(dump_weights(PhotoNetwork(), Card(network="photo", data="", licence="", noise="after")))

    with pytest.raises(RunFailed, match=f"of sha256 {parse_weights(before).sha256}"):
        run_train(job, change)
    assert not (folder.parent / "run/weights.safetensors").exists()

    start.write_bytes(before)
    run_train(job, print)
    assert load_weights(folder.parent / "run/weights.safetensors").card.noise == "before"


def test_one_network_of_the_weights_is_trained_and_the_other_stays(folder: Path) -> None:
    """First that for white noise, beside a general one; then the general one again."""
    config = TrainConfig(steps=1, batch_size=1, patch_px=32)
    white = dataclasses.replace(config, part=Part.WHITE)
    jobs = [_job(folder, run=str(folder.parent / name), config=config) for name in ("general", "pair", "again")]
    jobs[1] = dataclasses.replace(jobs[1], config=white, start_from=f"{jobs[0].run}/weights.safetensors", data="snow")
    jobs[2] = dataclasses.replace(jobs[2], start_from=f"{jobs[1].run}/weights.safetensors", validation_fraction=0.3)

    for job in jobs:
        run_train(job, lambda metrics: None)

    general, pair, again = (load_weights(f"{job.run}/weights.safetensors") for job in jobs)
    assert pair.card.white is not None
    assert (pair.card.white.data, pair.card.data) == ("snow", general.card.data)
    assert again.card.white == pair.card.white
    assert again.card.scores
    half = {name: tensor.half() for name, tensor in general.tensors.items()}
    assert _are_equal(pair.part(Part.GENERAL), half)
    assert not _are_equal(pair.part(Part.WHITE), half)
    assert _are_equal(again.part(Part.WHITE), pair.part(Part.WHITE))
    assert not _are_equal(again.part(Part.GENERAL), half)


def test_the_network_for_white_noise_needs_another_beside_it(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"start_from is not set: .* for white noise alone"):
        _job(folder, config=TrainConfig(steps=1, part=Part.WHITE))


def test_a_network_for_white_noise_may_be_of_another_architecture(folder: Path) -> None:
    """It begins anew where that of the weights is another one, and goes on where it is the same."""
    other = TrainConfig(network="photo", part=Part.WHITE, steps=1, batch_size=1, patch_px=32, learning_rate=1e-9)
    first = _job(folder, config=other, start_from="photo")
    second = dataclasses.replace(first, run=f"{first.run}-2", start_from=f"{first.run}/weights.safetensors")

    for job in (first, second):
        run_train(job, lambda metrics: None)

    shipped, one, two = map(load_weights, ("photo", *(f"{job.run}/weights.safetensors" for job in (first, second))))
    assert {part: two.card.of(part).network for part in Part} == {Part.GENERAL: "fine", Part.WHITE: "photo"}
    assert _are_equal(two.part(Part.GENERAL), shipped.part(Part.GENERAL))
    before, after = one.part(Part.WHITE), two.part(Part.WHITE)
    assert all((after[name].float() - before[name].float()).abs().max() < 1e-5 for name in before)


def test_a_network_learns_the_answers_of_its_teacher(folder: Path) -> None:
    """One that is its own teacher has little to learn: what it answers in other views."""
    config = TrainConfig(steps=1, batch_size=4, patch_px=32, small_share=0)
    job = _job(folder, start_from="photo", config=config)
    by_photos: list[StepMetrics] = []
    by_teacher: list[StepMetrics] = []

    run_train(job, by_photos.append)
    run_train(dataclasses.replace(job, run=f"{job.run}-2", teacher="photo"), by_teacher.append)

    assert 0 < by_teacher[0].loss < 0.5 * by_photos[0].loss
    card = load_weights(f"{job.run}-2/weights.safetensors").card
    assert card.provenance is not None
    assert card.provenance.teacher == load_weights("photo").sha256
    with pytest.raises(ValueError, match=r"has another recipe \(teacher\)"):
        run_train(dataclasses.replace(job, teacher="photo"), print)


def test_a_run_of_an_earlier_version_had_no_teacher(folder: Path) -> None:
    job = _job(folder)
    run_train(job, lambda metrics: None)
    store = open_store(job.run)
    untold = {name: value for name, value in read_origin(store).items() if name != "teacher"}
    store.write(CHECKPOINT, read_state(store, job.config).dump(job.config, untold))

    with pytest.raises(ValueError, match=r"has another recipe \(teacher\)"):
        run_train(dataclasses.replace(job, teacher="photo"), print)
    run_train(job, print)


def test_weights_of_another_network_are_no_start(folder: Path) -> None:
    config = TrainConfig(network="seed", steps=1, batch_size=1, patch_px=32, small_share=0)

    with pytest.raises(ValueError, match="photo holds a network 'fine', not 'seed'"):
        run_train(_job(folder, start_from="photo", config=config), lambda metrics: None)


def test_a_general_network_begins_with_the_one_for_white_noise_where_only_that_is_of_its_architecture(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = Card(network="photo", data="", licence="", noise="")
    pair = dataclasses.replace(card, white=dataclasses.replace(card, network="fine"))
    start = folder.parent / "start.safetensors"
    start.write_bytes(dump_weights(PhotoNetwork(), pair, white=FineNetwork()))
    config = TrainConfig(network="fine", steps=1, batch_size=1, patch_px=32, learning_rate=1e-9)
    job = _job(folder, start_from=str(start), config=config)

    run_train(job, lambda metrics: None)

    assert f"the general network of {start} is a 'photo': a 'fine' begins as the one for white noise" in caplog.text
    before, after = load_weights(start), load_weights(f"{job.run}/weights.safetensors")
    assert {part: after.card.of(part).network for part in Part} == {Part.GENERAL: "fine", Part.WHITE: "fine"}
    white, general = before.part(Part.WHITE), after.part(Part.GENERAL)
    assert all((general[name].float() - white[name].float()).abs().max() < 1e-5 for name in white)
    assert _are_equal(after.part(Part.WHITE), white)
    assert after.card.provenance is not None
    assert after.card.provenance.start_from == before.sha256


def test_a_run_keeps_its_metrics_pictures_and_tensorboard(folder: Path) -> None:
    config = TrainConfig(steps=4, batch_size=1, patch_px=32)

    run_train(_job(folder, config=config, validation_fraction=0.3, log_every=2, validate_every=4), lambda metrics: None)

    run = folder.parent / "run"
    rows = read_metrics(open_store(str(run)))
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["validation_psnr_db"] is None for row in rows] == [True, False]
    with Image.open(run / "validation/00000004.png") as picture:
        assert picture.size == (3 * 256, 4 * 256)
    assert b"validation_psnr_db" in next((run / "tensorboard").iterdir()).read_bytes()
    assert read_run(str(run))["metrics"] == rows


def test_the_metrics_reach_the_last_step(folder: Path) -> None:
    config = TrainConfig(steps=3, batch_size=1, patch_px=32)

    run_train(_job(folder, config=config, log_every=2), lambda metrics: None)

    assert [row["step"] for row in read_metrics(open_store(str(folder.parent / "run")))] == [2, 3]


def test_a_card_tells_of_the_photos_that_were_trained_on_whatever_came_since(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = _job(folder, config=TrainConfig(steps=2, batch_size=1, patch_px=32))

    def told() -> tuple[int, str]:
        run_train(job, lambda metrics: None)
        provenance = load_weights(f"{job.run}/weights.safetensors").card.provenance
        assert provenance is not None
        return provenance.photos, provenance.photos_sha256

    before = told()
    (folder / "new.png").write_bytes(saved(scene(side_px=48), "PNG"))
    assert told() == before == (20, before[1])
    assert not caplog.messages

    job = dataclasses.replace(job, config=dataclasses.replace(job.config, steps=3))
    after = told()
    assert after[0] == 21
    assert after[1] != before[1]
    assert "the photos are others than before" in caplog.text


def test_steps_that_take_long_are_not_lost_for_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run_folder.CHECKPOINT_S", 0.0)
    job = _job(folder, config=TrainConfig(steps=3, batch_size=1, patch_px=32))

    def stop_at_3(metrics: StepMetrics) -> None:
        if metrics.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_train(job, stop_at_3)

    assert read_checkpoint_header(open_store(job.run).read("checkpoint.safetensors"))[0] == 2


def test_a_run_that_was_stopped_ends_as_one_that_was_not(folder: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at_3(metrics: StepMetrics) -> None:
        if metrics.step == 3:
            raise Stop

    config = TrainConfig(steps=5, batch_size=4, patch_px=32)
    stopped, whole = (
        _job(folder, config=config, checkpoint_every=2, log_every=1, run=str(folder.parent / name)) for name in "ab"
    )
    with pytest.raises(Stop):
        run_train(stopped, stop_at_3)
    run_train(stopped, lambda metrics: None)
    run_train(whole, lambda metrics: None)

    assert _bytes(stopped) == _bytes(whole)
    losses = [[row["loss"] for row in read_metrics(open_store(job.run))] for job in (stopped, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_writes_a_checkpoint_first_and_later_ends_as_one_that_was_not(
    folder: Path, number: signal.Signals
) -> None:
    def end_at_2(metrics: StepMetrics) -> None:
        if metrics.step == 2:
            signal.raise_signal(number)

    config = TrainConfig(steps=5, batch_size=4, patch_px=32)
    stopped, whole = (_job(folder, config=config, run=str(folder.parent / name)) for name in "ab")
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"^interrupted: the same command goes on at step 3$"):
            run_train(stopped, end_at_2)
    finally:
        signal.signal(number, before)
    run_train(stopped, lambda metrics: None)
    run_train(whole, lambda metrics: None)

    assert _bytes(stopped) == _bytes(whole)


def test_a_run_that_is_told_to_end_twice_ends_at_once(folder: Path) -> None:
    job = _job(folder, config=TrainConfig(steps=5, batch_size=4, patch_px=32))

    def end_twice(_: StepMetrics) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_train(job, end_twice)

    assert not (Path(job.run) / CHECKPOINT).exists()


def test_what_a_killed_run_wrote_in_half_does_not_stay(folder: Path) -> None:
    unfinished = folder.parent / "run/.degrain-tmp/checkpoint"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half")

    run_train(_job(folder), lambda metrics: None)

    assert not unfinished.parent.exists()


def test_tensorboard_shows_every_row_once_after_a_run_that_was_killed_at_a_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(steps=5, batch_size=1, patch_px=32)
    job = _job(folder, config=config, checkpoint_every=2, log_every=1)
    dump = TrainState.dump

    def dump_once(state: TrainState, *settings: object) -> bytes:
        if state.step == 4:
            raise KeyboardInterrupt
        return dump(state, *settings)

    with monkeypatch.context() as patched:
        patched.setattr(TrainState, "dump", dump_once)
        with pytest.raises(KeyboardInterrupt):
            run_train(job, lambda metrics: None)
    run_train(job, lambda metrics: None)

    losses = [row["loss"] for row in read_metrics(open_store(job.run))]
    assert list(_shown_losses(Path(job.run) / "tensorboard").values()) == pytest.approx(losses)


def test_a_run_that_is_at_work_is_left_to_itself(folder: Path) -> None:
    refusals: list[str] = []

    def begin_again(_: StepMetrics) -> None:
        with pytest.raises(TargetInUse, match="/run is in use by 'degrain train'") as refused:
            run_train(_job(folder), print)
        refusals.append(str(refused.value))

    run_train(_job(folder), begin_again)

    assert len(refusals) == 2


def test_a_place_that_cannot_be_written_is_known_before_any_step(folder: Path) -> None:
    (folder.parent / "run").touch()
    steps: list[StepMetrics] = []

    with pytest.raises(StorageError, match="/run"):
        run_train(_job(folder), steps.append)

    assert steps == []


def test_the_recipe_of_a_run_may_not_change_but_its_length_may(folder: Path) -> None:
    run_train(_job(folder), lambda metrics: None)

    with pytest.raises(ValueError, match=r"another recipe \(learning_rate\): only steps"):
        run_train(_job(folder, config=TrainConfig(steps=4, batch_size=1, patch_px=32, learning_rate=1)), print)
    seen: list[StepMetrics] = []
    run_train(_job(folder, config=TrainConfig(steps=4, batch_size=1, patch_px=32)), seen.append)
    assert [metrics.step for metrics in seen] == [3, 4]


def test_a_run_keeps_to_its_photos_and_to_what_it_started_from(folder: Path) -> None:
    run_train(_job(folder), lambda metrics: None)
    (folder.parent / "others").mkdir()
    (folder.parent / "others/a.png").write_bytes((folder / "40.png").read_bytes())
    file = folder.parent / "run/weights.safetensors"
    before = file.read_bytes()

    with pytest.raises(ValueError, match=r"has another recipe \(source, start_from\)"):
        run_train(_job(folder.parent / "others", start_from="photo"), print)
    with pytest.raises(ValueError, match=r"has another recipe \(validation_fraction\)"):
        run_train(_job(folder, validation_fraction=0.3), print)

    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": TrainConfig(steps=1, batch_size=3, patch_px=32, seed=1)}, r"another recipe \(seed\)"),
        ({"run": "other", "config": TrainConfig(steps=1, batch_size=3, patch_px=64)}, "photos of at least 64 pixels"),
        ({"run": "other", "start_from": "nothing"}, "unknown weights 'nothing'"),
        ({"run": "other", "teacher": "nothing"}, "unknown weights 'nothing'"),
        (
            {"run": "other", "start_from": "photo", "config": SEED_FOR_WHITE},
            "the network for white noise is a 'seed': expected one that the tiles of a 'fine' fit",
        ),
        ({"run": "other", "validation": "nothing"}, "there are no photos in .*/nothing: it is empty"),
    ],
)
def test_what_would_stop_every_worker_is_known_before_a_cluster_starts(
    folder: Path, changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(steps=1, batch_size=3, patch_px=32)
    monkeypatch.chdir(folder.parent)
    run_train(_job(folder, config=config), lambda metrics: None)
    monkeypatch.setattr(train, "_train_on_cluster", lambda *_: pytest.fail("a cluster was started"))

    with pytest.raises(ValueError, match=message):
        run_train(_job(folder, **{"config": config, "workers": 2} | changes), print)


def test_a_run_that_is_further_than_it_is_to_go_is_refused(folder: Path) -> None:
    run_train(_job(folder), lambda metrics: None)

    with pytest.raises(ValueError, match="is at step 2 already, and steps is 1"):
        run_train(_job(folder, config=TrainConfig(steps=1, batch_size=1, patch_px=32)), print)


@pytest.mark.parametrize("name", [CHECKPOINT, METRICS])
@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda data: data[: len(data) // 2], lambda data: b"<html>" + data[6:]]
)
def test_a_damaged_file_of_a_run_is_named_and_stays(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    run_train(_job(folder), lambda metrics: None)
    file = folder.parent / "run" / name
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()

    with pytest.raises(RunFailed, match=rf"/run/{name} is damaged: put back a copy of it, or remove it to"):
        run_train(_job(folder, config=TrainConfig(steps=4, batch_size=1, patch_px=32)), print)

    assert file.read_bytes() == before


def test_a_cluster_that_is_gone_hides_no_error_by_its_own() -> None:
    class Gone:
        def remote(self, *_: object, **__: object) -> None:
            raise RayActorError

    class News:
        tell = next = Gone()

    with (
        pytest.raises(RunFailed, match="training stopped"),
        train._passed_on(News(), print, Interruption()),
    ):
        raise RunFailed("training stopped")


def test_a_worker_whose_run_has_been_taken_over_writes_no_checkpoint_and_does_not_begin_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(folder, config=TrainConfig(steps=1, batch_size=1, patch_px=32))
    store = open_store(job.run)
    with leased(store, "degrain train") as ours:
        pass

    with leased(store, "degrain train"), pytest.raises(RunFailed, match="is lost to another run"):
        train_worker(job, Worker(), lambda _: None, check=partial(refuse_if_lost, store, ours.claim))

    assert not store.exists(CHECKPOINT)
    monkeypatch.chdir(folder)  # as Ray does with its workers: the path of a run is that of the command
    job = dataclasses.replace(job, run="run")
    assert isinstance(train._train_as_ray_worker(job, 1, None, ours.claim, folder.parent), RunFailed)


def test_a_run_that_is_lost_while_its_weights_are_scored_writes_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.lease.GIVE_UP_S", -1.0)  # it is looked at whenever it is asked for
    monkeypatch.setattr(train, "score", lambda *_: shutil.rmtree(folder.parent / "run/lease") or {})

    with pytest.raises(RunFailed, match=r"the lease of .* has vanished"):
        run_train(_job(folder, validation_fraction=0.3), print)

    assert not (folder.parent / "run/weights.safetensors").exists()


def test_photos_that_cannot_be_used_are_made_up_for_by_others(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no photo")
    (folder / "gray.png").write_bytes(saved(scene(sigma=2)[..., 0], "PNG"))

    run_train(_job(folder), lambda metrics: None)

    assert (folder.parent / "run/weights.safetensors").exists()


def test_the_command_warns_of_what_changes_its_result(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "40.png":
            path.write_bytes(b"no photo")
    options = ("--patch-px", 32, "--batch-size", 1)
    degrain("train", folder, "--run", folder.parent / "run", "--steps", 1, *options)
    (folder / "new.png").write_bytes((folder / "40.png").read_bytes())

    done = degrain("train", folder, "--run", folder.parent / "run", "--steps", 2, *options)

    for told in ("left out 41.png", "going on at step 1", "the photos are others than before"):
        assert f"WARNING {told}" in done.stderr
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_loss_that_is_no_number_stops_all_workers_of_a_cluster_at_once(folder: Path) -> None:
    config = TrainConfig(steps=20, batch_size=8, patch_px=32, warmup_steps=0, learning_rate=1e30)
    steps: list[int] = []

    with pytest.raises(FloatingPointError, match="the loss of step 2 is"):
        run_train(_job(folder, config=config, workers=2), lambda metrics: steps.append(metrics.step))

    assert steps == [1]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_that_are_told_to_end_write_a_checkpoint_first_and_later_end_as_others_that_were_not(
    folder: Path,
) -> None:
    """The first signal comes while Ray Train waits, whose own handler of it would end the workers at once."""
    config = TrainConfig(steps=60, batch_size=8, patch_px=32, small_share=0)  # seconds: Ray lets a signal wait for one
    stopped, whole = (_job(folder, config=config, workers=2, run=str(folder.parent / name)) for name in "ab")

    def end_at_3(metrics: StepMetrics) -> None:
        if metrics.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="goes on at step"):
        run_train(stopped, end_at_3)
    assert 3 < read_step(open_store(stopped.run)) < 60
    for job in (stopped, whole):
        run_train(job, lambda metrics: None)

    assert _bytes(stopped) == _bytes(whole)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_that_share_a_batch_survive_the_death_of_one_and_end_as_one_worker_does(folder: Path) -> None:
    """A real cluster: a worker is killed when the first checkpoint is there."""
    # AdamW: Muon takes directions that are all but noise as far as the others, and so makes much of rounding.
    config = TrainConfig(
        steps=40,
        batch_size=8,
        patch_px=32,
        small_share=0,
        warmup_steps=4,
        bfloat16=False,
        optimizer=OptimizerName.ADAMW,
    )
    alone, shared = (
        _job(folder, config=config, checkpoint_every=10, run=str(folder.parent / name), workers=workers)
        for name, workers in (("alone", 1), ("shared", 2))
    )
    killed: list[int] = []

    def kill_one(metrics: StepMetrics) -> None:
        if not killed and (folder.parent / "shared" / CHECKPOINT).exists() and metrics.step < 35:
            killed.extend(_ray_training_workers()[:1])
            os.kill(killed[0], signal.SIGKILL)

    run_train(shared, kill_one)
    run_train(alone, lambda metrics: None)

    assert killed
    ends = [load_weights(f"{job.run}/weights.safetensors") for job in (shared, alone)]
    assert ends[0].card == ends[1].card
    start = TrainState(config).network.state_dict()
    apart, travelled = (
        math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in start))
        for one, other in ((ends[0].tensors, ends[1].tensors), (ends[1].tensors, start))
    )
    assert apart < 0.02 * travelled


def _are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def _bytes(job: TrainJob) -> bytes:
    return (Path(job.run) / "weights.safetensors").read_bytes()


def _shown_losses(folder: Path) -> dict[int, float]:
    """What TensorBoard shows by step: where a session starts at a step, it forgets those from there on."""
    shown: dict[int, float] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size_bytes = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size_bytes])
            data = data[16 + size_bytes :]
            if event.session_log.status == SessionLog.START:
                shown = {step: loss for step, loss in shown.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    assert event.step not in shown
                    shown[event.step] = value.simple_value
    return shown


def _ray_training_workers() -> list[int]:
    """Processes of Ray Train's workers that descend from this one."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}

    def is_ours(pid: int) -> bool:
        while pid in parents:
            if pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    return [int(pid) for pid, _, name in rows if "RayTrainWorker" in name and is_ours(int(pid))]
