"""Train a network on a collection of photos: alone, or by Ray Train with workers that share each batch."""

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError
from torch import nn

from model.denoiser import Denoiser
from model.device import count_gpus
from model.metrics import gaussian_psnr_db
from model.recipe import TrainConfig
from model.training import StepMetrics
from model.weights import Card, Part, Provenance, Weights, dump_weights, parse_weights
from pipeline.charts import draw_loss
from pipeline.clean_photos import CleanPhoto
from pipeline.cluster_size import Cluster, Size
from pipeline.connection import check_own_cluster, connected
from pipeline.errors import RunFailed
from pipeline.interruption import Interruption, asking_first
from pipeline.lease import Claim, leased, refuse_if_lost
from pipeline.registry import read_weights
from pipeline.room import KEEPING_FREED_MEMORY, keep_freed_memory
from pipeline.run_folder import read_metrics, read_origin, read_state, read_step
from pipeline.scratch import scratch_folder
from pipeline.storage import Store, open_store, prefix_in
from pipeline.train_job import TrainJob
from pipeline.training_run import Worker, check_job, find_start, identify, train_worker

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
CURVE = "loss.svg"
SCORED_SIGMAS = (15, 25, 50)
SCORED_PHOTOS = 256
NOTICE = "ending once a checkpoint is written; another signal ends it at once, and loses what came since the last one"
# Which settings of a job decide what it ends in: the others say where, by how many, and how closely it is watched.
DECISIVE = {"source", "where", "validation_fraction", "start_from", "teacher", "config"}


def run_train(job: TrainJob, report: Callable[[StepMetrics], None]) -> dict[str, float]:
    """Train to the last step, write the weights with their card, and return its scores.

    A signal that interrupts it does so once a checkpoint is written, and a second one at once: see `asking_first`.

    Raises:
        KeyboardInterrupt: it was interrupted.
        TargetInUse: another process is at work on the run.
        ValueError: the collection has no photo that is large enough, or the run's checkpoint is of another recipe.
        StorageError: the photos cannot be read, or the run's folder cannot be written.
        FloatingPointError: the loss is no number any more.
        RunFailed: the run's checkpoint or metrics are damaged, or what it started from has changed meanwhile; or there
            is no such cluster, it has too little for the workers, or they were lost too often.
    """
    keep_freed_memory()
    _, photos = job.find_photos()
    if job.validation is not None and prefix_in(open_store(job.validation), open_store(job.source)) is not None:
        told = "%s lies in %s: the weights are scored on photos that they are trained on"
        log.warning(told, job.validation, job.source)
    for weights in filter(None, (job.start_from, job.teacher)):
        read_weights(weights)[1].networks()  # what cannot be used leaves no folder of a run behind
    with closing(open_store(job.run)) as store, leased(store, "degrain train") as lease:
        store.clean()  # of a writer that was killed; only now does nobody else write here

        def check_and_report(metrics: StepMetrics) -> None:
            lease.check()
            report(metrics)

        with asking_first(NOTICE) as asked:
            if job.workers == 1 and job.address is None:
                gpu = job.use_gpus and count_gpus()
                worker = Worker(device="cuda:0" if gpu else "cpu")
                train_worker(job, worker, check_and_report, is_to_end=lambda: asked.is_asked)
            else:
                check_job(job)
                _train_on_cluster(job, report, lease.claim, asked)
        if asked.is_asked:
            raise KeyboardInterrupt(f"interrupted: the same command goes on at step {read_step(store):,}")
        return _write_weights(job, photos, store, lease.check)


def _write_weights(job: TrainJob, photos: pa.Table, store: Store, check: Callable[[], None]) -> dict[str, float]:
    """What a run whose steps are done ends in; returns the scores. `check` raises where the run is no longer ours."""
    config = job.config.for_photos(len(photos))
    origin = read_origin(store)
    if "photos" not in origin:  # an earlier version told of none
        origin |= identify(photos)
    start = read_weights(job.start_from)[1] if job.start_from else None
    if start is not None and start.sha256 != origin.get("start_from", start.sha256):
        raise RunFailed(
            f"{job.start_from} holds other weights now than when the run began: the steps are done, and what came of "
            f"them is written once --start-from names those of sha256 {origin['start_from']}"
        )
    card = _card(job, config, origin, start)
    network, white, card = _beside_other_part(read_state(store, config).average, card, start, config.part)
    if (validation := job.find_validation()) is not None:
        weights = parse_weights(dump_weights(network, card, white=white))
        card = dataclasses.replace(card, scores=score(weights, validation))
    check()  # scores take minutes: others may have gone on with the run meanwhile
    store.write(WEIGHTS, dump_weights(network, card, white=white))
    if metrics := read_metrics(store):
        store.write(CURVE, draw_loss(metrics).encode())
    return card.scores


