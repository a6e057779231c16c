"""What the flows decide and show, without a server: settings, gates, events, and the text of artifacts."""

import dataclasses
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from httpx import ConnectError, HTTPStatusError, ReadError, Request, Response
from prefect.events.schemas.automations import AutomationCore
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, Settings, temporary_settings
from pydantic import BaseModel, ValidationError

from flows import artifacts, automations, deploy
from flows.cli import main
from flows.events import rejected_fraction
from flows.local_prefect import local_server, prefect_environment
from flows.nightly import closed_gates, nightly
from flows.patience import patiently
from flows.retrain import retrain
from flows.serve import alone_in, write_environment
from flows.settings import (
    DenoiseSettings,
    Gates,
    IngestSettings,
    NightlySettings,
    RaySettings,
    RetrainSettings,
    TrainSettings,
)
from model.recipe import PRESETS
from pipeline.cluster import ClusterConfig
from pipeline.comparison import compare
from pipeline.denoise import DenoiseConfig
from pipeline.images import Limits
from pipeline.ingest import IngestJob
from pipeline.job_file import train_job
from pipeline.jobs import DenoiseJob
from pipeline.strict import build
from pipeline.train_job import TrainJob

ROOT = Path(__file__).parents[1]
PLACES = {"source": "s3://photos/in", "target": "s3://photos/out"}
CANARY = {
    "photos": 10,
    "rejected": 0,
    "denoised": 10,
    "reasons": {},
    "noise_left": 0.2,
    "worst_change_psnr_db": 30.0,
    "megapixels_per_second": 2.0,
}


def test_settings_by_default_are_those_of_the_jobs() -> None:
    settings = DenoiseSettings(**PLACES)
    job = build(DenoiseJob, settings.job)

    by_default = DenoiseJob(**PLACES, denoise=DenoiseConfig(limits=Limits.of_megapixels(Limits().max_megapixels)))
    assert job == dataclasses.replace(by_default, cluster=ClusterConfig(address="auto"))
    assert build(IngestJob, IngestSettings(**PLACES).job).ingest == IngestJob(**PLACES).ingest
    assert train_job(TrainSettings(source="a", run="b").job) == TrainJob(source="a", run="b", address="auto")


@pytest.mark.parametrize(
    ("place", "at"),
    [
        ("s3://models/runs/{date}", "s3://models/runs/2026-11-29"),
        ("runs/night {date}/{seed}", "runs/night 2026-11-29/{seed}"),
        ("runs/night", "runs/night"),
    ],
)
def test_a_run_of_training_is_named_after_the_day_that_its_flow_was_scheduled_for(
    monkeypatch: pytest.MonkeyPatch, place: str, at: str
) -> None:
    monkeypatch.setattr(flow_run, "scheduled_start_time", datetime(2026, 11, 29, 23, 59, tzinfo=UTC), raising=False)

    assert train_job(TrainSettings(source="a", run=place).job).run == at


def test_settings_of_training_change_the_recipe_that_they_name() -> None:
    job = train_job(TrainSettings(source="a", run="b", preset="seed", steps=7, batch_size=2, learning_rate=1e-4).job)

    assert job.config == dataclasses.replace(PRESETS["seed"], steps=7, epochs=None, batch_size=2, learning_rate=1e-4)


def test_a_registry_that_is_left_empty_means_the_weights_that_ship() -> None:
    assert DenoiseSettings(**PLACES, registry="").job["weights"] == "photo"


