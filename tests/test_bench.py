"""What a worker has on its bench, and for how long: time that a photo waits for others is not its own."""

import threading

import pytest

from pipeline import bench as bench_module
from pipeline.bench import Bench, PhotoInWork, enter_stage, in_turn


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench_module, "time", clock)
    return clock


def test_a_photo_that_waits_for_its_turn_says_so_and_its_time_stands_still(clock: Clock) -> None:
    bench, turn, seen = Bench(), threading.Semaphore(0), threading.Event()
    has_turn = threading.Event()

    def work() -> None:
        with bench.photo("a.jpg", "read"):
            clock.now_s += 5
            seen.set()
            with in_turn(turn):
                enter_stage("decode")
                has_turn.set()
                assert seen.wait(10)

    worker = threading.Thread(target=work)
    worker.start()
    assert seen.wait(10)
    while (look := bench.look().photos[0]).stage != "wait":
        pass
    clock.now_s += 1000
    assert (look, bench.look().photos) == (PhotoInWork("a.jpg", "wait", 5.0), (PhotoInWork("a.jpg", "wait", 5.0),))

    seen.clear()
    turn.release()
    assert has_turn.wait(10)
    clock.now_s += 3
    assert bench.look().photos == (PhotoInWork("a.jpg", "decode", 8.0),)
    seen.set()
    worker.join()


def test_a_turn_that_never_comes_leaves_the_clock_right(clock: Clock) -> None:
    bench = Bench()

    class Refused:
        def __enter__(self) -> None:
            clock.now_s += 7
            raise InterruptedError

        def __exit__(self, *_: object) -> None: ...

    with bench.photo("a.jpg", "read"):
        with pytest.raises(InterruptedError), in_turn(Refused()):
            pass
        assert bench.look().photos == (PhotoInWork("a.jpg", "read", 0.0),)
