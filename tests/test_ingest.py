"""Ingest: what becomes of a photo, of a collection that changes, and of a run that is killed."""

import dataclasses
import io
import os
import signal
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import fsspec
import imagecodecs
import numpy as np
import pytest
import tifffile
from commands import degrain, start_degrain, summary_of, wait_for_commits, wait_until_workers_are_gone, write_many
from faults.proxy import FaultProxy
from loop import Loop, index_of, photos_of, plan_work
from photos import saved, scene, write_archive
from PIL import Image, ImageCms, PngImagePlugin

from pipeline import ingest, jpeg
from pipeline.cluster import ClusterConfig
from pipeline.images import Limits
from pipeline.ingest import IngestConfig, IngestJob, ingest_work, pack_photo, run_ingest
from pipeline.local_store import LocalStore
from pipeline.records import Outcome, PlannedPhoto, ShardPlan, Status
from pipeline.shard import PhotoResult
from pipeline.work import Summary

# One photo


def packed(data: bytes, key: str, **settings: int) -> PhotoResult:
    return pack_photo(data, key, IngestConfig(**settings))


def with_width(width_px: int) -> bytes:
    """A palette PNG that claims to be so wide."""
    data = bytearray(saved(Image.fromarray(scene()).quantize(16), "PNG"))
    data[16:20] = struct.pack(">I", width_px)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def pixels(result: PhotoResult) -> np.ndarray:
    assert result.data is not None
    return np.asarray(Image.open(io.BytesIO(result.data)))


def test_a_photo_that_no_codec_should_fail_on_is_rejected_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "inspect", lambda _: {}["size"])
    assert packed(b"\xff\xd8\xff", "a.jpg").reason == "it could not be processed: KeyError: 'size'"


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("a.jpg", saved(scene(), "JPEG")),
        ("print.jpg", saved(Image.fromarray(scene()).convert("CMYK"), "JPEG")),
        ("palette.png", saved(Image.fromarray(scene()).quantize(16), "PNG")),
        ("a.gif", saved(scene(), "GIF")),
        ("a.bmp", saved(scene(), "BMP")),
        ("a.png", imagecodecs.png_encode(scene().astype(np.uint16) * 257)),
    ],
)
def test_an_image_of_any_kind_is_packed_as_it_is(key: str, data: bytes) -> None:
    result = packed(data, key)

    assert (result.outcome, result.reason, result.data) == (Outcome.PACKED, None, data)
    assert result.header is not None
    assert (result.header.width_px, result.header.height_px) == (48, 48)


@pytest.mark.parametrize(
    ("key", "data", "reason"),
    [
        ("a.jpg", b"", "the file is empty"),
        ("a.jpg", saved(scene(), "JPEG")[:500], "the JPEG is cut off"),
        ("a.jpg", saved(scene(), "PNG"), "the name says JPEG, but the content is PNG"),
        ("a.png", b"<html>", "the name says PNG, but the content is not an image"),
        ("notes.txt", b"by the sea", "the file is no photo"),
        ("._a.jpg", b"\0\x05\x16\x07" + bytes(100), "the file is no photo"),
        ("a.gif", b"GIF", "the file is no photo"),
        ("huge.png", with_width(2**32 - 1), "the photo is corrupt: it claims to have 4294967295 × 48 pixels of 4 bits"),
    ],
)
def test_what_is_no_sound_image_is_rejected_with_a_reason(key: str, data: bytes, reason: str) -> None:
    result = packed(data, key)

    assert (result.outcome, result.data) == (Outcome.REJECTED, None)
    assert (result.reason or "").startswith(reason)


