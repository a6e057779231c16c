"""Tiles partition a photo, see enough of it, and keep to the network's cells."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tiling import Rectangle, Tile, padded_px, plan_tiles

sizes = st.integers(1, 200)
plans = st.fixed_dictionaries(
    {
        "height_px": sizes,
        "width_px": sizes,
        "tile_px": st.integers(1, 150),
        "halo_px": st.integers(0, 70),
        "multiple_px": st.sampled_from([1, 2, 8, 32]),
    }
)


@given(plans)
def test_every_pixel_belongs_to_the_core_of_exactly_one_tile(plan):
    covered = np.zeros((plan["height_px"], plan["width_px"]), dtype=int)
    for tile in plan_tiles(**plan):
        covered[tile.core.slices] += 1
    assert (covered == 1).all()


@given(plans)
def test_a_tile_reads_its_halo_on_every_side_where_the_photo_goes_on(plan):
    halo = plan["halo_px"]
    for core, read in ((tile.core, tile.read) for tile in plan_tiles(**plan)):
        assert 0 <= read.top <= max(0, core.top - halo)
        assert 0 <= read.left <= max(0, core.left - halo)
        assert min(plan["height_px"], core.bottom + halo) <= read.bottom <= plan["height_px"]
        assert min(plan["width_px"], core.right + halo) <= read.right <= plan["width_px"]


@given(plans)
def test_rectangles_are_made_of_whole_cells_up_to_the_edge_of_the_photo(plan):
    multiple = plan["multiple_px"]
    for rectangle in (part for tile in plan_tiles(**plan) for part in (tile.core, tile.read)):
        assert rectangle.top % multiple == rectangle.left % multiple == 0
        assert rectangle.bottom % multiple == 0 or rectangle.bottom == plan["height_px"]
        assert rectangle.right % multiple == 0 or rectangle.right == plan["width_px"]


@given(plans)
def test_tiles_are_even_and_no_larger_than_asked(plan):
    multiple = plan["multiple_px"]
    cells = [
        (padded_px(tile.core.height_px, multiple) // multiple, padded_px(tile.core.width_px, multiple) // multiple)
        for tile in plan_tiles(**plan)
    ]
    for extents in zip(*cells, strict=True):
        assert max(extents) - min(extents) <= 1
        assert max(extents) <= max(1, plan["tile_px"] // multiple)


@given(plans)
def test_a_tile_at_the_edge_reads_enough_to_be_padded_as_the_whole_photo_is(plan):
    multiple, height = plan["multiple_px"], plan["height_px"]
    padding = padded_px(height, multiple) - height
    for read in (tile.read for tile in plan_tiles(**plan)):
        assert read.bottom < height or read.top == 0 or read.height_px > padding


@given(plans, st.integers(1, 100))
def test_a_core_can_be_cut_again(plan, smaller_px):
    core = plan_tiles(**plan)[-1].core
    covered = np.zeros((plan["height_px"], plan["width_px"]), dtype=int)
    for tile in plan_tiles(**(plan | {"tile_px": smaller_px}), area=core):
        covered[tile.core.slices] += 1
    assert (covered[core.slices] == 1).all()
    assert covered.sum() == core.height_px * core.width_px


def test_a_small_photo_is_one_tile():
    whole = Rectangle(0, 0, 33, 20)
    assert plan_tiles(33, 20, tile_px=64, halo_px=16, multiple_px=8) == [Tile(core=whole, read=whole)]


def test_a_rectangle_within_another_is_counted_from_its_corner():
    assert Rectangle(10, 20, 30, 50).within(Rectangle(8, 16, 40, 60)) == (slice(2, 22), slice(4, 34))


@pytest.mark.parametrize("wrong", [{"tile_px": 0}, {"halo_px": -1}, {"multiple_px": 0}, {"height_px": 0}])
def test_sizes_that_make_no_sense_are_refused(wrong):
    plan = {"height_px": 10, "width_px": 10, "tile_px": 8, "halo_px": 0, "multiple_px": 2} | wrong
    with pytest.raises(ValueError, match="must be at least 1"):
        plan_tiles(**plan)


@pytest.mark.parametrize("area", [Rectangle(4, 0, 16, 16), Rectangle(0, 0, 12, 16), Rectangle(0, 0, 48, 16)])
def test_an_area_that_is_not_made_of_the_photos_cells_is_refused(area):
    with pytest.raises(ValueError, match="not made of cells of 8"):
        plan_tiles(32, 32, tile_px=16, halo_px=8, multiple_px=8, area=area)
