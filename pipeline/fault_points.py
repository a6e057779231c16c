"""Places in the commit protocol where a test kills the process, as a power cut would.

The one environment variable DEGRAIN_FAULT reaches them, in the driver and in its workers: `POINT`, `POINT:NTH` (the
n-th time that a process comes there; the first by default) or `POINT:NTH:FILE`, which kills one process only: it
creates the file, and where that is there already nothing happens.
"""

import os
import signal
from collections import Counter
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

VARIABLE = "DEGRAIN_FAULT"


class FaultPoint(StrEnum):
    """The steps of a run, in their order; each is named after what has just been done."""

    OBJECT_HALF_WRITTEN = "object-half-written"  # of a folder alone: its temporary file is there, its name is not
    LEASE_TAKEN = "lease-taken"
    LEASE_RENEWED = "lease-renewed"
    SET_OPENED = "set-opened"
    PLAN_MADE = "plan-made"  # and not yet frozen
    PLAN_FROZEN = "plan-frozen"
    PHOTO_WRITTEN = "photo-written"  # by a worker, as the next two
    SHARD_WRITTEN = "shard-written"  # all its photos are, and it is not yet committed
    SHARD_COMMITTED = "shard-committed"
    RECEIPT_TAKEN = "receipt-taken"
    WORK_DONE = "work-done"  # every shard is committed, and nothing of it published
    INDEX_PART_WRITTEN = "index-part-written"
    INDEX_WRITTEN = "index-written"  # and the manifest still points to the one before
    MANIFEST_WRITTEN = "manifest-written"
    OLD_PART_REMOVED = "old-part-removed"
    INDEX_PUBLISHED = "index-published"
    RUN_RECORDED = "run-recorded"
    WEIGHTS_COPIED = "weights-copied"  # into a registry, and no name points to them yet


_passed: Counter[FaultPoint] = Counter()


def fault_point(point: FaultPoint) -> None:
    """End this process here by SIGKILL, if the environment says so."""
    if (fault := os.environ.get(VARIABLE)) is None:
        return
    wanted, nth, latch = [*fault.split(":", 2), "", ""][:3]
    if point != wanted:
        return
    _passed[point] += 1
    if _passed[point] != int(nth or 1):
        return
    if not latch:
        os.kill(os.getpid(), signal.SIGKILL)
    with suppress(FileExistsError):
        Path(latch).touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
