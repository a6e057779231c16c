"""Clouds: a URL becomes the right file system, with no retries of its own, or one line that says what is missing."""

import os
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from faults.proxy import Fault, FaultProxy

from pipeline.clouds import S3, Azure, Cloud, Google, connect
from pipeline.storage import open_store


@pytest.fixture
def azure_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    adlfs = pytest.importorskip("adlfs", reason="the extra az is not installed")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "archive")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "YS1zZWNyZXQtb2YtdGhlLXRlc3Rz")
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    adlfs.AzureBlobFileSystem.clear_instance_cache()
    yield
    adlfs.AzureBlobFileSystem.clear_instance_cache()


def test_s3_makes_each_request_once(s3_url: str) -> None:
    cloud, root = connect(s3_url)

    assert isinstance(cloud, S3)
    assert root == s3_url.removeprefix("s3://")
    assert cloud.filesystem.retries == 1
    assert cloud.filesystem.s3.meta.config.retries["total_max_attempts"] == 1


def test_a_large_object_is_sent_to_s3_without_a_copy_of_it(seaweed_url: str) -> None:
    store, data = open_store(seaweed_url), os.urandom(40_000_000)
    store.write("small", b"connects")

    tracemalloc.start()
    store.write("large", data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < len(data) / 4
    assert store.read("large") == data


def test_a_large_object_is_sent_again_from_its_start(proxy: FaultProxy, proxied_url: str) -> None:
    store, data = open_store(proxied_url), os.urandom(9_000_000)
    proxy.script = [Fault.LOST_ANSWER, Fault.ERROR, Fault.SLOW_DOWN]

    store.write("large", data)

    assert store.read("large") == data
    assert proxy.seen["PUT"] == 4


def test_google_makes_each_request_once(gs_url: str) -> None:
    cloud, root = connect(gs_url)

    assert isinstance(cloud, Google)
    assert root == gs_url.removeprefix("gs://")
    assert not hasattr(cloud.filesystem._request.func, "__wrapped__")


@pytest.mark.usefixtures("azure_account")
@pytest.mark.parametrize(
    ("url", "expected"),
    [("az://photos/2019", "photos/2019"), ("abfs://photos@archive.dfs.core.windows.net/2019", "photos/2019")],
)
def test_azure_makes_each_request_once(url: str, expected: str) -> None:
    cloud, root = connect(url)

    assert isinstance(cloud, Azure)
    assert root == expected
    assert cloud.filesystem.service_client._config.retry_policy.total_retries == 0


@pytest.mark.usefixtures("azure_account")
@pytest.mark.parametrize("key", ["who? #1.jpg", "a#b?c.jpg", "what?", "what#", "a@b/c:d", "100%.jpg"])
def test_azure_takes_no_key_for_another(key: str) -> None:
    cloud, root = connect("az://photos/2019")

    assert cloud.filesystem.split_path(f"{root}/{key}") == ("photos", f"2019/{key}", None)


@pytest.mark.usefixtures("azure_account")
def test_azure_tells_no_key(azure_account: None) -> None:
    store = open_store("az://photos/2019")

    assert "YS1zZWNyZXQ" not in repr(store) + repr(vars(store)) + store.url


def test_memory_is_as_it_comes(memory_url: str) -> None:
    cloud, _ = connect(memory_url)

    assert type(cloud) is Cloud


@pytest.mark.parametrize(("url", "library", "extra"), [("gs://photos", "gcsfs", "gs"), ("az://photos", "adlfs", "az")])
def test_a_library_that_is_missing_is_named_by_its_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, library: str, extra: str
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(ValueError, match=rf"^cannot open {url}: the library .* pip install 'degrain\[{extra}\]'$"):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "az://photos/2019?sv=2024&sig=a-secret",
        "s3://photos/2019?X-Amz-Credential=x&X-Amz-Signature=a-secret",
        "https://host/photos?token=a-secret",
    ],
)
def test_a_url_that_is_signed_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(ValueError, match="holds credentials: leave them out") as caught:
        open_store(url)

    assert "a-secret" not in str(caught.value)
