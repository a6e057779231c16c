"""A registry of weights, without a server: files that are never changed, and names that point to them.

    REGISTRY/weights/
      <sha256>.safetensors        weights with their card, under the hash of the file
      <sha256>/<sha256>.json      what was measured of them
      <name>/<number>.json        where the name points, since when, by whom and why: the highest number counts

To point a name elsewhere is to create its next number, which only one can: of two at once one wins, and the other is
told. Nothing is ever replaced or removed, so that the numbers are the name's history. A file
`weights/<name>.safetensors` is a name too, which points to that file alone: the weights that ship are such a registry.
"""

import dataclasses
import getpass
import hashlib
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from model.weights import SHIPPED, Card, Weights, header_size_bytes, parse_card, parse_weights
from pipeline.errors import ObjectExists, ObjectMissing, PromotionRefused, RegistryError
from pipeline.fault_points import FaultPoint, fault_point
from pipeline.storage import Store, open_store, split_url, unsafe_reason
from pipeline.strict import build

FOLDER = "weights"
SUFFIX = ".safetensors"
SHORTEST_HASH = 8  # digits of a hash that may stand for all of them
MAX_HEADER_BYTES = 16 * 1024**2
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_HASH = re.compile(r"[0-9a-f]{64}")
_POINTER = re.compile(rf"{FOLDER}/([^/]+)/(\d{{10}})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """Where a name points from a moment on.

    Attributes:
        sha256: of the weights.
        number: of the pointer, among those of its name; the first is 1.
        before: of those that it pointed to until then; empty at first.
        at: that moment, ISO 8601 in UTC.
        by: who did it, as user@host.
        because: why, in their words.
        gains_db: by trial, how much better than those before they scored; empty where that was not measured.
        scores: key of the measurements in the registry; empty where there are none.
    """

    sha256: str
    number: int = 1
    before: str = ""
    at: str = ""
    by: str = ""
    because: str = ""
    gains_db: dict[str, float] = dataclasses.field(default_factory=dict)
    scores: str = ""

    def __post_init__(self) -> None:
        if _HASH.fullmatch(self.sha256) is None:
            raise ValueError(f"sha256 is {self.sha256!r}: expected 64 hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Weights in a registry: their hash, their card, and the names that point to them now."""

    sha256: str
    card: Card
    names: tuple[str, ...]


class Registry:
    """A registry in a store, there or yet to be made."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def names(self) -> dict[str, str]:
        """Every name, and the hash that it points to."""
        return self._names(self._files())

    def entries(self) -> list[Entry]:
        """What is in the registry, by names, weights without one last. Reads the cards alone, and checks no hash.

        Raises:
            RegistryError: a name points to weights that are not there, or a file has no card.
        """
        hashes = self._files()  # once: it reads every file that is not called after its hash
        names, files = self._names(hashes), {sha256: file for file, sha256 in hashes.items()}
        for name, sha256 in names.items():
            if sha256 not in files:
                raise RegistryError(f"'{name}' of {self.store.url} points to {sha256[:16]}…, which is not there")
        entries = [
            Entry(
                sha256=sha256, card=self._read_card(file), names=tuple(name for name in names if names[name] == sha256)
            )
            for sha256, file in files.items()
        ]
        return sorted(entries, key=lambda entry: (not entry.names, entry.names, entry.sha256))

    def history(self, name: str) -> list[Pointer]:
        """Where a name pointed, the oldest first; of one that is a file, or not there, nothing."""
        return [self._read_pointer(name, number) for number in self._numbers(name)]

    def read(self, reference: str) -> tuple[bytes, Weights]:
        """Weights by a name, by their hash, or by its first digits.

        Raises:
            ValueError: there are no such weights, or more than one.
            RegistryError: what lies there is not what its hash says, or no weights.
        """
        key = self.find(reference)
        try:
            data = self.store.read(key)
        except ObjectMissing as error:
            raise RegistryError(f"'{reference}' of {self.store.url} points to {key}, which is not there") from error
        refuse_tampered(key, data, self.store.url)
        try:
            return data, parse_weights(data)
        except ValueError as error:
            raise RegistryError(f"{self.store.url}/{key}: {error}") from error

    def find(self, reference: str) -> str:
        """The key of weights by a name, by their hash, or by its first digits.

        Raises:
            ValueError: there are no such weights, or more than one.
        """
        if numbers := self._numbers(reference):
            return _object_key(self._read_pointer(reference, numbers[-1]).sha256)
        key = _object_key(reference)
        if "/" not in reference and unsafe_reason(key) is None and self.store.exists(key):
            return key
        if re.fullmatch(rf"[0-9a-f]{{{SHORTEST_HASH},64}}", reference):
            matching = {sha256: file for file, sha256 in self._files().items() if sha256.startswith(reference)}
            if len(matching) > 1:
                raise ValueError(
                    f"{reference} is the beginning of {len(matching)} hashes in {self.store.url}: add digits"
                )
            if matching:
                return _object_key(matching.popitem()[1])
        known = ", ".join(self.names()) or "none"
        raise ValueError(f"unknown weights '{reference}': {self.store.url} has {known}; others go by a path or URL")

    def add(self, data: bytes) -> str:
        """Copy weights in, unless they are there; returns their hash.

        Raises:
            RegistryError: what is there under their hash are not they.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        self._create(_object_key(sha256), data)
        fault_point(FaultPoint.WEIGHTS_COPIED)
        return sha256

    def add_scores(self, sha256: str, evaluation: bytes) -> str:
        """Keep what was measured of weights; returns its key."""
        key = f"{FOLDER}/{sha256}/{hashlib.sha256(evaluation).hexdigest()}.json"
        self._create(key, evaluation)
        return key

    def scores_of(self, sha256: str) -> list[Mapping[str, object]]:
        """What was measured of weights, each as `Evaluation.as_dict` gives it."""
        listed = (each.key for each in self.store.list(f"{FOLDER}/{sha256}"))
        keys = sorted(key for key in listed if is_hash(Path(key).stem) and key.endswith(".json"))
        found = []
        for key in keys:
            data = self.store.read(key)
            refuse_tampered(key, data, self.store.url)
            found.append(json.loads(data))
        return found

    def point(self, name: str, pointer: Pointer) -> Pointer:
        """Make a name point to weights that were added, by the number that follows the last one when that was decided.

        Raises:
            PromotionRefused: someone else pointed it elsewhere meanwhile, and what was decided may no longer hold.
        """
        pointer = dataclasses.replace(pointer, at=datetime.now(UTC).isoformat(timespec="seconds"), by=_who())
        text = json.dumps(dataclasses.asdict(pointer), indent=2, ensure_ascii=False)
        data = f"{text}\n".encode(errors="backslashreplace")  # as JSON has what is no text
        try:
            self.store.create(_pointer_key(name, pointer.number), data)
        except ObjectExists as error:
            now = self._read_pointer(name, pointer.number)
            raise PromotionRefused(
                f"'{name}' of {self.store.url} was given to {now.sha256[:16]} by {now.by} meanwhile: try again, to be "
                "compared with those"
            ) from error
        return pointer

    def _names(self, files: dict[str, str]) -> dict[str, str]:
        found = {file: sha256 for file, sha256 in files.items() if file != sha256}
        numbers: dict[str, int] = {}
        for match in filter(None, (_POINTER.fullmatch(listed.key) for listed in self.store.list(FOLDER))):
            numbers[match[1]] = max(int(match[2]), numbers.get(match[1], 0))
        found |= {name: self._read_pointer(name, number).sha256 for name, number in numbers.items()}
        return dict(sorted(found.items()))

    def _files(self) -> dict[str, str]:
        """The hash of each file by what it is called, which may be that hash."""
        files = filter(None, (_file_name(listed.key) for listed in self.store.list(FOLDER)))
        return {
            file: file if is_hash(file) else hashlib.sha256(self.store.read(_object_key(file))).hexdigest()
            for file in files
        }

    def _create(self, key: str, data: bytes) -> None:
        try:
            self.store.create(key, data)
        except ObjectExists as error:
            if self.store.read(key) != data:
                raise RegistryError(f"{self.store.url}/{key} is damaged: it is not what its name says") from error

    def _numbers(self, name: str) -> list[int]:
        if _NAME.fullmatch(name) is None or _HASH.fullmatch(name):
            return []
        matches = (_POINTER.fullmatch(listed.key) for listed in self.store.list(f"{FOLDER}/{name}"))
        return sorted(int(match[2]) for match in matches if match and match[1] == name)

    def _read_pointer(self, name: str, number: int) -> Pointer:
        key = _pointer_key(name, number)
        try:
            return dataclasses.replace(build(Pointer, json.loads(self.store.read(key))), number=number)
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"{self.store.url}/{key} is damaged: {error}") from error

    def _read_card(self, file: str) -> Card:
        key = _object_key(file)
        size_bytes = min(header_size_bytes(self.store.read_range(key, 0, 8)), MAX_HEADER_BYTES)
        try:
            return parse_card(self.store.read_range(key, 8, size_bytes))
        except ValueError as error:
            raise RegistryError(f"{self.store.url}/{key}: {error}") from error


