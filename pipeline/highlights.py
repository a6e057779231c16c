"""What a person wants to see of a run that ended: what was rejected and why, and some photos before and after."""

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.database import open_database, scan
from pipeline.errors import DegrainError, ObjectRefused
from pipeline.images import decode, inspect
from pipeline.imageset import ImageSet
from pipeline.packed import promise_of
from pipeline.records import Layout, Outcome, PlannedPhoto
from pipeline.scratch import scratch_folder
from pipeline.sources import photos_of, read_photos
from pipeline.storage import Store, open_store

log = logging.getLogger(__name__)

MAX_REJECTED = 100  # rows that are told one by one
MAX_PICTURES = 4
MAX_PICTURE_PIXELS = 64_000_000  # larger photos are not decoded for a picture
DETAIL_PX = (320, 240)  # width and height of what is shown of a photo, as it is, without any scaling
GAP_PX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A detail of a photo before and, on the right of it, after: `data_url` is a JPEG that a page shows as it is."""

    key: str
    noise_sigma_before: float
    noise_sigma_after: float
    data_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Highlights:
    """Of an index: rejected photos by reason, the newest of them one by one; pictures of what was just denoised."""

    reasons: dict[str, int]
    rejected: list[dict[str, str]]
    pictures: list[Picture]


def find_highlights(target: str, *, since: datetime) -> Highlights:
    """Look at the published index of an image set.

    Args:
        target: path or URL of the image set.
        since: pictures are of photos that were finished then or later: the noisiest of them.

    Raises:
        StorageError: the set cannot be read.
    """
    image_set = ImageSet(open_store(target))
    manifest = image_set.read_manifest()
    with (
        image_set.local_index() as parts,
        scratch_folder() as folder,
        open_database(folder) as database,
    ):
        if manifest is None or not parts:
            return Highlights(reasons={}, rejected=[], pictures=[])
        rejected = f"FROM {scan(parts)} WHERE outcome = '{Outcome.REJECTED}'"
        reasons = database.execute(
            f"SELECT reason, count(*) {rejected} GROUP BY reason ORDER BY count(*) DESC, reason LIMIT {MAX_REJECTED}"
        ).fetchall()
        newest = database.execute(
            f"SELECT key, reason {rejected} ORDER BY finished_at DESC, key LIMIT {MAX_REJECTED}"
        ).fetchall()
        found = database.execute(
            f"FROM {scan(parts)} WHERE outcome = '{Outcome.DENOISED}' AND finished_at >= $since "
            f"AND width_px::BIGINT * height_px <= {MAX_PICTURE_PIXELS} ORDER BY noise_sigma_before DESC, key "
            f"LIMIT {MAX_PICTURES}",
            {"since": since},
        )
        rows = found.to_arrow_table().to_pylist()  # DuckDB's own rows want pytz for times
    return Highlights(
        reasons=dict(reasons),
        rejected=[{"key": key, "reason": reason} for key, reason in newest],
        pictures=_pictures(rows, open_store(manifest.source), image_set, manifest.layout),
    )


def draw_picture(key: str, before: bytes, after: bytes, *, sigma_before: float, sigma_after: float) -> Picture | None:
    """The detail in the middle of a photo, before and after; None where one of them cannot be drawn, which is told."""
    try:
        details = [_detail(data, key) for data in (before, after)]
    except DegrainError as error:
        log.warning("no picture of %s: %s", key, error)
        return None
    canvas = Image.new("RGB", (details[0].width * 2 + GAP_PX, details[0].height), "white")
    canvas.paste(details[0], (0, 0))
    canvas.paste(details[1], (details[0].width + GAP_PX, 0))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=90, subsampling=0)
    return Picture(
        key=key,
        noise_sigma_before=round(sigma_before, 2),
        noise_sigma_after=round(sigma_after, 2),
        data_url=f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}",
    )


def _pictures(
    rows: Sequence[dict[str, Any]], source: Store, image_set: ImageSet, layout: Layout
) -> list[Picture]:  # Any: the columns of the index
    """One for each row whose photo is still there as it was: a picture that cannot be drawn fails nothing."""
    try:
        befores = _read(source, rows, photos_of(source).image_set)
        afters = _read(image_set.store, rows, image_set if layout == Layout.PACKED else None, column="output_key")
    except DegrainError as error:
        log.warning("no pictures: %s", error)
        return []
    pictures = []
    for row in rows:
        before, after = befores.get(row["key"]), afters.get(row["key"])
        if before is None or after is None or sha256(before).hexdigest() != row["source_sha256"]:
            continue
        picture = draw_picture(
            row["key"],
            before,
            after,
            sigma_before=row["noise_sigma_before"],
            sigma_after=row["noise_sigma_after"],
        )
        if picture is not None:
            pictures.append(picture)
    return pictures


def _read(
    store: Store, rows: Sequence[dict[str, Any]], packed: ImageSet | None, *, column: str = "key"
) -> dict[str, bytes]:  # Any: the columns of the index
    """The bytes of the rows' photos by the rows' keys, from a packed set or from objects of their own."""
    places = {} if packed is None else find_places(packed, [row["key"] for row in rows])
    photos = {}
    for row in rows:
        key = row["key"] if packed is not None else row[column]
        photo = PlannedPhoto(key, row["source_size_bytes"], row["source_etag"], row["attempts"], places.get(row["key"]))
        [(_, data)] = read_photos(store, [photo])
        if not isinstance(data, ObjectRefused):
            photos[row["key"]] = data
    return photos


def find_places(packed: ImageSet, keys: Sequence[str]) -> dict[str, str]:
    """In which shards of a packed image set the photos of these keys lie."""
    with (
        packed.local_index() as parts,
        scratch_folder() as folder,
        open_database(folder) as database,
    ):
        query = f"SELECT key, output_key FROM {scan(parts)} WHERE key IN $keys AND output_key IS NOT NULL"
        return dict(database.execute(query, {"keys": list(keys)}).fetchall())


def _detail(data: bytes, key: str) -> Image.Image:
    colour = decode(data, inspect(data, name=promise_of(key, data))).colour
    width_px, height_px = min(DETAIL_PX[0], colour.shape[1]), min(DETAIL_PX[1], colour.shape[0])
    left, top = (colour.shape[1] - width_px) // 2, (colour.shape[0] - height_px) // 2
    return Image.fromarray(_as_8bit(colour[top : top + height_px, left : left + width_px])).convert("RGB")


def _as_8bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:  # Any: uint8 or uint16
    return (pixels // 257 if pixels.dtype == np.uint16 else pixels).astype(np.uint8)
