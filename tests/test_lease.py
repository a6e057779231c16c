"""One run at a time on a target, in a folder and in a bucket, by nothing else than creates of which one wins."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from faults.proxy import FaultProxy

from pipeline import lease
from pipeline.errors import ImageSetError, ObjectExists, RunFailed, StorageError, TargetInUse
from pipeline.imageset import ImageSet
from pipeline.lease import Claim, Lease, Process, leased, refuse_if_leased, refuse_if_lost
from pipeline.local_store import LocalStore
from pipeline.records import Layout
from pipeline.storage import Store, open_store

STRANGER = Process(host="beta", pid=4711, machine="another boot", started="1")


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    return open_store(str(tmp_path) if request.param == "folder" else request.getfixturevalue("seaweed_url"))


@pytest.fixture
def folder(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def claim(store: Store, number: int = 7, **changes: object) -> None:
    """Put a stranger's claim there, which ends in a minute."""
    now = datetime.now(UTC)
    values = Claim(command="degrain denoise", process=STRANGER, taken_at=now, expires_at=now + timedelta(seconds=60))
    store.create(lease._key(number), lease._to_json(dataclasses.replace(values, **changes)))


def keys(store: Store) -> list[str]:
    return sorted(listed.key for listed in store.list())


def test_a_second_run_is_refused_in_one_line_that_says_by_whom_and_until_when(store: Store) -> None:
    with leased(store, "degrain denoise"), pytest.raises(TargetInUse) as refused:
        Lease.take(store, "degrain ingest")

    assert str(refused.value).startswith(f"{store.url} is in use by 'degrain denoise' (process {os.getpid()} on ")
    assert str(refused.value).endswith(" UTC")
    assert "\n" not in str(refused.value)


def test_a_lease_that_was_given_up_is_free_at_once_and_one_object_is_left(store: Store) -> None:
    for _ in range(3):
        with leased(store, "degrain denoise"):
            assert len(keys(store)) == 1
    assert len(keys(store)) == 1
    refuse_if_leased(store)


@pytest.mark.parametrize("state", ["free", "expired"])
def test_of_eight_that_take_it_at_once_one_wins(store: Store, state: str) -> None:
    if state == "expired":
        claim(store, expires_at=datetime.now(UTC) - timedelta(minutes=5))
    barrier = Barrier(8)

    def take(_: int) -> Lease | None:
        barrier.wait()
        try:
            return Lease.take(open_store(store.url), "degrain denoise")
        except TargetInUse:
            return None

    with ThreadPoolExecutor(8) as pool:
        [winner] = [taken for taken in pool.map(take, range(8)) if taken is not None]
    winner.check()
    winner.release()
    assert len(keys(store)) == 1


class Careless(LocalStore):
    """As an S3 server that knows nothing of `If-None-Match`."""

    def create(self, key: str, data: bytes) -> None:
        self.write(key, data)


def test_of_two_that_take_it_at_once_where_both_creates_succeed_one_learns_that_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Careless(tmp_path)
    claim(store, 1, is_released=True)
    first = Lease.take(store, "degrain denoise")
    monkeypatch.setattr(lease, "refuse_if_leased", lambda _: 1)  # it has looked a moment before
    second = Lease.take(store, "degrain denoise")

    with pytest.raises(RunFailed, match="another run took over"):
        first._renew()

    second._renew()
    second.release()


@pytest.mark.parametrize("is_outlived", [False, True])
def test_the_lease_of_a_process_that_is_gone_is_free_unless_its_workers_may_go_on(
    folder: LocalStore, is_outlived: bool
) -> None:
    gone, now = dataclasses.replace(Process.this(), started="1"), datetime.now(UTC)
    claim(folder, 1, process=gone, is_outlived=is_outlived, expires_at=now + timedelta(seconds=20))
    if is_outlived:
        with pytest.raises(TargetInUse):
            refuse_if_leased(folder)
        claim(folder, 2, process=gone, is_outlived=True, expires_at=now - timedelta(seconds=lease.CLOCK_SKEW_S + 5))
    refuse_if_leased(folder)


def test_what_a_stranger_holds_is_refused_until_it_has_expired_on_any_clock(folder: LocalStore) -> None:
    claim(folder, 1, expires_at=datetime.now(UTC) - timedelta(seconds=lease.CLOCK_SKEW_S - 5))
    with pytest.raises(TargetInUse, match=r"'degrain denoise' \(process 4711 on beta, since "):
        Lease.take(folder, "degrain denoise")

    claim(folder, 2, expires_at=datetime.now(UTC) - timedelta(seconds=lease.CLOCK_SKEW_S + 5))
    Lease.take(folder, "degrain denoise").release()


def test_a_lease_by_a_clock_that_was_years_ahead_is_told_with_the_day_that_ends_it(folder: LocalStore) -> None:
    claim(folder, expires_at=datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC))

    with pytest.raises(TargetInUse, match="its lease is free at 2099-01-02 03:04:35 UTC"):
        Lease.take(folder, "degrain denoise")


