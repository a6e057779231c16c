"""Which patches a training step is made of: a plan that is a function of the seed and the step, whoever asks.

A batch is made in parts. Each part follows a stream of its own through the photos, a group of neighbours at a time, and
cuts many patches of each that it decodes; the groups are shuffled anew in every epoch. Since no part depends on
another, nor on what came before, any number of workers can share them, and any step can be the first.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Patches = NDArray[np.uint8]

BLOCK_STEPS = 32  # steps whose patches of one part come from one group of photos
CROPS_PER_PHOTO = 8
_ORDER, _CROPS = 0, 1  # what a random generator is for


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPlan:
    """Which photos, by number, the patches of each part and step are cut from.

    Attributes:
        photos: how many there are.
        parts: how many parts a batch has.
        part_size: patches of a part.
        halved_share: of the patches of photos that are large enough, those that are seen from twice as far, with finer
            detail.
        seed: of the order and of the crops.
    """

    photos: int
    parts: int
    part_size: int
    halved_share: float
    seed: int

    @property
    def block_size(self) -> int:
        """Patches of one part in the steps of a block."""
        return BLOCK_STEPS * self.part_size

    def photos_of(self, part: int, block: int) -> range:
        """The photos that a part needs in the steps from `block * BLOCK_STEPS` on, which are neighbours."""
        groups = math.ceil(self.photos / math.ceil(self.block_size / CROPS_PER_PHOTO))
        streams = self.parts if groups >= self.parts else 1
        epoch, place = divmod(block, len(range(part % streams, groups, streams)))
        order = _shuffled(groups, self.seed, epoch) if streams > 1 else _shuffled(groups, self.seed, epoch, part)
        group = int(order[part % streams + streams * place])
        return range(self.photos * group // groups, self.photos * (group + 1) // groups)

    def cut(self, photos: Iterable[Patches], part: int, block: int, *, side_px: int) -> Patches:
        """The patches of a block in their order, (N, S, S, 3), cut from the photos that it needs.

        Photos are taken one by one. Every place and orientation of a photo is equally likely, and some patches show
        four times the area at half the size.

        Args:
            photos: (H, W, 3) each, at least `side_px` on both sides; some of those of the plan may be missing.
            side_px: S.
        """
        draw = np.random.default_rng([self.seed, _CROPS, part, block])
        per_photo = max(CROPS_PER_PHOTO, math.ceil(self.block_size / len(self.photos_of(part, block))))
        crops = [self._crop(photo, side_px, draw) for photo in photos for _ in range(per_photo)]
        if not crops:
            return np.empty((0, side_px, side_px, 3), np.uint8)
        return np.stack([crops[place % len(crops)] for place in _order(self.block_size, len(crops), draw)])

    def _crop(self, photo: Patches, side_px: int, draw: np.random.Generator) -> Patches:
        scale = 2 if min(photo.shape[:2]) >= 2 * side_px and draw.random() < self.halved_share else 1
        top, left = (int(draw.integers(extent - scale * side_px + 1)) for extent in photo.shape[:2])
        patch = photo[top : top + scale * side_px, left : left + scale * side_px]
        if scale == 2:
            rows = patch[::2].astype(np.uint16) + patch[1::2]  # ten times as fast as one sum over both axes of a cell
            patch = ((rows[:, ::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)
        if draw.random() < 0.5:
            patch = patch[:, ::-1]
        if draw.random() < 0.5:
            patch = patch[::-1]
        return (patch.transpose(1, 0, 2) if draw.random() < 0.5 else patch).copy()


def parts_of(worker: int, workers: int, parts: int) -> range:
    """The parts of a batch that one of the workers makes."""
    return range(worker, parts, workers)


def _order(count: int, crops: int, draw: np.random.Generator) -> Sequence[int]:
    """Numbers of crops in random order, each as often as the others as far as that is possible."""
    rounds = [draw.permutation(crops) for _ in range(math.ceil(count / crops))]
    return [int(place) for place in np.concatenate(rounds)[:count]]


@functools.lru_cache(maxsize=64)
def _shuffled(groups: int, seed: int, *epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, _ORDER, *epoch]).permutation(groups)
