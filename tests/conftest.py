"""What several test modules share: a fixed choice of examples, and servers of object storage on loopback."""

import contextlib
import itertools
import shutil
import signal
import socket
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import s3fs
from faults.proxy import BAD_DAY, FaultProxy
from hypothesis import settings
from moto.server import ThreadedMotoServer
from seaweed import BUCKET, Seaweed, seaweed

if TYPE_CHECKING:
    from stack import Stack

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same examples each time, on any machine
settings.load_profile("fixed")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it

KILLS, NETWORK_FAULTS = "kills", "faults of the network"  # properties of a test: they reach the process that sums up


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Counts processes that were killed or hosts cut off, and what should come of it came of it nevertheless."""
    return lambda kills: request.node.user_properties.append((KILLS, kills))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if getattr(report, "when", None) == "teardown":  # has the properties of the whole test
            for name, count in report.user_properties:
                counts[name] += count
    kills, network = counts[KILLS], counts[NETWORK_FAULTS]
    if kills or network:
        terminalreporter.write_line(
            f"faults survived: {kills:,} processes killed or hosts cut off, {network:,} of the network"
        )


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """URL of a bucket on a server of this session; credentials and the server's address are in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "nobody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-tests")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem().mkdir("photos")
        yield "s3://photos"
    server.stop()


@pytest.fixture
def s3_url(s3_bucket: str) -> str:
    """URL of an empty folder in the bucket."""
    return f"{s3_bucket}/{uuid.uuid4().hex}"


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment with these variables; no client that was made before is used in it, and none of it afterwards."""
    with pytest.MonkeyPatch.context() as changes:
        for name, value in variables.items():
            changes.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server of this session."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def seaweed_url(seaweed_server: Seaweed) -> Iterator[str]:
    """URL of an empty folder on the real S3 server, which the environment tells how to reach for this test."""
    with environment(seaweed_server.environment):
        yield f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(seaweed_server: Seaweed, request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    """A proxy before the real S3 server, which the environment names for this test. It does no harm till it is told."""
    with (
        FaultProxy(seaweed_server.port, shares={}) as between,
        environment({**seaweed_server.environment, "AWS_ENDPOINT_URL": between.url}),
    ):
        yield between
    request.node.user_properties.append((NETWORK_FAULTS, between.counts.total()))


@pytest.fixture
def proxied_url(proxy: FaultProxy, request: pytest.FixtureRequest) -> str:
    """URL of an empty folder behind the proxy: of the same name in each session, so that the same faults happen."""
    return f"s3://{BUCKET}/{sha256(request.node.nodeid.encode()).hexdigest()[:16]}"


@pytest.fixture
def faulty_url(proxy: FaultProxy, proxied_url: str) -> str:
    """The same on a bad day: a third of the requests fail in one way or another."""
    proxy.shares = dict(BAD_DAY)
    return proxied_url


@pytest.fixture(scope="session")
def google_server() -> Iterator[str]:
    """Address of a stand-in for Google Cloud Storage."""
    from fake_google import google

    with google() as address:
        yield address


@pytest.fixture
def gs_url(google_server: str) -> Iterator[str]:
    """URL of an empty folder there, if the extra `gs` is installed."""
    gcsfs = pytest.importorskip("gcsfs.core", reason="the extra gs is not installed")
    with environment({"STORAGE_EMULATOR_HOST": google_server, "NO_GCE_CHECK": "true"}):
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield f"gs://{BUCKET}/{uuid.uuid4().hex}"
        gcsfs.GCSFileSystem.clear_instance_cache()


AZURE_SETTINGS = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
    # The emulator's one account, as its manual tells it.
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
)


@pytest.fixture(scope="session")
def azure_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Connection string of Azure's own emulator, if that and the extra `az` are installed."""
    adlfs = pytest.importorskip("adlfs", reason="the extra az is not installed")
    if (command := shutil.which("azurite-blob")) is None:
        pytest.skip("Azure's emulator is not installed: npm install -g azurite")
    folder = tmp_path_factory.mktemp("azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", folder]
    server = subprocess.Popen([command, "--blobPort", str(port), *flags], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"Azure's emulator ended with {server.wait(0.05)}")
        settings = AZURE_SETTINGS.format(port=port)
        adlfs.AzureBlobFileSystem(connection_string=settings).mkdir(BUCKET)
        yield settings
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def az_url(azure_settings: str) -> Iterator[str]:
    """URL of an empty folder on Azure's emulator."""
    with environment({"AZURE_STORAGE_CONNECTION_STRING": azure_settings}):
        yield f"az://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stack"]:
    """What `degrain up` starts: a Prefect server, a Ray head, an S3 server, and the flows."""
    from stack import stack

    with stack(tmp_path_factory.mktemp("up")) as running:
        yield running


@pytest.fixture
def memory_url() -> str:
    """URL of an empty folder in this process's memory."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Photos as small as those of the tests are slower on two threads than on one, most of all on a busy machine."""
    import torch  # most tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
