"""`degrain verify --repair`: what is wrong in an image set is made again from its source, by the engine that made it.

Nothing that can be read is deleted or overwritten: what no row points to, or is damaged, is moved into the folder
`removed` of the set. First the index and the commits are made right by each other, then photos are processed again,
with the settings and the weights that the record of their run tells; then all is verified anew.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster import ClusterConfig
from pipeline.database import in_batches, literal, open_database, scan
from pipeline.errors import ImageSetError, ObjectMissing, ObjectRefused, TargetInUse
from pipeline.imageset import COMMIT_KEY, OUTPUT_KEY, ImageSet
from pipeline.ingest import IngestJob, ingest_work
from pipeline.jobs import DenoiseJob, denoise_work
from pipeline.lease import refuse_if_leased
from pipeline.packed import PackedReader
from pipeline.plan_file import read_command, read_shard_sizes
from pipeline.records import DUPLICATE_OF, Fault, Layout, Outcome, index_rows
from pipeline.registry import FOLDER, read_weights, split_reference
from pipeline.run import do_work
from pipeline.scratch import scratch_folder
from pipeline.sources import photos_of
from pipeline.storage import Destination, open_store, split_url
from pipeline.strict import build
from pipeline.verify import (
    BATCH,
    ORPHANS,
    SHOWN,
    Examined,
    Report,
    Verdict,
    VerifyJob,
    create_views,
    examined,
    run_verify,
    write_findings,
)
from pipeline.work import Progress, Work

log = logging.getLogger(__name__)

COMMAND = "degrain verify --repair"

OF_PHOTOS = (
    Fault.MISSING,
    Fault.WRONG_SIZE,
    Fault.WRONG_BYTES,
    Fault.UNREADABLE,
    Fault.UNDECODABLE,
    Fault.WRONG_DIMENSIONS,
    Fault.WRONG_ROW,
)
OF_SHARDS = (Fault.MISSING_SHARD, Fault.DAMAGED_SHARD)
OF_COMMITS = (Fault.MISSING_COMMIT, Fault.DAMAGED_COMMIT)
OF_THE_INDEX = (Fault.DAMAGED_PART, Fault.DUPLICATE_ROW, Fault.DAMAGED_PLAN)
OF_RUNS = (Fault.DAMAGED_PLAN, Fault.DAMAGED_RECORD)

# Of the settings of a run: where its photos are listed, and what becomes of them; not which of them (the last of some
# runs with one recipe may have filtered by something else), how many, or by which machines.
WHAT_DECIDES = {"weights", "layout", "key_table", "denoise", "ingest"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairJob:
    """What `degrain verify --repair` is asked to do.

    Attributes:
        verify: which set.
        weights: name, path or URL of the weights that made it, where they are no longer where they were.
    """

    verify: VerifyJob
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What was found, what was done about it, and what is left to be found.

    Of the photos that were `processed`, those had a result before that are `rejected` now.
    """

    before: Verdict
    after: Verdict
    processed: int
    rejected: int
    moved: int

    def as_dict(self) -> dict[str, object]:
        """As `--json` prints it: what is left, and beside it what was there and what was done."""
        done = {name: getattr(self, name) for name in ("processed", "rejected", "moved")}
        return {**self.after.as_dict(), "findings_before": self.before.findings, **done}


def run_repair(job: RepairJob, report: Report, report_run: Callable[[Progress], None]) -> Repaired:
    """Verify an image set, make right what is wrong, and verify it again.

    Raises:
        ValueError: there is no image set, or the weights that made it are not to be found; or a run of it was
            interrupted, which must end first.
        TargetInUse: a run is at work on it, or was while it was verified.
        DegrainError: the repair had to stop; what is done stays, and the same call does the rest.
    """
    image_set = ImageSet(open_store(job.verify.target))
    image_set.refuse_if_in_use()
    destination = None if job.verify.findings is None else Destination.at(job.verify.findings)
    cluster = job.verify.cluster
    with examined(image_set, cluster, report) as found:
        before = found.verdict
        if not before.findings and not _killed_repairs(image_set):
            if destination is not None:
                write_findings(found, destination)
            return Repaired(before=before, after=before, processed=0, rejected=0, moved=0)
        aside = _Aside(image_set)
        with _unchanged(found, cluster):
            _repair_commits(found, aside)
            has_new_rows = _repair_index(found, aside)
            aside.move(_keys(found, OF_RUNS))
            has_new_rows |= _close_killed_repairs(image_set)
            if not has_new_rows:
                processed, rejected = _repair_photos(job, found, aside, report_run)
    if has_new_rows:  # nobody has looked at their photos
        with examined(image_set, cluster, report) as found, _unchanged(found, cluster):
            aside.move(_keys(found, OF_RUNS))  # plans of ended runs are looked at where the index is sound
            processed, rejected = _repair_photos(job, found, aside, report_run)
    after = aside.explained(run_verify(job.verify, report))
    return Repaired(before=before, after=after, processed=processed, rejected=rejected, moved=aside.moved)


