"""What Prometheus sees of a run through Ray's metrics endpoint, where Ray puts `ray_` before each name.

Ray itself counts actors, and measures cores, memory and disks: `ray_actors{Name="_Actor"}` are the workers.
"""

from dataclasses import dataclass, field

import ray
from ray.util.metrics import Counter

from pipeline.records import Receipt


@dataclass(frozen=True, slots=True)
class Meters:
    """Counters of a run, told apart by the verb. Without a cluster they rest."""

    verb: str
    photos: Counter = field(default_factory=lambda: _counter("photos", "Photos by how they ended.", "outcome"))
    megapixels: Counter = field(default_factory=lambda: _counter("megapixels", "Megapixels of photos that were read."))
    transferred: Counter = field(default_factory=lambda: _counter("bytes", "Bytes of photos.", "direction"))
    stages: Counter = field(default_factory=lambda: _counter("stage_seconds", "Seconds in each stage.", "stage"))
    shards: Counter = field(default_factory=lambda: _counter("shards", "Shards that were committed."))
    retries: Counter = field(default_factory=lambda: _counter("retries", "Requests to stores that were made again."))
    throttled: Counter = field(default_factory=lambda: _counter("throttled", "Those of them that a store had put off."))

    def count(self, receipt: Receipt) -> None:
        """Add a shard that was committed."""
        if not ray.is_initialized():
            return
        tags = {"verb": self.verb}
        for outcome, photos in receipt.outcomes.items():
            _add(self.photos, photos, {**tags, "outcome": str(outcome)})
        _add(self.megapixels, receipt.megapixels, tags)
        _add(self.transferred, receipt.bytes_read, {**tags, "direction": "in"})
        _add(self.transferred, receipt.bytes_written, {**tags, "direction": "out"})
        for stage, seconds in receipt.stage_s.items():
            _add(self.stages, seconds, {**tags, "stage": stage})
        _add(self.shards, 1, tags)
        _add(self.retries, receipt.retries, tags)
        _add(self.throttled, receipt.throttled, tags)


def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(f"degrain_{name}", description=description, tag_keys=("verb", *tags))


def _add(counter: Counter, amount: float, tags: dict[str, str]) -> None:
    if amount > 0:  # Ray refuses to add nothing
        counter.inc(amount, tags=tags)
