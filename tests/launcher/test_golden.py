"""`lwsrun plan` of every command that the documents show, kept as text so that a change is seen in review.

A command is a line that begins with `lwsrun start` in a code block, or a container's `command` and `args` in a YAML
block. It is planned for 2 pods with 8 GPUs and Ray in the image, unless a comment before its block says otherwise:
`<!-- plan: --size 4 --gpus-per-node 4 -->`. `make golden` writes the files anew; then read the difference.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import start

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHAPE = "--size 2 --gpus-per-node 8 --image-ray 2.60.0"
MARK = "<!-- plan:"


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(shape, code) of each code block, indented or fenced."""
    shape, block, fenced = SHAPE, list[str](), False
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            block.append(line if fenced else line[4:])
            continue
        if block and not fenced:
            yield shape, "\n".join(block)
            shape, block = SHAPE, []
        if line.startswith(MARK):
            shape = line.removeprefix(MARK).removesuffix("-->").strip()


def containers(part: object) -> Iterator[dict[str, list[str]]]:
    """Whatever has a command, in a manifest or a part of one."""
    if isinstance(part, dict):
        if "command" in part:
            yield part
        else:
            part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from containers(each)


def commands(code: str) -> Iterator[list[str]]:
    """What `lwsrun start` is given in a block, as an argument list; comments and other commands are passed over."""
    if "command: [" in code:
        for container in containers(yaml.safe_load(code)):
            program, *start = container.get("command", [""])
            if program.endswith("lwsrun"):
                yield [*start, *container.get("args", [])][1:]
        return
    if "lwsrun start" not in code:
        return  # what a program says, perhaps
    lexer = shlex.shlex(code.replace("\\\n", " "), posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if set(word) != {"\n"}:
            words.append(word)
            continue
        if words[:2] == ["lwsrun", "start"]:
            yield words[2:]
        words = []


def documented() -> dict[str, list[str]]:
    """Name of the golden file -> arguments of `lwsrun plan`."""
    found = {}
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        of_file = [(shape, words) for shape, code in blocks(file.read_text()) for words in commands(code)]
        for number, (shape, words) in enumerate(of_file, 1):
            found[f"{file.stem.lower()}-{number}.txt"] = [*shlex.split(shape), *words]
    return found


DOCUMENTED = documented()


def planned(arguments: list[str]) -> str:
    done = start("plan", *arguments)
    assert done.returncode == 0, f"a documented command cannot be planned: {shlex.join(arguments)}\n{done.stderr}"
    return f"$ {shlex.join(['lwsrun', 'plan', *arguments])}\n{done.stdout}"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_command_is_planned_as_it_was_reviewed(name: str) -> None:
    got = planned(DOCUMENTED[name])
    file = GOLDEN / name
    if os.environ.get("LWSRUN_WRITE_GOLDEN"):
        file.write_text(got)
    assert file.exists(), f"{name} is missing: run `make golden`, and read it"
    assert got == file.read_text(), "the plan has changed: run `make golden`, and read the difference"


def test_every_golden_file_belongs_to_a_documented_command() -> None:
    left = {file.name for file in GOLDEN.iterdir()} - DOCUMENTED.keys()
    if os.environ.get("LWSRUN_WRITE_GOLDEN"):
        for name in left:
            (GOLDEN / name).unlink()
    else:
        assert not left, "no document shows these any more: run `make golden`"
    assert {"readme-1.txt", "readme-2.txt", "generic-1.txt", "torchrun-1.txt"} <= DOCUMENTED.keys()
