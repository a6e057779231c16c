"""A registry finds weights by name and hash, keeps the history of names, and refuses what was changed."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from torch import nn

from model.weights import Card, Provenance, dump_weights, shipped_names
from pipeline.errors import PromotionRefused, RegistryError
from pipeline.registry import Pointer, Registry, check_name, open_registry, read_weights, split_reference

SMALL = nn.Linear(1, 1)


def weights_file(noise: str = "none", *, network: nn.Module = SMALL) -> bytes:
    """Small differences in the card make other weights."""
    provenance = Provenance(source="s3://photos", photos=2, photos_sha256="0" * 64, settings={"steps": 1})
    return dump_weights(
        network, Card(network="photo", data="d", licence="MIT", noise=noise, provenance=provenance, scores={"psnr": 30})
    )


def name_it(registry: Registry, name: str, data: bytes, **facts: str) -> Pointer:
    return registry.point(name, Pointer(sha256=registry.add(data), number=len(registry.history(name)) + 1, **facts))


@pytest.fixture(params=["folder", "memory_url", "s3_url", "seaweed_url"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    return open_registry(str(tmp_path) if request.param == "folder" else request.getfixturevalue(request.param))


def test_weights_are_found_by_name_by_hash_and_by_its_first_digits(registry: Registry) -> None:
    data = weights_file()
    sha256 = name_it(registry, "night", data).sha256

    for reference in ("night", sha256, sha256[:8]):
        found, weights = registry.read(reference)
        assert (found, weights.sha256) == (data, sha256)
        assert read_weights(f"{registry.store.url}/weights/{reference}")[0] == data


def test_a_name_that_is_pointed_elsewhere_keeps_its_history(registry: Registry) -> None:
    first = name_it(registry, "night", weights_file("first"))
    second = name_it(registry, "night", weights_file("second"), before=first.sha256, because="it was time")

    assert registry.names() == {"night": second.sha256}
    assert registry.history("night") == [first, second]
    assert registry.read(first.sha256)[1].card.noise == "first"
    assert second.at >= first.at > "2020"
    assert "@" in second.by


def test_of_many_at_once_one_points_and_the_others_are_told(registry: Registry) -> None:
    rivals = [Pointer(sha256=registry.add(weights_file(str(number)))) for number in range(3)]
    together = Barrier(len(rivals))

    def point(pointer: Pointer) -> Pointer | str:
        together.wait()
        try:
            return registry.point("night", pointer)
        except PromotionRefused as error:
            return str(error)

    with ThreadPoolExecutor(len(rivals)) as pool:
        ends = list(pool.map(point, rivals))
    assert registry.history("night") == [end for end in ends if isinstance(end, Pointer)]
    assert sum("meanwhile: try again" in str(end) for end in ends) == len(rivals) - 1


def test_entries_tell_cards_and_names_and_what_has_no_name_comes_last(registry: Registry) -> None:
    old = name_it(registry, "night", weights_file("old")).sha256
    new = name_it(registry, "night", weights_file("new")).sha256
    name_it(registry, "day", weights_file("new"))

    entries = registry.entries()

    assert [(entry.sha256, entry.names) for entry in entries] == [(new, ("day", "night")), (old, ())]
    assert entries[0].card.scores == {"psnr": 30}
    assert entries[0].card.provenance == Provenance(
        source="s3://photos", photos=2, photos_sha256="0" * 64, settings={"steps": 1}
    )


def test_weights_that_were_changed_are_refused(registry: Registry) -> None:
    pointer = name_it(registry, "night", weights_file())
    key = f"weights/{pointer.sha256}.safetensors"
    registry.store.write(key, weights_file("poisoned"))

    for reference in ("night", f"{pointer.sha256}.safetensors"):
        with pytest.raises(RegistryError, match=r"was changed: its sha256 is .*, and not its name"):
            read_weights(f"{registry.store.url}/weights/{reference}")
    with pytest.raises(RegistryError, match="is damaged: it is not what its name says"):
        registry.add(weights_file())


def test_a_pickle_under_its_right_hash_is_refused(registry: Registry) -> None:
    name_it(registry, "night", b"\x80\x04.")

    with pytest.raises(RegistryError, match="not a safetensors file"):
        registry.read("night")
    with pytest.raises(RegistryError, match="no card"):
        registry.entries()


def test_a_name_whose_weights_are_gone_says_so(registry: Registry) -> None:
    pointer = name_it(registry, "night", weights_file())
    registry.store.delete(f"weights/{pointer.sha256}.safetensors")

    for look in (lambda: registry.read("night"), registry.entries):
        with pytest.raises(RegistryError, match=r"points to .*, which is not there"):
            look()


DEEP = b"[" * 100_000


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"sha256": "../../etc"}', b'{"sha256": 1}', b"\xff", DEEP])
def test_a_damaged_pointer_is_named(tmp_path: Path, damage: bytes) -> None:
    registry = open_registry(str(tmp_path))
    registry.store.write("weights/night/0000000001.json", damage)

    with pytest.raises(RegistryError, match=r"weights/night/0000000001\.json is damaged"):
        registry.read("night")


def test_a_file_is_read_by_the_name_that_it_is_listed_by(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path))
    for name in ("Night", "at night"):
        registry.store.write(f"weights/{name}.safetensors", weights_file(name))

    assert [registry.read(name)[1].card.noise for name in registry.names()] == ["Night", "at night"]


@pytest.mark.parametrize("reference", ["nigth", "abcdef", "abcdef12", "0" * 64, "..", "night/0000000001.json", "a\tb"])
def test_what_is_not_there_is_refused_with_the_names_that_are(tmp_path: Path, reference: str) -> None:
    registry = open_registry(str(tmp_path))
    name_it(registry, "night", weights_file())

    with pytest.raises(ValueError, match=r"unknown weights .* has night; others go by a path"):
        registry.find(reference)


def test_files_beside_scores_that_are_none_are_passed_over(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path))
    sha256 = registry.add(weights_file())
    registry.add_scores(sha256, b'{"rows": []}')
    for name in (".DS_Store", "notes.txt", "notes.json", f"{'0' * 64}.txt"):
        registry.store.write(f"weights/{sha256}/{name}", b"\x00")

    assert registry.scores_of(sha256) == [{"rows": []}]


def test_digits_that_begin_two_hashes_are_refused(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path))
    for last in "ab":
        registry.store.write(f"weights/{'0' * 63}{last}.safetensors", b"")

    with pytest.raises(ValueError, match="is the beginning of 2 hashes"):
        registry.find("00000000")


def test_a_file_is_found_by_its_hash_whatever_it_is_called_and_however_often(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path))
    sha256 = name_it(registry, "night", weights_file()).sha256
    registry.store.write("weights/copy.safetensors", weights_file())
    registry.store.write("weights/night.safetensors", weights_file("other"))

    assert registry.read(sha256[:8])[0] == weights_file()
    assert {entry.card.noise: entry.names for entry in registry.entries()} == {"none": ("copy", "night"), "other": ()}


@pytest.mark.parametrize("name", ["", "Night", "a b", "a/b", "..", "-a", "n" * 64, "f" * 64, "a.safetensors", "a.json"])
def test_names_that_could_be_taken_for_something_else_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="weights cannot be named"):
        check_name(name)


def test_the_weights_that_ship_are_a_registry_too() -> None:
    registry = open_registry(None)

    assert list(registry.names()) == shipped_names()
    assert [entry.names for entry in registry.entries()] == [(name,) for name in shipped_names()]
    assert registry.read("photo")[1].sha256 == registry.names()["photo"]
    assert registry.history("photo") == []


def test_the_weights_that_ship_are_found_by_their_hash_and_by_its_first_digits() -> None:
    sha256 = open_registry(None).names()["photo"]

    assert {read_weights(reference)[1].sha256 for reference in (sha256, sha256[:8])} == {sha256}
    with pytest.raises(ValueError, match="unknown weights"):
        read_weights(sha256[:7])


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("s3://bucket/models/weights/photo", ("s3://bucket/models", "photo")),
        ("weights/photo", (".", "photo")),
        ("/models/weights/photo/", ("/models", "photo")),
        ("s3://weights/photo", None),
        ("/models/weights/own.safetensors", None),
        ("/models/photo", None),
    ],
)
def test_a_name_in_a_registry_is_told_from_a_file(source: str, place: tuple[str, str] | None) -> None:
    assert split_reference(source) == place


def test_pointers_are_small_and_readable(tmp_path: Path) -> None:
    name_it(open_registry(str(tmp_path)), "night", weights_file(), because="größer\udcfc")

    text = (tmp_path / "weights/night/0000000001.json").read_text()
    assert json.loads(text)["because"] == "größer\udcfc"
    assert "größer" in text
