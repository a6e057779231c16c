"""Work that ends in good order when it is told to: a first signal asks for it, a second one is obeyed at once."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Whether this process was told to end, by a signal that came while `asking_first` lasted."""

    def __init__(self) -> None:
        self.is_asked = False


@contextmanager
def asking_first(notice: str) -> Iterator[Interruption]:
    """While this lasts, the first signal that would interrupt this process asks for its end, and the log says `notice`.

    Any other signal does what it did before. So does the first one outside of the main thread, which alone can do this.
    """
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    came: SimpleQueue[bool] = SimpleQueue()  # what a handler may use, whatever it interrupts: a log is no such thing
    handlers: dict[signal.Signals, Any] = {  # Any: what `getsignal` gives
        each: handler for each in INTERRUPTS if callable(handler := signal.getsignal(each))
    }

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_asked:
            handlers[signal.Signals(number)](number, frame)
        asked.is_asked = True
        came.put(True)

    def tell() -> None:
        if came.get():
            log.warning(notice)

    teller = threading.Thread(target=tell, name="interruption", daemon=True)
    teller.start()
    for each in handlers:
        signal.signal(each, ask)
    try:
        yield asked
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        came.put(False)
        teller.join()
