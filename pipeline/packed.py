"""Packed shards: Parquet objects of photos beside their rows, written as a stream, read by key.

A shard holds row groups of some 16 MiB, which one reader can stream. Its rows are sorted by key, as plans are; so the
statistics of the footer tell which row group holds a photo, and no other is read.
"""

import io
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ObjectMissing, ObjectRefused
from pipeline.footer import mark_footer, read_footer
from pipeline.png import SIGNATURE
from pipeline.range_file import RangeFile
from pipeline.records import PACKED_SCHEMA, PhotoRecord, index_table
from pipeline.storage import Store

ROW_GROUP_BYTES = 16 * 1024**2  # of photos, unless it is one larger photo
ROW_GROUP_PHOTOS = 1024
MAX_PHOTO_BYTES = 2**31 - 2**20  # Arrow and Parquet count the bytes of a column and of a page in 31 bits
OPEN_SHARDS = 16  # whose footers a reader keeps
GROUPS_IN_MEMORY = 2  # that a reader keeps: photos of neighbouring keys may alternate between an old and a new shard
PHOTO_COLUMN = "image.bytes"
# What pyarrow raises of a damaged file, in which a column may be gone, and a name or a key no text.
DAMAGE = (pa.ArrowException, OSError, KeyError, ValueError)


class Placed(Protocol):
    """What has a key, and the place of the shard that holds it: a `SourceObject`, a `PlannedPhoto`."""

    @property
    def key(self) -> str: ...
    @property
    def place(self) -> str | None: ...


P = TypeVar("P", bound=Placed)


def promise_of(key: str, data: bytes) -> str:
    """The name that tells what a packed photo is: one that `ingest` made smaller is a PNG, called like its source."""
    return "" if data.startswith(SIGNATURE) else key


class PackedWriter:
    """A packed shard as it is made, in memory: the photos that came so far, and one row group that is still open."""

    def __init__(self) -> None:
        names = [column.name for column in PACKED_SCHEMA][1:]
        compression = {PHOTO_COLUMN: "none", "image.path": "zstd", **dict.fromkeys(names, "zstd")}
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._buffer,
            PACKED_SCHEMA,
            compression=compression,  # photos are compressed already
            use_dictionary=[name for name in names if name != "key"],
            write_statistics=names,
            write_page_checksum=True,  # or a byte that rots in a row would be another value
        )
        self._records: list[PhotoRecord] = []
        self._photos: list[bytes] = []
        self._waiting_bytes = 0

    def add(self, record: PhotoRecord, photo: bytes) -> None:
        """Append a photo and its row."""
        if self._waiting_bytes + len(photo) > ROW_GROUP_BYTES or len(self._photos) == ROW_GROUP_PHOTOS:
            self._write_group()
        self._records.append(record)
        self._photos.append(photo)
        self._waiting_bytes += len(photo)

    def finish(self) -> bytes:
        """The whole file."""
        self._write_group()
        self._writer.close()
        mark_footer(self._buffer)
        return self._buffer.getvalue()  # CPython hands out the buffer itself

    def _write_group(self) -> None:
        if not self._photos:
            return
        images = pa.StructArray.from_arrays(
            [pa.array(self._photos, pa.binary()), pa.array([record.key for record in self._records], pa.string())],
            fields=list(PACKED_SCHEMA.field("image").type),
        )
        rows = index_table(self._records)
        columns = [images, *(rows[name].combine_chunks() for name in PACKED_SCHEMA.names[1:])]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=PACKED_SCHEMA), row_group_size=len(columns[0]))
        self._records, self._photos, self._waiting_bytes = [], [], 0


