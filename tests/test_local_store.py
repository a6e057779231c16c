"""The store that is a folder: what only it can go through. What it has in common with the others: `test_storage`."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import local_store
from pipeline.errors import ObjectExists, ObjectMissing, ObjectRefused, StorageError
from pipeline.fault_points import FaultPoint
from pipeline.local_store import ABANDONED_S, LocalStore
from pipeline.storage import TEMPORARY, unsafe_reason


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    root = tmp_path / "root"
    root.mkdir()
    return LocalStore(root)


def keys(store: LocalStore) -> list[str]:
    return sorted(found.key for found in store.list())


def etag(store: LocalStore, key: str) -> str:
    return next(found.etag for found in store.list() if found.key == key)


def test_a_file_that_is_replaced_while_it_is_opened_is_read_as_it_was(local: LocalStore) -> None:
    local.write("a.tif", b"first")

    with local.opened("a.tif") as file:
        local.write("a.tif", b"second")
        assert file.read() == b"first"


def fail_with(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("verb", ["write", "create"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_an_interrupted_write_leaves_nothing(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch, verb: str, number: int
) -> None:
    monkeypatch.setattr(local_store.os, "fsync", fail_with(number))

    with pytest.raises(StorageError, match=rf"^cannot write a\.jpg to \S+: {os.strerror(number).lower()}$") as caught:
        getattr(local, verb)("a.jpg", b"12345")

    assert not isinstance(caught.value, ObjectRefused)
    assert [path for path in local.root.rglob("*") if path.is_file()] == []


def test_an_interrupted_write_keeps_the_old_object(local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write("a.jpg", b"old")
    monkeypatch.setattr(local_store.os, "fsync", fail_with(errno.ENOSPC))

    with pytest.raises(StorageError):
        local.write("a.jpg", b"new")

    assert local.read("a.jpg") == b"old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("there is no command to mount a file system")
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run([umount, folder], check=True)


def test_a_full_disk_leaves_neither_half_an_object_nor_a_temporary_file(small_disk: Path) -> None:
    store = LocalStore(small_disk)
    store.write("small.jpg", bytes(1000))

    with pytest.raises(StorageError, match="no space left on device"):
        store.write("large.jpg", bytes(200_000))

    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["small.jpg"]
    store.write("next.jpg", bytes(20_000))


def test_a_read_only_disk_is_one_clear_line(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    with pytest.raises(StorageError, match=r"^cannot write a\.jpg to \S+: read-only file system$") as caught:
        LocalStore(small_disk).write("a.jpg", b"1")

    assert not isinstance(caught.value, ObjectRefused)


def test_a_write_that_stops_half_way_leaves_nothing(local: LocalStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageError, match="file too large"):
            local.write("a.jpg", bytes(50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [path for path in local.root.rglob("*") if path.is_file()] == []


def test_a_killed_writer_leaves_a_file_that_is_never_listed_and_that_clean_removes(local: LocalStore) -> None:
    script = (
        "import os, signal, sys, pathlib, pipeline.local_store as local_store\n"
        "local_store.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "local_store.LocalStore(pathlib.Path(sys.argv[1])).write('a.jpg', b'12345')\n"
    )
    subprocess.run([sys.executable, "-c", script, local.root], check=False)
    left = [path for path in local.root.rglob("*") if path.is_file()]

    assert [path.parent.name for path in left] == [TEMPORARY]
    assert keys(local) == []
    local.clean()
    assert list(local.root.iterdir()) == []


def test_cleaning_goes_on_where_another_process_tidies_the_folder_away(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (local.root / TEMPORARY).mkdir()
    iterdir = Path.iterdir

    def tidied(folder: Path) -> Iterator[Path]:
        shutil.rmtree(folder, ignore_errors=True)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", tidied)

    local.clean()

    assert not (local.root / TEMPORARY).exists()


def test_what_is_created_while_another_process_cleans_is_written_again(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = iter(range(3))

    def clean(point: FaultPoint) -> None:
        if point == FaultPoint.OBJECT_HALF_WRITTEN and next(others, None) is not None:
            LocalStore(local.root).clean()

    monkeypatch.setattr(local_store, "fault_point", clean)

    local.create("lease/1.json", b"mine")

    assert local.read("lease/1.json") == b"mine"
    with pytest.raises(ObjectExists):
        local.create("lease/1.json", b"another")


def test_cleaning_passes_over_a_folder_that_someone_has_made_there(local: LocalStore) -> None:
    (local.root / TEMPORARY / "mine").mkdir(parents=True)
    (local.root / TEMPORARY / "left").touch()

    local.clean()

    assert [path.name for path in (local.root / TEMPORARY).iterdir()] == ["mine"]


def test_closing_leaves_only_objects_and_the_store_goes_on(local: LocalStore) -> None:
    local.write("a.jpg", b"1")
    local.close()
    assert [path.name for path in local.root.iterdir()] == ["a.jpg"]

    local.write("b.jpg", b"2")
    assert keys(local) == ["a.jpg", "b.jpg"]


def test_closing_removes_what_a_writer_left_that_must_be_dead_and_nothing_of_others(local: LocalStore) -> None:
    folder = local.root / TEMPORARY
    folder.mkdir()
    (folder / "dead").touch()
    os.utime(folder / "dead", (0, time.time() - 2 * ABANDONED_S))
    (folder / "at-work").touch()

    local.close()

    assert [path.name for path in folder.iterdir()] == ["at-work"]


def test_a_folder_that_nobody_may_write_is_one_clear_line(local: LocalStore) -> None:
    local.root.chmod(0o500)
    try:
        if os.access(local.root, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(StorageError, match=r"^cannot write a\.jpg to \S+: permission denied$"):
            local.write("a.jpg", b"1")
    finally:
        local.root.chmod(0o700)


def test_a_root_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")

    with pytest.raises(StorageError, match=r"^cannot write a\.jpg to \S+: (not a directory|file exists)$"):
        LocalStore(tmp_path / "file").write("a.jpg", b"1")


@pytest.mark.parametrize(
    "number",
    [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENOTCONN],
    ids=errno.errorcode.get,
)
def test_an_ill_disk_is_no_refused_object(local: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    local.write("a.jpg", b"1")
    monkeypatch.setattr(Path, "read_bytes", fail_with(number))

    with pytest.raises(StorageError) as caught:
        local.read("a.jpg")

    assert not isinstance(caught.value, ObjectRefused)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no file at hand that cannot be read")
def test_a_file_that_the_disk_cannot_read_is_refused_while_it_reads_another() -> None:
    with pytest.raises(ObjectRefused, match=r"^cannot read mem in /proc/\d+: input/output error$"):
        LocalStore(Path("/proc/self")).read("mem")


def test_a_disk_that_reads_no_other_file_either_is_ill(local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a.jpg", "b.jpg"):
        local.write(key, b"1")
        local.read(key)
    monkeypatch.setattr(Path, "read_bytes", fail_with(errno.EIO))
    monkeypatch.setattr(Path, "open", fail_with(errno.EIO))

    with pytest.raises(StorageError) as caught:
        local.read("a.jpg")

    assert not isinstance(caught.value, ObjectRefused)


def test_a_link_that_leads_out_of_the_root_is_listed_and_refused(local: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (local.root / "out.jpg").symlink_to("../secret")

    assert keys(local) == ["out.jpg"]
    with pytest.raises(ObjectRefused, match=r"^out\.jpg is a link that leads out of "):
        local.read("out.jpg")


def test_a_link_within_the_root_is_read_and_has_the_files_size(local: LocalStore) -> None:
    local.write("2019/a.jpg", b"12345")
    (local.root / "best.jpg").symlink_to("2019/a.jpg")

    assert local.read("best.jpg") == b"12345"
    assert {found.size_bytes for found in local.list()} == {5}
    assert etag(local, "best.jpg") == etag(local, "2019/a.jpg")


def test_a_broken_link_is_listed_and_refused(local: LocalStore) -> None:
    (local.root / "link.jpg").symlink_to("nowhere.jpg")

    assert keys(local) == ["link.jpg"]
    with pytest.raises(ObjectRefused, match="no such file") as refused:
        local.read("link.jpg")
    assert not isinstance(refused.value, ObjectMissing)  # it is not gone: the next listing has it again


def test_a_link_to_itself_is_listed_and_refused(local: LocalStore) -> None:
    (local.root / "loop.jpg").symlink_to("loop.jpg")

    assert keys(local) == ["loop.jpg"]
    with pytest.raises(ObjectRefused, match="symbolic links"):
        local.read("loop.jpg")


def test_a_link_to_a_folder_is_listed_once_and_refused(local: LocalStore) -> None:
    local.write("2019/a.jpg", b"1")
    (local.root / "all").symlink_to(".")

    assert keys(local) == ["2019/a.jpg", "all"]
    with pytest.raises(ObjectRefused, match="it is no file"):
        local.read("all")


def test_a_folder_too_deep_for_a_path_is_listed_and_refused_and_the_others_are_read(local: LocalStore) -> None:
    local.write("a.jpg", b"a")
    inner = os.open(local.root, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=inner)
        outer, inner = inner, os.open("d" * 250, os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(os.open("b.jpg", os.O_CREAT, dir_fd=inner))
    os.close(inner)

    deep, shallow = sorted((listed.key for listed in local.list()), key=len, reverse=True)

    assert (shallow, local.read(shallow)) == ("a.jpg", b"a")
    with pytest.raises(ObjectRefused, match="file name too long"):
        local.read(deep)


def test_a_folder_that_may_not_be_listed_is_told_apart_from_what_is_no_file(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.write("private/a.jpg", b"1")
    scandir = os.scandir

    def forbid(folder: Path) -> Iterator[os.DirEntry[str]]:  # the superuser is never forbidden
        if Path(folder).name == "private":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(folder)

    monkeypatch.setattr(local_store.os, "scandir", forbid)

    assert keys(local) == ["private"]
    with pytest.raises(StorageError, match=r"cannot list \S+/private: permission denied"):
        list(local.list("private"))
    with pytest.raises(ObjectRefused, match=r"cannot read private in \S+: permission denied"):
        local.read("private")


def test_a_pipe_is_not_listed_and_a_link_to_it_is_refused(local: LocalStore) -> None:
    os.mkfifo(local.root / "pipe")
    (local.root / "link.jpg").symlink_to("pipe")

    assert keys(local) == ["link.jpg"]
    for key in ("pipe", "link.jpg"):
        with pytest.raises(ObjectRefused, match="it is no file"):
            local.read(key)


def test_a_name_that_is_no_text_is_listed_under_an_unsafe_key(local: LocalStore) -> None:
    (local.root / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")

    (found,) = local.list()

    assert found.key.encode() == rb"caf\udce9.jpg"
    assert unsafe_reason(found.key) is not None


def test_a_file_that_goes_during_a_listing_costs_only_itself(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        local.write(name, b"1")
    scandir = os.scandir

    class Vanishing:
        """A folder in which each file but the last one is gone by the time that it is looked at."""

        def __init__(self, folder: Path) -> None:
            self._entries = list(scandir(folder))

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            files = [entry for entry in self._entries if entry.name != TEMPORARY]
            for entry in files[:-1]:
                os.unlink(entry.path)  # noqa: PTH108
            return iter(files)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(local_store.os, "scandir", Vanishing)

    assert len(list(local.list())) == 1


def test_a_folder_that_becomes_a_file_during_a_listing_costs_only_itself(local: LocalStore) -> None:
    for key in ("a", "b", "folder/c"):
        local.write(key, b"1")
    listing = local.list()
    found = [next(listing).key]
    shutil.rmtree(local.root / "folder")
    (local.root / "folder").touch()

    assert sorted([*found, *(each.key for each in listing)]) == ["a", "b"]


def test_a_touched_file_has_another_etag(local: LocalStore) -> None:
    local.write("a.jpg", b"1")
    first = etag(local, "a.jpg")

    os.utime(local.root / "a.jpg", ns=(0, 1))

    assert etag(local, "a.jpg") != first


@pytest.mark.parametrize("verb", ["write", "create"])
def test_a_file_in_place_of_a_folder_is_refused(local: LocalStore, verb: str) -> None:
    local.write("a", b"1")

    with pytest.raises(ObjectRefused, match=r"^cannot write a/b\.jpg to "):
        getattr(local, verb)("a/b.jpg", b"2")
    assert keys(local) == ["a"]


def test_a_folder_in_place_of_a_file_is_refused(local: LocalStore) -> None:
    local.write("a/b.jpg", b"1")

    with pytest.raises(ObjectRefused, match=r"^cannot write a to .*: is a directory$"):
        local.write("a", b"2")


def test_an_empty_folder_in_place_of_a_file_is_no_object_and_gives_way(local: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"2")
    for key in ("a", "b"):
        (local.root / key).mkdir(parents=True)

    local.write("a", b"1")
    local.write_file("b", tmp_path / "file")

    assert [local.read(key) for key in ("a", "b")] == [b"1", b"2"]


def test_a_name_too_long_for_the_file_system_is_refused(local: LocalStore) -> None:
    key = "/".join(["x" * 200] * 25)

    for verb in (local.read, lambda key: local.write(key, b"")):
        with pytest.raises(ObjectRefused, match=r"file name too long$"):
            verb(key)
    assert unsafe_reason(key) is None


def test_a_create_whose_answer_a_network_mount_lost_is_no_others(
    monkeypatch: pytest.MonkeyPatch, local: LocalStore
) -> None:
    link = os.link

    def asked_twice(source: Path, target: Path) -> None:
        with contextlib.suppress(FileExistsError):
            link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", asked_twice)

    local.create("a", b"first")
    with pytest.raises(ObjectExists):
        local.create("a", b"second")

    assert local.read("a") == b"first"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_create_works_on_a_file_system_without_links(
    monkeypatch: pytest.MonkeyPatch, local: LocalStore, code: int
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)

    local.create("a", b"first")
    with pytest.raises(ObjectExists):
        local.create("a", b"second")

    assert local.read("a") == b"first"
    assert [found.key for found in local.list()] == ["a"]
