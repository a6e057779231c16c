"""PSNR, and the protocol that papers use."""

import math

import numpy as np
import pytest

from model.metrics import MOST_DB, gaussian_psnr_db, psnr_db, score_db


def test_an_error_of_one_level_everywhere_is_48_db():
    photo = np.full((4, 5, 3), 100, dtype=np.uint8)
    assert psnr_db(photo, photo + 1) == pytest.approx(20 * math.log10(255))


def test_unsigned_differences_do_not_wrap_around():
    dark, bright = np.zeros((4, 4), dtype=np.uint8), np.full((4, 4), 255, dtype=np.uint8)
    assert psnr_db(dark, bright) == psnr_db(bright, dark) == 0


def test_16_bit_photos_are_measured_against_their_own_peak():
    photo = np.full((4, 4), 1000, dtype=np.uint16)
    assert psnr_db(photo, photo + 257, peak=65535) == pytest.approx(20 * math.log10(255))


def test_equal_photos_are_infinitely_good():
    assert psnr_db(np.ones((2, 2)), np.ones((2, 2))) == math.inf


def test_photos_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="cannot compare"):
        psnr_db(np.ones((2, 3)), np.ones((3, 2)))


def test_doing_nothing_scores_what_the_noise_leaves():
    gray = np.full((200, 200, 3), 128, dtype=np.uint8)
    (score_db,) = gaussian_psnr_db(lambda noisy: noisy, [gray], sigma=25)
    assert score_db == pytest.approx(20 * math.log10(255 / 25), abs=0.05)


def test_the_noise_is_neither_clipped_nor_rounded():
    seen = []
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    gaussian_psnr_db(lambda noisy: seen.append(noisy) or noisy, [black], sigma=25)
    assert seen[0].dtype == np.float32
    assert seen[0].mean() == pytest.approx(0, abs=1)
    assert seen[0].std() == pytest.approx(25, rel=0.02)


def test_the_same_seed_gives_the_same_scores_and_another_does_not():
    photos = [np.full((16, 16, 3), level, dtype=np.uint8) for level in (60, 120)]
    first, again, other = (gaussian_psnr_db(np.copy, photos, sigma=10, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_score_is_finite_however_close_the_photo_is():
    photo = np.full((512, 512, 3), 128, np.uint8)
    nearly = photo.copy()
    nearly[3, 3, 0] += 1
    assert psnr_db(nearly, photo) > MOST_DB
    assert score_db(photo, photo) == score_db(nearly, photo) == MOST_DB
    assert gaussian_psnr_db(lambda _: photo.astype(np.float32), [photo], sigma=25) == [MOST_DB]
