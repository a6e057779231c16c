"""compose.yaml at work, without Docker: its very commands, users, file systems and secrets, in namespaces."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import ROOT, Containers, can_be_run
from postgres import PROGRAMS, is_installed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not is_installed(), reason="PostgreSQL is not installed: apt-get install postgresql"),
    pytest.mark.skipif(not can_be_run(), reason="needs root, iproute2, util-linux, and a Python that others may read"),
]
POSTGRES = """
[ -e /var/lib/postgresql/data/base ] || {{ echo "$POSTGRES_PASSWORD" >/tmp/password
{0}/initdb -D /var/lib/postgresql/data -U "$POSTGRES_USER" -E UTF8 --locale=C.UTF-8 --no-sync \\
    --auth=scram-sha-256 --pwfile=/tmp/password
echo "host all all all scram-sha-256" >>/var/lib/postgresql/data/pg_hba.conf
echo "CREATE DATABASE $POSTGRES_DB;" | {0}/postgres --single -D /var/lib/postgresql/data postgres; }}
exec {0}/postgres -D /var/lib/postgresql/data -h '*' -k /var/run/postgresql
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    containers = Containers(
        tmp_path_factory.mktemp("compose"), {"postgres": ["sh", "-euc", POSTGRES.format(PROGRAMS[-1])]}
    )
    # as Debian packages the same PostgreSQL
    containers.services["postgres"]["healthcheck"]["test"][1] = str(PROGRAMS[-1] / "pg_isready")
    deploy = containers.services["deploy"]["command"]
    deploy[-1] = deploy[-1].replace("/etc/degrain/prefect.yaml", str(ROOT / "deploy/prefect.yaml"))
    with containers:
        containers.start()
        containers.wait_until_healthy("prefect-worker", "ray-worker")
        yield containers


def test_no_process_can_gain_a_right_or_write_to_its_root(stack: Containers) -> None:
    for name in stack.services:
        if name == "deploy":
            continue
        status = Path(f"/proc/{stack.process_id(name)}/status").read_text()
        assert len(re.findall(r"^Cap(?:Prm|Eff|Bnd):\t0{16}$", status, re.MULTILINE)) == 3, status
        assert "NoNewPrivs:\t1" in status
        assert not re.search(r"^Uid:\t0\b", status, re.MULTILINE)


def fetched(stack: Containers, url: str) -> str:
    """What a container without any secret is told: the status, or the error."""
    code = (
        "import sys, urllib.request, urllib.error\n"
        "try: print(urllib.request.urlopen(sys.argv[1], timeout=5).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
        "except OSError as error: print(type(error.reason).__name__)\n"
    )
    asked = stack.inside("prefect-worker", [sys.executable, "-I", "-c", code, url])
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://prefect-server:4200/dashboard", "200"),  # the page itself, which asks for it
        ("http://prefect-server:4200/api/admin/version", "401"),
        ("http://ray-head:8265/api/jobs/", "401"),
        ("http://s3:8333/photos", "403"),
        ("http://s3:8888/", "ConnectionRefusedError"),
        ("http://s3:9333/dir/status", "ConnectionRefusedError"),
    ],
)
def test_who_has_no_secret_is_refused(stack: Containers, url: str, told: str) -> None:
    assert fetched(stack, url) == told


def test_a_run_of_the_flow_denoises_a_bucket(stack: Containers) -> None:
    def done(name: str, *command: str) -> str:
        process = stack.run(name, command)
        assert process.returncode == 0, process.stdout + process.stderr + stack.log("prefect-worker")
        return process.stdout

    done("prefect-worker", sys.executable, "-c", "import s3fs; s3fs.S3FileSystem().pipe('photos/first', b'-')")
    done("prefect-worker", sys.executable, "-m", "pipeline.samples", "s3://photos/noisy")
    settings = 'settings={"source": "s3://photos/noisy", "target": "s3://photos/clean"}'
    done("prefect-worker", "prefect", "deployment", "run", "denoise/degrain", "--param", settings, "--watch")

    assert '"findings": 0' in done("prefect-worker", "degrain", "verify", "s3://photos/clean", "--workers=1", "--json")
