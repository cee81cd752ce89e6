"""`make dist`: the wheel `dist/lwsrun-*.whl` and the one file `dist/lwsrun`, the same bytes from the same sources.

The one file is a zip file of zip files behind a `#!` line. The inner ones hold our wheel and what it needs, sorted
by the set of (Python, machine) for which a file is the same, so that each is there once; boot.py unpacks those of the
Python that it meets. The versions are the ones in requirements.lock.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# The oldest glibc first: of several wheels pip takes the first kind.
MANYLINUX = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_26", "manylinux_2_28")
SOURCES = ("backends", "launcher", "pyproject.toml", "README.md", "LICENSE")
EXTRA = "simulate"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can tell
# Not needed to run; RECORD, WHEEL and INSTALLER tell of an installation that this is not.
LEFT_OUT = re.compile(r"(\.(pyi|pyx|pxd|c|h|hash)|/py\.typed|\.dist-info/(RECORD|WHEEL|INSTALLER|REQUESTED))$")

Target = tuple[str, str]  # (3.12, x86_64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "wheels", help="kept for the next build")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    own = build_wheel(given.output)
    pins = closure()
    contents: dict[Target, dict[str, bytes]] = {}
    for target in [(python, machine) for python in PYTHONS for machine in MACHINES]:
        contents[target] = {}
        for wheel in [own, *download(target, pins, given.wheels)]:
            contents[target].update(read_wheel(wheel))
    file = given.output / "lwsrun"
    write(file, contents)
    for made in (own, file):
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        print(f"{digest}  {os.path.relpath(made)}  {made.stat().st_size / 1e6:.1f} MB")


def git(*arguments: str) -> str:
    """Empty where this is no checkout."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def build_wheel(output: Path) -> Path:
    """Our own, from a copy: setuptools leaves its work beside the sources, and takes up what an earlier build left."""
    with tempfile.TemporaryDirectory() as directory:
        stage = Path(directory) / "lwsrun"
        stage.mkdir()
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, stage / name, ignore=shutil.ignore_patterns("__pycache__", "revision"))
            else:
                shutil.copy(ROOT / name, stage / name)
        if revision := git("rev-parse", "--short=12", "HEAD"):
            changed = "-dirty" if git("status", "--porcelain", "--", *SOURCES, "onefile", "requirements.lock") else ""
            (stage / "launcher" / "revision").write_text(revision + changed + "\n")
        for path in stage.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        made = Path(directory) / "made"
        pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", made, stage,
            SOURCE_DATE_EPOCH=git("log", "-1", "--format=%ct") or "315532800")  # fmt: skip
        (wheel,) = made.glob("*.whl")
        return Path(shutil.copy(wheel, output / wheel.name))


def pip(*arguments: str | Path, **environ: str) -> None:
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    # The files' modes are kept in a wheel.
    subprocess.run(argv, check=True, env={**os.environ, **environ}, umask=0o022)


def closure() -> dict[str, str]:
    """Name and version of all that lwsrun needs on any of the targets, by what is installed here beside it."""
    lines = (ROOT / "requirements.lock").read_text().split()
    locked = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    found: dict[str, str] = {}
    todo = [("lwsrun", EXTRA)]
    while todo:
        name, extra = todo.pop()
        for text in requires(name) or ():
            need = Requirement(text)
            wanted = any(
                need.marker is None
                or need.marker.evaluate({"python_version": python, "python_full_version": f"{python}.0", "extra": e})
                for python in PYTHONS
                for e in {"", extra}
            )
            key = canonicalize_name(need.name)
            if wanted and key not in found:
                if key not in locked:
                    sys.exit(f"{need.name}, which {name} needs, is not in requirements.lock: run `make lock`")
                found[key] = locked[key]
                todo += [(key, each) for each in ("", *need.extras)]
    return found


def download(target: Target, pins: dict[str, str], cache: Path) -> list[Path]:
    """The wheels of these versions for one Python on one machine; those that are there already are not asked for."""
    python, machine = target
    directory = cache / f"cp{python.replace('.', '')}-{machine}"
    directory.mkdir(parents=True, exist_ok=True)

    def there() -> dict[str, Path]:
        names = {path: path.name.split("-") for path in directory.glob("*.whl")}
        return {f"{canonicalize_name(name[0])}=={name[1]}": path for path, name in names.items()}

    wanted = [f"{name}=={version}" for name, version in sorted(pins.items())]
    missing = [pin for pin in wanted if pin not in there()]
    if missing:
        short = "cp" + python.replace(".", "")
        abis = [f"--abi={abi}" for abi in (short, "abi3", "none")]
        platforms = [f"--platform={kind}_{machine}" for kind in MANYLINUX]
        pip("download", "-q", "--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}",
            *abis, *platforms, "-d", directory, *missing)  # fmt: skip
    found = there()
    return [found[pin] for pin in wanted]


def read_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if not name.endswith("/") and not LEFT_OUT.search(name)]
        libraries = [name for name in names if re.match(r"[^/]*\.data/(purelib|platlib)/", name)]
        if libraries:
            sys.exit(f"{wheel.name}: {libraries[0]}: such wheels are not known here")
        return {name: file.read(name) for name in names if not re.match(r"[^/]*\.data/", name)}


def write(file: Path, contents: dict[Target, dict[str, bytes]]) -> None:
    """Sort the files into parts, and write those behind boot.py."""
    owners: dict[tuple[str, bytes], list[Target]] = defaultdict(list)
    for target, files in contents.items():
        for name, data in files.items():
            owners[name, data].append(target)
    parts: dict[tuple[Target, ...], dict[str, bytes]] = defaultdict(dict)
    for (name, data), targets in owners.items():
        parts[tuple(targets)][name] = data
    zips: dict[str, bytes] = {}
    of_tag: dict[str, list[str]] = {tag_of(target): [] for target in contents}
    for number, targets in enumerate(sorted(parts, key=lambda targets: (-len(targets), targets))):
        zips[f"{number}.zip"] = archive(parts[targets], zipfile.ZIP_DEFLATED)
        for target in targets:
            of_tag[tag_of(target)].append(f"{number}.zip")
    digest = hashlib.sha256(b"".join(hashlib.sha256(zips[name]).digest() for name in zips)).hexdigest()[:16]
    boot = (Path(__file__).parent / "boot.py").read_text()
    for line, filled in (('DIGEST = ""', f'DIGEST = "{digest}"'), ("PARTS = {}", f"PARTS = {of_tag!r}")):
        if boot.count(f"\n{line}") != 1:
            sys.exit(f"boot.py has no line {line}")
        boot = boot.replace(f"\n{line}", f"\n{filled}")
    data = archive({"__main__.py": boot.encode(), **zips}, zipfile.ZIP_STORED)
    file.write_bytes(b"#!/usr/bin/env python3\n" + data)
    file.chmod(0o755)


def tag_of(target: Target) -> str:
    """As Python names it in the suffix of compiled modules."""
    return f"cpython-{target[0].replace('.', '')}-{target[1]}-linux-gnu"


def archive(files: dict[str, bytes], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=6) as made:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr, entry.compress_type = 3, 0o100644 << 16, compression
            made.writestr(entry, files[name], compresslevel=6)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