@pytest.mark.parametrize(
    ("data", "least", "reason"),
    [
        (saved(scene(), "PNG"), 48, None),
        (saved(scene(), "PNG"), 49, "its shorter side has 48 pixels, and at least 49 are asked for"),
        (saved(scene()[:20], "GIF"), 30, "its shorter side has 20 pixels, and at least 30 are asked for"),
        (b"\0\0\0\x18ftypheic" + bytes(100), 30, "its size is not known, and at least 30 pixels are asked for"),
    ],
)
def test_what_is_too_small_is_skipped_with_a_reason(data: bytes, least: int, reason: str | None) -> None:
    result = packed(data, "a", min_side_px=least)

    assert (result.outcome, result.reason) == (Outcome.SKIPPED if reason else Outcome.PACKED, reason)
    assert (result.data is None) == (reason is not None)


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("PNG", (96, 64), (48, 32)),
        ("JPEG", (64, 96), (32, 48)),
        ("WEBP", (64, 64), (32, 32)),
        ("TIFF", (33, 64), (32, 62)),
        ("PNG", (32, 64), (32, 64)),
        ("PNG", (20, 900), (20, 900)),
        ("PNG", (1, 1), (1, 1)),
        ("PNG", (3000, 33), (2909, 32)),
    ],
)
def test_the_shorter_side_gets_its_length_and_no_photo_is_enlarged(
    kind: str, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    photo = Image.fromarray(scene(side_px=64)).resize(size)

    result = packed(saved(photo, kind), "a", resize_px=32)

    assert result.size_px == expected
    assert pixels(result).shape == (expected[1], expected[0], 3)


def test_a_halved_photo_is_its_averages() -> None:
    photo = scene(sigma=0, side_px=64)

    small = pixels(packed(saved(photo, "PNG"), "a.png", resize_px=32)).astype(float)

    means = photo.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - means)[1:-1, 1:-1].max() <= 1


def test_sixteen_bits_become_eight_by_rounding() -> None:
    deep = np.array([[0, 128, 129, 257, 65535 - 128, 65535]], np.uint16)

    result = packed(imagecodecs.png_encode(np.repeat(deep, 2, axis=0)), "a.png", resize_px=2)

    assert pixels(result)[0].tolist() == [0, 0, 1, 1, 255, 255]


