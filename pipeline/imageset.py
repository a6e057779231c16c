"""The image set at the target: plans, commits, the published index; and where all of it lies.

A shard is done if and only if its commit exists. Payload is written before the commit, the commit before the index,
and the manifest last: a reader who follows the manifest never sees a row without its object.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ImageSetError, ObjectExists, ObjectMissing, ObjectRefused, RunFailed, StorageError
from pipeline.fault_points import FaultPoint, fault_point
from pipeline.footer import mark_footer, read_footer
from pipeline.index import Part, count_outcomes, merge
from pipeline.lease import Lease, is_lease, leased, refuse_if_leased
from pipeline.manifest import Manifest, dump_manifest, dump_record, parse_manifest, parse_record
from pipeline.records import INDEX_SCHEMA, Layout, PhotoRecord, SourceObject, index_rows, index_table, photo_records
from pipeline.scratch import scratch_folder
from pipeline.storage import TEMPORARY, Store

MANIFEST = "manifest.json"
# What `output_key`, `packed_key` and `commit_key` say, in SQL, of rows with a `key` and a `shard`.
OUTPUT_KEY, PACKED_KEY = "'images/' || key", "'shards/' || shard || '.parquet'"
COMMIT_KEY = "'commits/' || shard || '.parquet'"
GATHERED_ROWS = 100_000  # of committed shards, held while they are gathered in one file; or of a plan that is checked
PARALLEL_PARTS = 4  # of an index, read at once: 40 MB each
PARALLEL_READS = 16  # of small objects, when an index is published
READINGS = 4  # of an index that runs publish anew meanwhile
T = TypeVar("T")


class ImageSet:
    """An image set in a store, there or yet to be made."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lease: Lease | None = None

    @contextmanager
    def leased(self, command: str, *, is_outlived: bool = False) -> Iterator[None]:
        """Let no other run write to this set, as long as the context lasts. Workers are let in by their run.

        Who holds the lease of this set may take it again inside: a repair does runs.

        Args:
            command: what the holder is called where others are refused.
            is_outlived: see `pipeline.lease.Claim`.

        Raises:
            TargetInUse: another run holds the lease.
        """
        if self._lease is not None:
            yield
            return
        try:
            with leased(self.store, command, is_outlived=is_outlived) as self._lease:
                self.store.clean()  # what killed writers have left behind
                try:
                    yield
                except BaseException:
                    with suppress(RunFailed, OSError):  # what matters is why the run stopped
                        self.check_lease()
                        self.store.clean()  # its workers are gone, in the middle of a write perhaps
                    raise
                self.check_lease()
                self.store.clean()
        finally:
            self._lease = None
            self.store.close()

    def refuse_if_in_use(self) -> None:
        """Raises TargetInUse if somebody else holds the lease; it is not taken."""
        if self._lease is None:
            refuse_if_leased(self.store)

    def check_lease(self) -> None:
        """Do this before what only a holder of the lease may do; it costs nothing.

        Raises:
            RunFailed: the lease is lost.
        """
        if self._lease is not None:
            self._lease.check()

    def plan_key(self, run: str) -> str:
        return f"plans/{run}.parquet"

    def commit_key(self, shard: str) -> str:
        return f"commits/{shard}.parquet"

    def record_key(self, run: str) -> str:
        return f"runs/{run}.json"

    def output_key(self, key: str) -> str:
        """Where the layout `files` keeps the photo of a source key."""
        return f"images/{key}"

    def packed_key(self, shard: str) -> str:
        """Where the layout `packed` keeps the photos of a shard."""
        return f"shards/{shard}.parquet"

    def read_manifest(self) -> Manifest | None:
        """The manifest, or None where there is no image set yet.

        Raises:
            ImageSetError: there is something that this version cannot read.
        """
        try:
            data = self.store.read(MANIFEST)
        except ObjectMissing:
            return None
        return parse_manifest(data, f"{self.store.url}/{MANIFEST}")

    def check_for(self, source: str, layout: Layout) -> Manifest:
        """The manifest of this set, or that of the one that could be started here. Writes nothing.

        Raises:
            ValueError: the set was made from another source or has another layout, or the place is otherwise in use.
        """
        manifest = self.read_manifest()
        if manifest is None:
            occupant = next((found for found in self.store.list() if not _is_of_no_matter(found.key)), None)
            if occupant is not None:
                raise ValueError(
                    f"{self.store.url} is not empty (it holds {occupant.key}) and no image set: name a new place"
                )
            return Manifest(source=source, layout=layout)
        if manifest.source != source:
            raise ValueError(
                f"{self.store.url} holds the photos of {manifest.source}, not of {source}: name another target "
                f"(or, if the photos have moved, change 'source' in its {MANIFEST})"
            )
        if manifest.layout != layout:
            raise ValueError(f"{self.store.url} has the layout '{manifest.layout}': it cannot become '{layout}'")
        return manifest

    def open_for(self, source: str, layout: Layout) -> Manifest:
        """The manifest of this set, which is started here where there is none.

        Raises:
            ValueError: as for `check_for`.
        """
        manifest = self.check_for(source, layout)
        if not self.store.exists(MANIFEST):
            with suppress(ObjectExists):
                self.store.create(MANIFEST, dump_manifest(manifest))
            manifest = self.check_for(source, layout)  # someone else may have been first
        fault_point(FaultPoint.SET_OPENED)
        return manifest

    def ignores_case(self) -> bool:
        """Whether a set that is begun lies where names that differ in their case alone are one, as on exFAT or NTFS."""
        return self.store.exists(MANIFEST.upper())

    def write_plan(self, run: str, plan: Path) -> None:
        """Freeze a plan before any of its work starts."""
        fault_point(FaultPoint.PLAN_MADE)
        self.check_lease()
        self.store.create(self.plan_key(run), plan.read_bytes())
        fault_point(FaultPoint.PLAN_FROZEN)

    def read_plan(self, run: str) -> bytes:
        """The whole plan of a run, as a Parquet file.

        Raises:
            ObjectMissing: it has none.
            ImageSetError: it is damaged.
        """
        key = self.plan_key(run)
        data = self.store.read(key)
        with _damage(f"{self.store.url}/{key}"):
            file, rows = _open_parquet(data), 0
            for batch in file.iter_batches(GATHERED_ROWS):
                batch.validate(full=True)
                rows += len(batch)
            if rows != file.metadata.num_rows:  # one column has come to its end before the others
                raise ValueError("it has fewer rows than it says")
        return data

    @contextmanager
    def saying_what_to_do(self) -> Iterator[None]:
        """An object that is missing or damaged inside is told with the command that makes it right."""
        try:
            yield
        except (ImageSetError, ObjectRefused) as error:
            raise type(error)(f"{error} (degrain verify {self.store.url} --repair makes it right)") from error

    def unfinished_runs(self) -> list[str]:
        """Runs with a plan whose end was never recorded, oldest first."""
        planned, ended = self._names("plans", ".parquet"), self._names("runs", ".json")
        return sorted(planned - ended)

    def list_payload(self) -> Iterator[SourceObject]:
        """Every object that holds photos, of either layout, whether or not a row points to it."""
        return chain(self.store.list("images"), self.store.list("shards"))

    def list_parts(self) -> Iterator[SourceObject]:
        """Every part of an index, of the published one or not."""
        return self.store.list("index")

    def list_commits(self) -> Iterator[SourceObject]:
        """The commit of every shard that is done."""
        return (listed for listed in self.store.list("commits") if _is_named(listed.key, "commits", ".parquet"))

    def list_leftovers(self) -> Iterator[SourceObject]:
        """What a killed writer left behind; or what one that is at work has not finished."""
        return self.store.list(TEMPORARY)

    def set_aside(self, key: str) -> None:
        """Move an object out of the way, into the folder `removed`: nothing that someone may want is deleted.

        Where its name is taken there, it comes into a folder that is called by its hash.

        Raises:
            ObjectRefused: it cannot be read, or its name is unsafe.
            StorageError: it can be read, and the folder cannot hold it.
        """
        data = self.store.read(key)
        try:
            self.store.create(f"removed/{key}", data)
        except (ObjectExists, ObjectRefused):  # the name may be that of a folder, or need one where a file is
            if not self._holds(f"removed/{key}", data):
                try:
                    self.store.write(f"removed/{_short_hash(data)}/{key}", data)
                except ObjectRefused as error:  # it is no fault of the object, and must stop whoever would overwrite it
                    raise StorageError(f"cannot move {key} out of the way: {error}") from error
        self.store.delete(key)

    def record_keys(self) -> dict[str, str]:
        """Where the record of each ended run lies."""
        return {run: self.record_key(run) for run in sorted(self._names("runs", ".json"))}

    def read_record(self, run: str) -> dict[str, Any]:  # Any: JSON
        """What a run's own record says.

        Raises:
            ImageSetError: it is damaged.
        """
        key = self.record_key(run)
        return parse_record(self.store.read(key), f"{self.store.url}/{key}")

    def restore_commit(self, shard: str, rows: pa.Table) -> None:
        """Write a commit that was lost or damaged again, by the rows that the index has of its shard."""
        self.store.write(self.commit_key(shard), _parquet_bytes(rows))

    def committed_shards(self) -> set[str]:
        """Every shard that is done."""
        return self._names("commits", ".parquet")

    def commit(self, shard: str, records: Sequence[PhotoRecord]) -> None:
        """Make a shard done, its payload being written. Of two workers with the same shard one wins; both may go on."""
        with suppress(ObjectExists):
            self.store.create(self.commit_key(shard), _parquet_bytes(index_table(records)))

    def read_commit(self, shard: str) -> list[PhotoRecord] | None:
        """The rows of a shard that is done; None where it is not.

        Raises:
            ImageSetError: its commit is damaged.
        """
        try:
            return photo_records(self._read_commit(self.commit_key(shard)))
        except ObjectMissing:
            return None

    def discard(self, shards: Iterable[str]) -> None:
        """Remove what was packed of shards that are not committed and never will be."""
        for shard in shards:
            self.check_lease()
            self.store.delete(self.packed_key(shard))

    def publish(self, run: str, shards: Iterable[str], *, is_rebuilt: bool = False) -> Manifest:
        """Merge committed shards into the index, the newest row of each key winning, and point the manifest to it.

        May run again after any interruption, and ends in the same objects.

        Args:
            run: names the new index parts.
            shards: committed shards that the index may not hold yet.
            is_rebuilt: whether the index is made of these shards alone, because the one that is there is damaged.
        """
        manifest = self.read_manifest()
        if manifest is None:
            raise ImageSetError(f"{self.store.url}/{MANIFEST} is gone since the run began: put it back, and run again")
        if is_rebuilt:
            manifest = dataclasses.replace(manifest, index=())
        with scratch_folder() as folder:
            paths = _of_each_part(manifest, partial(self._fetch, folder))
            parts = self._merge(paths, shards, folder)
            index = tuple(self._publish_part(run, number, part, manifest) for number, part in enumerate(parts))
            counts = count_outcomes([part.path for part in parts])
        fault_point(FaultPoint.INDEX_WRITTEN)
        published = dataclasses.replace(
            manifest, run=run, index=index, counts=counts, published_at=datetime.now(UTC).isoformat(timespec="seconds")
        )
        self.check_lease()
        self.store.write(MANIFEST, dump_manifest(published))
        fault_point(FaultPoint.MANIFEST_WRITTEN)
        for listed in list(self.store.list("index")):
            if listed.key not in index and listed.key.startswith("index/part-"):  # or it is somebody else's
                self.check_lease()
                self.store.delete(listed.key)
                fault_point(FaultPoint.OLD_PART_REMOVED)
        fault_point(FaultPoint.INDEX_PUBLISHED)
        return published

    def end_run(self, run: str, facts: dict[str, object]) -> None:
        """Record the end of a run, once and for all; a second record of the same run changes nothing."""
        self.check_lease()
        with suppress(ObjectExists):
            self.store.create(self.record_key(run), dump_record(facts))
        fault_point(FaultPoint.RUN_RECORDED)

    @contextmanager
    def local_index(self, shards: Sequence[str] = ()) -> Iterator[list[Path]]:
        """The index as local files, for as long as the context lasts, as if these shards were published too."""
        with scratch_folder() as folder:
            _, paths = self.read_index(partial(self._fetch, folder))
            yield [part.path for part in self._merge(paths, shards, folder)] if paths or shards else []

    def read_index(self, read: Callable[[int, str], T]) -> tuple[Manifest | None, list[T]]:
        """The manifest, and what `read` makes of the number and the key of each part of its index, some at once.

        A run that publishes meanwhile removes parts: then all begins again, with the new manifest.

        Raises:
            ObjectMissing: `read` has raised it of a part that the manifest still names.
            ImageSetError: the index is published anew again and again.
        """
        manifest = self.read_manifest()
        for _ in range(READINGS):
            try:
                return manifest, _of_each_part(manifest, read)
            except ObjectMissing:
                before, manifest = manifest, self.read_manifest()
                if manifest == before:
                    raise
        raise ImageSetError(f"the index of {self.store.url} was published anew {READINGS} times while it was read")

    def _merge(self, paths: Sequence[Path], shards: Iterable[str], folder: Path) -> list[Part]:
        """The parts of an index with what the shards have committed in it, as files of the folder."""
        committed = folder / "committed.parquet"
        if self._gather(shards, committed) or not paths:
            return merge(paths, committed, folder)
        return [Part(path, kept=number) for number, path in enumerate(paths)]

    def _fetch(self, folder: Path, number: int, key: str) -> Path:
        with self.saying_what_to_do():
            data = self.store.read(key)
            if not is_as_published(key, data):
                raise ImageSetError(
                    f"{self.store.url}/{key} is damaged: its bytes are not those that its name tells of"
                )
        path = folder / f"{number}.parquet"
        path.write_bytes(data)
        return path

    def _gather(self, shards: Iterable[str], path: Path) -> int:
        """Write the rows of committed shards to one local file, in the order given; returns how many there are."""
        keys = map(self.commit_key, shards)
        waiting: list[pa.Table] = []
        rows = waiting_rows = 0
        with pq.ParquetWriter(path, INDEX_SCHEMA) as writer, ThreadPoolExecutor(PARALLEL_READS) as pool:
            while some := list(islice(keys, PARALLEL_READS)):  # a `map` over all would hold what is not yet written
                found = list(pool.map(self._read_commit, some))
                waiting += found
                waiting_rows += sum(map(len, found))
                if waiting_rows >= GATHERED_ROWS:
                    writer.write_table(pa.concat_tables(waiting))
                    rows, waiting, waiting_rows = rows + waiting_rows, [], 0
            writer.write_table(pa.concat_tables([INDEX_SCHEMA.empty_table(), *waiting]))
        return rows + waiting_rows

    def _read_commit(self, key: str) -> pa.Table:
        with self.saying_what_to_do():
            return parse_commit(self.store.read(key), f"{self.store.url}/{key}")

    def _publish_part(self, run: str, number: int, part: Part, before: Manifest) -> str:
        """Its key holds a hash of its content: what the manifest points to is never overwritten by something else."""
        if part.kept is not None:
            return before.index[part.kept]
        data = part.path.read_bytes()
        key = f"index/part-{run}-{number:05}-{_short_hash(data)}.parquet"
        self.check_lease()
        self.store.write(key, data)
        fault_point(FaultPoint.INDEX_PART_WRITTEN)
        return key

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.store.read(key) == data
        except ObjectRefused:
            return False

    def _names(self, folder: str, suffix: str) -> set[str]:
        keys = (listed.key for listed in self.store.list(folder) if _is_named(listed.key, folder, suffix))
        return {key.removeprefix(folder + "/").removesuffix(suffix) for key in keys}


