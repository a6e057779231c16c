"""The flow `train`: a network, by one Ray job."""

from prefect import flow

from flows.artifacts import show_training
from flows.run_names import train_name
from flows.settings import TrainSettings, Values
from flows.stages import HOOKS, run_stage


@flow(name="train", flow_run_name=train_name, persist_result=False, **HOOKS)
def train(settings: TrainSettings) -> Values:
    """Train a network on clean photos. A run that is there goes on at its last checkpoint.

    Args:
        settings: On what to train, and how.
    """
    trained = run_stage("train", "train", settings.job, settings.ray)
    show_training("train", trained)
    return {key: value for key, value in trained.items() if key != "metrics"}
