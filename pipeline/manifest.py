"""What an image set says of itself in JSON: its manifest, and the records of the runs that ended."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ImageSetError
from pipeline.records import Layout, Outcome

FORMAT = "degrain image set"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an image set is, and which index is the published one.

    Attributes:
        source: where its photos came from.
        layout: how it keeps them.
        run: the run that published the index; empty before the first.
        index: keys of the index's parts: together the newest row of every key.
        counts: rows of the index by outcome.
    """

    source: str
    layout: Layout
    run: str = ""
    index: tuple[str, ...] = ()
    counts: dict[Outcome, int] = field(default_factory=dict)
    published_at: str = ""


def parse_manifest(data: bytes, name: str) -> Manifest:
    """The manifest of this name.

    Raises:
        ImageSetError: it is damaged, or none that this version can read.
    """
    try:
        values = json.loads(data)
        found = values.pop("format", None), values.pop("version", None)
        if found != (FORMAT, VERSION):
            raise ImageSetError(
                f"{name} is of format {found[0]!r} and version {found[1]!r}, and this degrain reads {FORMAT!r} of "
                f"version {VERSION}: use the release that made it, or name another target"
            )
        return _manifest_of(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageSetError(f"{name} is damaged ({reason}): put a sound copy back") from error


def dump_manifest(manifest: Manifest) -> bytes:
    return _dump({"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)})


def parse_record(data: bytes, name: str) -> dict[str, Any]:  # Any: JSON
    """What the record of this name says.

    Raises:
        ImageSetError: it is damaged.
    """
    try:
        return {**json.loads(data)}  # of what is no object, it raises TypeError
    except (TypeError, ValueError, RecursionError) as error:
        raise ImageSetError(f"{name} is damaged: it is no JSON object") from error


def dump_record(facts: Mapping[str, object]) -> bytes:
    return _dump(facts)


def _manifest_of(values: dict[str, Any]) -> Manifest:  # Any: JSON that a person may have edited
    counts = {Outcome(name): count for name, count in values.pop("counts").items()}
    layout, index = Layout(values.pop("layout")), values.pop("index")
    manifest = Manifest(layout=layout, index=tuple(index), counts=counts, **values)
    texts = [manifest.source, manifest.run, manifest.published_at, *index]
    if not (isinstance(index, list) and all(isinstance(text, str) for text in texts)):
        raise TypeError("'index' must be a list of texts, and 'source', 'run' and 'published_at' each a text")
    if not all(type(count) is int for count in counts.values()):
        raise TypeError("'counts' must be whole numbers")
    return manifest


def _dump(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True, default=str) + "\n").encode()