def open_registry(url: str | None) -> Registry:
    """The registry at a path or URL; None is that of the weights that ship, which is only read."""
    return Registry(open_store(str(SHIPPED.parent) if url is None else url))


def read_weights(source: str) -> tuple[bytes, Weights]:
    """Weights by the name or hash that they ship under, by a path or URL of their file, or of their name in a registry.

    The latter ends in `…/weights/NAME`, where NAME may also be a hash or its first digits.

    Raises:
        ValueError: there are none of that name, or the file holds none.
        RegistryError: a registry does not hold what it says.
        StorageError: they cannot be read.
    """
    if "/" not in source and not source.endswith(SUFFIX):
        return open_registry(None).read(source)
    if (place := split_reference(source)) is not None:
        root, name = place
        return open_registry(root).read(name)
    root, key = split_url(source)
    try:
        data = open_store(root).read(key)
    except ObjectMissing as error:
        raise ValueError(f"there are no weights at {source}") from error
    refuse_tampered(key, data, root)
    try:
        return data, parse_weights(data)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def split_reference(source: str) -> tuple[str, str] | None:
    """The registry and the name of `…/weights/NAME`; None of the path or URL of a file."""
    folder, name = split_url(source)
    root, last = split_url(folder)
    is_bucket = root.endswith(":/")  # one that is called weights has no registry around it
    return (root, name) if last == FOLDER and not is_bucket and not name.endswith(SUFFIX) else None


