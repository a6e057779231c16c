"""`degrain diff`: how two image sets of the same photos differ, such as those of two runs or of two weights.

Rows are compared in DuckDB, out of core; photos whose bytes differ are decoded by the workers of a cluster.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.metrics import psnr_db
from pipeline.check import COPIES, IN_MEMORY_BYTES
from pipeline.cluster import ClusterConfig
from pipeline.database import count_rows, in_batches, literal, open_database, scan
from pipeline.errors import ObjectRefused, PhotoRejected
from pipeline.images import NO_LIMITS, Header, decode, inspect
from pipeline.imageset import ImageSet
from pipeline.index import scan_index
from pipeline.packed import promise_of
from pipeline.records import DIFFERENCE_SCHEMA, Layout, PlannedPhoto, ShardPlan
from pipeline.redaction import printable
from pipeline.room import Room
from pipeline.scratch import scratch_folder
from pipeline.shard import PHOTO_BYTES
from pipeline.sources import photos_of, read_photos
from pipeline.storage import Destination, open_store
from pipeline.subset import sample_condition
from pipeline.survey import Surveyor, survey

BATCH = 10_000  # pairs that are held at a time
MOST_DIFFERENT = 10  # photos that are told one by one
NOTES = 20  # reasons why photos are not comparable that are told one by one
SIDES = ("a", "b")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffJob:
    """What `degrain diff` is asked to do.

    Attributes:
        target_a, target_b: paths or URLs of two image sets.
        sample: share of the photos that are decoded, the same ones each time; None for all.
        rows: path or URL of a Parquet file that is written, with a row for each photo that both have.
    """

    target_a: str
    target_b: str
    sample: float | None = None
    rows: str | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 < self.sample <= 1:
            raise ValueError(f"sample is {self.sample}: expected a share, greater than 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the sets: all its photos, those that the other has not, and medians over what both have denoised."""

    target: str
    photos: int
    only_here: int
    output_bytes: int
    noise_sigma_after: float | None
    change_psnr_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How the sets differ in the photos that both have.

    Attributes:
        same_bytes: photos whose results are the same, byte for byte.
        other_source: photos that were not the same before, either.
        outcomes: photos that ended otherwise, by outcome in the one and in the other set.
        compared: results that were decoded and compared, and of them `incomparable` and those with the `same_pixels`.
        psnr_db: of one result against the other: the lowest, the median and the highest of those that differ.
        most_different: those with the lowest PSNR, with what the index says of them.
    """

    a: Side
    b: Side
    both: int
    same_bytes: int
    other_source: int
    outcomes: dict[tuple[str, str], int]
    compared: int
    same_pixels: int
    incomparable: dict[str, int]
    psnr_db: tuple[float, float, float] | None
    most_different: tuple[dict[str, Any], ...]  # Any: the columns of both indexes
    seconds: float

    @property
    def summary(self) -> str:
        return (
            f"{self.both:,} photos in both: {self.same_bytes:,} with the same bytes; "
            f"{self.compared:,} others compared, {self.same_pixels:,} of them with the same pixels"
        )

    def as_dict(self) -> dict[str, Any]:  # Any: JSON
        """As `--json` prints it."""
        names = ("both", "same_bytes", "other_source", "compared", "same_pixels", "incomparable", "seconds")
        psnr = None if self.psnr_db is None else dict(zip(("lowest", "median", "highest"), self.psnr_db, strict=True))
        return {
            **{
                name: {key: getattr(side, key) for key in Side.__slots__}
                for name, side in (("a", self.a), ("b", self.b))
            },
            **{name: getattr(self, name) for name in names},
            "outcomes": [{"a": a, "b": b, "photos": count} for (a, b), count in self.outcomes.items()],
            "psnr_db": psnr,
            "most_different": list(self.most_different),
        }


def run_diff(job: DiffJob, report: Callable[[int, int], None]) -> Difference:
    """Compare two image sets.

    Args:
        job: which ones.
        report: called with the number of photos that were decoded and compared, and that of all that will be.

    Raises:
        ValueError: there is no image set.
        DegrainError: it cannot be read.
    """
    start = time.monotonic()
    destination = None if job.rows is None else Destination.at(job.rows)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        database = stack.enter_context(open_database(folder))
        layouts = [
            _open_side(database, target, side, folder, stack)
            for target, side in zip((job.target_a, job.target_b), SIDES, strict=True)
        ]
        database.execute(_PAIRS)
        chosen = "output_sha256_a IS NOT NULL AND output_sha256_b IS NOT NULL AND output_sha256_a <> output_sha256_b"
        if job.sample is not None:
            chosen += f" AND {sample_condition(job.sample)}"
        found = folder / "differences.parquet"
        total = count_rows(database, f"FROM pairs WHERE {chosen}")
        survey(
            _photos(database, chosen, layouts),
            DiffWorkerFactory(target_a=job.target_a, target_b=job.target_b),
            job.cluster,
            path=found,
            schema=DIFFERENCE_SCHEMA,
            report=lambda done: report(done, total),
        )
        database.execute(f"CREATE VIEW differences AS FROM {scan([found])}")
        difference = _summary(database, job, time.monotonic() - start)
        if destination is not None:
            _export(database, folder / "rows.parquet", destination, difference)
        return difference


def format_difference(difference: Difference) -> str:
    """Lines for a terminal."""

    def level(value: float | None) -> str:
        return "–" if value is None else f"{value:,.2f}"

    a, b = difference.a, difference.b
    lines = [
        f"{'':24}{'A':>16}{'B':>16}",
        f"{'photos':24}{a.photos:>16,}{b.photos:>16,}",
        f"{'only there':24}{a.only_here:>16,}{b.only_here:>16,}",
        f"{'bytes of the results':24}{a.output_bytes:>16,}{b.output_bytes:>16,}",
        f"{'noise after, median':24}{level(a.noise_sigma_after):>16}{level(b.noise_sigma_after):>16}",
        f"{'change in dB, median':24}{level(a.change_psnr_db):>16}{level(b.change_psnr_db):>16}",
        "",
        difference.summary,
    ]
    if difference.other_source:
        lines.append(f"{difference.other_source:,} photos had another source")
    lines += [f"{count:,} photos {one} in A and {other} in B" for (one, other), count in difference.outcomes.items()]
    lines += [f"{count:,} not comparable: {printable(note)}" for note, count in difference.incomparable.items()]
    if difference.psnr_db is not None:
        lowest, median, highest = difference.psnr_db
        lines += [
            f"PSNR of A against B: {lowest:.2f} dB at the lowest, {median:.2f} median, {highest:.2f} highest",
            "",
            f"{'most different: dB':>18}{'noise A':>9}{'B':>7}{'change A':>10}{'B':>7}  key",
        ]
        lines += [
            f"{row['psnr_db']:>18.2f}{level(row['noise_sigma_after_a']):>9}{level(row['noise_sigma_after_b']):>7}"
            f"{level(row['change_psnr_db_a']):>10}{level(row['change_psnr_db_b']):>7}  {printable(row['key'])}"
            for row in difference.most_different
        ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPhoto(PlannedPhoto):
    """A photo of both sets: as a `PlannedPhoto` of the first one, and how it is found in the second."""

    size_bytes_b: int
    etag_b: str
    place_b: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffWorkerFactory:
    """All that a worker needs to compare photos: travels to its process, and is called there."""

    target_a: str
    target_b: str

    def __call__(self, _threads: int) -> "DiffWorker":  # the codecs take what they need
        return DiffWorker(self.target_a, self.target_b)


class DiffWorker(Surveyor):
    """Compares the results of two sets."""

    def __init__(self, target_a: str, target_b: str) -> None:
        super().__init__()
        self._a, self._b = (photos_of(open_store(target)).store for target in (target_a, target_b))
        self._room = Room(PHOTO_BYTES)

    def find(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> pa.Table:
        rows: list[dict[str, object]] = [{"key": key, "note": reason} for key, reason in poisonous.items()]
        photos = [photo for photo in plan.photos if isinstance(photo, ComparedPhoto) and photo.key not in poisonous]
        rows += [{"key": photo.key, "note": TOO_LARGE} for photo in photos if _is_large(photo)]
        photos = [photo for photo in photos if not _is_large(photo)]
        others = [PlannedPhoto(each.key, each.size_bytes_b, each.etag_b, 1, each.place_b) for each in photos]
        for (photo, a), (_, b) in zip(read_photos(self._a, photos), read_photos(self._b, others), strict=True):
            assert isinstance(photo, ComparedPhoto)  # `read_photos` gives back what it was asked for
            with self.looking_at(plan, photo.key, "compare"):
                psnr, note = self._compare(photo, a, b)
            rows.append({"key": photo.key, "psnr_db": psnr, "note": note})
        return pa.Table.from_pylist(rows, schema=DIFFERENCE_SCHEMA)

    def _compare(
        self, photo: ComparedPhoto, a: bytes | ObjectRefused, b: bytes | ObjectRefused
    ) -> tuple[float | None, str | None]:
        """The PSNR of one result against the other; or None, and why there is none."""
        sides = ((a, photo.etag), (b, photo.etag_b))
        try:
            (one, header), (other, other_header) = (_inspected(photo.key, *side) for side in sides)
            size_bytes = COPIES * (header.decoded_bytes + other_header.decoded_bytes)
            if size_bytes > PHOTO_BYTES:
                return None, TOO_LARGE
            with self._room.taken(size_bytes):
                return _psnr(decode(one, header).colour, decode(other, other_header).colour)
        except ObjectRefused:
            return None, UNREADABLE
        except (PhotoRejected, ValueError, MemoryError) as error:
            return None, str(error) or type(error).__name__


def _is_large(photo: ComparedPhoto) -> bool:
    return max(photo.size_bytes, photo.size_bytes_b) > IN_MEMORY_BYTES


def _inspected(key: str, data: bytes | ObjectRefused, etag: str) -> tuple[bytes, Header]:
    if isinstance(data, ObjectRefused):
        raise data
    if sha256(data).hexdigest() != etag:
        raise PhotoRejected("it is not as its row says (see: degrain verify)")
    return data, inspect(data, name=promise_of(key, data), limits=NO_LIMITS)


def _psnr(one: NDArray[Any], other: NDArray[Any]) -> tuple[float | None, str | None]:  # Any: uint8 or uint16
    if one.shape[:2] != other.shape[:2]:
        return None, "one has another size than the other"
    if one.dtype != other.dtype:
        return None, "one has another bit depth than the other"
    if one.shape != other.shape:
        return None, "one is gray, and the other in colour"
    found = psnr_db(one, other, peak=float(np.iinfo(one.dtype).max))
    return (None, SAME) if math.isinf(found) else (found, None)


SAME, TOO_LARGE = "the same pixels", "it is too large to be decoded for a comparison"
UNREADABLE = "one of the two cannot be read (see: degrain verify)"
OTHER_NOTES = "for other reasons, which --rows FILE writes"

_OF_BOTH = ("outcome", "output_sha256", "output_size_bytes", "output_key", "noise_sigma_after", "change_psnr_db")
_SELECTED = ", ".join(f"{side}.{name} AS {name}_{side}" for name in _OF_BOTH for side in SIDES)
_PAIRS = f"""
    CREATE VIEW pairs AS
    SELECT a.key, {_SELECTED}, a.source_sha256 IS DISTINCT FROM b.source_sha256 AS is_other_source
    FROM a JOIN b USING (key)
