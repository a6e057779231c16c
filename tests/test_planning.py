"""Plans against a simple model of the rule: what is processed again, how it is cut, and what a shard is called."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import plan_file, planning
from pipeline.listing import write_listing
from pipeline.plan_file import PlanHeader, count_photos, read_header, read_shard_sizes, read_shards, write_open_part
from pipeline.planning import Amount, Earlier, PlanCounts, PlanOptions, ShardSize, find_twins, shard_ends, write_plan
from pipeline.records import (
    GONE,
    LISTING_SCHEMA,
    PLAN_SCHEMA,
    Outcome,
    PhotoRecord,
    PlannedPhoto,
    ShardPlan,
    SourceObject,
    Status,
    index_table,
)
from pipeline.subset import Split, split_of

NOW = datetime(2026, 11, 1, tzinfo=UTC)
HEADER = PlanHeader(source="s3://photos", weights="w1", parameters="p1")
OPTIONS = PlanOptions(header=HEADER)
PAIRS = ShardSize(max_photos=2, min_shards=1)
ODD_KEYS = [
    "it's.jpg",
    '"quoted".jpg',
    "a\nb.jpg",
    "写真/ünï.png",
    "👩‍👩‍👧.jpg",
    "a\x01b",
    "a\x00b",
    "%s;--",
    " ",
    "$key",
]
SOURCES = ["s3://photos", '/home/o\'brien/ünï "x"', "a\nb{};--", "/no-text-\udcff"]


def photo(key: str, *, size_bytes: int = 1000, etag: str = "e1") -> SourceObject:
    return SourceObject(key, size_bytes, etag)


def row(key: str, *, etag: str = "e1", size_bytes: int = 1000, attempts: int = 1, **columns: object) -> PhotoRecord:
    """The index's row of a photo that is done, unless `columns` say otherwise."""
    values: dict[str, object] = {"outcome": Outcome.DENOISED, "weights": "w1", "parameters": "p1", **columns}
    return PhotoRecord(
        key=key,
        source_etag=etag,
        source_size_bytes=size_bytes,
        attempts=attempts,
        run="earlier",
        shard="s",
        finished_at=NOW,
        **values,
    )


@dataclass
class Planner:
    """Files in a folder, so that a test speaks of photos alone."""

    folder: Path
    written: int = 0

    def __call__(
        self,
        listing: Iterable[SourceObject],
        done: Iterable[PhotoRecord] = (),
        pending: Iterable[Path] = (),
        options: PlanOptions = OPTIONS,
        tainted: Iterable[Path] = (),
    ) -> tuple[PlanCounts, list[ShardPlan]]:
        done = list(done)
        write_listing(listing, self._new("listing"))
        index = []
        for part in (done[::2], done[1::2]):
            if part:
                pq.write_table(index_table(part), self._new("index"))
                index.append(self.newest)
        earlier = Earlier(done=index, pending=list(pending), tainted=list(tainted))
        counts = write_plan(self.folder / "listing.parquet", earlier, self._new("plan"), options)
        return counts, list(read_shards(self.newest, "run"))

    @property
    def newest(self) -> Path:
        return self._newest

    def _new(self, name: str) -> Path:
        self.written += 1
        path = self.folder / ("listing.parquet" if name == "listing" else f"{name}-{self.written}.parquet")
        self._newest = path
        return path


@pytest.fixture
def plan(tmp_path: Path) -> Planner:
    return Planner(tmp_path)


@pytest.fixture(scope="module")
def shared_plan() -> Iterator[Planner]:
    """For properties: their examples share one folder."""
    with TemporaryDirectory() as folder:
        yield Planner(Path(folder))


def planned(shards: Iterable[ShardPlan]) -> list[PlannedPhoto]:
    return [photo for shard in shards for photo in shard.photos]


def planned_keys(shards: Iterable[ShardPlan]) -> list[str]:
    return [photo.key for photo in planned(shards)]


# What is processed


def test_a_photo_that_the_index_does_not_hold_is_new(plan: Planner) -> None:
    counts, shards = plan([photo("a.jpg")])

    assert counts.photos == {Status.NEW: 1}
    assert planned(shards) == [PlannedPhoto("a.jpg", 1000, "e1", attempt=1)]


