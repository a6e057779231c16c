"""The plot of an evaluation: what each denoiser gained, left of the noise and lost of the detail, as an SVG."""

import io
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.scores import Row

# Told apart by people who see no red or green too (Okabe and Ito 2008), and on white as on black.
COLOURS = ("#0d84d1", "#e08a00", "#009e73", "#cc79a7", "#8a8a00", "#56b4e9", "#d55e00")
MARKS = "osD^vPX"
INK, GRID = "#7d8590", "#7d859040"


def draw_scores(rows: Sequence[Row]) -> bytes:
    """A line for each kind of noise, a mark for each denoiser; readable on light and on dark.

    A denoiser that was tried on fewer photos stands as far from the first one as it does on those photos.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.trial != "clean"] or rows
    trials = list(dict.fromkeys(row.trial for row in rows))
    with (
        rc_context({"svg.hashsalt": "degrain", "text.color": INK, "axes.labelcolor": INK, "font.size": 10}),
        rc_context({"text.parse_math": False}),  # weights may be called what matplotlib takes for a formula
    ):
        figure = Figure(figsize=(10, 1.3 + 0.42 * len(trials)), layout="constrained")
        panels: Any = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))  # Any: matplotlib knows not how many
        _draw(panels[0], rows, trials, _gain_db(rows), "gain over the noisy photo, dB")
        _draw(panels[1], rows, trials, lambda row: 100 * row.mean.noise_left, "noise left, %")
        _draw(panels[2], rows, trials, lambda row: 100 * row.mean.detail_lost, "detail lost, %")
        marks = panels[0].collections[::-1]  # all: by itself, matplotlib leaves out names that begin with "_"
        names = [mark.get_label() for mark in marks]
        figure.legend(marks, names, loc="outside upper center", ncols=len(names), frameon=False)
        buffer = io.BytesIO()
        figure.patch.set_visible(False)
        metadata = {"Date": None, "Title": "PSNR gained, noise left and detail lost"}
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    return buffer.getvalue()


def _draw(
    panel: Any,  # Any: matplotlib's Axes, which is imported late
    rows: Sequence[Row],
    trials: Sequence[str],
    value: Callable[[Row], float],
    label: str,
) -> None:
    """One panel. The first denoiser is drawn last, above the others."""
    names = list(dict.fromkeys(row.denoiser for row in rows))
    height = {trial: len(trials) - 1 - number for number, trial in enumerate(trials)}
    for number, name in reversed(list(enumerate(names))):
        own = [row for row in rows if row.denoiser == name]
        panel.scatter(
            [value(row) for row in own],
            [height[row.trial] for row in own],
            s=70 if number == 0 else 42,
            marker=MARKS[number % len(MARKS)],
            color=COLOURS[number % len(COLOURS)],
            label=_label(own, rows),
            zorder=3,
            clip_on=False,
        )
    panel.set_yticks(list(height.values()), list(height))
    panel.set_ylim(-0.6, len(trials) - 0.4)
    panel.set_xlabel(label)
    panel.patch.set_visible(False)
    panel.axvline(0, color=INK, linewidth=0.8)
    panel.grid(color=GRID, linewidth=0.8)
    panel.tick_params(colors=INK, length=0)
    panel.spines[:].set_visible(False)


def _gain_db(rows: Sequence[Row]) -> Callable[[Row], float]:
    first = rows[0].denoiser
    gains_db = {row.trial: row.mean.gain_db for row in rows if row.denoiser == first}
    return lambda row: gains_db[row.trial] - row.behind_db


def _label(own: Sequence[Row], rows: Sequence[Row]) -> str:
    photos = own[0].photos
    return own[0].denoiser if photos == rows[0].photos else f"{own[0].denoiser} ({photos} photos)"