def is_hash(name: str) -> bool:
    """Whether it is a sha256 in hexadecimal digits, which no name is."""
    return _HASH.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Raises ValueError if weights cannot have this name."""
    if _NAME.fullmatch(name) is None or _HASH.fullmatch(name) or name.endswith((SUFFIX, ".json")):
        raise ValueError(
            f"weights cannot be named {name!r}: expected up to 63 small letters, digits, '-', '_' or '.', and no hash"
        )


def refuse_tampered(key: str, data: bytes, root: str) -> None:
    """Check what is named after its hash.

    Raises:
        RegistryError: it is something else.
    """
    expected = Path(key).stem
    if _HASH.fullmatch(expected) and (found := hashlib.sha256(data).hexdigest()) != expected:
        raise RegistryError(f"{root}/{key} is damaged or was changed: its sha256 is {found[:16]}…, and not its name")


def _file_name(key: str) -> str | None:
    """The name of a weights file right in the folder."""
    folder, _, name = key.rpartition("/")
    return name.removesuffix(SUFFIX) if folder == FOLDER and name.endswith(SUFFIX) else None


def _object_key(name: str) -> str:
    return f"{FOLDER}/{name}{SUFFIX}"


def _pointer_key(name: str, number: int) -> str:
    return f"{FOLDER}/{name}/{number:010}.json"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        user = "?"
    return f"{user}@{socket.gethostname()}"
