"""The command `degrain`: parses, calls the jobs, prints. Heavy libraries are imported inside the commands."""

import argparse
import errno
import json
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from flows.console import Bar, LogHandler, Options, ProgressBar, add_cluster_options, add_settings_option
from flows.settings_file import complete
from flows.standard_streams import output_written, prepare_process
from flows.train_command import add_train, train
from flows.upkeep_commands import add_upkeep
from flows.weights_commands import add_evaluate, add_registry_option, add_weights, evaluate, weights_of
from pipeline.errors import EXIT_CALL, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from pipeline.redaction import printable, redacted

if TYPE_CHECKING:
    from model.strength import Strength
    from pipeline.forecast import ForecastOptions, Outlook
    from pipeline.work import Progress, Summary

J = TypeVar("J")

OF_COLLECTIONS = (  # options of `degrain denoise` that mean nothing for one photo
    *("layout", "key_table", "where", "limit", "sample", "retry_failed", "max_rejected_fraction", "photo_timeout_s"),
    *("workers", "cluster", "sample_photos", "price_per_hour", "gpu_megapixels_per_s"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; errors are one line on standard error."""
    if arguments is None:
        prepare_process()
    try:
        with output_written():
            parser = _parser()
            options = parser.parse_args(arguments)
            _start_log(options)
            _interrupt_on_signals()
            if hasattr(options, "settings"):
                options = complete(parser, arguments, options)
            return int(options.command(options))
    except KeyboardInterrupt as interrupt:
        _say_last(str(interrupt) or "interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read has seen enough
        return EXIT_FAILED
    except Exception as error:  # the edge: every failure is one line here
        logging.getLogger(__name__).info("traceback", exc_info=error)
        _say_last(_told(error))
        return EXIT_CALL if isinstance(error, ValueError) else EXIT_FAILED


def denoise(options: argparse.Namespace) -> int:
    """`degrain denoise`: a collection through a Ray cluster, or one photo in this process."""
    from pipeline.denoise import DenoiseConfig
    from pipeline.images import Limits
    from pipeline.one_photo import denoise_one, find_photo
    from pipeline.room import keep_freed_memory

    config = DenoiseConfig(
        strength=options.strength,
        keeps_grain=options.keep_grain,
        limits=Limits.of_megapixels(options.max_megapixels),
    )
    if (photo := find_photo(options.source)) is None:
        return _denoise_collection(options, config)
    given = [name for name in OF_COLLECTIONS if getattr(options, name) != options.parser.get_default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{names}: for collections alone, and {photo} is one photo")
    if options.dry_run:
        plan = {"photo": photo, "output": options.target}
        print(json.dumps(plan) if options.json else f"{photo} is one photo: it would be denoised into {options.target}")
        return EXIT_OK
    keep_freed_memory()
    record = denoise_one(photo, options.target, weights=weights_of(options), config=config)
    reason = f" ({record['reason']})" if record["reason"] else ""
    print(json.dumps(record) if options.json else f"{record['outcome']}{reason}: {record['output']}")
    return EXIT_OK


def ingest(options: argparse.Namespace) -> int:
    """`degrain ingest`: a collection into the Parquet shards of an image set."""
    from pipeline.ingest import IngestConfig, IngestJob, forecast_ingest, run_ingest

    job = IngestJob(
        **_of_collection(options), ingest=IngestConfig(resize_px=options.resize, min_side_px=options.min_side)
    )
    return _forecast(job, forecast_ingest, options) if options.dry_run else _run(job, run_ingest, options)


def demo(options: argparse.Namespace) -> int:
    """`degrain demo`: noise on the photos that ship, the true `denoise` on them, and what was gained."""
    from pathlib import Path

    from pipeline.demo import format_table, run_demo
    from pipeline.jobs import DenoiseJob, run_denoise

    def run(source: Path, target: Path) -> None:
        job = DenoiseJob(source=str(source), target=str(target), weights=weights_of(options))
        _say_on_terminal("denoising four photos with camera noise …")
        with ProgressBar() as progress:
            run_denoise(job, progress)

    result = run_demo(Path(options.folder), run)
    print(format_table(result.scores))
    print(f"\nbefore and after: {result.picture}")
    return EXIT_OK


def up(options: argparse.Namespace) -> int:
    """`degrain up`: the flows and all that they need, on this machine."""
    from pathlib import Path

    from flows.serve import UpConfig
    from flows.serve import up as serve

    config = UpConfig(
        folder=Path(options.folder).expanduser(), port=options.port, ray_port=options.ray_port, has_s3=options.s3
    )
    serve(config, lambda line: print(line, flush=True))
    return EXIT_OK


def _denoise_collection(options: argparse.Namespace, config: Any) -> int:  # Any: DenoiseConfig, imported late
    from pipeline.jobs import DenoiseJob, forecast_denoise, run_denoise
    from pipeline.records import Layout

    job = DenoiseJob(
        **_of_collection(options), weights=weights_of(options), layout=Layout(options.layout), denoise=config
    )
    return _forecast(job, forecast_denoise, options) if options.dry_run else _run(job, run_denoise, options)


def _of_collection(options: argparse.Namespace) -> dict[str, Any]:  # Any: the fields of a CollectionJob
    from pipeline.cluster import ClusterConfig

    names = ("source", "target", "key_table", "where", "limit", "sample", "retry_failed", "max_rejected_fraction")
    cluster = ClusterConfig(address=options.cluster, workers=options.workers, photo_timeout_s=options.photo_timeout_s)
    return {**{name: getattr(options, name) for name in names}, "cluster": cluster}


def _forecast(job: J, look: "Callable[[J, ForecastOptions], Outlook]", options: argparse.Namespace) -> int:
    """Say what a job would do, and what it will take."""
    from pipeline.forecast import ForecastOptions, format_outlook

    _say_on_terminal(f"looking for what is new in {options.source}, and trying photos of it …")
    outlook = look(
        job,
        ForecastOptions(
            sample_photos=options.sample_photos,
            gpu_megapixels_per_s=options.gpu_megapixels_per_s,
            price_per_hour=options.price_per_hour,
        ),
    )
    print(json.dumps(outlook.as_dict()) if options.json else format_outlook(outlook))
    return EXIT_OK


def _run(job: J, run: "Callable[[J, Callable[[Progress], None]], Summary]", options: argparse.Namespace) -> int:
    """Do a job, and say how it ended."""
    _say_on_terminal(f"looking for what is new in {options.source} …")
    with ProgressBar() as progress:
        summary = run(job, progress)
    print(json.dumps(summary.as_dict()) if options.json else _summary_text(summary, options.target))
    return EXIT_OK


def _start_log(options: argparse.Namespace) -> None:
    handler = LogHandler()
    Bar.is_drawn = not options.log_json
    if options.log_json:
        from pipeline.events import JsonLines

        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logging.INFO if options.verbose else logging.ERROR
    if hasattr(options, "warns") and not options.verbose:
        level = logging.WARNING
        handler.addFilter(lambda record: record.levelno > level or record.name.startswith(("pipeline.", "model.")))
    logging.basicConfig(level=level, handlers=[handler])


def _summary_text(summary: "Summary", target: str) -> str:
    before = f"; {summary.rejected_before:,} were rejected before" if summary.rejected_before else ""
    if not any(summary.outcomes.values()):
        return f"nothing to do: {summary.up_to_date:,} photos are up to date in {target}{before}"
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in summary.outcomes.items())
    lines = [
        f"{summary.inputs:,} photos: {outcomes}, {summary.up_to_date:,} up to date{before}",
        f"{summary.megapixels:,.1f} megapixels in {summary.seconds:,.1f} s: {summary.images_per_second:.2f} images/s, "
        f"{summary.megapixels_per_second:.2f} megapixels/s",
        f"index: {summary.index} (outcome and reason of every photo)",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="degrain", description="Cleans whole photo archives.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = _command(commands, "denoise", denoise, "denoise a collection of photos, or one photo")
    _denoise_options(command)
    command.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and write nothing: degrain plan"
    )

    command = _command(commands, "plan", denoise, "say what denoise would do and what it will take, and write nothing")
    _denoise_options(command)
    command.set_defaults(dry_run=True)

    command = _command(commands, "ingest", ingest, "pack a collection of photos into Parquet shards")
    command.add_argument("source", nargs="?", metavar="SOURCE", help="folder, URL (s3://…) or image set; only read")
    command.add_argument("target", nargs="?", metavar="TARGET", help="where the image set is made or goes on")
    add_settings_option(command, "ingest")
    command.add_argument(
        "--resize",
        type=int,
        metavar="N",
        help="pack 8-bit PNGs, upright, whose shorter side has N pixels; never enlarged [the bytes as they are]",
    )
    command.add_argument("--min-side", type=int, metavar="N", help="skip photos with a side shorter than N pixels")
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    _run_options(command)

    add_upkeep(commands, _command)

    command = _command(commands, "demo", demo, "add camera noise to the photos that ship, and remove it")
    command.add_argument("folder", metavar="FOLDER", help="where the photos and a before/after picture are written")
    _weights_option(command)

    command = _command(commands, "train", train, "train a network on clean photos")
    command.set_defaults(warns=True)  # such as of photos that are left out: it changes what comes of the training
    add_train(command)

    command = _command(commands, "evaluate", evaluate, "measure weights on clean photos with known noise")
    command.set_defaults(warns=True)
    add_evaluate(command)
    add_weights(commands, _command)

    command = _command(commands, "up", up, "serve the flows, with a Prefect server and Ray, on this machine")
    command.add_argument("--folder", default="degrain-up", metavar="FOLDER", help="for databases and logs [degrain-up]")
    command.add_argument("--port", type=int, default=4200, metavar="N", help="port of Prefect; 0 for any [4200]")
    command.add_argument(
        "--ray-port", type=int, default=8265, metavar="N", help="port of Ray's dashboard; 0 for any [8265]"
    )
    command.add_argument("--s3", action="store_true", help="also an S3 server, with sample photos in it")
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what was wrong with a call in one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # Any: argparse's own
        """The command that does not know an option says so, and names the help that has all of its options."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        _say(f"{message} (see: {self.prog} --help)")
        raise SystemExit(EXIT_CALL)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"degrain {version('degrain')}")
        parser.exit()


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    # Any: argparse keeps the type of its subparsers to itself
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(command=run)
    command.add_argument(
        "--verbose", action="store_true", help="a line on standard error for each shard, and tracebacks"
    )
    command.add_argument(
        "--log-json",
        action="store_true",
        help="log, progress and errors on standard error as JSON objects, a line each",
    )
    return command


def _denoise_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source", nargs="?", metavar="SOURCE", help="folder, URL (s3://…), image set, or one photo; only read"
    )
    command.add_argument(
        "target", nargs="?", metavar="TARGET", help="where the image set is made or goes on; a file for one photo"
    )
    add_settings_option(command, "denoise")
    photo = command.add_argument_group("what becomes of a photo")
    _weights_option(photo)
    photo.add_argument(
        "--strength",
        type=_strength,
        default="auto",
        metavar="auto|0..1",
        help="follow the noise and leave clean photos as they are, or apply that share of the network's correction "
        "to every photo [auto]",
    )
    photo.add_argument("--keep-grain", action="store_true", help="denoise the colour alone, and keep the luminance")
    photo.add_argument(
        "--max-megapixels",
        type=float,
        default=400.0,
        metavar="N",
        help="reject larger photos; a TIFF may be larger than memory [400]",
    )
    photo.add_argument(
        "--layout",
        choices=["files", "packed"],
        default="files",
        help="the same names under images/, or Parquet shards [files]",
    )
    _run_options(command)


def _run_options(command: argparse.ArgumentParser) -> None:
    which = command.add_argument_group("which photos")
    which.add_argument(
        "--key-table",
        metavar="TABLE",
        help="list SOURCE by a Parquet or CSV table, or by the manifest.json of an S3 Inventory",
    )
    which.add_argument(
        "--where", default="", metavar="SQL", help="take these photos of an image set, as in 'iso <= 400' [all]"
    )
    which.add_argument("--limit", type=int, metavar="N", help="process N photos, and leave the rest to the next run")
    which.add_argument(
        "--sample", type=float, metavar="F", help="process that share of what is to be done, such as 0.001 [all]"
    )
    which.add_argument("--retry-failed", action="store_true", help="try photos again that were rejected before")
    limits = command.add_argument_group("when to give up")
    limits.add_argument(
        "--max-rejected-fraction",
        type=float,
        default=1.0,
        metavar="F",
        help="fail as soon as more than this share of a plan is rejected [1]",
    )
    limits.add_argument(
        "--photo-timeout-s", type=float, default=3600.0, metavar="S", help="reject photos that take longer [3600]"
    )
    add_cluster_options(command)
    plan = command.add_argument_group("what a plan tells")
    plan.add_argument("--sample-photos", type=int, default=16, metavar="N", help="photos to measure; 0 for none [16]")
    plan.add_argument("--price-per-hour", type=float, metavar="PRICE", help="hourly price of all machines together")
    plan.add_argument(
        "--gpu-megapixels-per-s",
        type=float,
        metavar="SPEED",
        help="assumed speed of a GPU: says how many cores keep it busy",
    )


def _weights_option(command: Options) -> None:
    command.add_argument("--weights", default="photo", metavar="NAME", help="name, path or URL of weights [photo]")
    add_registry_option(command)


def _strength(text: str) -> "Strength":
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number from 0 to 1") from error


def _interrupt_on_signals() -> None:
    """A SIGTERM is an interrupt, and so is a terminal that closes: what was started is stopped on the way out."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # `nohup` has it ignored
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(*_: object) -> NoReturn:
    for each in (signal.SIGTERM, signal.SIGHUP):  # more of them, as of a terminal and its shell, disturb no way out
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of a store, it is a StorageError
        return f"no space is left for temporary files in {tempfile.gettempdir()}: make some, or name another by TMPDIR"
    return printable(" ".join(str(error).split())) or type(error).__name__


def _say_on_terminal(text: str) -> None:
    """To whom waits there: a large archive is listed for minutes, and Ray starts for seconds, before a bar is drawn."""
    if sys.stderr.isatty() and Bar.is_drawn:
        _say(printable(redacted(text)))


def _say_last(text: str) -> None:
    """Why the command ends: of a log in JSON, this is a line of it too."""
    if Bar.is_drawn:
        _say(text)
    else:
        logging.getLogger(__name__).error("%s", text)


def _say(text: str) -> None:
    print(f"degrain: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
