"""The files of a plan."""

from __future__ import annotations

from pathlib import Path

from backends.plan import Plan


def write_files(plan: Plan) -> None:
    """Each with its permissions; directories that are missing are made for us alone. Raises OSError."""
    for file in plan.files:
        path = Path(file.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(file.content)
        path.chmod(file.mode)