def test_sixteen_bits_take_no_more_memory_than_there_is_room_for() -> None:
    deep = np.zeros((600, 800, 3), np.uint16)
    photo = io.BytesIO()
    tifffile.imwrite(photo, deep, photometric="rgb", compression="zlib", rowsperstrip=20)

    tracemalloc.start()
    packed(photo.getvalue(), "a.tif", resize_px=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < ingest.COPIES * deep.nbytes


@pytest.mark.parametrize(("mode", "expected"), [("L", "L"), ("LA", "L"), ("RGB", "RGB"), ("RGBA", "RGB")])
def test_gray_stays_gray_and_alpha_is_left_out(mode: str, expected: str) -> None:
    photo = Image.fromarray(scene()).convert(mode)

    result = packed(saved(photo, "PNG"), "a.png", resize_px=24)

    assert Image.open(io.BytesIO(result.data or b"")).mode == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_comes_out_upright(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    photo = Image.fromarray(scene(sigma=0, side_px=64)[:, :48])
    data = saved(photo, "PNG", exif=exif)

    result = packed(data, "a.png", resize_px=48)

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(result), np.asarray(upright))
    assert result.size_px == upright.size


def test_the_colour_profile_stays_and_one_of_another_kind_of_colour_goes() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, expected in (("RGB", profile), ("L", None)):
        photo = Image.fromarray(scene()).convert(mode)
        result = packed(saved(photo, "JPEG", icc_profile=profile), "a.jpg", resize_px=24)

        assert Image.open(io.BytesIO(result.data or b"")).info.get("icc_profile") == expected


@pytest.mark.parametrize(
    "options",
    [
        {"bigtiff": True, "byteorder": ">"},
        {"planarconfig": "contig", "extrasamples": ["unassalpha"]},
        {"planarconfig": "contig", "extrasamples": ["unassalpha"], "photometric": "miniswhite"},
    ],
    ids=str,
)
def test_a_tiff_that_pillow_does_not_open_keeps_its_colour_profile(options: dict[str, object]) -> None:
    profile = bytes(16) + b"GRAY" + bytes(108)
    gray = scene()[..., 0].astype(np.uint16) * 257
    photo = io.BytesIO()
    kind = {"photometric": "minisblack", "iccprofile": profile, **options}
    tifffile.imwrite(photo, np.dstack([gray, gray]) if "extrasamples" in options else gray, **kind)

    result = packed(photo.getvalue(), "a.tif", resize_px=24)

    assert Image.open(io.BytesIO(result.data or b"")).info.get("icc_profile") == profile


def test_a_png_that_pillow_does_not_open_keeps_its_colour_profile() -> None:
    profile = bytes(16) + b"RGB " + bytes(108)
    long_text = PngImagePlugin.PngInfo()
    long_text.add_text("workflow", "x" * 2_000_000, zip=True)

    result = packed(saved(scene(), "PNG", icc_profile=profile, pnginfo=long_text), "a.png", resize_px=24)

    assert Image.open(io.BytesIO(result.data or b"")).info.get("icc_profile") == profile


def test_what_tells_the_colours_of_a_png_stays() -> None:
    told = PngImagePlugin.PngInfo()
    for kind, payload in (
        (b"gAMA", bytes(3) + b"1"),
        (b"cHRM", bytes(32)),
        (b"cICP", b"\x09\x10\0\1"),
        (b"sRGB", b"\0"),
    ):
        told.add(kind, payload)
    told.add_text("Comment", "not what a copy has")

    small = packed(saved(scene(), "PNG", pnginfo=told), "a.png", resize_px=24).data or b""

    assert all(kind + payload in small[: small.index(b"IDAT")] for kind, payload, *_ in told.chunks[:4])
    assert b"Comment" not in small


def test_a_photo_of_very_many_pixels_keeps_its_colour_profile() -> None:
    profile = bytes(16) + b"GRAY" + bytes(108)
    photo = saved(Image.new("L", (16_000, 11_500)), "JPEG", icc_profile=profile)

    result = packed(photo, "a.jpg", resize_px=24)

    assert Image.open(io.BytesIO(result.data or b"")).info.get("icc_profile") == profile


@pytest.mark.parametrize(
    ("key", "data", "reason"),
    [
        ("print.jpg", saved(Image.fromarray(scene()).convert("CMYK"), "JPEG"), "CMYK is not denoised"),
        ("palette.png", saved(Image.fromarray(scene()).quantize(16), "PNG"), "a palette is not denoised"),
        ("a.gif", saved(scene(), "GIF"), "GIF is not denoised"),
        ("a.png", saved(Image.fromarray(scene()).convert("1"), "PNG"), "a 1-bit picture is not denoised"),
    ],
)
def test_what_cannot_be_resized_faithfully_is_skipped(key: str, data: bytes, reason: str) -> None:
    result = packed(data, key, resize_px=24)

    assert (result.outcome, result.data) == (Outcome.SKIPPED, None)
    assert result.reason == f"it cannot be resized faithfully: {reason}"


def test_a_photo_with_a_preview_behind_it_is_resized() -> None:
    photo = saved(scene(), "JPEG", quality=95)

    result = packed(photo + saved(scene()[:8, :8], "JPEG"), "phone.jpg", resize_px=24)

    assert (result.outcome, result.size_px) == (Outcome.PACKED, (24, 24))


def test_a_photo_whose_picture_is_damaged_is_rejected_when_it_is_resized() -> None:
    whole = saved(scene(side_px=256), "JPEG")
    damaged = whole[:4000] + whole[-2:]

    result = packed(damaged, "a.jpg", resize_px=24)

    assert (result.outcome, result.data) == (Outcome.REJECTED, None)
    assert "damaged" in (result.reason or "")


@pytest.mark.parametrize("settings", [{"resize_px": 0}, {"min_side_px": -1}])
def test_a_size_that_is_none_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        IngestConfig(**settings)


def test_the_parameters_hash_changes_with_whatever_changes_a_result() -> None:
    configs = [
        IngestConfig(),
        IngestConfig(resize_px=512),
        IngestConfig(min_side_px=512),
        IngestConfig(limits=Limits(max_bytes=1)),
    ]

    assert len({config.parameters for config in configs}) == 4
    assert IngestConfig().parameters == IngestConfig(resize_px=None).parameters


# A collection


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop.instead_of_cluster(monkeypatch)


@pytest.fixture
def job(loop: Loop, tmp_path: Path) -> IngestJob:
    return IngestJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))


