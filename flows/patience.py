"""Prefect's server may be restarted while flows run: what was asked of it meanwhile is asked again.

Prefect's own client does so for CLIENT_RETRIES rounds, but only once it was connected, and each artifact has a new one.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from httpx import HTTPStatusError, TransportError

CLIENT_RETRIES = 7  # of Prefect's client, after 2, 4, … 128 s
PATIENCE_S = 240.0  # as long as those take
INTERVAL_S = 2.0

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


def patiently(
    call: Callable[P, T], *, patience_s: float = PATIENCE_S, interval_s: float = INTERVAL_S
) -> Callable[P, T]:
    """The same call, made again while the server cannot be reached, or is not ready; at the end its error is raised."""

    @functools.wraps(call)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                return call(*args, **kwargs)
            except (TransportError, HTTPStatusError) as error:
                if not passes(error) or time.monotonic() > deadline_s:
                    raise
                log.info("the Prefect server cannot be reached: %s", error)
            time.sleep(interval_s)

    return again


def passes(error: Exception) -> bool:
    """Whether the server cannot be reached, or says that it is not ready, so that another call may go well."""
    if isinstance(error, HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, TransportError)
