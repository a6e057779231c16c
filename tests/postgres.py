"""A real PostgreSQL on loopback, where Debian's package of one is installed."""

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from flows.child import Child, answers, free_ports

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def is_installed() -> bool:
    return bool(PROGRAMS) and shutil.which("setpriv") is not None


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """URL of an empty database for SQLAlchemy; it refuses to be run by root, and is run by nobody then."""
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = folder / "data"
    data.mkdir(mode=0o700)
    shutil.chown(data, user.pw_uid, user.pw_gid)
    for parent in [folder, *folder.parents]:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)  # or another user cannot reach it
    made = [PROGRAMS[-1] / "initdb", "-D", data, "-U", "prefect", "--auth=trust", "--no-sync"]
    subprocess.run([*as_user, *map(str, made)], check=True, capture_output=True, cwd="/")
    [port] = free_ports(1)
    command = [PROGRAMS[-1] / "postgres", "-D", data, "-p", port, "-k", "", "-c", "fsync=off"]
    server = Child("PostgreSQL", [*as_user, *map(str, command)], folder / "postgres.log", {}, cwd=Path("/"))
    try:
        server.wait_until(lambda: answers(port), timeout_s=60)
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        server.stop()
