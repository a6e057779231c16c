"""The values that travel between processes, and every Arrow schema: the only place where columns are named."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import pyarrow as pa


class Outcome(StrEnum):
    """How an input ended. Every input has exactly one."""

    DENOISED = "denoised"
    UNTOUCHED = "untouched"
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


class Layout(StrEnum):
    """How an image set keeps its photos: one object each under the source's name, or packed into Parquet shards."""

    FILES = "files"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object of a listing. `key` is relative to the listed root, with `/` between its parts."""

    key: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class PlannedPhoto:
    """One input that a run will process. `attempt` counts from 1 over all runs that tried this key."""

    key: str
    size_bytes: int
    etag: str
    attempt: int


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
        output_key: where the result lies in the target, None where there is none (rejected).
        format, width_px, height_px, mode, bit_depth, orientation: of the source, as far as it could be read.
        noise_sigma_before, noise_sigma_after: estimated standard deviation of the noise, in 8-bit levels.
        chroma_share: share of the estimated noise variance that is in the colour, 0–1.
        strength: share of the network's correction that was applied, 0–1.
        change_psnr_db: PSNR of the result against the source; larger means less was changed; None where nothing was.
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
    format: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    mode: str | None = None
    bit_depth: int | None = None
    orientation: int | None = None
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
    def megapixels(self) -> float:
        """Size of the photo, 0 where it could not be read."""
        return (self.width_px or 0) * (self.height_px or 0) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a worker says of a committed shard: counts, never pixels."""

    shard: str
    denoised: int
    untouched: int
    rejected: int
    megapixels: float
    bytes_read: int
    bytes_written: int
    seconds: float

    @property
    def photos(self) -> int:
        return self.denoised + self.untouched + self.rejected


LISTING_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
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
        pa.field("format", pa.string()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("bit_depth", pa.int32()),
        pa.field("orientation", pa.int32()),
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

# A packed shard opens in Hugging Face datasets: the metadata says that `image` is an Image feature.
IMAGE_FIELD = pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))
PACKED_SCHEMA = pa.schema([IMAGE_FIELD, *INDEX_SCHEMA]).with_metadata(
    {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'}
)


def index_table(records: Iterable[PhotoRecord]) -> pa.Table:
    """Rows of the index, in the order given."""
    return pa.Table.from_pylist([dataclasses.asdict(record) for record in records], schema=INDEX_SCHEMA)
