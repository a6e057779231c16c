"""Forecasts from samples with known speeds, and samples of real photos."""

import json
import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop import Killed, Loop
from photos import saved, scene, write_archive

from pipeline import sample as sampling
from pipeline.apart import ENDED_REASON, Apart
from pipeline.canary import CanaryJob, run_canary
from pipeline.cluster import ClusterConfig, ShardWorker
from pipeline.collection_job import CollectionJob
from pipeline.denoise import DenoiseConfig
from pipeline.errors import PhotoRejected, RunFailed
from pipeline.forecast import (
    Forecast,
    ForecastOptions,
    Machine,
    Outlook,
    Sample,
    SampledPhoto,
    format_outlook,
    make_forecast,
    megapixels,
)
from pipeline.images import Limits
from pipeline.imageset import ImageSet
from pipeline.ingest import IngestConfig, IngestJob, forecast_ingest, run_ingest
from pipeline.jobs import DenoiseJob, forecast_denoise, run_denoise
from pipeline.listing import write_listing
from pipeline.local_store import LocalStore
from pipeline.plan_file import PlanHeader
from pipeline.planning import Amount, Earlier, PlanCounts, PlanOptions, write_plan
from pipeline.records import Layout, Outcome, SourceObject, Status
from pipeline.sample import Tried, draw_photos, find_machine, sample_of, try_photos
from pipeline.shard import PhotoResult, Recipe
from pipeline.work import Work

MB = 10**6
TODO = Amount(photos=3600, size_bytes=3600 * MB, unopened_bytes=3600 * MB)
COUNTS = PlanCounts(
    amounts={Status.NEW: TODO, Status.UP_TO_DATE: Amount(photos=400, size_bytes=400 * MB, megapixels=800.0)},
    planned=TODO,
    shards=60,
    of_runs={},
    is_complete=True,
)
PHOTO = SampledPhoto(
    size_bytes=MB,
    outcome=Outcome.DENOISED,
    megapixels=2.0,
    output_bytes=MB // 2,
    stage_s={"decode": 0.1, "denoise": 2.0, "measure": 0.3, "encode": 0.2},
)
SAMPLE = Sample(photos=(PHOTO,) * 4, read_bytes_per_s=100 * MB)
TWO_CORES = Machine(workers=2, cores=2)
NO_OPTIONS = ForecastOptions()


def forecast(
    sample: Sample = SAMPLE,
    machine: Machine = TWO_CORES,
    options: ForecastOptions = NO_OPTIONS,
    layout: Layout = Layout.FILES,
) -> Forecast:
    return make_forecast(COUNTS, sample, machine, layout, options)


# From a sample to a forecast: 3600 photos of 1 MB, each as the one that was measured


def test_cores_share_all_that_a_run_does_without_a_gpu() -> None:
    found = forecast()

    assert found.hours == pytest.approx((0.1 + 2.0 + 0.3 + 0.2) / 2)
    assert found.stage_hours == pytest.approx(
        {"decode": 0.05, "denoise": 1.0, "measure": 0.15, "encode": 0.1, "transfer": 1.5 * 0.01}
    )
    assert found.bottleneck == "denoise"
    assert (found.gpu_megapixels_per_s, found.cores_per_gpu, found.money) == (None, None, None)


def test_a_network_on_several_cores_takes_all_of_them() -> None:
    assert forecast(machine=Machine(workers=1, cores=2)).hours == pytest.approx(2.0 + 0.6 / 2)


def test_more_machines_take_less_time() -> None:
    assert forecast(machine=Machine(workers=20, cores=20, hosts=10)).hours == pytest.approx(forecast().hours / 10)


def test_a_gpu_works_beside_the_cores_and_says_how_many_feed_it() -> None:
    found = forecast(replace(SAMPLE, is_on_gpu=True), Machine(workers=1, cores=8, gpus=1))

    assert found.hours == pytest.approx(2.0)
    assert found.gpu_megapixels_per_s == pytest.approx(1.0)
    assert found.cores_per_gpu == pytest.approx((0.1 + 0.3 + 0.2) / 2)