"""


def _open_side(database: duckdb.DuckDBPyConnection, target: str, side: str, folder: Path, stack: ExitStack) -> Layout:
    """Make the view of one set's rows."""
    image_set = ImageSet(open_store(target))
    manifest = image_set.read_manifest()
    if manifest is None:
        raise ValueError(f"there is no image set at {image_set.store.url}")
    parts = stack.enter_context(image_set.local_index())
    database.execute(f"CREATE VIEW {side} AS FROM {scan_index(parts, folder)}")
    return manifest.layout


def _photos(database: duckdb.DuckDBPyConnection, chosen: str, layouts: list[Layout]) -> Iterator[ComparedPhoto]:
    places = [
        f"output_key_{side}" if layout == Layout.PACKED else "NULL" for side, layout in zip(SIDES, layouts, strict=True)
    ]
    rows = database.sql(
        f"""
        SELECT key, output_size_bytes_a AS size_bytes, output_sha256_a AS etag, 1 AS attempt, {places[0]} AS place,
            output_size_bytes_b AS size_bytes_b, output_sha256_b AS etag_b, {places[1]} AS place_b
        FROM pairs WHERE {chosen} ORDER BY place, key
        """
    )
    for batch in in_batches(rows, BATCH):
        yield from (ComparedPhoto(**row) for row in batch.to_pylist())


