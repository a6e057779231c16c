"""The values that travel between processes, and every Arrow schema: the only place where columns are named."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum

import pyarrow as pa

STAGES = ("read", "decode", "denoise", "encode", "write")  # of a photo: the columns `read_s`, …


class Outcome(StrEnum):
    """How an input ended. Every input has exactly one.

    `denoise` makes what is denoised or untouched, `ingest` what is packed or skipped (it is a photo, and the settings
    leave it out); either rejects what it cannot use.
    """

    DENOISED = "denoised"
    UNTOUCHED = "untouched"
    PACKED = "packed"
    SKIPPED = "skipped"
    REJECTED = "rejected"


class Status(StrEnum):
    """What planning says of an input, compared with what the target already holds.

    `PLANNED` inputs are left to be done under the plan of an interrupted run.
    """

    NEW = "new"
    CHANGED = "changed"
    STALE = "stale"
    FAILED = "failed"
    PLANNED = "planned"
    UP_TO_DATE = "up_to_date"


class Fault(StrEnum):
    """In what an image set and its index can disagree. What is said of a photo names its key, and else an object."""

    MISSING = "missing"
    WRONG_SIZE = "wrong_size"
    WRONG_BYTES = "wrong_bytes"
    UNREADABLE = "unreadable"
    UNDECODABLE = "undecodable"
    WRONG_DIMENSIONS = "wrong_dimensions"
    WRONG_ROW = "wrong_row"
    MISSING_ROW = "missing_row"
    DUPLICATE_ROW = "duplicate_row"
    MISSING_SHARD = "missing_shard"
    DAMAGED_SHARD = "damaged_shard"
    MISSING_COMMIT = "missing_commit"
    DAMAGED_COMMIT = "damaged_commit"
    DAMAGED_PART = "damaged_part"
    STRAY_PART = "stray_part"
    WRONG_COUNTS = "wrong_counts"
    DAMAGED_PLAN = "damaged_plan"
    DAMAGED_RECORD = "damaged_record"
    ORPHAN = "orphan"
    LEFTOVER = "leftover"


class Layout(StrEnum):
    """How an image set keeps its photos: one object each under the source's name, or packed into Parquet shards."""

    FILES = "files"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object of a listing. `key` is relative to the listed root, with `/` between its parts.

    `place` is the object that holds its bytes beside others, in a packed image set; None where it is its own.
    """

    key: str
    size_bytes: int
    etag: str
    place: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedPhoto:
    """One input that a run will process. `attempt` counts from 1 over all runs that tried this key.

    `place` is as in `SourceObject`.
    """

    key: str
    size_bytes: int
    etag: str
    attempt: int
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in an image set that is not as its index says. `key` is a photo's, or that of an object of the set."""

    kind: Fault
    key: str
    detail: str


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The unit of work: photos that one worker processes and commits together.

    `shard` is a hash of the photos (key, size, etag, attempt), the weights and the parameters: the same work has the
    same name wherever and whenever it runs.
    """

    shard: str
    run: str
    photos: tuple[PlannedPhoto, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoRecord:
    """One row of the index: what went in, what came out, and why.

    Attributes:
        key: the source's key.
        output_key: where the result lies in the target, None where there is none (rejected, skipped).
        output_width_px, output_height_px: of the result: others than the source's where it was resized.
        format, width_px, height_px, mode, bit_depth, orientation: of the source, as far as it could be read.
        camera: make and model, as EXIF has them.
        iso: sensitivity, as EXIF has it.
        taken_at: what the camera's clock showed, as EXIF has it: without a time zone.
        noise_sigma_before, noise_sigma_after: estimated standard deviation of the noise, in 8-bit levels.
        chroma_share: share of the estimated noise variance that is in the colour, 0–1.
        strength: share of the network's correction that was applied, 0–1; 0 where a photo was measured and left alone.
        change_psnr_db: PSNR of the result against the source; larger means less was changed; None where nothing was. Of
            a large photo in memory, as the next, by evenly spread rows of about a megapixel.
        clipped_fraction: share of the source's samples at either end of their range.
        weights, parameters: content hashes of what made the result.
        read_s, decode_s, denoise_s, encode_s, write_s: seconds that each stage took.
        attempts: how many runs have tried this key: the same work done again, for whatever reason, is another shard.
    """

    key: str
    source_etag: str
    source_size_bytes: int
    source_sha256: str | None = None
    outcome: Outcome
    reason: str | None = None
    output_key: str | None = None
    output_size_bytes: int | None = None
    output_sha256: str | None = None
    output_width_px: int | None = None
    output_height_px: int | None = None
    format: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    mode: str | None = None
    bit_depth: int | None = None
    orientation: int | None = None
    camera: str | None = None
    iso: int | None = None
    taken_at: datetime | None = None
    noise_sigma_before: float | None = None
    noise_sigma_after: float | None = None
    chroma_share: float | None = None
    strength: float | None = None
    change_psnr_db: float | None = None
    clipped_fraction: float | None = None
    weights: str
    parameters: str
    run: str
    shard: str
    read_s: float = 0.0
    decode_s: float = 0.0
    denoise_s: float = 0.0
    encode_s: float = 0.0
    write_s: float = 0.0
    attempts: int
    finished_at: datetime

    @property
    def megapixels(self) -> float | None:
        """Size of the source, None where it could not be read."""
        if self.width_px is None or self.height_px is None:
            return None
        return self.width_px * self.height_px / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a worker says of a committed shard: counts, never pixels.

    Attributes:
        stage_s: seconds in each stage, summed over the photos.
        retries, throttled: requests to stores that the worker made again since its last receipt, and those of them that
            a store had put off.
    """

    shard: str
    outcomes: dict[Outcome, int]
    megapixels: float
    bytes_read: int
    bytes_written: int
    seconds: float
    stage_s: dict[str, float] = field(default_factory=dict)
    retries: int = 0
    throttled: int = 0

    @property
    def photos(self) -> int:
        return sum(self.outcomes.values())

    @classmethod
    def of(cls, shard: str, records: Sequence[PhotoRecord], seconds: float) -> "Receipt":
        """The receipt for a shard with these rows, which took so long."""
        return cls(
            shard=shard,
            outcomes=dict(Counter(record.outcome for record in records)),
            megapixels=sum(record.megapixels or 0 for record in records),
            bytes_read=sum(record.source_size_bytes for record in records if record.source_sha256 is not None),
            bytes_written=sum(record.output_size_bytes or 0 for record in records),
            seconds=seconds,
            stage_s={stage: sum(getattr(record, f"{stage}_s") for record in records) for stage in STAGES},
        )


