"""What `degrain plan` foretells against what `degrain denoise` then takes, in the same run on the same machine.

    python tests/benchmarks/forecast.py FOLDER_OF_PHOTOS [--photos 100] [--sample-photos 16]

The forecast is made before and after the run, for a machine that others use changes. degrain's time is the `seconds`
that it reports: with the start of its workers, without that of Ray.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--sample-photos", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        for path in sorted(options.folder.iterdir())[: options.photos]:
            shutil.copy(path, source)
        sample = ["--sample-photos", str(options.sample_photos)]
        before = degrain("plan", source, Path(name) / "a", *sample)
        summary = degrain("denoise", source, Path(name) / "a")
        after = degrain("plan", source, Path(name) / "b", *sample)
    for label, found in (("before", before), ("after", after)):
        forecast = found["forecast"]
        seconds, low, high = (3600 * forecast[key] for key in ("hours", "hours_low", "hours_high"))
        print(
            f"foretold {label:6} {seconds:7.1f} s ({low:.1f} to {high:.1f}), {forecast['megapixels']:.1f} megapixels, "
            f"by {found['sample']['photos']} photos: {seconds / summary['seconds']:.2f} of what it took"
        )
    print(f"it took         {summary['seconds']:7.1f} s, {summary['megapixels']:.1f} megapixels")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[1]:.1f} over the last five minutes")


def degrain(command: str, source: Path, target: Path, *options: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "flows.cli", command, str(source), str(target), *options, "--json"]
    finished = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    values: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return values


if __name__ == "__main__":
    main()
