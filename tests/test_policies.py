"""The bucket policies of deploy/policies, on a real S3 server: they allow what degrain does, and nothing else."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError
from conftest import environment
from seaweed import Seaweed, seaweed

from pipeline.clouds import S3
from pipeline.errors import ObjectExists, StorageError
from pipeline.object_store import ObjectStore
from pipeline.storage import Store

POLICIES = Path(__file__).parents[1] / "deploy/policies"
NAMES = ("source-read", "target-write")
PHOTO = "2019/a.jpg"


def policy(name: str, *, without: str = "") -> str:
    """The text of a policy for our buckets, less one action."""
    document = json.loads((POLICIES / f"{name}.json").read_text())
    for statement in document["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if f"{name} {action}" != without]
    document["Statement"] = [statement for statement in document["Statement"] if statement["Action"]]
    return json.dumps(document).replace("SOURCE", "source").replace("TARGET", "target")


ACTIONS = [
    f"{name} {action}"
    for name in NAMES
    for statement in json.loads(policy(name))["Statement"]
    for action in statement["Action"]
]


@dataclass(frozen=True, slots=True)
class Bank:
    """A server with two buckets, whose users have the policies and no other rights."""

    server: Seaweed
    numbers: Iterator[int]

    def client(self, service: str, credentials: dict[str, str]) -> Any:  # Any: botocore makes its classes as it runs
        known = {**self.server.environment, **credentials}
        return botocore.session.get_session().create_client(
            service,
            endpoint_url=known["AWS_ENDPOINT_URL"],
            region_name=known["AWS_DEFAULT_REGION"],
            aws_access_key_id=known["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=known["AWS_SECRET_ACCESS_KEY"],
        )

    def user(self, *, without: str = "") -> dict[str, str]:
        """A new user's environment, as soon as the server knows him."""
        name, iam = f"user-{next(self.numbers)}", self.client("iam", {})
        iam.create_user(UserName=name)
        for each in NAMES:
            iam.put_user_policy(UserName=name, PolicyName=each, PolicyDocument=policy(each, without=without))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        found = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        while self.code("list_objects_v2", found, Bucket="target") == "InvalidAccessKeyId":
            pass
        return {**self.server.environment, **found}

    def code(self, call: str, credentials: dict[str, str], **arguments: object) -> str:
        """What S3 answers: the code of its error, or nothing."""
        try:
            getattr(self.client("s3", credentials), call)(**arguments)
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return ""


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    with seaweed(tmp_path_factory.mktemp("bank"), {"s3.iam.readOnly": "false"}) as server:
        bank = Bank(server, itertools.count())
        for bucket in ("source", "target"):
            assert bank.code("create_bucket", {}, Bucket=bucket) == ""
        yield bank


@pytest.fixture
def folder(bank: Bank, request: pytest.FixtureRequest) -> str:
    """A folder of both buckets that is this test's own; in the source, it holds a photo."""
    name = str(next(bank.numbers))
    assert bank.code("put_object", {}, Bucket="source", Key=f"{name}/{PHOTO}", Body=b"a photo") == ""
    return name


def read_all(source: Store) -> None:
    """Whatever a run asks of its source."""
    photos = list(source.list())
    assert [data for _, data in source.read_many(photos)] == [b"a photo"]
    assert source.read_range(PHOTO, 2, 5) == b"photo"
    assert source.size(PHOTO) == 7
    with source.opened(PHOTO) as file:
        assert file.read() == b"a photo"


def write_all(target: Store, path: Path) -> None:
    """Whatever a run, its lease and a repair ask of its target."""
    assert not target.exists("manifest.json")
    target.write("images/a.jpg", b"a result")
    path.write_bytes(b"a large result")
    target.write_file("images/b.tif", path)
    target.create("commits/1.parquet", b"a commit")
    with pytest.raises(ObjectExists):
        target.create("commits/1.parquet", b"another")
    assert target.read("images/b.tif") == b"a large result"
    assert len(list(target.list())) == 3
    target.delete("commits/1.parquet")
    assert not target.exists("commits/1.parquet")


def do_all(folder: str, path: Path) -> None:
    read_all(ObjectStore.open(f"s3://source/{folder}"))
    write_all(ObjectStore.open(f"s3://target/{folder}"), path)


def test_they_allow_what_a_run_does(bank: Bank, folder: str, tmp_path: Path) -> None:
    with environment(bank.user()):
        do_all(folder, tmp_path / "file")


@pytest.mark.parametrize("without", [action for action in ACTIONS if "Multipart" not in action])
def test_none_of_the_actions_can_be_spared(bank: Bank, folder: str, tmp_path: Path, without: str) -> None:
    with environment(bank.user(without=without)), pytest.raises(StorageError, match=r"(?i)denied|forbidden"):
        do_all(folder, tmp_path / "file")


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.write("new.jpg", b"x"),
        lambda store: store.create("new.jpg", b"x"),
        lambda store: store.write(PHOTO, b"x"),
        lambda store: store.delete(PHOTO),
    ],
    ids=["write", "create", "overwrite", "delete"],
)
def test_nothing_in_the_source_can_be_changed(bank: Bank, folder: str, change: Callable[[Store], None]) -> None:
    with environment(bank.user()):
        source = ObjectStore.open(f"s3://source/{folder}")
        with pytest.raises(StorageError, match=r"cannot (write|create|delete)"):
            change(source)

        read_all(source)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("list_objects_v2", {"Bucket": "photos"}),
        ("put_object", {"Bucket": "photos", "Key": "a.jpg", "Body": b"x"}),
        ("create_bucket", {"Bucket": "mine"}),
        ("delete_bucket", {"Bucket": "target"}),
        ("put_bucket_policy", {"Bucket": "source", "Policy": "{}"}),
        ("put_bucket_lifecycle_configuration", {"Bucket": "target", "LifecycleConfiguration": {"Rules": []}}),
        ("put_object_acl", {"Bucket": "source", "Key": PHOTO, "ACL": "public-read"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["Bucket"],
)
def test_nothing_else_is_allowed(bank: Bank, folder: str, call: str, arguments: dict[str, object]) -> None:
    assert bank.code(call, bank.user(), **arguments) == "AccessDenied"


def test_only_files_that_s3_does_not_take_at_once_are_uploaded_in_parts() -> None:
    assert S3.LARGEST == 5 * 1024**3  # then s3fs may abort an upload: AbortMultipartUpload
