"""What the Prefect UI shows of a flow beside its log: tables, pictures, curves, the card of weights."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import artifacts

from flows.patience import patiently
from pipeline.charts import draw_loss
from pipeline.redaction import printable

create_image_artifact = patiently(artifacts.create_image_artifact)
create_link_artifact = patiently(artifacts.create_link_artifact)
create_markdown_artifact = patiently(artifacts.create_markdown_artifact)
create_table_artifact = patiently(artifacts.create_table_artifact)

Row = Mapping[str, Any]  # Any: JSON


def show_plan(stage: str, plan: Row) -> None:
    """What a run would do: photos, bytes and megapixels by status."""
    rows = [
        {
            "status": status.replace("_", " "),
            "photos": f"{amount['photos']:,}",
            "MB": f"{amount['size_bytes'] / 1e6:,.1f}",
            "megapixels": f"{amount['megapixels']:,.1f}" if amount["megapixels"] else "",
        }
        for status, amount in plan["photos"].items()
    ]
    _show_table(rows, key=f"{stage}-table", description=f"What there is, in {plan['shards']:,} shards.")


def show_summary(stage: str, summary: Row, target: str) -> None:
    """How a run ended, number by number."""
    rows = [{"what": key.replace("_", " "), "value": _text(value)} for key, value in summary.items()]
    _show_table(rows, key=f"{stage}-summary", description=f"`{target}`")
    if (link := web_address(f"{target.rstrip('/')}/manifest.json")) is not None:
        create_link_artifact(link, "manifest.json", key=f"{stage}-manifest", description=f"The image set `{target}`.")


def show_rejected(stage: str, reasons: Mapping[str, int], rows: Sequence[Row]) -> None:
    """The rejected photos of an index: how many for which reason, and the newest of them by name."""
    if not reasons:
        return
    counted = [{"photos": f"{count:,}", "reason": reason} for reason, count in reasons.items()]
    _show_table(counted, key=f"{stage}-reasons", description="Why photos were rejected.")
    _show_table(
        [{"photo": row["key"], "reason": row["reason"]} for row in rows],
        key=f"{stage}-rejected",
        description=f"The newest {len(rows):,} of {sum(reasons.values()):,} rejected photos.",
    )


def show_pictures(stage: str, pictures: Sequence[Row]) -> None:
    """Details of photos before and after, inline."""
    if not pictures:
        return
    parts = [
        f"**{_escaped(picture['key'])}**: noise σ {picture['noise_sigma_before']:.1f} → "
        f"{picture['noise_sigma_after']:.1f}\n\n![before and after]({picture['data_url']})"
        for picture in pictures
    ]
    create_markdown_artifact(
        "\n\n".join(["Left before, right after; not scaled.", *parts]),
        key=f"{stage}-before-after",
        description="Details of the noisiest photos.",
    )
    create_image_artifact(pictures[0]["data_url"], key=f"{stage}-noisiest", description=_escaped(pictures[0]["key"]))


def show_canary(stage: str, canary: Row, failures: Sequence[str]) -> None:
    """How a canary went, and which gates it did not pass."""
    verdict = "passed" if not failures else "**stopped here**: " + "; ".join(failures)
    lines = [f"| {key.replace('_', ' ')} | {_text(value)} |" for key, value in canary.items() if key != "reasons"]
    reasons = [f"| rejected: {_escaped(reason)} | {count} |" for reason, count in canary["reasons"].items()]
    create_markdown_artifact(
        "\n".join([f"The canary {verdict}.", "", "| | |", "|---|---|", *lines, *reasons]),
        key=f"{stage}-gates",
        description="Photos of the plan, drawn at random and denoised; nothing was written.",
    )


def show_verdict(stage: str, verdict: Row) -> None:
    """What was looked at, and what is not as the index says: by kind, and the first of them one by one."""
    rows = [{"what": "objects that were read", "count": f"{verdict['objects']:,}"}]
    rows += [{"what": f"found: {kind}", "count": f"{count:,}"} for kind, count in verdict["kinds"].items()]
    _show_table(rows, key=f"{stage}-findings", description=f"{verdict['findings']:,} findings.")
    if verdict["first"]:
        _show_table(verdict["first"], key=f"{stage}-first", description="The first findings.")


def show_report(stage: str, page: Row, *, link_days: float) -> None:
    """Where the page about an image set lies; a link, where one was signed, or a browser opens it anyway."""
    place, description = page["report"], "The page about the image set."
    if (link := page.get("link")) is not None:
        description = f"`{place}`; the link works for {link_days:g} days, for whoever has it."
    elif (link := web_address(place)) is None:
        create_markdown_artifact(f"`{place}`", key=f"{stage}-page", description=f"{description} Open it from there.")
        return
    create_link_artifact(link, "the report", key=f"{stage}-page", description=description)


def show_training(stage: str, trained: Row) -> None:
    """The curve of a training run, and the card of its weights."""
    metrics = trained["metrics"]
    if len(metrics) > 1:
        curve = f"data:image/svg+xml;base64,{base64.b64encode(draw_loss(metrics).encode()).decode()}"
        create_markdown_artifact(f"![loss by step]({curve})", key=f"{stage}-curve", description="Training loss.")
    show_card(stage, trained["card"], trained["sha256"], trained["weights"])


def show_card(stage: str, card: Row, sha256: str, place: str) -> None:
    """What weights say of themselves."""
    lines = [f"| {key} | {_escaped(_text(value))} |" for key, value in card.items()]
    create_markdown_artifact(
        "\n".join([f"`{place}`", "", "| | |", "|---|---|", f"| sha256 | `{sha256[:16]}` |", *lines]),
        key=f"{stage}-card",
        description="The card of the weights.",
    )


def show_evaluation(stage: str, rows: Sequence[Row]) -> None:
    """The scores of weights by trial."""
    table = [
        {
            "trial": row["trial"],
            "noisy dB": f"{row['noisy_psnr_db']:.2f}",
            "dB": f"{row['psnr_db']:.2f}",
            "gain": f"{row['gain_db']:+.2f}",
            "SSIM": f"{row['ssim']:.4f}",
            "photos": row["photos"],
        }
        for row in rows
    ]
    _show_table(table, key=f"{stage}-scores", description="PSNR against the clean photo.")


def show_comparison(stage: str, gains_db: Mapping[str, float], verdict: str) -> None:
    """How much better or worse the candidate is, trial by trial."""
    lines = [f"| {trial} | {gain:+.3f} |" for trial, gain in gains_db.items()]
    create_markdown_artifact(
        "\n".join([verdict, "", "| trial | candidate − incumbent, dB |", "|---|---|", *lines]),
        key=f"{stage}-comparison",
        description="The weights that were trained, beside those in use.",
    )


def web_address(url: str) -> str | None:
    """Where a browser opens it; None where only storage libraries can."""
    return url if re.match(r"https?://", url) else None


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def _show_table(rows: Sequence[Row], *, key: str, description: str) -> None:
    """A table of text as it is: the pages of Prefect take every cell for Markdown."""
    shown = [{name: _escaped(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows]
    create_table_artifact(shown, key=key, description=description)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, an address of the web too: keys are what strangers chose."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~:@&]|^[-=]|(?<=www)\.)", r"\\\1", printable(" ".join(text.split())))
