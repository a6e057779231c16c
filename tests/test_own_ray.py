"""A Ray that starts here asks no cloud where it is, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private.worker import global_worker

from pipeline.connection import connected
from pipeline.errors import RunFailed
from pipeline.ray_dashboard import HOME
from pipeline.scratch import own_folder

START = {
    "ours": "with connected(None): wait()",
    "Ray's": "ray.init(address='local', include_dashboard=False, _node_ip_address='127.0.0.1'); wait()",
}
# What it would ask, it asks before it notes in its log that it will not report what it has learned.
PROGRAM = """
import time
from pathlib import Path
import ray
from ray._private.worker import global_worker
from pipeline.connection import connected

def wait():
    log = Path(global_worker.node.get_logs_dir_path()) / "dashboard.log"
    while not log.exists() or "Usage reporting is disabled" not in log.read_text():
        time.sleep(0.05)

"""


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A proxy, and the URLs that it was asked for."""
    urls: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            urls.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", urls
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("who", "asks"), [("ours", False), pytest.param("Ray's", True, marks=pytest.mark.slow)])
def test_where_it_runs_is_asked_by_ray_and_not_by_us(asked: tuple[str, list[str]], who: str, *, asks: bool) -> None:
    proxy, urls = asked
    variables = {**os.environ, "http_proxy": proxy, "no_proxy": "127.0.0.1", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([sys.executable, "-c", PROGRAM + START[who]], env=variables, check=True, timeout=120)
    assert any("169.254.169.254" in url for url in urls) is asks


def test_the_home_of_the_dashboard_says_nothing() -> None:
    assert [path.name for path in HOME.iterdir()] == ["ray_bootstrap_config.yaml"]


def test_a_node_that_takes_too_long_to_start_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts: list[str] = []

    def init(**_: Any) -> SimpleNamespace:
        starts.append("one")
        if len(starts) == 1:
            raise Exception("The current node timed out during startup.")  # noqa: TRY002  # as Ray does after 30 s
        return SimpleNamespace(address_info={"session_dir": str(tmp_path / "session")})

    monkeypatch.setattr(ray, "init", init)
    with connected(None):
        assert len(starts) == 2


def test_a_node_that_never_starts_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002  # as Ray does after 30 s

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunFailed, match="no Ray cluster on this machine: The current node timed out"), connected(None):
        pass


def test_a_signal_to_the_group_of_this_process_is_none_to_ray() -> None:
    with connected(None):
        assert global_worker.node is not None
        groups = {os.getpgid(each.process.pid) for some in global_worker.node.all_processes.values() for each in some}

    assert groups
    assert os.getpgrp() not in groups


def test_workers_import_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with connected(None):
        path = ray.get(ray.remote(lambda: sys.path).remote())

    assert path
    assert not {str(tmp_path), "", "."} & set(path)


def test_no_other_user_of_the_machine_may_enter_its_folder() -> None:
    with connected(None):
        logs = Path(global_worker.node.get_logs_dir_path())

    above = [folder for folder in logs.parents if folder.parent == Path(tempfile.gettempdir())]
    assert [oct(folder.stat().st_mode & 0o777) for folder in above] == ["0o700"]


@pytest.mark.parametrize("ends_well", [pytest.param(True, marks=pytest.mark.slow), False])
def test_its_logs_stay_only_after_an_error(*, ends_well: bool) -> None:
    with suppress(RuntimeError), connected(None):
        logs = Path(global_worker.node.get_logs_dir_path())
        if not ends_well:
            raise RuntimeError

    assert logs.exists() is not ends_well


AT_HOME = """
import os, ray
from pathlib import Path
from pipeline.connection import connected

for _ in range(2):
    with connected(None):
        ray.get(ray.remote(lambda: None).remote())
assert not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
assert not (Path.home() / ".ray").exists()
"""


@pytest.mark.slow
def test_its_token_is_its_own_and_not_in_a_file_of_the_home_which_may_be_none() -> None:
    tokens = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"}
    variables = {name: value for name, value in os.environ.items() if name not in tokens}
    subprocess.run([sys.executable, "-c", AT_HOME], env={**variables, "HOME": "/proc/none"}, check=True, timeout=170)


TOLD = """
import os, signal, sys
from pipeline.connection import connected

def told(*_):
    sys.exit("told")

signal.signal(signal.SIGINT, told)
signal.signal(signal.SIGTERM, told)
with connected(None):
    pass
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    ("sent", "sign"),
    [
        pytest.param(signal.SIGTERM, "", id="starting", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "logs/python-core-driver-*", id="connecting"),
        pytest.param(signal.SIGTERM, "logs/python-core-driver-*", id="TERM-connecting", marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_it_starts_is_for_the_handler_that_was_there(sent: signal.Signals, sign: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", TOLD], stderr=subprocess.PIPE, text=True)
    while not list(own_folder(most_characters=100).glob(f"ray/session_*_{process.pid}/{sign}")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (1, "told")


@pytest.mark.slow
def test_a_sigterm_after_it_has_stopped_is_for_that_handler_too() -> None:
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "told")
