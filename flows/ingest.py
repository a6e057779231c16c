"""The flow `ingest`: what is new or changed in a collection, packed by one Ray job."""

from prefect import flow

from flows.artifacts import show_summary
from flows.events import tell_of_rejects
from flows.run_names import ingest_name
from flows.settings import IngestSettings, Values
from flows.stages import HOOKS, run_stage


@flow(name="ingest", flow_run_name=ingest_name, persist_result=False, **HOOKS)
def ingest(settings: IngestSettings) -> Values:
    """Pack what is new or changed in a collection of photos into Parquet shards, with an index.

    Args:
        settings: What to pack, and how.
    """
    summary = run_stage("ingest", "ingest", settings.job, settings.ray)
    show_summary("ingest", summary, settings.target)
    tell_of_rejects(summary, settings)
    return summary
