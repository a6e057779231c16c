"""The commands that measure weights and name them: `degrain evaluate`, and `degrain weights list|show|promote`."""

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from flows.console import AddCommand, Bar, Options

if TYPE_CHECKING:
    from pipeline.evaluate import Steps
    from pipeline.scores import Row


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """The options of `degrain evaluate`."""
    command.add_argument("weights", metavar="WEIGHTS", help="name, path or URL of weights")
    command.add_argument("photos", metavar="SET", help="folder, URL or image set of clean photos")
    command.add_argument("--against", nargs="+", default=[], metavar="WEIGHTS", help="measure these weights too")
    command.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help="and classical denoisers, of median, nlm and bm3d (on 3 photos) [all three]",
    )
    command.add_argument("--auto", action="store_true", help="and the noise estimate, and auto against fixed strengths")
    command.add_argument(
        "--trials", nargs="+", default=[], metavar="WORD", help="those with a word in their names, such as file [all]"
    )
    command.add_argument("--limit", type=int, metavar="N", help="the first N photos only")
    command.add_argument("--output", metavar="FOLDER", help="write scores.json, scores.md and scores.svg there")
    command.add_argument("--json", action="store_true", help="one JSON array instead of the table")
    add_registry_option(command)


def add_weights(commands: Any, add: AddCommand) -> None:  # Any: argparse keeps the type of its subparsers to itself
    """The command `degrain weights`, and its own commands."""
    parser = commands.add_parser("weights", help="list, show and promote weights", description="Weights by name.")
    actions = parser.add_subparsers(title="commands", required=True, metavar="ACTION")

    action = add(actions, "list", list_weights, "list the weights that ship, or those of a registry")
    action.add_argument("--json", action="store_true", help="one JSON array instead of the table, with the cards")
    add_registry_option(action)

    action = add(actions, "show", show_weights, "show a card, what was measured, and the history of the name")
    action.add_argument("weights", metavar="WEIGHTS", help="name, hash, path or URL of weights")
    action.add_argument("--json", action="store_true", help="the same JSON object in one line")
    add_registry_option(action)

    action = add(actions, "promote", promote_weights, "point a name of a registry to weights that are no worse")
    action.set_defaults(warns=True)
    action.add_argument("weights", metavar="WEIGHTS", help="name, path or URL of weights, or a hash of the registry")
    action.add_argument("name", metavar="NAME", help="what they are to be called")
    action.add_argument("--registry", required=True, metavar="URL", help="folder or URL of the registry")
    action.add_argument("--on", metavar="SET", help="measure them, and those of that name now, on these clean photos")
    action.add_argument("--limit", type=int, metavar="N", help="on the first N photos only")
    action.add_argument("--scores", metavar="FILE", help="or take these scores: a scores.json of evaluate")
    action.add_argument("--because", default="", metavar="TEXT", help="promote them even if they score worse: why")


def add_registry_option(command: Options) -> None:
    command.add_argument("--registry", metavar="URL", help="where names of weights are looked up [those that ship]")


def weights_of(options: argparse.Namespace) -> str:
    """The weights that are asked for; a name in a registry as its URL."""
    return place_of(options.weights, options.registry)


def place_of(weights: str, registry: str | None) -> str:
    """Weights as jobs take them; a name, if there is a registry to look it up in, as its URL."""
    from pipeline.storage import refuse_empty

    if registry is None or "/" in weights or weights.endswith(".safetensors"):
        return weights
    refuse_empty(registry)
    return f"{registry.rstrip('/')}/weights/{weights}"


def _place_beside(weights: str, registry: str | None) -> str:
    """The same for weights to compare with: a name that the registry lacks may be one of those that ship."""
    from model.weights import shipped_names
    from pipeline.registry import open_registry

    is_shipped = registry is not None and weights in shipped_names() and weights not in open_registry(registry).names()
    return weights if is_shipped else place_of(weights, registry)


