"""One worker's part of a training run: go on at the last checkpoint and train; the first worker keeps the run's folder.

The folder holds `checkpoint.safetensors`, `metrics.parquet`, TensorBoard's `tensorboard/` and pictures in
`validation/`. Each is written whole, the metrics before the checkpoint: a run that was killed goes on at its last
checkpoint, and rows beyond that are dropped.
"""

import dataclasses
import io
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice, product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from model.denoiser import Denoiser
from model.device import use_threads
from model.metrics import PEAK, score_db
from model.patches import parts_of
from model.training import NO_ORIGIN, StepMetrics, TrainConfig, TrainState, read_checkpoint_header, train_steps
from model.weights import NETWORKS, Card, Part, Weights, dump_weights, parse_weights
from pipeline.clean_photos import CleanPhotos, digest_of, find_clean_photos
from pipeline.errors import RunFailed
from pipeline.examples import ExampleStream
from pipeline.images import to_png
from pipeline.records import TRAINING_SCHEMA
from pipeline.registry import read_weights
from pipeline.scratch import scratch_folder
from pipeline.sources import Source, photos_of
from pipeline.storage import Store, open_store, prefix_in, spelled_out
from pipeline.subset import Split, Subset

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.parquet"
TENSORBOARD, PICTURES = "tensorboard", "validation"
UNTOLD: Mapping[str, object] = {"teacher": "", "halved_share": 0.3}  # by checkpoints of earlier versions
CHECKPOINT_S = 300.0  # of steps that take long no more is lost than those of so many seconds
MAY_CHANGE = ("steps", "small_share", "cooldown_share")  # how long a run takes may be decided while it runs
VALIDATION_PHOTOS, VALIDATION_PX, VALIDATION_SIGMA = 16, 256, 25.0
PICTURED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What `degrain train` is asked to do.

    Attributes:
        source: path or URL of the collection of clean photos.
        run: path or URL of the run's folder; a run that is there goes on at its last checkpoint.
        where: a condition over the columns of the source's index, where that is an image set: which photos to use.
        validation_fraction: share of the source that is held back from training, the same photos in every run; the
            weights are scored on them if there is no other collection for it.
        validation: collection that the weights are scored on, now and then and at the end, by white Gaussian noise in
            the protocol of papers; the card holds the scores.
        start_from: weights to begin with, by name, path or URL; None begins with random ones. Where their network for
            white noise is of another architecture, a new one for it begins with random ones, too; and a general one
            begins with theirs for white noise where only that is of its architecture.
        teacher: weights whose answers are learnt in place of the clean photos, by name, path or URL (see
            `model.teacher`); None learns from the photos alone.
        data, licence: what the card says of the photos, and under which terms the weights may be used.
        workers: processes that share each batch, on a Ray cluster if there are several. Fewer go on if some are lost.
        address: of a Ray cluster to join; None starts one on this machine where it is needed.
        use_gpus: whether workers get a GPU each, where there are any.
        checkpoint_every: steps between checkpoints; there is one every five minutes besides.
        validate_every: steps between two looks at a few photos of the validation.
        log_every: steps whose mean makes one row of the metrics; fewer where a look at the validation comes between, or
            where the run goes on, as its first row is of the steps since the checkpoint.
        max_failures: how often a run goes on after it has lost a worker.
    """

    source: str
    run: str
    where: str = ""
    validation_fraction: float = 0.0
    validation: str | None = None
    start_from: str | None = None
    teacher: str | None = None
    data: str = ""
    licence: str = "not stated"
    workers: int = 1
    address: str | None = None
    use_gpus: bool = True
    checkpoint_every: int = 500
    validate_every: int = 2000
    log_every: int = 100
    max_failures: int = 8
    config: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "validate_every", "log_every"):
            if (steps := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {steps}: expected at least 1")
        self.subset(Split.TRAIN)
        if self.config.part != Part.GENERAL and self.start_from is None:
            raise ValueError(
                "start_from is not set: expected weights whose general network stays beside the one that is trained, "
                f"which is for {self.config.part} noise alone"
            )
        if not 1 <= self.workers <= self.config.parts:
            raise ValueError(
                f"workers is {self.workers}: expected 1 to {self.config.parts}, the parts that a batch of "
                f"{self.config.batch_size} patches has; for more of them, take a batch_size of 4 for each worker"
            )

    def find_photos(self) -> tuple[Source, pa.Table]:
        """Where the photos to train on are, and which.

        Raises:
            ValueError: there are none, or the run would write among them.
            StorageError: they cannot be read.
        """
        source = photos_of(open_store(self.source), self.subset(Split.TRAIN))
        run = open_store(self.run)
        written = [run, *(open_store(f"{run.url}/{name}") for name in (PICTURES, TENSORBOARD))]
        for place, store in product(written, map(open_store, filter(None, (self.source, self.validation)))):
            if prefix_in(place, store) is not None:
                raise ValueError(
                    f"the run writes to {place.url}, which lies in the photos {store.url}: name a folder outside of "
                    "them"
                )
        photos = source.table()
        if not len(photos):
            raise ValueError(f"there are no photos to train on in {self.source}")
        return source, photos

    def subset(self, split: Split) -> Subset:
        """The photos of the source that are for training, or for validation."""
        return Subset(where=self.where, split=split, validation_fraction=self.validation_fraction)

    def find_validation(self) -> CleanPhotos | None:
        """The photos that weights are scored on, if any were asked for.

        Raises:
            ValueError: of those that train, the share that was asked for has none.
            StorageError: they cannot be listed.
        """
        if self.validation is not None:
            return find_clean_photos(self.validation)
        if not self.validation_fraction:
            return None
        found = find_clean_photos(self.source, self.subset(Split.VALIDATION))
        if not len(found.photos):
            raise ValueError(
                f"validation_fraction is {self.validation_fraction:g}, which holds none of the photos of "
                f"{self.source} back: ask for more of them"
            )
        return found


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
    rows = _resume(store, state, config, origin)
    parts = parts_of(worker.number, worker.count, config.parts)
    network = teacher.network if teacher is not None else None
    with ExampleStream(source, photos, config, parts, makes_ahead=worker.device != "cpu") as examples:
        steps = train_steps(state, config, examples, device=worker.device, teacher=network, is_to_end=is_to_end)
        if worker.number:
            for _ in steps:
                pass
            return
        with closing(_Board(store, state.step)) as board:
            folder = _Folder(store, job, config, origin, rows=rows, board=board, check=check)
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
    _resume(open_store(job.run), state, config, _begin(state, job, config, _read_teacher(job, config)))
    for clean in filter(None, (CleanPhotos(source, photos, config.patch_px), job.find_validation())):
        next(iter(clean))


def read_state(store: Store, config: TrainConfig) -> TrainState:
    """The state at the run's last checkpoint."""
    state = TrainState(config)
    _resume(store, state, config)
    return state