def _beside_other_part(
    trained: nn.Module, card: Card, start: Weights | None, part: Part
) -> tuple[nn.Module, nn.Module | None, Card]:
    """The general network, the one for white noise, and their card: what was trained, and what it started beside."""
    if start is not None and part == Part.WHITE:
        return start.network(), trained, dataclasses.replace(start.card, scores={}, white=card)
    if start is not None and start.card.white is not None:
        return trained, start.network(Part.WHITE), dataclasses.replace(card, white=start.card.white)
    return trained, None, card


def _card(job: TrainJob, config: TrainConfig, origin: Mapping[str, Any], start: Weights | None) -> Card:
    """What a person must know of the network, but for its scores."""
    goes_on_from = start if start is not None and find_start(start, config) is not None else None
    return Card(
        network=config.network,
        data=job.data or f"{origin['photos']:,} files of {job.source}",
        licence=job.licence,
        noise=f"told its level; {config.noise}",
        training=str(config),
        provenance=Provenance(
            source=job.source,
            photos=origin["photos"],
            photos_sha256=origin["photos_sha256"],
            start_from=goes_on_from.sha256 if goes_on_from is not None else "",
            teacher=origin.get("teacher", ""),
            version=version("degrain"),
            settings={name: value for name, value in dataclasses.asdict(job).items() if name in DECISIVE},
        ),
    )


def score(weights: Weights, photos: Iterable[CleanPhoto]) -> dict[str, float]:
    """Mean PSNR in dB over the first photos, for white Gaussian noise in the protocol of papers.

    Args:
        weights: those that are scored.
        photos: gone over for each level of the noise; those of `CleanPhotos` are read anew, as memory holds few.
    """
    denoiser = Denoiser(weights)

    def mean_db(sigma: int) -> float:
        clean = (photo.pixels for photo in islice(photos, SCORED_PHOTOS))
        scores_db = gaussian_psnr_db(denoiser.denoise_float, clean, sigma=sigma)
        return float(np.mean(scores_db))

    return {f"psnr_db_sigma_{sigma}": round(mean_db(sigma), 3) for sigma in SCORED_SIGMAS}


def read_run(run: str) -> dict[str, Any]:  # Any: JSON
    """What a finished run left: where its weights are, their card, and up to 200 of its metrics, oldest first.

    Raises:
        StorageError: the run is not there, or was never finished.
    """
    store = open_store(run)
    weights = parse_weights(store.read(WEIGHTS))
    metrics = read_metrics(store)
    return {
        "weights": f"{store.url}/{WEIGHTS}",
        "sha256": weights.sha256,
        "card": dataclasses.asdict(weights.card),
        "metrics": metrics[:: max(1, math.ceil(len(metrics) / 200))],
    }


def _train_on_cluster(job: TrainJob, report: Callable[[StepMetrics], None], claim: Claim, asked: Interruption) -> None:
    """Ray Train starts the workers, joins them in a process group, and starts them again when one is lost."""
    with connected(job.address), scratch_folder() as folder:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from pipeline.news import News
        from pipeline.process_group import ProcessGroupConfig

        size = _size_of_workers(job)
        workers: Any = (1, job.workers)  # Any: Ray's types do not know that a pair means "as many as there are"
        # Here: with another node it would be lost, and the run with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        news: Any = ray.remote(News).options(num_cpus=0, scheduling_strategy=here).remote()  # Any: Ray's proxy
        # Any: nor do they know what it returns
        train: Any = partial(_train_as_ray_worker, job, size.threads, news, claim, Path.cwd())
        trainer: Any = TorchTrainer(
            train,
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(size.gpus),
                resources_per_worker={"CPU": size.cores, "GPU": size.gpus},
            ),
            run_config=RunConfig(
                name="run",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=job.max_failures),
                worker_runtime_env={"env_vars": KEEPING_FREED_MEMORY},  # type: ignore[call-arg]  # that of an older Ray
            ),
            torch_config=ProcessGroupConfig(),
        )
        try:
            with _passed_on(news, report, asked):
                stopped_by = _fit(trainer).return_value
        except TrainingFailedError as error:
            raise RunFailed(f"training stopped: {_innermost(error)}; it goes on from its last checkpoint") from error
        if stopped_by is not None:
            raise stopped_by


