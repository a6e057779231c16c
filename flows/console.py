"""What the commands show while they work."""

import sys


def bar_interval_s() -> float:
    """How often a progress bar is drawn: on a terminal anew and again; a log gets a line now and then."""
    return 0.1 if sys.stderr.isatty() else 30.0
