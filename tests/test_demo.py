import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.noise import photograph
from pipeline.demo import (
    DEMO_PHOTOS,
    PHOTOS,
    SHOT_PER_ISO,
    DemoPhoto,
    DemoResult,
    DemoScore,
    draw_comparison,
    format_table,
    run_demo,
    score,
    write_noisy,
)
from pipeline.errors import RunFailed

NAMES = sorted(photo.name for photo in DEMO_PHOTOS)
MAX_PHOTO_BYTES = 150_000


def copy_noisy(noisy: Path, denoised: Path) -> None:
    shutil.copytree(noisy, denoised / "images", dirs_exist_ok=True)


def copy_clean(_: Path, denoised: Path) -> None:
    (denoised / "images").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(PHOTOS / name, denoised / "images")


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new"


@pytest.fixture(scope="module")
def result(folder: Path) -> DemoResult:
    return run_demo(folder, copy_noisy)


@pytest.fixture
def one_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.demo.DEMO_PHOTOS", DEMO_PHOTOS[:1])


def test_a_demo_leaves_noisy_and_denoised_photos_and_a_picture(folder: Path, result: DemoResult) -> None:
    expected = [
        "before-after.png",
        *(f"denoised/images/{name}" for name in NAMES),
        *(f"noisy/{name}" for name in NAMES),
    ]

    assert files_below(folder) == expected
    assert result.picture == folder / "before-after.png"


def test_a_denoiser_that_changes_nothing_gains_nothing(result: DemoResult) -> None:
    assert [each.gain_db for each in result.scores] == [0.0] * len(DEMO_PHOTOS)
    assert all(20 < each.noisy_psnr_db < 36 for each in result.scores)


@pytest.mark.usefixtures("one_photo")
def test_a_perfect_denoiser_gains_without_limit(tmp_path: Path) -> None:
    result = run_demo(tmp_path, copy_clean)

    assert [each.gain_db for each in result.scores] == [np.inf]


def test_the_picture_is_drawn_for_a_wide_page(result: DemoResult) -> None:
    with Image.open(result.picture) as picture:
        assert (picture.format, picture.mode, picture.width) == ("PNG", "RGB", 1600)
        assert len(set(picture.resize((64, 64)).get_flattened_data())) > 500


def test_a_picture_can_show_one_photo_alone(folder: Path, result: DemoResult) -> None:
    alone = draw_comparison(folder / "noisy", folder / "denoised", result.scores[:1])

    assert len(alone) < result.picture.stat().st_size / 2


def test_noisy_photos_are_the_same_bytes_each_time(folder: Path, result: DemoResult, tmp_path: Path) -> None:
    write_noisy(tmp_path)

    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (folder / "noisy" / name).read_bytes()


def test_noisy_photos_keep_the_metadata_of_the_clean_ones(folder: Path, result: DemoResult) -> None:
    for name in NAMES:
        with Image.open(PHOTOS / name) as clean, Image.open(folder / "noisy" / name) as noisy:
            assert dict(noisy.getexif()) == dict(clean.getexif()) != {}


def test_a_higher_iso_is_noisier() -> None:
    gray = np.full((64, 64, 3), 128, np.uint8)

    sigmas = [photograph(gray, shot=iso * SHOT_PER_ISO, seed=0).std() for iso in (400, 1600, 6400)]

    assert sigmas == sorted(sigmas)
    assert sigmas[2] > 3 * sigmas[0]


@pytest.mark.usefixtures("one_photo")
def test_a_second_demo_in_the_folder_leaves_its_noisy_photo_untouched(tmp_path: Path) -> None:
    photo = tmp_path / "noisy" / DEMO_PHOTOS[0].name
    run_demo(tmp_path, copy_noisy)
    first = photo.stat()

    run_demo(tmp_path, copy_noisy)

    assert photo.stat().st_mtime_ns == first.st_mtime_ns


@pytest.mark.usefixtures("one_photo")
def test_a_noisy_photo_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    photo = tmp_path / "noisy" / DEMO_PHOTOS[0].name
    write_noisy(tmp_path / "noisy")
    whole = photo.read_bytes()
    photo.write_bytes(whole[:1000])

    run_demo(tmp_path, copy_noisy)

    assert photo.read_bytes() == whole


@pytest.mark.parametrize("foreign", ["holiday.jpg", "noisy/holiday.jpg", "denoised/images/holiday.jpg"])
def test_a_folder_that_holds_something_else_is_refused_and_stays_as_it_is(tmp_path: Path, foreign: str) -> None:
    (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / foreign).touch()

    with pytest.raises(ValueError, match="new or empty"):
        run_demo(tmp_path, copy_noisy)

    assert files_below(tmp_path) == [foreign]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").touch()

    with pytest.raises(ValueError, match="is a file"):
        run_demo(tmp_path / "demo", copy_noisy)


def test_a_photo_without_a_result_is_named(folder: Path, result: DemoResult, tmp_path: Path) -> None:
    copy_noisy(folder / "noisy", tmp_path)
    (tmp_path / "images" / NAMES[0]).unlink()

    with pytest.raises(RunFailed, match=NAMES[0]):
        score(folder / "noisy", tmp_path)


def test_the_table_is_aligned() -> None:
    short, long = DemoPhoto("a.jpg", "Sea", 800, (0, 0)), DemoPhoto("b.jpg", "Bridge at night", 12800, (0, 0))

    table = format_table([DemoScore(short, 9.5, 33.25), DemoScore(long, 26.04, 25.0)])

    assert table.splitlines() == [
        "photo            noise      PSNR before  PSNR after      gain",
        "Sea              ISO 800         9.5 dB     33.2 dB  +23.8 dB",
        "Bridge at night  ISO 12800      26.0 dB     25.0 dB   -1.0 dB",
    ]


def test_every_photo_of_the_demo_ships_and_is_small() -> None:
    shipped = {path.name: path.stat().st_size for path in PHOTOS.iterdir() if path.suffix != ".md"}

    assert sorted(shipped) == NAMES
    assert max(shipped.values()) < MAX_PHOTO_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_every_photo_is_credited_with_its_author_and_a_free_licence(name: str) -> None:
    rows = [line.split("|") for line in (PHOTOS / "CREDITS.md").read_text("utf-8").splitlines() if f"`{name}`" in line]
    with Image.open(PHOTOS / name) as photo:
        artist = photo.getexif()[0x013B]

    [(_, _, title, author, licence, package, _)] = rows
    assert author.strip() == artist
    assert title.strip()
    assert "CC0 1.0" in licence or "public domain" in licence
    assert "Debian" in package