def test_the_lease_of_a_process_of_this_machine_that_was_killed_is_free_at_once(store: Store) -> None:
    code = f"""
import os, signal
from pipeline.lease import Lease
from pipeline.storage import open_store
Lease.take(open_store({store.url!r}), "degrain denoise")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -9

    with leased(store, "degrain denoise"):
        assert len(keys(store)) == 1


def test_a_process_that_was_killed_is_gone_even_before_its_parent_has_heard_of_it() -> None:
    process = subprocess.Popen(["sleep", "60"])
    here = dataclasses.replace(Process.this(), pid=process.pid, started=lease._start_of(process.pid))
    assert not here.is_gone

    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert here.is_gone
    process.wait()


def test_another_process_with_the_same_id_is_not_taken_for_the_holder() -> None:
    assert dataclasses.replace(Process.this(), started="1").is_gone
    assert not dataclasses.replace(Process.this(), started="1", machine="another boot").is_gone


def test_a_process_of_which_proc_tells_nothing_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(["sleep", "60"])
    here = dataclasses.replace(Process.this(), pid=process.pid, started=lease._start_of(process.pid))
    read_text = Path.read_text

    def hidden(path: Path) -> str:
        if path.name == "stat":
            raise FileNotFoundError(path)
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", hidden)
    assert not here.is_gone

    process.kill()
    process.wait()
    assert here.is_gone


def test_a_holder_whose_lease_was_taken_over_stops_before_it_does_any_harm(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageSet(store)
    images.open_for("s3://source", Layout.FILES)

    def run() -> None:
        with images.leased("degrain denoise"):
            monkeypatch.setattr(lease, "GIVE_UP_S", -1.0)  # as if it had been halted for long
            claim(store, 3)
            images.publish("run", [])

    with pytest.raises(RunFailed, match="another run took over"):
        run()
    assert images.read_manifest().run == ""


def test_a_contender_who_is_late_by_several_holders_sees_it(store: Store) -> None:
    late = Lease(store, Claim(command="", process=STRANGER, taken_at=datetime.now(UTC), expires_at=NEVER), 1)
    claim(store, 7)  # meanwhile others have used and removed what comes after 1

    with pytest.raises(RunFailed):
        late._renew()

    assert keys(store) == ["lease/0000000007.json"]


NEVER = datetime.max.replace(tzinfo=UTC)


def test_a_lease_is_renewed_while_it_is_held(folder: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.01)
    with leased(folder, "degrain denoise") as held:
        while held._number < 4:
            held._thread.join(0.01)
        held.check()
        assert lease._numbers(folder)[-1] >= 4


def test_a_target_that_is_unmounted_while_it_is_leased_is_not_begun_anew_in_the_folder_below(
    folder: LocalStore,
) -> None:
    with leased(folder, "degrain denoise") as held:
        shutil.rmtree(folder.root / "lease")

        with pytest.raises(RunFailed, match="has vanished, as if its disk were unmounted"):
            held._renew()
        with pytest.raises(RunFailed, match="has vanished"):
            held.check()
    assert not keys(folder)


class Ill(LocalStore):
    """A folder that does what it is asked, and says that it failed."""

    is_ill = False

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        if self.is_ill:
            raise StorageError("timed out")


def test_a_renewal_that_seemed_to_fail_is_not_taken_for_another_holder(tmp_path: Path) -> None:
    store = Ill(tmp_path)
    with leased(store, "degrain denoise") as held:
        store.is_ill = True
        with pytest.raises(StorageError):
            held._renew()
        store.is_ill = False

        held._renew()
        held.check()


def test_a_holder_that_cannot_renew_for_long_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Ill(tmp_path)
    with leased(store, "degrain denoise") as held:
        store.is_ill = True
        held.check()
        monkeypatch.setattr(lease, "GIVE_UP_S", -1.0)
        with pytest.raises(RunFailed, match="could not be renewed: timed out"):
            held.check()


def test_a_target_in_which_nothing_can_be_deleted_is_refused_before_any_work(
    proxy: FaultProxy, proxied_url: str
) -> None:
    store = open_store(proxied_url)
    proxy.refuse = lambda method, _: (403, "AccessDenied") if method == "DELETE" else None

    for _ in range(2):
        with pytest.raises(StorageError, match=r"cannot delete lease/.* must be allowed to delete there"):
            Lease.take(store, "degrain denoise")


def test_a_damaged_claim_is_named(folder: LocalStore) -> None:
    folder.create("lease/0000000001.json", b"{}")

    with pytest.raises(ImageSetError, match=r"lease/0000000001.json is damaged: remove it, if no run is at work"):
        Lease.take(folder, "degrain denoise")


def test_what_is_left_of_a_run_that_only_took_the_lease_does_not_occupy_the_target(folder: LocalStore) -> None:
    with ImageSet(folder).leased("degrain denoise"):
        assert keys(folder)

    ImageSet(folder).open_for("s3://source", Layout.FILES)


def test_a_number_is_created_once(folder: LocalStore) -> None:
    claim(folder, 1)

    with pytest.raises(ObjectExists):
        claim(folder, 1)


def test_a_worker_elsewhere_knows_the_lease_of_its_run_until_it_is_lost(store: Store) -> None:
    with leased(store, "degrain train") as lease_:
        lease_._renew()
        refuse_if_lost(store, lease_.claim)

    with pytest.raises(RunFailed, match="is lost"):
        refuse_if_lost(store, lease_.claim)
    with leased(store, "degrain train"), pytest.raises(RunFailed, match="is lost"):
        refuse_if_lost(store, lease_.claim)
