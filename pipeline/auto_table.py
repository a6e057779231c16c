"""What an evaluation says of the noise estimate and of `--strength auto`: as rows for JSON, and as a table."""

import dataclasses

from model.auto_trials import INVISIBLE_DB, AutoScores


def auto_rows(scores: AutoScores) -> list[dict[str, object]]:
    """A row for each trial, with its name and its figures."""
    named = [
        *((f"estimate, σ {each.sigma}", dataclasses.asdict(each)) for each in scores.estimates),
        *(
            (f"auto against the best fixed, σ {each.sigma}", {**dataclasses.asdict(each), "loss_db": each.loss_db})
            for each in scores.strengths
        ),
        ("clean, --strength auto", dataclasses.asdict(scores.clean)),
    ]
    return [{"trial": name, **{key: _rounded(value) for key, value in figures.items()}} for name, figures in named]


def format_auto(scores: AutoScores) -> str:
    """Three tables in Markdown: the estimate, auto against fixed strengths, and clean photos."""
    lines = [
        "| estimate, σ | median | within 12 % or 1 level | within 8 % |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {each.sigma:g} | {each.median:.2f} | {100 * each.met:.0f} % | {100 * each.close:.0f} % |"
            for each in scores.estimates
        ),
        "",
        f"| σ | left alone | auto dB (at most {INVISIBLE_DB:g}) | best fixed strength | its dB | auto loses dB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {each.sigma:g} | {100 * each.left_alone:.0f} % | {each.psnr_db:.2f} | {each.best_strength:g} "
            f"| {each.best_psnr_db:.2f} | {each.loss_db:.2f} |"
            for each in scores.strengths
        ),
        "",
        "| clean photos | left byte for byte | the others against the photo, dB: mean | worst |",
        "| ---: | ---: | ---: | ---: |",
        f"| {scores.clean.photos} | {100 * scores.clean.left_alone:.1f} % | {_db(scores.clean.rest_mean_psnr_db)} "
        f"| {_db(scores.clean.rest_worst_psnr_db)} |",
    ]
    return "\n".join(lines)


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