@pytest.mark.parametrize("outcome", Outcome)
def test_a_photo_that_is_as_its_row_says_is_left_alone(plan: Planner, outcome: Outcome) -> None:
    counts, shards = plan([photo("a.jpg")], [row("a.jpg", outcome=outcome)])

    assert shards == []
    assert (counts.planned, counts.shards) == (Amount(), 0)


@pytest.mark.parametrize(
    ("done", "status", "attempt"),
    [
        (row("a.jpg", etag="e0", attempts=4), Status.CHANGED, 5),
        (row("a.jpg", size_bytes=999, attempts=4), Status.CHANGED, 5),
        (row("a.jpg", weights="w0", attempts=4), Status.STALE, 5),
        (row("a.jpg", parameters="p0", attempts=4), Status.STALE, 5),
        (row("a.jpg", etag="e0", weights="w0", attempts=4), Status.CHANGED, 5),
        (row("a.jpg", outcome=Outcome.REJECTED, etag="e0"), Status.CHANGED, 2),
        (row("a.jpg", outcome=Outcome.REJECTED, weights="w0"), Status.STALE, 2),
    ],
)
def test_a_photo_is_processed_again_when_it_or_its_settings_changed(
    plan: Planner, done: PhotoRecord, status: Status, attempt: int
) -> None:
    counts, shards = plan([photo("a.jpg")], [done])

    assert counts.photos == {status: 1}
    assert [photo.attempt for photo in planned(shards)] == [attempt]


def test_a_photo_that_was_gone_is_new_where_the_listing_says_that_it_is_back(plan: Planner) -> None:
    gone = [row("a.jpg", outcome=Outcome.REJECTED, reason=f"{GONE}: no such file")]

    told, _ = plan([photo("a.jpg")], gone, options=replace(OPTIONS, lists_gone=True))
    counts, shards = plan([photo("a.jpg")], gone)

    assert (told.photos, counts.photos) == ({Status.FAILED: 1}, {Status.NEW: 1})
    assert planned(shards) == [PlannedPhoto("a.jpg", 1000, "e1", attempt=2)]


def test_a_rejected_photo_waits_until_it_is_asked_for(plan: Planner) -> None:
    done = [row("a.jpg", outcome=Outcome.REJECTED, attempts=2)]

    counts, shards = plan([photo("a.jpg")], done)
    _, retried = plan([photo("a.jpg")], done, options=replace(OPTIONS, retry_failed=True))

    assert (counts.photos, shards) == ({Status.FAILED: 1}, [])
    assert [photo.attempt for photo in planned(retried)] == [3]


NAMES = [f"2019/{number}.jpg" for number in range(4000)]


def sampled(plan: Planner, share: float, names: Iterable[str] = NAMES, **options: object) -> set[str]:
    _, shards = plan([photo(name) for name in names], options=replace(OPTIONS, sample=share, **options))
    return set(planned_keys(shards))


def test_a_sample_is_the_share_that_was_asked_for_and_a_larger_one_adds_to_it(plan: Planner) -> None:
    tenth, half = sampled(plan, 0.1), sampled(plan, 0.5)

    assert tenth < half < sampled(plan, 1.0) == set(NAMES)
    assert (len(tenth) / 4000, len(half) / 4000) == (pytest.approx(0.1, rel=0.1), pytest.approx(0.5, rel=0.1))


def test_a_sample_holds_as_much_of_each_part_of_a_split_as_there_is(plan: Planner) -> None:
    tenth = sampled(plan, 0.1)

    assert sum(split_of(key, 0.2) == Split.VALIDATION for key in tenth) / len(tenth) == pytest.approx(0.2, abs=0.05)


def test_a_photo_is_in_the_sample_whatever_else_there_is(plan: Planner) -> None:
    assert sampled(plan, 0.1, NAMES[::2]) == sampled(plan, 0.1) & set(NAMES[::2])


def test_a_sample_is_one_photo_at_least(plan: Planner) -> None:
    assert len(sampled(plan, 1e-9)) == len(sampled(plan, 0.5, limit=1)) == 1


def test_a_sample_of_nothing_is_nothing_and_leaves_nothing_for_later(plan: Planner) -> None:
    counts, shards = plan([photo("a.jpg")], [row("a.jpg")], options=replace(OPTIONS, sample=0.5))
    partial, _ = plan([photo("a.jpg"), photo("b.jpg")], options=replace(OPTIONS, sample=1e-9))

    assert (shards, counts.is_complete, partial.is_complete) == ([], True, False)


