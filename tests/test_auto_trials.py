"""What is measured of the estimate and of `auto` is true, and both are good on simple photos."""

import json

import numpy as np
import pytest
from photos import saved, scene

from flows.cli import main
from model import auto_trials
from model.auto_trials import FIXED_STRENGTHS, STRENGTH_SIGMAS, AutoScores, score_auto, score_estimates
from model.denoiser import Denoiser
from model.metrics import MOST_DB
from pipeline.auto_table import auto_rows, format_auto

PHOTOS = [scene(sigma=0, side_px=96, seed=seed)[:, ::step] for seed, step in ((0, 1), (1, -1))]


@pytest.fixture(scope="module")
def scores() -> AutoScores:
    return score_auto(Denoiser.load("photo"), PHOTOS)


@pytest.mark.parametrize("sigma", [2, 10, 50])
def test_the_noise_of_smooth_photos_is_met(sigma: int) -> None:
    found = score_estimates(PHOTOS, sigma)
    assert (found.met, found.photos) == (1, 2)
    assert found.median == pytest.approx(sigma, rel=0.12)


def test_an_estimate_that_texture_misleads_counts_as_missed() -> None:
    texture = np.random.default_rng(0).normal(128, 10, (96, 96, 3)).round().astype(np.uint8)
    assert score_estimates([*PHOTOS, texture], 2).met == pytest.approx(2 / 3)


def test_clean_photos_are_left_alone_and_the_best_strength_for_them_is_0(scores: AutoScores) -> None:
    assert (scores.clean.left_alone, scores.clean.rest_worst_psnr_db) == (1, None)
    assert (scores.strengths[0].best_strength, scores.strengths[0].loss_db) == (0, 0)


def test_auto_is_as_good_as_the_best_fixed_strength_within_a_decibel(scores: AutoScores) -> None:
    assert [each.sigma for each in scores.strengths] == list(STRENGTH_SIGMAS)
    for each in scores.strengths[1:]:
        assert each.best_strength in FIXED_STRENGTHS[10:]
        assert 0 <= each.loss_db < 1


def test_photos_that_are_not_left_alone_and_yet_do_not_change_have_a_finite_score(monkeypatch) -> None:
    class Copying:
        def __call__(self, noisy: np.ndarray, **_: object) -> np.ndarray:
            return noisy.copy()

    monkeypatch.setattr(auto_trials, "why_left_alone", lambda *_, **__: None)
    clean = score_auto(Copying(), PHOTOS).clean
    assert (clean.rest_mean_psnr_db, clean.rest_worst_psnr_db) == (MOST_DB, MOST_DB)


def test_a_strength_of_0_is_the_noisy_photo_itself(scores: AutoScores) -> None:
    assert scores.strengths[-1].best_psnr_db > 20 * np.log10(255 / 50) + 5


def test_the_tables_and_the_rows_say_the_same(scores: AutoScores) -> None:
    rows = {str(row["trial"]): row for row in auto_rows(scores)}
    assert rows["clean, --strength auto"]["left_alone"] == 1
    assert f"| 5 | {rows['estimate, σ 5']['median']:.2f} | 100 % |" in format_auto(scores)
    assert "| 2 | 100.0 % | - | - |" in format_auto(scores)


def test_the_command_measures_auto_when_it_is_asked_to(tmp_path, capsys) -> None:
    for library in ("cv2", "skimage", "matplotlib"):
        pytest.importorskip(library, reason="needs the extra 'evaluate'")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(saved(PHOTOS[0], "PNG"))

    arguments = ["evaluate", "photo", str(tmp_path / "photos"), "--trials", "clean", "--auto", "--json"]
    assert main([*arguments, "--output", str(tmp_path / "scores")]) == 0

    rows = json.loads(capsys.readouterr().out)
    assert [row["trial"] for row in rows][:2] == ["clean", "estimate, σ 2"]
    assert json.loads((tmp_path / "scores/scores.json").read_text())["auto"] == rows[1:]
    assert "| clean photos |" in (tmp_path / "scores/scores.md").read_text()
