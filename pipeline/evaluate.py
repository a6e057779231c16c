"""Evaluate weights on clean photos: the trials of `model.evaluate`, beside other weights and classical denoisers."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import PurePosixPath
from typing import Self

import numpy as np

from model.auto_trials import STRENGTH_SIGMAS, score_auto
from model.denoiser import Denoiser
from model.evaluate import Denoise, Floats, Photo, Told, Trial, run_trial, standard_trials
from model.weights import Weights
from pipeline.auto_table import format_auto
from pipeline.clean_photos import CleanPhotos, digest_of, find_clean_photos
from pipeline.peers import PEERS, check_libraries, is_tried
from pipeline.redaction import printable
from pipeline.registry import SHORTEST_HASH, SUFFIX, is_hash, read_weights
from pipeline.room import keep_freed_memory
from pipeline.score_plot import draw_scores
from pipeline.scores import Evaluation, PhotoScore, Row, format_markdown, summarise
from pipeline.storage import Destination, open_store, refuse_empty

MIN_SIDE_PX = 16
SCORES = "scores.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateJob:
    """What `degrain evaluate` is asked to do.

    Attributes:
        weights: name, path or URL of the weights that are evaluated.
        photos: path or URL of clean photos; larger ones than 16 pixels a side.
        against: other weights, by name, path or URL, that are measured beside them.
        trials: those alone whose names hold one of these words, such as "file" or "cameras"; all if there are none.
        limit: the first so many photos only, in the order of their keys.
        peers: classical denoisers that are measured beside them: keys of `PEERS`.
        has_auto: also measure the noise estimate, and `auto` against fixed strengths and on clean photos.
        folder: where scores.json, scores.md and scores.svg are written; None writes nothing.
    """

    weights: str
    photos: str
    against: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()
    limit: int | None = None
    peers: tuple[str, ...] = ()
    has_auto: bool = False
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: expected at least 1")
        if self.folder is not None:
            refuse_empty(self.folder)
        if unknown := sorted(set(self.peers) - set(PEERS)):
            raise ValueError(f"no denoiser is called {unknown[0]!r}: expected {', '.join(PEERS)}")


@dataclass(frozen=True, slots=True)
class Steps:
    """How far an evaluation is: photos that a denoiser was tried on, of all that it will be."""

    done: int
    planned: int
    trial: str
    denoiser: str


@dataclass(frozen=True, slots=True)
class TrialPhotos:
    """Clean photos, which are read each time that one goes over them: memory holds few.

    Attributes:
        photos: what is read.
        sha256s: of each of them, by key, in the order of the keys.
    """

    photos: CleanPhotos
    sha256s: dict[str, str]

    @classmethod
    def find(cls, collection: str, limit: int | None) -> Self:
        """The first so many of a collection, which are read once to know them.

        Raises:
            ValueError: there are none.
            StorageError: they cannot be read.
        """
        found = find_clean_photos(collection, min_side_px=MIN_SIDE_PX)
        sha256s = {photo.key: photo.sha256 for photo in islice(found, limit)}
        return cls(found.only(sha256s), sha256s)

    def only(self, keys: Sequence[str]) -> Self:
        """Those with these keys."""
        return dataclasses.replace(
            self, photos=self.photos.only(keys), sha256s={key: self.sha256s[key] for key in keys}
        )

    def __iter__(self) -> Iterator[Photo]:
        """The photos, as they are read.

        Raises:
            ValueError: one of them is no longer what it was.
            StorageError: they cannot be read.
        """
        left = dict(self.sha256s)
        for photo in self.photos:
            if left.pop(photo.key) != photo.sha256:
                raise ValueError(f"{photo.key} has changed while denoisers were tried on it")
            yield photo.pixels
        if left:
            raise ValueError(f"{next(iter(left))} has gone while denoisers were tried on it")


def run_evaluate(
    job: EvaluateJob, report: Callable[[Row], None], watch: Callable[[Steps], None] = lambda _steps: None
) -> Evaluation:
    """Run the trials.

    Args:
        report: is told each row as it comes.
        watch: is told of each photo.

    Raises:
        ValueError: there are no such weights, photos or trials, or a library of the extra `evaluate` is missing.
        StorageError: the photos cannot be read, or the folder cannot be written.
    """
    keep_freed_memory()
    check_libraries(job.peers)
    trials = choose_trials(job.trials)
    ours = read_distinct(job.weights, *job.against)
    photos = TrialPhotos.find(job.photos, job.limit)
    if job.folder is not None:
        Destination.at(f"{job.folder.rstrip('/')}/{SCORES}")
    denoisers = {name: denoise_by(weights) for name, weights in ours.items()}
    denoisers |= {name: PEERS[name] for name in job.peers}
    hashes = {name: weights.sha256 for name, weights in ours.items()}

    plan = [
        (trial, name, some)
        for trial in trials
        for name in denoisers
        if (some := [key for number, key in enumerate(photos.sha256s) if is_tried(name, trial, number)])
    ]
    planned = sum(len(some) for *_, some in plan) + job.has_auto * len(photos.sha256s) * len(STRENGTH_SIGMAS)
    rows: list[Row] = []
    scores: list[PhotoScore] = []
    for trial, name, some in plan:
        found: list[PhotoScore] = []
        for score in _try(trial, name, denoisers[name], photos.only(some)):
            found.append(score)
            watch(Steps(len(scores) + len(found), planned, trial.name, name))
        first = [score for score in scores if score.trial == trial.name and score.denoiser == plan[0][1]] or found
        scores += found
        rows.append(summarise(found, weights=hashes.get(name), first=first))
        report(rows[-1])

    tried = itertools.count(len(scores) + 1)
    name, weights = next(iter(ours.items()))
    auto = (
        score_auto(
            Denoiser(weights),
            photos,
            watch=lambda: watch(Steps(next(tried), planned, "auto", name)),
        )
        if job.has_auto
        else None
    )
    evaluation = Evaluation(
        photos=printable(job.photos),  # the name of a folder need be no text, and what is written is
        photos_sha256=digest_of(photos.sha256s.items()),
        version=version("degrain"),
        weights=hashes,
        rows=rows,
        scores=scores,
        auto=auto,
    )
    if job.folder is not None:
        write_evaluation(job.folder, evaluation)
    return evaluation


def write_evaluation(folder: str, evaluation: Evaluation) -> None:
    """Write scores.json, a table as scores.md, and a plot as scores.svg."""
    store = open_store(folder)
    store.write(SCORES, evaluation.as_json())
    auto = f"\n{format_auto(evaluation.auto)}\n" if evaluation.auto else ""
    store.write("scores.md", (format_markdown(evaluation.rows) + auto).encode())
    store.write("scores.svg", draw_scores(evaluation.rows))
    store.close()


def choose_trials(words: Sequence[str]) -> list[Trial]:
    """The standard trials whose names hold one of the words; all if there are none.

    Raises:
        ValueError: a word is in no name.
    """
    trials = standard_trials()
    for word in words:
        if not any(word.lower() in trial.name.lower() for trial in trials):
            raise ValueError(
                f"no trial has '{word}' in its name: there are {'; '.join(trial.name for trial in trials)}"
            )
    return [trial for trial in trials if not words or any(word.lower() in trial.name.lower() for word in words)]


def read_distinct(*sources: str) -> dict[str, Weights]:
    """Weights by what they are called in a table: shipped or registered ones by name, others by file or folder.

    Raises:
        ValueError: there are no such weights, or the same ones are asked for twice.
    """
    found: dict[str, Weights] = {}
    for source in sources:
        _, weights = read_weights(source)
        if any(weights.sha256 == other.sha256 for other in found.values()):
            raise ValueError(f"{source} holds the same weights as another one that is evaluated: name each once")
        name = printable(_short_name(source))
        found[name if name not in found and name not in PEERS else f"{name} {weights.sha256[:8]}"] = weights
    return found


def denoise_by(weights: Weights) -> Denoise:
    """The denoiser that these weights make, as trials want it."""
    denoiser = Denoiser(weights)

    def denoise(noisy: Floats | Photo, _told: Told) -> Floats | Photo:
        if noisy.dtype == np.float32:
            return denoiser.denoise_float(noisy.astype(np.float32))
        return denoiser(noisy.astype(np.uint8))

    return denoise


def _try(trial: Trial, name: str, denoise: Denoise, photos: TrialPhotos) -> Iterator[PhotoScore]:
    for key, score in zip(photos.sha256s, run_trial(trial, denoise, photos), strict=True):
        yield PhotoScore(trial=trial.name, denoiser=name, key=key, score=score)


def _short_name(source: str) -> str:
    """`photo` of "photo" and "s3://bucket/weights/photo"; of ".../runs/july/weights.safetensors" its run, `july`.

    Of a hash, the first digits.
    """
    path = PurePosixPath(source)
    name = path.name if path.suffix != SUFFIX else path.stem
    if path.name == f"weights{SUFFIX}":
        name = path.parent.name or name
    return name[:SHORTEST_HASH] if is_hash(name) else name
