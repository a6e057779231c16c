"""Plans of millions of photos: seconds and memory of a process that makes them, and how both grow.

    python tests/benchmarks/planning.py [--millions 1 2 5 10] [--modes update first publish] [--folder FOLDER]

For each size it writes a listing, and an image set that holds 99 % of it, of which some photos have changed, were made
with other weights, or were rejected. Each row of the table is a process of its own:

- `update`: the index is fetched, the listing compared with it, the plan frozen, and its shards read back.
- `first`: the same where there is no image set yet, and every photo is new.
- `publish`: 1 % of the photos, neighbours as those of new photos are, is committed, and merged into the index.

The peak is that of the process's resident memory. CPU seconds, which other processes of the machine lengthen less than
the others, are of all threads; `ratio` is theirs for each photo against the row above.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.database import in_batches, open_database
from pipeline.imageset import ImageSet
from pipeline.index import PART_ROWS, count_outcomes
from pipeline.local_store import LocalStore
from pipeline.plan_file import PlanHeader, read_shard_sizes, read_shards
from pipeline.planning import Earlier, PlanOptions, write_plan
from pipeline.records import LISTING_SCHEMA, Layout, index_rows

SOURCE = "s3://photos"
HEADER = PlanHeader(source=SOURCE, weights="a" * 64, parameters="b" * 16)
SHARD_ROWS = 64
MODES = ("update", "first", "publish")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile [the usual place]")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, folder = options.child
        print(json.dumps(measure(mode, Path(folder))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        rows: dict[str, list[tuple[int, dict[str, float]]]] = {mode: [] for mode in options.modes}
        for millions in options.millions:
            photos = int(millions * 1e6)
            folder = Path(name) / str(photos)
            write_archive(folder, photos)
            for mode in options.modes:
                command = [sys.executable, __file__, "--child", mode, str(folder)]
                finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows[mode].append((photos, json.loads(finished.stdout.splitlines()[-1])))
                print(f"{mode} of {photos:,}: {finished.stdout.strip()}", file=sys.stderr)
        print(format_table(rows))
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[1]:.1f} over the last five minutes")


def measure(mode: str, folder: Path) -> dict[str, float]:
    """Seconds of each stage, their sum, and the peak of this process's memory in MiB."""
    seconds: dict[str, float] = {}
    cpu_start = time.process_time()

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[stage] = round(time.perf_counter() - start, 2)

    images = ImageSet(LocalStore(folder / ("target" if mode != "first" else "new-target")))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        if mode == "publish":
            shards = [path.stem for path in sorted((folder / "target/commits").iterdir())]
            with timed("publish"):
                manifest = images.publish("run-2", shards)
            assert sum(manifest.counts.values()) > 0.99 * rows_of(folder / "listing.parquet")
        else:
            images.open_for(SOURCE, Layout.FILES)
            plan = Path(name) / "plan.parquet"
            with timed("total"):
                start = time.perf_counter()
                with images.local_index() as index:
                    seconds["index"] = round(time.perf_counter() - start, 2)
                    with timed("compare and cut"):
                        counts = write_plan(
                            folder / "listing.parquet", Earlier(done=index), plan, PlanOptions(header=HEADER)
                        )
                with timed("freeze"):
                    images.write_plan(f"run-{mode}", plan)
                with timed("read back"):
                    assert sum(len(shard.photos) for shard in read_shards(plan, "run")) == counts.planned.photos
            assert len(read_shard_sizes(plan)) == counts.shards
    total = seconds.pop("total", sum(seconds.values()))
    return {**seconds, "seconds": total, "cpu_s": time.process_time() - cpu_start, "peak_mib": peak_mib()}