def test_what_a_pending_plan_holds_is_left_to_it_even_if_it_changed_since(plan: Planner) -> None:
    plan([photo("a.jpg"), photo("changed.jpg", etag="e0")])

    counts, shards = plan([photo("a.jpg"), photo("b.jpg"), photo("changed.jpg")], pending=[plan.newest])

    assert counts.photos == {Status.PLANNED: 2, Status.NEW: 1}
    assert planned_keys(shards) == ["b.jpg"]


def test_what_a_run_that_was_given_up_may_have_overwritten_is_done_again_as_another_shard(plan: Planner) -> None:
    _, first = plan([photo("a.jpg"), photo("b.jpg")])
    plan([photo("a.jpg")], [row("a.jpg")], options=replace(OPTIONS, header=replace(HEADER, parameters="other")))

    counts, again = plan([photo("a.jpg"), photo("b.jpg")], [row("a.jpg"), row("b.jpg")], tainted=[plan.newest])

    assert counts.photos == {Status.STALE: 1, Status.UP_TO_DATE: 1}
    assert planned_keys(again) == ["a.jpg"]
    assert not {shard.shard for shard in first} & {shard.shard for shard in again}


def test_what_a_run_that_was_given_up_may_have_overwritten_is_not_forgotten_by_a_subset(plan: Planner) -> None:
    listed, done = [photo("a.jpg"), photo("b.jpg")], [row("a.jpg"), row("b.jpg")]
    plan(listed, done, options=replace(OPTIONS, header=replace(HEADER, parameters="other")))
    tainted, subset = [plan.newest], replace(OPTIONS, is_subset=True)

    assert not plan(listed[1:], done, options=subset, tainted=tainted)[0].is_complete
    assert plan(listed, done, options=subset, tainted=tainted)[0].is_complete
    assert plan(listed[1:], [row("a.jpg", attempts=3), row("b.jpg")], options=subset, tainted=tainted)[0].is_complete
    assert plan(listed[1:], done, tainted=tainted)[0].is_complete  # it is gone from the source


def test_the_open_part_of_a_plan_is_what_is_not_committed(plan: Planner) -> None:
    _, shards = plan([photo(f"{number}.jpg") for number in range(5)])
    written, committed = plan.newest, {shards[1].shard, shards[4].shard, "another run's"}

    write_open_part(written, committed, plan.folder / "open.parquet")

    assert list(read_shards(plan.folder / "open.parquet", "run")) == [shards[0], *shards[2:4]]
    assert read_header(plan.folder / "open.parquet") == read_header(written)
    assert count_photos(written, without=committed) == count_photos(plan.folder / "open.parquet") == 3


def test_a_pending_plan_comes_before_the_index(plan: Planner) -> None:
    done = [row("a.jpg", outcome=Outcome.REJECTED)]
    retry = replace(OPTIONS, retry_failed=True)
    plan([photo("a.jpg")], done, options=retry)

    counts, _ = plan([photo("a.jpg")], done, [plan.newest], retry)

    assert counts.photos == {Status.PLANNED: 1}


def test_a_key_in_two_pending_plans_counts_once(plan: Planner) -> None:
    pending = []
    for etag in ("e0", "e1"):
        plan([photo("a.jpg", etag=etag)])
        pending.append(plan.newest)

    counts, shards = plan([photo("a.jpg", etag="e1")], pending=pending)

    assert (counts.photos, shards) == ({Status.PLANNED: 1}, [])


def test_what_the_source_no_longer_holds_is_not_planned(plan: Planner) -> None:
    counts, shards = plan([photo("a.jpg")], [row("a.jpg"), row("gone.jpg", weights="w0")])

    assert (sum(counts.photos.values()), shards) == (1, [])


def test_a_key_that_is_listed_twice_is_processed_once(plan: Planner) -> None:
    listing = [photo("a.jpg"), photo("b.jpg"), photo("a.jpg"), photo("a.jpg", etag="e2")]

    counts, shards = plan(listing)

    assert planned_keys(shards) == ["a.jpg", "b.jpg"]
    assert sum(counts.photos.values()) == counts.planned_photos == 2
    assert plan(reversed(listing))[1] == shards


