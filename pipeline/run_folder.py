"""The folder of a training run: what its first worker writes into it, and what is read of it.

It holds `checkpoint.safetensors`, `metrics.parquet`, TensorBoard's `tensorboard/` and pictures in `validation/`. Each
is written whole, the metrics before the checkpoint: a run that was killed goes on at its last checkpoint, and rows
beyond that are dropped.
"""

import dataclasses
import io
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.denoiser import Denoiser
from model.metrics import PEAK, score_db
from model.recipe import TrainConfig
from model.training import NO_ORIGIN, StepMetrics, TrainState, read_checkpoint_header
from model.weights import Card, dump_weights, parse_weights
from pipeline.errors import RunFailed
from pipeline.images import to_png
from pipeline.records import TRAINING_SCHEMA
from pipeline.scratch import scratch_folder
from pipeline.storage import Store
from pipeline.train_job import PICTURES, TENSORBOARD, TrainJob

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.parquet"
# What checkpoints of earlier versions do not tell.
UNTOLD: Mapping[str, object] = {"teacher": "", "halved_share": 0.3, "drawn_share": 0.0}
CHECKPOINT_S = 300.0  # of steps that take long no more is lost than those of so many seconds
MAY_CHANGE = ("steps", "small_share", "cooldown_share")  # how long a run takes may be decided while it runs
VALIDATION_PHOTOS, VALIDATION_PX, VALIDATION_SIGMA = 16, 256, 25.0
PICTURED = 4


def read_state(store: Store, config: TrainConfig) -> TrainState:
    """The state at the run's last checkpoint."""
    state = TrainState(config)
    resume(store, state, config)
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


class RunFolder:
    """What the first worker writes into the run's folder: metrics, pictures, checkpoints."""

    def __init__(
        self,
        store: Store,
        job: TrainJob,
        config: TrainConfig,
        origin: Mapping[str, object],
        *,
        rows: list[dict[str, float | None]],
        board: "Board",
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
        denoiser = Denoiser(parse_weights(dump_weights(state.average, blank_card(self._config))))
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


class Board:
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


def resume(
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


def blank_card(config: TrainConfig) -> Card:
    """One that names the network, as a file of weights needs it."""
    return Card(network=config.network, data="", licence="", noise="")


def _damaged(store: Store, key: str, otherwise: str, error: Exception) -> RunFailed:
    return RunFailed(f"{store.url}/{key} is damaged: put back a copy of it, or remove it to {otherwise} ({error})")


def _centre(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, left = (max(0, extent - VALIDATION_PX) // 2 for extent in photo.shape[:2])
    return photo[top : top + VALIDATION_PX, left : left + VALIDATION_PX].copy()  # or all of it stays in memory


def _padded(strip: NDArray[np.float32]) -> NDArray[np.float32]:
    """White below and beside a strip that is smaller than the others."""
    missing = [(0, VALIDATION_PX - strip.shape[0]), (0, 3 * VALIDATION_PX - strip.shape[1]), (0, 0)]
    return np.pad(strip, missing, constant_values=PEAK)