def test_every_setting_reaches_its_job() -> None:
    denoise = {
        "weights": "best",
        "registry": "s3://models/",
        "strength": 0.5,
        "max_megapixels": 1000,
        "layout": "packed",
        "key_table": "k.csv",
        "where": "iso < 9",
    }
    run = {"limit": 3, "sample": 0.5, "retry_failed": True, "max_rejected_fraction": 0.1, "ray": {"workers": 4}}
    run |= {"photo_timeout_s": 60}

    job = build(DenoiseJob, DenoiseSettings.model_validate({**PLACES, **denoise, **run}).job)

    assert (job.weights, job.layout, job.key_table) == ("s3://models/weights/best", "packed", "k.csv")
    assert (job.denoise.strength, job.denoise.limits) == (0.5, Limits.of_megapixels(1000))
    assert (job.where, job.limit, job.sample, job.retry_failed) == ("iso < 9", 3, 0.5, True)
    assert (job.max_rejected_fraction, job.cluster.workers, job.cluster.photo_timeout_s) == (0.1, 4, 60)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DenoiseSettings, {**PLACES, "strenght": 1}, "Extra inputs are not permitted"),
        (DenoiseSettings, {**PLACES, "strength": 1.5}, "less than or equal to 1"),
        (DenoiseSettings, {**PLACES, "ray": {"worker": 1}}, "Extra inputs are not permitted"),
        (DenoiseSettings, {**PLACES, "max_megapixels": 0}, "greater than 0"),
        (DenoiseSettings, {"source": "a", "target": "a/"}, "never writes to its source"),
        (DenoiseSettings, {"source": "az://a/b", "target": "abfs://a/b/"}, "never writes to its source"),
        (DenoiseSettings, {"source": "a"}, "Field required"),
        (IngestSettings, {**PLACES, "resize": 0}, "greater than or equal to 1"),
        (
            NightlySettings,
            {"denoise": {**PLACES, "target": "s3://clean/"}},
            "no place beside s3://clean/, a whole bucket",
        ),
        (
            NightlySettings,
            {"denoise": {"source": "archive/", "target": "archive/clean"}},
            "written into the source, archive/clean-report.html",
        ),
        (
            NightlySettings,
            {"denoise": {"source": ".", "target": "clean"}},
            "written into the source, clean-report.html",
        ),
        (
            NightlySettings,
            {"denoise": {"source": "s3://archive", "target": "s3a://archive/clean"}},
            "written into the source, s3a://archive/clean-report.html",
        ),
        (NightlySettings, {"denoise": PLACES, "gates": {"photo": 1}}, "Extra inputs are not permitted"),
        (RaySettings, {"timeout_hours": 0}, "greater than 0"),
        (RaySettings, {"address": "os://head"}, "should match pattern"),  # Ray would import what is named there
        (RaySettings, {"address": "http://user:word@head:8265"}, "should match pattern"),
        (DenoiseSettings, {**PLACES, "strength": True}, "should not be true or false"),
    ],
)
def test_wrong_settings_are_refused(kind: type[BaseModel], values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(values)


@pytest.mark.parametrize("kind", [DenoiseSettings, IngestSettings, TrainSettings, NightlySettings, RetrainSettings])
def test_a_form_explains_every_field(kind: type[BaseModel]) -> None:
    schema = kind.model_json_schema()

    assert schema["additionalProperties"] is False
    assert [
        name
        for part in [schema, *schema["$defs"].values()]
        for name, field in part.get("properties", {}).items()
        if "description" not in field
    ] == []


@pytest.mark.parametrize(
    ("values", "clause"),
    [
        ({"rejected": 2}, "20% are rejected, and at most 10% may be"),
        ({"noise_left": 0.9}, "90% of the noise is left"),
        ({"worst_change_psnr_db": 12.0}, "a photo is changed to 12 dB"),
        ({"megapixels_per_second": 0.5}, "0.5 megapixels/s, and at least 1 are asked for"),
    ],
)
def test_a_gate_closes_for_one_reason(values: dict[str, Any], clause: str) -> None:
    gates = Gates(min_megapixels_per_second=1)

    assert closed_gates(CANARY, gates) == []
    [failure] = closed_gates({**CANARY, **values}, gates)
    assert clause in failure


def test_photos_that_are_not_denoised_close_no_gate() -> None:
    nothing = {"noise_left": None, "worst_change_psnr_db": None, "megapixels_per_second": 0.0, "denoised": 0}

    assert closed_gates({**CANARY, **nothing}, Gates(min_megapixels_per_second=1)) == []


@pytest.mark.parametrize(
    ("new", "unfinished", "stages"),
    [
        (0, 0, ["plan"]),
        (0, 1, ["plan", "denoise", "verify", "report"]),
        (2, 0, ["plan", "canary", "denoise", "verify", "report"]),
    ],
)
def test_a_night_does_what_is_new_and_what_another_left_unpublished(
    monkeypatch: pytest.MonkeyPatch, new: int, unfinished: int, stages: list[str]
) -> None:
    begun: list[str] = []

    def run_stage(stage: str, *_: object) -> dict[str, Any]:
        begun.append(stage)
        plan = {"photos": {"to_do": {"photos": new}}, "unfinished_runs": unfinished}
        return plan if stage == "plan" else {**CANARY, "findings": 0}

    monkeypatch.setattr("flows.nightly.run_stage", run_stage)
    for name in ("show_plan", "show_canary", "show_summary", "show_verdict", "show_report", "tell_of_rejects"):
        monkeypatch.setattr(f"flows.nightly.{name}", lambda *_, **__: None)

    nightly.fn(NightlySettings(denoise=DenoiseSettings(**PLACES)))

    assert begun == stages


def test_new_weights_and_those_in_use_are_tried_at_once_on_the_same_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, dict[str, Any]]] = []
    scores = {"trial": "file", "gain_db": 1.0}

    def run_stage(stage: str, _: str, job: dict[str, Any], __: object) -> dict[str, Any]:
        begun.append((stage, job))
        found = {"weights": "new" if stage == "train" else "old", "sha256": "n" if stage == "train" else "o"}
        rows = [{**scores, "denoiser": name, "weights": name[0]} for name in ("new", "old")]
        return {**found, "rows": rows, "card": {}}

    monkeypatch.setattr("flows.retrain.run_stage", run_stage)
    for name in ("show_card", "show_comparison", "show_evaluation", "show_summary", "show_training"):
        monkeypatch.setattr(f"flows.retrain.{name}", lambda *_, **__: None)
    places = {"ingest": IngestSettings(**PLACES), "train": TrainSettings(source="set", run="run")}

    retrain.fn(RetrainSettings(**places, held_out="clean", promoted="r/weights/night", min_gain_db=0.0))

    tried = [job for stage, job in begun if stage == "evaluate"]
    assert tried == [{"weights": "new", "against": ["old"], "photos": "clean", "limit": None}]
    assert begun[-1][1]["gains_db"] == {"file": 0.0}
    assert begun[-1][1]["instead_of"] == "o"


