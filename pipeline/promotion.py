"""The place that jobs read weights from: which are there, and putting better ones there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from model.weights import parse_weights
from pipeline.clean_photos import find_clean_photos
from pipeline.errors import ObjectMissing
from pipeline.registrar import NameJob, give_name, refuse_moved
from pipeline.registry import SUFFIX, check_name, open_registry, read_weights, split_reference
from pipeline.storage import open_store, split_url


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteJob:
    """Weights to put in a place.

    Attributes:
        weights: name, path or URL of the weights.
        to: path or URL of the file that becomes them, or of a name in a registry, `…/weights/NAME`.
        because: why; a registry keeps it, and `gains_db`.
        instead_of, gains_db: which weights they were compared with, and what came of it, as in a `NameJob`.
    """

    weights: str
    to: str
    because: str = ""
    instead_of: str | None = None
    gains_db: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_place(self.to)


@dataclass(frozen=True, slots=True, kw_only=True)
class IncumbentJob:
    """Which weights are in use: those at `place`, or while there are none, `otherwise`.

    With `photos`, it is checked that others can be tried against them on those.
    """

    place: str
    otherwise: str = "photo"
    photos: str | None = None

    def __post_init__(self) -> None:
        check_place(self.place)


def check_place(place: str) -> None:
    """Raises ValueError if nothing can be promoted to such a place."""
    if place.endswith(SUFFIX):
        return
    if (reference := split_reference(place)) is None:
        raise ValueError(
            f"{place!r} is no place for weights: expected the path or URL of a file ….safetensors, or of a name, "
            "…/weights/NAME"
        )
    check_name(reference[1])


def find_incumbent(job: IncumbentJob) -> dict[str, object]:
    """The weights in use, by the name that reads them, with their hash and card.

    Raises:
        ValueError: there are neither, or what lies there are no weights; or there are no photos to try them on.
        StorageError: the place cannot be read, or the photos cannot be listed.
    """
    if job.photos is not None:
        next(iter(find_clean_photos(job.photos)))
    name = job.place if _is_taken(job.place) else job.otherwise
    _, weights = read_weights(name)
    return {"weights": name, "sha256": weights.sha256, "card": asdict(weights.card)}


def promote(job: PromoteJob) -> dict[str, object]:
    """Put the weights there; what was there before stays beside it, under its hash. May run again.

    Raises:
        ValueError: there are no such weights, or what lies there holds none.
        PromotionRefused: others than those that they were compared with are there by now.
    """
    if (reference := split_reference(job.to)) is not None:
        registry, name = reference
        pointer = give_name(
            NameJob(
                weights=job.weights,
                name=name,
                registry=registry,
                because=job.because,
                instead_of=job.instead_of,
                gains_db=job.gains_db,
            )
        )
        return {"weights": job.to, "sha256": pointer.sha256, "before": pointer.before or None}
    data, weights = read_weights(job.weights)
    weights.networks()  # who reads the place next can use them
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
            refuse_moved(job.to, before, job.instead_of)
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
