"""The simulator of nights and machines: what must hold of all that it simulates. Its benchmark makes real runs."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from benchmarks.simulator import (
    Clock,
    DriverCosts,
    Failures,
    Lane,
    Life,
    Machine,
    PhotoCost,
    Shared,
    Window,
    bound_of,
    count_nights,
    cut,
    publish_s,
    simulate_run,
    simulate_window,
    steady_rate,
)

COST = PhotoCost(before_s=0.02, network_s=0.1, after_s=0.03, source_bytes=1e6, decoded_bytes=1e6)
FREE = DriverCosts()
GPU = Machine(cores=8)
HOUR_S = 3600.0
BAD_DAY = Failures(crash_hours=0.02, loss_hours=0.02, reclaim_hours=0.02, detect_s=3, notice_s=2, machine_s=5)


def test_a_worker_without_failures_takes_what_its_bottleneck_takes() -> None:
    run = simulate_run(320, 1, GPU, COST, FREE)

    assert run.photos == 320
    assert run.seconds == pytest.approx(320 * 0.1, rel=0.01)  # the GPU; cores and storage keep pace beside it


def test_where_one_core_does_everything_its_seconds_add_up() -> None:
    run = simulate_run(64, 1, Machine(cores=1, threads=1), COST, DriverCosts(commit_s=0.5))

    assert run.seconds == pytest.approx(64 * (0.02 + 0.1 + 0.03) + 32 * 0.5)


def test_two_workers_on_the_cores_of_one_are_no_faster() -> None:
    one, two = (simulate_run(640, workers, Machine(cores=1, threads=1), COST, FREE).seconds for workers in (1, 2))

    assert two == pytest.approx(one)


@pytest.mark.parametrize("seed", range(3))
def test_every_photo_is_done_exactly_once_whatever_fails(seed: int) -> None:
    costs = DriverCosts(start_s=1, receipt_s=0.2, turn_s=0.1)  # some die while their receipt is taken

    run = simulate_run(500, 3, GPU, COST, costs, failures=BAD_DAY, seed=seed)

    assert run.lost_shards > 0
    assert run.photos == 500


@pytest.mark.parametrize("seed", range(3))
def test_failures_only_add_time(seed: int) -> None:
    calm = simulate_run(500, 3, GPU, COST, DriverCosts(start_s=1))
    stormy = simulate_run(500, 3, GPU, COST, DriverCosts(start_s=1), failures=BAD_DAY, seed=seed)

    assert stormy.seconds > calm.seconds
    assert calm.lost_shards == 0


def test_a_seed_repeats_and_another_one_does_not() -> None:
    first, again, other = (
        simulate_run(500, 3, GPU, COST, DriverCosts(start_s=1), failures=BAD_DAY, seed=seed) for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other


def test_a_killed_worker_costs_its_shards_and_the_start_of_another() -> None:
    calm = simulate_run(320, 2, GPU, COST, DriverCosts(start_s=2))
    killed = simulate_run(320, 2, GPU, COST, DriverCosts(start_s=2), killed_at=100)

    assert killed.photos == 320
    assert killed.lost_shards == 2
    assert calm.seconds < killed.seconds < calm.seconds + 2 * (2 + 2 * 10 * 0.1)


def test_more_gpus_are_never_slower_until_the_driver_bounds_them() -> None:
    costs = DriverCosts(receipt_s=0.5)  # two shards a second: twenty photos

    done = [window_of(gpus, costs).photos_by(HOUR_S) for gpus in (1, 2, 4, 16)]

    assert done == sorted(done)
    assert done[1] > 1.6 * done[0]
    assert 0.75 * HOUR_S * 2 * 10 < done[-1] < HOUR_S * 2 * 10  # it gives nothing out while it takes receipts
    assert window_of(16, costs).driver_share > 0.75


def window_of(gpus: int, costs: DriverCosts, failures: Failures | None = None, seed: int = 0) -> Window:
    return simulate_window(HOUR_S, gpus, 5.0, 10, costs, failures or Failures(machine_s=0), seed=seed)


def test_a_window_is_the_run_in_detail_but_for_its_photos() -> None:
    rate = steady_rate(GPU, COST, FREE)
    run = simulate_run(6400, 1, GPU, COST, FREE)

    window = simulate_window(HOUR_S, 1, rate, 64, FREE, Failures(machine_s=0))

    assert window.seconds_for(6400) == pytest.approx(run.seconds, rel=0.02)


def test_a_night_that_is_simulated_in_part_goes_on_as_it_was() -> None:
    part = simulate_window(20 * HOUR_S, 32, 0.5, 5, FREE, Failures(machine_s=0))

    assert part.done_s[-2] < 10 * HOUR_S
    assert part.photos_by(20 * HOUR_S) == pytest.approx(20 * HOUR_S * 32 * 0.5, rel=0.01)


def test_what_a_reclaimed_machine_has_in_hand_is_finished_within_its_notice() -> None:
    reclaimed = Failures(reclaim_hours=0.2, notice_s=60, machine_s=60)

    window = window_of(4, FREE, reclaimed)

    assert window.ended_workers > 5
    assert window.lost_shards == 0


def test_nights_add_up_and_a_driver_that_lists_all_night_never_ends() -> None:
    window = window_of(1, FREE)  # 18,000 photos

    assert count_nights(17_000, HOUR_S, 10, window, FREE).nights == 1
    assert count_nights(40_000, HOUR_S, 10, window, FREE).nights == 3
    assert count_nights(40_000, HOUR_S, 10, window, DriverCosts(plan_s=0.08)).nights > 3
    assert np.isinf(count_nights(40_000, HOUR_S, 10, window, DriverCosts(listing_s=100)).nights)


def test_each_part_of_the_index_that_is_touched_is_written_anew() -> None:
    costs = DriverCosts(publish_s=1e-5, read_commit_s=0.01)

    assert publish_s(0, 64, costs) == 0
    assert publish_s(640, 64, costs) == pytest.approx(2.5 + 10 * 0.01)
    assert publish_s(250_001, 64, costs) == pytest.approx(5.0 + 3907 * 0.01)


@pytest.mark.parametrize(
    ("bound", "machine", "cost"),
    [
        ("GPU", GPU, {}),
        ("cores", Machine(cores=1), {"network_s": 0.01}),
        ("connection", dataclasses.replace(GPU, bytes_per_s=5e6), {}),
        ("memory for photos", dataclasses.replace(GPU, photo_bytes=6e6), {"before_s": 0.2}),
    ],
)
def test_what_bounds_a_worker_is_told(bound: str, machine: Machine, cost: dict[str, float]) -> None:
    assert bound_of(machine, dataclasses.replace(COST, **cost), FREE).startswith(bound)


def test_shards_are_cut_as_a_plan_cuts_them() -> None:
    assert cut(100, 1e6) == [3] * 33 + [1]
    assert cut(10_000, 5e6)[:2] == [26, 26]
    assert sum(cut(10_000, 5e6)) == 10_000
    assert set(cut(100, 500e6)) == {1}


def test_cores_are_shared_evenly_and_the_dead_leave_them() -> None:
    clock, ends = Clock(), []
    cores = Shared(clock, 1.0)
    dead = Life()
    for name, work_s, life in (("short", 1.0, Life()), ("dead", 9.0, dead), ("long", 2.0, Life())):
        cores.use(work_s, life)(note(ends, name, clock))

    def kill() -> None:
        dead.is_over = True
        cores.drop()

    clock.after(1.5, kill)
    clock.run()

    assert ends == [("short", pytest.approx(2.5)), ("long", pytest.approx(3.5))]


def test_room_is_given_in_turn_and_what_is_too_large_comes_alone() -> None:
    clock, ends = Clock(), []
    lane = Lane(10)
    for name, amount in (("a", 6), ("b", 20), ("c", 1)):
        lane.take(amount)(note(ends, name, clock))

    assert [name for name, _ in ends] == ["a"]  # c would fit, and waits behind b
    lane.give_back(6)
    assert [name for name, _ in ends] == ["a", "b"]
    lane.give_back(20)
    assert [name for name, _ in ends] == ["a", "b", "c"]


def note(ends: list[tuple[str, float]], name: str, clock: Clock) -> Callable[[], None]:
    return lambda: ends.append((name, clock.now_s))
