"""Two image sets of the same photos, told apart."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from imagecodecs import png_encode
from loop import Loop
from photos import saved, scene
from PIL import Image

from flows.cli import main
from model.metrics import psnr_db
from pipeline.denoise import DenoiseConfig
from pipeline.diff import OTHER_NOTES, UNREADABLE, Difference, DiffJob, run_diff
from pipeline.errors import StorageError
from pipeline.images import decode, inspect
from pipeline.jobs import DenoiseJob, run_denoise
from pipeline.records import Layout


def diff(a: str | Path, b: str | Path, **options: object) -> Difference:
    return run_diff(DiffJob(target_a=str(a), target_b=str(b), **options), lambda *_: None)


def denoise(job: DenoiseJob, **changes: object) -> str:
    run_denoise(dataclasses.replace(job, **changes), lambda _: None)
    return str(changes.get("target", job.target))


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DenoiseJob:
    """Four photos, and one that is none."""
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source").mkdir()
    for number in range(4):
        (tmp_path / f"source/{number}.png").write_bytes(saved(scene(seed=number, side_px=32), "PNG"))
    (tmp_path / "source/notes.txt").write_bytes(b"a holiday by the sea")
    return DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "a"))


@pytest.fixture
def b(tmp_path: Path) -> str:
    return str(tmp_path / "b")


def test_a_set_and_itself_do_not_differ(job: DenoiseJob) -> None:
    found = diff(denoise(job), job.target)

    assert (found.both, found.same_bytes, found.compared, found.psnr_db) == (5, 5, 0, None)
    assert found.a == found.b


@pytest.mark.parametrize("layout", Layout)
def test_results_of_other_settings_are_decoded_and_compared(job: DenoiseJob, b: str, layout: Layout) -> None:
    denoise(job)

    found = diff(job.target, denoise(job, target=b, layout=layout, denoise=DenoiseConfig(strength=0.5)))

    assert (found.both, found.same_bytes, found.compared) == (5, 1, 4)
    assert found.a.noise_sigma_after < found.b.noise_sigma_after
    assert found.a.change_psnr_db < found.b.change_psnr_db
    assert found.psnr_db[0] == found.most_different[0]["psnr_db"] <= found.psnr_db[1] <= found.psnr_db[2]


def test_the_psnr_is_that_of_one_result_against_the_other(job: DenoiseJob, b: str) -> None:
    found = diff(denoise(job), denoise(job, target=b, denoise=DenoiseConfig(strength=0.5)))

    most = found.most_different[0]
    data = [(Path(target) / "images" / most["key"]).read_bytes() for target in (job.target, b)]
    one, other = (decode(each, inspect(each)).colour for each in data)
    assert most["psnr_db"] == pytest.approx(psnr_db(one, other))


def test_photos_of_one_set_alone_and_other_outcomes_are_counted(job: DenoiseJob, b: str) -> None:
    denoise(job)
    (Path(job.source) / "4.png").write_bytes(saved(scene(seed=4, side_px=32), "PNG"))
    (Path(job.source) / "0.png").write_bytes(b"")
    (Path(job.source) / "1.png").unlink()

    found = diff(job.target, denoise(job, target=b))

    assert (found.a.only_here, found.b.only_here, found.both) == (1, 1, 4)
    assert (found.outcomes, found.other_source) == ({("denoised", "rejected"): 1}, 1)


def test_a_result_that_is_damaged_is_told_and_stops_nothing(job: DenoiseJob, b: str) -> None:
    denoise(job)
    denoise(job, target=b, denoise=DenoiseConfig(strength=0.5))
    (Path(b) / "images/2.png").write_bytes(b"x")

    found = diff(job.target, b)

    assert found.incomparable == {"it is not as its row says (see: degrain verify)": 1}
    assert len(found.most_different) == 3


def test_photos_that_cannot_be_read_are_one_reason_however_many_they_are(job: DenoiseJob, b: str) -> None:
    denoise(job)
    denoise(job, target=b, denoise=DenoiseConfig(strength=0.5))
    for key in ("1.png", "2.png"):
        (Path(b) / "images" / key).unlink()

    assert diff(job.target, b).incomparable == {"one of the two cannot be read (see: degrain verify)": 2}


def test_of_many_reasons_the_most_frequent_are_told(job: DenoiseJob, b: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.diff.NOTES", 1)
    denoise(job)
    denoise(job, target=b, denoise=DenoiseConfig(strength=0.5))
    (Path(b) / "images/0.png").write_bytes(b"x")
    for key in ("1.png", "2.png"):
        (Path(b) / "images" / key).unlink()

    assert list(diff(job.target, b).incomparable.items()) == [(UNREADABLE, 2), (OTHER_NOTES, 1)]


def test_photos_of_another_kind_are_not_said_to_be_of_another_size(job: DenoiseJob, b: str) -> None:
    denoise(job)
    gray = Image.fromarray(scene(seed=0, side_px=32)).convert("L")
    (Path(job.source) / "0.png").write_bytes(saved(gray, "PNG"))
    (Path(job.source) / "1.png").write_bytes(png_encode(scene(seed=1, side_px=32).astype(np.uint16) * 257))
    (Path(job.source) / "2.png").write_bytes(saved(scene(seed=2, side_px=24), "PNG"))

    found = diff(job.target, denoise(job, target=b))

    assert found.incomparable == {
        "one is gray, and the other in colour": 1,
        "one has another bit depth than the other": 1,
        "one has another size than the other": 1,
    }


def test_the_same_pixels_in_other_bytes_are_known(job: DenoiseJob, b: str) -> None:
    for path in Path(job.source).glob("*.png"):
        path.with_suffix(".tif").write_bytes(saved(scene(seed=int(path.stem), side_px=32), "TIFF"))
        path.unlink()
    denoise(job, denoise=DenoiseConfig(strength=0.0))
    for path in Path(job.source).glob("*.tif"):
        path.write_bytes(saved(scene(seed=int(path.stem), side_px=32), "TIFF", compression="tiff_lzw"))

    found = diff(job.target, denoise(job, target=b, denoise=DenoiseConfig(strength=0.0)))

    assert (found.same_pixels, found.psnr_db, found.other_source) == (4, None, 4)


def test_a_sample_is_decoded_where_all_would_take_too_long(job: DenoiseJob, b: str) -> None:
    denoise(job)
    denoise(job, target=b, denoise=DenoiseConfig(strength=0.5))

    samples = [diff(job.target, b, sample=share) for share in (0.5, 0.5, 1.0)]

    assert samples[0].most_different == samples[1].most_different
    assert samples[0].compared < samples[2].compared == 4
    with pytest.raises(ValueError, match="sample is 0: expected a share"):
        diff(job.target, b, sample=0)


def test_the_command_prints_a_table_or_one_object_and_writes_rows(
    job: DenoiseJob, b: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    denoise(job)
    denoise(job, target=b, denoise=DenoiseConfig(strength=0.5))

    assert main(["diff", job.target, b, "--rows", str(tmp_path / "rows.parquet")]) == 0
    table = capsys.readouterr().out
    assert main(["diff", job.target, b, "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert "PSNR of A against B: " in table
    assert values["psnr_db"]["lowest"] == pytest.approx(values["most_different"][0]["psnr_db"])
    assert pq.read_table(tmp_path / "rows.parquet")["key"].to_pylist() == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "notes.txt",
    ]


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match=r"^cannot write rows\.parquet to \S+: "):
        diff(tmp_path / "a", tmp_path / "b", rows=str(tmp_path / "file/rows.parquet"))


def test_what_is_no_image_set_is_refused(job: DenoiseJob, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no image set at .*/source"):
        diff(denoise(job), job.source)
