"""The results as a person reads them: a line each, what to do under it, a sum at the end."""

from __future__ import annotations

from typing import TextIO

import click

from launcher.check.result import Result, Status, count

MARKS = {
    Status.PASSED: ("✓", "ok", "green"),
    Status.WARNING: ("!", "WARN", "yellow"),
    Status.FAILED: ("✗", "FAIL", "red"),
    Status.SKIPPED: ("-", "skip", "bright_black"),
}
PLAIN = str.maketrans({"×": "x", "…": "...", "–": "-", "—": "-", "·": "-"})


def render(results: list[Result], out: TextIO) -> str:
    """Text for that stream: marks and colours on a UTF-8 terminal, plain words elsewhere."""
    unicode = (out.encoding or "").lower().replace("-", "") == "utf8"
    terminal = unicode and out.isatty()
    width = max(len(result.name) for result in results)
    lines = []
    for result in results:
        mark, word, colour = MARKS[result.status]
        head = click.style(mark, fg=colour) if terminal else f"{word:4}"
        lines.append(f"{head} {result.name:{width}}  {' '.join(result.found.split())}")
        if result.remedy:
            lines.append(f"{'':{width + (4 if terminal else 7)}}to do: {' '.join(result.remedy.split())}")
    lines.append(summary(results))
    text = "\n".join(lines)
    return text if unicode else text.translate(PLAIN).encode("ascii", "backslashreplace").decode()


def summary(results: list[Result]) -> str:
    """ "12 passed, 1 warning, 0 failed, 5 skipped"."""
    warnings = count(results, Status.WARNING)
    return (
        f"{count(results, Status.PASSED)} passed, {warnings} warning{'s' * (warnings != 1)},"
        f" {count(results, Status.FAILED)} failed, {count(results, Status.SKIPPED)} skipped"
    )