def _summary(database: duckdb.DuckDBPyConnection, job: DiffJob, seconds: float) -> Difference:
    both, same_bytes, other_source = database.sql(
        "SELECT count(*), count(*) FILTER (output_sha256_a = output_sha256_b), count(*) FILTER (is_other_source) "
        "FROM pairs"
    ).fetchall()[0]
    outcomes = database.sql(
        "SELECT outcome_a, outcome_b, count(*) FROM pairs WHERE outcome_a <> outcome_b "
        "GROUP BY ALL ORDER BY 3 DESC, 1, 2"
    ).fetchall()
    lowest, median, highest = database.sql(
        "SELECT min(psnr_db), approx_quantile(psnr_db, 0.5), max(psnr_db) FROM differences"
    ).fetchall()[0]
    most = database.sql(
        "SELECT key, psnr_db, noise_sigma_after_a, noise_sigma_after_b, change_psnr_db_a, change_psnr_db_b, "
        "output_size_bytes_a, output_size_bytes_b FROM pairs JOIN differences USING (key) WHERE psnr_db IS NOT NULL "
        f"ORDER BY psnr_db, key LIMIT {MOST_DIFFERENT}"
    )
    sides = [_side(database, target, *names) for target, names in ((job.target_a, SIDES), (job.target_b, SIDES[::-1]))]
    return Difference(
        a=sides[0],
        b=sides[1],
        both=both,
        same_bytes=same_bytes,
        other_source=other_source,
        outcomes={(a, b): count for a, b, count in outcomes},
        compared=count_rows(database, "FROM differences"),
        same_pixels=count_rows(database, f"FROM differences WHERE note = {literal(SAME)}"),
        incomparable=_incomparable(database),
        psnr_db=None if lowest is None else (lowest, median, highest),
        most_different=tuple(most.to_arrow_table().to_pylist()),
        seconds=round(seconds, 3),
    )


