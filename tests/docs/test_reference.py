"""docs/reference.md is what the command line says of itself, and leaves no variable of the program out."""

from __future__ import annotations

import os
import re

import reference


def test_the_reference_is_what_the_command_line_says() -> None:
    made = reference.reference()
    if os.environ.get("LWSRUN_WRITE_GOLDEN"):
        reference.FILE.write_text(made)
    assert reference.FILE.read_text() == made, "an option has changed: run `make golden`, and read the difference"


def test_every_variable_that_the_program_names_is_in_the_reference() -> None:
    text = reference.reference()
    for package in ("launcher", "backends"):
        for file in (reference.ROOT / package).rglob("*.py"):
            for name in set(re.findall(r"\bLWSRUN_[A-Z][A-Z_]*[A-Z]\b", file.read_text())):
                known = name in reference.INTERNAL or f"`{name}`" in text
                assert known, f"{file.name} has {name}: make it an option, or add it to VARIABLES or INTERNAL"


def test_every_command_has_a_section() -> None:
    text = reference.reference()
    paths = [path for path, _ in reference.commands()]
    assert {"lwsrun start", "lwsrun plan", "lwsrun simulate"} <= set(paths)
    for path in paths:
        assert f"\n## {path}\n" in text
