"""Redaction: what an error may say, and what it may not."""

import pytest

from pipeline.redaction import LONGEST_LINE, explain, redacted, showable

SECRET = "s3cr3t/Value+of=tests"


@pytest.mark.parametrize(
    "text",
    [
        f"could not connect to http://someone:{SECRET}@host:9000/photos",
        f"GET https://host/photos/a.jpg?X-Amz-Date=1&X-Amz-Signature={SECRET} gave 403",
        f"https://photos.blob.core.windows.net/photos?sv=2024&sig={SECRET}",
        f"DefaultEndpointsProtocol=https;AccountName=photos;AccountKey={SECRET};EndpointSuffix=core.windows.net",
        f"Authorization: Bearer {SECRET}",
        f"aws_secret_access_key={SECRET}",
        f"session_token={SECRET}",
    ],
)
def test_credentials_of_the_usual_shapes_are_left_out(text: str) -> None:
    assert SECRET not in redacted(text)
    assert "…" in redacted(text)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_CONNECTION_STRING"])
def test_the_environments_credentials_are_left_out_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, SECRET)

    assert redacted(f"({SECRET})") == "(…)"


@pytest.mark.parametrize(
    "text",
    [
        "cannot read 2019/a.jpg in s3://photos/2019: there is no such object",
        "could not connect to the endpoint URL: http://127.0.0.1:9000/photos/a.jpg",
        "what is a.jpg? a key=value pair",
        "mail to someone@host",
    ],
)
def test_what_holds_no_credentials_stays(text: str) -> None:
    assert redacted(text) == text


def test_an_ordinary_word_is_no_secret_though_the_environment_calls_it_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "true")

    assert redacted("that is true") == "that is true"


def test_a_line_is_cut_after_the_secret_is_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    padding = "x" * (LONGEST_LINE - len("RuntimeError: ") - 8)

    told = explain(RuntimeError(padding + " " + SECRET))

    assert len(told) <= LONGEST_LINE
    assert SECRET[:5] not in told


def test_an_error_is_the_cause_of_another_unless_something_in_its_chain_tells_a_secret() -> None:
    harmless, harmful = ValueError("nothing"), ValueError(f"token={SECRET}")
    chained = ValueError("outside")
    chained.__cause__ = harmful

    assert showable(harmless) is harmless
    assert showable(harmful) is None
    assert showable(chained) is None
