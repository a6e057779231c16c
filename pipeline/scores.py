"""What an evaluation found: the score of every photo, their means as rows, and both as JSON, text and Markdown."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model.auto_trials import AutoScores
from model.evaluate import Score, mean_score
from model.metrics import MOST_DB
from pipeline.auto_table import auto_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoScore:
    """What one denoiser made of one photo in one trial."""

    trial: str
    denoiser: str
    key: str
    score: Score

    def as_dict(self) -> dict[str, object]:
        return {"trial": self.trial, "denoiser": self.denoiser, "key": self.key, **_rounded(self.score)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The mean of one denoiser's scores in one trial.

    Attributes:
        weights: their sha256, where the denoiser is ours.
        photos: how many it was tried on.
        win_rate: the share of them that came closer to the clean photo than the noisy one was.
        behind_db: how much less PSNR it has than the first denoiser of the evaluation, on the same photos.
    """

    trial: str
    denoiser: str
    weights: str | None
    photos: int
    win_rate: float
    behind_db: float
    mean: Score

    def as_dict(self) -> dict[str, object]:
        return {
            "trial": self.trial,
            "denoiser": self.denoiser,
            "weights": self.weights,
            "photos": self.photos,
            "win_rate": round(self.win_rate, 4),
            "gain_db": round(self.mean.gain_db, 4),
            "behind_db": round(self.behind_db, 4),
            **_rounded(self.mean),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Denoisers, and how well they did in the trials.

    Attributes:
        photos: path or URL of the clean photos.
        photos_sha256: what identifies them; see `digest_of`.
        version: of degrain: the trials and the estimates are its own.
        weights: sha256 of our denoisers by the names of the rows, the one that was asked for first.
        rows, scores: the means, and what they are the means of.
        auto: of the first weights, where that was asked for.
    """

    photos: str
    photos_sha256: str
    version: str
    weights: Mapping[str, str]
    rows: Sequence[Row]
    scores: Sequence[PhotoScore]
    auto: AutoScores | None = None

    def as_dict(self) -> dict[str, object]:
        return {
            "photos": self.photos,
            "photos_sha256": self.photos_sha256,
            "version": self.version,
            "weights": dict(self.weights),
            "auto": auto_rows(self.auto) if self.auto else [],
            "rows": [row.as_dict() for row in self.rows],
            "scores": [score.as_dict() for score in self.scores],
        }

    def as_json(self) -> bytes:
        """An object with a line for each row and each photo's score."""
        *facts, rows, scores = (f"  {json.dumps(name)}: {_json_lines(value)}" for name, value in self.as_dict().items())
        return ("{\n" + ",\n".join([*facts, rows, scores]) + "\n}\n").encode()


def summarise(scores: Sequence[PhotoScore], *, weights: str | None, first: Sequence[PhotoScore]) -> Row:
    """The row of one denoiser in one trial.

    Args:
        scores: its photos.
        weights: its sha256, if it is ours.
        first: those of the first denoiser in the same trial, of these photos and maybe more.
    """
    psnr_db = {each.key: each.score.psnr_db for each in first}
    behind_db = [psnr_db[each.key] - each.score.psnr_db for each in scores]
    return Row(
        trial=scores[0].trial,
        denoiser=scores[0].denoiser,
        weights=weights,
        photos=len(scores),
        win_rate=float(np.mean([each.score.gain_db > 0 for each in scores])),
        behind_db=float(np.mean(behind_db)),
        mean=mean_score(each.score for each in scores),
    )


HEADER = (
    f"{'trial':26} {'denoiser':10} {'noisy dB':>8} {'dB':>7} {'gain':>7} {'SSIM':>7} {'better':>7} {'of':>6} "
    f"{'noise':>8} {'detail':>8} {'behind':>8}\n{'':78} {'photos':>6} {'left':>8} {'lost':>8} {'dB':>8}"
)


def format_row(row: Row) -> str:
    """One line of the table below `HEADER`."""
    mean = row.mean
    behind = f"{row.behind_db:8.2f}" if row.behind_db else f"{'':8}"
    return (
        f"{row.trial:26} {row.denoiser:10} {mean.noisy_psnr_db:8.2f} {mean.psnr_db:7.2f} {mean.gain_db:+7.2f} "
        f"{mean.ssim:7.4f} {100 * row.win_rate:5.0f} % {row.photos:6} {100 * mean.noise_left:6.1f} % "
        f"{100 * mean.detail_lost:6.1f} % {behind}"
    ).rstrip()


def format_markdown(rows: Sequence[Row]) -> str:
    """A table with a line for each trial: the first denoiser's scores, and how far behind it the others are."""
    first, *others = dict.fromkeys(row.denoiser for row in rows)
    found = {(row.trial, row.denoiser): row for row in rows}
    all_photos = max(row.photos for row in rows)
    few = {row.denoiser: row.photos for row in rows if row.photos < all_photos}
    behind = [f"{name} ({few[name]} photos)" if name in few else name for name in others]
    head = ["noise", "noisy dB", f"**{first}** dB", "SSIM", "better", "noise left", "detail lost", *behind]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for trial in dict.fromkeys(row.trial for row in rows):
        ours = found[trial, first]
        mean = ours.mean
        lines.append(
            [
                trial,
                _decibels(mean.noisy_psnr_db),
                f"**{_decibels(mean.psnr_db)}**",
                f"{mean.ssim:.4f}",
                f"{100 * ours.win_rate:.0f} %",
                f"{100 * mean.noise_left:.1f} %",
                f"{100 * mean.detail_lost:.1f} %",
                *(f"{-found[trial, name].behind_db:+.2f}" if (trial, name) in found else "" for name in others),
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _decibels(psnr_db: float) -> str:
    return "∞" if psnr_db >= MOST_DB else f"{psnr_db:.2f}"


def _rounded(score: Score) -> dict[str, object]:
    return {name: round(value, 4) for name, value in dataclasses.asdict(score).items()}


def _json_lines(value: object) -> str:
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(f"    {json.dumps(each, ensure_ascii=False)}" for each in value) + "\n  ]"
