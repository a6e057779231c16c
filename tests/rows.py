"""Rows of an index that the tests make themselves."""

from datetime import UTC, datetime
from typing import Any

from pipeline.records import Outcome, PhotoRecord

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def row(key: str, content: str = "", attempts: int = 1, **columns: Any) -> PhotoRecord:
    """The row of a photo whose bytes are `content`, or by default like no other's."""
    is_rejected = columns.get("outcome") == Outcome.REJECTED
    values: dict[str, Any] = {
        "outcome": Outcome.DENOISED,
        "output_key": None if is_rejected else f"images/{key}",
        "output_size_bytes": None if is_rejected else 9,
        "output_sha256": None if is_rejected else f"result of {key}",
        **columns,
    }
    return PhotoRecord(
        key=key,
        source_etag="e1",
        source_size_bytes=1,
        source_sha256=content or f"only {key}",
        weights="w1",
        parameters="p1",
        run="run-1",
        shard="s",
        attempts=attempts,
        finished_at=NOW,
        **values,
    )