@contextmanager
def _unchanged(found: Examined, cluster: ClusterConfig) -> Iterator[None]:
    """Hold the lease of a set in which nobody has written since it was looked at: what was found then is true now."""
    url = found.image_set.store.url
    if refuse_if_leased(found.image_set.store) != found.lease:
        raise TargetInUse(f"a run was at work on {url} while it was verified, and may have changed it: repair it again")
    with found.image_set.leased(COMMAND, is_outlived=cluster.outlives_us):
        yield


class _Aside:
    """Moves objects of a set out of the way, counts them, and remembers why others could not be made right."""

    def __init__(self, image_set: ImageSet) -> None:
        self.moved = 0
        self._set = image_set
        self._refused: dict[str, str] = {}

    def move(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self.remembering(key), suppress(ObjectMissing):
                self._set.set_aside(key)
                self.moved += 1

    @contextmanager
    def remembering(self, key: str) -> Iterator[None]:
        """Where the set refuses to move or to write an object inside, that stays as it is, and stops nothing else."""
        try:
            yield
        except ObjectRefused as error:
            if len(self._refused) < SHOWN:
                self._refused[key] = str(error)

    def explained(self, verdict: Verdict) -> Verdict:
        """The verdict, where what could not be made right is told with the reason."""
        first = [
            dataclasses.replace(each, detail=f"{each.detail}, and it cannot be made right: {self._refused[each.key]}")
            if each.key in self._refused
            else each
            for each in verdict.first
        ]
        return dataclasses.replace(verdict, first=tuple(first))


def _keys(found: Examined, kinds: Sequence[Fault]) -> Iterator[str]:
    """Of the findings of these kinds. Read lazily: nothing else may be asked of the database meanwhile."""
    for batch in in_batches(found.database.sql(f"SELECT key {_of(found, kinds)} ORDER BY key"), BATCH):
        yield from batch["key"].to_pylist()


def _of(found: Examined, kinds: Sequence[Fault]) -> str:
    """SQL from FROM on: the findings of these kinds."""
    names = ", ".join(literal(kind) for kind in kinds)
    return f"FROM {scan(found.findings)} WHERE kind IN ({names})"


def _repair_commits(found: Examined, aside: _Aside) -> None:
    """Move those that are damaged, and write them and those that are lost again, from what the index knows of them."""
    image_set = found.image_set
    aside.move(_keys(found, [Fault.DAMAGED_COMMIT]))
    rows = found.database.sql(
        f"SELECT * REPLACE (NULL AS {DUPLICATE_OF}) FROM photos WHERE {COMMIT_KEY} IN "
        f"(SELECT key {_of(found, OF_COMMITS)}) ORDER BY shard, key"
    )
    for shard, of_shard in _by_shard(rows):
        with aside.remembering(image_set.commit_key(shard)):
            image_set.restore_commit(shard, of_shard)


def _by_shard(rows: duckdb.DuckDBPyRelation) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each shard, as they come sorted by it."""
    waiting: list[pa.Table] = []
    name: str | None = None
    for batch in in_batches(rows, BATCH):
        shards = batch["shard"].to_pylist()
        start = 0
        for shard, members in groupby(shards):
            end = start + sum(1 for _ in members)
            if shard != name and name is not None:
                yield name, pa.concat_tables(waiting)
                waiting = []
            name = shard
            waiting.append(index_rows(batch.slice(start, end - start)))
            start = end
    if name is not None:
        yield name, pa.concat_tables(waiting)


def _repair_index(found: Examined, aside: _Aside) -> bool:
    """Make the index anew out of all commits, where it is damaged; returns whether it was. Move parts that are no good.

    By now every row of the sound parts has its commit.
    """
    image_set = found.image_set
    is_rebuilt = any(kind in found.verdict.kinds for kind in OF_THE_INDEX)
    aside.move(_keys(found, [Fault.DAMAGED_PART, Fault.STRAY_PART]))
    if is_rebuilt:
        image_set.publish(found.manifest.run or "repair", sorted(image_set.committed_shards()), is_rebuilt=True)
    elif Fault.WRONG_COUNTS in found.verdict.kinds:
        image_set.publish(found.manifest.run, [])
    return is_rebuilt


def _killed_repairs(image_set: ImageSet) -> dict[str, list[str]]:
    """The runs of repairs that never ended, with the names of their shards."""
    found: dict[str, list[str]] = {}
    with scratch_folder() as folder:
        plan = folder / "plan.parquet"
        for run in image_set.unfinished_runs():
            with suppress(ImageSetError, ObjectRefused):
                plan.write_bytes(image_set.read_plan(run))
                if read_command(plan) == COMMAND:
                    found[run] = list(read_shard_sizes(plan))
    return found


def _close_killed_repairs(image_set: ImageSet) -> bool:
    """End their runs, with what they have committed: what they left to do is found again. Whether there were any."""
    killed = _killed_repairs(image_set)
    committed = image_set.committed_shards() if killed else set()
    for run, shards in killed.items():
        image_set.publish(run, [shard for shard in shards if shard in committed])
        image_set.end_run(run, {"ended": "killed, and done again by another repair"})
    return bool(killed)


def _repair_photos(
    job: RepairJob, found: Examined, aside: _Aside, report: Callable[[Progress], None]
) -> tuple[int, int]:
    """Process again what is wrong; returns how many photos, and how many of them had a result and are rejected now."""
    database = found.database
    # A packed shard with one bad photo in it is made anew as a whole: there are readers that know nothing of the index.
    # But its sound photos stay where they are if their sources have changed since.
    database.execute(
        f"""
        CREATE TEMP TABLE bad_shards AS
            SELECT output_key AS place FROM photos SEMI JOIN (SELECT key {_of(found, OF_PHOTOS)}) USING (key)
            WHERE output_key LIKE 'shards/%'
            UNION SELECT key {_of(found, OF_SHARDS)};
        CREATE TEMP TABLE wrong AS
            SELECT key, attempts AS attempt, weights, parameters, outcome <> '{Outcome.REJECTED}' AS had_result,
                if(key IN (SELECT key {_of(found, OF_PHOTOS)})
                    OR output_key IN (SELECT key {_of(found, [Fault.MISSING_SHARD])}), NULL, source_etag) AS sound_etag
            FROM photos WHERE key IN (SELECT key {_of(found, OF_PHOTOS)})
                OR output_key IN (SELECT place FROM bad_shards);
        """
    )
    works = _works(job, found)
    if works and found.verdict.interrupted:
        raise ValueError(
            f"a run of {found.image_set.store.url} was interrupted, and has {found.verdict.interrupted:,} photos to "
            "do: run the same command again, and then repair"
        )
    processed = sum(_process(found, aside, recipe, work, report) for recipe, work in works.items())
    rows = "CREATE TEMP TABLE now AS SELECT key, outcome, output_key AS place"
    with found.image_set.local_index() as parts:
        database.execute(f"{rows} FROM {scan(parts)}" if parts else f"{rows} FROM photos WHERE false")
    lost = f"FROM wrong JOIN now USING (key) WHERE had_result AND outcome = '{Outcome.REJECTED}'"
    ((rejected,),) = database.sql(f"SELECT count(DISTINCT key) {lost}").fetchall()
    unused = database.sql("SELECT place FROM bad_shards ANTI JOIN now USING (place) ORDER BY place").fetchall()
    aside.move(place for (place,) in unused)
    _set_orphans_aside(found.image_set, aside)
    return processed, rejected


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Content hashes of what makes a photo."""

    weights: str
    parameters: str


def _works(job: RepairJob, found: Examined) -> dict[_Recipe, Work]:
    """What makes the photos of the table `wrong` again, by the recipe that made them, where it can be repeated.

    A photo whose row is lost is done again; so is one to whose object no row points, if the source still has it.

    Raises:
        ValueError: the weights are not to be found.
    """
    records = _records(found.image_set)
    newest = next(iter(records), None)
    if newest is not None:
        lost = [f"(SELECT key {_of(found, [Fault.MISSING_ROW])})"]
        if found.manifest.layout == Layout.FILES:
            orphans = f"{_of(found, [Fault.ORPHAN])} AND key LIKE 'images/%'"
            lost.append(f"(SELECT regexp_replace(key, '^images/', '') AS key {orphans})")
        elif keys := _keys_in_orphans(found):
            found.database.register("of_orphans", pa.table({"key": pa.array(keys, pa.string())}))
            lost.append("of_orphans")
        for keys_of_lost in lost:
            found.database.execute(
                "INSERT INTO wrong SELECT key, 0, $weights, $parameters, false, NULL "
                f"FROM {keys_of_lost} ANTI JOIN photos USING (key)",
                dataclasses.asdict(newest),
            )
    rows = found.database.sql("SELECT DISTINCT weights, parameters FROM wrong ORDER BY ALL").fetchall()
    recipes = [_Recipe(*row) for row in rows]
    named = _named_weights(job, recipes)
    works = {}
    for recipe in recipes:
        try:
            works[recipe] = _work(job, found, recipe, records.get(recipe), named)
        except _UnrepeatableError as error:  # what others made is made right: of these, the sources may be gone, too
            log.error("%s", error)
    return works


def _named_weights(job: RepairJob, recipes: Sequence[_Recipe]) -> dict[str, str]:
    """What `--weights` names, by its SHA-256.

    Raises:
        ValueError: there are none, or nothing that is to be made again was made by them.
    """
    made = {recipe.weights for recipe in recipes if recipe.weights}  # ingest needs none
    return {_check_weights(job.weights, made): job.weights} if job.weights is not None and made else {}


class _UnrepeatableError(Exception):
    """How photos were made cannot be told, or not be repeated here: they stay findings."""


def _keys_in_orphans(found: Examined) -> list[str]:
    """The keys of photos in packed shards to which no row points, as far as they can be told."""
    reader = PackedReader(found.image_set.store)
    keys: list[str] = []
    for key in _orphaned_shards(found):
        with suppress(ObjectRefused):  # it is no shard
            keys += reader.read_rows(key)["key"].to_pylist()
    return keys


def _orphaned_shards(found: Examined) -> Iterator[str]:
    """Packed shards to which no row points. What is made again of their photos may come into one of the same name."""
    return (key for key in _keys(found, [Fault.ORPHAN]) if key.startswith("shards/"))


def _records(image_set: ImageSet) -> dict[_Recipe, dict[str, Any]]:  # Any: JSON
    """The settings of the last run with each recipe, the newest first. It names no table of keys unless all of them do.

    What one table lists, another may not: the source itself lists it all.
    """
    records: dict[_Recipe, dict[str, Any]] = {}
    for run in reversed(image_set.record_keys()):
        with suppress(ImageSetError, ObjectRefused, KeyError):  # it does not tell
            record = image_set.read_record(run)
            if isinstance(settings := record.get("settings"), dict):
                last = records.setdefault(_Recipe(str(record["weights"]), str(record["parameters"])), settings)
                if last.get("key_table") != settings.get("key_table"):
                    last["key_table"] = None
    return records


def _work(
    job: RepairJob,
    found: Examined,
    recipe: _Recipe,
    settings: dict[str, Any] | None,  # Any: JSON
    named: Mapping[str, str],
) -> Work:
    """The work of the run that made photos, on the same source and target; `named` are weights by their SHA-256.

    Raises:
        _UnrepeatableError: it cannot be told how they were made, or that cannot be repeated here.
        ValueError: the weights are not to be found.
    """
    url = found.image_set.store.url
    if settings is None:
        raise _UnrepeatableError(
            f"no record in {url}/runs tells how photos were made with the parameters {recipe.parameters}: process them "
            "again by the command that made them"
        )
    kind: type[DenoiseJob | IngestJob] = IngestJob if "ingest" in settings else DenoiseJob
    kept = {name: value for name, value in settings.items() if name in WHAT_DECIDES}
    again = build(kind, {**kept, "source": _source(found.manifest.source, settings), "target": url})
    again = dataclasses.replace(again, cluster=job.verify.cluster)
    if isinstance(again, DenoiseJob):
        if (weights := named.get(recipe.weights)) is None:
            weights = _by_hash(again.weights, recipe.weights)
            try:
                _check_weights(weights, {recipe.weights})
            except ValueError as error:
                if named:  # they are those of other photos, which are made again; these need another call
                    raise _UnrepeatableError(str(error)) from error
                raise
        again = dataclasses.replace(again, weights=weights)
        work = denoise_work(again)
    else:
        work = ingest_work(again)
    if work.header.parameters != recipe.parameters:
        raise _UnrepeatableError(
            f"{url} was made with the parameters {recipe.parameters}, and this degrain makes {work.header.parameters} "
            "of the same settings: repair it with the degrain that made it, or process all of it again"
        )
    return work


def _check_weights(weights: str, made: Set[str]) -> str:
    """Their SHA-256; raises ValueError if it is none of those by which photos were made."""
    sha256 = read_weights(weights)[1].sha256
    if sha256 not in made:
        hashes = " or ".join(sorted(made))
        raise ValueError(
            f"the weights {weights} are not those of the run, whose SHA-256 is {hashes}: name those by --weights"
        )
    return sha256


def _source(photos: str, settings: dict[str, Any]) -> str:  # Any: JSON
    """What the run had as its source: the image set whose photos lie there, unless their folder itself was named.

    Its index tells other etags of them than the folder does.
    """
    root, name = split_url(photos)
    _, named = split_url(str(settings.get("source")))
    return root if name == "images" != named and photos_of(open_store(root)).url == photos else photos


def _by_hash(weights: str, sha256: str) -> str:
    """A name in a registry may point elsewhere by now: there, the same weights are found by their hash."""
    place = split_reference(weights)
    return weights if place is None else f"{place[0]}/{FOLDER}/{sha256}"


def _process(found: Examined, aside: _Aside, recipe: _Recipe, work: Work, report: Callable[[Progress], None]) -> int:
    """Do those photos of the table `wrong` again that the source still has; returns how many."""
    database = found.database
    with scratch_folder() as folder:
        listed, listing, distrusted = (folder / f"{each}.parquet" for each in ("listed", "listing", "distrusted"))
        if work.write_listing(listed) == 0:
            log.warning("there are no photos in %s: it is empty, or does not exist", work.header.source)
        database.execute(
            "CREATE OR REPLACE TEMP TABLE wanted AS "
            "SELECT key, max(attempt) AS attempt, max(sound_etag) AS sound_etag FROM wrong "
            "WHERE weights = $weights AND parameters = $parameters GROUP BY key",
            dataclasses.asdict(recipe),
        )
        database.execute(f"COPY wanted TO {literal(str(distrusted))}")
        again = f"FROM {scan([listed])} AS listed JOIN wanted USING (key) WHERE coalesce(sound_etag = etag, true)"
        database.execute(f"COPY (SELECT listed.* {again}) TO {literal(str(listing))}")
        photos = int(pq.read_metadata(listing).num_rows)
        if not photos:
            return 0
        aside.move(_in_the_way(found, listing) if work.layout == Layout.FILES else _orphaned_shards(found))

        def write_listing(path: Path) -> int:
            listing.replace(path)
            return photos

        summary = do_work(
            dataclasses.replace(
                work,
                write_listing=write_listing,
                target=found.image_set,
                is_subset=True,
                distrusted=distrusted,
                command=COMMAND,
            ),
            report,
        )
        return sum(summary.outcomes.values())


def _in_the_way(found: Examined, listing: Path) -> Iterator[str]:
    """What lies where photos are to be written again, and what a folder of such a name holds."""
    photos = f"(SELECT key, {OUTPUT_KEY} AS place FROM {scan([listing])})"
    rows = found.database.sql(
        f"""
        SELECT place FROM {photos} ANTI JOIN (SELECT key {_of(found, [Fault.MISSING])}) USING (key)
        UNION SELECT orphan.key FROM (SELECT key {_of(found, [Fault.ORPHAN])}) AS orphan
        JOIN ({photos} SEMI JOIN (SELECT key {_of(found, [Fault.UNREADABLE])}) USING (key)) AS photo
        ON starts_with(orphan.key, place || '/')
        """
    )
    for batch in in_batches(rows, BATCH):
        yield from batch["place"].to_pylist()


def _set_orphans_aside(image_set: ImageSet, aside: _Aside) -> None:
    with (
        scratch_folder() as folder,
        open_database(folder) as database,
        image_set.local_index() as parts,
    ):
        create_views(database, image_set, parts, folder)
        batches = in_batches(database.sql(ORPHANS), BATCH)
        aside.move(chain.from_iterable(batch["key"].to_pylist() for batch in batches))
