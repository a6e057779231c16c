"""One worker's part of a training run: go on at the last checkpoint, and train."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import nn

from model.device import use_threads
from model.patches import parts_of
from model.recipe import TrainConfig
from model.training import StepMetrics, TrainState, train_steps
from model.weights import NETWORKS, Part, Weights
from pipeline.clean_photos import CleanPhotos, digest_of
from pipeline.examples import ExampleStream
from pipeline.registry import read_weights
from pipeline.run_folder import Board, RunFolder, blank_card, resume
from pipeline.storage import open_store, spelled_out
from pipeline.train_job import TrainJob

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Which of how many workers this is, and what it has to compute with."""

    number: int = 0
    count: int = 1
    threads: int | None = None
    device: str = "cpu"


def train_worker(
    job: TrainJob,
    worker: Worker,
    report: Callable[[StepMetrics], None],
    *,
    check: Callable[[], None] = lambda: None,
    is_to_end: Callable[[], bool] = lambda: False,
) -> None:
    """Train to the last step, from the last checkpoint if there is one. All workers of a run do this at once.

    Args:
        job: what to train on, and how.
        worker: which of them this is.
        report: told of each step, by the first worker.
        check: called before each checkpoint is written; raises where the run is no longer ours.
        is_to_end: asked in each step; where it is so in one of the workers, there is a checkpoint, and no further step.

    Raises:
        ValueError: the collection has no photo that is large enough, or the run's checkpoint is of another recipe.
        StorageError: the photos cannot be read, or the run's folder cannot be written.
        RunFailed: the run's checkpoint or its metrics are damaged.
    """
    use_threads(worker.threads or torch.get_num_threads())
    source, photos = job.find_photos()
    config = job.config.for_photos(len(photos))
    store = open_store(job.run)
    state = TrainState(config)
    teacher = _read_teacher(job, config)
    origin = _begin(state, job, config, teacher)
    if not worker.number:
        origin |= identify(photos)
    rows = resume(store, state, config, origin)
    parts = parts_of(worker.number, worker.count, config.parts)
    network = teacher.network if teacher is not None else None
    with ExampleStream(source, photos, config, parts, makes_ahead=worker.device != "cpu") as examples:
        steps = train_steps(state, config, examples, device=worker.device, teacher=network, is_to_end=is_to_end)
        if worker.number:
            for _ in steps:
                pass
            return
        with closing(Board(store, state.step)) as board:
            folder = RunFolder(store, job, config, origin, rows=rows, board=board, check=check)
            for metrics in steps:
                report(metrics)
                folder.add(metrics, state)
    store.close()


def check_job(job: TrainJob) -> None:
    """Raise what would stop the workers of a cluster: Ray starts them again whatever it was, and again.

    Raises:
        ValueError, StorageError, RunFailed: as `train_worker` does.
    """
    source, photos = job.find_photos()
    config = job.config.for_photos(len(photos))
    state = TrainState(config)
    resume(open_store(job.run), state, config, _begin(state, job, config, _read_teacher(job, config)))
    for clean in filter(None, (CleanPhotos(source, photos, config.patch_px), job.find_validation())):
        next(iter(clean))


def identify(photos: pa.Table) -> dict[str, object]:
    """How many files a run was given, and what they are known by; for what it depends on."""
    etags = ((row["key"], row["etag"]) for batch in photos.to_batches() for row in batch.to_pylist())
    return {"photos": len(photos), "photos_sha256": digest_of(etags)}


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A network that is learnt from, and the sha256 of its weights."""

    network: nn.Module
    sha256: str


def _begin(state: TrainState, job: TrainJob, config: TrainConfig, teacher: _Teacher | None) -> dict[str, object]:
    """Give a state what its run starts from; returns what the run depends on beside its recipe."""
    sha256 = ""
    if job.start_from is not None:
        _, weights = read_weights(job.start_from)
        sha256, found = weights.sha256, weights.card.of(config.part).network
        if (part := find_start(weights, config)) is not None:
            state.start_from(weights.part(part))
            if part != config.part:
                log.warning(
                    "the %s network of %s is a %r: a %r begins as the one for white noise",
                    *(config.part, job.start_from, found, config.network),
                )
        elif config.part == Part.GENERAL:
            raise ValueError(f"{job.start_from} holds a network {found!r}, not {config.network!r}")
        else:
            dataclasses.replace(weights.card, white=blank_card(config))  # raises where the two do not go together
            log.warning(
                "the network for %s noise of %s is a %r: a %r begins with random weights",
                *(config.part, job.start_from, found, config.network),
            )
    return {
        "source": spelled_out(job.source),
        "where": job.where,
        "validation_fraction": job.validation_fraction,
        "start_from": sha256,
        "teacher": teacher.sha256 if teacher is not None else "",
    }


def find_start(weights: Weights, config: TrainConfig) -> Part | None:
    """Which network of the weights a run begins with: its own, or that for white noise where only it is of its kind."""
    return next((part for part in (config.part, Part.WHITE) if weights.card.of(part).network == config.network), None)


def _read_teacher(job: TrainJob, config: TrainConfig) -> _Teacher | None:
    if job.teacher is None:
        return None
    _, weights = read_weights(job.teacher)
    name, sides_px = weights.card.of(config.part).network, {config.patch_px_at(0), config.patch_px}
    if any(side_px % NETWORKS[name].multiple_px for side_px in sides_px):
        raise ValueError(
            f"the teacher {job.teacher} is a network {name!r}, which takes multiples of {NETWORKS[name].multiple_px} "
            f"pixels: expected that of the patches, {' and '.join(map(str, sorted(sides_px)))}"
        )
    return _Teacher(weights.network(config.part), weights.sha256)
