"""`--settings FILE.toml` on the command line: it fills in what is not said, and is checked as a form is."""

from pathlib import Path

import pytest
from test_cli import run

from flows.cli import _parser
from flows.settings import DenoiseSettings, IngestSettings, TrainSettings
from flows.settings_file import OF_FLOWS_ONLY, complete


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "night.toml"
    photos = 'source = "in"\ntarget = "out"\nmax_megapixels = 9\nkey_table = "k.csv"\n'
    path.write_text(f'{photos}strength = 0.5\nphoto_timeout_s = 60\nregistry = "models"\n[ray]\nworkers = 3\n')
    return path


def test_a_file_fills_in_what_the_command_line_does_not_say(file: Path) -> None:
    parser, arguments = _parser(), ["denoise", "--settings", str(file), "--strength", "0.7", "elsewhere"]

    options = complete(parser, arguments, parser.parse_args(arguments))

    assert (options.source, options.target, options.strength) == ("elsewhere", "out", 0.7)
    assert (options.max_megapixels, options.photo_timeout_s, options.registry) == (9, 60, "models")
    assert (options.key_table, options.workers, options.weights) == ("k.csv", 3, "photo")


def test_a_place_in_the_file_that_another_takes_is_not_held_against_it(tmp_path: Path) -> None:
    path = tmp_path / "night.toml"
    path.write_text('target = "in"\n')
    parser, arguments = _parser(), ["denoise", "--settings", str(path), "in", "out"]

    options = complete(parser, arguments, parser.parse_args(arguments))

    assert (options.source, options.target) == ("in", "out")


def test_every_setting_is_an_option_of_its_command() -> None:
    for kind in (DenoiseSettings, IngestSettings, TrainSettings):
        verb = kind.__name__.removesuffix("Settings").lower()
        names = set(kind.model_fields) - OF_FLOWS_ONLY - {"ray"}
        options = vars(_parser().parse_args([verb]))
        assert names - set(options) == set()


def test_values_are_those_that_the_form_would_have(tmp_path: Path) -> None:
    path = tmp_path / "night.toml"
    path.write_text('source = "in"\ntarget = "out"\nretry_failed = "no"\nkeep_grain = "yes"\nlimit = "3"\n')
    parser, arguments = _parser(), ["denoise", "--settings", str(path)]

    options = complete(parser, arguments, parser.parse_args(arguments))

    assert (options.retry_failed, options.keep_grain, options.limit) == (False, True, 3)


@pytest.mark.parametrize(
    ("verb", "text", "message"),
    [
        ("denoise", "strenght = 1", "strenght is no setting of degrain denoise"),
        ("denoise", "strength = 2", "strength: input should be 'auto', or input should be less than or equal to 1"),
        ("denoise", 'layout = "fils"', "layout: input should be 'files' or 'packed'"),
        ("ingest", "resize = 0", "resize: input should be greater than or equal to 1"),
        ("train", 'run = "a"\nstep = 1', "step is no setting of degrain train"),
        ("ingest", "workers = 3", "workers is no setting of degrain ingest: it is ray.workers"),
        ("ingest", "\ufeffresize = 0", "resize: input should be"),  # as Windows writes UTF-8
        ("denoise", "strength = ", "is no TOML"),
        ("denoise", '[ray]\naddress = "http://head:8265"', "a cluster is named by --cluster"),
        ("denoise", "notify_rejected_fraction = 0.1", "is for flows, and no option of degrain denoise"),
    ],
)
def test_a_wrong_file_is_one_line(
    verb: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text(text)
    places = ["in", "--run", "r"] if verb == "train" else ["in", "out"]

    code, _, err = run(capsys, verb, *places, "--settings", tmp_path / "a.toml")

    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "missing"), [(["denoise", "in"], "TARGET"), (["train"], "SET"), (["train", "in"], "--run")]
)
def test_a_place_that_is_named_nowhere_is_missing(
    arguments: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *arguments)

    assert (code, err.count("\n")) == (2, 1)
    assert f"{missing} is missing" in err
