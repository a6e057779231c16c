"""The place that jobs read weights from: which are there, and putting better ones there."""

from dataclasses import asdict, dataclass

from model.weights import parse_weights
from pipeline.errors import ObjectMissing
from pipeline.registrar import NameJob, give_name
from pipeline.registry import open_registry, read_weights, split_reference
from pipeline.storage import open_store, split_url


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteJob:
    """Weights to put in a place.

    Attributes:
        weights: name, path or URL of the weights.
        to: path or URL of the file that becomes them, or of a name in a registry, `…/weights/NAME`.
        because: why; a registry keeps it.
    """

    weights: str
    to: str
    because: str = ""

    def __post_init__(self) -> None:
        if not self.to.endswith(".safetensors") and split_reference(self.to) is None:
            raise ValueError(
                f"to is {self.to!r}: expected the path or URL of a file ….safetensors, or of a name, …/weights/NAME"
            )


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
    name = job.place if _is_taken(job.place) else job.otherwise
    _, weights = read_weights(name)
    return {"weights": name, "sha256": weights.sha256, "card": asdict(weights.card)}


def promote(job: PromoteJob) -> dict[str, object]:
    """Put the weights there; what was there before stays beside it, under its hash. May run again.

    Raises:
        ValueError: there are no such weights, or what lies there holds none.
        PromotionRefused: someone else pointed the name of a registry elsewhere meanwhile.
    """
    if (reference := split_reference(job.to)) is not None:
        registry, name = reference
        pointer = give_name(NameJob(weights=job.weights, name=name, registry=registry, because=job.because))
        return {"weights": job.to, "sha256": pointer.sha256, "before": pointer.before or None}
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


def _is_taken(place: str) -> bool:
    if (reference := split_reference(place)) is not None:
        registry, name = reference
        return name in open_registry(registry).names()
    root, key = split_url(place)
    return open_store(root).exists(key)
