"""Which failures of a request to a store pass by themselves, and how often and how long it is made again."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity

from pipeline.redaction import explain

log = logging.getLogger(__name__)

T = TypeVar("T")

# Of servers: 408 too slow a request, 425 too early, 429 too many requests; 5xx their own faults, but not "never".
_PASSING_STATUS = frozenset({408, 425, 429, *range(500, 600)}) - {501, 505}
_THROTTLED_CODES = {"SlowDown", "RequestLimitExceeded", "TooManyRequests", "ServerBusy"}
# Answers of S3 and its kin with a status that says otherwise: a body that was cut or damaged on its way, or a create
# that met another one half way.
_PASSING_CODES = {
    *_THROTTLED_CODES,
    *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    *("ConditionalRequestConflict", "OperationAborted"),
}
# Errors of connections and cut bodies in botocore, aiohttp, requests and azure.core, by name: not all are installed.
_PASSING_ERRORS = {
    *("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError"),
    *("ConnectionClosedError", "ReadTimeoutError", "ResponseStreamingError", "ResponseParserError"),
    *("IncompleteReadError", "IncompleteRead"),
    *("ClientConnectionError", "ClientPayloadError", "ProxyError", "TransportError", "ChecksumError"),
    *("ServiceRequestError", "ServiceResponseError"),
}
_LASTING_ERRORS = {"SSLError", "ClientSSLError", "InvalidProxiesConfigError"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a request is made again.

    Attributes:
        attempts: at one request, with the first.
        first_wait_s, longest_wait_s: the wait doubles from the one to the other; half of it, or more, is by chance, so
            that many workers do not come back at once.
        total_s: no further attempt after this long; but always three, for those of large objects take their time.
    """

    attempts: int = 20  # a server that refuses connections may be away for half a minute: it starts again
    first_wait_s: float = 0.1
    longest_wait_s: float = 5.0
    total_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said: the HTTP status, and the code of the error in its own words. None and "" if nothing."""

    status: int | None = None
    code: str = ""

    @property
    def is_throttling(self) -> bool:
        return self.status in (429, 503) or "throttl" in self.code.lower() or self.code in _THROTTLED_CODES


class GaveUp(Exception):
    """A request has failed at every attempt; its cause is the last failure."""

    def __init__(self, attempts: int) -> None:
        super().__init__(f"failed {attempts} times")
        self.attempts = attempts


class Retries:
    """Makes the requests to one store, again where that helps, and counts. Used from one event loop only.

    Attributes:
        count: requests that were made again so far.
        throttled: those of them that the server had put off.
    """

    def __init__(self, name: str, patience: Patience) -> None:
        self.count = 0
        self.throttled = 0
        self._name = name
        half = {"multiplier": patience.first_wait_s / 2, "max": patience.longest_wait_s / 2}
        enough = tenacity.stop_after_attempt(min(3, patience.attempts)) & tenacity.stop_after_delay(patience.total_s)
        self._retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(passes),
            wait=tenacity.wait_exponential(**half) + tenacity.wait_random_exponential(**half),
            stop=tenacity.stop_after_attempt(patience.attempts) | enough,
            before_sleep=self._note,
        )

    async def call(self, request: Callable[[], Awaitable[T]]) -> T:
        """The result of the request; its error as it is, or as the cause of `GaveUp` if it was made again.

        Raises:
            GaveUp: it failed at every attempt.
        """

        async def attempt() -> T:
            return await request()

        try:
            return await self._retrying.copy()(attempt)
        except tenacity.RetryError as error:
            raise GaveUp(error.last_attempt.attempt_number) from error.last_attempt.exception()

    def _note(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is None:
            return
        self.count += 1
        self.throttled += answer_of(error).is_throttling
        if str(self.count).strip("0") == "1":  # the 1st, 10th, 100th, …
            log.warning(
                "%s: request number %d that is made again (%d of them throttled): %s",
                self._name,
                self.count,
                self.throttled,
                explain(error),
            )


def passes(error: BaseException) -> bool:
    """Whether a failed request may go well if it is made again."""
    answer = answer_of(error)
    if answer.code in _PASSING_CODES or answer.is_throttling:
        return True
    if answer.status is not None and not 200 <= answer.status < 300:
        return answer.status in _PASSING_STATUS
    if (
        type(error).__name__ == "HTTPClientError" and error.__context__ is not None
    ):  # botocore's for all that it knows not
        return passes(error.__context__)
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _LASTING_ERRORS:
        return False
    return isinstance(error, ConnectionError | TimeoutError) or bool(names & _PASSING_ERRORS)


def answer_of(error: BaseException) -> Answer:
    """What the server said in an error of botocore (or in one that s3fs made of it), gcsfs, aiohttp or azure.core."""
    for one in (error, error.__cause__):
        response: Any = getattr(one, "response", None)  # Any: each library has its own
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return Answer(status, str(response.get("Error", {}).get("Code", "")))
    for name in ("status_code", "status", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int | str) and str(status).isdigit():
            return Answer(int(status), str(getattr(error, "error_code", None) or ""))
    return Answer()