class PackedReader:
    """Photos of a packed image set by their keys and places. Not safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shards: OrderedDict[str, _Shard] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def read_many(self, wanted: Iterable[P]) -> Iterator[tuple[P, bytes | ObjectRefused]]:
        """Each photo that is wanted with its bytes, in the order asked; the next row group is read meanwhile.

        What refuses one photo stands in its place. Only the row groups that hold the wanted photos are read, and each
        once, as long as the wanted are in the order of their keys.

        Raises:
            StorageError: the store cannot be read.
        """
        following: Future[list[tuple[P, bytes | ObjectRefused]]] | None = None
        with ThreadPoolExecutor(1, "row-group") as pool:  # all that touches the caches happens in its one thread

            def locate(photo: P) -> tuple[str, int | None]:
                return pool.submit(self._locate, photo).result()

            for (place, group), members in groupby(wanted, locate):
                current, following = following, pool.submit(self._read_batch, place, group, list(members))
                if current is not None:
                    yield from current.result()
            if following is not None:
                yield from following.result()

    def read_rows(self, place: str) -> pa.Table:
        """All that a shard holds beside its photos, every page and the footer as they were written.

        Photos themselves are read whatever the checksums of their pages are, or one that is damaged would take its
        neighbours with it: whoever reads them knows their hashes.

        Raises:
            ObjectRefused: there is no such shard, or it is damaged.
        """
        known = set(PACKED_SCHEMA.names)
        try:
            file = _open_file(self._store, place, page_checksum_verification=True)
            found = set(file.schema_arrow.names)
            if known - found and found - known:  # another degrain may know fewer columns, or more, and calls none else
                raise ValueError(f"it has the columns {sorted(found - known)}, and lacks {sorted(known - found)}")
            return file.read(columns=["image.path", *PACKED_SCHEMA.names[1:]], use_threads=False)
        except DAMAGE as error:
            raise self._damaged(place, error) from error

    def _locate(self, photo: Placed) -> tuple[str, int | None]:
        """The shard and the row group that hold a photo; no row group where it is in none."""
        assert photo.place is not None, "a photo of a packed image set has a place"
        shard = self._open(photo.place)
        return photo.place, None if isinstance(shard, ObjectRefused) else shard.find(photo.key)

    def _read_batch(self, place: str, group: int | None, photos: list[P]) -> list[tuple[P, bytes | ObjectRefused]]:
        shard = self._open(place)
        if isinstance(shard, ObjectRefused):
            return [(photo, shard) for photo in photos]
        if group is None:
            return [(photo, self._missing(place, photo)) for photo in photos]
        try:
            table = self._read_group(shard, place, group)
            keys, images = table["key"], table["image"].chunk(0).field("bytes")
        except ObjectRefused as error:  # it has gone since its footer was read
            return [(photo, error) for photo in photos]
        except DAMAGE as error:
            return [(photo, self._damaged(place, error)) for photo in photos]
        found: list[tuple[P, bytes | ObjectRefused]] = []
        for photo in photos:
            row = pc.index(keys, photo.key).as_py()
            found.append((photo, self._missing(place, photo) if row < 0 else images[row].as_py()))
        return found

    def _open(self, place: str) -> "_Shard | ObjectRefused":
        shard = self._shards.pop(place, None)
        if shard is None:
            try:
                shard = _Shard.of(_open_file(self._store, place))
            except ObjectRefused as error:
                return error
            except DAMAGE as error:
                return self._damaged(place, error)
        self._shards[place] = shard
        if len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)
        return shard

    def _read_group(self, shard: "_Shard", place: str, group: int) -> pa.Table:
        table = self._groups.pop((place, group), None)
        if table is None:
            while len(self._groups) >= GROUPS_IN_MEMORY:
                self._groups.popitem(last=False)
            table = shard.file.read_row_group(group, columns=["key", PHOTO_COLUMN], use_threads=False)
        self._groups[place, group] = table
        return table

    def _missing(self, place: str, photo: Placed) -> ObjectMissing:
        return ObjectMissing(f"{photo.key} is not in {self._store.url}/{place}")

    def _damaged(self, place: str, error: Exception) -> ObjectRefused:
        reason = " ".join(str(error).split())[:200]
        return ObjectRefused(f"{self._store.url}/{place} is damaged: {reason}")


@dataclass(frozen=True, slots=True)
class _Shard:
    """An open shard, and the first and last key of each of its row groups (None where the footer does not tell)."""

    file: pq.ParquetFile
    bounds: list[tuple[str, str] | None]

    @classmethod
    def of(cls, file: pq.ParquetFile) -> "_Shard":
        column = file.schema_arrow.names.index("key") + 1  # of the Parquet columns: `image` is two of them
        bounds = []
        for group in range(file.num_row_groups):
            found = file.metadata.row_group(group).column(column).statistics
            bounds.append((found.min, found.max) if found is not None and found.has_min_max else None)
        return cls(file, bounds)

    def find(self, key: str) -> int | None:
        """The row group that may hold a key: no other one does."""
        groups = (group for group, bounds in enumerate(self.bounds) if bounds is None or bounds[0] <= key <= bounds[1])
        return next(groups, None)


def _open_file(store: Store, place: str, **options: Any) -> pq.ParquetFile:  # Any: those of pyarrow
    """A shard whose footer is as it was written; those of an older degrain do not tell.

    Raises:
        ObjectRefused: there is none, or it cannot be read.
        ValueError, pa.ArrowException, OSError: it is damaged.
    """
    size_bytes = store.size(place)
    read = partial(store.read_range, place)
    metadata = pq.read_metadata(io.BytesIO(read_footer(size_bytes, read)))
    source = pa.PythonFile(RangeFile(size_bytes, read), mode="r")
    return pq.ParquetFile(source, metadata=metadata, pre_buffer=True, **options)  # a row group in one request
