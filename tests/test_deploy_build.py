"""The image as podman builds it from the Dockerfile, and what runs in it: as root, where there is no Docker either.

No registry of images is asked. The base is one that is here under its own name, or else a Debian with the Python, the
certificates and the settings of pip of this machine.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
[BASE] = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
LIBRARIES = "ca-certificates,libssl3,libffi8,libsqlite3-0,zlib1g,libbz2-1.0,liblzma5,libreadline8,libuuid1,libncursesw6"
IMAGE, STAND_IN = "localhost/degrain:tests", "localhost/degrain-base:tests"
TOKEN = "of-the-tests-" * 4
MISSING = [name for name in ("podman", "runc", "debootstrap") if shutil.which(name) is None]
LIMITS = ["--ulimit=nofile=8192", "--ulimit=nproc=4096"]  # podman's own are higher than every root may set
# As compose.yaml and the manifests have it.
HARDENED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp:size=1g,mode=1777"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes containers here"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: apt-get install {' '.join(MISSING)}"),
]


def podman(*arguments: str | Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    """From the root of the repository, with runc, which knows every kind of control groups."""
    command = ["podman", "--runtime=runc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd=ROOT)


def has_image(name: str) -> bool:
    return podman("image", "exists", name).returncode == 0


def make_stand_in(folder: Path) -> None:
    """An image of Debian's with this Python in /usr/local, where the real one has its own."""
    release = re.findall(r"^VERSION_CODENAME=(.+)$", Path("/etc/os-release").read_text(), re.MULTILINE)[0]
    root = folder / "base"
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={LIBRARIES}", release, root], check=True)
    shutil.copytree(sys.base_prefix, root / "usr/local", symlinks=True, dirs_exist_ok=True)
    shutil.copy(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"), root / "etc/ssl/certs")
    listing = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(listing, capture_output=True, text=True, check=True)
    pairs = dict(re.findall(r"^(?:global|:env:)\.(\S+)='(.*)'$", settings.stdout, re.MULTILINE))
    lines = [f"{name} = {value}" for name, value in pairs.items() if name != "constraint"]
    (root / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    subprocess.run(["chroot", root, "ldconfig"], check=True)
    packed = folder / "base.tar"
    subprocess.run(["tar", "-C", root, "-cf", packed, "."], check=True)
    podman("import", packed, STAND_IN, check=True)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = next((name for name in (f"docker.io/library/{BASE}", STAND_IN) if has_image(name)), STAND_IN)
    if not has_image(base):
        make_stand_in(tmp_path_factory.mktemp("image"))
    options = [f"--build-arg=BASE={base}", *LIMITS]
    for folder in filter(os.path.isdir, os.environ.get("PIP_FIND_LINKS", "").split()):  # torch is in it
        options += [f"--volume={folder}:{folder}:ro", "--build-arg=TORCH_INDEX="]
    # No layers are kept: podman 4.3 loses a stage that it takes from them.
    how = ["--pull=never", "--layers=false", "--format=docker", "--network=host"]
    done = podman("build", *how, *options, "--target=cpu", f"--tag={IMAGE}", "--file=deploy/Dockerfile", ".")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    yield IMAGE
    podman("image", "rm", "--force", IMAGE)


def run(image: str, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A container to its end, with no network unless the options say so."""
    network = [] if any(option.startswith("--network") for option in options) else ["--network=none"]
    return podman("run", "--rm", *LIMITS, *HARDENED, *network, *options, image, *shlex.split(command))


def test_it_runs_as_nobody_of_note_and_writes_to_tmp_alone(image: str) -> None:
    done = run(image, "sh -c 'id -u; touch /tmp/here; touch /opt/degrain/here /etc/here /var/lib/degrain/here'")

    assert done.stdout == "10001\n"
    assert done.stderr.count("Read-only file system") == 3


def test_any_user_may_run_it(image: str) -> None:
    """As clusters do that give each namespace numbers of its own."""
    done = run(image, "degrain --version", "--user=123456:0")

    assert (done.returncode, done.stdout) == (0, "degrain 0.1.0\n")


def test_what_is_installed_fits_together_and_nothing_installs_more(image: str) -> None:
    assert run(image, "/usr/local/bin/python3 -m pip --python /opt/degrain check").returncode == 0
    assert run(image, "sh -c 'ls /opt/degrain/bin/pip'").returncode != 0


def test_photos_are_denoised_in_it_without_a_network(image: str) -> None:
    done = run(image, "degrain demo /tmp/demo")

    assert done.returncode == 0, done.stderr
    assert "gain" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "ray start --head --block --num-cpus=1 --disable-usage-stats --object-store-memory=134217728",
        "prefect server start --host 0.0.0.0",
    ],
    ids=["ray head", "prefect server"],
)
def test_a_service_in_it_becomes_healthy(image: str, command: str) -> None:
    options = [f"--env=RAY_AUTH_TOKEN={TOKEN}", "--shm-size=512m", "--detach"]
    started = podman("run", *LIMITS, *HARDENED, "--network=none", *options, image, *shlex.split(command))
    container = started.stdout.strip()
    try:
        assert podman("healthcheck", "run", container).returncode == 1, "before it can be"
        deadline = time.monotonic() + 120
        while podman("healthcheck", "run", container).returncode != 0:
            assert time.monotonic() < deadline, podman("logs", container).stderr
            time.sleep(1)
    finally:
        podman("rm", "--force", container)
