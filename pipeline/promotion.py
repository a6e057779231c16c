"""The place that jobs read weights from: which are there, and putting better ones there."""

from dataclasses import asdict, dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class IncumbentJob:
    """Which weights are in use: those at `place`, or while there are none, `otherwise`."""

    place: str
    otherwise: str = "photo"


def find_incumbent(job: IncumbentJob) -> dict[str, object]:
    """The weights in use, by the name that reads them, with their hash and card.

    Raises:
        ValueError: there are neither, or what lies there are no weights.
        StorageError: the place cannot be read.
    """
    root, key = split_url(job.place)
    name = job.place if open_store(root).exists(key) else job.otherwise
    _, weights = read_weights(name)
    return {"weights": name, "sha256": weights.sha256, "card": asdict(weights.card)}


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