def read_step(store: Store) -> int:
    """The step of the run's last checkpoint; 0 where there is none."""
    return read_checkpoint_header(store.read(CHECKPOINT))[0] if store.exists(CHECKPOINT) else 0


def read_origin(store: Store) -> dict[str, object]:
    """What the run depends on, by name, as its last checkpoint tells: the recipe, what it started from, its teacher."""
    return read_checkpoint_header(store.read(CHECKPOINT))[1]


def read_metrics(store: Store) -> list[dict[str, float | None]]:
    """The rows of a run's metrics, with the columns of `TRAINING_SCHEMA`.

    Raises:
        RunFailed: the file is damaged.
    """
    if not store.exists(METRICS):
        return []
    try:
        table = pq.read_table(pa.BufferReader(store.read(METRICS)))
        rows: list[dict[str, float | None]] = table.select(TRAINING_SCHEMA.names).to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _damaged(store, METRICS, "go on without the rows that it had", error) from error
    return rows


def identify(photos: pa.Table) -> dict[str, object]:
    """How many files a run was given, and what they are known by; for what it depends on."""
    etags = ((row["key"], row["etag"]) for batch in photos.to_batches() for row in batch.to_pylist())
    return {"photos": len(photos), "photos_sha256": digest_of(etags)}


class _Folder:
    """What the first worker writes into the run's folder: metrics, pictures, checkpoints."""

    def __init__(
        self,
        store: Store,
        job: TrainJob,
        config: TrainConfig,
        origin: Mapping[str, object],
        *,
        rows: list[dict[str, float | None]],
        board: "_Board",
        check: Callable[[], None],
    ) -> None:
        self._store = store
        self._job = job
        self._config = config
        self._origin = origin
        self._rows = rows
        self._means: list[StepMetrics] = []
        self._before_s = float(rows[-1]["seconds"] or 0) if rows else 0.0
        self._start = self._last = self._written = time.monotonic()
        self._photos = [_centre(photo.pixels) for photo in islice(job.find_validation() or (), VALIDATION_PHOTOS)]
        self._board = board
        self._check = check

    def add(self, metrics: StepMetrics, state: TrainState) -> None:
        """Note a step, and write what is due at it."""
        is_done = metrics.step == metrics.steps
        self._means.append(metrics)
        psnr = None
        if self._photos and (metrics.step % self._job.validate_every == 0 or is_done):
            psnr = self._validate(metrics.step, state)
        if metrics.step % self._job.log_every == 0 or is_done or psnr is not None:
            self._log(metrics, psnr)
        is_late = time.monotonic() - self._written >= CHECKPOINT_S
        if metrics.step % self._job.checkpoint_every == 0 or is_late or metrics.is_last:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(self._rows, schema=TRAINING_SCHEMA), buffer)
            self._check()
            self._store.write(METRICS, buffer.getvalue())
            self._board.upload()
            self._store.write(CHECKPOINT, state.dump(self._config, self._origin))
            self._written = time.monotonic()

    def _log(self, metrics: StepMetrics, psnr: float | None) -> None:
        now = time.monotonic()
        row: dict[str, float | None] = {
            "step": metrics.step,
            "loss": float(np.mean([each.loss for each in self._means])),
            "gradient_norm": float(np.mean([each.gradient_norm for each in self._means])),
            "learning_rate": metrics.learning_rate,
            "seconds": round(self._before_s + now - self._start, 1),
            "patches_per_second": len(self._means) * self._config.batch_size / (now - self._last),
            "validation_psnr_db": psnr,
        }
        self._rows.append(row)
        self._board.add_scalars(row)
        self._means.clear()
        self._last = now

    def _validate(self, step: int, state: TrainState) -> float:
        """Score the average on a few photos, and picture some: noisy, denoised, clean."""
        denoiser = Denoiser(parse_weights(dump_weights(state.average, _card(self._config))))
        draw = np.random.default_rng(0)
        scores, strips = [], []
        for clean in self._photos:
            noisy = clean.astype(np.float32) + draw.normal(0, VALIDATION_SIGMA, clean.shape).astype(np.float32)
            made = denoiser.denoise_float(noisy)
            scores.append(score_db(made.round().clip(0, PEAK), clean))
            strips.append(np.concatenate([noisy, made, clean.astype(np.float32)], axis=1))
        picture = np.concatenate([_padded(strip) for strip in strips[:PICTURED]]).round().clip(0, PEAK).astype(np.uint8)
        self._store.write(f"{PICTURES}/{step:08}.png", to_png(picture))
        self._board.add_picture(picture, step)
        return float(np.mean(scores))


