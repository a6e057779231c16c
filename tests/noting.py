"""Workers that note what they see in a folder, and do what the key of a photo says: for tests of the cluster."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import ray

from pipeline.bench import Bench, Look
from pipeline.errors import StorageError
from pipeline.records import Outcome, PlannedPhoto, Receipt, ShardPlan

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


class NotingWorker:
    """Notes every photo that it sees in a folder, and does what the photo's key says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bench = Bench()

    def look(self) -> Look:
        return self.bench.look()

    def run(self, plan: ShardPlan, poisonous: Mapping[str, str]) -> Receipt:
        with self.bench.shard(plan.shard):
            for photo in plan.photos:
                if photo.key not in poisonous:
                    self.probe(photo)
                self.bench.finish_photo(plan.shard)
        (self.folder / f"done-{plan.shard}").write_text("\n".join(f"{key}: {why}" for key, why in poisonous.items()))
        return receipt(plan, rejected=len(poisonous))

    def probe(self, photo: PlannedPhoto) -> None:
        with self.bench.photo(photo.key, "denoise"):
            self.work_on(photo)

    def work_on(self, photo: PlannedPhoto) -> None:
        with (self.folder / photo.key).open("a") as note:
            note.write(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}\n")
        if photo.key.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        if photo.key.startswith("once") and len((self.folder / photo.key).read_text().splitlines()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if photo.key.startswith("full-disk"):
            raise StorageError("cannot write: no space left on device")
        if photo.key.startswith("endless"):
            time.sleep(600)
        if photo.key.startswith("slow"):
            time.sleep(1.5)


class WorkerFactory:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, threads: int) -> NotingWorker:
        return NotingWorker(self.folder)


class Guest:
    """Someone else's work on a cluster."""

    def stay(self) -> None: ...


def receipt(plan: ShardPlan, *, rejected: int = 0) -> Receipt:
    return Receipt(
        shard=plan.shard,
        outcomes={Outcome.DENOISED: len(plan.photos) - rejected, Outcome.REJECTED: rejected},
        megapixels=0.0,
        bytes_read=0,
        bytes_written=0,
        seconds=0.0,
    )


def rejected_of(receipts: list[Receipt]) -> dict[str, int]:
    return {found.shard: found.outcomes[Outcome.REJECTED] for found in receipts}


def shard(name: str, *keys: str) -> ShardPlan:
    return ShardPlan(name, "run", tuple(PlannedPhoto(key, 1, "etag", 1) for key in keys))
