"""Clean photos are those that can be trained on and measured by, and are identified by their bytes and names."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from photos import saved, scene
from PIL import Image

from pipeline import png
from pipeline.clean_photos import digest_of, find_clean_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, side_px in enumerate((40, 32, 20)):
        (tmp_path / f"{number}.png").write_bytes(saved(scene(side_px=side_px, seed=number), "PNG"))
    (tmp_path / "gray.png").write_bytes(saved(Image.fromarray(scene()).convert("L"), "PNG"))
    (tmp_path / "notes.txt").write_text("by the sea")
    return tmp_path


def test_colour_photos_of_a_size_come_in_the_order_of_their_keys(folder: Path) -> None:
    photos = list(find_clean_photos(str(folder), min_side_px=32))

    assert [photo.key for photo in photos] == ["0.png", "1.png"]
    assert np.array_equal(photos[1].pixels, scene(side_px=32, seed=1))


def test_photos_of_no_use_are_told_of_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = find_clean_photos(str(folder), min_side_px=32)
    first = [photo.key for photo in photos]
    told = len(caplog.messages)

    assert [photo.key for photo in photos] == first
    assert sorted(message.split(":")[0] for message in caplog.messages) == [
        f"left out {key}" for key in ("2.png", "gray.png", "notes.txt")
    ]
    assert len(caplog.messages) == told


def test_a_photo_on_whose_header_a_codec_fails_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = png.inspect
    monkeypatch.setattr(png, "inspect", lambda data: sound(data) if data != first else {}["size"])
    first = (folder / "0.png").read_bytes()

    assert [photo.key for photo in find_clean_photos(str(folder), min_side_px=32)] == ["1.png"]


def test_a_collection_without_any_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="no 8-bit colour photos of at least 64 pixels a side"):
        list(find_clean_photos(str(folder), min_side_px=64))


def test_a_collection_that_is_not_there_is_told_from_one_without_any(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no photos in .*/nowhere: it is empty"):
        list(find_clean_photos(f"{folder}/nowhere"))


def test_the_digest_is_that_of_sha256sum(folder: Path) -> None:
    printed = subprocess.run(
        "sha256sum 0.png 1.png 2.png | LC_ALL=C sort | sha256sum",
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    photos = find_clean_photos(str(folder))
    assert digest_of((photo.key, photo.sha256) for photo in photos) == printed.split()[0]
