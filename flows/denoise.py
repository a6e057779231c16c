"""The flow `denoise`: what is new or changed in a collection, denoised by one Ray job."""

from prefect import flow

from flows.artifacts import show_summary
from flows.events import tell_of_rejects
from flows.run_names import denoise_name
from flows.settings import DenoiseSettings, Values
from flows.stages import HOOKS, run_stage


@flow(name="denoise", flow_run_name=denoise_name, persist_result=False, **HOOKS)
def denoise(settings: DenoiseSettings) -> Values:
    """Take the noise out of what is new or changed in a collection of photos.

    Args:
        settings: What to denoise, and how.
    """
    summary = run_stage("denoise", "denoise", settings.job, settings.ray)
    show_summary("denoise", summary, settings.target)
    tell_of_rejects(summary, settings)
    return summary