def test_names_that_strangers_chose_are_text_in_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda rows, **_: shown.extend(rows))
    name = "![a](http://evil/b.png) [log in](//evil) <b>www.evil.com</b> a_b_&lt;\u202e.jpg"

    artifacts.show_rejected("denoise", {name: 1}, [{"key": name, "reason": name}])
    artifacts.show_verdict("verify", {"objects": 1, "findings": 1, "kinds": {}, "first": [{"key": name}]})

    cells = [row[column] for row in shown for column in row if column in ("photo", "reason", "key")]
    assert len(cells) == 4
    escaped = r"\!\[a\]\(http\://evil/b.png\) \[log in\]\(//evil\) \<b\>www\.evil.com\</b\> a\_b\_\&lt;\\u202e.jpg"
    assert set(cells) == {escaped}


def rows(**gains_db: float) -> list[dict[str, object]]:
    return [{"trial": name, "denoiser": "degrain", "gain_db": gain} for name, gain in gains_db.items()]


@pytest.mark.parametrize(
    ("candidate", "is_better"),
    [
        ({"camera": 5.1, "jpeg": 3.1}, True),
        ({"camera": 5.5, "jpeg": 2.9}, True),
        ({"camera": 6.0, "jpeg": 2.5}, False),
        ({"camera": 5.0, "jpeg": 3.0}, False),
        ({"camera": 4.0, "jpeg": 2.0}, False),
    ],
)
def test_better_weights_gain_in_the_mean_and_lose_nowhere(candidate: dict[str, float], is_better: bool) -> None:
    found = compare(rows(**candidate), rows(camera=5.0, jpeg=3.0), least_mean_db=0.02, largest_loss_db=0.2)

    assert found.is_better is is_better


def test_weights_without_a_common_trial_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no trial in common"):
        compare(rows(camera=1.0), rows(jpeg=1.0), least_mean_db=0, largest_loss_db=0)


def test_rejects_are_a_share_of_what_was_processed() -> None:
    assert rejected_fraction({"inputs": 100, "up_to_date": 80, "rejected_before": 10, "rejected": 5}) == 0.5
    assert rejected_fraction({"inputs": 100, "up_to_date": 100, "rejected_before": 0, "rejected": 0}) == 0.0


def answering(*errors: Exception) -> Callable[[], int]:
    """A call that fails with these errors, one after the other, and then answers 7."""
    waiting = list(errors)

    def call() -> int:
        if waiting:
            raise waiting.pop(0)
        return 7

    return call


def status(code: int) -> HTTPStatusError:
    request = Request("POST", "http://127.0.0.1/api/artifacts")
    return HTTPStatusError(str(code), request=request, response=Response(code, request=request))


def test_a_prefect_server_that_is_away_for_a_while_is_asked_again() -> None:
    call = answering(ConnectError("refused"), ReadError("reset"), status(503))

    assert patiently(call, interval_s=0)() == 7


@pytest.mark.parametrize(
    ("error", "patience_s"), [(ConnectError("refused"), -1.0), (status(422), 60.0), (KeyError("no answer"), 60.0)]
)
def test_patience_ends_and_is_not_for_what_stays_wrong(error: Exception, patience_s: float) -> None:
    with pytest.raises(type(error)):
        patiently(answering(error), patience_s=patience_s, interval_s=0)()