def _of_each_part(manifest: Manifest | None, read: Callable[[int, str], T]) -> list[T]:
    with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
        return list(pool.map(read, count(), () if manifest is None else manifest.index))


def is_as_published(key: str, data: bytes) -> bool:
    """Whether these bytes of a part of an index are those that its name tells of."""
    return key.endswith(f"-{_short_hash(data)}.parquet")


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _is_of_no_matter(key: str) -> bool:
    """Whether an object says nothing of what a place is used for: a hidden file, or all that a run left of itself."""
    return key.rpartition("/")[2].startswith(".") or is_lease(key)


def parse_commit(data: bytes, name: str) -> pa.Table:
    """The rows of a commit. It holds few, and there are many: the time goes into what is done for each of its columns.

    Raises:
        ImageSetError: it is damaged.
    """
    with _damage(name):
        table = _open_parquet(data).read(use_threads=False)
        return table if table.schema.equals(INDEX_SCHEMA) else index_rows(table)


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """What goes wrong with a Parquet file inside means that it is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ImageSetError(f"{name} is damaged: it is no whole Parquet file") from error


def _is_named(key: str, folder: str, suffix: str) -> bool:
    """Whether an object is one of ours, and not what a desktop left."""
    return key.endswith(suffix) and not key.startswith(f"{folder}/.")


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    mark_footer(buffer)
    return buffer.getvalue()


def _open_parquet(data: bytes) -> pq.ParquetFile:
    """A plan or a commit, whose damage comes to light when it is opened or read."""
    read_footer(len(data), lambda start, length: data[start : start + length])
    return pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
