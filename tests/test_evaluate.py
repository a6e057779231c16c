"""Trials make the noise that they name, and scores say what was done to it."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from photos import saved

from flows.cli import main
from model.evaluate import (
    CAMERAS,
    PHOTO_ISOS,
    Score,
    Trial,
    camera_of,
    demosaic,
    mean_score,
    photograph,
    run_trial,
    standard_trials,
)
from model.metrics import MOST_DB
from model.photo import PhotoNetwork
from model.weights import SHIPPED, Card, dump_weights
from pipeline.errors import StorageError
from pipeline.evaluate import EvaluateJob, TrialPhotos, choose_trials, read_distinct, run_evaluate
from pipeline.peers import PEERS
from pipeline.registry import Pointer, open_registry
from pipeline.scores import Row

pytest.importorskip("cv2", reason="needs the extra 'evaluate'")
pytest.importorskip("skimage", reason="needs the extra 'evaluate'")

TRIALS = {trial.name: trial for trial in standard_trials()}


def _photos(count: int = 2) -> list[np.ndarray]:
    """Smooth photos with one edge, away from black and white."""
    ramp = np.linspace(70, 180, 64)
    photo = np.stack([np.add.outer(ramp, ramp) / 2] * 3, axis=2)
    photo[:, 32:] += 20
    return [(photo + number).astype(np.uint8) for number in range(count)]


def _add(name: str, clean: np.ndarray) -> np.ndarray:
    return TRIALS[name].add(clean, np.random.default_rng(0), 0)


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_the_noise_of_papers_is_float_and_that_of_files_is_8_bit(sigma):
    (clean,) = _photos(1)
    assert (_add(f"float, σ {sigma}", clean) - clean).std() == pytest.approx(sigma, rel=0.03)
    noisy = _add(f"file, σ {sigma}", clean)
    assert noisy.dtype == np.uint8
    assert (noisy.astype(float) - clean).std() == pytest.approx(sigma, rel=0.1)


def test_a_fifth_of_the_pixels_is_salt_or_pepper():
    (clean,) = _photos(1)
    noisy = _add("salt and pepper, 20 %", clean)
    changed = (noisy != clean).any(axis=2)
    assert changed.mean() == pytest.approx(0.2, abs=0.02)
    assert np.isin(noisy[changed], (0, 255)).all()


@pytest.mark.parametrize("camera", range(len(CAMERAS)))
def test_every_camera_keeps_the_photo_and_is_noisier_at_a_higher_iso(camera):
    (clean,) = _photos(1)
    numbers = sorted(range(camera, 25, len(CAMERAS)), key=lambda number: camera_of(number)[1])
    low, high = (
        photograph(clean, np.random.default_rng(0), number).astype(float) - clean
        for number in (numbers[0], numbers[-1])
    )
    assert low.mean() == pytest.approx(0, abs=2)
    assert 0.5 < low.std() < high.std() < 40
    if CAMERAS[camera].max_iso == PHOTO_ISOS[-1]:
        assert high.std() > 1.7 * low.std()


@pytest.mark.parametrize("is_edge_aware", [True, False])
@pytest.mark.parametrize("mosaic", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_what_a_pixel_of_the_sensor_sees_stays_and_the_rest_is_interpolated(mosaic, is_edge_aware):
    colours = np.array([0.2, 0.5, 0.8])
    linear = np.tile(colours, (16, 16, 1)) * np.random.default_rng(0).uniform(0.7, 1, (16, 16, 1))

    developed = demosaic(linear, mosaic, is_edge_aware=is_edge_aware)

    for place, colour in enumerate(mosaic):
        seen = (slice(4 + place // 2, 12, 2), slice(4 + place % 2, 12, 2), "RGB".index(colour))
        assert developed[seen] == pytest.approx(linear[seen], abs=0.01)
    assert np.median(developed, axis=(0, 1)) == pytest.approx(np.median(linear, axis=(0, 1)), abs=0.05)


def test_five_photos_meet_all_cameras_and_all_isos_and_25_meet_each_camera_up_to_its_highest():
    assert [camera_of(number) for number in range(5)] == list(zip(CAMERAS, PHOTO_ISOS[::-1], strict=True))
    met = [camera_of(number) for number in range(25)]
    assert set(met) == {(camera, min(iso, camera.max_iso)) for camera in CAMERAS for iso in PHOTO_ISOS}


def test_no_photo_scores_better_than_one_that_is_as_it_should_be():
    photo = np.full((512, 512, 3), 128, np.uint8)
    nearly = photo.copy()
    nearly[3, 3, 0] += 1
    scores = [next(run_trial(TRIALS["clean"], lambda *_, made=made: made, [photo])) for made in (photo, nearly)]
    assert [(score.noisy_psnr_db, score.psnr_db) for score in scores] == [(MOST_DB, MOST_DB)] * 2


def _score_of(denoise) -> Score:
    return mean_score(run_trial(TRIALS["file, σ 25"], denoise, _photos()))


def test_doing_nothing_gains_nothing_and_leaves_all_of_the_noise():
    score = _score_of(lambda noisy, _told: noisy)
    assert score.gain_db == 0
    assert score.noise_left == pytest.approx(1, abs=1e-4)
    assert score.detail_lost == pytest.approx(0, abs=0.3)
    assert score.estimated_sigma == pytest.approx(25, rel=0.12)


def test_a_blur_loses_detail_and_removes_noise():
    def blur(noisy, _told):
        return sum(np.roll(noisy.astype(np.float32), (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9

    score = _score_of(blur)
    assert score.noise_left == pytest.approx(1 / 9, abs=0.03)
    assert score.detail_lost > 0.5


def test_perfection_is_perfect():
    photos = iter(_photos())
    score = _score_of(lambda _noisy, _told: next(photos))
    assert (score.psnr_db, score.ssim, score.noise_left, score.detail_lost) == (99, pytest.approx(1), 0, 0)


def test_equal_seeds_give_every_denoiser_the_same_noise():
    seen = []
    for _ in range(2):
        list(run_trial(TRIALS["cameras, ISO 800–12800"], lambda noisy, _told: seen.append(noisy) or noisy, _photos()))
    assert np.array_equal(seen[0], seen[2])
    assert np.array_equal(seen[1], seen[3])
    assert not np.array_equal(seen[0], seen[1])


def test_a_peer_is_told_the_true_sigma_where_there_is_one():
    told = []
    trial = Trial("float", TRIALS["float, σ 25"].add, 25)
    list(run_trial(trial, lambda noisy, known: told.append(known.sigma) or noisy, _photos()))
    list(run_trial(TRIALS["cameras, ISO 800–12800"], lambda noisy, known: told.append(known.sigma) or noisy, _photos()))
    assert told[:2] == [25, 25]
    assert [0 < sigma < 25 for sigma in told[2:]] == [True, True]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, clean in enumerate(_photos()):
        (tmp_path / f"photos/{number}.png").write_bytes(saved(clean, "PNG"))
    return tmp_path


def test_the_command_prints_a_row_for_each_trial_and_denoiser_and_writes_them_down(folder, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra 'evaluate'")
    assert main(["evaluate", "photo", str(folder / "photos"), "--output", str(folder / "scores"), "--json"]) == 0

    rows = json.loads(capsys.readouterr().out)
    written = json.loads((folder / "scores/scores.json").read_text())
    assert [row["trial"] for row in rows] == list(TRIALS)
    assert written["rows"] == rows
    assert len(written["scores"]) == 2 * len(TRIALS)
    gains = {row["trial"]: row["gain_db"] for row in rows}
    assert gains["file, σ 25"] > 5
    assert gains["float, σ 25"] > 5
    assert (folder / "scores/scores.svg").read_text().count("<svg") == 1
    assert (folder / "scores/scores.md").read_text().count("\n") == 2 + len(TRIALS)


def test_folders_whose_names_are_no_text_are_named_in_the_scores(folder):
    pytest.importorskip("matplotlib", reason="needs the extra 'evaluate'")
    photos, run = (folder / os.fsdecode(name) for name in (b"f\xf6tos", b"r\xfcn"))
    (folder / "photos").rename(photos)
    run.mkdir()
    (run / "weights.safetensors").write_bytes((SHIPPED / "photo.safetensors").read_bytes())

    job = EvaluateJob(weights=str(run / "weights.safetensors"), photos=str(photos), trials=("clean",), limit=1)
    run_evaluate(dataclasses.replace(job, folder=str(folder / "scores")), lambda row: None)

    written = json.loads((folder / "scores/scores.json").read_text())
    assert (list(written["weights"]), written["photos"]) == ([r"r\udcfcn"], rf"{folder}/f\udcf6tos")


def test_weights_are_measured_beside_others_and_told_apart(folder, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra 'evaluate'")
    torch.manual_seed(0)
    (folder / "run").mkdir()
    card = Card(network="photo", data="", licence="", noise="untrained")
    (folder / "run/weights.safetensors").write_bytes(dump_weights(PhotoNetwork(), card))
    arguments = ["evaluate", "photo", str(folder / "photos"), "--against", str(folder / "run/weights.safetensors")]

    assert main([*arguments, "--trials", "file, σ 25", "--limit", "1", "--peers", "median"]) == 0

    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[3] for line in lines] == ["photo", "run", "median"]
    assert float(lines[1].split()[-1]) > 5  # dB behind


def test_weights_of_a_registry_are_measured_beside_others_of_it_and_beside_those_that_ship(folder, capsys):
    registry = open_registry(str(folder / "registry"))
    for name in ("night", "day"):
        data = dump_weights(PhotoNetwork(), Card(network="photo", data="", licence="", noise=name))
        registry.point(name, Pointer(sha256=registry.add(data)))
    arguments = ["evaluate", "night", str(folder / "photos"), "--registry", str(folder / "registry")]

    assert main([*arguments, "--against", "day", "photo", "--trials", "clean", "--limit", "1", "--json"]) == 0

    assert [row["denoiser"] for row in json.loads(capsys.readouterr().out)] == ["night", "day", "photo"]


def test_weights_of_a_hash_are_called_by_its_first_digits(tmp_path):
    weights = dump_weights(PhotoNetwork(), Card(network="photo", data="", licence="", noise=""))
    sha256 = open_registry(str(tmp_path)).add(weights)

    for source in (f"{tmp_path}/weights/{sha256}", f"{tmp_path}/weights/{sha256}.safetensors"):
        assert list(read_distinct(source)) == [sha256[:8]]


def test_a_folder_that_cannot_be_written_is_known_before_any_trial(folder):
    (folder / "scores").touch()
    rows: list[Row] = []

    with pytest.raises(StorageError, match="/scores"):
        run_evaluate(
            EvaluateJob(weights="photo", photos=str(folder / "photos"), folder=str(folder / "scores")), rows.append
        )

    assert rows == []


def test_photos_on_trial_are_read_anew_each_time_and_must_stay_what_they_are(folder):
    """Memory would not hold all those of a large collection."""
    photos = TrialPhotos.find(str(folder / "photos"), limit=None)
    first, last = sorted((folder / "photos").iterdir())
    assert next(iter(photos)) is not next(iter(photos))
    assert [pixels.mean() for pixels in photos.only([last.name])] == [list(photos)[-1].mean()]

    last.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=f"{last.name} has changed while denoisers were tried on it"):
        list(photos)

    last.unlink()
    with pytest.raises(ValueError, match=f"{last.name} has gone while denoisers were tried on it"):
        list(photos)


def test_trials_are_chosen_by_words_of_their_names():
    assert [trial.name for trial in choose_trials(["salt", "FLOAT"])] == [
        *(f"float, σ {sigma}" for sigma in (15, 25, 50)),
        "salt and pepper, 20 %",
    ]
    with pytest.raises(ValueError, match=r"no trial has 'snow' in its name: there are float, σ 15; "):
        choose_trials(["snow"])


def test_a_peer_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="no denoiser is called 'mean': expected median, nlm, bm3d"):
        EvaluateJob(weights="photo", photos=".", peers=("mean",))


def test_the_same_weights_are_not_measured_twice():
    with pytest.raises(ValueError, match="same weights"):
        read_distinct("photo", "photo")


def test_classical_denoisers_gain_on_what_they_are_made_for(folder):
    (clean, _) = _photos()
    for name, trial in (("median", "salt and pepper, 20 %"), ("nlm", "file, σ 25")):
        (score,) = run_trial(TRIALS[trial], PEERS[name], [clean])
        assert score.gain_db > 5


def test_a_library_that_is_missing_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"cv2 is missing: pip install 'degrain\[evaluate\]'"):
        run_evaluate(EvaluateJob(weights="photo", photos=str(folder / "photos")), lambda row: None)
