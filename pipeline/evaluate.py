"""Evaluate weights on clean photos: the trials of `model.evaluate`, beside the noisy input and classical denoisers."""

import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.denoiser import Denoiser
from model.evaluate import Denoise, Floats, Photo, Score, Told, Trial, mean_score, run_trial, standard_trials
from model.weights import Weights
from pipeline.jobs import read_weights
from pipeline.storage import open_store
from pipeline.train import load_photos

BM3D_PHOTOS = 5  # it takes a minute and a half a megapixel


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateJob:
    """What `degrain evaluate` is asked to do.

    Attributes:
        weights: name, path or URL of the weights.
        photos: path or URL of clean photos; larger ones than 16 pixels a side.
        limit: the first so many photos only, in the order of their keys.
        has_peers: also run a median filter, OpenCV's non-local means, and BM3D (on five photos).
        folder: where scores.json and scores.svg are written; None writes nothing.
    """

    weights: str
    photos: str
    limit: int | None = None
    has_peers: bool = False
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The mean of one denoiser's scores in one trial; `win_rate` is the share of photos that became better."""

    trial: str
    denoiser: str
    photos: int
    win_rate: float
    mean: Score

    def as_dict(self) -> dict[str, object]:
        values = {name: round(value, 4) for name, value in dataclasses.asdict(self.mean).items()}
        return {
            "trial": self.trial,
            "denoiser": self.denoiser,
            "photos": self.photos,
            "win_rate": self.win_rate,
            "gain_db": round(self.mean.gain_db, 4),
            **values,
        }


def run_evaluate(job: EvaluateJob, report: Callable[[Row], None]) -> list[Row]:
    """Run all trials; each row is reported as it comes.

    Raises:
        ValueError: there are no such weights or photos, or a library of the extra `evaluate` is missing.
    """
    _check_libraries(has_peers=job.has_peers)
    _, weights = read_weights(job.weights)
    photos = load_photos(job.photos, min_side_px=16)[: job.limit]
    denoisers = {"degrain": _ours(weights)} | (PEERS if job.has_peers else {})
    rows = []
    for trial, (name, denoise) in itertools.product(standard_trials(), denoisers.items()):
        some = photos[:BM3D_PHOTOS] if name == "bm3d" else photos
        rows.append(_row(trial, name, list(run_trial(trial, denoise, some))))
        report(rows[-1])
    if job.folder is not None:
        store = open_store(job.folder)
        facts = {"weights": weights.sha256, "photos": job.photos, "rows": [row.as_dict() for row in rows]}
        store.write("scores.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
        store.write("scores.svg", draw_gains(rows))
        store.close()
    return rows


def format_row(row: Row) -> str:
    """One line of the table."""
    mean = row.mean
    return (
        f"{row.trial:26} {row.denoiser:8} {mean.noisy_psnr_db:8.2f} {mean.psnr_db:8.2f} {mean.gain_db:+7.2f} "
        f"{mean.ssim:7.4f} {100 * row.win_rate:5.0f} % {100 * mean.noise_left:6.1f} % {100 * mean.detail_lost:6.1f} %"
    )


HEADER = (
    f"{'trial':26} {'denoiser':8} {'noisy dB':>8} {'dB':>8} {'gain':>7} {'SSIM':>7} {'better':>7} {'noise':>8} "
    f"{'detail':>8}\n{'':26} {'':8} {'':>8} {'':>8} {'':>7} {'':>7} {'':>7} {'left':>8} {'lost':>8}"
)


def draw_gains(rows: Sequence[Row]) -> bytes:
    """The gain of every denoiser in every trial, as an SVG."""
    import io

    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    trials = list(dict.fromkeys(row.trial for row in rows if row.trial != "clean"))
    names = list(dict.fromkeys(row.denoiser for row in rows))
    gains = {(row.trial, row.denoiser): row.mean.gain_db for row in rows}
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes: Any = figure.subplots()  # Any: matplotlib's types do not know how many
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = np.arange(len(trials)) + (number - (len(names) - 1) / 2) * width
        axes.bar(places, [gains.get((trial, name), 0) for trial in trials], width, label=name)
    axes.set_xticks(range(len(trials)), trials, rotation=20, ha="right")
    axes.set_ylabel("gain over the noisy photo in dB")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]  # no types
    return buffer.getvalue()


def _ours(weights: Weights) -> Denoise:
    denoiser = Denoiser(weights)

    def denoise(noisy: Floats | Photo, _told: Told) -> Floats | Photo:
        if noisy.dtype == np.float32:
            return denoiser.denoise_float(noisy.astype(np.float32))
        return denoiser(noisy.astype(np.uint8))

    return denoise


def _row(trial: Trial, name: str, scores: Sequence[Score]) -> Row:
    win_rate = float(np.mean([score.gain_db > 0 for score in scores]))
    return Row(trial=trial.name, denoiser=name, photos=len(scores), win_rate=win_rate, mean=mean_score(scores))


def _median(noisy: Floats | Photo, _told: Told) -> Photo:
    import cv2

    return np.asarray(cv2.medianBlur(_as_file(noisy), 3))


def _non_local_means(noisy: Floats | Photo, told: Told) -> Photo:
    import cv2

    level = float(told.sigma)
    return np.asarray(cv2.fastNlMeansDenoisingColored(_as_file(noisy), None, level, level, 7, 21))


def _bm3d(noisy: Floats | Photo, told: Told) -> Floats:
    import bm3d

    return np.asarray(bm3d.bm3d_rgb(noisy.astype(np.float64), max(told.sigma, 0.5)), np.float32)


PEERS: dict[str, Denoise] = {"median": _median, "nlm": _non_local_means, "bm3d": _bm3d}


def _as_file(noisy: Floats | Photo) -> Photo:
    return np.rint(noisy).clip(0, 255).astype(np.uint8)


def _check_libraries(*, has_peers: bool) -> None:
    for library in ("cv2", "matplotlib", "skimage", *(["bm3d"] if has_peers else [])):
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"{library} is missing: pip install 'degrain[evaluate,peers]'")
