"""Events that automations wait for, beside Prefect's own of failed runs."""

from enum import StrEnum
from hashlib import sha256

from prefect.events import emit_event

from flows.settings import RunSettings, Values

TOO_MANY_REJECTED = "degrain.too-many-rejected"


class Ending(StrEnum):
    """Names of our own for states in which a run is completed: Prefect's events tell a state by its name."""

    NOTHING_NEW = "NothingNew"
    NOT_BETTER = "NotBetter"


def rejected_fraction(summary: Values) -> float:
    """Share of what a run processed that it rejected; of a run that had nothing to do, 0."""
    processed = summary["inputs"] - summary["up_to_date"] - summary["rejected_before"]
    return float(summary["rejected"] / processed) if processed else 0.0


def tell_of_rejects(summary: Values, settings: RunSettings) -> None:
    """Send an event if a run rejected more than its settings take for ordinary."""
    fraction = rejected_fraction(summary)
    if fraction <= settings.notify_rejected_fraction:
        return
    emit_event(
        TOO_MANY_REJECTED,
        resource={
            "prefect.resource.id": f"degrain.target.{sha256(settings.target.encode()).hexdigest()[:12]}",
            "prefect.resource.name": settings.target,
        },
        payload={"rejected": summary["rejected"], "fraction": round(fraction, 4), "run": summary["run"]},
    )
