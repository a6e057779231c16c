"""`python -m flows.deploy FILE`: what `prefect deploy --all` does, but what people have set in the UI since stays.

It also has the server look after runs that lose their process.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.automations import apply, care, on_server
from flows.deployments import FLOWS, find_known, fitting
from pipeline.scratch import scratch_folder

BY_ENTRYPOINT = {f"{flow.fn.__module__}.{flow.fn.__name__}": flow for flow, _ in FLOWS}


def kept(deployment: dict[str, Any]) -> dict[str, Any]:  # Any: YAML
    """A deployment of a file; what it leaves open, with what the server has: schedules, parameters, and a pause.

    Schedules that are all off in the file are proposals, and left open.
    """
    flow = BY_ENTRYPOINT.get(deployment["entrypoint"])
    known = None if flow is None else find_known(flow, deployment["name"])
    if flow is None or known is None:
        return deployment
    found = {"parameters": fitting(flow, known.parameters), "paused": known.paused, **deployment}
    if not any(schedule.get("active", True) for schedule in found.get("schedules", [])):
        found.pop("schedules", None)  # where none are named, Prefect changes none
    return found


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m flows.deploy FILE (such as deploy/prefect.yaml)", file=sys.stderr)
        return 2
    try:
        text = Path(arguments[0]).read_text()
        values = yaml.safe_load(text)
        wanted = {(each["entrypoint"], each["name"]): each for each in values["deployments"]}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError) as error:
        print(f"degrain: {arguments[0]} is no file of deployments: {error!r}", file=sys.stderr)
        return 2
    # Prefect puts nothing in their places, and that overrules what the worker has in its environment.
    if missing := sorted({name for name in re.findall(r"{{ *\$(\w+) *}}", text) if name not in os.environ}):
        print(f"degrain: {arguments[0]} names {', '.join(missing)}: set that, if only to nothing", file=sys.stderr)
        return 2
    return on_server(lambda: _deploy(values, wanted.values()))


def _deploy(values: dict[str, Any], wanted: Iterable[dict[str, Any]]) -> int:  # Any: YAML
    with scratch_folder() as folder:
        file = folder / "prefect.yaml"
        file.write_text(yaml.safe_dump({**values, "deployments": [kept(each) for each in wanted]}))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", f"--prefect-file={file}"]
        code = subprocess.run(command, check=False).returncode  # noqa: S603  # our own command
    if not code:
        apply(care())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