def test_a_gpu_waits_for_shards_that_few_hands_prepare() -> None:
    slow = replace(PHOTO, stage_s={"decode": 5.0, "denoise": 1.0})
    machine = Machine(workers=1, cores=64, gpus=1, shards_per_worker=2)

    assert forecast(Sample(photos=(slow,), read_bytes_per_s=MB, is_on_gpu=True), machine).hours == pytest.approx(3.0)


def test_the_ratio_of_cores_is_told_for_a_gpu_that_is_not_here() -> None:
    found = forecast(options=ForecastOptions(gpu_megapixels_per_s=50.0))

    assert found.cores_per_gpu == pytest.approx(50.0 * 0.6 / 2)
    assert found.hours == forecast().hours


@pytest.mark.parametrize("stage", ["decode", "denoise", "encode"])
def test_the_slowest_stage_is_the_bottleneck(stage: str) -> None:
    photo = replace(PHOTO, stage_s={**PHOTO.stage_s, stage: 9.0})

    assert forecast(replace(SAMPLE, photos=(photo,))).bottleneck == stage


def test_a_slow_line_is_the_bottleneck_and_bounds_the_run() -> None:
    found = forecast(replace(SAMPLE, read_bytes_per_s=MB / 10))

    assert found.bottleneck == "transfer"
    assert found.hours == pytest.approx(1.5 * 10)


def test_photos_that_are_not_denoised_count_with_what_they_cost() -> None:
    rejected = SampledPhoto(size_bytes=MB, outcome=Outcome.REJECTED)

    found = forecast(replace(SAMPLE, photos=(PHOTO, rejected)))

    assert found.hours == pytest.approx(forecast().hours / 2)
    assert found.bytes_out == TODO.size_bytes // 4
    assert found.requests.put == 1800 + 60 + 4


@pytest.mark.parametrize(("layout", "put"), [(Layout.FILES, 3600 + 60 + 4), (Layout.PACKED, 60 + 60 + 4)])
def test_requests_and_bytes_are_counted(layout: Layout, put: int) -> None:
    found = forecast(layout=layout)

    assert (found.requests.list, found.requests.get, found.requests.put, found.requests.commits) == (4, 3600, put, 60)
    assert (found.bytes_in, found.bytes_out) == (3600 * MB, 1800 * MB)


def test_money_is_hours_times_the_price() -> None:
    found = forecast(options=ForecastOptions(price_per_hour=2.5))

    assert found.money == pytest.approx(2.5 * found.hours)


def test_megapixels_are_known_of_what_was_opened_and_guessed_of_the_rest() -> None:
    amount = Amount(photos=3, size_bytes=3 * MB, megapixels=7.0, unopened_bytes=2 * MB)

    assert megapixels(amount, SAMPLE) == pytest.approx(7.0 + 2 * 2.0)
    assert megapixels(amount, None) == 7.0


def test_photos_that_differ_widen_the_interval() -> None:
    slow = replace(PHOTO, stage_s={"denoise": 6.0})

    alike, differing = forecast(), forecast(replace(SAMPLE, photos=(PHOTO, slow) * 4))

    assert alike.hours_low == alike.hours == alike.hours_high
    assert differing.hours_low < 0.9 * differing.hours < 1.1 * differing.hours < differing.hours_high
    assert differing == forecast(replace(SAMPLE, photos=(PHOTO, slow) * 4))


def test_an_interval_holds_the_truth_of_nineteen_samples_in_twenty() -> None:
    draw = np.random.default_rng(1)
    archive = [
        replace(PHOTO, size_bytes=int(size), stage_s={"denoise": size / MB * speed})
        for size, speed in zip(draw.uniform(1, 20, 2000) * MB, draw.uniform(0.5, 1.5, 2000), strict=True)
    ]
    truth = forecast(Sample(photos=tuple(archive), read_bytes_per_s=1e12)).hours

    held = 0
    for _ in range(60):
        drawn = tuple(archive[place] for place in draw.choice(len(archive), 16, replace=False))
        found = forecast(Sample(photos=drawn, read_bytes_per_s=1e12))
        held += found.hours_low <= truth <= found.hours_high

    assert held >= 50


