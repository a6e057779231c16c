"""`degrain ingest` from a bucket into a bucket, against a parallel copy of the same objects, in one run.

    python tests/benchmarks/ingest.py FOLDER_OF_PHOTOS [--photos 2000] [--work /tmp/ffhq] [--rounds 1]

The collection is shaped like FFHQ: distinct PNGs of 1024² and some 1.3 MB, made from crops of the photos and kept in
`--work` for the next time. A real S3 server (SeaweedFS) on loopback holds it. Measured, each in processes of its own:

- copy: every object got and put again by s3fs, ten at a time, as `aws s3 cp --recursive` would;
- ingest: the whole command, and the seconds that it reports: with the start of its workers, without that of Ray;
- ingest again, when 1 % of the objects have changed: what the server sent, by its own counters.

Peak memory is the resident set that Linux reports of each process, which counts shared pages in all of them. Seconds of
CPU are those of all processes of the command, and not of the server.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from contest import in_turn
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from seaweed import BUCKET, seaweed

SIDE_PX = 1024
COPIES_AT_ONCE = 10  # max_concurrent_requests of the AWS command line
CHANGED = 100  # every so manieth object


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photos to make the collection from")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ffhq")
    parser.add_argument("--workers", type=int, help="of degrain")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--copy", nargs=2, metavar=("FROM", "TO"), help=argparse.SUPPRESS)  # runs in its own process
    options = parser.parse_args()
    if options.copy:
        asyncio.run(copy(*options.copy))
        return
    files = make_collection(options.folder, options.work / "photos", options.photos)
    total = sum(path.stat().st_size for path in files)
    print(f"{len(files)} PNGs of {SIDE_PX}², {total / 1e6:,.0f} MB, {total / len(files) / 1e6:.2f} MB each")
    metrics_port = free_port()
    with (
        tempfile.TemporaryDirectory(dir=options.work) as scratch,
        seaweed(Path(scratch), {"metricsPort": metrics_port, "master.volumeSizeLimitMB": 1024}) as running,
    ):
        os.environ.update(running.environment)
        server = Server(metrics_port)
        put_all(files)
        for turn, name in in_turn(("copy", "ingest"), rounds=options.rounds):
            is_copy = name == "copy"
            command = copy_command(options.folder, turn) if is_copy else ingest_command(turn, options.workers)
            report(name, len(files), total, measure(server, command))
        changed, changed_bytes = change_some(files)
        last = measure(server, ingest_command(options.rounds - 1, options.workers))
        report(f"ingest, {changed} changed", changed, changed_bytes, last)
        assert (last.said["packed"], last.said["up_to_date"]) == (changed, len(files) - changed)


def make_collection(photos: Path, folder: Path, count: int) -> list[Path]:
    """Write what is missing of `count` distinct PNGs; returns all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [folder / f"{number:05}.png" for number in range(count)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(make_one, sorted(photos.iterdir())), wanted, chunksize=8))
    return wanted


