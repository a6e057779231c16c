"""`degrain verify`: every object of an image set is read again, and held against what its index says.

What lies where is compared in DuckDB, out of core; objects are read by the workers of a cluster. Nothing is written to
the set: `repair` makes right what is found. While a run is at work, what it has under way is left out: the photos that
it has planned, and what lies there unfinished.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.check import DIGEST, CheckedCommit, CheckedPhoto, CheckWorkerFactory, findings_table
from pipeline.cluster import ClusterConfig
from pipeline.database import count_rows, in_batches, literal, open_database, scan
from pipeline.errors import ImageSetError, ObjectMissing, ObjectRefused, TargetInUse
from pipeline.imageset import COMMIT_KEY, MANIFEST, OUTPUT_KEY, PACKED_KEY, ImageSet, is_as_published
from pipeline.index import is_sorted, scan_index
from pipeline.lease import refuse_if_leased
from pipeline.listing import write_listing
from pipeline.manifest import Manifest
from pipeline.records import FINDING_SCHEMA, PLAN_SCHEMA, Fault, Finding, Layout, Outcome, PlannedPhoto
from pipeline.redaction import printable
from pipeline.scratch import scratch_folder
from pipeline.storage import Destination, Store, open_store
from pipeline.survey import Seen, survey

BATCH = 10_000  # rows of the index, or findings, that are held at a time
SHOWN = 100  # findings that are told one by one
Report = Callable[[int, int], None]  # of objects that were looked at, and of all that there are


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyJob:
    """What `degrain verify` is asked to do.

    Attributes:
        target: path or URL of an image set.
        findings: path or URL of a Parquet file that is written, with all that was found.
    """

    target: str
    findings: str | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found: `kinds` counts all findings, and `first` are some of them.

    `interrupted` photos are left to be done by runs that did not end: that is no fault. Where it `is_in_use`, a run was
    at work meanwhile, and what it had under way is left out.
    """

    target: str
    objects: int
    bytes_read: int
    seconds: float
    interrupted: int
    is_in_use: bool
    kinds: dict[Fault, int]
    first: tuple[Finding, ...]

    @property
    def findings(self) -> int:
        return sum(self.kinds.values())

    @property
    def summary(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
        read = f"{self.objects:,} objects, {self.bytes_read / 1e6:,.1f} MB in {self.seconds:,.1f} s"
        return f"{read}: {kinds or 'nothing to report'}"

    def as_dict(self) -> dict[str, object]:
        """As `--json` prints it."""
        return {
            "target": self.target,
            "objects": self.objects,
            "bytes_read": self.bytes_read,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "is_in_use": self.is_in_use,
            "findings": self.findings,
            "kinds": {str(kind): count for kind, count in self.kinds.items()},
            "first": [{"kind": each.kind, "key": each.key, "detail": each.detail} for each in self.first],
        }


def format_verdict(verdict: Verdict) -> str:
    """Lines for a terminal."""
    lines = [f"{each.kind:16}  {printable(each.key)}  {printable(each.detail)}" for each in verdict.first]
    if verdict.findings > len(verdict.first):
        lines.append(f"… and {verdict.findings - len(verdict.first):,} more: --findings FILE writes them all")
    lines.append(verdict.summary)
    if verdict.is_in_use:
        lines.append(
            "a run was at work meanwhile, and what it had under way was left out: verify again when it has ended"
        )
    elif verdict.interrupted:
        lines.append(f"a run was interrupted, and has {verdict.interrupted:,} photos to do: run the same command again")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """An image set that was looked at, for as long as the context lasts.

    Attributes:
        database: with the views of `create_views`.
        findings: Parquet files, of all that was found.
        lease: the number of its last claim; None where someone held it.
    """

    image_set: ImageSet
    manifest: Manifest
    database: duckdb.DuckDBPyConnection
    findings: Sequence[Path]
    lease: int | None
    verdict: Verdict


def run_verify(job: VerifyJob, report: Report) -> Verdict:
    """Read every object of an image set, and hold it against the index.

    Raises:
        ValueError: there is no image set.
        DegrainError: it cannot be read.
    """
    destination = None if job.findings is None else Destination.at(job.findings)
    with examined(ImageSet(open_store(job.target)), job.cluster, report) as found:
        if destination is not None:
            write_findings(found, destination)
        return found.verdict


@contextmanager
def examined(image_set: ImageSet, cluster: ClusterConfig, report: Report) -> Iterator[Examined]:
    """What `run_verify` does, with all that a repair needs to know."""
    start = time.monotonic()
    lease, ended = _free_lease(image_set.store), image_set.record_keys()
    with scratch_folder() as folder, open_database(folder) as database:
        files = [folder / "findings.parquet", folder / "findings-of-workers.parquet"]
        with _Notes(files[0]) as notes:
            manifest, parts = _sound_parts(image_set, folder, notes)
            create_views(database, image_set, parts, folder)
            for run in image_set.unfinished_runs():
                with notes.of_damage(Fault.DAMAGED_PLAN, image_set.plan_key(run)):
                    image_set.read_plan(run)
            _check_rows(database, manifest, parts, notes)
            if len(parts) == len(manifest.index):  # or nobody knows what the rows of the others are
                _check_counts(database, manifest, notes)
                notes.add_rows(database.sql(ORPHANS))
                _find_lost_rows(database, image_set, folder, notes)
            notes.add_rows(database.sql(MISSING_COMMITS))
            for run, key in image_set.record_keys().items():
                with notes.of_damage(Fault.DAMAGED_RECORD, key):
                    image_set.read_record(run)
            for left in image_set.list_leftovers():
                notes.add(Finding(Fault.LEFTOVER, left.key, f"an unfinished write of {left.size_bytes:,} bytes"))
        seen = _survey(database, image_set, manifest, cluster, path=files[1], report=report)
        is_in_use = lease is None or _free_lease(image_set.store) != lease
        if is_in_use:
            runs = {*image_set.record_keys(), *image_set.unfinished_runs()}.difference(ended)
            files = [_write_settled(database, files, _plans(image_set, runs, folder), folder)]
        kinds, first = _count(files)
        verdict = Verdict(
            target=image_set.store.url,
            objects=seen.objects,
            bytes_read=seen.bytes_read,
            seconds=round(time.monotonic() - start, 3),
            interrupted=count_rows(database, "FROM pending WHERE NOT is_committed"),
            is_in_use=is_in_use,
            kinds=kinds,
            first=first,
        )
        yield Examined(
            image_set=image_set, manifest=manifest, database=database, findings=files, lease=lease, verdict=verdict
        )


# No row points to them, no run is to come back for them, and they are no packed shard whose photos all changed since.
ORPHANS = f"""
    SELECT '{Fault.ORPHAN}' AS kind, key, 'no row of the index points to it' AS detail FROM payload
    ANTI JOIN photos ON payload.key = photos.output_key
    ANTI JOIN pending ON payload.key = pending.object_key
    ANTI JOIN pending AS packed ON payload.key = packed.shard_key
    ANTI JOIN (SELECT {PACKED_KEY} AS shard_key FROM commits) AS done ON payload.key = done.shard_key
    WHERE NOT regexp_matches(key, '(^|/)[.][^/]*$')
"""

MISSING_COMMITS = f"""
    SELECT '{Fault.MISSING_COMMIT}' AS kind, {COMMIT_KEY} AS key,
        'the index has ' || rows || ' rows of it' AS detail
    FROM shards ANTI JOIN commits USING (shard)
"""


def create_views(
    database: duckdb.DuckDBPyConnection,
    image_set: ImageSet,
    parts: Sequence[Path],
    folder: Path,
) -> None:
    """Make the views `photos` (rows of the index), `shards` (what the index has of each), `payload`, `commits` (what
    lies in the set) and `pending` (what runs that did not end have planned).

    Args:
        parts: local files of the index.
        folder: where other files are written.
    """
    database.execute(f"CREATE VIEW photos AS FROM {scan_index(parts, folder)}")
    database.execute(
        f"CREATE TABLE shards AS SELECT shard, count(*) AS rows, {DIGEST} AS digest FROM photos GROUP BY shard"
    )
    for name, objects in (("payload", image_set.list_payload()), ("commits", image_set.list_commits())):
        path = folder / f"{name}.parquet"
        write_listing(objects, path)
        shard = "regexp_extract(key, '([^/]*)[.]parquet$', 1)"
        database.execute(f"CREATE TABLE {name} AS SELECT *, {shard} AS shard FROM {scan([path])}")
    plans = _plans(image_set, image_set.unfinished_runs(), folder)
    database.execute(
        f"CREATE TABLE pending AS SELECT {OUTPUT_KEY} AS object_key, {PACKED_KEY} AS shard_key, "
        f"shard IN (SELECT shard FROM commits) AS is_committed FROM {scan(plans)}"
    )
    if image_set.ignores_case():  # two folders of one name but for that are one, under the name of the first
        told = "SELECT output_key AS key FROM photos UNION SELECT object_key FROM pending"
        database.execute(
            f"UPDATE payload SET key = told.key FROM ({told}) AS told WHERE lower(payload.key) = lower(told.key)"
        )


class _Notes:
    """Findings on their way into a file, some at a time."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, FINDING_SCHEMA, compression="zstd")
        self._waiting: list[Finding] = []

    def __enter__(self) -> "_Notes":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, finding: Finding) -> None:
        self._waiting.append(finding)
        if len(self._waiting) == BATCH:
            self._flush()

    def add_rows(self, rows: duckdb.DuckDBPyRelation) -> None:
        for batch in in_batches(rows, BATCH):
            self._writer.write_table(batch.cast(FINDING_SCHEMA))

    @contextmanager
    def of_damage(self, kind: Fault, key: str) -> Iterator[None]:
        """An object that cannot be read, or is found to be damaged, inside is a finding."""
        try:
            yield
        except (ImageSetError, ObjectRefused) as error:
            self.add(Finding(kind, key, str(error)))

    def _flush(self) -> None:
        self._writer.write_table(findings_table(self._waiting))
        self._waiting = []


def _free_lease(store: Store) -> int | None:
    """What is another number when someone has held the lease meanwhile; None where someone holds it now."""
    try:
        return refuse_if_leased(store)
    except TargetInUse:
        return None


def _write_settled(
    database: duckdb.DuckDBPyConnection, files: Sequence[Path], plans: Sequence[Path], folder: Path
) -> Path:
    """Those findings that runs with these plans cannot have under way: a repair moves shards that it makes anew."""
    path = folder / "settled-findings.parquet"
    database.execute(
        f"""
        COPY (
            FROM {scan(files)} ANTI JOIN (
                SELECT unnest([key, {OUTPUT_KEY}, {PACKED_KEY}]) AS key FROM {scan(plans)}
                UNION ALL SELECT output_key AS key FROM photos GROUP BY output_key
                HAVING bool_and(photos.key IN (SELECT key FROM {scan(plans)}))
            ) USING (key) WHERE kind NOT IN ('{Fault.LEFTOVER}', '{Fault.STRAY_PART}')
        ) TO {literal(str(path))}
        """
    )
    return path


def _sound_parts(image_set: ImageSet, folder: Path, notes: _Notes) -> tuple[Manifest, list[Path]]:
    """The manifest, and the parts of its index that are as they were published, as local files.

    Raises:
        ValueError: there is no image set.
    """
    manifest, reasons = image_set.read_index(partial(_fetch_part, image_set, folder))
    if manifest is None:
        raise ValueError(f"there is no image set at {image_set.store.url}")
    paths = []
    for number, (key, reason) in enumerate(zip(manifest.index, reasons, strict=True)):
        if reason is None:
            paths.append(_part_path(folder, number))
        else:
            notes.add(Finding(Fault.DAMAGED_PART, key, reason))
    for listed in image_set.list_parts():
        if listed.key not in manifest.index and not listed.key.rpartition("/")[2].startswith("."):
            notes.add(Finding(Fault.STRAY_PART, listed.key, "the manifest does not name it"))
    return manifest, paths


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.parquet"


def _fetch_part(image_set: ImageSet, folder: Path, number: int, key: str) -> str | None:
    """Copy a part of the index to the folder; why it is not as it was published, or None.

    Raises:
        ObjectMissing: it is there no longer, as the index is another one by now.
    """
    try:
        data = image_set.store.read(key)
    except ObjectRefused as error:
        now = image_set.read_manifest() if isinstance(error, ObjectMissing) else None
        if now is not None and key not in now.index:
            raise
        return str(error)
    if not is_as_published(key, data):
        return "its bytes are not those that its name tells of"
    _part_path(folder, number).write_bytes(data)
    return None


def _plans(image_set: ImageSet, runs: Iterable[str], folder: Path) -> list[Path]:
    """The plans of runs as local files, one without photos among them."""
    paths = [folder / "no-plan.parquet"]
    pq.write_table(PLAN_SCHEMA.empty_table(), paths[0])
    for run in runs:
        with suppress(ImageSetError, ObjectRefused):
            path = folder / f"plan-{run}.parquet"
            path.write_bytes(image_set.read_plan(run))
            paths.append(path)
    return paths


def _find_lost_rows(database: duckdb.DuckDBPyConnection, image_set: ImageSet, folder: Path, notes: _Notes) -> None:
    """Whether every photo that a finished run had planned has a row."""
    path = folder / "finished.parquet"
    for run in image_set.record_keys():
        with suppress(ImageSetError, ObjectRefused):
            if "settings" not in image_set.read_record(run):  # it was superseded, and never finished
                continue
        with notes.of_damage(Fault.DAMAGED_PLAN, image_set.plan_key(run)), suppress(ObjectMissing):
            path.write_bytes(image_set.read_plan(run))
            detail = literal(f"{image_set.plan_key(run)} holds it, and it has no row")
            notes.add_rows(
                database.sql(
                    f"SELECT '{Fault.MISSING_ROW}' AS kind, key, {detail} AS detail "
                    f"FROM {scan([path])} ANTI JOIN photos USING (key)"
                )
            )


def _check_rows(database: duckdb.DuckDBPyConnection, manifest: Manifest, parts: Sequence[Path], notes: _Notes) -> None:
    """Whether every key has one row, and each row tells of itself what is possible."""
    expected = OUTPUT_KEY if manifest.layout == Layout.FILES else PACKED_KEY
    outcomes = ", ".join(f"'{outcome}'" for outcome in Outcome)
    notes.add_rows(
        database.sql(
            f"""
            SELECT '{Fault.WRONG_ROW}' AS kind, key, detail FROM (
                SELECT key, CASE
                    WHEN key = '' THEN 'it has no key'
                    WHEN outcome NOT IN ({outcomes}) THEN 'its outcome is ' || outcome
                    WHEN outcome IN ('{Outcome.REJECTED}', '{Outcome.SKIPPED}') THEN
                        if(output_key IS NULL, NULL, 'it is ' || outcome || ', and points to ' || output_key)
                    WHEN output_key IS NULL OR output_size_bytes IS NULL OR output_sha256 IS NULL THEN
                        'it is ' || outcome || ', and does not say what its object is'
                    WHEN output_key <> {expected} THEN 'it points to ' || output_key
                    WHEN outcome = '{Outcome.UNTOUCHED}' AND output_sha256 IS DISTINCT FROM source_sha256 THEN
                        'it is untouched, and its bytes are others than those of the source'
                    END AS detail
                FROM photos
            ) WHERE detail IS NOT NULL
            """
        )
    )
    if not is_sorted(parts):
        notes.add_rows(
            database.sql(
                f"SELECT '{Fault.DUPLICATE_ROW}' AS kind, key, count(*) || ' rows have this key' AS detail "
                "FROM photos GROUP BY key HAVING count(*) > 1 ORDER BY key"
            )
        )


def _check_counts(database: duckdb.DuckDBPyConnection, manifest: Manifest, notes: _Notes) -> None:
    counted = dict(database.sql("SELECT outcome, count(*) FROM photos GROUP BY outcome").fetchall())
    for outcome in sorted({*counted, *map(str, manifest.counts)}):
        told = manifest.counts.get(outcome, 0)
        if told != counted.get(outcome, 0):
            detail = f"it tells of {told:,} {outcome} photos, and the index has {counted.get(outcome, 0):,}"
            notes.add(Finding(Fault.WRONG_COUNTS, MANIFEST, detail))


def _survey(
    database: duckdb.DuckDBPyConnection,
    image_set: ImageSet,
    manifest: Manifest,
    cluster: ClusterConfig,
    *,
    path: Path,
    report: Report,
) -> Seen:
    known = "output_key IS NOT NULL AND output_size_bytes IS NOT NULL AND output_sha256 IS NOT NULL AND key <> ''"
    total = count_rows(database, f"FROM photos WHERE {known}") + count_rows(database, "FROM commits")

    def everything() -> Iterator[PlannedPhoto]:
        is_packed = manifest.layout == Layout.PACKED
        place = "output_key" if is_packed else "NULL"
        photos = f"""
            SELECT key, output_size_bytes AS size_bytes, output_sha256 AS etag, attempts AS attempt, {place} AS place,
                output_width_px AS width_px, output_height_px AS height_px,
                output_sha256 IS NOT DISTINCT FROM source_sha256 AS is_copy
            FROM photos WHERE {known} ORDER BY {"output_key, key" if is_packed else "key"}
            """
        for batch in in_batches(database.sql(photos), BATCH):
            yield from (CheckedPhoto(**row) for row in batch.to_pylist())
        commits = """
            SELECT key, size_bytes, etag, 1 AS attempt, NULL AS place,
                coalesce(rows, 0) AS rows, coalesce(digest, 0) AS digest
            FROM commits LEFT JOIN shards USING (shard) ORDER BY key
            """
        for batch in in_batches(database.sql(commits), BATCH):
            yield from (CheckedCommit(**row) for row in batch.to_pylist())

    factory = CheckWorkerFactory(target=image_set.store.url)
    return survey(
        everything(), factory, cluster, path=path, schema=FINDING_SCHEMA, report=lambda seen: report(seen, total)
    )


def _count(files: Sequence[Path]) -> tuple[dict[Fault, int], tuple[Finding, ...]]:
    """How many findings there are of each kind, and the first of them."""
    kinds, first = Counter[Fault](), list[Finding]()
    for batch in _batches(files):
        kinds.update(Fault(kind) for kind in batch["kind"].to_pylist())
        some = batch.slice(0, SHOWN - len(first))
        first += [Finding(Fault(row["kind"]), row["key"], row["detail"]) for row in some.to_pylist()]
    return dict(sorted(kinds.items())), tuple(first)


def write_findings(found: Examined, destination: Destination) -> None:
    """All of them as one Parquet file; without rows where there are none."""
    path = found.findings[0].with_name("all-findings.parquet")
    with pq.ParquetWriter(path, FINDING_SCHEMA, compression="zstd") as writer:
        for batch in _batches(found.findings):
            writer.write_batch(batch)
    destination.write(path.read_bytes(), found=found.verdict.summary)


def _batches(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for path in files:
        yield from pq.ParquetFile(path).iter_batches(BATCH)
