"""What the one file costs beside an installed package: size, the first start, and every later one.

    make bench-startup

Both run under the same Python, in turns, so that a busy machine slows both. `start` is the pod of a group of one whose
command is `true`.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
START = ("start", "--size=1", "--", "true")


class Taken(NamedTuple):
    """In seconds; cpu is that of the process and all of its children, and does not depend on what else runs."""

    wall: float
    cpu: float


def seconds(argv: list[str], environ: dict[str, str]) -> Taken:
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(argv, check=True, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--file", type=Path, help="default: one that is built for this")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lwsrun-startup-") as name:
        directory = Path(name)
        file = given.file
        if file is None:
            build = [sys.executable, str(ROOT / "onefile" / "build.py"), f"--output={directory / 'dist'}"]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
            file = directory / "dist" / "lwsrun"
        place, kept = directory / "place", {k: v for k, v in os.environ.items() if not k.startswith(("LWS", "PYTHON"))}
        environ = {**kept, "LWSRUN_EXTRACT_DIR": str(place), "LWSRUN_PORT": "29470"}
        one_file, package = [sys.executable, str(file.resolve())], [sys.executable, "-m", "launcher"]

        first: list[Taken] = []
        for _ in range(max(given.runs // 5, 2)):
            shutil.rmtree(place, ignore_errors=True)
            first.append(seconds([*one_file, *START], environ))
        rows: list[tuple[str, list[Taken]]] = [("first start, with unpacking", first)]
        measured: dict[str, Callable[[], Taken]] = {
            "python3 -c pass": lambda: seconds([sys.executable, "-c", "pass"], environ),
            "one file: --version": lambda: seconds([*one_file, "--version"], environ),
            "package: --version": lambda: seconds([*package, "--version"], environ),
            "one file: start": lambda: seconds([*one_file, *START], environ),
            "package: start": lambda: seconds([*package, *START], environ),
        }
        times: dict[str, list[Taken]] = {label: [] for label in measured}
        for label, measure in measured.items():
            measure()  # what is compiled and cached once
            times[label].clear()
        for _ in range(given.runs):
            for label, measure in measured.items():
                times[label].append(measure())
        rows += times.items()
        print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
        print(f"the file: {file.stat().st_size / 1e6:.1f} MB; unpacked: {size_of(place) / 1e6:.1f} MB")
        print(f"{'':30}{'median':>9}{'best':>9}{'CPU':>9}")
        for label, values in rows:
            wall, cpu = [each.wall for each in values], statistics.median(each.cpu for each in values)
            print(f"{label:30}{statistics.median(wall):7.2f} s{min(wall):7.2f} s{cpu:7.2f} s")


if __name__ == "__main__":
    main()
