"""One shard of photos into a committed shard of the target. The network is a hand-written fake."""

import dataclasses
import errno
import hashlib
import io
import os
import resource
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from photos import saved, scene, write_archive

from model import Denoiser
from model.strength import Dose
from pipeline import shard
from pipeline.bench import Look
from pipeline.denoise import Denoise, DenoiseConfig, DenoiseWorkerFactory, PhotoDenoiser, denoise_photo
from pipeline.errors import StorageError
from pipeline.images import Limits
from pipeline.imageset import ImageSet
from pipeline.jobs import read_weights
from pipeline.local_store import LocalStore
from pipeline.records import Layout, Outcome, PlannedPhoto, ShardPlan
from pipeline.shard import PhotoResult, Recipe, Worker


def brighten(noisy: np.ndarray, _dose: Dose) -> np.ndarray:
    return noisy + np.minimum(np.iinfo(noisy.dtype).max - noisy, 10).astype(noisy.dtype)


def plan_of(source: LocalStore, shard: str = "shard") -> ShardPlan:
    listed = sorted(source.list(), key=lambda found: found.key)
    photos = tuple(PlannedPhoto(found.key, found.size_bytes, found.etag, 1) for found in listed)
    return ShardPlan(shard, "run", photos)


def worker(
    source: Path, target: Path, layout: Layout, config: DenoiseConfig | None = None, denoise: Denoise = brighten
) -> Worker:
    config = config or DenoiseConfig()
    recipe = Recipe(
        process=lambda data, key: denoise_photo(data, key, denoise, config),
        limits=config.limits,
        weights="hash of the weights",
        parameters=config.parameters,
    )
    return Worker(LocalStore(source), ImageSet(LocalStore(target)), layout, recipe)


def rows_of(target: Path, shard: str = "shard") -> dict[str, dict]:
    return {row["key"]: row for row in pq.read_table(target / f"commits/{shard}.parquet").to_pylist()}


def test_every_input_of_a_shard_has_one_row_with_its_outcome(tmp_path: Path) -> None:
    expected = write_archive(tmp_path / "source")
    doing = worker(tmp_path / "source", tmp_path / "target", Layout.FILES)

    receipt = doing.run(plan_of(LocalStore(tmp_path / "source")), {})

    rows = rows_of(tmp_path / "target")
    assert {key: row["outcome"] for key, row in rows.items()} == expected
    assert receipt.outcomes == {"denoised": 6, "untouched": 3, "rejected": 4}
    assert all(row["reason"] for row in rows.values() if row["outcome"] != "denoised")


