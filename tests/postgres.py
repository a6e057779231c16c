"""A real PostgreSQL on loopback, where Debian's package of one is installed."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flows.child import Child, answers, free_ports

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def is_installed() -> bool:
    return bool(PROGRAMS) and shutil.which("setpriv") is not None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """URL of an empty database for SQLAlchemy. The server refuses to be run by root, and then is run by nobody."""
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    as_user = (
        ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if os.geteuid() == 0 else []
    )
    with tempfile.TemporaryDirectory(prefix="degrain-postgres-") as name:
        shutil.chown(name, user.pw_uid, user.pw_gid)
        data = Path(name) / "data"
        made = [PROGRAMS[-1] / "initdb", "-D", data, "-U", "prefect", "--auth=trust", "--no-sync"]
        done = subprocess.run([*as_user, *map(str, made)], capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr
        [port] = free_ports(1)
        command = [PROGRAMS[-1] / "postgres", "-D", data, "-p", port, "-k", "", "-h", "127.0.0.1", "-c", "fsync=off"]
        server = Child("PostgreSQL", [*as_user, *map(str, command)], Path(name) / "log", {}, cwd=Path("/"))
        try:
            server.wait_until(lambda: answers(port), timeout_s=60)
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            server.stop()
