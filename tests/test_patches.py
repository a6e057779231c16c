"""The plan of patches: every photo in turn, in an order that is a function of the seed and the step alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.patches import PatchPlan, parts_of


def _plan(photos: int = 100, **changes: int) -> PatchPlan:
    return PatchPlan(**({"photos": photos, "parts": 4, "part_size": 4, "halved_share": 0.3, "seed": 0} | changes))


def _photos(count: int, side_px: int = 40) -> list[np.ndarray]:
    return [np.full((side_px, side_px + 8, 3), number, np.uint8) for number in range(count)]


@given(photos=st.integers(1, 500), parts=st.integers(1, 9), part_size=st.integers(1, 8), epoch=st.integers(0, 3))
def test_an_epoch_is_every_photo_once(photos: int, parts: int, part_size: int, epoch: int) -> None:
    plan = _plan(photos, parts=parts, part_size=part_size)
    group = -(-plan.block_size // 8)
    groups = -(-photos // group)
    streams = parts if groups >= parts else 1
    seen = Counter()
    for part in range(streams):
        blocks = len(range(part, groups, streams))
        for block in range(epoch * blocks, (epoch + 1) * blocks):
            seen.update(plan.photos_of(part, block))
    assert set(seen) == set(range(photos))
    assert set(seen.values()) == {1}


def test_the_order_is_another_in_every_epoch_and_for_every_seed() -> None:
    blocks = range(13)  # of 50 groups in four parts, the first has thirteen
    first = [_plan(800).photos_of(0, block) for block in blocks]
    assert first == [_plan(800).photos_of(0, block) for block in blocks]
    assert first != [_plan(800).photos_of(0, block + 13) for block in blocks]
    assert first != [_plan(800, seed=1).photos_of(0, block) for block in blocks]


def test_of_few_photos_every_part_takes_all() -> None:
    assert [_plan(3).photos_of(part, 7) for part in range(4)] == [range(3)] * 4


def test_patches_come_from_all_photos_alike_in_random_order() -> None:
    plan = _plan(16)
    patches = plan.cut(_photos(16), 0, 0, side_px=16)
    assert patches.shape == (128, 16, 16, 3)
    assert set(Counter(patches[:, 0, 0, 0].tolist()).values()) == {8}
    assert len(set(patches[:4, 0, 0, 0].tolist())) > 1


def test_what_is_missing_is_made_up_for_by_the_others() -> None:
    patches = _plan(16).cut(_photos(3), 0, 0, side_px=16)
    assert len(patches) == 128
    assert max(Counter(patches[:, 0, 0, 0].tolist()).values()) <= 43 + 8
    assert len(_plan(16).cut([], 0, 0, side_px=16)) == 0


def test_every_place_and_orientation_is_taken() -> None:
    photo = np.arange(20 * 20 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 20, 3)
    photo[..., 0] = np.arange(400).reshape(20, 20) % 256
    patches = _plan(1, part_size=32).cut([photo], 0, 0, side_px=16)
    distinct = {patch.tobytes() for patch in patches}
    assert len(distinct) > 150  # of 25 places in 8 orientations


def test_workers_share_the_parts() -> None:
    assert [list(parts_of(worker, 3, 8)) for worker in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]


@pytest.mark.parametrize("block", [0, 5])
def test_a_block_is_the_same_whoever_cuts_it(block: int) -> None:
    first, second = (_plan(40).cut(_photos(16), 2, block, side_px=16) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, _plan(40).cut(_photos(16), 3, block, side_px=16))


def test_some_patches_show_four_times_the_area_at_half_the_size() -> None:
    photo = np.indices((64, 64), dtype=np.uint8).sum(axis=0, dtype=np.uint8)[..., None].repeat(3, axis=2)
    patches = _plan(1, part_size=32).cut([photo], 0, 0, side_px=16)
    spans = {int(patch.max()) - int(patch.min()) for patch in patches}
    assert spans == {30, 60}