def _incomparable(database: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Photos that are not comparable, by reason; of a damaged set, nearly every photo may have one of its own."""
    others = f"FROM differences WHERE note <> {literal(SAME)}"
    notes = dict(
        database.sql(
            f"SELECT note, count(*) {others} GROUP BY note ORDER BY count(*) DESC, note LIMIT {NOTES}"
        ).fetchall()
    )
    left = count_rows(database, others) - sum(notes.values())
    return {**notes, OTHER_NOTES: left} if left else notes


def _side(database: duckdb.DuckDBPyConnection, target: str, here: str, there: str) -> Side:
    photos, output_bytes = database.sql(f"SELECT count(*), coalesce(sum(output_size_bytes), 0) FROM {here}").fetchall()[
        0
    ]
    noise, change = database.sql(
        f"SELECT approx_quantile(noise_sigma_after_{here}, 0.5), approx_quantile(change_psnr_db_{here}, 0.5) "
        "FROM pairs WHERE outcome_a = 'denoised' AND outcome_b = 'denoised'"
    ).fetchall()[0]
    return Side(
        target=target,
        photos=photos,
        only_here=count_rows(database, f"FROM {here} ANTI JOIN {there} USING (key)"),
        output_bytes=int(output_bytes),
        noise_sigma_after=noise,
        change_psnr_db=change,
    )


def _export(database: duckdb.DuckDBPyConnection, path: Path, destination: Destination, difference: Difference) -> None:
    database.execute(
        f"COPY (SELECT pairs.*, psnr_db, note FROM pairs LEFT JOIN differences USING (key) ORDER BY key) "
        f"TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)"
    )
    destination.write(path.read_bytes(), found=difference.summary)
