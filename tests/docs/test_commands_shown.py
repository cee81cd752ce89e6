"""The command lines of the documentation, of whatever sub-command, have only options that there are.

What `lwsrun start` would do with them is in tests/launcher/test_golden.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import reference

PAGES = (reference.ROOT / "README.md", *sorted((reference.ROOT / "docs").glob("*.md")))
COMMANDS = {path.removeprefix("lwsrun "): command for path, command in reference.commands()}


def lines(page: Path) -> Iterator[list[str]]:
    """What follows `lwsrun` in each line of a code block that begins with it; continued lines are one."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?:    )?(?:\$ )?lwsrun (.*)$", text, re.MULTILINE):
        try:
            yield shlex.split(line, comments=True)
        except ValueError:  # it goes on in the next line, inside quotes
            continue


SHOWN = [(page.name, words) for page in PAGES for words in lines(page) if words and words[0] in COMMANDS]


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_command_that_is_shown_has_only_options_that_there_are(page: str, words: list[str]) -> None:
    command = COMMANDS[words[0]]
    try:
        command.make_context(f"lwsrun {words[0]}", list(words[1:]), resilient_parsing=False)
    except click.NoSuchOption as error:
        pytest.fail(f"{page} shows an option that there is not: {error.format_message()}")
    except click.exceptions.Exit:  # --help
        pass
    except click.UsageError:  # a placeholder such as N, or a file that only the reader has
        pass


def test_the_documentation_shows_commands() -> None:
    assert {"start", "plan", "simulate"} <= {words[0] for _, words in SHOWN}
