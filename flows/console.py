"""What commands have in common: what they show while they work, and the options of those that work on a cluster."""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self, TextIO

if TYPE_CHECKING:
    from pipeline.events import EventWriter
    from pipeline.work import Progress

Run = Callable[[argparse.Namespace], int]
AddCommand = Callable[[Any, str, Run, str], argparse.ArgumentParser]  # Any: argparse keeps the type to itself
Options = argparse._ActionsContainer  # a command, or a group of its options: no public type is both


LINE_INTERVAL_S = 30.0  # a log gets a line of progress now and then


def bar_interval_s() -> float:
    """How often a progress bar is drawn: on a terminal anew and again."""
    return 0.1 if sys.stderr.isatty() else LINE_INTERVAL_S


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes above the progress bars: a line of the log would go on in that of a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:  # noqa: BLE001  # as logging's own handlers do
            self.handleError(record)


class Bar:
    """A progress bar on standard error, from the first time that there is something to show.

    Attributes:
        is_drawn: or else progress is told as JSON lines, now and then: nothing but those is written there.
    """

    is_drawn: ClassVar[bool] = True

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None  # Any: tqdm is untyped
        self._events: EventWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, done: int, total: int, text: str = "", *, initial: int = 0, **values: object) -> None:
        """Show what is done, maybe less than before; what was so before the first time, `initial`, took no time.

        Where no bar is drawn, `values` are told in place of the text.
        """
        if not self.is_drawn:
            self._tell(done, total, values)
            return
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=initial,
                unit=self._unit,
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=bar_interval_s(),
            )
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def _tell(self, done: int, total: int, values: dict[str, object]) -> None:
        from pipeline.events import EventWriter

        self._events = self._events or EventWriter(sys.stderr, interval_s=LINE_INTERVAL_S)
        self._events.progress(done, total, unit=self._unit, **values)


class ProgressBar(Bar):
    """Photos, images/s, megapixels/s and the time left."""

    def __init__(self) -> None:
        super().__init__("image")

    def __call__(self, progress: "Progress") -> None:
        rejected = f"{progress.rejected:,} rejected, " if progress.rejected else ""  # first: a narrow line is cut off
        elapsed_s = self._bar.format_dict["elapsed"] if self._bar is not None else 0.0
        speed = progress.megapixels / elapsed_s if elapsed_s else 0.0
        self.show(
            progress.finished,
            progress.planned,
            f"{rejected}{speed:.2f} megapixels/s",
            rejected=progress.rejected,
            megapixels=round(progress.megapixels, 2),
        )


class CountBar(Bar):
    """How many of all objects were looked at; a new bar when the counting starts anew."""

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None and (done < self._bar.n or total != self._bar.total):
            self.__exit__()
        self.show(done, total)


def add_settings_option(command: argparse.ArgumentParser, verb: str) -> None:
    """A file of settings, and what reads it must know of the command."""
    command.add_argument(
        "--settings", metavar="FILE", help="TOML with what is not given here: names of options, with _ for -"
    )
    command.set_defaults(parser=command, verb=verb)


def add_cluster_options(command: argparse.ArgumentParser) -> None:
    """The options of commands that work on a cluster."""
    command.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    work = command.add_argument_group("where the work is done")
    work.add_argument("--workers", type=int, metavar="N", help="worker processes [one a GPU, or one a core]")
    work.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="Ray cluster to join: HOST:PORT of its head, or auto [start one here, and stop it]",
    )
