"""What commands have in common: what they show while they work, and the options of those that work on a cluster."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.run import Progress


def bar_interval_s() -> float:
    """How often a progress bar is drawn: on a terminal anew and again; a log gets a line now and then."""
    return 0.1 if sys.stderr.isatty() else 30.0


class ProgressBar:
    """Photos, images/s, megapixels/s and the time left, on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None  # Any: tqdm is untyped

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: "Progress") -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(
                total=progress.planned,
                unit="image",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=bar_interval_s(),
            )
        rejected = f", {progress.rejected} rejected" if progress.rejected else ""
        elapsed = self._bar.format_dict["elapsed"]
        speed = progress.megapixels / elapsed if elapsed else 0.0
        self._bar.set_postfix_str(f"{speed:.2f} megapixels/s{rejected}", refresh=False)
        self._bar.update(progress.finished - self._bar.n)


class CountBar:
    """How many of all objects were looked at, on standard error; a new bar when the counting starts anew."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None  # Any: tqdm is untyped

    def __enter__(self) -> "CountBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None or done < self._bar.n or total != self._bar.total:
            self.__exit__()
            self._bar = tqdm(
                total=total, unit=self._unit, file=sys.stderr, dynamic_ncols=True, mininterval=bar_interval_s()
            )
        self._bar.update(done - self._bar.n)


def add_cluster_options(command: argparse.ArgumentParser) -> None:
    """The options of commands that work on a cluster."""
    command.add_argument("--workers", type=int, metavar="N", help="worker processes [one a GPU, or one a core]")
    command.add_argument("--cluster", metavar="ADDRESS", help="Ray cluster to join [start one here, and stop it]")
    command.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
