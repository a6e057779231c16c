"""Train a network on a collection of photos: a resumable run whose checkpoints, metrics and weights lie in a store."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.denoiser import Denoiser
from model.metrics import gaussian_psnr_db
from model.training import PatchSampler, StepMetrics, TrainConfig, TrainState, read_checkpoint_header, train_steps
from model.weights import Card, dump_weights, parse_weights
from pipeline.clean_photos import read_clean_photos
from pipeline.registry import read_weights
from pipeline.storage import Store, open_store
from pipeline.subset import Split, Subset

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
METRICS = "metrics.jsonl"
SCORED_SIGMAS = (15, 25, 50)
MAY_CHANGE = ("steps", "small_share", "cooldown_share")  # how long a run takes may be decided while it runs


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What `degrain train` is asked to do.

    Attributes:
        source: path or URL of the collection of clean photos.
        run: path or URL of the run's folder; a run that is there goes on at its last checkpoint.
        where: a condition over the columns of the source's index, where that is an image set: which photos to use.
        validation_fraction: share of the source that is held back from training, the same photos in every run; the
            weights are scored on them if there is no other collection for it.
        validation: collection that the weights are scored on at the end, white Gaussian noise in the protocol of
            papers; the card holds the scores.
        start_from: weights to begin with, by name, path or URL; None begins with random ones.
        data, licence: what the card says of the photos, and under which terms the weights may be used.
        checkpoint_every: steps between checkpoints.
        log_every: steps whose mean makes one line of the metrics.
    """

    source: str
    run: str
    where: str = ""
    validation_fraction: float = 0.0
    validation: str | None = None
    start_from: str | None = None
    data: str = ""
    licence: str = "not stated"
    checkpoint_every: int = 500
    log_every: int = 100
    config: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        self.subset(Split.TRAIN)

    def subset(self, split: Split) -> Subset:
        """The photos of the source that are for training, or for validation."""
        return Subset(where=self.where, split=split, validation_fraction=self.validation_fraction)


def run_train(job: TrainJob, report: Callable[[StepMetrics], None]) -> dict[str, float]:
    """Train to the last step, write the weights with their card, and return its scores.

    Raises:
        ValueError: the collection has no photo that is large enough, or the run's checkpoint is of another recipe.
        StorageError: the photos cannot be read, or the run's folder cannot be written.
    """
    store = open_store(job.run)
    photos = load_photos(job.source, job.subset(Split.TRAIN), min_side_px=job.config.patch_px)
    config = job.config.for_photos(len(photos))
    sampler = PatchSampler(photos, config)
    state = TrainState(config)
    if job.start_from is not None:
        _start_from(state, job)
    history = _resume(store, state, config)

    losses: list[float] = []
    start = time.monotonic()
    for metrics in train_steps(state, config, sampler.batch):
        losses.append(metrics.loss)
        report(metrics)
        if metrics.step % job.log_every == 0:
            mean = dataclasses.replace(metrics, loss=float(np.mean(losses)))
            history.append({**dataclasses.asdict(mean), "seconds": round(time.monotonic() - start, 1)})
            losses.clear()
        if metrics.step % job.checkpoint_every == 0 or metrics.step == config.steps:
            store.write(METRICS, "".join(json.dumps(row) + "\n" for row in history).encode())
            store.write(CHECKPOINT, state.dump(config))

    card = Card(
        network=job.config.network,
        data=job.data or f"{len(photos)} photos of {job.source}",
        licence=job.licence,
        noise=f"told its level; {config.noise}",
        training=str(config),
    )
    weights = dump_weights(state.average, card)
    if job.validation is not None:
        card = dataclasses.replace(card, scores=score(weights, load_photos(job.validation)))
    elif job.validation_fraction:
        card = dataclasses.replace(card, scores=score(weights, load_photos(job.source, job.subset(Split.VALIDATION))))
    weights = dump_weights(state.average, card)
    store.write(WEIGHTS, weights)
    store.close()
    return card.scores


def read_run(run: str) -> dict[str, Any]:  # Any: JSON
    """What a finished run left: where its weights are, their card, and up to 200 of its metrics, oldest first.

    Raises:
        StorageError: the run is not there, or was never finished.
    """
    store = open_store(run)
    weights = parse_weights(store.read(WEIGHTS))
    metrics = [json.loads(line) for line in store.read(METRICS).splitlines()] if store.exists(METRICS) else []
    return {
        "weights": f"{store.url}/{WEIGHTS}",
        "sha256": weights.sha256,
        "card": dataclasses.asdict(weights.card),
        "metrics": metrics[:: max(1, len(metrics) // 200)],
    }


def _start_from(state: TrainState, job: TrainJob) -> None:
    _, weights = read_weights(job.start_from or "")
    if weights.card.network != job.config.network:
        raise ValueError(f"{job.start_from} holds a network {weights.card.network!r}, not {job.config.network!r}")
    state.start_from(weights.tensors)


def score(weights: bytes, photos: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Mean PSNR in dB over the photos, for white Gaussian noise in the protocol of papers."""
    denoiser = Denoiser(parse_weights(weights))
    return {
        f"psnr_db_sigma_{sigma}": round(
            float(np.mean(gaussian_psnr_db(denoiser.denoise_float, photos, sigma=sigma))), 3
        )
        for sigma in SCORED_SIGMAS
    }


def load_photos(collection: str, subset: Subset | None = None, *, min_side_px: int = 1) -> list[NDArray[np.uint8]]:
    """The pixels of the clean photos of a collection, as (H, W, 3); see `read_clean_photos`."""
    return [photo.pixels for photo in read_clean_photos(collection, subset, min_side_px=min_side_px)]


def _resume(store: Store, state: TrainState, config: TrainConfig) -> list[dict[str, float]]:
    """Load the run's last checkpoint into `state`, if there is one; returns the metrics up to it."""
    if not store.exists(CHECKPOINT):
        return []
    checkpoint = store.read(CHECKPOINT)
    step, before = read_checkpoint_header(checkpoint)
    now = dataclasses.asdict(config)
    differing = sorted(name for name in now if name not in MAY_CHANGE and now[name] != before.get(name))
    if differing:
        raise ValueError(
            f"the run at {store.url} has another recipe ({', '.join(differing)}): only {', '.join(MAY_CHANGE)} may "
            "change in a run"
        )
    state.load(checkpoint, step)
    history = [json.loads(line) for line in store.read(METRICS).splitlines()] if store.exists(METRICS) else []
    log.warning("going on at step %d", state.step)
    return [row for row in history if row["step"] <= state.step]