def _fit(trainer: Any) -> Any:  # Any: Ray's types do not know what `fit` returns
    """What a training by Ray comes to. In this thread, Ray would take a signal, and end the workers at once.

    Raises:
        RunFailed: a cluster that was started here has died: Ray would wait for it.
    """
    result: Future[Any] = Future()

    def fit() -> None:
        try:
            result.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001  # it belongs to the thread that waits
            result.set_exception(error)

    Thread(target=fit, daemon=True).start()
    while not wait([result], timeout=1).done:
        check_own_cluster()
    return result.result()


def _size_of_workers(job: TrainJob) -> Size:
    """What each takes of its node.

    Raises:
        RunFailed: the cluster has too little: Ray would wait for more, without a word.
    """
    cluster = Cluster.now(use_gpus=job.use_gpus)
    if sum(node.gpus for node in cluster.limit) < job.workers:  # NCCL lets no two share one
        cluster = cluster.without_gpus
    cores = sum(node.cores for node in cluster.limit)
    if job.workers > cores:
        raise RunFailed(f"the cluster has {cores} cores, and {job.workers} workers need one each: ask for fewer")
    free: dict[str, float] = ray.available_resources()
    size = cluster.size_for(job.workers)
    if free.get("CPU", 0) < size.cores or free.get("GPU", 0) < size.gpus:
        log.warning("no worker can start before the cluster has %g cores and %d GPUs free", size.cores, size.gpus)
    return size


def _train_as_ray_worker(
    job: TrainJob,
    threads: int,
    news: Any,  # Ray's proxy of `News`
    claim: Claim,
    folder: Path,
) -> Exception | None:
    """What each of Ray Train's workers runs; returns what all of them meet at once: a loss that is no number, or a
    lease that is lost when they begin. Raised, it would have Ray start them again, to meet it again.
    """
    with suppress(OSError):  # another node may not have it
        os.chdir(folder)  # Ray has put this process elsewhere, where a relative path means another place
    check = partial(refuse_if_lost, open_store(job.run), claim)
    try:
        check()
    except RunFailed as error:
        return error
    from ray.train import get_context

    from pipeline.process_group import device_of_worker

    context = get_context()
    worker = Worker(
        number=context.get_world_rank(), count=context.get_world_size(), threads=threads, device=device_of_worker()
    )
    is_to_end = False

    def tell(metrics: StepMetrics) -> None:
        nonlocal is_to_end
        is_to_end = ray.get(news.tell.remote(dataclasses.asdict(metrics)))

    try:
        train_worker(job, worker, tell, check=check, is_to_end=lambda: is_to_end)
    except FloatingPointError as error:
        return error
    return None


@contextmanager
def _passed_on(
    news: Any,  # Ray's proxy of `News`
    report: Callable[[StepMetrics], None],
    asked: Interruption,
) -> Iterator[None]:
    """Report what the first worker tells, and tell it of an end that is asked for, as long as the context lasts and the
    cluster of the news does.
    """

    def pass_on() -> None:
        step = 0
        with suppress(RayError):
            while (values := ray.get(news.next.remote(is_to_end=asked.is_asked))) is not None:
                metrics = StepMetrics(**values)
                if metrics.step <= step:
                    log.warning("a worker was lost, or one more has come: all go on at step %d", metrics.step - 1)
                step = metrics.step
                report(metrics)

    reader = Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        yield
    finally:
        with suppress(RayError):
            ray.get(news.tell.remote(None))
        reader.join(timeout=10)


def _innermost(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    causes = getattr(error, "worker_failures", None)
    cause: BaseException = next(iter(causes.values())) if causes else error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(str(cause).split())[-300:]
