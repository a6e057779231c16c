"""Read objects of an image set again, and hold them against what its index says: the work of `verify`'s workers."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import duckdb
import pyarrow as pa

from pipeline.database import identifier
from pipeline.errors import ImageSetError, ObjectMissing, ObjectRefused, PhotoRejected
from pipeline.images import NO_LIMITS, decode, inspect
from pipeline.imageset import ImageSet, parse_commit
from pipeline.packed import PackedReader, promise_of
from pipeline.records import DUPLICATE_OF, FINDING_SCHEMA, INDEX_SCHEMA, Fault, Finding, PlannedPhoto, ShardPlan
from pipeline.room import Room
from pipeline.shard import PHOTO_BYTES
from pipeline.sources import photos_of, read_photos
from pipeline.storage import Store, open_store
from pipeline.survey import Surveyor

COPIES = 2  # of a photo decoded that are in memory at once: it, and what its codec works on
IN_MEMORY_BYTES = 256 * 1024**2  # larger objects are hashed in parts, and not decoded
PART_BYTES = 32 * 1024**2

# SQL: what tells whether the rows of a shard are the same in its commit and in the index, in whatever order; but for
# what a row learns when others are committed.
LEARNT = (DUPLICATE_OF, "attempts")
DIGEST = f"bit_xor(hash({', '.join(identifier(name) for name in INDEX_SCHEMA.names if name not in LEARNT)}))"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedPhoto(PlannedPhoto):
    """A photo of the set as its row has it: `etag` is the hash of its bytes, and `size_bytes` are theirs.

    `is_copy` says that it is the source's file, byte for byte: then nobody promises that it can be decoded.
    """

    width_px: int | None
    height_px: int | None
    is_copy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCommit(PlannedPhoto):
    """A commit of the set; `rows` of the index are of its shard, and their `DIGEST` is `digest`."""

    rows: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckWorkerFactory:
    """All that a worker needs to check an image set: travels to its process, and is called there."""

    target: str

    def __call__(self, _threads: int) -> "CheckWorker":  # the codecs take what they need
        return CheckWorker(ImageSet(open_store(self.target)))


class CheckWorker(Surveyor):
    """Checks photos and commits of a set."""

    def __init__(self, image_set: ImageSet) -> None:
        super().__init__()
        self._set = image_set
        self._photos = photos_of(image_set.store).store
        self._room = Room(PHOTO_BYTES)

    def find(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> pa.Table:
        found = [Finding(Fault.UNREADABLE, key, reason) for key, reason in poisonous.items()]
        for kind, members in groupby((photo for photo in plan.photos if photo.key not in poisonous), type):
            check: Callable[..., Iterator[Finding]] = (
                self._check_commits if kind is CheckedCommit else self._check_photos
            )
            found += check(plan, tuple(members))
        return findings_table(found)

    def _check_photos(self, plan: ShardPlan, photos: tuple[CheckedPhoto, ...]) -> Iterator[Finding]:
        for place, members in groupby(photos, attrgetter("place")):
            some = tuple(members)
            if place is not None and (finding := _check_shard(PackedReader(self._set.store), place, len(some))):
                yield finding
                if finding.kind == Fault.MISSING_SHARD:
                    continue
            for photo, data in self._read(some):
                with self.looking_at(plan, photo.key, "check"):
                    finding = self._check(photo, data)
                if finding is not None:
                    yield finding

    def _read(
        self, photos: tuple[CheckedPhoto, ...]
    ) -> "Iterator[tuple[CheckedPhoto, bytes | ObjectRefused | Digest]]":
        """Photos with their bytes; those that memory should not hold with what is known of these."""
        in_memory = [photo for photo in photos if not _is_large(photo)]
        reading = read_photos(self._photos, in_memory)
        for photo in photos:
            if _is_large(photo):
                yield photo, digest_in_parts(self._photos, photo.key)
            else:
                yield photo, next(reading)[1]

    def _check(self, photo: CheckedPhoto, data: "bytes | ObjectRefused | Digest") -> Finding | None:
        if isinstance(data, ObjectRefused):
            kind = Fault.MISSING if isinstance(data, ObjectMissing) else Fault.UNREADABLE
            return Finding(kind, photo.key, str(data))
        found = data if isinstance(data, Digest) else Digest(len(data), hashlib.sha256(data).hexdigest())
        if found.size_bytes != photo.size_bytes:
            detail = f"it has {found.size_bytes:,} bytes, and its row says {photo.size_bytes:,}"
            return Finding(Fault.WRONG_SIZE, photo.key, detail)
        if found.sha256 != photo.etag:
            detail = f"the SHA-256 of its bytes is {found.sha256[:16]}…, and its row says {photo.etag[:16]}…"
            return Finding(Fault.WRONG_BYTES, photo.key, detail)
        return None if photo.is_copy or isinstance(data, Digest) else self._check_picture(photo, data)

    def _check_picture(self, photo: CheckedPhoto, data: bytes) -> Finding | None:
        try:
            header = inspect(data, name=promise_of(photo.key, data), limits=NO_LIMITS)  # it was within its run's limits
            found, expected = (header.width_px, header.height_px), (photo.width_px, photo.height_px)
            if found != expected:
                sizes = [f"{width} × {height}" for width, height in (found, expected)]
                detail = f"it has {sizes[0]} pixels, and its row says {sizes[1]}"
                return Finding(Fault.WRONG_DIMENSIONS, photo.key, detail)
            if (size_bytes := COPIES * header.decoded_bytes) > PHOTO_BYTES:
                return None  # its bytes are those that were written, and that must do
            with self._room.taken(size_bytes):
                decode(data, header)
        except (PhotoRejected, ValueError, MemoryError) as error:
            return Finding(Fault.UNDECODABLE, photo.key, str(error) or type(error).__name__)
        return None

    def _check_commits(self, plan: ShardPlan, commits: tuple[CheckedCommit, ...]) -> Iterator[Finding]:
        for commit, data in self._set.store.read_many(commits):
            with self.looking_at(plan, commit.key, "check"):
                reason = commit_fault(commit, data)
            if reason is not None:
                yield Finding(Fault.DAMAGED_COMMIT, commit.key, reason)


@dataclass(frozen=True, slots=True)
class Digest:
    """What is known of an object without holding it."""

    size_bytes: int
    sha256: str


def digest_in_parts(store: Store, key: str) -> Digest | ObjectRefused:
    """The size and the hash of an object of any size."""
    hashed, size_bytes = hashlib.sha256(), 0
    try:
        while part := store.read_range(key, size_bytes, PART_BYTES):
            hashed.update(part)
            size_bytes += len(part)
    except ObjectRefused as error:
        return error
    return Digest(size_bytes, hashed.hexdigest())


def findings_table(findings: list[Finding]) -> pa.Table:
    columns = [[getattr(finding, name) for finding in findings] for name in FINDING_SCHEMA.names]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=FINDING_SCHEMA)


def commit_fault(commit: CheckedCommit, data: bytes | ObjectRefused) -> str | None:
    """What is wrong with a commit, or None. Rows of the index that came later are not in it, and it is no fault."""
    if isinstance(data, ObjectRefused):
        return str(data)
    try:
        rows = parse_commit(data, "it")
    except ImageSetError as error:
        return str(error)
    if len(rows) < commit.rows:
        return f"it has {len(rows)} rows, and the index {commit.rows} of them"
    if len(rows) == commit.rows and digest_of(rows) != commit.digest:
        return "its rows are others than those of the index"
    return None


def digest_of(rows: pa.Table) -> int:
    with duckdb.connect(config={"threads": 1}) as database:
        database.register("rows", rows)
        ((digest,),) = database.sql(f"SELECT {DIGEST} FROM rows").fetchall()
    return int(digest or 0)


def _is_large(photo: CheckedPhoto) -> bool:
    return photo.place is None and photo.size_bytes > IN_MEMORY_BYTES


def _check_shard(reader: PackedReader, place: str, photos: int) -> Finding | None:
    """Whether a packed shard can be read beside its photos, as those do who know nothing of the index."""
    try:
        reader.read_rows(place)
    except ObjectRefused as error:
        kind = Fault.MISSING_SHARD if isinstance(error, ObjectMissing) else Fault.DAMAGED_SHARD
        return Finding(kind, place, f"{photos:,} photos lie in it: {error}")
    return None