def test_nothing_listed_is_a_plan_without_shards(plan: Planner) -> None:
    counts, shards = plan([], [row("a.jpg")])

    assert shards == []
    assert counts == PlanCounts(amounts={}, planned=Amount(), shards=0, of_runs={}, is_complete=True)
    assert read_header(plan.newest) == HEADER


def test_what_fails_each_time_keeps_nothing_waiting_under_a_limit(plan: Planner) -> None:
    failed = [row(key, attempts=attempts, outcome=Outcome.REJECTED) for key, attempts in (("a", 2), ("b", 1))]
    options = replace(OPTIONS, retry_failed=True)
    listing = [photo(key) for key in "abcd"]

    plans = [planned(plan(listing, failed, options=replace(options, limit=limit))[1]) for limit in (2, 3)]

    assert [[each.key for each in chosen] for chosen in plans] == [["c", "d"], ["b", "c", "d"]]


def test_a_limit_takes_the_first_keys(plan: Planner) -> None:
    counts, shards = plan([photo(key) for key in "dbca"], [row("a")], options=replace(OPTIONS, limit=2))

    assert planned_keys(shards) == ["b", "c"]
    assert counts.photos[Status.NEW] == 3
    assert counts.planned == Amount(photos=2, size_bytes=2000, unopened_bytes=2000)
    assert not counts.is_complete


def test_twins_are_found_in_the_listing_and_among_what_has_a_result(plan: Planner, tmp_path: Path) -> None:
    plan([photo(key) for key in ("a", "b", "Ü/d")], [row("A"), row("B", output_key="images/B"), row("b")])
    listing = tmp_path / "listing.parquet"

    assert find_twins(listing, list(tmp_path.glob("index-*"))) == ("B", "b")
    assert find_twins(listing, []) is None

    for twins in (("Ü/d", "ü/d"), ("a", "a."), ("a./b", "a/b")):
        write_listing([photo(key) for key in (*twins, "..a", "a.b")], listing)
        assert find_twins(listing, []) == twins


@pytest.mark.parametrize("key", ODD_KEYS, ids=ascii)
def test_an_odd_key_survives(plan: Planner, key: str) -> None:
    listing = [photo(key, etag=key), photo("other.jpg")]

    _, shards = plan(listing)
    counts, _ = plan(listing, [row(key, etag=key)])

    assert PlannedPhoto(key, 1000, key, 1) in planned(shards)
    assert counts.photos == {Status.UP_TO_DATE: 1, Status.NEW: 1}


@pytest.mark.parametrize("source", SOURCES, ids=ascii)
def test_a_header_comes_back_as_it_was(plan: Planner, source: str) -> None:
    plan([photo("a.jpg")], options=replace(OPTIONS, header=replace(HEADER, source=source)))

    assert read_header(plan.newest) == PlanHeader(source=source, weights="w1", parameters="p1")