def run(job: IngestJob) -> Summary:
    return run_ingest(job, lambda progress: None)


def write(job: IngestJob, photos: dict[str, bytes]) -> None:
    for key, data in photos.items():
        path = Path(job.source) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def png(seed: int) -> bytes:
    return saved(scene(seed=seed, side_px=16), "PNG")


def duplicates(job: IngestJob) -> dict[str, str]:
    rows = index_of(job.target).values()
    return {row["key"]: row["duplicate_of"] for row in rows if row["duplicate_of"] is not None}


def test_every_input_is_accounted_for_and_what_is_packed_is_what_was_there(job: IngestJob) -> None:
    outcomes = {"denoised": "packed", "untouched": "packed", "rejected": "rejected"}
    expected = {key: outcomes[outcome] for key, outcome in write_archive(Path(job.source)).items()}
    expected["notes.txt"] = "rejected"

    summary = run(job)

    assert {key: row["outcome"] for key, row in index_of(job.target).items()} == expected
    assert summary.outcomes == {"packed": 8, "skipped": 0, "rejected": 5}
    sources = {key: (Path(job.source) / key).read_bytes() for key, outcome in expected.items() if outcome == "packed"}
    assert photos_of(job.target) == sources


def test_a_row_tells_of_its_photo(job: IngestJob) -> None:
    exif = Image.Exif()
    exif[271], exif[272], exif[274] = "Canon", "Canon EOS 5D", 6
    exif.get_ifd(34665).update({34855: 1600, 36867: "2019:07:04 21:30:05"})
    write(job, {"a.jpg": saved(scene()[:40], "JPEG", exif=exif)})

    run(job)

    row = index_of(job.target)["a.jpg"]
    assert (row["format"], row["mode"], row["bit_depth"], row["orientation"]) == ("jpeg", "RGB", 8, 6)
    assert (row["width_px"], row["height_px"], row["megapixels"]) == (48, 40, 0.00192)
    assert (row["camera"], row["iso"], str(row["taken_at"])) == ("Canon EOS 5D", 1600, "2019-07-04 21:30:05")
    assert row["source_sha256"] == row["output_sha256"]


def test_a_resized_photo_keeps_the_size_and_the_hash_of_its_source(job: IngestJob) -> None:
    write(job, {"a.jpg": saved(scene(), "JPEG")})

    run(dataclasses.replace(job, ingest=IngestConfig(resize_px=24)))

    row = index_of(job.target)["a.jpg"]
    assert (row["width_px"], row["output_width_px"], row["output_height_px"]) == (48, 24, 24)
    assert row["source_sha256"] != row["output_sha256"]
    assert set(photos_of(job.target)) == {"a.jpg"}


def test_only_what_is_new_or_changed_is_read_again(job: IngestJob, monkeypatch: pytest.MonkeyPatch) -> None:
    write(job, {f"{number}.png": png(number) for number in range(6)})
    run(job)
    write(job, {"2.png": png(22), "6.png": png(6)})
    (Path(job.source) / "5.png").unlink()
    read: list[str] = []
    true_read = LocalStore.read_many

    def noting(store: LocalStore, wanted: list[PlannedPhoto], **options: int) -> Iterator[object]:
        read.extend(photo.key for photo in wanted)
        return true_read(store, wanted, **options)

    monkeypatch.setattr(LocalStore, "read_many", noting)

    summary = run(job)

    assert read == ["2.png", "6.png"]
    assert (summary.inputs, summary.outcomes["packed"], summary.up_to_date) == (6, 2, 4)
    assert photos_of(job.target) == {f"{number}.png": png(22 if number == 2 else number) for number in range(7)}


def test_the_index_tells_the_newest_of_the_photos_that_shards_hold(job: IngestJob) -> None:
    write(job, {"1.png": png(1), "2.png": png(2)})
    run(job)
    write(job, {"2.png": png(22)})
    run(job)

    every = duckdb.sql(f"SELECT key FROM '{job.target}/shards/*.parquet' ORDER BY key").fetchall()
    newest = duckdb.sql(
        f"SELECT photo.key, photo.image.bytes FROM '{job.target}/shards/*.parquet' AS photo "
        f"SEMI JOIN '{job.target}/index/*.parquet' AS row ON photo.key = row.key AND photo.shard = row.shard ORDER BY 1"
    ).fetchall()

    assert [key for (key,) in every] == ["1.png", "2.png", "2.png"]
    assert newest == [("1.png", png(1)), ("2.png", png(22))]


