"""`degrain report`: what became of an image set as one HTML page that needs nothing but itself.

Numbers come from the index by DuckDB, however many rows it has; a few photos are read, one at a time, for pictures.
Keys and all else that strangers wrote are escaped by the template, and the page's own policy lets nothing run that we
did not write, and nothing be loaded.
"""

import base64
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from pipeline.charts import Series, draw_histogram, draw_spark, draw_timeline, nice_step
from pipeline.database import count_rows, open_database
from pipeline.errors import DegrainError, ObjectRefused, PhotoRejected, StorageError
from pipeline.highlights import find_places
from pipeline.imageset import ImageSet
from pipeline.index import scan_index
from pipeline.manifest import Manifest
from pipeline.pictures import Pair, Picture, draw_pair, draw_whole, open_photo
from pipeline.records import STAGES, Layout, Outcome, PlannedPhoto
from pipeline.redaction import printable, redacted
from pipeline.scratch import scratch_folder
from pipeline.sources import Source, photos_of, read_photos
from pipeline.storage import Destination, open_store

FOLDER = Path(__file__).parent / "page"
MIN_BINS, MAX_BINS = 8, 32
MOMENTS = 60  # into which the time of a run is cut
MAX_BYTES = 512 * 1024**2  # of a photo that is read for a picture
REASONS = 20  # that are counted one by one
REJECTED = 24  # photos that are told one by one
CONTENT_TYPE = "text/html; charset=utf-8"
MAX_LINK_S = 7 * 24 * 3600  # longer ones no store signs
ENDPOINT = r"https?://[^\s/?#@]+/?"
COLUMNS = (
    "key", "source_size_bytes", "source_etag", "source_sha256", "outcome", "reason", "output_key", "output_size_bytes",
    "output_sha256", "format", "width_px", "height_px", "camera", "iso", "taken_at", "noise_sigma_before",
    "noise_sigma_after", "strength", "change_psnr_db", *(f"{stage}_s" for stage in STAGES),
)  # fmt: skip
GROUPS = {"changed": "Most changed", "noisiest": "Noisiest", "random": "At random"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportJob:
    """What `degrain report` is asked to do.

    Attributes:
        target: path or URL of an image set.
        output: path or URL of the page to write, whose name ends in .html; one that is there is replaced.
        photos: in each group that is shown.
        link_s: for how many seconds a link to the page works for whoever has it, if its store can sign one; None for
            no link.
        link_endpoint: where browsers reach the store, http://host:port, if that is elsewhere than where we do.
    """

    target: str
    output: str
    photos: int = 4
    link_s: int | None = None
    link_endpoint: str | None = None

    def __post_init__(self) -> None:
        if not self.output.lower().endswith((".html", ".htm")):
            raise ValueError(f"the report would be {self.output}: expected a name that ends in .html")
        if not 0 <= self.photos <= 50:
            raise ValueError(f"photos is {self.photos}: expected 0 to 50, or no browser could open the page")
        if self.link_s is not None and not 1 <= self.link_s <= MAX_LINK_S:
            raise ValueError(f"link_s is {self.link_s}: expected 1 to {MAX_LINK_S:,} seconds, a week")
        if self.link_endpoint is not None and not re.fullmatch(ENDPOINT, self.link_endpoint):
            raise ValueError(
                f"link_endpoint is {redacted(self.link_endpoint)}: expected http://host:port or https://host"
            )


@dataclass(slots=True, kw_only=True)
class ShownPhoto:
    """A row of the index, the groups in which it is shown (with its place in each), and its pictures or why not."""

    row: dict[str, Any]  # Any: the columns of the index
    groups: dict[str, int] = field(default_factory=dict)
    pair: Pair | None = None
    whole: Picture | None = None
    note: str = ""

    @property
    def seconds(self) -> float:
        return float(sum(self.row[f"{stage}_s"] or 0 for stage in STAGES))


def run_report(job: ReportJob) -> dict[str, Any]:  # Any: JSON
    """Write the page. Returns what it is about, for `--json`.

    Raises:
        ValueError: there is no image set.
        DegrainError: it cannot be read, or the page cannot be written.
    """
    destination = Destination.at(job.output)
    page = render(job).encode()
    store, key = destination.store, destination.key
    store.write(key, page, content_type=CONTENT_TYPE)
    link = None
    if job.link_s is not None:
        link = store.link(key, expires_s=job.link_s, content_type=CONTENT_TYPE, endpoint=job.link_endpoint)
    store.close()
    return {"report": job.output, "bytes": len(page), **({} if link is None else {"link": link})}


def render(job: ReportJob) -> str:
    """The page, as text."""
    image_set = ImageSet(open_store(job.target))
    manifest = image_set.read_manifest()
    if manifest is None:
        raise ValueError(f"there is no image set at {image_set.store.url}")
    with (
        image_set.local_index() as parts,
        scratch_folder() as folder,
        open_database(folder) as database,
    ):
        if not any(manifest.counts.values()):
            raise ValueError(f"nothing is done in {image_set.store.url} yet: there is nothing to report")
        database.execute(f"CREATE VIEW photos AS FROM {scan_index(parts, folder)}")
        facts = {**_totals(database), **_noise(database), **_work(database)}
        chosen = _choose(database, job.photos)
        rejected = _rejected(database)
    drawn = rejected[: job.photos * 2]
    pictures = _Pictures(image_set, manifest, [photo.row["key"] for photo in (*chosen, *drawn)])
    for photo in chosen:
        pictures.draw_result(photo)
    for photo in drawn:
        pictures.draw_source(photo)
    page: str = _page().render(
        **facts,
        manifest=manifest,
        target=image_set.store.url,
        weights=_weights(image_set, manifest.run),
        photos=chosen,
        groups={name: title for name, title in GROUPS.items() if any(name in photo.groups for photo in chosen)},
        rejected=rejected,
        written_at=datetime.now(UTC),
        version=version("degrain"),
    )
    return page


def _page() -> Any:  # Any: jinja2's template
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shown=printable, count=_count, bytes=_bytes, seconds=_seconds)
    style, script = ((FOLDER / name).read_text() for name in ("report.css", "report.js"))
    environment.globals.update(
        style=Markup(style),  # noqa: S704  # our own
        script=Markup(script),  # noqa: S704  # our own
        policy=f"default-src 'none'; img-src data:; style-src {_hashed(style)}; script-src {_hashed(script)}; "
        "base-uri 'none'; form-action 'none'",
    )
    return environment.get_template("report.html")


