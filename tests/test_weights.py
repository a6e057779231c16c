"""Weights survive their file, and a file that is not one is refused without being run."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model import weights
from model.photo import FineNetwork, PhotoNetwork
from model.seed import SeedNetwork
from model.weights import Card, Part, Provenance, dump_weights, load_weights, parse_weights

SHIPPED_PHOTO = weights.SHIPPED / "photo.safetensors"
_FOUR_BITS = b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}'
FOUR_BITS = len(_FOUR_BITS).to_bytes(8, "little") + _FOUR_BITS + b"\x00"
NOTHING_SAID = {"data": "", "licence": "", "noise": ""}


def _card(**changes: object) -> Card:
    return Card(**({"network": "photo", "data": "d", "licence": "MIT", "noise": "gaussian"} | changes))


@pytest.fixture(scope="module")
def network() -> PhotoNetwork:
    torch.manual_seed(0)
    return PhotoNetwork()


def test_a_network_and_its_card_survive_the_file(network):
    card = _card(training="steps=1", scores={"CBSD68 sigma 25": 30.5})
    read = parse_weights(dump_weights(network, card))
    assert read.card == card
    for name, tensor in read.network().state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_what_the_weights_came_from_survives_the_file(network):
    provenance = Provenance(
        source="s3://photos", photos=254, photos_sha256="a" * 64, settings={"steps": 1, "noise": {"sigma_max": 55}}
    )
    assert parse_weights(dump_weights(network, _card(provenance=provenance))).card.provenance == provenance
    assert parse_weights(dump_weights(network, _card())).card.provenance is None


def test_the_same_network_gives_the_same_bytes_and_another_does_not(network):
    data = dump_weights(network, _card())
    assert dump_weights(network, _card()) == data
    assert parse_weights(data).sha256 == parse_weights(dump_weights(network, _card())).sha256
    assert parse_weights(dump_weights(network, _card(noise="none"))).sha256 != parse_weights(data).sha256


def test_two_networks_share_a_file_of_the_size_of_one(network):
    torch.manual_seed(1)
    white = PhotoNetwork()
    card = _card(white=_card(noise="white"), provenance=Provenance(source="p", photos=1, photos_sha256="a" * 64))
    data = dump_weights(network, card, white=white)
    read = parse_weights(data)
    assert read.card == card
    for part, expected in ((Part.GENERAL, network), (Part.WHITE, white)):
        for name, tensor in read.network(part).state_dict().items():
            torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=2**-10, atol=1e-7)
    again = dump_weights(read.network(), read.card, white=read.network(Part.WHITE))
    assert again == data
    assert len(data) == pytest.approx(len(dump_weights(network, _card())), rel=0.01)


def test_two_networks_of_two_architectures_share_a_file(network):
    fine = FineNetwork()
    read = parse_weights(dump_weights(network, _card(white=_card(network="fine")), white=fine))
    assert {part: type(network) for part, network in read.networks().items()} == {
        Part.GENERAL: PhotoNetwork,
        Part.WHITE: FineNetwork,
    }
    with pytest.raises(ValueError, match="do not fit the network 'fine'"):
        parse_weights(dump_weights(network, _card(white=_card(network="fine")), white=network)).network(Part.WHITE)


def test_the_general_network_stands_for_the_other_where_there_is_none(network):
    read = parse_weights(dump_weights(network, _card()))
    stand_in = read.part(Part.WHITE)
    assert stand_in.keys() == read.tensors.keys()
    assert all(torch.equal(tensor, read.tensors[name]) for name, tensor in stand_in.items())


@pytest.mark.parametrize("white", [{"network": "seed"}, {"white": {"network": "photo"} | NOTHING_SAID}])
def test_a_card_of_two_networks_that_do_not_go_together_is_refused(white):
    values = {"network": "photo"} | NOTHING_SAID
    metadata = {"card": json.dumps(values | {"white": values | white})}
    with pytest.raises(ValueError, match="the network for white noise is a"):
        parse_weights(safetensors.torch.save({"weight": torch.zeros(1)}, metadata))


def test_a_card_that_promises_a_second_network_is_not_believed(network):
    read = parse_weights(dump_weights(network, _card(white=_card())))
    with pytest.raises(ValueError, match="do not fit the network 'photo'"):
        read.network(Part.WHITE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(bad):
    network = SeedNetwork()
    name, parameter = next(iter(network.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = bad
    with pytest.raises(FloatingPointError, match=f"{name} of the network has numbers that are not finite"):
        dump_weights(network, _card(network="seed"))
    metadata = {"card": json.dumps({"network": "seed"} | NOTHING_SAID)}
    with pytest.raises(ValueError, match=f"the weights are damaged: {name} has numbers that are not finite"):
        parse_weights(safetensors.torch.save(network.state_dict(), metadata))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers_are_refused(network, dtype):
    tensors = {name: tensor.detach().to(dtype) for name, tensor in network.state_dict().items()}
    card = json.dumps({"network": "photo"} | NOTHING_SAID)
    with pytest.raises(ValueError, match=f"the weights are {dtype}: expected floating point"):
        parse_weights(safetensors.torch.save(tensors, metadata={"card": card}))


def test_a_network_that_is_read_is_ready_for_use(network):
    assert not parse_weights(dump_weights(network, _card())).network().training


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}extra", FOUR_BITS])
def test_garbage_is_refused(data):
    with pytest.raises(ValueError, match="not a safetensors file"):
        parse_weights(data)


def test_a_truncated_file_is_refused(network):
    with pytest.raises(ValueError, match="not a safetensors file"):
        parse_weights(dump_weights(network, _card())[:-1])


def test_a_pickle_is_refused_and_never_executed(tmp_path):
    class Crafted:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "executed",)

    for data in (pickle.dumps(Crafted()), _torch_file(tmp_path / "weights.pt", Crafted())):
        with pytest.raises(ValueError, match="not a safetensors file"):
            parse_weights(data)
    assert not (tmp_path / "executed").exists()


def _torch_file(path: Path, value: object) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"card": "not json"},
        {"card": "[]"},
        {"card": "[" * 100_000},
        {"card": json.dumps({"network": "photo"})},
        {"card": json.dumps({"network": "resnet", "data": "", "licence": "", "noise": ""})},
        {"card": json.dumps({"network": "photo", "data": "", "licence": "", "noise": "", "from_the_future": 1})},
        {"card": json.dumps({"network": "photo", "data": "", "licence": "", "noise": "", "provenance": "me"})},
        {"card": json.dumps({"network": "photo", "data": "", "licence": "", "noise": "", "scores": ["good"]})},
        {"card": json.dumps({"network": "photo", "data": "", "licence": "", "noise": "", "scores": {"psnr": "30"}})},
        {"card": json.dumps({"network": "photo", "data": "", "licence": "", "noise": "", "scores": {"psnr": None}})},
    ],
)
def test_weights_without_a_card_that_is_understood_are_refused(metadata):
    data = safetensors.torch.save({"weight": torch.zeros(1)}, metadata)
    with pytest.raises(ValueError, match="no card that this version of degrain understands"):
        parse_weights(data)


def test_tensors_of_another_network_are_refused(network):
    read = parse_weights(dump_weights(network, _card(network="seed")))
    with pytest.raises(ValueError, match="do not fit the network 'seed'"):
        read.network()


def test_both_networks_can_be_named_on_a_card():
    assert isinstance(parse_weights(dump_weights(SeedNetwork(), _card(network="seed"))).network(), SeedNetwork)


def test_weights_are_loaded_from_a_path(tmp_path, network):
    path = tmp_path / "own.safetensors"
    path.write_bytes(dump_weights(network, _card()))
    assert load_weights(path).sha256 == load_weights(str(path)).sha256


def test_weights_are_loaded_by_the_name_they_ship_under(tmp_path, monkeypatch, network):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    (tmp_path / "small.safetensors").write_bytes(dump_weights(network, _card(data="the shipped ones")))
    assert weights.shipped_names() == ["small"]
    assert load_weights("small").card.data == "the shipped ones"


def test_a_name_that_is_neither_shipped_nor_a_file_is_refused_with_those_that_are(tmp_path, monkeypatch, network):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    (tmp_path / "small.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no weights 'smal': expected a file or one of small"):
        load_weights("smal")


def test_the_weights_that_ship_are_small_and_hold_both_networks():
    assert SHIPPED_PHOTO.stat().st_size <= 8_000_000
    assert set(load_weights("photo").networks()) == {Part.GENERAL, Part.WHITE}
