"""`--settings FILE.toml`: what a command is not told otherwise, by the names that the flows' forms have."""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OF_FLOWS_ONLY = {"notify_rejected_fraction", "checkpoint_every", "log_every"}


def read_settings(verb: str, path: str, given: Mapping[str, object]) -> dict[str, object]:
    """The values of a settings file by the names of the command's options.

    Args:
        verb: whose settings: "denoise", "ingest" or "train".
        path: of the file.
        given: places that the command line names, which the file then need not.

    Raises:
        ValueError: the file cannot be read, or holds what the verb does not know or cannot take.
    """
    from pydantic import ValidationError

    from flows.settings import DenoiseSettings, IngestSettings, Settings, TrainSettings

    kinds: dict[str, type[Settings]] = {"denoise": DenoiseSettings, "ingest": IngestSettings, "train": TrainSettings}
    try:
        values: dict[str, Any] = tomllib.loads(Path(path).read_text("utf-8-sig"))  # Any: TOML
    except OSError as error:
        raise ValueError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    places = {name: place for name, place in given.items() if place is not None}
    try:
        settings = kinds[verb].model_validate({**values, **places})
    except ValidationError as error:
        first, *others = error.errors()
        is_choice = len(first["loc"]) > 1 and not isinstance(values.get(str(first["loc"][0])), dict)
        # Of a value that may be of several kinds, each kind has its own complaint, under its own name.
        alike = [other for other in others if is_choice and other["loc"][0] == first["loc"][0]]
        name = ".".join(map(str, first["loc"][:1] if is_choice else first["loc"])) or "the settings"
        if first["type"] == "extra_forbidden":
            elsewhere = ": it is ray.workers" if name == "workers" else ""
            raise ValueError(f"{path}: {name} is no setting of degrain {verb}{elsewhere}") from error
        raise ValueError(f"{path}: {name}: {', or '.join(each['msg'].lower() for each in (first, *alike))}") from error
    values = settings.model_dump(mode="json", include=set(values), exclude_unset=True)  # "no" is False by now
    ray = values.pop("ray", {})
    if set(ray) - {"workers"}:
        raise ValueError(f"{path}: of 'ray', a command takes 'workers' alone; a cluster is named by --cluster")
    unused = sorted(OF_FLOWS_ONLY & set(values))
    if unused:
        raise ValueError(f"{path}: {unused[0]!r} is for flows, and no option of degrain {verb}")
    return {**values, **ray}


def complete(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, options: argparse.Namespace
) -> argparse.Namespace:
    """The options again, the settings file filling in what the command line does not say.

    Raises:
        ValueError: see `read_settings`; or a place is named in neither.
    """
    places = ("source", "target", "run")
    if options.settings is not None:
        given = {name: getattr(options, name) for name in places if hasattr(options, name)}
        options.parser.set_defaults(**read_settings(options.verb, options.settings, given))
        options = parser.parse_args(arguments)
    for name in places:
        if getattr(options, name, "") is None:
            option = "--run" if name == "run" else "SET" if options.verb == "train" else name.upper()
            raise ValueError(
                f"{option} is missing: name it on the command line, or as {name!r} in a file of --settings (see: "
                f"{options.parser.prog} --help)"
            )
    return options
