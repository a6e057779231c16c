"""What commands have in common: what they show while they work, and the options of those that work on a cluster."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pipeline.run import Progress

Run = Callable[[argparse.Namespace], int]
AddCommand = Callable[[Any, str, Run, str], argparse.ArgumentParser]  # Any: argparse keeps the type to itself
Options = argparse._ActionsContainer  # a command, or a group of its options: no public type is both


def bar_interval_s() -> float:
    """How often a progress bar is drawn: on a terminal anew and again; a log gets a line now and then."""
    return 0.1 if sys.stderr.isatty() else 30.0


class Bar:
    """A progress bar on standard error, from the first time that there is something to show."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None  # Any: tqdm is untyped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, done: int, total: int, text: str = "", *, initial: int = 0) -> None:
        """Show what is done, maybe less than before; what was so before the first time, `initial`, took no time."""
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


class ProgressBar(Bar):
    """Photos, images/s, megapixels/s and the time left."""

    def __init__(self) -> None:
        super().__init__("image")

    def __call__(self, progress: "Progress") -> None:
        rejected = f"{progress.rejected:,} rejected, " if progress.rejected else ""  # first: a narrow line is cut off
        elapsed_s = self._bar.format_dict["elapsed"] if self._bar is not None else 0.0
        speed = progress.megapixels / elapsed_s if elapsed_s else 0.0
        self.show(progress.finished, progress.planned, f"{rejected}{speed:.2f} megapixels/s")


class CountBar(Bar):
    """How many of all objects were looked at; a new bar when the counting starts anew."""

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None and (done < self._bar.n or total != self._bar.total):
            self.__exit__()
        self.show(done, total)


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