@given(
    st.lists(
        st.builds(
            SampledPhoto,
            size_bytes=st.integers(0, 10**9),
            outcome=st.sampled_from(Outcome),
            megapixels=st.floats(0, 400),
            output_bytes=st.integers(0, 10**9),
            stage_s=st.dictionaries(st.sampled_from(["decode", "denoise", "encode"]), st.floats(1e-6, 100)),
        ),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
    st.integers(1, 9),
)
def test_any_sample_gives_a_forecast_that_can_be_written_down(
    photos: list[SampledPhoto], is_on_gpu: bool, workers: int
) -> None:
    sample = Sample(photos=tuple(photos), read_bytes_per_s=float("inf"), is_on_gpu=is_on_gpu)
    machine = Machine(workers=workers, cores=2, gpus=int(is_on_gpu))

    found = forecast(sample, machine)

    assert 0 <= found.hours_low <= found.hours <= found.hours_high
    assert found.hours >= max(found.stage_hours["denoise"], found.stage_hours["transfer"])
    outlook = Outlook(counts=COUNTS, machine=machine, options=NO_OPTIONS, sample=sample, forecast=found)
    assert format_outlook(outlook)
    assert json.dumps(outlook.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sample_photos", -1), ("price_per_hour", 0.0), ("gpu_megapixels_per_s", -1.0), ("price_per_hour", float("nan"))],
)
def test_a_wrong_option_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}: expected"):
        ForecastOptions(**{name: value})


# As a person reads it


def test_the_table_says_how_much_there_is_by_status() -> None:
    lines = format_outlook(Outlook(counts=COUNTS, machine=TWO_CORES, options=NO_OPTIONS)).splitlines()

    assert [line.split() for line in lines] == [
        ["photos", "MB", "megapixels"],
        ["new", "3,600", "3,600.0", "?"],
        ["up", "to", "date", "400", "400.0", "800.0"],
        ["to", "do", "3,600", "3,600.0", "?"],
    ]


def test_the_forecast_stands_below_the_table() -> None:
    options = ForecastOptions(price_per_hour=2.0, gpu_megapixels_per_s=50.0)
    machine = Machine(workers=4, cores=4, hosts=2)

    found = forecast(machine=machine, options=options)
    outlook = Outlook(counts=COUNTS, machine=machine, options=options, sample=SAMPLE, forecast=found)

    table, facts = format_outlook(outlook).split("\n\n")

    assert "to do               3,600        3,600.0      ~ 7,200.0" in table
    assert "sample       4 photos, 8.0 megapixels: 4 denoised" in facts
    assert "39.0 min (39.0 min to 39.0 min) with 4 workers on 2 machines like this one" in facts
    assert "bottleneck   denoise (each by itself: decode 1.5 min, denoise 30.0 min" in facts
    assert "4 LIST, 3,600 GET, 3,664 PUT (60 commits)" in facts
    assert "3.60 GB in, 1.80 GB out" in facts
    assert "15.0 to feed 50.0 megapixels/s" in facts
    assert "1.30 at 2.00 an hour" in facts


def test_a_program_reads_the_same() -> None:
    options = ForecastOptions(price_per_hour=2.0)
    outlook = Outlook(
        counts=COUNTS, machine=TWO_CORES, options=options, sample=SAMPLE, forecast=forecast(options=options)
    )

    values = json.loads(json.dumps(outlook.as_dict()))

    assert {name: found["photos"] for name, found in values["photos"].items()} == {
        "new": 3600,
        "up_to_date": 400,
        "to_do": 3600,
    }
    assert values["photos"]["to_do"]["megapixels"] == values["forecast"]["megapixels"] == pytest.approx(7200)
    assert values["sample"]["denoised"] == 4
    assert values["forecast"]["money"] == pytest.approx(2.6)
    assert Outlook(counts=COUNTS, machine=TWO_CORES, options=options).as_dict()["forecast"] is None


