"""Runs that are made, and simulated by what their stages cost elsewhere; and the plot of both.

Photos are noisy 8-bit PNGs. Where a GPU is stood in for, each photo waits its turn for it and stays as it is: all else
is done to it, by a worker of Ray.
"""

import dataclasses
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scale import write_small
from simulator import DriverCosts, Machine, PhotoCost, simulate_run
from stage_costs import make_run, measure_stages, one_ray

WITHIN = 0.15
FEW, COST_PHOTOS = 4, 24  # photos of the run that tells what a start takes; and of those that tell what the stages take


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kind of run. `gpu_s`: what a photo takes on a stand-in for a GPU, of which each worker has one."""

    name: str
    workers: int
    threads: int = 0
    gpu_s: float | None = None
    side_px: int = 512
    killed: float | None = None  # a worker, when that share of the photos is finished


CASES = {
    "cores": Case(name="two workers of one thread", workers=2, threads=1),
    "threads": Case(name="one worker of two threads", workers=1, threads=2),
    "killed": Case(name="two workers, of which one is killed", workers=2, threads=1, killed=0.4),
    "gpu": Case(name="one worker with a GPU", workers=1, gpu_s=0.25, side_px=128),
    "gpus": Case(name="two workers with GPUs", workers=2, gpu_s=0.25, side_px=128),
    "gpu-killed": Case(name="two with GPUs, one is killed", workers=2, gpu_s=0.25, side_px=128, killed=0.4),
}


def measure_runs(photos: Path, cases: Sequence[str], *, rounds: int, count: int, save: Path | None) -> None:
    """Predict runs and make them, for some rounds; print the medians, and keep all for a plot.

    What is kept already of other cases stays.
    """
    found: dict[str, list[dict[str, Any]]] = json.loads(save.read_text()) if save and save.exists() else {}
    with tempfile.TemporaryDirectory(prefix="degrain-") as name, one_ray():
        folder = Path(name)
        for side_px in {CASES[case].side_px for case in cases}:
            for part, number in (("run", count), ("few", FEW), ("costs", COST_PHOTOS)):
                write_small(photos, folder / f"{part}-{side_px}", number, side_px)
        for case in cases:
            found[CASES[case].name] = []
        for turn in range(rounds):
            known: dict[tuple[int, float | None], tuple[Machine, PhotoCost, DriverCosts]] = {}
            for case in map(CASES.__getitem__, cases):
                kind = case.workers, case.gpu_s
                if kind not in known:
                    known[kind] = costs_for(case, folder, turn)
                found[case.name].append(hold_against(case, *known[kind], folder, turn, count))
                print(turn + 1, case.name, brief(found[case.name][-1]), file=sys.stderr, flush=True)
    print(table(found))
    if save:
        save.write_text(json.dumps(found))


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        f"{'medians':40} {'photos':>6} {'predicted s':>11} {'measured s':>10} {'ratio':>5} {'CPU ratio':>9} "
        f"{'cores left':>10}  within {WITHIN:.0%}?  ratios of the rounds"
    ]
    for name, rounds in found.items():
        if not rounds:
            continue
        middle = {key: statistics.median(each[key] for each in rounds) for key in NUMBERS}
        is_within = "yes" if abs(middle["ratio"] - 1) <= WITHIN else "NO"
        lines.append(
            f"{name:40} {middle['photos']:6.0f} {middle['predicted_s']:11.1f} {middle['measured_s']:10.1f} "
            f"{middle['ratio']:5.2f} {middle['cpu_ratio']:9.2f} {middle['free_cores']:10.2f}  {is_within:11}  "
            + ", ".join(f"{each['ratio']:.2f}" for each in rounds)
        )
    return "\n".join(lines)


NUMBERS = ("photos", "predicted_s", "measured_s", "ratio", "cpu_ratio", "free_cores")


def brief(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {found[name]:.2f}" for name in NUMBERS)


def costs_for(case: Case, folder: Path, turn: int) -> tuple[Machine, PhotoCost, DriverCosts]:
    """From photos without a run, and from a run of few photos for what the start of a worker takes."""
    stages = measure_stages(
        folder / f"costs-{case.side_px}", processes=case.workers, threads=case.threads or 1, gpu_s=case.gpu_s
    )
    cost = PhotoCost(
        before_s=stages.before_s,
        network_s=stages.network_s,
        after_s=stages.after_s,
        write_s=stages.write_s,
        source_bytes=stages.source_bytes,
        output_bytes=stages.output_bytes,
        decoded_bytes=stages.decoded_bytes,
    )
    few = make_run(
        folder / f"few-{case.side_px}", folder / f"few-{turn}-{case.name}", workers=case.workers, gpu_s=case.gpu_s
    )
    machine = Machine(cores=few.free_cores, threads=case.threads)
    start_core_s = max(0.0, (few.worker_cpu_s - FEW * core_seconds(cost, case.threads)) / case.workers)
    costs = DriverCosts(commit_s=stages.commit_s, start_core_s=start_core_s)
    without = simulate_run(FEW, case.workers, machine, cost, costs)
    return machine, cost, dataclasses.replace(costs, start_s=max(0.0, few.seconds - without.seconds))


def core_seconds(cost: PhotoCost, threads: int) -> float:
    return cost.before_s + cost.after_s + threads * cost.network_s


def hold_against(
    case: Case, machine: Machine, cost: PhotoCost, costs: DriverCosts, folder: Path, turn: int, photos: int
) -> dict[str, Any]:
    """Make a run, and simulate it with the cores that were left to it."""
    killed_at = None if case.killed is None else int(case.killed * photos)
    target = folder / f"{turn}-{case.name}"
    run = make_run(folder / f"run-{case.side_px}", target, workers=case.workers, gpu_s=case.gpu_s, killed_at=killed_at)
    assert run.inputs == photos
    machine = dataclasses.replace(machine, cores=run.free_cores)
    simulated = simulate_run(photos, case.workers, machine, cost, costs, killed_at=killed_at)
    starts = case.workers + (killed_at is not None)
    cpu_s = len(simulated.finished_s) * core_seconds(cost, case.threads) + starts * costs.start_core_s
    return {
        "photos": photos,
        "predicted_s": simulated.seconds,
        "measured_s": run.seconds,
        "ratio": simulated.seconds / run.seconds,
        "cpu_ratio": cpu_s / run.worker_cpu_s,
        "free_cores": run.free_cores,
        "predicted_finished_s": thinned(simulated.finished_s, 60),
        "measured_finished_s": thinned(run.finished_s, 14),
        "costs": dataclasses.asdict(cost) | dataclasses.asdict(costs),
    }


def thinned(values: Sequence[float], most: int) -> list[tuple[float, int]]:
    """Some of them, evenly spread, each with its place."""
    places = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))
    return [(round(float(values[place]), 3), int(place) + 1) for place in places]


def draw(measured: dict[str, list[dict[str, Any]]], lines: dict[float, list[tuple[int, float, float]]]) -> bytes:
    """The plot as SVG: runs made beside runs simulated, and nights by GPUs; readable on light and on dark."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    from pipeline.score_plot import COLOURS, GRID, INK, MARKS

    with rc_context({"svg.hashsalt": "degrain", "text.color": INK, "axes.labelcolor": INK, "font.size": 10}):
        figure = Figure(figsize=(10 if measured else 6, 4.2), layout="constrained")
        *rest, nights = np.atleast_1d(figure.subplots(1, 2 if measured else 1))
        for panel in rest:
            _draw_runs(panel, measured)
        for number, (photos, points) in enumerate(lines.items()):
            gpus, calm, stormy = zip(*points, strict=True)
            colour = COLOURS[number]
            nights.plot(gpus, calm, color=colour, marker=MARKS[number], markersize=4.5, label=f"{photos:,.0f} photos")
            nights.plot(gpus, stormy, color=colour, linestyle=":", linewidth=1.4)
        nights.set_xscale("log", base=2)
        nights.set_yscale("log")
        nights.set_xticks(gpus, [str(each) for each in gpus])
        nights.set_xlabel("GPUs; dotted with failures")
        nights.set_ylabel("nights")
        for panel in (*rest, nights):
            panel.patch.set_visible(False)
            panel.grid(color=GRID, linewidth=0.8)
            panel.tick_params(colors=INK, length=0, which="both")
            panel.spines[:].set_visible(False)
            panel.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.patch.set_visible(False)
        metadata = {"Date": None, "Title": "Runs predicted and measured; nights of an archive by GPUs"}
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    return buffer.getvalue()


def _draw_runs(panel: Any, measured: dict[str, list[dict[str, Any]]]) -> None:  # Any: matplotlib's Axes
    from pipeline.score_plot import COLOURS, MARKS

    for number, (name, rounds) in enumerate(measured.items()):
        middle = sorted(rounds, key=lambda each: each["ratio"])[len(rounds) // 2]
        colour = COLOURS[number]
        panel.plot(*zip(*middle["predicted_finished_s"], strict=True), color=colour, linewidth=1.4)
        panel.plot(
            *zip(*middle["measured_finished_s"], strict=True),
            linestyle="",
            marker=MARKS[number],
            markersize=4.5,
            color=colour,
            label=f"{name}: {middle['ratio']:.2f}",
        )
    panel.set_xlabel("seconds: lines are predicted, marks are measured")
    panel.set_ylabel("photos finished")
