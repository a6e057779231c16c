"""What can be a source: a collection of objects, or an image set. How it is listed, and how its photos are read."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ImageSetError, ObjectRefused
from pipeline.imageset import ImageSet
from pipeline.key_table import write_listing_from_index, write_listing_from_table
from pipeline.listing import write_listing
from pipeline.local_store import LocalStore
from pipeline.packed import PackedReader
from pipeline.records import Layout, PlannedPhoto, SourceObject
from pipeline.scratch import scratch_folder
from pipeline.storage import Store, open_store, prefix_in
from pipeline.subset import Subset, split_of

READ_AHEAD_BYTES = 32 * 1024**2  # of photos that one shard in work has read, or is reading, before they are taken
FOLDERS = 10_000  # of which is remembered that they are not the target
P = TypeVar("P", SourceObject, PlannedPhoto)


@dataclass(frozen=True, slots=True)
class Source:
    """Photos, each with a key below the store's root: objects of their own, or packed into the shards of a set.

    Attributes:
        image_set: the one whose photos they are, if they are of one: then its index lists them.
        subset: which of those.
        key_table: path or URL of a table that lists them, where they are of none.
    """

    store: Store
    image_set: ImageSet | None = None
    is_packed: bool = False
    subset: Subset = field(default_factory=Subset)
    key_table: str | None = None

    @property
    def url(self) -> str:
        return self.store.url

    def write_listing(self, path: Path, *, target: Store) -> int:
        """Stream the listing to a file, leaving out a target that lies in the source; returns the number of photos.

        Of an image set, the etag of a photo is the hash of its bytes.

        Raises:
            ValueError: the table of keys is wrong, or the filter meets what it cannot compare.
        """
        if self.image_set is not None:
            with self.image_set.local_index() as parts:
                return write_listing_from_index(parts, self.subset, path, is_packed=self.is_packed)
        inside = prefix_in(target, self.store)
        if self.key_table is not None:
            return write_listing_from_table(self.key_table, self.url, path, leave_out=inside)
        objects = self.store.list()
        if inside is not None:
            objects = (found for found in objects if not found.key.startswith(inside))
        elif isinstance(self.store, LocalStore) and isinstance(target, LocalStore) and target.root.is_dir():
            objects = _outside(self.store, target.root.stat())
        return write_listing(objects, path)

    def table(self) -> pa.Table:
        """The photos of the subset in the order in which they are read best, with the columns of a listing.

        Exact duplicates in an image set are left out, but for the first.
        """
        with scratch_folder() as folder:
            path = folder / "listing.parquet"
            if self.image_set is None:
                write_listing(self._in_split(), path)
            else:
                with self.image_set.local_index() as parts:
                    write_listing_from_index(parts, self.subset, path, is_packed=self.is_packed, is_distinct=True)
            return pq.read_table(path).sort_by([("place", "ascending"), ("key", "ascending")])

    def read(self, photos: pa.Table) -> Iterator[tuple[str, bytes | ObjectRefused]]:
        """Photos by rows of `table`: their keys and bytes, in that order.

        Raises:
            StorageError: the store cannot be read.
        """
        wanted = [SourceObject(**row) for row in photos.to_pylist()]
        return ((photo.key, data) for photo, data in read_photos(self.store, wanted))

    def _in_split(self) -> Iterator[SourceObject]:
        split, fraction = self.subset.split, self.subset.validation_fraction
        return (found for found in self.store.list() if split is None or split_of(found.key, fraction) == split)


def open_both(
    source_url: str, target_url: str, *, key_table: str | None = None, where: str = ""
) -> tuple[Source, Store]:
    """The photos of a source, and the store of a target.

    Args:
        key_table: path or URL of a table that lists a source that is no image set.
        where: a filter over the index of one that is.

    Raises:
        ValueError: they cannot be used together.
    """
    subset = Subset(where=where)
    source, target = open_store(source_url), open_store(target_url)
    if any(store.url.startswith("memory://") for store in (source, target)):
        raise ValueError(
            "memory:// is seen by one process alone, and the workers are others: name a folder or a bucket"
        )
    place = prefix_in(source, target)
    if place == "":
        raise ValueError(f"source and target are both {source.url}: degrain never writes to its source")
    with suppress(OSError):  # whoever writes there tells of it
        if Path(target.url).is_file():
            raise ValueError(f"the target {target.url} is a file: name a folder or a bucket")
    if place is not None:
        raise ValueError(f"the source {source.url} lies in the target {target.url}: name a target outside of it")
    photos = photos_of(source, subset)
    if photos.image_set is not None and prefix_in(target, source) is not None:
        raise ValueError(f"the target {target.url} lies in the image set {source.url}: name a target outside of it")
    if photos.image_set is not None and key_table is not None:
        raise ValueError(f"{source.url} is an image set: its own index lists its photos, and no table of keys does")
    return dataclasses.replace(photos, key_table=key_table), target


def photos_of(store: Store, subset: Subset | None = None) -> Source:
    """The photos of an image set, where the store is one, and otherwise all that is in it; or a subset of them.

    Raises:
        ValueError: the store is one file; or there is a filter, and no index to filter by.
        ImageSetError, ObjectRefused: it is an image set, of which this version cannot read the manifest.
    """
    if Path(store.url).is_file():
        raise ValueError(f"{store.url} is one file: name a folder, a bucket or an image set")
    subset = subset or Subset()
    try:
        manifest = ImageSet(store).read_manifest()
    except (ImageSetError, ObjectRefused):
        if next(ImageSet(store).list_commits(), None) is not None:
            raise
        manifest = None  # it is that of something else
    if manifest is None:
        if subset.where:
            raise ValueError(f"{store.url} is no image set, and there is no index to filter by: ingest it first")
        return Source(store, subset=subset)
    if manifest.layout == Layout.PACKED:
        return Source(store, ImageSet(store), is_packed=True, subset=subset)
    return Source(open_store(f"{store.url}/images"), ImageSet(store), subset=subset)


def _outside(store: LocalStore, place: os.stat_result) -> Iterator[SourceObject]:
    """All objects of a store but those in one folder, whatever that is called there.

    Of a folder that is mounted twice, as containers have them, the names do not tell.
    """

    @lru_cache(FOLDERS)
    def is_it(folder: PurePosixPath) -> bool:
        with suppress(OSError):
            return os.path.samestat((store.root / folder).lstat(), place)
        return False

    folder, is_inside = "", False
    for found in store.list():
        if found.key.rpartition("/")[0] != folder:
            folder = found.key.rpartition("/")[0]
            is_inside = any(map(is_it, PurePosixPath(found.key).parents))
        if not is_inside:
            yield found


def read_photos(store: Store, photos: Sequence[P]) -> Iterator[tuple[P, bytes | ObjectRefused]]:
    """Photos with their bytes, in the order asked; some are read ahead. What refuses one stands in its place.

    Raises:
        StorageError: the store cannot be read.
    """
    if any(photo.place is not None for photo in photos):
        return PackedReader(store).read_many(photos)
    return store.read_many(photos, ahead_bytes=READ_AHEAD_BYTES)
