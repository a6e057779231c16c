"""Which of two weights are better by their trials, and putting those in the place that jobs read weights from."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.weights import parse_weights
from pipeline.errors import ObjectMissing
from pipeline.jobs import read_weights
from pipeline.storage import open_store, split_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a candidate does against the incumbent, over the trials that both had.

    Attributes:
        gains_db: of each trial: how much more the candidate gains over the noisy photo.
        mean_db, worst_db: of those.
        is_better: whether the mean is at least the one asked for, and no trial lost more than allowed.
    """

    gains_db: dict[str, float]
    mean_db: float
    worst_db: float
    is_better: bool


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


def compare(
    candidate: Sequence[Mapping[str, object]],
    incumbent: Sequence[Mapping[str, object]],
    *,
    least_mean_db: float,
    largest_loss_db: float,
) -> Comparison:
    """Compare rows of two evaluations on the same photos.

    Raises:
        ValueError: they have no trial in common.
    """
    ours, theirs = _gains_db(candidate), _gains_db(incumbent)
    gains_db = {trial: round(ours[trial] - theirs[trial], 4) for trial in ours if trial in theirs}
    if not gains_db:
        raise ValueError("the two evaluations have no trial in common")
    mean_db, worst_db = round(statistics.mean(gains_db.values()), 4), min(gains_db.values())
    return Comparison(
        gains_db=gains_db,
        mean_db=mean_db,
        worst_db=worst_db,
        is_better=mean_db >= least_mean_db and worst_db >= -largest_loss_db,
    )


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


def _gains_db(rows: Sequence[Mapping[str, object]]) -> dict[str, float]:
    gains = {str(row["trial"]): row["gain_db"] for row in rows if row["denoiser"] == "degrain"}
    return {trial: float(gain) for trial, gain in gains.items() if isinstance(gain, int | float)}
