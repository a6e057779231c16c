"""Weights get a name if they score no worse than those that have it, or for a reason that is told and kept."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from photos import saved, scene
from test_registry import weights_file

from flows.cli import main
from model.photo import PhotoNetwork
from model.weights import SHIPPED, Card, dump_weights, parse_weights
from pipeline.errors import PromotionRefused, StorageError
from pipeline.promotion import IncumbentJob, PromoteJob, find_incumbent, promote
from pipeline.registrar import NameJob, give_name
from pipeline.registry import open_registry

OLD, NEW = (weights_file(noise, network=PhotoNetwork()) for noise in ("old", "new"))
PHOTOS_SHA256 = "a" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two weights, of which the old ones have a name in a registry."""
    for name, data in (("old", OLD), ("new", NEW)):
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    give_name(_job(tmp_path, "old", **_scores(tmp_path, "first", old=8.0)))
    return tmp_path


def _job(folder: Path, weights: str, **options: object) -> NameJob:
    return NameJob(
        weights=str(folder / f"{weights}.safetensors"), name="night", registry=str(folder / "registry"), **options
    )


def _scores(folder: Path, file: str, *, noisy_db: float = 20.0, photos: str = PHOTOS_SHA256, **gains: float) -> dict:
    """A scores.json in which the weights of these names have these gains."""
    hashes = {"old": parse_weights(OLD).sha256, "new": parse_weights(NEW).sha256}
    rows = [
        {"trial": trial, "denoiser": name, "weights": hashes[name], "noisy_psnr_db": noisy_db, "gain_db": gain}
        for name, gain in gains.items()
        for trial in ("float", "file")
    ]
    values = {"photos_sha256": photos, "weights": {name: hashes[name] for name in gains}, "rows": rows, "scores": []}
    (folder / f"{file}.json").write_text(json.dumps(values))
    return {"scores": str(folder / f"{file}.json")}


def _named(folder: Path) -> str:
    return open_registry(str(folder / "registry")).read("night")[1].card.noise


def test_better_weights_get_the_name_and_the_gain_is_kept(folder: Path) -> None:
    pointer = give_name(_job(folder, "new", **_scores(folder, "both", old=8.0, new=8.3)))

    assert _named(folder) == "new"
    assert pointer.gains_db == {"float": 0.3, "file": 0.3}
    assert pointer.before == parse_weights(OLD).sha256
    assert json.loads((folder / "registry" / pointer.scores).read_text())["rows"][0]["gain_db"] == 8.3


@pytest.mark.parametrize("because", ["", "  "])
def test_worse_weights_are_refused_and_the_name_stays(folder: Path, because: str) -> None:
    with pytest.raises(PromotionRefused, match=r"scores worse .* by -0\.50 dB in the mean of 2 trials"):
        give_name(_job(folder, "new", **_scores(folder, "both", old=8.0, new=7.5), because=because))

    assert _named(folder) == "old"


def test_weights_that_were_compared_on_clean_photos_alone_were_not_compared(folder: Path) -> None:
    give_name(_job(folder, "old", **_scores(folder, "clean", noisy_db=99.0, old=-47.0), because="only clean photos"))
    with pytest.raises(PromotionRefused, match="was not compared with"):
        give_name(_job(folder, "new", **_scores(folder, "both", noisy_db=99.0, old=-47.0, new=0.0)))

    assert _named(folder) == "old"


def test_worse_weights_get_the_name_for_a_reason_and_it_is_kept(folder: Path) -> None:
    job = _job(folder, "new", **_scores(folder, "both", old=8.0, new=7.5), because="they keep the grain")
    give_name(job)

    assert _named(folder) == "new"
    assert open_registry(job.registry).history("night")[-1].because == "they keep the grain"


def test_the_scores_that_the_present_ones_were_promoted_by_are_remembered(folder: Path) -> None:
    with pytest.raises(PromotionRefused, match="scores worse"):
        give_name(_job(folder, "new", **_scores(folder, "second", new=7.5)))


@pytest.mark.parametrize("other", [{"photos": "b" * 64}, {"noisy_db": 21.0}])
def test_scores_on_other_photos_or_with_other_noise_are_not_compared(folder: Path, other: dict) -> None:
    with pytest.raises(PromotionRefused, match="was not compared with"):
        give_name(_job(folder, "new", **_scores(folder, "second", **other, new=9.0)))


def test_without_scores_a_name_that_is_taken_is_not_given(folder: Path) -> None:
    with pytest.raises(PromotionRefused, match=r"name photos to measure both on \(--on SET\)"):
        give_name(_job(folder, "new"))


