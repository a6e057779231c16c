"""Reading many objects from S3 servers on loopback: one by one, s3fs's own way, threads, and `Store.read_many`.

    python tests/benchmarks/storage.py [--rounds 5] [--servers seaweed moto]

Both servers run in processes of their own. The ways take turns for some rounds, and the best round counts. A ratio is
the speed beside that of reading one object after the other with s3fs as it comes. The client's own CPU time, by its
median, tells more on a busy machine.
"""

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import s3fs
from contest import in_turn

from pipeline.records import SourceObject
from pipeline.storage import AT_ONCE, Store, open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
from seaweed import BUCKET, seaweed

KINDS = {"1 MB": (1_000_000, 100), "20 kB": (20_000, 500)}  # bytes of an object, and objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    options = parser.parse_args()
    for name in options.servers:
        with tempfile.TemporaryDirectory() as folder, SERVERS[name](Path(folder)) as environment:
            os.environ.update(environment)
            s3fs.S3FileSystem.clear_instance_cache()
            for label, (size_bytes, count) in KINDS.items():
                measure(f"{name}, {count} objects of {label}", size_bytes, count, options.rounds)


def measure(title: str, size_bytes: int, count: int, rounds: int) -> None:
    url = f"s3://{BUCKET}/{size_bytes}"
    store, plain = open_store(url), s3fs.S3FileSystem(use_listings_cache=False)
    data = os.urandom(size_bytes)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: store.write(str(number), data), range(count)))
    found = list(store.list())
    paths = [f"{url}/{one.key}" for one in found]
    ways: dict[str, Callable[[], list[bytes]]] = {
        "s3fs, one by one": lambda: [plain.cat_file(path) for path in paths],
        "read, one by one": lambda: [store.read(one.key) for one in found],
        "s3fs, cat of the list": lambda: list(plain.cat(paths).values()),
        f"read, {AT_ONCE} threads": lambda: in_threads(store, found),
        f"read_many, {AT_ONCE} at once": lambda: [data for _, data in store.read_many(found)],
    }
    best: dict[str, float] = {}
    cpu_s: dict[str, list[float]] = {way: [] for way in ways}
    for _, way in in_turn(ways, rounds=rounds):
        start, cpu_start = time.perf_counter(), time.process_time()
        read_bytes = sum(map(len, ways[way]()))
        best[way] = min(best.get(way, float("inf")), time.perf_counter() - start)
        cpu_s[way].append(time.process_time() - cpu_start)
        assert read_bytes == size_bytes * count
    print(title)
    slowest = best["s3fs, one by one"]
    for way in ways:
        seconds = best[way]
        speed = f"{count / seconds:6.0f} objects/s  {count * size_bytes / seconds / 1e6:6.1f} MB/s"
        cpu = f"{statistics.median(cpu_s[way]) / count * 1e3:5.2f} ms CPU each"
        print(f"  {way:24} {speed}  {slowest / seconds:5.2f}  {cpu}")


def in_threads(store: Store, found: list[SourceObject]) -> list[bytes]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda one: store.read(one.key), found))


@contextlib.contextmanager
def running_seaweed(folder: Path) -> Iterator[Mapping[str, str]]:
    with seaweed(folder) as server:
        yield server.environment


@contextlib.contextmanager
def running_moto(folder: Path) -> Iterator[Mapping[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError):
                    address = f"http://127.0.0.1:{port}"
                    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
                    break
                time.sleep(0.1)
            yield {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "nobody",
                "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.terminate()


SERVERS = {"seaweed": running_seaweed, "moto": running_moto}


if __name__ == "__main__":
    main()
