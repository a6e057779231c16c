"""Clean photos, to train on and to measure by: the 8-bit colour ones of a collection, in the order of their keys."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ObjectRefused, PhotoRejected
from pipeline.images import decode, inspect
from pipeline.packed import promise_of
from pipeline.sources import Source, photos_of
from pipeline.storage import open_store
from pipeline.subset import Subset

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class CleanPhoto:
    """One photo: its key, the sha256 of its file, and its pixels as (H, W, 3)."""

    key: str
    sha256: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CleanPhotos:
    """The clean ones among listed photos, which are read each time that one goes over them.

    Those that are of no use are told of once, and not read again after one has gone over all.

    Attributes:
        photos: rows of the source's `table`, in the order in which they are read.
        min_side_px: of smaller ones there are none.
    """

    source: Source
    photos: pa.Table
    min_side_px: int = 1
    _useless: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __iter__(self) -> Iterator[CleanPhoto]:
        """The photos, as they are read.

        Raises:
            ValueError: there are none.
            StorageError: the source cannot be read.
        """
        if not len(self.photos):
            raise ValueError(f"there are no photos in {self.source.url}: it is empty, or does not exist")
        listed = self.photos.filter(pc.invert(pc.is_in(self.photos["key"], pa.array(self._useless, pa.string()))))
        useful = set()
        for photo in clean_among(self.source.read(listed), min_side_px=self.min_side_px):
            useful.add(photo.key)
            yield photo
        if not useful:
            raise no_clean_photos(self.source, min_side_px=self.min_side_px)
        self._useless.update(set(listed["key"].to_pylist()) - useful)

    def only(self, keys: Iterable[str]) -> Self:
        """Those with these keys."""
        is_wanted = pc.is_in(self.photos["key"], pa.array(keys, pa.string()))
        return dataclasses.replace(self, photos=self.photos.filter(is_wanted))


def find_clean_photos(collection: str, subset: Subset | None = None, *, min_side_px: int = 1) -> CleanPhotos:
    """The clean photos of a collection, by key. Of an image set, exact duplicates are left out.

    Raises:
        ValueError: there is a filter and no index to filter by.
        StorageError: the collection cannot be listed.
    """
    source = photos_of(open_store(collection), subset)
    return CleanPhotos(source, source.table().sort_by("key"), min_side_px)


def no_clean_photos(source: Source, *, min_side_px: int) -> ValueError:
    """What is raised where a source has none."""
    return ValueError(f"there are no 8-bit colour photos of at least {min_side_px} pixels a side in {source.url}")


def clean_among(files: Iterable[tuple[str, bytes | ObjectRefused]], *, min_side_px: int) -> Iterator[CleanPhoto]:
    """The photos among files, by key, that have 8 bits, colour and the size; the log names those that do not."""
    for key, data in files:
        try:
            if isinstance(data, ObjectRefused):
                raise data
            pixels = _decode_colour(data, key, min_side_px)
        except (PhotoRejected, ObjectRefused) as error:
            log.warning("left out %s: %s", key, error)
            continue
        yield CleanPhoto(key, hashlib.sha256(data).hexdigest(), pixels)


def digest_of(photos: Iterable[tuple[str, str]]) -> str:
    """What identifies photos, given the key and sha256 of each: what `sha256sum * | LC_ALL=C sort | sha256sum` prints.

    An etag may stand for a sha256 that is not known: then it identifies them in their store, while nobody touches them.
    """
    lines = sorted(f"{sha256}  {key}\n".encode() for key, sha256 in photos)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _decode_colour(data: bytes, key: str, min_side_px: int) -> NDArray[np.uint8]:
    header = inspect(data, name=promise_of(key, data))
    if header.untouched_reason is not None:
        raise PhotoRejected(header.untouched_reason)
    colour = decode(data, header).colour
    if colour.ndim != 3 or colour.dtype != np.uint8:
        raise PhotoRejected("not an 8-bit colour photo")
    if (side_px := min(colour.shape[:2])) < min_side_px:
        raise PhotoRejected(f"a side has {side_px} pixels, and {min_side_px} are needed")
    return colour
