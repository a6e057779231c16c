"""Services of a compose file as containers would run them, where there is no Docker: by namespaces, as root alone can.

Each has a network of its own on a bridge with the others, a read-only root, the memory file systems and volumes that
the file gives it, its user, no capabilities, and nothing of this process's environment. Images are stood in for by the
programs of this machine. Limits of memory are not set.
"""

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

ROOT = Path(__file__).parents[1]
FRESH = {
    "var",
    "tmp",
    "run",
    "data",
    "proc",
    "sys",
    "dev",
    "mnt",
    "media",
    "home",
    "root",
    "lost+found",
}  # not the host's
NETWORK = "10.89.7"
WAIT_S = 300.0


def can_be_run() -> bool:
    """Whether this process may make namespaces, and others may read this Python."""
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in ("ip", "unshare", "nsenter", "setpriv")):
        return False
    as_other = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", sys.executable, "-c", "import flows.cli"]
    tried = (["unshare", "--net", "--mount", "--pid", "--fork", "true"], as_other)
    return all(subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0 for command in tried)


class Containers:
    """The services of a file; they end with the block.

    Args:
        compose: the file.
        folder: of volumes and logs.
        secrets: what `.env` would hold.
        image: environment that our image has.
        stand_ins: commands, by service, for what an image of others would run.
    """

    def __init__(
        self,
        compose: Path,
        folder: Path,
        *,
        secrets: Mapping[str, str],
        image: Mapping[str, str],
        stand_ins: Mapping[str, Sequence[str]],
    ) -> None:
        text = re.sub(r"\$\{([A-Z_]+):[?-][^}]*\}", lambda found: secrets.get(found[1], "cpu"), compose.read_text())
        self.services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
        self._folder, self._image, self._stand_ins = folder, image, stand_ins
        self._prefix = f"dg{os.getpid()}-"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        lines = [f"127.0.0.1 localhost\n{NETWORK}.1 bridge\n"]
        lines += [f"{NETWORK}.{number} {name}\n" for number, name in enumerate(self.services, 2)]
        (self._folder / "hosts").write_text("".join(lines))
        users = "degrain:x:10001:10001::/tmp:/bin/sh\npostgres:x:70:70::/:/bin/sh\nseaweed:x:1000:1000::/:/bin/sh\n"
        (self._folder / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\n{users}")
        self._ip(f"netns add {self._prefix}bridge")
        inside = f"-n {self._prefix}bridge"
        for line in ("link add br0 type bridge", f"addr add {NETWORK}.1/24 dev br0", "link set br0 up"):
            self._ip(f"{inside} {line}")
        for number, name in enumerate(self.services, 2):
            network = f"{self._prefix}{name}"
            for line in (
                f"netns add {network}",
                f"-n {network} link add eth0 type veth peer name v{number} netns {self._prefix}bridge",
                f"{inside} link set v{number} master br0 up",
                f"-n {network} addr add {NETWORK}.{number}/24 dev eth0",
                f"-n {network} link set eth0 up",
                f"-n {network} link set lo up",
                f"-n {network} route add default via {NETWORK}.1",
            ):
                self._ip(line)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        for name, process in reversed(self._processes.items()):
            with suppress(FileNotFoundError, IndexError):  # it has ended
                os.kill(self.process_id(name), signal.SIGKILL)  # all of its namespace ends with it
            process.wait()
        for name in (*self.services, "bridge"):
            self._ip(f"netns del {self._prefix}{name}")

    def up(self) -> None:
        """Start all, each once those that it needs are as it wants them."""
        for name, service in self.services.items():
            self._start_with_needs(name, service)

    def _start_with_needs(self, name: str, service: Mapping[str, Any]) -> None:
        if name in self._processes:
            return
        for other, how in service.get("depends_on", {}).items():
            self._start_with_needs(other, self.services[other])
            if how["condition"] == "service_completed_successfully":
                assert self._processes[other].wait(WAIT_S) == 0, self.log(other)
            else:
                self.wait_until_healthy(other)
        with (self._folder / f"{name}.log").open("ab") as log:
            command = [*service.get("entrypoint", []), *service["command"]] if name not in self._stand_ins else []
            self._processes[name] = subprocess.Popen(
                self._contained(name, command or self._stand_ins[name]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(self, name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Another container of a service, beside the one that is up, to its end."""
        return subprocess.run(
            self._contained(name, command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def inside(self, name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """A command in the container that is up."""
        enter = ["nsenter", f"--target={self.process_id(name)}", "--mount", "--pid", "--net", "--root", "--wd=/"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=False)

    def process_id(self, name: str) -> int:
        """Of a container's first process, as this machine counts."""
        unshare = self._processes[name].pid
        return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])

    def wait_until_healthy(self, name: str) -> None:
        own = [sys.executable, "-I", str(ROOT / "deploy/health.py")]
        check = self.services[name].get("healthcheck", {}).get("test", ["CMD", *own])[1:]
        deadline, told = time.monotonic() + WAIT_S, ""
        while time.monotonic() < deadline and self._processes[name].poll() is None:
            with suppress(IndexError):  # it is not there yet
                if self._has_begun(name):
                    done = self.inside(name, check)
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

    def _contained(self, name: str, command: Sequence[str]) -> list[str]:
        service = self.services[name]
        root = self._folder / f"root-{name}"
        root.mkdir(exist_ok=True)
        user, group = service.get("user", "10001:10001").split(":")
        lines = ["set -eu", "mount --make-rprivate /", f"mount -t tmpfs tmpfs {root}", f"cd {root}"]
        for path in sorted(Path("/").iterdir()):
            if path.is_symlink():
                lines.append(f"ln -s {path.readlink()} .{path}")
            elif path.is_dir() and path.name not in FRESH:
                lines += [f"mkdir .{path}", f"mount --rbind {path} .{path}", f"mount -o remount,bind,ro .{path}"]
        lines += ["mkdir -p var tmp run proc dev sys", "mount -t proc proc proc", "mount --rbind /dev dev"]
        lines += [
            f"mount -t tmpfs -o size={service.get('shm_size', '64m')},mode=1777 tmpfs dev/shm",
            "ln -s ../run var/run",
        ]
        lines += [f"mount --bind {self._folder / name} etc/{name}" for name in ("hosts", "passwd")]
        for volume in service.get("volumes", []):
            source, target = volume.split(":")
            folder = self._folder / f"volume-{source}"
            if not folder.exists():
                folder.mkdir()
                os.chown(folder, int(user), int(group))
            lines += [f"mkdir -p .{target}", f"mount --bind {folder} .{target}"]
        for memory in service.get("tmpfs", []):
            target, options = memory.split(":")
            lines += [f"mkdir -p .{target}", f"mount -t tmpfs -o noexec,nosuid,nodev,{options} tmpfs .{target}"]
        for path in {Path(sys.prefix), Path(sys.base_prefix), ROOT}:
            if path.parts[1] in FRESH:
                lines += [f"mkdir -p .{path}", f"mount --bind {path} .{path}", f"mount -o remount,bind,ro .{path}"]
        own = self._image if service["image"].startswith("degrain:") else {}
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**own, **service.get("environment", {}), "PATH": programs}
        become = (
            f"setpriv --reuid={user} --regid={group} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
        )
        words = ["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *command]
        lines += ["mount -o remount,ro .", f"exec chroot . {become} {shlex.join(words)}"]
        enter = ["ip", "netns", "exec", f"{self._prefix}{name}"]
        return [*enter, "unshare", "--mount", "--pid", "--fork", "sh", "-c", "\n".join(lines)]

    def _ip(self, line: str) -> None:
        subprocess.run(["ip", *line.split()], check=True)
