"""The S3 server of `degrain up`, SeaweedFS."""

import sys
from pathlib import Path

import pytest

from flows.local_s3 import LocalS3

WRITE = "from pipeline.storage import open_store; open_store('s3://photos').write('a', b'')"


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_SESSION_TOKEN", "mine"), ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")]
)
def test_what_this_user_has_set_for_another_server_does_not_count(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)

    with LocalS3(tmp_path) as server:
        server.run([sys.executable, "-c", WRITE])