# From photos to a sample


def plan_of(folder: Path, objects: list[SourceObject]) -> Path:
    write_listing(objects, folder / "listing.parquet")
    header = PlanHeader(source="s", weights="w", parameters="p")
    write_plan(folder / "listing.parquet", Earlier(), folder / "plan.parquet", PlanOptions(header=header))
    return folder / "plan.parquet"


@dataclass(frozen=True)
class Factory:
    """Its recipes note which photos they are given; some photos end their process, and some take long."""

    log: Path
    max_bytes: int = 10**9
    deadly: str = ""
    slow: str = ""

    def __call__(self, threads: int) -> ShardWorker:
        raise AssertionError("a sample needs no worker")

    def recipe(self, threads: int) -> Recipe:
        limits = Limits(max_bytes=self.max_bytes)
        return Recipe(process=self.process, limits=limits, weights="w", parameters="p")

    def process(self, data: bytes, key: str) -> PhotoResult:
        with self.log.open("a") as file:
            file.write(f"{key}\n")
        if key == self.deadly:
            os.kill(os.getpid(), signal.SIGSEGV)
        if key == self.slow:
            time.sleep(60)
        return PhotoResult(outcome=Outcome.DENOISED, data=data[:10], stage_s={"decode": 0.5})

    @property
    def seen(self) -> set[str]:
        return set(self.log.read_text().split("\n")) - {""}


def try_some(
    plans: Sequence[Path], source: LocalStore, factory: Factory, *, photos: int = 5, timeout_s: float = 60
) -> Tried:
    cluster = ClusterConfig(photo_timeout_s=timeout_s)
    work = Work(
        job=CollectionJob(source=source.url, target=source.url, cluster=cluster),
        command="test",
        header=PlanHeader(source=source.url, weights="w", parameters="p"),
        write_listing=lambda _: 0,
        target=ImageSet(source),
        layout=Layout.FILES,
        outcomes=(Outcome.DENOISED,),
        make_worker=factory,
        cluster=cluster,
        is_subset=False,
    )
    return try_photos(work, plans, TWO_CORES, photos=photos)


@pytest.fixture
def source(tmp_path: Path) -> LocalStore:
    write_archive(tmp_path / "source")
    return LocalStore(tmp_path / "source")


def test_photos_are_drawn_at_random_and_always_the_same(tmp_path: Path) -> None:
    plans = []
    for name in "ab":
        (tmp_path / name).mkdir()
        plans.append(
            plan_of(tmp_path / name, [SourceObject(f"{name}{number:03}", number, "e") for number in range(500)])
        )

    drawn = [photo.key for photo in draw_photos(plans, 40)]

    assert len(set(drawn)) == 40
    assert drawn == [photo.key for photo in draw_photos(plans, 40)] != sorted(drawn)
    assert 10 < sum(key.startswith("a") for key in drawn) < 30
    assert len({photo.key for photo in draw_photos(plans, 2000)}) == 1000


def test_a_sample_processes_photos_and_writes_nothing(tmp_path: Path, source: LocalStore) -> None:
    plan = plan_of(tmp_path, list(source.list()))
    before, factory = sorted(source.list(), key=lambda found: found.key), Factory(tmp_path / "log")

    sample = sample_of(try_some([plan], source, factory), TWO_CORES)

    assert sample is not None
    assert len(sample.photos) == 5
    assert factory.seen == {photo.key for photo in draw_photos([plan], 5)}
    assert sample.seconds("decode") == 2.5
    assert 0 < sample.read_bytes_per_s < float("inf")
    assert sorted(source.list(), key=lambda found: found.key) == before


