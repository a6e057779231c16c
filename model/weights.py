"""Weights on disk: safetensors with a card in the header. Nothing here, or anywhere in degrain, loads a pickle."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from model.photo import FineNetwork, PhotoNetwork
from model.seed import SeedNetwork

SHIPPED = Path(__file__).parent / "weights"
NETWORKS: dict[str, type[PhotoNetwork] | type[SeedNetwork]] = {
    "photo": PhotoNetwork,
    "fine": FineNetwork,
    "seed": SeedNetwork,
}
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_WHITE = "white."  # what the names of that network's tensors begin with


class Part(StrEnum):
    """Weights hold one network for any noise, and may hold a second one for noise that nothing has filtered.

    That is white, and the same in all of the photo. Each photo meets one of them. The same tiles fit both.
    """

    GENERAL = "general"
    WHITE = "white"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What weights were made from and by: enough to make them again.

    Attributes:
        source: path or URL of the photos.
        photos: how many files were given to the training; what is no clean photo is passed over.
        photos_sha256: what identifies them: the sha256 of the sorted lines `<etag>  <key>`. The etag of a photo in an
            image set is the sha256 of its bytes, and elsewhere what its store tells versions apart by.
        start_from: sha256 of the weights that the training began with; empty where they were random.
        teacher: sha256 of the weights whose answers were learnt; empty where the photos themselves were.
        version: of degrain.
        settings: of the job, by name, nested as they are in a job file.
    """

    source: str
    photos: int
    photos_sha256: str
    start_from: str = ""
    teacher: str = ""
    version: str = ""
    settings: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a person must know before using the weights; travels inside the file.

    Attributes:
        network: which architecture the tensors fit; a key of `NETWORKS`.
        data: the photos it was trained on, by source.
        licence: licence of the weights, and those of the photos.
        noise: what it was trained to remove.
        training: the run's settings, flattened to text.
        scores: measured figures by name, in dB unless the name says otherwise.
        provenance: the photos and settings that it came from; None of weights that were made before this was kept.
        white: the card of the network for white noise, where there is one; all of the above but the scores is then
            about the general one.
    """

    network: str
    data: str
    licence: str
    noise: str
    training: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    provenance: Provenance | None = None
    white: "Card | None" = None

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"unknown network {self.network!r}: expected one of {', '.join(NETWORKS)}")
        for name, score in self.scores.items():
            if not isinstance(score, int | float) or not math.isfinite(score):
                raise ValueError(f"the score {name!r} is {score!r}: expected a finite number")
        if self.white is not None and (_tiles(self.white.network) != _tiles(self.network) or self.white.white):
            raise ValueError(
                f"the network for white noise is a {self.white.network!r}: expected one that the tiles of a "
                f"{self.network!r} fit, and no third one"
            )

    def of(self, part: Part) -> "Card":
        """The card of one network, which is that of the general one where there is none for white noise."""
        return self.white if part == Part.WHITE and self.white is not None else self


def _tiles(network: str) -> tuple[int, int]:
    return NETWORKS[network].multiple_px, NETWORKS[network].halo_px


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, the card that describes them, and the sha256 of the file they came from."""

    tensors: dict[str, Tensor]
    card: Card
    sha256: str

    def networks(self) -> dict[Part, PhotoNetwork | SeedNetwork]:
        """All that there are, new and in evaluation mode.

        Raises:
            ValueError: the tensors do not fit the networks that the card names.
        """
        parts = Part if self.card.white is not None else (Part.GENERAL,)
        return {part: self.network(part) for part in parts}

    def part(self, part: Part) -> dict[str, Tensor]:
        """The tensors of one network, which are those of the general one where there is none for white noise."""
        if part == Part.WHITE and self.card.white is not None:
            named = self.tensors.items()
            return {name.removeprefix(_WHITE): tensor for name, tensor in named if name.startswith(_WHITE)}
        if self.card.white is not None:
            return {name: tensor for name, tensor in self.tensors.items() if not name.startswith(_WHITE)}
        return self.tensors

    def network(self, part: Part = Part.GENERAL) -> PhotoNetwork | SeedNetwork:
        """A new network in evaluation mode that holds the tensors of that part.

        Raises:
            ValueError: the tensors do not fit the network that the card names.
        """
        name = self.card.of(part).network
        network, tensors = NETWORKS[name](), self.part(part)
        expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
        found = {key: tensor.shape for key, tensor in tensors.items()}
        if wrong := sorted(key for key in expected | found if expected.get(key) != found.get(key)):
            raise ValueError(
                f"the weights do not fit the network {name!r}: {len(wrong)} tensors are missing, unknown or of another "
                f"shape, such as {wrong[0]}"
            )
        network.load_state_dict(tensors)
        return network.eval()


