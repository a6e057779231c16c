"""Retries: which failures pass, how often a request is made again, and that it is counted."""

import asyncio
import errno
import logging
import socket

import aiohttp
import pytest
from botocore import exceptions as botocore
from s3fs.errors import translate_boto_error

from pipeline.retries import Answer, GaveUp, Patience, Retries, answer_of, passes

HASTE = Patience(attempts=4, first_wait_s=0, longest_wait_s=0)


def answered(status: int, code: str) -> Exception:
    """What s3fs makes of an error of S3."""
    response = {"Error": {"Code": code, "Message": "…"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    translated: Exception = translate_boto_error(botocore.ClientError(response, "GetObject"))
    return translated


class HttpError(Exception):
    """As those of gcsfs (`code`) and azure.core (`status_code`) look from outside."""

    def __init__(self, **told: object) -> None:
        super().__init__("…")
        vars(self).update(told)


def wrapped(inner: Exception) -> Exception:
    """What aiobotocore makes of an error that it does not know."""
    outer: Exception = botocore.HTTPClientError(error=inner)
    outer.__context__ = inner
    return outer


@pytest.mark.parametrize(
    "error",
    [
        answered(503, "SlowDown"),
        answered(503, "503"),
        answered(429, "TooManyRequests"),
        answered(500, "InternalError"),
        answered(502, "502"),
        answered(400, "RequestTimeout"),
        answered(400, "IncompleteBody"),
        answered(400, "ThrottlingException"),
        answered(409, "ConditionalRequestConflict"),
        HttpError(code=503),
        HttpError(code="429"),
        HttpError(status_code=500, error_code="OperationTimedOut"),
        botocore.EndpointConnectionError(endpoint_url="http://host", error="refused"),
        botocore.ConnectionClosedError(endpoint_url="http://host", error="closed"),
        botocore.ReadTimeoutError(endpoint_url="http://host", error="late"),
        botocore.ConnectTimeoutError(endpoint_url="http://host", error="late"),
        botocore.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        aiohttp.ClientPayloadError("Response payload is not completed"),
        aiohttp.ServerDisconnectedError(),
        wrapped(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError(),
    ],
    ids=repr,
)
def test_what_may_go_well_the_next_time_passes(error: Exception) -> None:
    assert passes(error)


@pytest.mark.parametrize(
    "error",
    [
        answered(403, "AccessDenied"),
        answered(403, "SignatureDoesNotMatch"),
        answered(400, "ExpiredToken"),
        answered(404, "NoSuchKey"),
        answered(404, "NoSuchBucket"),
        answered(412, "PreconditionFailed"),
        answered(416, "InvalidRange"),
        answered(501, "NotImplemented"),
        HttpError(code=403),
        HttpError(status_code=409, error_code="BlobAlreadyExists"),
        botocore.SSLError(endpoint_url="https://host", error="certificate"),
        botocore.NoCredentialsError(),
        wrapped(ValueError("no such option")),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError("Access Denied"),
        ValueError("wrong"),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    ],
    ids=repr,
)
def test_what_will_go_wrong_again_does_not(error: Exception) -> None:
    assert not passes(error)


def test_reads_what_a_server_said_through_the_error_of_a_file_system() -> None:
    assert answer_of(answered(503, "SlowDown")) == Answer(503, "SlowDown")
    assert answer_of(HttpError(status_code=409, error_code="BlobAlreadyExists")) == Answer(409, "BlobAlreadyExists")
    assert answer_of(ValueError("none")) == Answer(None, "")


class Request:
    """Fails with each of the errors in turn, and then gives 1."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.made = 0

    async def __call__(self) -> int:
        self.made += 1
        if self._errors:
            raise self._errors.pop(0)
        return 1


def test_a_request_is_made_again_and_counted() -> None:
    retries = Retries("s3://photos", HASTE)
    request = Request(answered(503, "SlowDown"), ConnectionResetError(), answered(429, "429"))

    assert asyncio.run(retries.call(request)) == 1
    assert (request.made, retries.count, retries.throttled) == (4, 3, 2)


def test_a_request_that_fails_at_every_attempt_is_given_up() -> None:
    request = Request(*[ConnectionResetError("the last") for _ in range(9)])

    with pytest.raises(GaveUp, match="failed 4 times") as caught:
        asyncio.run(Retries("s3://photos", HASTE).call(request))

    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert request.made == 4


def test_an_error_that_lasts_comes_as_it_is() -> None:
    request = Request(ConnectionResetError(), FileNotFoundError())

    with pytest.raises(FileNotFoundError):
        asyncio.run(Retries("s3://photos", HASTE).call(request))

    assert request.made == 2


@pytest.mark.parametrize(("attempts", "made"), [(10, 3), (2, 2)])
def test_no_request_goes_on_for_ever_but_each_has_three_attempts(attempts: int, made: int) -> None:
    patience = Patience(attempts=attempts, first_wait_s=0, longest_wait_s=0, total_s=0)
    request = Request(*[ConnectionResetError() for _ in range(20)])

    with pytest.raises(GaveUp):
        asyncio.run(Retries("s3://photos", patience).call(request))

    assert request.made == made


def test_one_request_does_not_wait_for_another_that_is_made_again() -> None:
    retries = Retries("s3://photos", HASTE)
    requests = [Request(*[ConnectionResetError()] * (number % 4)) for number in range(40)]

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(retries.call(request) for request in requests))

    assert asyncio.run(all_of_them()) == [1] * 40
    assert [request.made for request in requests] == [1 + number % 4 for number in range(40)]
    assert retries.count == 60


def test_the_log_tells_of_the_first_the_tenth_and_the_hundredth(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipeline.retries")
    retries = Retries("s3://photos", HASTE)

    for _ in range(40):
        asyncio.run(retries.call(Request(*[answered(503, "SlowDown")] * 3)))

    told = [record.getMessage().partition(" that")[0] for record in caplog.records]
    assert told == [f"s3://photos: request number {count}" for count in (1, 10, 100)]