def test_scores_of_other_weights_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has scores of old \(.*\), and none of"):
        give_name(_job(folder, "new", **_scores(folder, "second", old=9.0)))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"rows": [{}]}', b'{"rows": [], "scores": []}', b"\xff\xfe{", b"[" * 100_000]
)
def test_a_file_that_holds_no_scores_is_refused(folder: Path, data: bytes) -> None:
    (folder / "wrong.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"wrong\.json is no scores\.json"):
        give_name(_job(folder, "new", scores=str(folder / "wrong.json")))


@pytest.mark.parametrize("missing", ["trial", "denoiser", "gain_db", "noisy_psnr_db"])
def test_scores_that_lack_what_is_asked_of_them_are_refused(folder: Path, missing: str) -> None:
    scores = _scores(folder, "wrong", old=8.0, new=9.0)
    values = json.loads((folder / "wrong.json").read_text())
    del values["rows"][0][missing]
    (folder / "wrong.json").write_text(json.dumps(values))

    with pytest.raises(ValueError, match=rf"wrong\.json is no scores\.json of degrain evaluate: '{missing}'"):
        give_name(_job(folder, "new", **scores))


@pytest.mark.parametrize("changes", [{"weights": None}, {"weights": []}, {"scores": [{"denoiser": []}]}])
def test_scores_that_nothing_could_be_kept_of_are_refused_before_anything_is(
    folder: Path, changes: dict[str, object]
) -> None:
    options = _scores(folder, "wrong", old=8.0, new=8.3)
    values = json.loads((folder / "wrong.json").read_text())
    (folder / "wrong.json").write_text(json.dumps(values | changes))

    with pytest.raises(ValueError, match=r"wrong\.json is no scores\.json of degrain evaluate"):
        give_name(_job(folder, "new", **options))
    assert len(open_registry(str(folder / "registry")).entries()) == 1


@pytest.mark.parametrize("changes", [{"gain_db": "8"}, {"noisy_psnr_db": "20"}, {"trial": ["float"]}])
def test_scores_of_other_types_are_refused(folder: Path, changes: dict[str, object]) -> None:
    options = _scores(folder, "wrong", old=8.0, new=8.3)
    values = json.loads((folder / "wrong.json").read_text())
    for row in values["rows"]:
        row.update(changes)
    (folder / "wrong.json").write_text(json.dumps(values))

    with pytest.raises(ValueError, match=r"wrong\.json is no scores\.json of degrain evaluate"):
        give_name(_job(folder, "new", **options))


def test_a_name_of_the_registry_is_not_taken_for_that_of_weights_that_ship(folder: Path) -> None:
    registry = str(folder / "registry")
    give_name(NameJob(weights="photo", name="day", registry=registry))
    give_name(NameJob(weights="night", name="photo", registry=registry))

    for name in ("photo", "stable"):
        give_name(NameJob(weights="photo", name=name, registry=registry))

    names = open_registry(registry).names()
    assert names["day"] == open_registry(None).names()["photo"]
    assert names["photo"] == names["stable"] == parse_weights(OLD).sha256


def test_promoting_the_same_weights_again_changes_nothing(folder: Path) -> None:
    before = sorted(path for path in folder.rglob("registry/**/*") if path.is_file())
    give_name(_job(folder, "old"))

    assert sorted(path for path in folder.rglob("registry/**/*") if path.is_file()) == before


def test_going_back_to_a_hash_of_the_registry(folder: Path) -> None:
    give_name(_job(folder, "new", because="to try"))
    job = NameJob(weights=parse_weights(OLD).sha256[:12], name="night", registry=str(folder / "registry"), because="no")
    give_name(job)

    assert _named(folder) == "old"
    assert [pointer.number for pointer in open_registry(job.registry).history("night")] == [1, 2, 3]


def test_a_promotion_that_is_killed_leaves_the_name_where_it_was_and_can_be_repeated(folder: Path) -> None:
    command = [
        *(sys.executable, "-m", "flows.cli", "weights", "promote", str(folder / "new.safetensors"), "night"),
        *("--registry", str(folder / "registry"), "--because", "it is new"),
    ]
    killed = subprocess.run(command, env={**os.environ, "DEGRAIN_FAULT": "weights-copied"}, check=False)
    assert killed.returncode == -9
    assert _named(folder) == "old"

    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.startswith("night is ")
    assert _named(folder) == "new"


def test_a_job_finds_who_is_in_use_and_promotes_into_the_registry(folder: Path) -> None:
    place = f"{folder}/registry/weights/night"
    before = find_incumbent(IncumbentJob(place=place))
    promoted = promote(PromoteJob(weights=str(folder / "new.safetensors"), to=place, because="retrained"))

    assert promoted["before"] == before["sha256"] == parse_weights(OLD).sha256
    assert find_incumbent(IncumbentJob(place=place))["sha256"] == parse_weights(NEW).sha256
    assert find_incumbent(IncumbentJob(place=f"{place}-and-day"))["weights"] == "photo"
    assert open_registry(str(folder / "registry")).history("night")[-1].because == "retrained"


def test_gains_that_a_job_was_told_are_kept(folder: Path) -> None:
    place, old = f"{folder}/registry/weights/night", parse_weights(OLD).sha256
    new = str(folder / "new.safetensors")
    promote(PromoteJob(weights=new, to=place, because="better", instead_of=old, gains_db={"float": 0.5}))

    assert open_registry(f"{folder}/registry").history("night")[-1].gains_db == {"float": 0.5}


def test_weights_that_fit_no_network_replace_nothing(folder: Path) -> None:
    unfit = folder / "unfit.safetensors"
    unfit.write_bytes(dump_weights(PhotoNetwork(), dataclasses.replace(parse_weights(NEW).card, network="seed")))
    place = folder / "place.safetensors"
    place.write_bytes(OLD)

    with pytest.raises(ValueError, match="do not fit the network 'seed'"):
        promote(PromoteJob(weights=str(unfit), to=str(place), because="retrained"))

    assert place.read_bytes() == OLD


@pytest.mark.parametrize("kept_in", ["registry/weights/night", "in-use.safetensors"])
def test_weights_that_others_replaced_meanwhile_are_not_replaced_again(folder: Path, kept_in: str) -> None:
    (folder / "in-use.safetensors").write_bytes(OLD)
    new, compared_with = str(folder / "new.safetensors"), "c" * 64

    with pytest.raises(PromotionRefused, match=f"given to {parse_weights(OLD).sha256[:16]} meanwhile"):
        promote(PromoteJob(weights=new, to=f"{folder}/{kept_in}", because="better", instead_of=compared_with))

    assert find_incumbent(IncumbentJob(place=f"{folder}/{kept_in}"))["sha256"] == parse_weights(OLD).sha256
    place = f"{folder}/{kept_in}".replace("night", "day").replace("in-use", "other")  # nobody has these yet
    assert promote(PromoteJob(weights=new, to=place, instead_of=compared_with))["sha256"] == parse_weights(NEW).sha256


@pytest.mark.parametrize(
    "place", ["reg/weights/Night", "reg/weights/x.json", f"weights/{'a' * 64}", "s3://weights/night"]
)
def test_a_place_that_no_weights_can_have_is_refused_before_it_is_needed(place: str) -> None:
    for kind in (lambda: IncumbentJob(place=place), lambda: PromoteJob(weights="photo", to=place)):
        with pytest.raises(ValueError, match=r"is no place for weights|cannot be named"):
            kind()


def test_photos_to_try_weights_on_that_are_not_there_are_told_of_with_who_is_in_use(folder: Path) -> None:
    with pytest.raises((ValueError, StorageError), match="nowhere"):
        find_incumbent(IncumbentJob(place=f"{folder}/in-use.safetensors", photos=f"{folder}/nowhere"))


def test_the_weights_that_ship_are_only_read(folder: Path) -> None:
    for name in ("photo", "night"):
        with pytest.raises(ValueError, match="ship with degrain are only read"):
            give_name(NameJob(weights=str(folder / "new.safetensors"), name=name, registry=str(SHIPPED.parent)))


def test_a_name_that_is_a_file_points_nowhere_else(folder: Path) -> None:
    (folder / "registry/weights/day.safetensors").write_bytes(OLD)
    with pytest.raises(ValueError, match="points nowhere else"):
        give_name(NameJob(weights=str(folder / "new.safetensors"), name="day", registry=str(folder / "registry")))


def test_the_command_measures_refuses_and_names_and_denoise_uses_the_name(tmp_path: Path, capsys) -> None:
    pytest.importorskip("skimage", reason="needs the extra 'evaluate'")
    torch.set_num_threads(1)
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean/photo.png").write_bytes(saved(scene(sigma=0, side_px=32), "PNG"))
    torch.manual_seed(0)
    untrained = dump_weights(PhotoNetwork(), Card(network="photo", data="", licence="", noise="untrained"))
    (tmp_path / "untrained.safetensors").write_bytes(untrained)
    registry = ["--registry", str(tmp_path / "registry")]
    promotion = ["weights", "promote", str(tmp_path / "untrained.safetensors"), "night", *registry]

    assert main(["weights", "promote", "photo", "night", *registry]) == 0
    assert main([*promotion, "--on", str(tmp_path / "clean")]) == 1
    assert "scores worse than" in capsys.readouterr().err
    assert main(["denoise", str(tmp_path / "clean/photo.png"), f"{tmp_path}/", "--weights", "night", *registry]) == 0
    assert main(["weights", "show", "night", *registry]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown[shown.index("{") :])["history"][0]["sha256"] == open_registry(None).names()["photo"]
