"""What a training worker learns from: photos of a store, decoded ahead of the step, cut, and made noisy."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TypeVar

import numpy as np
import pyarrow as pa

from model.device import use_threads
from model.patches import BLOCK_STEPS, Patches, PatchPlan
from model.recipe import TrainConfig
from model.training import Examples
from pipeline.clean_photos import clean_among, no_clean_photos
from pipeline.sources import Source

STEPS_AHEAD = 4
KEPT_BYTES = 512 * 2**20  # of decoded photos, in each worker: one that is alone decodes a small collection once
K = TypeVar("K")
T = TypeVar("T")


class ExampleStream:
    """A worker's share of the batch of every step. Photos are read and decoded a block of steps ahead.

    The first ones stay decoded, up to `KEPT_BYTES`. It is a context: its threads end with it.

    Args:
        source: where the photos are.
        photos: which, as `Source.table` lists them.
        config: the recipe.
        parts: the worker's parts of the batch.
        makes_ahead: make noise beside the step. Where the network has a device of its own it need not wait, and where
            it computes on the same cores, both would take them from each other.

    Raises:
        ValueError: none of the photos can be used.
        StorageError: the source cannot be read.
    """

    def __init__(
        self, source: Source, photos: pa.Table, config: TrainConfig, parts: range, *, makes_ahead: bool
    ) -> None:
        self._source = source
        self._photos = photos
        self._config = config
        self._parts = parts
        self._makes_ahead = makes_ahead
        self._plan = PatchPlan(
            photos=len(photos),
            parts=config.parts,
            part_size=config.part_size,
            halved_share=config.halved_share,
            seed=config.seed,
        )
        self._reader = ThreadPoolExecutor(1, "photos")
        # One thread: what it computes should not take the cores of the network.
        self._maker = ThreadPoolExecutor(1, "examples", use_threads, (1,))
        self._blocks: dict[tuple[int, int], Future[Patches]] = {}
        self._steps: dict[int, Future[Examples]] = {}
        self._kept: dict[range, list[Patches]] = {}
        self._kept_bytes = 0
        self._useless: set[int] = set()  # photos: once they are known they are not read again, nor told of

    def __enter__(self) -> "ExampleStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._maker, self._reader):
            pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> Examples:
        """The examples of a step; those of the next ones, or at least their photos, are begun."""
        if not self._makes_ahead:
            return self._make(step)
        for ahead in range(step, min(step + STEPS_AHEAD, self._config.steps)):
            _begin(self._steps, ahead, self._maker, partial(self._make, ahead))
        return self._steps.pop(step).result()

    def _make(self, step: int) -> Examples:
        block, place = divmod(step, BLOCK_STEPS)
        side_px, size = self._config.patch_px_at(step), self._config.part_size
        for number, part in itertools.product((block, block + 1), self._parts):
            if number * BLOCK_STEPS < self._config.steps:
                _begin(self._blocks, (part, number), self._reader, partial(self._cut, part, number))
        made = []
        for part in self._parts:
            self._blocks.pop((part, block - 1), None)
            patches = self._blocks[part, block].result()[place * size : (place + 1) * size, :side_px, :side_px]
            made.append(Examples.make(patches, self._config, step=step, part=part))
        return Examples.together(made)

    def _cut(self, part: int, block: int) -> Patches:
        """The patches of a block. Where none of its photos can be used, those of the next block that has some."""
        for other in range(block, block + len(self._photos)):
            numbers = self._plan.photos_of(part, other)
            patches = self._plan.cut(self._read(numbers), part, other, side_px=self._config.patch_px)
            if len(patches):
                return patches
        raise no_clean_photos(self._source, min_side_px=self._config.patch_px)

    def _read(self, numbers: range) -> Iterator[Patches]:
        """The decoded photos with these numbers, which are a group of the plan."""
        if numbers in self._kept:
            yield from self._kept[numbers]
            return
        wanted = [number for number in numbers if number not in self._useless]
        group = self._photos.take(wanted)
        useless = dict(zip(group["key"].to_pylist(), wanted, strict=True))
        photos, kept_bytes = [], self._kept_bytes
        for photo in clean_among(self._source.read(group), min_side_px=self._config.patch_px):
            del useless[photo.key]
            pixels = np.ascontiguousarray(photo.pixels)  # of one with transparency, this lets go of that
            kept_bytes += pixels.nbytes
            if kept_bytes <= KEPT_BYTES:
                photos.append(pixels)
            yield pixels
        self._useless.update(useless.values())
        if kept_bytes <= KEPT_BYTES:
            self._kept[numbers], self._kept_bytes = photos, kept_bytes


def _begin(begun: dict[K, "Future[T]"], key: K, pool: ThreadPoolExecutor, work: Callable[[], T]) -> None:
    if key not in begun:
        begun[key] = pool.submit(work)