def test_a_listing_streams_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.listing.LISTING_BATCH", 3)
    objects = [photo(str(number)) for number in range(8)]

    assert write_listing(iter(objects), tmp_path / "listing.parquet") == 8
    file = pq.ParquetFile(tmp_path / "listing.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(3)] == [3, 3, 2]
    assert [SourceObject(**found) for found in file.read().to_pylist()] == objects
    assert file.schema_arrow.equals(LISTING_SCHEMA)


def test_a_plan_holds_sorted_rows_with_their_status(plan: Planner) -> None:
    plan([photo(key) for key in "cab"], [row("a", weights="w0"), row("b")])

    table = pq.read_table(plan.newest)

    assert table.column("key").to_pylist() == ["a", "c"]
    assert table.column("status").to_pylist() == [Status.STALE, Status.NEW]
    assert (table.schema.names, table.schema.types) == (PLAN_SCHEMA.names, PLAN_SCHEMA.types)


def test_a_plan_says_how_large_photos_are_that_were_opened_before(plan: Planner) -> None:
    sized = {"width_px": 2000, "height_px": 1000}
    listing = [photo(key) for key in ("changed", "new", "rejected", "same", "stale")]
    done = [
        row("changed", etag="e0", **sized),
        row("rejected", outcome=Outcome.REJECTED),
        row("same", **sized),
        row("stale", weights="w0", **sized),
    ]

    counts, _ = plan(listing, done, options=replace(OPTIONS, retry_failed=True))

    unopened = Amount(photos=1, size_bytes=1000, unopened_bytes=1000)
    opened = Amount(photos=1, size_bytes=1000, megapixels=2.0)
    assert counts.amounts == {
        Status.NEW: unopened,
        Status.CHANGED: unopened,
        Status.STALE: opened,
        Status.FAILED: unopened,
        Status.UP_TO_DATE: opened,
    }
    assert counts.planned == Amount(photos=4, size_bytes=4000, megapixels=2.0, unopened_bytes=3000)


def test_a_plan_tells_in_which_object_photos_lie_together(plan: Planner) -> None:
    placed = replace(photo("a.jpg"), place="shards/1.parquet")

    _, shards = plan([placed, photo("b.jpg")])

    assert [found.place for found in planned(shards)] == ["shards/1.parquet", None]
    assert [shard.shard for shard in shards] == [shard.shard for shard in plan([photo("a.jpg"), photo("b.jpg")])[1]]


def test_the_same_inputs_give_the_same_file(plan: Planner) -> None:
    listing = [photo(f"{number}.jpg", size_bytes=number) for number in range(3000)]
    written = []
    for order in (listing, listing[::-1]):
        plan(order, [row(f"{number}.jpg") for number in range(0, 3000, 7)])
        written.append(plan.newest.read_bytes())

    assert written[0] == written[1]


def test_the_names_of_shards_are_read_without_their_photos(plan: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_file, "PLAN_BATCH", 3)
    _, shards = plan([photo(f"{number:02}") for number in range(11)], options=replace(OPTIONS, shard_size=PAIRS))

    assert list(read_shard_sizes(plan.newest).items()) == [(shard.shard, len(shard.photos)) for shard in shards]


def test_shards_are_read_as_they_are_taken(plan: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_file, "READ_BATCH", 2)
    size = ShardSize(max_photos=3, min_shards=1)
    _, shards = plan([photo(f"{number:02}") for number in range(11)], options=replace(OPTIONS, shard_size=size))

    assert [len(shard.photos) for shard in shards] == [3, 3, 3, 2]
    assert next(read_shards(plan.newest, "run")) == shards[0]


def test_a_plan_is_the_same_in_small_batches(plan: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = [photo(f"{number:02}.jpg") for number in range(50)]
    options = replace(OPTIONS, shard_size=ShardSize(max_photos=4, min_shards=1))
    _, whole = plan(listing, options=options)

    monkeypatch.setattr(planning, "PLAN_BATCH", 3)
    _, batched = plan(listing, options=options)

    assert batched == whole
    assert pq.ParquetFile(plan.newest).metadata.num_row_groups > 1


def test_counts_the_photos_of_a_plan_that_are_left(plan: Planner) -> None:
    _, shards = plan([photo(str(number)) for number in range(5)], options=replace(OPTIONS, shard_size=PAIRS))

    assert count_photos(plan.newest) == 5
    assert count_photos(plan.newest, without={shards[0].shard, "of another plan"}) == 3
    assert count_photos(plan.newest, without={shard.shard for shard in shards}) == 0


def test_two_hundred_thousand_photos_are_planned(plan: Planner) -> None:
    listing = (photo(f"{number % 97}/{number}.jpg", size_bytes=number) for number in range(200_000))

    counts, shards = plan(listing, options=replace(OPTIONS, limit=150_000))

    assert counts.planned_photos == len(set(planned_keys(shards))) == 150_000
    assert max(len(shard.photos) for shard in shards) <= ShardSize().max_photos


# The rule, against a model

letters = st.sampled_from("ab")
small = st.integers(0, 2)
listed_photos = st.builds(SourceObject, st.sampled_from("abcdefgh'é"), small, letters)
listings = st.lists(listed_photos, unique_by=lambda listed: listed.key)
rows = st.builds(
    row,
    st.sampled_from("abcdefgh'é"),
    etag=letters,
    size_bytes=small,
    attempts=st.integers(1, 3),
    outcome=st.sampled_from(Outcome),
    weights=st.sampled_from(["w1", "w0"]),
    parameters=st.sampled_from(["p1", "p0"]),
)
indexes = st.lists(rows, unique_by=lambda done: done.key)


def status_by_the_rule(listed: SourceObject, done: PhotoRecord | None) -> Status:
    if done is None:
        return Status.NEW
    if (done.source_etag, done.source_size_bytes) != (listed.etag, listed.size_bytes):
        return Status.CHANGED
    if (done.weights, done.parameters) != ("w1", "p1"):
        return Status.STALE
    return Status.FAILED if done.outcome == Outcome.REJECTED else Status.UP_TO_DATE


def plan_by_the_rule(
    listing: list[SourceObject], index: list[PhotoRecord], pending: list[SourceObject], options: PlanOptions
) -> list[PlannedPhoto]:
    done = {found.key: found for found in index}
    left_to_others = {found.key for found in pending}
    wanted = {Status.NEW, Status.CHANGED, Status.STALE} | ({Status.FAILED} if options.retry_failed else set())
    found: list[tuple[int, PlannedPhoto]] = []
    for listed in sorted(listing, key=lambda listed: listed.key):
        status = status_by_the_rule(listed, done.get(listed.key))
        if status in wanted and listed.key not in left_to_others:
            before = 0 if status == Status.NEW else done[listed.key].attempts
            turn = before if status == Status.FAILED else 0
            found.append((turn, PlannedPhoto(listed.key, listed.size_bytes, listed.etag, before + 1)))
    in_turn = [photo for _, photo in sorted(found, key=lambda each: each[0])]
    return sorted(in_turn[: options.limit], key=lambda photo: photo.key)


@settings(max_examples=40)
@given(listings, indexes, listings, st.booleans(), st.none() | st.integers(0, 5))
def test_a_plan_holds_what_the_rule_says(
    shared_plan: Planner,
    listing: list[SourceObject],
    index: list[PhotoRecord],
    pending: list[SourceObject],
    retry_failed: bool,
    limit: int | None,
) -> None:
    options = replace(OPTIONS, retry_failed=retry_failed, limit=limit)
    shared_plan(pending)

    counts, shards = shared_plan(listing, index, [shared_plan.newest], options)

    assert planned(shards) == plan_by_the_rule(listing, index, pending, options)
    assert counts.planned_photos == len(planned(shards))
    assert counts.planned.size_bytes == sum(photo.size_bytes for photo in planned(shards))
    assert counts.shards == len(shards)
    assert sum(counts.photos.values()) == len(listing)


@settings(max_examples=30)
@given(listings, indexes)
def test_counts_say_how_each_listed_photo_stands(
    shared_plan: Planner, listing: list[SourceObject], index: list[PhotoRecord]
) -> None:
    done = {found.key: found for found in index}

    counts, _ = shared_plan(listing, index)

    statuses = [(status_by_the_rule(listed, done.get(listed.key)), listed.size_bytes) for listed in listing]
    assert counts.photos == Counter(status for status, _ in statuses)
    assert {status: amount.size_bytes for status, amount in counts.amounts.items()} == {
        of: sum(size for status, size in statuses if status == of) for of, _ in statuses
    }


# Shards


@given(st.lists(st.integers(0, 20)), st.integers(1, 5), st.integers(1, 30))
def test_a_shard_is_as_full_as_its_limits_let_it_be(sizes: list[int], max_photos: int, max_bytes: int) -> None:
    ends = shard_ends(np.array(sizes, np.int64), max_photos=max_photos, max_bytes=max_bytes).tolist()

    assert (ends or [0])[-1] == len(sizes)
    shards = [sizes[start:end] for start, end in pairwise([0, *ends])]
    assert all(shards)
    for shard in shards:
        assert len(shard) == 1 or (len(shard) <= max_photos and sum(shard) <= max_bytes)
    for shard, following in pairwise(shards):
        assert len(shard) == max_photos or sum(shard) + following[0] > max_bytes


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.text("abc/é", min_size=1, max_size=4), st.integers(0, 20)), unique_by=lambda item: item[0]),
    st.integers(1, 6),
    st.integers(1, 30),
)
def test_every_planned_photo_is_in_one_shard_of_neighbours(
    shared_plan: Planner, sizes: list[tuple[str, int]], max_photos: int, max_bytes: int
) -> None:
    size = ShardSize(max_photos=max_photos, max_bytes=max_bytes, min_shards=1)

    _, shards = shared_plan(
        [photo(key, size_bytes=size_bytes) for key, size_bytes in sizes], options=replace(OPTIONS, shard_size=size)
    )

    assert planned_keys(shards) == sorted(key for key, _ in sizes)
    assert len({shard.shard for shard in shards}) == len(shards)
    for shard in shards:
        shard_bytes = sum(photo.size_bytes for photo in shard.photos)
        assert len(shard.photos) == 1 or (len(shard.photos) <= max_photos and shard_bytes <= max_bytes)