def test_a_file_of_deployments_that_names_what_is_not_set_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)

    assert deploy.main([str(ROOT / "deploy/prefect.yaml")]) == 2

    assert "prefect.yaml names RAY_API_SERVER_ADDRESS" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "deployments: [", "deployments: 3", "deployments: [{name: nightly}]"])
def test_a_file_that_is_no_file_of_deployments_is_refused(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "prefect.yaml").write_text(text)

    assert deploy.main([str(tmp_path / "prefect.yaml")]) == 2

    assert "prefect.yaml is no file of deployments: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        (None, 2, "no Prefect server is named: set PREFECT_API_URL"),
        ("http://127.0.0.1:1/api", 1, "the Prefect server at http://127.0.0.1:1/api cannot be asked: "),
    ],
)
def test_nothing_is_deployed_but_on_the_server_that_is_named(
    url: str | None, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")

    with temporary_settings({PREFECT_API_URL: url}):
        assert deploy.main([str(Path(__file__).parents[1] / "deploy/prefect.yaml")]) == code

    err = capsys.readouterr().err
    assert (err.count("\n"), err[: len(told) + 9]) == (1, f"degrain: {told}")


class Automations:
    """A server that knows an automation of each name."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.created: list[AutomationCore] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read_automations_by_name(self, name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=name, enabled=self.enabled)]

    def delete_automation(self, name: str) -> None: ...

    def create_automation(self, automation: AutomationCore) -> None:
        self.created.append(automation)


@pytest.mark.parametrize("enabled", [True, False])
def test_an_automation_that_a_person_has_turned_off_stays_off(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Automations(enabled=enabled)
    monkeypatch.setattr(automations, "get_client", lambda **_: server)

    automations.apply(automations.care())

    assert [each.enabled for each in server.created] == [enabled, enabled]


@pytest.mark.parametrize("url", ["", "hooks.example/degrain", "https://"])
def test_a_webhook_that_nothing_can_be_sent_to_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEGRAIN_WEBHOOK_URL", url)

    assert automations.main() == 2

    assert "set DEGRAIN_WEBHOOK_URL to the address" in capsys.readouterr().err


def test_a_shell_reads_any_folder_in_what_it_is_told_of_degrain_up(tmp_path: Path) -> None:
    folder = tmp_path / "o'brien & $HOME"
    folder.mkdir()
    command = write_environment(folder / "environment.sh", {"PREFECT_PROFILES_PATH": f"{folder}/profiles.toml"})

    script = f'{command}; printf %s "$PREFECT_PROFILES_PATH"'
    assert (
        subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
        == f"{folder}/profiles.toml"
    )


def test_one_degrain_up_at_a_time_has_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone_in(tmp_path / "up"):
        assert main(["up", "--folder", f"{tmp_path}/up", "--port", "0", "--ray-port", "0"]) == 2

    assert f"degrain up is at work in {tmp_path}/up already" in capsys.readouterr().err


def test_a_place_that_was_pasted_with_blanks_around_it_is_that_place() -> None:
    settings = DenoiseSettings(source="\ts3://photos/noisy ", target=" s3://photos/clean\n")

    assert (settings.job["source"], settings.job["target"]) == ("s3://photos/noisy", "s3://photos/clean")
    with pytest.raises(ValidationError, match="at least 1 character"):
        DenoiseSettings(source=" ", target="t")


@pytest.mark.parametrize("folder", ["{home}/up", "~/up"])  # a shell leaves that of --folder=~/up as it is
def test_a_folder_that_cannot_be_one_is_a_wrong_call(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "up").touch()

    assert main(["up", f"--folder={folder.format(home=tmp_path)}", "--port", "0", "--ray-port", "0"]) == 2

    assert f"{tmp_path}/up cannot be a folder of degrain up: file exists" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL"])
def test_the_database_of_another_server_is_not_that_of_degrain_up(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {name: "postgresql+asyncpg://team/prefect", **prefect_environment(tmp_path, 4200)}.items():
        monkeypatch.setenv(variable, value)

    found = Settings().server.database.connection_url.get_secret_value()

    assert found == f"sqlite+aiosqlite:///{tmp_path}/prefect.db"


def test_the_server_is_started_where_no_project_has_settings_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prefect.toml").write_text('[server.api]\nauth_string = "team:secret"\n')
    monkeypatch.chdir(tmp_path)
    assert Settings().server.api.auth_string is not None

    with local_server(tmp_path / "up", 0, prefect_environment(tmp_path / "up", 0)) as server:
        monkeypatch.chdir(Path(f"/proc/{server.pid}/cwd").resolve())

    assert Settings().server.api.auth_string is None
