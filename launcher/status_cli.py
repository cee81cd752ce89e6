"""`lwsrun status`: the group as a table, asked of a launcher over HTTP. Imports nothing that `start` needs."""

from __future__ import annotations

import json
import sys
import time

import click

from launcher import exits
from launcher.group_page import Address, NoAnswer, ask_group, parse_address
from launcher.group_table import render, serves
from launcher.options import PASS_THROUGH
from launcher.settings import PORT

EVERY = 2.0  # seconds
CLEAR = "\x1b[H\x1b[2J"
SERVES, NOT_SERVING = exits.OK, 1


@click.command(context_settings={**PASS_THROUGH, "allow_interspersed_args": True})
@click.argument("address", required=False, envvar="LWSRUN_LISTEN")
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, show_envvar=True,
              help="The launchers' port, where ADDRESS names none.")  # fmt: skip
@click.option("--watch", is_flag=True, show_envvar=True, help="Look again every 2 s, until Ctrl-C.")
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True,
              show_envvar=True, envvar="LWSRUN_FORMAT",
              help="json: the leader's /group page, with `serves`; with --watch one line for each look.")  # fmt: skip
def status(address: str | None, port: int, watch: bool, output: str) -> None:
    """Show the group: each pod's phase, since when, its GPUs, engine, last heartbeat and restarts.

    ADDRESS is any pod of the group: HOST, HOST:PORT or [IPv6]:PORT; a worker's leader is asked in its stead. Without
    it, this pod's own launcher: LWSRUN_LISTEN, else 127.0.0.1. In a cluster:

        kubectl exec POD -- lwsrun status

    \b
    Exit codes; with --watch, of the last look:
      0    every pod of the group is here and serves, and the leader is ready
      1    the group does not serve: it gathers, loads, drains or restarts, it is a job that is done, or its leader
           does not answer
      70   no launcher answers at ADDRESS
      78   the command line is wrong
    """
    try:
        target = parse_address(address or "127.0.0.1", port)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ADDRESS") from None
    code = SERVES
    try:
        while True:
            code = look(target, output, watch)
            if not watch:
                break
            time.sleep(EVERY)
    except KeyboardInterrupt:
        if not watch:
            raise
    sys.exit(code)


def look(target: Address, output: str, watch: bool) -> int:
    """One look, shown; the exit code that it stands for."""
    try:
        page, remark = ask_group(target)
    except NoAnswer as error:
        click.echo(f"lwsrun: {error}", err=True)
        return exits.ENDED_UNASKED
    if output == "json":
        click.echo(json.dumps(page | {"serves": serves(page)}, indent=None if watch else 2))
    else:
        # Cleared only now: what was seen last stays until there is something newer.
        click.echo((CLEAR if watch and sys.stdout.isatty() else "") + render(page) + ("\n" if watch else ""))
    if remark is not None:
        click.echo(f"lwsrun: {remark}", err=True)
    return SERVES if serves(page) else NOT_SERVING
