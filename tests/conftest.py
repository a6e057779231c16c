"""What several test modules share: a fixed choice of examples, and a real S3 server on loopback."""

import uuid
from collections.abc import Iterator

import pytest
import s3fs
from hypothesis import settings
from moto.server import ThreadedMotoServer

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same examples each time, on any machine
settings.load_profile("fixed")


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
