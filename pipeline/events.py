"""What a job says while it runs, one JSON object a line: its progress and results, and the log as records."""

import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from pipeline.redaction import redacted

PROGRESS_INTERVAL_S = 1.0


class Event(StrEnum):
    """What a line tells of: the value of its key `event`."""

    LOG = "log"
    PROGRESS = "progress"
    ROW = "row"
    REJECTED = "rejected"
    PICTURES = "pictures"
    SUMMARY = "summary"
    ERROR = "error"


Say = Callable[..., None]  # an `Event`, and its values by name


def event_line(event: Event, /, **values: object) -> str:
    """One line of JSON, without its end."""
    return json.dumps(
        {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **values},
        ensure_ascii=False,
        default=str,
    )


def parse_event(line: str) -> dict[str, Any] | None:  # Any: JSON, as each event has it
    """The values of a line that `event_line` made; None of any other."""
    if not line.startswith('{"event": '):
        return None
    try:
        values: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return values if values["event"] in set(Event) else None


class EventWriter:
    """Writes events to a stream as they come, and of progress no more than one a second beside the first and last."""

    def __init__(self, stream: TextIO, *, interval_s: float = PROGRESS_INTERVAL_S) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._next_s = 0.0
        self._start_s: float | None = None

    def __call__(self, event: Event, /, **values: object) -> None:
        self._stream.write(f"{event_line(event, **values)}\n")  # at once: what C++ writes there must not come between
        self._stream.flush()

    def progress(self, done: int, planned: int, **values: object) -> None:
        """Say how far the work is: `done` of `planned`, in photos or steps, and seconds since this was first said."""
        now_s = time.monotonic()
        self._start_s = self._start_s or now_s
        if now_s < self._next_s and done < planned:
            return
        self._next_s = now_s + self._interval_s
        self(Event.PROGRESS, done=done, planned=planned, seconds=round(now_s - self._start_s, 1), **values)


class JsonLines(logging.Formatter):
    """Log records as events, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        return event_line(Event.LOG, level=record.levelname, logger=record.name, message=redacted(message))
