"""The command `degrain train`."""

import argparse
import json
from typing import TYPE_CHECKING

from flows.console import Bar, add_settings_option

if TYPE_CHECKING:
    from model.training import StepMetrics


def add_train(command: argparse.ArgumentParser) -> None:
    """The options of `degrain train`."""
    command.add_argument("source", nargs="?", metavar="SET", help="folder, URL or image set of clean photos")
    command.add_argument("--run", metavar="NAME", help="folder or URL of the run; it goes on if it is there")
    add_settings_option(command, "train")
    recipe = command.add_argument_group("the recipe")
    recipe.add_argument(
        "--preset",
        choices=["photo", "tune", "white", "seed"],
        default="photo",
        help="tune goes on from good weights, white adds to them a network for white noise; what follows changes it "
        "[photo]",
    )
    recipe.add_argument("--network", choices=["photo", "fine", "seed"], help="architecture")
    recipe.add_argument("--steps", type=int, metavar="N", help="optimiser steps of the whole run")
    recipe.add_argument("--batch-size", type=int, metavar="N", help="patches of a step")
    recipe.add_argument("--patch-px", type=int, metavar="N", help="side of a patch")
    recipe.add_argument("--halved-share", type=float, metavar="F", help="share of the patches seen at half the size")
    recipe.add_argument("--drawn-share", type=float, metavar="F", help="share of the patches with flat shapes on them")
    recipe.add_argument("--learning-rate", type=float, metavar="F", help="its peak")
    recipe.add_argument("--cooldown-share", type=float, metavar="F", help="share of the steps in which it cools down")
    recipe.add_argument("--seed", type=int, metavar="N", help="of weights, patches and noise")
    recipe.add_argument("--start-from", metavar="WEIGHTS", help="begin with these weights [random ones]")
    recipe.add_argument("--teacher", metavar="WEIGHTS", help="learn the outputs of these in place of the photos")
    which = command.add_argument_group("which photos")
    which.add_argument("--where", default="", metavar="SQL", help="train on these photos of an image set [all]")
    which.add_argument(
        "--validation-fraction", type=float, default=0.0, metavar="F", help="hold that share back, to score on [0]"
    )
    which.add_argument("--validation", metavar="SET", help="score the weights on these photos instead")
    card = command.add_argument_group("the card of the weights")
    card.add_argument("--data", default="", metavar="TEXT", help="what it says of the photos")
    card.add_argument("--licence", default="not stated", metavar="TEXT", help="what it says of the terms [not stated]")
    work = command.add_argument_group("where the work is done")
    work.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that share each batch, by Ray Train [1]"
    )
    work.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="Ray cluster to join: HOST:PORT of its head, or auto [start one here, and stop it]",
    )


def train(options: argparse.Namespace) -> int:
    """`degrain train`: a network on a collection of clean photos."""
    from flows.settings import TrainSettings
    from model.recipe import recipe_of
    from pipeline.train import run_train
    from pipeline.train_job import TrainJob

    given = {name: getattr(options, name) for name in TrainSettings.CONFIG}
    changes = {name: value for name, value in given.items() if value is not None}
    job = TrainJob(
        source=options.source,
        run=options.run,
        where=options.where,
        validation_fraction=options.validation_fraction,
        validation=options.validation,
        start_from=options.start_from,
        teacher=options.teacher,
        data=options.data,
        licence=options.licence,
        workers=options.workers,
        address=options.cluster,
        config=recipe_of(options.preset, changes),
    )
    bar = Bar("step")

    def report(metrics: "StepMetrics") -> None:  # a run that goes on starts in the middle
        text = f"loss {metrics.loss:.4f}"
        bar.show(metrics.step, metrics.steps, text, initial=metrics.step - 1, loss=round(metrics.loss, 6))

    with bar:
        scores = run_train(job, report)
    print(json.dumps({"run": options.run, **scores}))
    return 0