LISTING_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("place", pa.string()),
    ]
)

PLAN_SCHEMA = pa.schema(
    [
        *LISTING_SCHEMA,
        pa.field("status", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
    ]
)

GONE = "gone since it was listed"  # begins the reason of a photo that nobody could read any more

DUPLICATE_OF = "duplicate_of"  # the first key with the same bytes: a fact of the whole index, made when it is published

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source_etag", pa.string(), nullable=False),
        pa.field("source_size_bytes", pa.int64(), nullable=False),
        pa.field("source_sha256", pa.string()),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("output_key", pa.string()),
        pa.field("output_size_bytes", pa.int64()),
        pa.field("output_sha256", pa.string()),
        pa.field("output_width_px", pa.int32()),
        pa.field("output_height_px", pa.int32()),
        pa.field(DUPLICATE_OF, pa.string()),
        pa.field("format", pa.string()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("megapixels", pa.float64()),
        pa.field("mode", pa.string()),
        pa.field("bit_depth", pa.int32()),
        pa.field("orientation", pa.int32()),
        pa.field("camera", pa.string()),
        pa.field("iso", pa.int32()),
        pa.field("taken_at", pa.timestamp("us")),
        pa.field("noise_sigma_before", pa.float32()),
        pa.field("noise_sigma_after", pa.float32()),
        pa.field("chroma_share", pa.float32()),
        pa.field("strength", pa.float32()),
        pa.field("change_psnr_db", pa.float32()),
        pa.field("clipped_fraction", pa.float32()),
        pa.field("weights", pa.string(), nullable=False),
        pa.field("parameters", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("read_s", pa.float32(), nullable=False),
        pa.field("decode_s", pa.float32(), nullable=False),
        pa.field("denoise_s", pa.float32(), nullable=False),
        pa.field("encode_s", pa.float32(), nullable=False),
        pa.field("write_s", pa.float32(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("finished_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

FINDING_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("kind", "key", "detail")])

DIFFERENCE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("psnr_db", pa.float64()),
        pa.field("note", pa.string()),
    ]
)

# How the work went is in the index alone: a packed shard that is made twice, by whatever run, is the same in bytes.
COLUMNS_OF_THE_WORK = {"run", "read_s", "decode_s", "denoise_s", "encode_s", "write_s", "finished_at"}

# A packed shard opens in Hugging Face datasets: the metadata says that `image` is an Image feature.
IMAGE_FIELD = pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))
PACKED_SCHEMA = pa.schema(
    [IMAGE_FIELD, *(column for column in INDEX_SCHEMA if column.name not in {DUPLICATE_OF, *COLUMNS_OF_THE_WORK})]
).with_metadata({"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'})

# One row of a training run's metrics: the means since the row before it.
TRAINING_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("gradient_norm", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("patches_per_second", pa.float64(), nullable=False),
        pa.field("validation_psnr_db", pa.float64()),
    ]
)


def index_table(records: Iterable[PhotoRecord]) -> pa.Table:
    """Rows of the index, in the order given."""
    columns = [name for name in INDEX_SCHEMA.names if name != DUPLICATE_OF]
    rows = [{name: getattr(record, name) for name in columns} for record in records]
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def photo_records(rows: pa.Table) -> list[PhotoRecord]:
    """The other way round."""
    columns = rows.select([each.name for each in fields(PhotoRecord)]).to_pylist()
    return [PhotoRecord(**{**values, "outcome": Outcome(values["outcome"])}) for values in columns]


def index_rows(table: pa.Table) -> pa.Table:
    """The table with the columns of the index: those that an older degrain did not know are null."""
    columns = [
        table[column.name].cast(column.type) if column.name in table.column_names else pa.nulls(len(table), column.type)
        for column in INDEX_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)
