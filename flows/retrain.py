"""The flow `retrain`: ingest, train, evaluate beside the weights in use, and promote what is better."""

from dataclasses import asdict

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.artifacts import show_card, show_comparison, show_evaluation, show_summary, show_training
from flows.events import Ending
from flows.run_names import retrain_name
from flows.settings import RetrainSettings, Values
from flows.stages import HOOKS, run_stage


@flow(name="retrain", flow_run_name=retrain_name, persist_result=False, **HOOKS)
def retrain(settings: RetrainSettings) -> Values | State[Values]:
    """Train weights on what was ingested, and use them from now on if they are better than those in use.

    Args:
        settings: What to ingest, how to train, and what the new weights must show.
    """
    asked = {"place": settings.promoted, "otherwise": settings.incumbent or "photo", "photos": settings.held_out}
    run_stage("check", "incumbent", asked, settings.ray)  # hours before they are needed
    ingested = run_stage("ingest", "ingest", settings.ingest.job, settings.ingest.ray)
    show_summary("ingest", ingested, settings.ingest.target)
    trained = run_stage("train", "train", settings.train.job, settings.train.ray)
    show_training("train", trained)

    incumbent = run_stage("incumbent", "incumbent", asked, settings.ray)
    if incumbent["sha256"] == trained["sha256"]:
        return Completed(message="these weights are in use already", name=Ending.NOTHING_NEW)
    both: Values = {"weights": trained["weights"], "against": [incumbent["weights"]]}  # at once: the photos may change
    both |= {"photos": settings.held_out, "limit": settings.held_out_photos}
    rows: list[Values] = run_stage("evaluate", "evaluate", both, settings.ray)["rows"]
    candidate_rows = [row for row in rows if row["weights"] == trained["sha256"]]
    incumbent_rows = [row for row in rows if row["weights"] != trained["sha256"]]
    show_evaluation("candidate", candidate_rows)
    show_evaluation("in-use", incumbent_rows)
    return _promote_if_better(settings, trained, candidate_rows, incumbent_rows, instead_of=incumbent["sha256"])


def _promote_if_better(
    settings: RetrainSettings,
    trained: Values,
    candidate_rows: list[Values],
    incumbent_rows: list[Values],
    *,
    instead_of: str,
) -> Values | State[Values]:
    from pipeline.comparison import compare

    found = compare(
        candidate_rows, incumbent_rows, least_mean_db=settings.min_gain_db, largest_loss_db=settings.max_loss_db
    )
    told = f"mean {found.mean_db:+.3f} dB, worst {found.worst_db:+.3f} dB"
    if not found.is_better:
        show_comparison("retrain", found.gains_db, f"Not promoted: {told}.")
        return Completed(message=f"not better: {told}", name=Ending.NOT_BETTER)
    asked = {
        "weights": trained["weights"],
        "to": settings.promoted,
        "because": f"retrained: {told}",
        "instead_of": instead_of,
        "gains_db": found.gains_db,
    }
    promoted = run_stage("promote", "promote", asked, settings.ray)
    show_comparison("retrain", found.gains_db, f"Promoted to `{settings.promoted}`: {told}.")
    show_card("promoted", trained["card"], trained["sha256"], settings.promoted)
    return {**promoted, **asdict(found)}
