"""Building the one file for tests, and the Pythons that it must run on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13")


def build(output: Path, **popen: object) -> Path:
    argv = [sys.executable, str(ROOT / "onefile" / "build.py"), f"--output={output}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **popen)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return output / "lwsrun"


def build_for_all(directory: Path) -> Path:
    """The one file in a directory that other users can reach too."""
    made = build(directory)
    for parent in (directory, *directory.parents[:2]):
        parent.chmod(0o755)
    return made


def find_python(version: str) -> Path:
    """By its name on PATH, or where pyenv keeps it. It must be there: what is not tried is not supported."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for file in (shutil.which(f"python{version}"), *sorted(home.glob(f"versions/{version}.*/bin/python3"))):
        # A shim of pyenv's is there for every version that any of its Pythons has, and may not work.
        if file and subprocess.run([file, "-c", ""], capture_output=True, check=False).returncode == 0:
            return Path(file).resolve()
    pytest.fail(f"these tests need Python {version}: python{version} on PATH, or pyenv install {version}")