def test_rows_tell_the_sizes_and_hashes_of_what_was_read_and_written(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    worker(tmp_path / "source", tmp_path / "target", Layout.FILES).run(plan_of(LocalStore(tmp_path / "source")), {})

    for key, row in rows_of(tmp_path / "target").items():
        source = (tmp_path / "source" / key).read_bytes()
        assert (row["source_size_bytes"], row["source_sha256"]) == (len(source), hashlib.sha256(source).hexdigest())
        if row["output_key"] is None:
            assert row["outcome"] == "rejected"
            assert not (tmp_path / "target/images" / key).exists()
        else:
            output = (tmp_path / "target" / row["output_key"]).read_bytes()
            assert row["output_sha256"] == hashlib.sha256(output).hexdigest()


def test_what_is_untouched_is_copied_byte_for_byte(tmp_path: Path) -> None:
    expected = write_archive(tmp_path / "source")
    worker(tmp_path / "source", tmp_path / "target", Layout.FILES).run(plan_of(LocalStore(tmp_path / "source")), {})

    for key in (key for key, outcome in expected.items() if outcome == "untouched"):
        assert (tmp_path / "target/images" / key).read_bytes() == (tmp_path / "source" / key).read_bytes()


def test_a_packed_shard_holds_the_bytes_that_the_layout_files_would_write(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    for layout in Layout:
        worker(tmp_path / "source", tmp_path / layout, layout).run(plan, {})

    rows = pq.read_table(tmp_path / "packed/shards/shard.parquet").to_pylist()
    assert {row["image"]["path"] for row in rows} == {
        key for key, row in rows_of(tmp_path / "files").items() if row["output_key"]
    }
    for row in rows:
        assert row["image"]["bytes"] == (tmp_path / "files/images" / row["key"]).read_bytes()


@pytest.mark.parametrize("key", ["../escape.jpg", "/etc/absolute.jpg", "a/../../b.jpg", "bell\a.jpg", "a//b.jpg", ".."])
def test_a_name_that_could_leave_the_target_is_rejected_unread(tmp_path: Path, key: str) -> None:
    (tmp_path / "source").mkdir()
    plan = ShardPlan("shard", "run", (PlannedPhoto(key, 10, "etag", 1),))

    worker(tmp_path / "source", tmp_path / "target", Layout.FILES).run(plan, {})

    [row] = rows_of(tmp_path / "target").values()
    assert (row["key"], row["outcome"], row["source_sha256"]) == (key, "rejected", None)
    assert row["reason"].startswith("the name ")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_a_file_over_the_limit_is_rejected_unread(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    config = DenoiseConfig(limits=Limits(max_bytes=100))

    worker(tmp_path / "source", tmp_path / "target", Layout.FILES, config).run(
        plan_of(LocalStore(tmp_path / "source")), {}
    )

    row = rows_of(tmp_path / "target")["2020/scan.png"]
    assert row["reason"].endswith("bytes, and the limit is 100")
    assert row["source_sha256"] is None


def test_a_file_larger_than_a_packed_shard_can_hold_is_rejected_unread(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    huge = PlannedPhoto("scan.tif", 2**31, "etag", 1)

    worker(tmp_path / "source", tmp_path / "target", Layout.PACKED).run(ShardPlan("shard", "run", (huge,)), {})

    assert rows_of(tmp_path / "target")["scan.tif"]["reason"].endswith("bytes, and the limit is 2,146,435,072")


def test_a_photo_that_is_gone_when_its_turn_comes_is_a_row(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    (tmp_path / "source/web.webp").unlink()

    worker(tmp_path / "source", tmp_path / "target", Layout.FILES).run(plan, {})

    assert rows_of(tmp_path / "target")["web.webp"]["outcome"] == "rejected"


class Cutting(LocalStore):
    """A server or a mount that gives half of one photo, so many times, and says nothing."""

    def __init__(self, root: Path, times: int) -> None:
        super().__init__(root)
        self.times = times

    def read(self, key: str) -> bytes:
        data = super().read(key)
        if key != "notes.txt" or not self.times:
            return data
        self.times -= 1
        return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("times", "outcome"),
    [(1, ("untouched", "not a photo")), (2, ("rejected", "10 bytes of it could be read, and it has 20"))],
)
def test_a_photo_of_which_a_part_was_read_is_read_again_and_no_part_is_copied(
    tmp_path: Path, times: int, outcome: tuple[str, str]
) -> None:
    write_archive(tmp_path / "source")
    recipe = Recipe(
        process=lambda data, key: denoise_photo(data, key, brighten, DenoiseConfig()),
        limits=Limits(), weights="", parameters="",
    )  # fmt: skip
    source = Cutting(tmp_path / "source", times)

    Worker(source, ImageSet(LocalStore(tmp_path / "target")), Layout.FILES, recipe).run(plan_of(source), {})

    row = rows_of(tmp_path / "target")["notes.txt"]
    assert (row["outcome"], row["reason"]) == outcome
    assert rows_of(tmp_path / "target")["web.webp"]["outcome"] == "denoised"


def test_a_photo_that_changed_since_it_was_listed_is_done_as_it_is_now(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    (tmp_path / "source/notes.txt").write_bytes(b"another holiday")

    worker(tmp_path / "source", tmp_path / "target", Layout.FILES).run(plan, {})

    assert (tmp_path / "target/images/notes.txt").read_bytes() == b"another holiday"


def test_a_source_that_vanishes_ends_the_shard_instead_of_rejecting_all_of_it(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    (tmp_path / "source").rename(tmp_path / "elsewhere")

    with pytest.raises(StorageError, match="is it still there"):
        worker(tmp_path / "source", tmp_path / "target", Layout.FILES).run(plan, {})
    assert not (tmp_path / "target/commits").exists()


def test_a_name_that_the_target_cannot_hold_is_a_row_and_the_shard_goes_on(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    (tmp_path / "target/images").mkdir(parents=True)
    (tmp_path / "target/images/2019").write_bytes(b"a file where a folder must be")

    worker(tmp_path / "source", tmp_path / "target", Layout.FILES).run(plan_of(LocalStore(tmp_path / "source")), {})

    rows = rows_of(tmp_path / "target")
    assert rows["2019/gray.jpeg"]["outcome"] == "rejected"
    assert rows["2019/gray.jpeg"]["output_sha256"] is None
    assert rows["web.webp"]["outcome"] == "denoised"


def test_a_poisonous_photo_is_not_read_and_has_its_reason(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    doing = worker(tmp_path / "source", tmp_path / "target", Layout.FILES)

    doing.run(plan_of(LocalStore(tmp_path / "source")), {"web.webp": "it ended its worker"})

    row = rows_of(tmp_path / "target")["web.webp"]
    assert (row["outcome"], row["reason"], row["source_sha256"]) == ("rejected", "it ended its worker", None)


def test_a_shard_may_run_twice_and_ends_in_the_same_objects(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    snapshots = []
    for _ in range(2):
        worker(tmp_path / "source", tmp_path / "target", Layout.FILES).run(plan, {})
        files = [path for path in (tmp_path / "target").rglob("*") if path.is_file()]
        snapshots.append({path: path.read_bytes() for path in files})

    assert snapshots[0] == snapshots[1]


@pytest.mark.parametrize("layout", Layout)
def test_a_shard_that_is_committed_stays_as_its_rows_say_whoever_does_it_again(tmp_path: Path, layout: Layout) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    first = worker(tmp_path / "source", tmp_path / "target", layout).run(plan, {})
    before = {path: path.read_bytes() for path in (tmp_path / "target").rglob("*") if path.is_file()}

    def on_another_machine(noisy: np.ndarray, dose: Dose) -> np.ndarray:
        return brighten(brighten(noisy, dose), dose)

    again = worker(tmp_path / "source", tmp_path / "target", layout, denoise=on_another_machine).run(plan, {})

    assert {path: path.read_bytes() for path in (tmp_path / "target").rglob("*") if path.is_file()} == before
    assert again == dataclasses.replace(first, seconds=again.seconds, stage_s=again.stage_s)


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    doing = worker(tmp_path / "source", tmp_path / "target", Layout.FILES)

    for photo in plan_of(LocalStore(tmp_path / "source")).photos:
        doing.probe(photo)

    assert not (tmp_path / "target").exists()


def test_a_packed_shard_without_any_result_still_commits(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/empty.jpg").write_bytes(b"")

    receipt = worker(tmp_path / "source", tmp_path / "target", Layout.PACKED).run(
        plan_of(LocalStore(tmp_path / "source")), {}
    )

    assert receipt.outcomes["rejected"] == 1
    assert pq.read_table(io.BytesIO((tmp_path / "target/shards/shard.parquet").read_bytes())).num_rows == 0


def test_a_worker_tells_which_photo_is_at_which_stage_and_how_many_are_finished(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    looks = []

    def look(noisy: np.ndarray, *_: object) -> np.ndarray:
        looks.append(doing.look())
        return noisy

    doing = worker(tmp_path / "source", tmp_path / "target", Layout.FILES, denoise=look)
    doing.run(plan_of(LocalStore(tmp_path / "source")), {})

    at = {(photo.key, photo.stage) for one in looks for photo in one.photos}
    assert {("2019/Straße am Meer/IMG_0042.jpg", "denoise"), ("web.webp", "denoise")} <= at
    assert all(dict(one.finished)["shard"] < 13 for one in looks)
    assert doing.look() == Look()


def test_a_photo_that_takes_its_time_does_not_stop_those_behind_it(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    others = threading.Semaphore(0)

    def let_the_gray_one_wait(noisy: np.ndarray, *_: object) -> np.ndarray:
        if noisy.ndim == 3:
            others.release()
        else:
            assert all(others.acquire(timeout=10) for _ in range(5))
        return noisy

    doing = worker(tmp_path / "source", tmp_path / "target", Layout.FILES, denoise=let_the_gray_one_wait)
    doing.run(plan_of(LocalStore(tmp_path / "source")), {})

    table = pq.read_table(tmp_path / "target/commits/shard.parquet")
    assert table["key"].to_pylist() == sorted(table["key"].to_pylist())
    assert rows_of(tmp_path / "target")["2019/gray.jpeg"]["outcome"] == "denoised"


def test_a_target_that_cannot_be_written_ends_the_shard_and_leaves_room_for_another(tmp_path: Path) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    doing = worker(tmp_path / "source", tmp_path / "target", Layout.FILES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "write", _disk_full)
        with pytest.raises(StorageError, match="full"):
            doing.run(plan, {})
    assert doing.look() == Look()

    assert doing.run(plan, {}).photos == len(plan.photos)


def _disk_full(*_: object) -> None:
    raise StorageError("the disk is full")


def denoiser(source: Path, target: Path) -> Worker:
    weights, _ = read_weights("photo")
    return DenoiseWorkerFactory(
        source=str(source), target=str(target), layout=Layout.FILES, weights=weights, config=DenoiseConfig()
    )(1)


def test_photos_that_are_read_as_files_have_the_same_rows_and_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    rows = []
    for folder, file_bytes in (("memory", shard.FILE_BYTES), ("files", 0)):
        monkeypatch.setattr(shard, "FILE_BYTES", file_bytes)
        denoiser(tmp_path / "source", tmp_path / folder).run(plan, {})
        timed = ("finished_at", "read_s", "decode_s", "denoise_s", "encode_s", "write_s", "change_psnr_db")
        found = rows_of(tmp_path / folder)
        rows.append({key: {name: row[name] for name in row if name not in timed} for key, row in found.items()})

    assert rows[0] == rows[1]
    assert objects_of(tmp_path / "memory") == objects_of(tmp_path / "files")


def test_a_photo_that_has_grown_beyond_the_room_and_a_large_one_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = LocalStore(tmp_path / "source")
    sizes_bytes = {"b/1.jpg": 10, "b/2.tif": 600, "a/grown.jpg": 700}
    for key, size_bytes in sizes_bytes.items():
        source.write(key, bytes(size_bytes))
    begun, goes_on = threading.Event(), threading.Event()

    def process(data: bytes, key: str) -> PhotoResult:
        if key == "b/1.jpg":
            begun.set()
            goes_on.wait()
        return PhotoResult(outcome=Outcome.UNTOUCHED, data=data)

    def process_file(file: BinaryIO, key: str, target: Path) -> PhotoResult:
        return process(file.read(), key)

    monkeypatch.setattr(shard, "FILE_BYTES", 500)
    monkeypatch.setattr(shard, "SOURCE_BYTES", 1000)
    recipe = Recipe(
        process=process, process_file=process_file, limits=Limits(), weights="", parameters="", photos_at_once=1
    )
    doing = Worker(source, ImageSet(LocalStore(tmp_path / "target")), Layout.FILES, recipe)
    grown, *others = plan_of(source).photos
    grown = dataclasses.replace(grown, size_bytes=10)

    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(doing.run, ShardPlan("other", "run", tuple(others)), {})
        begun.wait()
        time.sleep(0.3)  # the large one is the next
        one = threads.submit(doing.run, ShardPlan("one", "run", (grown,)), {})
        time.sleep(0.3)
        goes_on.set()
        receipts = one.result(60), other.result(60)

    assert [receipt.outcomes for receipt in receipts] == [{"untouched": 1}, {"untouched": 2}]


def test_a_large_photo_that_is_gone_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "source")
    plan = plan_of(LocalStore(tmp_path / "source"))
    (tmp_path / "source/2020/scan.tif").unlink()
    monkeypatch.setattr(shard, "FILE_BYTES", 0)

    denoiser(tmp_path / "source", tmp_path / "target").run(plan, {})

    row = rows_of(tmp_path / "target")["2020/scan.tif"]
    assert (row["outcome"], row["source_sha256"]) == ("rejected", None)


def test_a_large_photo_on_a_bad_sector_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "source")
    open_file = Path.open

    class Bad(io.FileIO):
        def readinto(self, _: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

    def opened(path: Path, *args: object, **options: object) -> object:
        return io.BufferedReader(Bad(path)) if path.name == "scan.tif" else open_file(path, *args, **options)

    monkeypatch.setattr(shard, "FILE_BYTES", 0)
    plan = plan_of(LocalStore(tmp_path / "source"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        denoiser(tmp_path / "source", tmp_path / "target").run(plan, {})

    rows = rows_of(tmp_path / "target")
    assert rows["2020/scan.tif"]["reason"].endswith(": input/output error")
    assert len(rows) == len(plan.photos)


def test_a_large_photo_that_is_written_while_it_is_read_is_rejected_and_done_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / "source")
    monkeypatch.setattr(shard, "FILE_BYTES", 0)
    hashed = shard._sha256

    def written_over(file: BinaryIO) -> str:
        if (found := Path(file.name)).name == "scan.tif" and found.is_relative_to(tmp_path / "source"):
            found.write_bytes(found.read_bytes())
            os.utime(found, (1, 1))  # the clock of a file system has steps of its own
        return hashed(file)

    with monkeypatch.context() as patch:
        patch.setattr(shard, "_sha256", written_over)
        denoiser(tmp_path / "source", tmp_path / "target").run(plan_of(LocalStore(tmp_path / "source")), {})
    row = rows_of(tmp_path / "target")["2020/scan.tif"]

    assert (row["outcome"], row["output_key"]) == ("rejected", None)
    assert row["reason"].endswith("it was changed while it was read")
    listed = {found.key: found.etag for found in LocalStore(tmp_path / "source").list()}
    assert row["source_etag"] != listed["2020/scan.tif"]


def test_a_large_photo_that_turns_out_to_be_damaged_has_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, scene(), photometric="rgb", compression="zlib", rowsperstrip=8)
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages[0].dataoffsets[-1]
    data[offset : offset + 32] = bytes(32)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/scan.tif").write_bytes(data)
    monkeypatch.setattr(shard, "FILE_BYTES", 0)

    denoiser(tmp_path / "source", tmp_path / "target").run(plan_of(LocalStore(tmp_path / "source")), {})

    row = rows_of(tmp_path / "target")["scan.tif"]
    assert (row["outcome"], row["output_key"]) == ("rejected", None)
    assert objects_of(tmp_path / "target") == {}


def test_a_disk_without_room_for_temporary_files_ends_the_shard_and_blames_no_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    drawn = np.tile(
        np.array([[[20, 90, 200], [180, 60, 120]]], np.uint8), (200, 100, 1)
    )  # packs better than its result
    tifffile.imwrite(tmp_path / "source/a.tif", drawn, compression="zlib", rowsperstrip=16)
    size_bytes = (tmp_path / "source/a.tif").stat().st_size
    monkeypatch.setattr(shard, "FILE_BYTES", 0)
    weights, _ = read_weights("photo")
    factory = DenoiseWorkerFactory(
        source=str(tmp_path / "source"), target=str(tmp_path / "target"), layout=Layout.FILES, weights=weights,
        config=DenoiseConfig(strength=1.0),
    )  # fmt: skip
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, unlimited[1]))  # a copy has room, and no more
        with pytest.raises(StorageError, match=f"^{tempfile.gettempdir()}, for temporary files: file too large$"):
            factory(1).run(plan_of(LocalStore(tmp_path / "source")), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    assert not (tmp_path / "target").exists()


def objects_of(target: Path) -> dict[str, bytes]:
    paths = [path for path in (target / "images").rglob("*") if path.is_file()]
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in paths}


def test_a_worker_has_as_many_photos_in_work_as_its_recipe_says(tmp_path: Path) -> None:
    for number in range(24):
        (tmp_path / f"source/{number:02}.png").parent.mkdir(exist_ok=True)
        (tmp_path / f"source/{number:02}.png").write_bytes(saved(scene(seed=number), "PNG"))
    together, lock, at_once, most = threading.Barrier(12), threading.Lock(), [0], [0]

    def meet(noisy: np.ndarray, _dose: Dose) -> np.ndarray:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        together.wait(timeout=30)  # for as many as there are to be
        with lock:
            at_once[0] -= 1
        return brighten(noisy, _dose)

    config = DenoiseConfig(strength=1.0)
    recipe = Recipe(
        process=lambda data, key: denoise_photo(data, key, meet, config),
        limits=config.limits,
        weights="hash of the weights",
        parameters=config.parameters,
        photos_at_once=12,
    )
    source = LocalStore(tmp_path / "source")

    receipt = Worker(source, ImageSet(LocalStore(tmp_path / "target")), Layout.FILES, recipe).run(plan_of(source), {})

    assert receipt.outcomes == {"denoised": 24}
    assert most[0] == 12


def test_only_the_cores_that_feed_a_gpu_have_more_photos_in_work() -> None:
    denoiser = Denoiser.load("photo", device="cpu")
    on_cores = [PhotoDenoiser(denoiser, DenoiseConfig(), threads=threads).photos_at_once for threads in (1, 8, 64)]
    denoiser.device = torch.device("cuda", 0)  # none is needed to say so
    on_gpus = [PhotoDenoiser(denoiser, DenoiseConfig(), threads=threads).photos_at_once for threads in (1, 8, 64)]

    assert on_cores == [8, 8, 8]
    assert on_gpus == [8, 16, 32]