def evaluate(options: argparse.Namespace) -> int:
    """`degrain evaluate`: how well weights do on known noise, beside others and classical denoisers."""
    from pipeline.auto_table import auto_rows, format_auto
    from pipeline.evaluate import EvaluateJob, run_evaluate

    job = EvaluateJob(
        weights=weights_of(options),
        photos=options.photos,
        against=tuple(_place_beside(each, options.registry) for each in options.against),
        trials=tuple(options.trials),
        limit=options.limit,
        peers=_peers(options),
        has_auto=options.auto,
        folder=options.output,
    )
    with _Trials(is_silent=options.json) as trials:
        evaluation = run_evaluate(job, trials.report, trials.watch)
    auto = auto_rows(evaluation.auto) if evaluation.auto else []
    if options.json:
        print(json.dumps([row.as_dict() for row in evaluation.rows] + auto, ensure_ascii=False))
    elif evaluation.auto:
        print(f"\n{format_auto(evaluation.auto)}")
    return 0


def _peers(options: argparse.Namespace) -> tuple[str, ...]:
    from pipeline.peers import PEERS

    if options.peers is None:
        return ()
    return tuple(options.peers or PEERS)


def list_weights(options: argparse.Namespace) -> int:
    """`degrain weights list`: what ships, or what is in a registry."""
    from model.weights import Part
    from pipeline.redaction import printable
    from pipeline.registry import open_registry

    entries = open_registry(options.registry).entries()
    if options.json:
        facts = [{"names": each.names, "sha256": each.sha256, **dataclasses.asdict(each.card)} for each in entries]
        print(json.dumps(facts))
        return 0
    if not entries:
        print(f"there are no weights in {options.registry}")
    for entry in entries:
        names = ", ".join(entry.names) or "-"
        networks = "+".join(dict.fromkeys(entry.card.of(part).network for part in Part))
        scores = ", ".join(f"{name} {value:g}" for name, value in sorted(entry.card.scores.items()))
        print(printable(f"{names:12} {entry.sha256[:16]}  {networks:10}  {scores or 'no scores'}"))
    return 0


def show_weights(options: argparse.Namespace) -> int:
    """`degrain weights show`: the card of weights, and in a registry their scores and the history of their name."""
    from pipeline.registry import open_registry, read_weights

    _, found = read_weights(weights_of(options))
    facts = {"sha256": found.sha256, **dataclasses.asdict(found.card)}
    if options.registry is not None:
        registry = open_registry(options.registry)
        facts["history"] = [dataclasses.asdict(pointer) for pointer in registry.history(options.weights)]
        facts["evaluations"] = [
            {name: value for name, value in each.items() if name != "scores"}  # of every photo
            for each in registry.scores_of(found.sha256)
        ]
    # In ASCII: cards are by strangers, and a terminal obeys some other characters.
    print(json.dumps(facts, indent=None if options.json else 2))
    return 0


def promote_weights(options: argparse.Namespace) -> int:
    """`degrain weights promote`: weights under a name of a registry, if they are no worse than those that have it."""
    from pipeline.registrar import NameJob, give_name

    job = NameJob(
        weights=options.weights,
        name=options.name,
        registry=options.registry,
        on=options.on,
        limit=options.limit,
        scores=options.scores,
        because=options.because,
    )
    with _Trials(is_silent=job.on is None) as trials:
        pointer = give_name(job, trials.report, trials.watch)
    before = f", and no longer {pointer.before[:16]}" if pointer.before else ""
    print(f"{job.name} is {pointer.sha256[:16]}{before}")
    return 0


class _Trials(Bar):
    """The rows of an evaluation on standard output, and how far it is on standard error."""

    def __init__(self, *, is_silent: bool) -> None:
        super().__init__("photo")
        self._is_silent = is_silent
        self._has_header = False

    def report(self, row: "Row") -> None:
        from tqdm import tqdm

        from pipeline.scores import HEADER, format_row

        if not self._is_silent:
            tqdm.write(format_row(row) if self._has_header else f"{HEADER}\n{format_row(row)}")
            sys.stdout.flush()
            self._has_header = True

    def watch(self, steps: "Steps") -> None:
        text = f"{steps.denoiser}: {steps.trial}"
        self.show(steps.done, steps.planned, text, denoiser=steps.denoiser, trial=steps.trial)
