"""The files of a plan, written before anything is started."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from backends.plan import File


def write_files(files: Iterable[File]) -> None:
    for file in files:
        path = Path(file.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(file.content)
        path.chmod(file.mode)