def test_photos_that_cannot_be_read_are_part_of_the_sample(tmp_path: Path, source: LocalStore) -> None:
    listed = [*source.list(), SourceObject("gone.jpg", 7, "e"), SourceObject("a\x01b", 8, "e")]
    plan = plan_of(tmp_path, listed)

    factory = Factory(tmp_path / "log", max_bytes=3000)
    sample = sample_of(try_some([plan], source, factory, photos=100), TWO_CORES)

    assert sample is not None
    large = [found.size_bytes for found in listed if found.size_bytes > 3000]
    rejected = [photo.size_bytes for photo in sample.photos if photo.outcome == Outcome.REJECTED]
    assert sorted(rejected) == sorted([7, 8, *large])
    assert len(sample.photos) == len(listed)


def test_a_sample_that_takes_too_long_ends_early(
    tmp_path: Path, source: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_S", 1e-9)
    monkeypatch.setattr(sampling, "MAX_BYTES", 1)
    plan = plan_of(tmp_path, list(source.list()))

    sample = sample_of(try_some([plan], source, Factory(tmp_path / "log")), TWO_CORES)

    assert sample is not None
    assert len(sample.photos) == 1


def test_a_sample_ends_as_its_run_does_for_photos_that_were_packed_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/1.jpg").write_bytes(saved(scene(), "JPEG"))
    packed = IngestJob(source=str(tmp_path / "source"), target=str(tmp_path / "set"), ingest=IngestConfig(resize_px=40))
    run_ingest(packed, lambda _: None)
    job = DenoiseJob(source=packed.target, target=str(tmp_path / "target"), layout=Layout.PACKED)

    canary = run_canary(CanaryJob(denoise=job, photos=1))

    assert canary.outcomes == run_denoise(job, lambda _: None).outcomes


def test_a_photo_that_is_too_large_for_a_picture_is_tried_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source").mkdir()
    for side_px in (40, 64):
        (tmp_path / f"source/{side_px}.png").write_bytes(saved(scene(side_px=side_px), "PNG"))
    denoise = DenoiseConfig(strength=1.0)
    job = DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"), denoise=denoise)
    monkeypatch.setattr("pipeline.canary.MAX_PICTURE_PIXELS", 50 * 50)

    canary = run_canary(CanaryJob(denoise=job, photos=2))

    assert canary.outcomes["denoised"] == 2
    assert [picture.key for picture in canary.pictures] == ["40.png"]


def test_a_picture_that_cannot_be_drawn_fails_no_canary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PhotoRejected("it cannot be drawn")

    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/1.png").write_bytes(saved(scene(), "PNG"))
    denoise = DenoiseConfig(strength=1.0)
    job = DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"), denoise=denoise)
    monkeypatch.setattr("pipeline.highlights.decode", refuse)

    assert run_canary(CanaryJob(denoise=job, photos=1)).pictures == []
    assert "no picture of 1.png: it cannot be drawn" in caplog.text


def test_a_photo_that_ends_its_process_or_takes_too_long_is_rejected(
    tmp_path: Path, source: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_S", math.inf)
    plan = plan_of(tmp_path, list(source.list()))
    deadly, slow, *others = (photo.key for photo in draw_photos([plan], 5))

    tried = try_some([plan], source, Factory(tmp_path / "log", deadly=deadly, slow=slow), timeout_s=3)

    reasons = {photo.key: result.reason for photo, result in tried.results}
    assert reasons[deadly] == ENDED_REASON
    assert reasons[slow] == "its processing took longer than 3 s, the limit for one photo"
    assert [reasons[key] for key in others] == [None] * 3


def test_a_process_that_ends_as_it_begins_is_no_photos_fault(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="ended at once"):
        Apart(Unmakeable(), 1, timeout_s=60)


class Unmakeable:
    def __call__(self, threads: int) -> Recipe:
        os._exit(3)


def test_nothing_to_do_is_no_sample(tmp_path: Path, source: LocalStore) -> None:
    for plans in ([plan_of(tmp_path, [])], []):
        assert sample_of(try_some(plans, source, Factory(tmp_path / "log")), TWO_CORES) is None


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(None, Machine(workers=4, cores=4)), (1, Machine(workers=1, cores=4)), (9, Machine(workers=9, cores=12, hosts=3))],
)
def test_more_workers_than_cores_are_on_more_machines(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, expected: Machine
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))

    assert find_machine(ClusterConfig(workers=workers), gpus=0) == expected


