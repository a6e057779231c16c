"""The JPEG of the training noise does to a photo what libjpeg does."""

import io

import numpy as np
import pytest
import torch
from photos import saved, scene
from PIL import Image
from torch import Tensor

from model.jpeg import pass_through_jpeg


def through_tensors(photo_HWC: np.ndarray, *, quality: float, is_420: bool) -> np.ndarray:
    photo_BCHW = torch.from_numpy(photo_HWC).permute(2, 0, 1)[None].float() / 255
    result_BCHW = pass_through_jpeg(photo_BCHW, torch.tensor([quality]), torch.tensor([is_420]))
    return (result_BCHW[0].permute(1, 2, 0) * 255).numpy()


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference))))


@pytest.mark.parametrize("is_420", [False, True])
@pytest.mark.parametrize("quality", [60, 85, 95])
def test_it_errs_as_libjpeg_errs(quality: int, is_420: bool) -> None:
    photo = scene(side_px=128)
    jpeg = saved(photo, "JPEG", quality=quality, subsampling=2 if is_420 else 0)
    expected = np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)

    found = through_tensors(photo, quality=quality, is_420=is_420)

    assert rms(found - expected) < 0.6 * rms(expected - photo)  # independent errors would give 1.4


def test_it_leaves_every_gray_as_libjpeg_leaves_it() -> None:
    grays = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(16, axis=0).repeat(16, axis=1)
    photo = np.stack([grays] * 3, axis=2)
    expected = np.asarray(Image.open(io.BytesIO(saved(photo, "JPEG", quality=75, subsampling=0))))

    assert np.array_equal(through_tensors(photo, quality=75, is_420=False).round(), expected)


def test_the_best_quality_hardly_changes_a_photo_and_a_lower_one_changes_it_more() -> None:
    photo = scene(side_px=64)
    errors = [rms(through_tensors(photo, quality=quality, is_420=False) - photo) for quality in (100, 90, 75, 40)]

    assert errors == sorted(errors)
    assert errors[0] < 1


def test_halved_chroma_takes_fine_colour_noise_away_and_leaves_the_luminance() -> None:
    photo = scene(side_px=64)
    full, half = (through_tensors(photo, quality=98, is_420=is_420) for is_420 in (False, True))

    def colour(image: np.ndarray) -> float:
        return float(np.diff(image[..., 0] - image[..., 1], axis=0).std())

    assert colour(half) < 0.5 * colour(full)
    assert rms(half.mean(axis=2) - full.mean(axis=2)) < 0.5 * rms(half - full)


def test_each_photo_of_a_batch_has_its_own_quality_and_chroma() -> None:
    photo_CHW = torch.from_numpy(scene(side_px=32)).permute(2, 0, 1).float() / 255
    quality_B, is_420_B = torch.tensor([95.0, 40.0]), torch.tensor([False, True])

    batch_BCHW = pass_through_jpeg(torch.stack([photo_CHW] * 2), quality_B, is_420_B)

    def alone(index: int) -> Tensor:
        return pass_through_jpeg(photo_CHW[None], quality_B[index : index + 1], is_420_B[index : index + 1])[0]

    torch.testing.assert_close(batch_BCHW[0], alone(0))
    torch.testing.assert_close(batch_BCHW[1], alone(1))
