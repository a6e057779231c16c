"""The first signal asks for an end, and the second one makes it."""

import logging
import signal
import threading

import pytest

from pipeline.interruption import asking_first


def test_the_first_signal_asks_and_is_told_of_and_any_other_one_interrupts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), asking_first("ending soon") as asked:
        assert not asked.is_asked
        signal.raise_signal(signal.SIGINT)
        assert asked.is_asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    assert caplog.messages == ["ending soon"]


def test_signals_do_afterwards_what_they_did_before() -> None:
    with asking_first("ending soon"):
        pass

    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with asking_first("ending soon") as asked:
            signal.raise_signal(signal.SIGHUP)
        assert not asked.is_asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_can_ask_for_nothing_and_works_as_ever() -> None:
    seen: list[bool] = []

    def work() -> None:
        with asking_first("ending soon") as asked:
            seen.append(asked.is_asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [False]