def peak_mib() -> int:
    """Of this process alone: what getrusage says begins with what its parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def format_table(rows: dict[str, list[tuple[int, dict[str, float]]]]) -> str:
    lines = [f"{'':8} {'photos':>12} {'seconds':>8} {'CPU s':>7} {'peak MiB':>9} {'ratio':>6}   stages, seconds"]
    for mode, measured in rows.items():
        before = None
        for photos, found in measured:
            total, cpu_s, peak = (found.pop(name) for name in ("seconds", "cpu_s", "peak_mib"))
            ratio = f"{cpu_s / photos / before:6.2f}" if before else f"{'':6}"
            stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.items())
            lines.append(f"{mode:8} {photos:12,} {total:8.1f} {cpu_s:7.1f} {peak:9.0f} {ratio}   {stages}")
            before = cpu_s / photos
    return "\n".join(lines)


def rows_of(path: Path) -> int:
    return int(pq.ParquetFile(path).metadata.num_rows)


def write_archive(folder: Path, photos: int) -> None:
    """A listing, an image set with an index of most of it, and commits that the index does not hold yet."""
    folder.mkdir(parents=True)
    store = LocalStore(folder / "target")
    images = ImageSet(store)
    manifest = images.open_for(SOURCE, Layout.FILES)
    with open_database(folder) as database:
        database.execute(
            f"""
            CREATE TABLE photos AS
            SELECT format('{{:04d}}/{{:02d}}/IMG_{{:04d}}_{{}}.jpg', 2000 + number * 25 // {photos},
                    1 + (number * 300 // {photos}) % 12, number % 10000, printf('%07x', number)) AS key,
                500000 + hash(number) % 8000000 AS size_bytes, md5('e' || number) AS etag, number
            FROM range({photos}) numbers(number)
            """
        )
        listing = database.sql("SELECT key, size_bytes, etag, NULL AS place FROM photos ORDER BY key")
        with pq.ParquetWriter(folder / "listing.parquet", LISTING_SCHEMA) as writer:
            for batch in in_batches(listing, 100_000):
                writer.write_table(batch.cast(LISTING_SCHEMA))

        finished = database.sql(f"{INDEX_ROWS} WHERE number % 100 <> 7 ORDER BY key")
        parts = []
        for number, batch in enumerate(in_batches(finished, PART_ROWS)):
            path = folder / "target/index" / f"part-run-1-{number:05}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(index_rows(batch), path, compression="zstd")
            parts.append(path)

        newest = f"{INDEX_ROWS} WHERE number * 50 // {photos} = 31 AND number % 2 = 1"
        for number, batch in enumerate(in_batches(database.sql(f"{newest} ORDER BY key"), SHARD_ROWS)):
            path = folder / "target/commits" / f"{number:08}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(index_rows(batch), path, compression="zstd")
    values = json.loads(store.read("manifest.json"))
    assert manifest.index == ()
    values |= {"run": "run-1", "index": [path.relative_to(store.root).as_posix() for path in parts]}
    values["counts"] = count_outcomes(parts)
    store.write("manifest.json", json.dumps(values).encode())


INDEX_ROWS = """
    SELECT key, if(number % 1000 = 1, 'old', etag) AS source_etag, size_bytes AS source_size_bytes,
        md5('s' || number) || md5('t' || number) AS source_sha256,
        if(number % 500 = 3, 'rejected', 'denoised') AS outcome,
        if(number % 500 = 3, 'the picture is cut off', NULL) AS reason,
        if(number % 500 = 3, NULL, 'images/' || key) AS output_key,
        size_bytes + 1000 AS output_size_bytes, md5('o' || number) || md5('p' || number) AS output_sha256,
        'jpeg' AS format, 4000 AS width_px, 3000 AS height_px, 'RGB' AS mode, 8 AS bit_depth, 1 AS orientation,
        random() * 20 AS noise_sigma_before, random() AS noise_sigma_after, random() AS chroma_share, 1.0 AS strength,
        random() * 40 AS change_psnr_db, random() AS clipped_fraction, 12.0 AS megapixels,
        if(number % 1000 = 2, repeat('c', 64), repeat('a', 64)) AS weights, repeat('b', 16) AS parameters,
        'run-1' AS run, md5('shard' || number // 64) AS shard, random() AS read_s, random() AS decode_s,
        random() AS denoise_s, random() AS encode_s, random() AS write_s, 1 AS attempts,
        TIMESTAMPTZ '2026-11-01 00:00:00+00' AS finished_at
    FROM photos
"""

if __name__ == "__main__":
    main()
