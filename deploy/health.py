"""The health check of the image, for every role: asks what the container's first process serves, at its usual port.

A command that serves nothing, such as `degrain denoise`, is healthy while it runs. Needs the standard library alone.
"""

import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path, PurePath

TIMEOUT_S = 8.0
WRAPPERS = {"tini", "docker-init", "--"}


def url_of(command: Sequence[str]) -> str | None:
    """What answers with 200, without credentials, while this command does its work; None if nothing needs to."""
    words = [PurePath(word).name for word in command]
    while words and (words[0] in WRAPPERS or words[0].startswith("python")):
        words.pop(0)
    match words:
        case ["prefect", "server", "start", *_]:
            return "http://127.0.0.1:4200/api/health"
        case ["prefect", "worker", "start", *options] if "--with-healthcheck" in options:
            return "http://127.0.0.1:8080/health"
        case ["ray", "start", *options] if "--head" in options:
            return "http://127.0.0.1:8265/api/gcs_healthz"
        case ["ray", "start", *_]:
            return "http://127.0.0.1:52365/api/local_raylet_healthz"
    return None


def main() -> int:
    """Returns the exit code: 0 if healthy, else 1."""
    url = url_of(Path("/proc/1/cmdline").read_text().split("\0"))
    past_proxies = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # Docker gives them to every container
    try:
        if url is not None:
            past_proxies.open(url, timeout=TIMEOUT_S).close()
    except OSError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