@pytest.mark.parametrize(
    ("photos", "size", "expected"),
    [
        (1, ShardSize(min_shards=32), [1]),
        (5, ShardSize(min_shards=32), [1] * 5),
        (33, ShardSize(min_shards=32), [1] * 33),
        (64, ShardSize(min_shards=32), [2] * 32),
        (90, ShardSize(max_photos=40, min_shards=2), [40, 40, 10]),
        (5, ShardSize(max_bytes=2500, min_shards=1), [2, 2, 1]),
        (3, ShardSize(max_bytes=10, min_shards=1), [1, 1, 1]),
    ],
)
def test_cuts_small_and_large_archives(plan: Planner, photos: int, size: ShardSize, expected: list[int]) -> None:
    _, shards = plan([photo(f"{number:02}") for number in range(photos)], options=replace(OPTIONS, shard_size=size))

    assert [len(shard.photos) for shard in shards] == expected


def test_huge_photos_among_small_ones_are_shards_of_their_own(plan: Planner) -> None:
    small = [photo(f"small{number:03}", size_bytes=10_000) for number in range(300)]
    huge = [photo(f"huge{number}", size_bytes=70_000_000) for number in range(2)]

    _, shards = plan([*huge, *small])

    assert [len(shard.photos) for shard in shards] == [1, 1] + [9] * 33 + [3]