def test_exact_duplicates_name_the_first_key_with_the_same_bytes(job: IngestJob) -> None:
    write(job, {"b/1.png": png(1), "a/copy.png": png(1), "c/again.png": png(1), "d.png": png(2)})

    run(job)

    assert duplicates(job) == {"b/1.png": "a/copy.png", "c/again.png": "a/copy.png"}
    assert len(photos_of(job.target)) == 4


def test_duplicates_are_marked_across_runs_whichever_comes_first(job: IngestJob) -> None:
    write(job, {"m.png": png(1)})
    run(job)
    write(job, {"z.png": png(1), "a.png": png(1)})
    run(job)
    assert duplicates(job) == {"m.png": "a.png", "z.png": "a.png"}

    write(job, {"a.png": png(2)})
    run(job)

    assert duplicates(job) == {"z.png": "m.png"}


def test_what_is_not_packed_is_nobodys_original(job: IngestJob) -> None:
    write(job, {"a.jpg": png(1), "b.png": png(1), "c.jpg": b"", "d.jpg": b""})

    run(job)

    assert index_of(job.target)["a.jpg"]["outcome"] == "rejected"
    assert duplicates(job) == {}


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["none", "empty"])
def test_a_source_with_nothing_in_it_is_refused(job: IngestJob, make: object) -> None:
    make(Path(job.source))

    with pytest.raises(ValueError, match="there are no photos in"):
        run(job)
    assert not Path(job.target).exists()


def test_names_that_no_target_should_hold_are_rows(job: IngestJob) -> None:
    write(job, {"a\nb.png": png(1), "back\\slash.png": png(2), "é ' \" 写真.png": png(3)})
    (Path(job.source) / os.fsdecode(b"bytes-\xff.png")).write_bytes(png(4))

    summary = run(job)

    assert summary.outcomes == {"packed": 1, "skipped": 0, "rejected": 3}
    assert list(photos_of(job.target)) == ["é ' \" 写真.png"]


def test_a_packed_set_can_be_packed_again_smaller(job: IngestJob, tmp_path: Path) -> None:
    write(job, {"1.png": png(1), "2.png": png(2), "notes.txt": b"no photo"})
    run(job)

    small = dataclasses.replace(
        job, source=job.target, target=str(tmp_path / "small"), ingest=IngestConfig(resize_px=8)
    )

    assert run(small).outcomes == {"packed": 2, "skipped": 0, "rejected": 0}
    assert run(small).up_to_date == 2


