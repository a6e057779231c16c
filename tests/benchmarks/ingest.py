"""`degrain ingest` from a bucket into a bucket, against a parallel copy of the same objects, in one run.

    python tests/benchmarks/ingest.py FOLDER_OF_PHOTOS [--photos 2000] [--work /tmp/ffhq] [--rounds 1]

The collection is shaped like FFHQ: distinct PNGs of 1024² and some 1.3 MB, made from crops of the photos and kept in
`--work` for the next time. A real S3 server (SeaweedFS) on loopback holds it. Measured, each in processes of its own:

- copy: every object got and put again by s3fs, ten at a time, as `aws s3 cp --recursive` would;
- ingest: the whole command, and the seconds that it reports: with the start of its workers, without that of Ray;
- ingest again, when 1 % of the objects have changed: what the server sent, by its own counters.

Peak memory is the resident set that Linux reports of each process, which counts shared pages in all of them.
"""

import argparse
import asyncio
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
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
        tempfile.TemporaryDirectory(dir=options.work) as name,
        seaweed(Path(name), {"metricsPort": metrics_port, "master.volumeSizeLimitMB": 1024}) as running,
    ):
        os.environ.update(running.environment)
        server = Server(metrics_port)
        put_all(files)
        for turn in range(options.rounds):
            report("copy", len(files), total, measure(server, copy_command(options.folder, turn)))
            report("ingest", len(files), total, measure(server, ingest_command(turn, options.workers)))
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
    said: dict[str, float]
    gets: int
    sent_bytes: int
    peaks_mb: dict[str, list[float]] = field(default_factory=dict)


def measure(server: Server, command: Sequence[str]) -> Measured:
    gets, sent = server.counters()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    peaks: dict[int, tuple[str, float]] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peaks, ended))
    watcher.start()
    out, _ = process.communicate()
    wall_s = time.perf_counter() - start
    ended.set()
    watcher.join()
    assert process.returncode == 0, out
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kind, peak_mb in peaks.values():
        by_kind[kind].append(peak_mb)
    gets_after, sent_after = server.counters()
    return Measured(wall_s, json.loads(out.splitlines()[-1]), gets_after - gets, sent_after - sent, by_kind)


def watch(session: int, peaks: dict[int, tuple[str, float]], ended: threading.Event) -> None:
    """Note the peak memory of every process in a session, until told that it has ended."""
    while not ended.wait(0.1):
        for pid, kind in processes_of(session):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    peaks[pid] = ("driver" if pid == session else kind, int(line.split()[1]) / 1024)


def processes_of(session: int) -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            name = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(fields[3]) == session:
            yield int(path.name), "worker" if "ray::_Actor" in name else "Ray"


def report(name: str, photos: int, size_bytes: int, measured: Measured) -> None:
    seconds = measured.said["seconds"]
    print(
        f"{name:20} {seconds:7.1f} s  {photos / seconds:7.1f} photos/s  {size_bytes / seconds / 1e6:7.1f} MB/s   "
        f"whole command {measured.wall_s:6.1f} s   {measured.gets:6,} GET, {measured.sent_bytes / 1e6:8.1f} MB sent"
    )
    for kind, peaks_mb in sorted(measured.peaks_mb.items()):
        largest = ", ".join(f"{peak:.0f}" for peak in sorted(peaks_mb, reverse=True)[:4])
        print(f"{'':20} peak memory of {kind}: {largest} MB")


if __name__ == "__main__":
    main()
