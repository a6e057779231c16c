"""Which of two weights are better, by the rows of their evaluations. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
        raise ValueError("the two evaluations have no trial in common: measure both with the same trials")
    mean_db, worst_db = round(statistics.mean(gains_db.values()), 4), min(gains_db.values())
    return Comparison(
        gains_db=gains_db,
        mean_db=mean_db,
        worst_db=worst_db,
        is_better=mean_db >= least_mean_db and worst_db >= -largest_loss_db,
    )


def _gains_db(rows: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Of the first denoiser, by trial: the weights that were asked for."""
    gains = {str(row["trial"]): row["gain_db"] for row in rows if row["denoiser"] == rows[0]["denoiser"]}
    return {trial: float(gain) for trial, gain in gains.items() if isinstance(gain, int | float)}