def _hashed(text: str) -> str:
    """What a Content Security Policy names an inline element by."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def _totals(database: duckdb.DuckDBPyConnection) -> dict[str, Any]:  # Any: values for the template
    outcomes = dict(database.sql("SELECT outcome, count(*) FROM photos GROUP BY outcome").fetchall())
    ((read_bytes, written_bytes, megapixels),) = database.sql(
        "SELECT coalesce(sum(source_size_bytes), 0), coalesce(sum(output_size_bytes), 0), "
        "coalesce(sum(megapixels) FILTER (output_key IS NOT NULL), 0) FROM photos"
    ).fetchall()
    reasons = database.sql(
        "SELECT outcome, reason, count(*) FROM photos WHERE reason IS NOT NULL "
        f"GROUP BY ALL ORDER BY count(*) DESC, outcome, reason LIMIT {REASONS + 1}"
    ).fetchall()
    return {
        "inputs": sum(outcomes.values()),
        "outcomes": {str(name): outcomes[name] for name in Outcome if name in outcomes},
        "read_bytes": int(read_bytes),
        "written_bytes": int(written_bytes),
        "megapixels": float(megapixels),
        "reasons": [dict(zip(("outcome", "reason", "photos"), row, strict=True)) for row in reasons[:REASONS]],
        "has_more_reasons": len(reasons) > REASONS,
    }


def _noise(database: duckdb.DuckDBPyConnection) -> dict[str, Any]:  # Any: values for the template
    """Histograms of noise before and after, and of change; None where nothing was denoised."""
    before, after, change = (
        database.sql(
            f"SELECT approx_quantile({column}, 0.5), approx_quantile({column}, 0.995), min({column}) FROM photos "
            f"WHERE outcome = '{Outcome.DENOISED}' AND {column} IS NOT NULL"
        ).fetchall()[0]
        for column in ("noise_sigma_before", "noise_sigma_after", "change_psnr_db")
    )
    if before[0] is None or after[0] is None:
        return {"noise_chart": None, "change_chart": None, "noise": None, "change_db": None}
    bins = _bins(database)
    step = nice_step(max(before[1], after[1]), bins)
    counts = [_counts(database, name, 0, step, bins) for name in ("noise_sigma_before", "noise_sigma_after")]
    longest = max(map(len, counts))
    summary = f"Noise: median {before[0]:.1f} levels before, {after[0]:.1f} after"
    charts: dict[str, Any] = {  # Any: as above
        "noise": {"before": before[0], "after": after[0]},
        "noise_chart": draw_histogram(
            [
                Series(name, [*values, *[0] * (longest - len(values))])
                for name, values in zip(("before", "after"), counts, strict=True)
            ],
            start=0,
            step=step,
            unit="σ in 8-bit levels",
            summary=summary,
        ),
        "change_db": change[0],
        "change_chart": None,
    }
    if change[0] is not None:
        step = nice_step(max(change[1] - change[2], 1), bins)
        start = int(change[2] // step) * step
        charts["change_chart"] = draw_histogram(
            [Series("change", _counts(database, "change_psnr_db", start, step, bins))],
            start=start,
            step=step,
            unit="dB",
            summary=f"Change: median {change[0]:.1f} dB",
        )
    return charts


def _bins(database: duckdb.DuckDBPyConnection) -> int:
    """Few photos make few bins."""
    photos = count_rows(database, f"FROM photos WHERE outcome = '{Outcome.DENOISED}'")
    return int(min(MAX_BINS, max(MIN_BINS, 2 * photos**0.5)))


def _counts(database: duckdb.DuckDBPyConnection, column: str, start: float, step: float, bins: int) -> list[int]:
    """Denoised photos in each bin; the last one holds all beyond it."""
    rows = database.execute(
        f"SELECT least(greatest(floor(({column} - $start) / $step), 0), {bins - 1})::INT AS bin, count(*) FROM photos "
        f"WHERE outcome = '{Outcome.DENOISED}' AND isfinite({column}) GROUP BY bin",
        {"start": start, "step": step},
    ).fetchall()
    counts = dict(rows)
    return [counts.get(place, 0) for place in range(max(counts, default=0) + 1)]


def _work(database: duckdb.DuckDBPyConnection) -> dict[str, Any]:  # Any: values for the template
    """How fast the run went that has most of the rows: in all, and each stage of a worker."""
    run, photos = database.sql(
        "SELECT run, count(*) AS photos FROM photos GROUP BY run ORDER BY photos DESC, run DESC LIMIT 1"
    ).fetchall()[0]
    stages = ", ".join(f"sum({stage}_s), sum(megapixels) FILTER ({stage}_s > 0)" for stage in STAGES)
    of_run = "FROM photos WHERE run = $run AND megapixels IS NOT NULL"
    ((first_us, last_us),) = database.execute(
        f"SELECT epoch_us(min(finished_at)), epoch_us(max(finished_at)) {of_run}", {"run": run}
    ).fetchall()
    work: dict[str, Any] = {"work_run": run, "work_photos": photos, "work_chart": None, "stages": []}  # Any: as above
    if first_us is None:
        return work
    width_us = max(1, -(-(last_us - first_us + 1) // min(MOMENTS, max(6, photos // 3))))
    moments = database.execute(
        f"SELECT ((epoch_us(finished_at) - $first) // $width)::INT AS moment, sum(megapixels), {stages} {of_run} "
        "GROUP BY moment ORDER BY moment",
        {"run": run, "first": first_us, "width": width_us},
    ).fetchall()
    per_s = [0.0] * (int((last_us - first_us) // width_us) + 1)
    for moment, megapixels, *_ in moments:
        per_s[moment] = megapixels / (width_us / 1e6)
    span_s = (last_us - first_us) / 1e6
    total = sum(row[1] for row in moments)
    work |= {"work_s": span_s, "work_first": _moment(first_us), "work_last": _moment(last_us), "work_megapixels": total}
    if len(per_s) > 1:
        work["work_chart"] = draw_timeline(
            per_s,
            unit="megapixels/s",
            labels=(f"{_moment(first_us):%d %b, %H:%M:%S}", f"{_moment(last_us):%H:%M:%S} UTC"),
            summary=f"Megapixels finished each second: {total / span_s:.2f} on average, {max(per_s):.2f} at most",
        )
    for number, stage in enumerate(STAGES):
        timed = [(row[2 + 2 * number], row[3 + 2 * number]) for row in moments]
        speeds = [megapixels / seconds for seconds, megapixels in timed if seconds and megapixels]
        if speeds:
            spent_s, done = sum(seconds for seconds, _ in timed), sum(each or 0 for _, each in timed)
            chart = draw_spark(speeds, summary=f"{stage}: {done / spent_s:.1f} megapixels a second while at it")
            work["stages"].append({"name": stage, "speed": done / spent_s, "seconds": spent_s, "chart": chart})
    all_s = sum(each["seconds"] for each in work["stages"]) or 1
    for each in work["stages"]:
        each["share"] = each["seconds"] / all_s
    return work


def _choose(database: duckdb.DuckDBPyConnection, count: int) -> list[ShownPhoto]:
    """Photos of each group; one that belongs to several is there once."""
    denoised = f"outcome = '{Outcome.DENOISED}'"
    orders = {
        "changed": f"{denoised} AND change_psnr_db IS NOT NULL ORDER BY change_psnr_db, key",
        "noisiest": f"{denoised} AND isfinite(noise_sigma_before) ORDER BY noise_sigma_before DESC, key",
        "random": f"outcome IN ('{Outcome.DENOISED}', '{Outcome.PACKED}') ORDER BY md5('report ' || key), key",
    }
    chosen: dict[str, ShownPhoto] = {}
    for group, order in orders.items():
        for place, row in enumerate(_rows(database, f"{order} LIMIT {count}")):
            chosen.setdefault(row["key"], ShownPhoto(row=row)).groups[group] = place
    return list(chosen.values())


def _rejected(database: duckdb.DuckDBPyConnection) -> list[ShownPhoto]:
    """Rejected photos: one of each reason, then a second one, and so on."""
    turn = "row_number() OVER (PARTITION BY reason ORDER BY key)"
    condition = f"outcome = '{Outcome.REJECTED}' QUALIFY {turn} <= {REJECTED} ORDER BY {turn}, key LIMIT {REJECTED}"
    rows = _rows(database, condition)
    return [ShownPhoto(row=row) for row in rows]


def _rows(database: duckdb.DuckDBPyConnection, condition: str) -> Iterator[dict[str, Any]]:  # Any: the columns
    found = database.sql(f"SELECT {', '.join(COLUMNS)} FROM photos WHERE {condition}").fetchall()
    return (dict(zip(COLUMNS, row, strict=True)) for row in found)


class _Pictures:
    """Draws photos from where they lie, one at a time. What cannot be shown is noted, and fails nothing."""

    def __init__(self, image_set: ImageSet, manifest: Manifest, keys: list[str]) -> None:
        self._set = image_set
        self._keys = keys
        self._is_packed = manifest.layout == Layout.PACKED
        self._url = manifest.source
        self._source: Source | None = None
        self._failure: StorageError | None = None  # of the whole source: another photo would wait for it as long
        self._places: dict[str, str] | None = None  # in a packed source: looked for once, in all of its index

    def draw_result(self, photo: ShownPhoto) -> None:
        row, before = photo.row, None
        try:
            after = self._read_result(row)
        except (DegrainError, ValueError) as error:
            photo.note = f"The result cannot be shown: {error}"
            return
        try:
            before = self._read_source(row)
        except (DegrainError, ValueError) as error:
            photo.note = f"The source cannot be shown: {error}"
        photo.pair = draw_pair(before, after)

    def draw_source(self, photo: ShownPhoto) -> None:
        if photo.row["source_sha256"] is None:
            return  # no worker came to the end of reading it: it may end this process as it ended theirs
        with suppress(DegrainError, ValueError):
            photo.whole = draw_whole(self._read_source(photo.row))

    def _read_result(self, row: dict[str, Any]) -> Image.Image:  # Any: the columns of the index
        _check_size(row["output_size_bytes"])
        planned = PlannedPhoto(
            row["key"] if self._is_packed else row["output_key"],
            row["output_size_bytes"],
            row["output_sha256"],
            1,
            row["output_key"] if self._is_packed else None,
        )
        [(_, data)] = read_photos(self._set.store, [planned])
        if not isinstance(data, bytes):
            raise data
        if sha256(data).hexdigest() != row["output_sha256"]:
            raise PhotoRejected("it is not as its row says (see: degrain verify)")
        return open_photo(data, row["key"])

    def _read_source(self, row: dict[str, Any]) -> Image.Image:  # Any: the columns of the index
        if self._failure is not None:
            raise self._failure
        try:
            return self._read_from(row)
        except StorageError as error:
            if not isinstance(error, ObjectRefused):
                self._failure = error
            raise

    def _read_from(self, row: dict[str, Any]) -> Image.Image:  # Any: the columns of the index
        self._source = source = self._source or photos_of(open_store(self._url))
        place = None
        if source.is_packed and source.image_set is not None:
            if self._places is None:
                self._places = find_places(source.image_set, self._keys)
            place = self._places.get(row["key"])
            if place is None:
                raise PhotoRejected("it is no longer in its image set")
        _check_size(row["source_size_bytes"])
        planned = PlannedPhoto(row["key"], row["source_size_bytes"], row["source_etag"], 1, place)
        [(_, data)] = read_photos(source.store, [planned])
        if not isinstance(data, bytes):
            raise data
        if row["source_sha256"] not in (None, sha256(data).hexdigest()):
            raise PhotoRejected("it has changed since")
        return open_photo(data, row["key"])


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise PhotoRejected(f"it has {_bytes(size_bytes)}, too many to be shown here")


def _weights(image_set: ImageSet, run: str) -> str:
    """What the weights of a run are called, as far as its record tells."""
    with suppress(DegrainError):
        settings = image_set.read_record(run).get("settings")
        return str(settings.get("weights", "")) if isinstance(settings, dict) else ""
    return ""


def _moment(epoch_us: int) -> datetime:
    return datetime.fromtimestamp(epoch_us / 1e6, UTC)


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\u202f")  # a narrow space that does not break


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("the last unit takes all")


def _seconds(number: float) -> str:
    if number < 0.0005:
        return "none"
    if number < 1:
        return f"{number * 1000:.0f} ms"
    if number < 120:
        return f"{number:.1f} s"
    minutes, hours = number / 60, number / 3600
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