def test_the_same_work_has_the_same_name_in_any_order_of_listing(plan: Planner) -> None:
    listing = [photo(f"{number}.jpg", size_bytes=number) for number in range(50)]
    index = [row(f"{number}.jpg", weights="w0") for number in range(0, 50, 3)]

    _, first = plan(listing, index)
    _, second = plan(reversed(listing), reversed(index))

    assert first == second


@pytest.mark.parametrize(
    ("listed", "done", "options"),
    [
        (photo("b.jpg"), [], OPTIONS),
        (photo("a.jpg", etag="e2"), [], OPTIONS),
        (photo("a.jpg", size_bytes=1001), [], OPTIONS),
        (photo("a.jpg"), [], replace(OPTIONS, header=replace(HEADER, weights="w2"))),
        (photo("a.jpg"), [], replace(OPTIONS, header=replace(HEADER, parameters="p2"))),
        (photo("a.jpg"), [row("a.jpg", weights="w0")], OPTIONS),
    ],
    ids=["key", "etag", "size", "weights", "parameters", "attempt"],
)
def test_other_work_has_another_name(
    plan: Planner, listed: SourceObject, done: list[PhotoRecord], options: PlanOptions
) -> None:
    _, (first,) = plan([photo("a.jpg")])
    _, (other,) = plan([listed], done, options=options)

    assert first.shard != other.shard


def test_a_name_does_not_depend_on_where_the_photos_lie_or_on_the_run(plan: Planner) -> None:
    _, (first,) = plan([photo("a.jpg")])
    _, (moved,) = plan([photo("a.jpg")], options=replace(OPTIONS, header=replace(HEADER, source="/mnt/photos")))

    assert first.shard == moved.shard
    assert [shard.shard for shard in read_shards(plan.newest, "another run")] == [first.shard]


@pytest.mark.parametrize(
    "forged", ["a 1000 e1 1 b", "a 1000 2 e1 1 b", "a 1000 2 e1 1 1 b", "a\x001000\x00e1\x001\x01b"], ids=ascii
)
def test_a_key_that_spells_the_rows_of_others_is_not_named_like_them(plan: Planner, forged: str) -> None:
    whole = replace(OPTIONS, shard_size=ShardSize(min_shards=1))

    _, (two,) = plan([photo("a"), photo("b")], options=whole)
    _, (one,) = plan([photo(forged)], options=whole)

    assert two.shard != one.shard