def test_a_large_collection_is_cut_by_bytes_and_a_small_one_for_the_workers(
    job: IngestJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(job, {f"{number:02}.png": png(number) for number in range(24)})
    monkeypatch.setattr(ingest, "SHARD_BYTES", 4 * len(png(0)))
    workers = {1: 4, 6: 24}

    by_bytes = plan_work(ingest_work(dataclasses.replace(job, cluster=ClusterConfig(workers=1))))
    monkeypatch.undo()
    by_workers = {
        count: plan_work(ingest_work(dataclasses.replace(job, cluster=ClusterConfig(workers=count)))).shards
        for count in workers
    }

    assert by_bytes.photos == {Status.NEW: 24}
    assert by_bytes.shards >= 6
    assert by_workers == workers


def test_packing_takes_no_gpu(job: IngestJob, loop: Loop) -> None:
    write(job, {"a.png": png(1)})

    run(job)

    assert not loop.config.use_gpus


def test_small_files_that_become_pngs_make_no_larger_shards(job: IngestJob, monkeypatch: pytest.MonkeyPatch) -> None:
    write(job, {f"{number:02}.jpg": b"a small file" for number in range(40)})
    monkeypatch.setattr(ingest, "SHARD_BYTES", 5 * 2 * 32**2)  # five such PNGs, as far as can be told
    job = dataclasses.replace(job, cluster=ClusterConfig(workers=1))
    smaller = dataclasses.replace(job, ingest=IngestConfig(resize_px=32))

    assert [plan_work(ingest_work(each)).shards for each in (job, smaller)] == [4, 8]


def test_a_shard_that_runs_twice_writes_the_same_bytes(job: IngestJob) -> None:
    write(job, {f"{number}.png": png(number) for number in range(3)})
    listed = sorted(LocalStore(Path(job.source)).list(), key=lambda found: found.key)
    plan = ShardPlan("s", "run", tuple(PlannedPhoto(each.key, each.size_bytes, each.etag, 1) for each in listed))
    factory = ingest.IngestWorkerFactory(source=job.source, target=job.target, config=job.ingest)
    written = []
    for _ in range(2):
        factory(1).run(plan, {})
        written.append((Path(job.target) / "shards/s.parquet").read_bytes())

    assert written[0] == written[1]


# The command, with real workers


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, sent: signal.Signals) -> None:
    write_many(tmp_path / "source", 120, side_px=256)  # so that the run is not over before it is interrupted
    arguments = ("--workers", 2, "--resize", 192)
    process = start_degrain("ingest", tmp_path / "source", tmp_path / "target", *arguments)
    wait_for_commits(tmp_path / "target", 1, process)
    process.send_signal(sent)
    process.communicate(timeout=60)
    wait_until_workers_are_gone(process)

    rest = summary_of(degrain("ingest", tmp_path / "source", tmp_path / "target", "--json", *arguments))
    summary_of(degrain("ingest", tmp_path / "source", tmp_path / "undisturbed", "--json", *arguments))

    assert 0 < rest["packed"] < 120
    assert rest["packed"] + rest["up_to_date"] == rest["inputs"] == 120
    assert photos_of(tmp_path / "target") == photos_of(tmp_path / "undisturbed")
    assert len(list((tmp_path / "target/plans").iterdir())) == 1


def test_a_worker_that_is_killed_costs_a_retry_and_nothing_else(tmp_path: Path) -> None:
    write_many(tmp_path / "source", 24, side_px=256)
    process = start_degrain("ingest", tmp_path / "source", tmp_path / "target", "--workers", 2, "--resize", 192)
    wait_for_commits(tmp_path / "target", 1, process)

    killed = kill_one_worker(process.pid)
    out, errors = process.communicate(timeout=120)

    assert killed
    assert process.returncode == 0, errors
    assert "24 photos: 24 packed, 0 skipped, 0 rejected" in out
    assert len(photos_of(tmp_path / "target")) == 24


def kill_one_worker(session: int) -> int:
    """End one process of Ray's that works for the session's driver; returns its id."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::_Actor" in (path / "cmdline").read_bytes() and os.getsid(int(path.name)) == session:
                os.kill(int(path.name), signal.SIGKILL)
                return int(path.name)
        except (OSError, ProcessLookupError):
            continue
    return 0


@pytest.mark.slow  # `test_denoise_faults.py` has such a day
@pytest.mark.faults
def test_from_and_to_a_real_s3_server_on_a_bad_day(tmp_path: Path, faulty_url: str, proxy: FaultProxy) -> None:
    expected = write_archive(tmp_path / "source")
    write_many(tmp_path / "source/many", 20)
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    shares, proxy.shares = proxy.shares, {}
    filesystem.put(f"{tmp_path}/source/", f"{faulty_url}/source/", recursive=True)
    proxy.shares = shares

    done = summary_of(degrain("ingest", f"{faulty_url}/source", f"{faulty_url}/target", "--json", "--workers", 2))
    again = summary_of(degrain("ingest", f"{faulty_url}/source", f"{faulty_url}/target", "--json"))

    proxy.shares = {}
    assert (done["packed"], done["rejected"]) == (28, 5)
    assert (again["up_to_date"], again["rejected_before"]) == (len(expected) + 15, 5)
    filesystem.get(f"{faulty_url}/target/", f"{tmp_path}/target/", recursive=True)
    photos = photos_of(tmp_path / "target")
    assert photos == {key: (tmp_path / "source" / key).read_bytes() for key in photos}
    assert len(photos) == 28
