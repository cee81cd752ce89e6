"""docs/reference.md, made from the command line itself: every command, option, variable and exit code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from launcher import exits
from launcher.cli import lwsrun
from launcher.token import VARIABLE

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "reference.md"
HEAD = """\
# Every command, option and variable

Made by `make golden` from the command line itself; do not edit it. Durations are seconds, or have a unit: `500ms`,
`25s`, `5m`, `2h`. An option on the command line wins over its variable. A flag's variable is `true` or `false`; that of
an option that can be repeated is split at spaces.
"""
# Read from the environment without being an option: they must never stand in an argv, or are no choice of the user's.
VARIABLES = {
    VARIABLE: "the group's shared secret, 16 bytes or more: [security.md](security.md)",
    "LWSRUN_EXTRACT_DIR": "where the one file `dist/lwsrun` unpacks itself: [install.md](install.md)",
}
# Set by lwsrun for processes that it starts itself: no user writes these.
INTERNAL: frozenset[str] = frozenset()


def commands(group: click.Group = lwsrun, path: str = "lwsrun") -> Iterator[tuple[str, click.Command]]:
    """(how it is called, command), groups inside groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def variable(command: click.Command, option: click.Option) -> str:
    if isinstance(option.envvar, str):
        return option.envvar
    prefix = command.context_settings.get("auto_envvar_prefix")
    return f"{prefix}_{str(option.name).upper()}" if prefix and option.show_envvar else ""


def row(command: click.Command, option: click.Option) -> str:
    context = click.Context(command)
    names = [*option.opts, *option.secondary_opts]
    value = "" if option.is_flag or option.count else f" {option.make_metavar(context)}".replace("INTEGER RANGE", "N")
    called = f"`{', '.join(names)}{value}`"
    twin = variable(command, option)
    text = " ".join((option.help or "").split()).rstrip(".")
    extra = option.get_help_extra(context)
    if "default" in extra and "[default:" not in text and "Default:" not in text:
        text += f"{'. ' if text else ''}Default: {extra['default']}"
    if option.required:
        text += ". Required"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (called, f"`{twin}`" if twin else "", text)) + " |"


def section(path: str, command: click.Command, shared: dict[str, str]) -> str:
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    rows = {", ".join(option.opts): row(command, option) for option in options}
    same = [name for name, text in rows.items() if shared.get(name) == text]
    arguments = " ".join(
        p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
    )
    summary = inspect.cleandoc(command.help or "").split("\n\n")[0]
    lines = [f"## {path}", "", " ".join(summary.replace("\b", "").split())]
    if arguments:
        lines += ["", f"`{path} [OPTIONS] {arguments}`"]
    own = [text for name, text in rows.items() if name not in same]
    if own:
        lines += ["", "| option | variable | |", "|---|---|---|", *own]
    if same:
        lines += ["", f"And as in `lwsrun start`: {', '.join(f'`{name}`' for name in same)}."]
    return "\n".join(lines)


def reference() -> str:
    found = dict(commands())
    start = found.pop("lwsrun start")
    options = [p for p in start.params if isinstance(p, click.Option)]
    shared = {", ".join(option.opts): row(start, option) for option in options}
    parts = [HEAD, section("lwsrun start", start, {}) + "\n"]
    parts += [section(path, command, shared) + "\n" for path, command in sorted(found.items())]
    parts.append("## Variables without an option\n\n| variable | |\n|---|---|")
    parts[-1] += "".join(f"\n| `{name}` | {text} |" for name, text in VARIABLES.items()) + "\n"
    parts.append("## Exit codes\n\nOf `lwsrun start`; [failure.md](failure.md) says when.\n\n| code | |\n|---|---|")
    parts[-1] += "".join(f"\n| {code} | {text} |" for code, text in exit_codes()) + "\n"
    return "\n".join(parts)


def exit_codes() -> list[tuple[str, str]]:
    """From the help of `lwsrun start`, which lists them."""
    text = inspect.cleandoc(lwsrun.commands["start"].help or "")
    listed = text[text.index("Exit codes:") :].splitlines()[1:]
    rows: list[tuple[str, str]] = []
    for line in listed:
        found = re.match(r"\s{0,4}(\d+|else) +(\S.*)", line)
        if found:
            rows.append((found[1], found[2]))
        elif line.strip() and rows:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
    assert {str(exits.CONFIG), "0", "else"} <= {code for code, _ in rows}
    return rows
