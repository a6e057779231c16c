"""Putting better weights in the place that jobs read them from."""

from dataclasses import dataclass

from model.weights import parse_weights
from pipeline.errors import ObjectMissing
from pipeline.registry import read_weights
from pipeline.storage import open_store, split_url


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteJob:
    """Weights to put in a place.

    Attributes:
        weights: name, path or URL of the weights.
        to: path or URL of the file that becomes them.
    """

    weights: str
    to: str

    def __post_init__(self) -> None:
        if not self.to.endswith(".safetensors"):
            raise ValueError(f"to is {self.to!r}: expected the path or URL of a file ….safetensors")


def promote(job: PromoteJob) -> dict[str, object]:
    """Put the weights there; what was there before stays beside it, under its hash. May run again.

    Raises:
        ValueError: there are no such weights, or what lies there holds none.
    """
    data, weights = read_weights(job.weights)
    root, name = split_url(job.to)
    store = open_store(root)
    before = None
    try:
        old = store.read(name)
    except ObjectMissing:
        pass
    else:
        before = parse_weights(old).sha256
        if before != weights.sha256:
            store.write(f"{name.removesuffix('.safetensors')}-{before[:16]}.safetensors", old)
    if before != weights.sha256:
        store.write(name, data)
    store.close()
    return {"weights": job.to, "sha256": weights.sha256, "before": before}
