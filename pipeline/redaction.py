"""Errors as one short line that a person can act on, without the credentials that libraries quote in them."""

import os
import re
from collections.abc import Iterator

LONGEST_LINE = 200  # characters
SHORTEST_SECRET = 8  # characters: what is shorter would blank out ordinary words

_SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING")
# A URL's user and password, in which AWS's keys put slashes; a port and a path with an @ in it look nearly alike.
_PASSWORD = re.compile(r"(\w://)(?![^/@:]*:\d+/)[^\s@/:]*:[^\s@]*@")
_PATTERNS = [
    (_PASSWORD, r"\1…@"),
    (re.compile(r"(\w://)[^/\s@]*@"), r"\1…@"),
    (re.compile(r"(\w://[^\s?\"'<>]*)\?[^\s\"'<>]*"), r"\1?…"),  # the query of a URL, which may be signed
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 …"),
    (
        re.compile(
            r"(?i)([\w-]*(?:signature|credential|password|secret|token|accountkey|access[_-]?key)|\bsig)=[^\s&;,]+"
        ),
        r"\1=…",
    ),
]


def printable(text: str) -> str:
    """A text that may be a stranger's, so that no terminal and no reader takes any of it for a command."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def without_password(url: str) -> str:
    """The URL without a user and a password, if it has them."""
    return _PASSWORD.sub(r"\1…@", url)


def redacted(text: str) -> str:
    """The text without what looks like credentials, and without the values of the environment's own."""
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name.upper()) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "…")
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def explain(error: BaseException) -> str:
    """One short line: what a person can act on."""
    if isinstance(error, OSError) and error.strerror:
        return _line(redacted(error.strerror)).lower()
    return _line(redacted(f"{type(error).__name__}: {error}"))


def showable(error: Exception) -> Exception | None:
    """The error as the cause of another; None where a traceback would show credentials."""
    return error if all(redacted(str(one)) == str(one) for one in _chain(error)) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_LINE]
