"""What the runs of a flow are called in the lists of the UI: they say what is done to what."""

from collections.abc import Mapping
from typing import Any

from prefect.runtime import flow_run as this_flow_run

from flows.settings import dated


def denoise_name() -> str:
    settings = _settings()
    return f"denoise {settings['source']} → {settings['target']}"


def ingest_name() -> str:
    settings = _settings()
    return f"ingest {settings['source']} → {settings['target']}"


def train_name() -> str:
    settings = _settings()
    return f"train {settings.get('preset', 'photo')} on {settings['source']} in {dated(settings['run'])}"


def nightly_name() -> str:
    settings = _settings()["denoise"]
    return f"nightly {settings['source']} → {settings['target']}"


def retrain_name() -> str:
    settings = _settings()
    return f"retrain {settings['promoted']} on {settings['ingest']['source']}"


def _settings() -> Mapping[str, Any]:  # Any: JSON
    found = this_flow_run.parameters["settings"]
    values: Mapping[str, Any] = found if isinstance(found, Mapping) else found.model_dump(mode="json")
    return values
