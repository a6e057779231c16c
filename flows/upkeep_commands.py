"""What one does with an image set that is there: `degrain verify`, `degrain diff` and `degrain report`."""

import argparse
import json
from typing import Any

from flows.console import AddCommand, CountBar, ProgressBar, add_cluster_options

EXIT_FINDINGS = 1


def add_upkeep(commands: Any, add: AddCommand) -> None:  # Any: argparse keeps the type of its subparsers to itself
    """The commands and their options."""
    command = add(commands, "verify", verify, "read every object of an image set again, and compare it with the index")
    command.add_argument("target", metavar="TARGET", help="image set; only read, unless it is repaired")
    command.add_argument(
        "--repair",
        action="store_true",
        help="process again what is wrong, and move what is damaged or left over to TARGET/removed",
    )
    command.add_argument("--weights", metavar="NAME", help="weights that made the photos, if they are elsewhere now")
    command.add_argument("--findings", metavar="FILE", help="write all findings as Parquet")
    add_cluster_options(command)

    command = add(commands, "diff", diff, "say how two image sets of the same photos differ")
    command.add_argument("target_a", metavar="TARGET_A", help="image set; only read")
    command.add_argument("target_b", metavar="TARGET_B", help="another one, of another run or other weights")
    command.add_argument("--sample", type=float, metavar="F", help="decode and compare that share of the photos [all]")
    command.add_argument("--rows", metavar="FILE", help="write a row for each photo that both have as Parquet")
    add_cluster_options(command)

    command = add(commands, "report", report, "write one HTML page about an image set: numbers, charts, photos")
    command.add_argument("target", metavar="TARGET", help="image set; only read")
    command.add_argument("-o", "--output", required=True, metavar="FILE.html", help="the page; one there is replaced")
    command.add_argument("--photos", type=int, default=4, metavar="N", help="photos to show in each group [4]")
    command.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")


def verify(options: argparse.Namespace) -> int:
    """`degrain verify`: every object of an image set against its index; with `--repair`, made right again."""
    from pipeline.cluster import ClusterConfig
    from pipeline.repair import RepairJob, run_repair
    from pipeline.verify import VerifyJob, format_verdict, run_verify

    job = VerifyJob(
        target=options.target,
        findings=options.findings,
        cluster=ClusterConfig(address=options.cluster, workers=options.workers),
    )
    rejected = 0
    with CountBar("object") as bar, ProgressBar() as progress:
        if options.repair:
            repaired = run_repair(RepairJob(verify=job, weights=options.weights), bar, progress)
            verdict, values, rejected = repaired.after, repaired.as_dict(), repaired.rejected
        else:
            verdict = run_verify(job, bar)
            values = verdict.as_dict()
    if options.json:
        print(json.dumps(values, ensure_ascii=False))
    else:
        if options.repair and repaired.before.findings:
            print(
                f"{repaired.before.findings:,} findings: {repaired.processed:,} photos processed again, "
                f"{repaired.moved:,} objects moved to {repaired.before.target}/removed"
            )
        if rejected:
            print(
                f"{rejected:,} of these photos had a result and are rejected now: the index says why, and "
                "degrain denoise --retry-failed tries them again"
            )
        print(format_verdict(verdict))
    return EXIT_FINDINGS if verdict.findings or rejected else 0


def diff(options: argparse.Namespace) -> int:
    """`degrain diff`: how two image sets of the same photos differ."""
    from pipeline.cluster import ClusterConfig
    from pipeline.diff import DiffJob, format_difference, run_diff

    job = DiffJob(
        target_a=options.target_a,
        target_b=options.target_b,
        sample=options.sample,
        rows=options.rows,
        cluster=ClusterConfig(address=options.cluster, workers=options.workers),
    )
    with CountBar("photo") as bar:
        difference = run_diff(job, bar)
    print(json.dumps(difference.as_dict(), ensure_ascii=False) if options.json else format_difference(difference))
    return 0


def report(options: argparse.Namespace) -> int:
    """`degrain report`: what became of an image set, as one HTML page."""
    from pipeline.report import ReportJob, run_report

    facts = run_report(ReportJob(target=options.target, output=options.output, photos=options.photos))
    print(json.dumps(facts) if options.json else f"report: {facts['report']} ({facts['bytes'] / 1e6:.1f} MB)")
    return 0
