"""How lwsrun starts itself again, and what it says of itself: an installed package, or the one file `dist/lwsrun`."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

# Where the one file is what runs: its path, and its own option that names the directory which it was unpacked to.
# onefile/boot.py sets both.
ONE_FILE = UNPACKED = ""


def command(module: str, *arguments: str) -> list[str]:
    """A module of ours as a program: an argument list for sys.executable.

    The engine's environment must not change, so the way to our packages is in the arguments and not in PYTHONPATH.
    """
    # -P: a package of our name in the working directory, which is the image's, is not ours.
    return [sys.executable, *([ONE_FILE, UNPACKED] if ONE_FILE else ["-P"]), "-m", module, *arguments]


def revision() -> str:
    """The commit that this was built from, as build.py noted it; empty for a checkout."""
    file = Path(__file__).with_name("revision")
    return file.read_text().strip() if file.exists() else ""


def describe() -> str:
    """`lwsrun 0.1.0 (revision 655bb89, one file /usr/local/bin/lwsrun, Python 3.12.1 /usr/bin/python3)`."""
    from importlib.metadata import version

    known = revision()
    parts = [
        f"revision {known}" if known else "revision unknown",
        f"one file {ONE_FILE}" if ONE_FILE else f"package {Path(__file__).parent}",
        f"Python {platform.python_version()} {sys.executable}",
    ]
    return f"lwsrun {version('lwsrun')} ({', '.join(parts)})"