def dump_weights(network: nn.Module, card: Card, *, white: nn.Module | None = None) -> bytes:
    """The bytes of a weights file: the same networks and card give the same bytes.

    Two networks are stored in half precision, which takes the place of one, and changes no PSNR by 0.001 dB.

    Args:
        network: the general one.
        card: what describes it, and has a card for the other one exactly where there is one.
        white: the network for white noise.

    Raises:
        FloatingPointError: a network has numbers that are not finite.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if white is not None:
        tensors |= {f"{_WHITE}{name}": tensor.detach().cpu() for name, tensor in white.state_dict().items()}
        tensors = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    if (name := find_not_finite(tensors)) is not None:
        raise FloatingPointError(f"{name} of the network has numbers that are not finite: there are no weights to keep")
    return safetensors.torch.save(tensors, metadata={"card": json.dumps(_stated(card), sort_keys=True)})


def _stated(card: Card) -> dict[str, object]:
    """What a card says, without what it leaves open."""
    values = {name: value for name, value in dataclasses.asdict(card).items() if value is not None}
    return values if card.white is None else values | {"white": _stated(card.white)}


def parse_weights(data: bytes) -> Weights:
    """Read a weights file.

    Raises:
        ValueError: not a safetensors file, or one without a card that this version understands.
    """
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:  # the last of a type that torch has not
        raise ValueError(f"not a safetensors file: {error}") from error
    if strange := {tensor.dtype for tensor in tensors.values()} - FLOATS:
        raise ValueError(f"the weights are {strange.pop()}: expected floating point numbers of 16 bits at least")
    card = parse_card(data[8 : 8 + header_size_bytes(data)])
    if (name := find_not_finite(tensors)) is not None:
        raise ValueError(f"the weights are damaged: {name} has numbers that are not finite")
    return Weights(tensors, card, hashlib.sha256(data).hexdigest())


def find_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that has NaN or an infinity in it, if one has."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def header_size_bytes(data: bytes) -> int:
    """How long the header of a weights file is, which follows the 8 bytes that say so."""
    return int.from_bytes(data[:8], "little")


def parse_card(header: bytes) -> Card:
    """The card in the header of a weights file.

    Raises:
        ValueError: it is no header, or has no card that this version understands.
    """
    try:
        return _card(json.loads(json.loads(header)["__metadata__"]["card"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the weights have no card that this version of degrain understands: {error}") from error


def _card(values: dict[str, Any]) -> Card:  # Any: JSON
    if values.get("provenance") is not None:
        values["provenance"] = Provenance(**values["provenance"])
    if values.get("white") is not None:
        values["white"] = _card(values["white"])
    return Card(**values)


def shipped_names() -> list[str]:
    """Names of the weights that came with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def find_shipped(name: str) -> Path | None:
    """The file of the shipped weights called `name`, or None where none has that name."""
    return SHIPPED / f"{name}.safetensors" if name in shipped_names() else None


def load_weights(source: str | Path) -> Weights:
    """The shipped weights of that name, or those in a file.

    Raises:
        ValueError: neither shipped weights nor a file of that name, or not a weights file.
    """
    path = find_shipped(str(source)) or Path(source)
    if not path.is_file():
        raise ValueError(
            f"no weights {str(source)!r}: expected a file or one of {', '.join(shipped_names()) or 'none'}"
        )
    return parse_weights(path.read_bytes())