def test_a_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))

    here = find_machine(ClusterConfig(shards_per_worker=3), gpus=2)

    assert here == Machine(workers=2, cores=16, gpus=2, shards_per_worker=3)
    assert find_machine(ClusterConfig(workers=8), gpus=2) == Machine(workers=8, cores=64, gpus=8, hosts=4)


# From a job to what it will take


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DenoiseJob:
    """Three photos of different size."""
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source").mkdir()
    for number, side_px in enumerate((32, 48, 64)):
        (tmp_path / f"source/{number}.png").write_bytes(saved(scene(seed=number, side_px=side_px), "PNG"))
    return DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))


@pytest.mark.parametrize("kind", ["objects", "packed"])
def test_a_forecast_is_measured_on_photos_from_either_kind_of_source(
    job: DenoiseJob, tmp_path: Path, kind: str
) -> None:
    packed = replace(job, source=str(tmp_path / "packed"))
    run_ingest(IngestJob(source=job.source, target=packed.source), lambda progress: None)

    outlook = forecast_denoise(job if kind == "objects" else packed, ForecastOptions())

    assert outlook.sample is not None
    assert outlook.forecast is not None
    assert sorted(photo.megapixels for photo in outlook.sample.photos) == [0.001024, 0.002304, 0.004096]
    assert outlook.forecast.megapixels == pytest.approx(0.007424)
    assert outlook.forecast.hours * 3600 >= outlook.sample.seconds("denoise") / outlook.machine.cores
    assert not Path(job.target).exists()


def test_a_forecast_of_ingest_counts_a_shard_for_each_commit(job: DenoiseJob, tmp_path: Path) -> None:
    outlook = forecast_ingest(IngestJob(source=job.source, target=str(tmp_path / "new")), ForecastOptions())

    assert outlook.forecast is not None
    assert outlook.forecast.requests.commits == outlook.counts.shards
    assert outlook.forecast.bytes_out == outlook.forecast.bytes_in
    assert not (tmp_path / "new").exists()


def test_a_forecast_holds_what_an_interrupted_run_left(job: DenoiseJob, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop.instead_of_cluster(monkeypatch)
    loop.dies_after = 1
    with pytest.raises(Killed):
        run_denoise(job, lambda progress: None)

    outlook = forecast_denoise(job, ForecastOptions())

    assert outlook.counts.planned.photos == outlook.counts.shards == 2
    assert outlook.counts.planned.size_bytes == outlook.counts.amounts[Status.PLANNED].size_bytes
    assert outlook.sample is not None
    assert len(outlook.sample.photos) == 2


def test_nothing_to_do_is_no_forecast(job: DenoiseJob) -> None:
    run_denoise(job, lambda progress: None)

    outlook = forecast_denoise(job, ForecastOptions())

    assert (outlook.sample, outlook.forecast) == (None, None)
    assert outlook.counts.amounts[Status.UP_TO_DATE].megapixels == pytest.approx(0.007424)


def test_stale_photos_are_counted_as_they_were_measured(job: DenoiseJob) -> None:
    run_denoise(job, lambda progress: None)

    outlook = forecast_denoise(replace(job, denoise=DenoiseConfig(strength=0.5)), ForecastOptions(sample_photos=0))

    assert outlook.counts.planned.megapixels == pytest.approx(0.007424)
    assert outlook.counts.planned.unopened_bytes == 0