def make_one(photos: Sequence[Path], path: Path) -> None:
    """One crop of one photo at 1024²; its number decides which."""
    if path.exists():
        return
    draw = np.random.default_rng(int(path.stem))
    with Image.open(photos[draw.integers(len(photos))]) as photo:
        side = min(int(draw.integers(500, 1000)), *photo.size)
        left, top = (int(draw.integers(length - side + 1)) for length in photo.size)
        crop = photo.convert("RGB").resize(
            (SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
        )
    temporary = path.with_suffix(".tmp")
    crop.save(temporary, "PNG", compress_level=1)
    temporary.replace(path)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def put_all(files: Sequence[Path]) -> None:
    import s3fs

    filesystem = s3fs.S3FileSystem()
    for bucket in ("copies", "sets"):
        filesystem.mkdir(bucket)
    filesystem.put([str(path) for path in files], [f"{BUCKET}/ffhq/{path.name}" for path in files], batch_size=8)


def change_some(files: Sequence[Path]) -> tuple[int, int]:
    """Give one object in a hundred other bytes: those of a neighbour, with a mark at their end."""
    import s3fs

    filesystem = s3fs.S3FileSystem()
    changed = files[::CHANGED]
    size_bytes = 0
    for path in changed:
        data = path.with_name(files[-1].name).read_bytes() + path.name.encode()
        filesystem.pipe_file(f"{BUCKET}/ffhq/{path.name}", data)
        size_bytes += len(data)
    return len(changed), size_bytes


async def copy(source: str, target: str) -> None:
    """Get each object and put it again."""
    import s3fs

    filesystem = s3fs.S3FileSystem(asynchronous=True)
    session = await filesystem.set_session()
    gate = asyncio.Semaphore(COPIES_AT_ONCE)

    async def one(path: str) -> None:
        async with gate:
            data = await filesystem._cat_file(path)
            await filesystem._pipe_file(f"{target}/{path.rpartition('/')[2]}", data)

    found = await filesystem._find(source)
    start = time.perf_counter()
    await asyncio.gather(*(one(path) for path in found))
    print(json.dumps({"seconds": time.perf_counter() - start}))
    await session.close()


def copy_command(folder: Path, turn: int) -> list[str]:
    return [sys.executable, __file__, str(folder), "--copy", f"{BUCKET}/ffhq", f"copies/{turn}"]


def ingest_command(turn: int, workers: int | None) -> list[str]:
    command = [sys.executable, "-m", "flows.cli", "ingest", f"s3://{BUCKET}/ffhq", f"s3://sets/{turn}", "--json"]
    return command if workers is None else [*command, "--workers", str(workers)]


@dataclass
class Server:
    """The counters of the S3 server."""

    metrics_port: int

    def counters(self) -> tuple[int, int]:
        """GET requests answered with content, and bytes sent, of the bucket with the photos."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()

        def total(name: str, *labels: str) -> int:
            found = (line for line in lines if line.startswith(f"SeaweedFS_s3_{name}{{"))
            return int(sum(float(line.split()[-1]) for line in found if all(label in line for label in labels)))

        bucket = f'bucket="{BUCKET}"'
        return (
            total("request_total", bucket, 'type="GET"', 'code="20'),
            total("bucket_traffic_sent_bytes_total", bucket),
        )


@dataclass
class Measured:
    """What a command took and said. `peaks_mb` is by kind of process, one number for each."""

    wall_s: float
    cpu_s: float
    said: dict[str, float]
    gets: int
    sent_bytes: int
    peaks_mb: dict[str, list[float]] = field(default_factory=dict)


def measure(server: Server, command: Sequence[str]) -> Measured:
    gets, sent = server.counters()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    seen: dict[int, Seen] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, seen, ended))
    watcher.start()
    out, _ = process.communicate()
    wall_s = time.perf_counter() - start
    ended.set()
    watcher.join()
    assert process.returncode == 0, out
    by_kind: dict[str, list[float]] = defaultdict(list)
    for one in seen.values():
        by_kind[one.kind].append(one.peak_mb)
    gets_after, sent_after = server.counters()
    return Measured(
        wall_s=wall_s,
        cpu_s=sum(one.cpu_s for one in seen.values()),
        said=json.loads(out.splitlines()[-1]),
        gets=gets_after - gets,
        sent_bytes=sent_after - sent,
        peaks_mb=by_kind,
    )


@dataclass(frozen=True)
class Seen:
    """A process, as it was last seen."""

    kind: str
    peak_mb: float
    cpu_s: float


def watch(session: int, seen: dict[int, Seen], ended: threading.Event) -> None:
    """Look at every process in a session, until told that it has ended."""
    while not ended.wait(0.1):
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, StopIteration):  # it may just have ended
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    seen[int(path.name)] = look_at(path, fields, is_driver=path.name == str(session))


def look_at(path: Path, fields: Sequence[str], *, is_driver: bool) -> Seen:
    is_worker = b"ray::_Actor" in (path / "cmdline").read_bytes()
    peak = next(line for line in (path / "status").read_text().splitlines() if line.startswith("VmHWM:"))
    return Seen(
        kind="driver" if is_driver else "worker" if is_worker else "Ray",
        peak_mb=int(peak.split()[1]) / 1024,
        cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    )


def report(name: str, photos: int, size_bytes: int, measured: Measured) -> None:
    seconds = measured.said["seconds"]
    print(
        f"{name:20} {seconds:7.1f} s  {photos / seconds:7.1f} photos/s  {size_bytes / seconds / 1e6:7.1f} MB/s\n"
        f"{'':20} whole command {measured.wall_s:.1f} s, {measured.cpu_s:.1f} s of CPU; "
        f"{measured.gets:,} GET, {measured.sent_bytes / 1e6:,.1f} MB sent"
    )
    for kind, peaks_mb in sorted(measured.peaks_mb.items()):
        largest = ", ".join(f"{peak:.0f}" for peak in sorted(peaks_mb, reverse=True)[:4])
        print(f"{'':20} peak memory of {kind}: {largest} MB")


if __name__ == "__main__":
    main()
