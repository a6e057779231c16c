"""Charts as SVG for a page, coloured by its style sheet; every number has its place in a text, too."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 210  # units of a chart; its text is 12 of them
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 26, 38
SPARK_WIDTH, SPARK_HEIGHT = 240, 40


@dataclass(frozen=True, slots=True)
class Series:
    """Values at equal steps, and the class that colours them."""

    name: str
    values: Sequence[float]


def draw_histogram(series: Sequence[Series], *, start: float, step: float, unit: str, summary: str) -> Markup:
    """Counts in bins of `step` from `start` on, as steps whose areas overlap; the last bin holds all beyond it, too."""
    bins = max((len(each.values) for each in series), default=0)
    top = max((max(each.values, default=0) for each in series), default=0) or 1
    width = (WIDTH - LEFT - RIGHT) / max(1, bins)
    parts = [_axis(bins, width, start, step, unit), _top(f"{top:,.0f} photo{'s' if top > 1 else ''}")]
    for each in series:
        heights = [_y(value / top) for value in each.values]
        path = f"M{LEFT},{_y(0)}" + "".join(
            f"V{height:.1f}H{LEFT + (place + 1) * width:.1f}" for place, height in enumerate(heights)
        )
        parts.append(f'<path class="area {escape(each.name)}" d="{path}V{_y(0)}Z"/>')
    return _svg("chart", WIDTH, HEIGHT, "".join(parts), summary)


def draw_timeline(values: Sequence[float], *, labels: tuple[str, str], unit: str, summary: str) -> Markup:
    """Values over time, from the first label to the last."""
    top = max(values, default=0) or 1
    width = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    path = f"M{LEFT},{_y(0)}" + "".join(
        f"V{_y(value / top):.1f}H{LEFT + (place + 1) * width:.1f}" for place, value in enumerate(values)
    )
    ends = "".join(
        f'<text x="{x}" y="{HEIGHT - 10}" text-anchor="{anchor}">{escape(label)}</text>'
        for x, anchor, label in zip((LEFT, WIDTH - RIGHT), ("start", "end"), labels, strict=True)
    )
    content = f'{_line()}{_top(f"{top:.3g} {unit}")}<path class="area after" d="{path}V{_y(0)}Z"/>{ends}'
    return _svg("chart", WIDTH, HEIGHT, content, summary)


def draw_spark(values: Sequence[float], *, summary: str) -> Markup:
    """Values over time as a line without axes."""
    top = max(values, default=0) or 1
    step = SPARK_WIDTH / max(1, len(values) - 1)
    points = [
        f"{place * step:.1f},{SPARK_HEIGHT - 3 - (SPARK_HEIGHT - 6) * value / top:.1f}"
        for place, value in enumerate([*values, *values] if len(values) == 1 else values)
    ]
    content = f'<polyline class="spark" points="{" ".join(points)}"/>'
    return _svg("spark-line", SPARK_WIDTH, SPARK_HEIGHT, content, summary, options='preserveAspectRatio="none"')


def draw_loss(rows: Sequence[Mapping[str, float | None]]) -> str:
    """The loss of a training run by its step, of its metrics; an SVG that brings its own colours, for anywhere."""
    points = [(row["step"] or 0.0, row["loss"] or 0.0) for row in rows]
    width, height, margin = 640, 280, 64
    (low_x, high_x), (low_y, high_y) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    scale_x, scale_y = (width - 2 * margin) / ((high_x - low_x) or 1), (height - 2 * margin) / ((high_y - low_y) or 1)
    line = " ".join(
        f"{margin + (each - low_x) * scale_x:.1f},{height - margin - (value - low_y) * scale_y:.1f}"
        for each, value in points
    )
    texts = [
        (margin, height - margin + 20, f"{low_x:g}", "start"),
        (width - margin, height - margin + 20, f"step {high_x:g}", "end"),
        (margin - 6, height - margin, f"{low_y:.4g}", "end"),
        (margin - 6, margin, f"{high_y:.4g}", "end"),
        (margin, margin - 14, "loss", "start"),
    ]
    labels = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, text, anchor in texts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<path d="M{margin},{margin}V{height - margin}H{width - margin}" fill="none" stroke="#888"/>'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="2"/>{labels}</svg>'
    )


def nice_step(largest: float, bins: int) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten, of which `bins` hold the largest value."""
    if largest <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(largest / bins))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * bins >= largest)


def _axis(bins: int, width: float, start: float, step: float, unit: str) -> str:
    every = max(1, round(bins / 6))
    marks = "".join(
        f'<text x="{LEFT + place * width:.1f}" y="{HEIGHT - 20}" '
        f'text-anchor="{"start" if place == 0 else "middle"}">{start + place * step:g}</text>'
        for place in range(0, bins, every)
    )
    name = f'<text class="unit" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(unit)}</text>'
    return _line() + marks + name


def _top(label: str) -> str:
    """The height of the largest value, and what it is."""
    line = f'<path class="top" d="M{LEFT},{_y(1)}H{WIDTH - RIGHT}"/>'
    return f'{line}<text x="{LEFT}" y="{_y(1) - 6}">{escape(label)}</text>'


def _line() -> str:
    return f'<path class="axis" d="M{LEFT},{_y(0)}H{WIDTH - RIGHT}"/>'


def _y(share: float) -> float:
    """Where a share of the largest value lies."""
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)


def _svg(kind: str, width: int, height: int, content: str, summary: str, *, options: str = "") -> Markup:
    return Markup(  # noqa: S704  # all that is no number is escaped
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" {options} role="img" aria-label="{escape(summary)}">'
        f"{content}</svg>"
    )
