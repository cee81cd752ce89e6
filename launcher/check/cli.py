"""The `lwsrun check` command line: read once into Settings, carried out, shown."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import click

from backends.errors import ConfigError
from launcher.check.registry import run_all
from launcher.check.render import render
from launcher.check.result import exit_code, report
from launcher.check.scene import Scene, look
from launcher.kernel import Caught
from launcher.options import OF_BACKENDS, PASS_THROUGH, backend_options, identity_options, make_options
from launcher.settings import TERMINATION_LOG, Settings
from launcher.supervisor import Supervisor
from launcher.token import VARIABLE, read_token


@click.command(context_settings=PASS_THROUGH)
@identity_options
@click.option("--token-file", metavar="FILE", show_envvar=True, help="As for `start`.")
@backend_options
@click.option("--termination-log", default=TERMINATION_LOG, show_default=True, show_envvar=True, help="As for `start`.")
@click.option("--parse", is_flag=True, envvar="LWSRUN_CHECK_PARSE", show_envvar=True,
              help="Have the engine's own parser read the command, in a child of the image's Python: its import takes"
              " 10 to 60 s.")  # fmt: skip
@click.option("--strict", is_flag=True, envvar="LWSRUN_CHECK_STRICT", show_envvar=True,
              help="A warning fails too.")  # fmt: skip
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True,
              envvar="LWSRUN_CHECK_FORMAT", show_envvar=True)  # fmt: skip
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def check(
    command: tuple[str, ...],
    token_file: str | None,
    termination_log: str,
    parse: bool,
    strict: bool,
    output: str,
    **values: Any,
) -> None:
    """Look for what would keep COMMAND's group from working in this pod or image. Starts nothing, changes nothing.

    In a pod of the group, by `kubectl exec` or as an init container, all of it is checked; in a bare image what does
    not need the group (say --size N for its layout). Write `--` before COMMAND.

    \b
    Exit codes:
      0   nothing failed; there may be warnings
      1   something failed, or with --strict there is a warning
      78  the options cannot be understood
    """
    token, token_error = None, None
    try:
        token = read_token(os.environ.get(VARIABLE), token_file)
    except ConfigError as error:
        token_error = error
    settings = Settings(
        argv=tuple(command),
        environ={k: v for k, v in os.environ.items() if k and not k.startswith("LWSRUN_")},
        token=token,
        options=make_options(channel_port=values["port"], **{name: values[name] for name in OF_BACKENDS}),
        termination_log=os.path.abspath(termination_log),
        **{name: value for name, value in values.items() if name not in OF_BACKENDS},
    )
    asyncio.run(_check_and_leave(settings, token_error, parse, strict, output))


async def _check_and_leave(
    settings: Settings, token_error: ConfigError | None, parse: bool, strict: bool, output: str
) -> None:
    task = asyncio.current_task()
    assert task is not None
    ended_by: list[int] = []

    def on_signal(caught: Caught) -> None:
        if caught.sender != os.getpid() and caught.number in (1, 2, 3, 15):
            ended_by.append(caught.number)
            task.cancel()

    supervisor = Supervisor(on_signal)
    code = 1
    try:
        results = await run_all(await look(Scene(settings, supervisor, token_error=token_error, parse=parse)))
        code = exit_code(results, strict)
        text = json.dumps(report(results, strict), indent=2) if output == "json" else render(results, sys.stdout)
        click.echo(text)
        sys.stdout.flush()
    except asyncio.CancelledError:
        code = 128 + (ended_by or [2])[0]
    except BrokenPipeError:
        pass
    await supervisor.sweep()
    # From inside the loop: its end would wait for a thread that hangs in a driver or a resolver.
    os._exit(code)
