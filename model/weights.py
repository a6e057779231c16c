"""Weights on disk: safetensors with a card in the header. Nothing here, or anywhere in degrain, loads a pickle."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from model.photo import PhotoNetwork
from model.seed import SeedNetwork

SHIPPED = Path(__file__).parent / "weights"
NETWORKS: dict[str, type[PhotoNetwork] | type[SeedNetwork]] = {"photo": PhotoNetwork, "seed": SeedNetwork}


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
    """

    network: str
    data: str
    licence: str
    noise: str
    training: str = ""
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"unknown network {self.network!r}: expected one of {', '.join(NETWORKS)}")


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, the card that describes them, and the sha256 of the file they came from."""

    tensors: dict[str, Tensor]
    card: Card
    sha256: str

    def network(self) -> PhotoNetwork | SeedNetwork:
        """A new network in evaluation mode that holds these tensors.

        Raises:
            ValueError: the tensors do not fit the network that the card names.
        """
        network = NETWORKS[self.card.network]()
        try:
            network.load_state_dict(self.tensors)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the network {self.card.network!r}: {error}") from error
        return network.eval()


def dump_weights(network: nn.Module, card: Card) -> bytes:
    """The bytes of a weights file: the same network and card give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return safetensors.torch.save(tensors, metadata={"card": json.dumps(dataclasses.asdict(card), sort_keys=True)})


def parse_weights(data: bytes) -> Weights:
    """Read a weights file.

    Raises:
        ValueError: not a safetensors file, or one without a card that this version understands.
    """
    try:
        tensors = safetensors.torch.load(data)
        header_bytes = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    try:
        card = Card(**json.loads(metadata["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the weights have no card that this version of degrain understands: {error}") from error
    return Weights(tensors, card, hashlib.sha256(data).hexdigest())


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
