"""Ray's dashboard without its question to three clouds which of them it runs in.

It asks on every start, whatever is said of usage reports, and before it answers anybody: on a machine whose resolver is
out of reach it waits for ten seconds. It does not ask where a file in its home says how the cluster was made. So the
dashboard, and nothing else of Ray, has `ray_home` for it, in which that file says nothing, and is told where the true
home keeps what it needs.
"""

import os
import site
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray._private import ray_constants, services

HOME = Path(__file__).parent / "ray_home"


@contextmanager
def asking_no_cloud() -> Iterator[None]:
    """While this lasts, a dashboard that this process starts does not ask."""
    start = services.start_ray_process

    def start_there(command: list[str], process_type: str, *rest: Any, **options: Any) -> Any:  # Any: Ray's own
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD:
            options["env_updates"] = {**(options.get("env_updates") or {}), **_elsewhere()}
        return start(command, process_type, *rest, **options)

    services.start_ray_process = start_there
    try:
        yield
    finally:
        services.start_ray_process = start


def _elsewhere() -> dict[str, str]:
    """Variables for a process with another home: Ray's token and what `pip install --user` installed stay in ours."""
    token = Path.home() / ".ray/auth_token"
    is_needed = token.exists() and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return {
        "HOME": str(HOME),
        "PYTHONUSERBASE": site.getuserbase(),
        **({"RAY_AUTH_TOKEN_PATH": str(token)} if is_needed else {}),
    }
