"""Every link in the documentation leads somewhere, and every message that it quotes is one of the program's."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import exits

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    file
    for file in (
        ROOT / name for name in subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
    )
    if file.exists()
)
TROUBLE = ROOT / "docs" / "troubleshooting.md"
# Quoted on that page, and said by others.
OF_OTHERS = {
    "connectFullMesh failed",  # gloo
    "failed to extend /dev/shm/nccl-…",  # NCCL
    "medium: Memory",  # of a manifest
}


def text_of(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ +(.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} does not exist"
        assert there.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(there), f"{there.name} has no heading #{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


@functools.cache
def said() -> tuple[str, ...]:
    """Every text in the program, with … for the values that are filled in."""
    found: list[str] = []
    for package in ("launcher", "backends"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text())
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            found += texts(tree, docstrings)
    return tuple(found)


def texts(tree: ast.AST, but: set[int]) -> Iterator[str]:
    for node in ast.walk(tree):
        if id(node) in but:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[-+.0-9]*[sdgfr]", "…", node.value)


def quoted() -> list[str]:
    """What stands in backquotes in the first two columns of the tables of troubleshooting.md, sentences only."""
    rows = [line.split(" | ") for line in TROUBLE.read_text().splitlines() if line.startswith("| ")]
    cells = [cell for row in rows for cell in row[:2]]
    marks = [quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell)]
    return sorted(
        {
            mark
            for mark in marks
            if " " in mark
            and not mark.startswith(("lwsrun ", "curl ", "sh -c", "kubectl ", "startupPolicy:", "command:"))
        }
    )


def test_every_message_that_is_quoted_is_one_of_the_programs() -> None:
    assert len(quoted()) > 20
    invented = [m for m in quoted() if m not in OF_OTHERS and not any(m in text for text in said())]
    assert not invented, "nothing in the program says these"


def test_every_exit_code_is_explained() -> None:
    text = TROUBLE.read_text()
    for code in (exits.ENDED_UNASKED, exits.PEER_FAILED, exits.REFUSED, exits.CONFIG, exits.KILLED):
        assert re.search(rf"^\| {code}\b", text, re.MULTILINE), code