class _Board:
    """TensorBoard's event file, written here and copied whole into the run's folder.

    It is written in this thread: that of a `SummaryWriter` may be behind at a checkpoint, and waits for ever where the
    disk is full.

    Args:
        step: after which the run goes on. What another file says of later steps is not shown.
    """

    def __init__(self, store: Store, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._store = store
        self._open = ExitStack()
        self._folder = self._open.enter_context(scratch_folder())
        self._writer = EventsWriter(str(self._folder / "events"), filename_suffix=f".{step:08}")
        self._open.callback(self._writer.close)
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))

    def add_scalars(self, row: dict[str, float | None]) -> None:
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if value is not None and name != "step":
                self._add(int(row["step"] or 0), summary=scalar(name, value))

    def add_picture(self, picture_HWC: NDArray[np.uint8], step: int) -> None:
        from tensorboardX.summary import image

        self._add(step, summary=image("validation", picture_HWC, dataformats="HWC"))

    def close(self) -> None:
        self._open.close()

    def upload(self) -> None:
        """Copy what is written by now."""
        self._writer.flush()
        for path in sorted(self._folder.iterdir()):
            self._store.write(f"{TENSORBOARD}/{path.name}", path.read_bytes())

    def _add(self, step: int, **content: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


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
            dataclasses.replace(weights.card, white=_card(config))  # raises where the two do not go together
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


def _card(config: TrainConfig) -> Card:
    return Card(network=config.network, data="", licence="", noise="")


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


def _resume(
    store: Store, state: TrainState, config: TrainConfig, origin: Mapping[str, object] = NO_ORIGIN
) -> list[dict[str, float | None]]:
    """Load the run's last checkpoint into `state`, if there is one; returns the metrics up to it."""
    if not store.exists(CHECKPOINT):
        return []
    checkpoint = store.read(CHECKPOINT)
    try:
        step, before = read_checkpoint_header(checkpoint)
    except ValueError as error:
        raise _damaged(store, CHECKPOINT, "begin the run anew", error) from error
    now = dataclasses.asdict(config) | dict(origin)
    before = dict(origin) | dict(UNTOLD) | before
    told = "photos", "photos_sha256"
    differing = sorted(name for name in now if name not in (*MAY_CHANGE, *told) and now[name] != before.get(name))
    if differing:
        raise ValueError(
            f"the run at {store.url} has another recipe ({', '.join(differing)}): only {', '.join(MAY_CHANGE)} may "
            "change in a run"
        )
    if step > config.steps:
        raise ValueError(f"the run at {store.url} is at step {step} already, and steps is {config.steps}")
    try:
        state.load(checkpoint, step)
    except ValueError as error:
        raise _damaged(store, CHECKPOINT, "begin the run anew", error) from error
    if step < config.steps:
        log.warning("going on at step %d", step)
        if any(origin[name] != before[name] for name in told if name in origin):
            log.warning("the photos are others than before: what comes of both is not what either would have made")
    return [row for row in read_metrics(store) if (row["step"] or 0) <= step]


def _damaged(store: Store, key: str, otherwise: str, error: Exception) -> RunFailed:
    return RunFailed(f"{store.url}/{key} is damaged: put back a copy of it, or remove it to {otherwise} ({error})")


def _centre(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, left = (max(0, extent - VALIDATION_PX) // 2 for extent in photo.shape[:2])
    return photo[top : top + VALIDATION_PX, left : left + VALIDATION_PX].copy()  # or all of it stays in memory


def _padded(strip: NDArray[np.float32]) -> NDArray[np.float32]:
    """White below and beside a strip that is smaller than the others."""
    missing = [(0, VALIDATION_PX - strip.shape[0]), (0, 3 * VALIDATION_PX - strip.shape[1]), (0, 0)]
    return np.pad(strip, missing, constant_values=PEAK)
