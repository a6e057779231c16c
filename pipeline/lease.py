"""One run at a time on a target: a lease kept in the target, which ends by itself when its holder no longer renews it.

The lease is a row of claims, `lease/<number>.json`, of which the highest counts. Whoever takes, renews or gives up the
lease creates the next number, which only one can: no other operation of a store need be atomic. The highest number is
never removed, so that a slow contender, whose number others have used and removed meanwhile, sees that he is late.

Clocks of hosts that work on one target must agree within CLOCK_SKEW_S. A holder that could not renew for GIVE_UP_S
takes its lease for lost, and its workers end when they have not heard of it for `cluster.ORPHANED_S`; together these
are less than EXPIRY_S. What is left is one request under way in a process that is halted for longer than that.
"""

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

from pipeline.errors import (
    DegrainError,
    ImageSetError,
    ObjectExists,
    ObjectMissing,
    RunFailed,
    StorageError,
    TargetInUse,
)
from pipeline.fault_points import FaultPoint, fault_point
from pipeline.storage import Store

log = logging.getLogger(__name__)

FOLDER = "lease"
EXPIRY_S = 120.0
RENEWAL_S = 15.0
GIVE_UP_S = 60.0
CLOCK_SKEW_S = 30.0
ATTEMPTS = 5  # at taking it, while others do the same
_NAME = re.compile(rf"{FOLDER}/(\d{{10}})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that can be told from every other one, on this and on other machines.

    Attributes:
        machine: its kernel's boot and its namespace of process ids; empty where they cannot be told.
        started: of the process, in the kernel's clock ticks.
    """

    host: str
    pid: int
    machine: str
    started: str

    @classmethod
    def this(cls) -> "Process":
        started = _start_of(os.getpid()) or ""
        return cls(host=socket.gethostname(), pid=os.getpid(), machine=_machine(), started=started)

    @property
    def is_gone(self) -> bool:
        """Whether it is certain that it has ended: that can be told only of a process on this machine."""
        if not self.machine or self.machine != _machine():
            return False
        started = _start_of(self.pid)
        return started != self.started if started is not None else not _is_there(self.pid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a lease's object says: who holds the lease, and until when unless it is renewed.

    Attributes:
        is_outlived: whether workers may go on for a while where its process is gone, so that it holds until it expires.
    """

    command: str
    process: Process
    taken_at: datetime
    expires_at: datetime
    is_released: bool = False
    is_outlived: bool = False

    def holds(self, now: datetime) -> bool:
        if self.is_released or (self.process.is_gone and not self.is_outlived):
            return False
        return now < self.expires_at + timedelta(seconds=CLOCK_SKEW_S)

    def is_of(self, other: "Claim") -> bool:
        """Whether both are of one holder, who has renewed his lease or not."""
        return (self.process, self.taken_at) == (other.process, other.taken_at)

    def refusal(self, url: str) -> str:
        free_at = self.expires_at + timedelta(seconds=CLOCK_SKEW_S)
        return (
            f"{url} is in use by '{self.command}' (process {self.process.pid} on {self.process.host}, since "
            f"{self.taken_at:%Y-%m-%d %H:%M:%S} UTC): wait until that has ended, or end it; should it be dead already, "
            f"its lease is free at {free_at:%Y-%m-%d %H:%M:%S} UTC"
        )


class Lease:
    """A lease that this process holds, and a thread that renews it."""

    def __init__(self, store: Store, claim: Claim, number: int) -> None:
        self._store = store
        self._claim = claim
        self._number = number
        self._renewed_s = _now_s()
        self._lost: str | None = None
        self._is_taken = False
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @classmethod
    def take(cls, store: Store, command: str, *, is_outlived: bool = False) -> "Lease":
        """The lease of a target, whose holder before was released, has expired or is dead, with all of his workers.

        Raises:
            TargetInUse: someone holds it.
            StorageError: it cannot be written there, or nothing can be deleted.
        """
        for _ in range(ATTEMPTS):
            highest = refuse_if_leased(store)
            now = datetime.now(UTC)
            process = Process.this()
            claim = Claim(command=command, process=process, taken_at=now, expires_at=now, is_outlived=is_outlived)
            lease = cls(store, claim, highest)
            with suppress(RunFailed):  # someone was faster: who that is comes to light in the next attempt
                lease._renew()
                if not highest:
                    lease._try_deleting()
                fault_point(FaultPoint.LEASE_TAKEN)
                lease._thread.start()
                return lease
        raise TargetInUse(f"{store.url} is being taken by several runs at once: try again")

    @property
    def claim(self) -> Claim:
        """By which a worker elsewhere can tell whether the lease is still this one: see `refuse_if_lost`."""
        return self._claim

    def check(self) -> None:
        """Do this before anything that only the holder may do.

        Raises:
            RunFailed: the lease is lost, or could not be renewed for so long that it may be.
        """
        if self._lost is None and _now_s() - self._renewed_s > GIVE_UP_S:
            try:
                self._renew()
            except StorageError as error:
                self._lost = f"the lease of {self._store.url} could not be renewed: {error}"
        if self._lost is not None:
            raise RunFailed(f"{self._lost}; what is committed stays, and the next run does the rest")

    def release(self) -> None:
        """Let the next run begin at once. Where that cannot be written, the lease expires."""
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            try:
                self._renew(is_released=True)
            except (StorageError, RunFailed) as error:
                log.warning("the lease of %s was not released: %s", self._store.url, error)

    def _try_deleting(self) -> None:
        """Where it is forbidden, better now than at the first renewal: a minute of work would be lost."""
        try:
            self._renew()
        except StorageError:
            with suppress(StorageError):
                self._renew(is_released=True)
            raise

    def _keep(self) -> None:
        while not self._ended.wait(RENEWAL_S) and self._lost is None:
            try:
                self._renew()
                fault_point(FaultPoint.LEASE_RENEWED)
            except RunFailed as error:
                log.warning("%s", error)
            except DegrainError as error:
                log.warning("the lease of %s was not renewed: %s", self._store.url, error)

    def _renew(self, *, is_released: bool = False) -> None:
        """Create the next number, and remove those before.

        Raises:
            RunFailed: someone else has: the lease is theirs, or was.
        """
        with self._changing:
            begun_s, now = _now_s(), datetime.now(UTC)
            claim = replace(self._claim, expires_at=now + timedelta(seconds=EXPIRY_S), is_released=is_released)
            if self._is_taken:
                self._check_last()
            while not self._create(self._number + 1, claim):
                if not self._is_mine(self._number + 1):
                    self._lose(f"another run took over {self._store.url} meanwhile")
                self._number += 1  # what was thought to have failed had not
            self._number, self._renewed_s, self._is_taken = self._number + 1, begun_s, True

    def _check_last(self) -> None:
        """Raise RunFailed if our claim is another's by now, or gone with all others.

        There are S3 servers that create what is there already, and folders from which a disk is unmounted.
        """
        is_mine = self._is_mine(self._number)
        if is_mine is False:
            self._lose(f"another run took over {self._store.url} meanwhile")
        if is_mine is None and not _numbers(self._store):
            self._lose(f"the lease of {self._store.url} has vanished, as if its disk were unmounted")

    def _lose(self, reason: str) -> NoReturn:
        self._lost = reason
        raise RunFailed(reason)

    def _create(self, number: int, claim: Claim) -> bool:
        """Whether this claim is the highest now."""
        try:
            self._store.create(_key(number), _to_json(claim))
        except ObjectExists:
            return False
        numbers = _numbers(self._store)
        if numbers[-1:] != [number]:
            self._store.delete(_key(number))
            return False
        try:
            for old in numbers[:-1]:
                self._store.delete(_key(old))
        except StorageError as error:
            raise StorageError(f"{error} (whoever writes to a target must be allowed to delete there)") from error
        return True

    def _is_mine(self, number: int) -> bool | None:
        """None where there is no such claim."""
        found = _read(self._store, number)
        return None if found is None else found.is_of(self._claim)


@contextmanager
def leased(store: Store, command: str, *, is_outlived: bool = False) -> Iterator[Lease]:
    """Hold the lease of a target for as long as the context lasts.

    Args:
        store: the target.
        command: what the holder is called in the message that refuses others.
        is_outlived: see `Claim`.

    Raises:
        TargetInUse: someone holds it.
    """
    lease = Lease.take(store, command, is_outlived=is_outlived)
    try:
        yield lease
    finally:
        lease.release()


def refuse_if_leased(store: Store) -> int:
    """The number of the last claim, 0 if there is none; without taking the lease.

    Raises:
        TargetInUse: someone holds it.
    """
    numbers = _numbers(store)
    if not numbers:
        return 0
    last = _read(store, numbers[-1])
    if last is not None and last.holds(datetime.now(UTC)):
        raise TargetInUse(last.refusal(store.url))
    return numbers[-1]


def refuse_if_lost(store: Store, claim: Claim) -> None:
    """What `Lease.check` is to a holder, by two requests, for a worker of his on another machine.

    Raises:
        RunFailed: another run holds the lease, or its holder has not renewed it, or ended.
    """
    for _ in range(ATTEMPTS):
        if not (numbers := _numbers(store)):
            return  # nobody else has it
        if (last := _read(store, numbers[-1])) is None:
            continue  # it was renewed a moment ago
        if not last.is_of(claim) or not last.holds(datetime.now(UTC)):
            raise RunFailed(f"the lease of {store.url} is lost to another run, or was not renewed")
        return


def is_given_up(store: Store) -> bool:
    """Whether the last holder ended in good order, and left nothing to tidy up."""
    numbers = _numbers(store)
    last = _read(store, numbers[-1]) if numbers else None
    return last is not None and last.is_released


def is_lease(key: str) -> bool:
    """Whether an object of a target is a part of its lease."""
    return _NAME.fullmatch(key) is not None


def _numbers(store: Store) -> list[int]:
    found = (_NAME.fullmatch(listed.key) for listed in store.list(FOLDER))
    return sorted(int(match[1]) for match in found if match)


def _key(number: int) -> str:
    return f"{FOLDER}/{number:010}.json"


def _read(store: Store, number: int) -> Claim | None:
    """None where its holder has just renewed or released it."""
    try:
        values = json.loads(store.read(_key(number)))
        for name in ("taken_at", "expires_at"):
            values[name] = datetime.fromisoformat(values[name])
        return Claim(process=Process(**values.pop("process")), **values)
    except ObjectMissing:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageSetError(
            f"{store.url}/{_key(number)} is damaged: remove it, if no run is at work on this target"
        ) from error


def _to_json(claim: Claim) -> bytes:
    return (json.dumps(asdict(claim), indent=2, default=datetime.isoformat) + "\n").encode()


def _now_s() -> float:
    """Of a clock that nobody sets, and that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine started; empty where only its remains are there, None where nothing is told.

    A `/proc` that is mounted with `hidepid` tells nothing of the processes of other users.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else fields[18]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # it may be another user's
    return True
