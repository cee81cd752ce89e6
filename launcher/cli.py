"""The command line: parses argv and environment once into Settings, and hands over. Nothing here decides."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any, NoReturn

import click

from backends import argv
from backends.argv import Flag
from backends.errors import ConfigError
from backends.group import MAX_SIZE
from backends.plan import Smoke
from backends.vllm_flags import NEWEST as NEWEST_VLLM
from launcher import exits
from launcher.budget import share_out
from launcher.options import (
    OF_BACKENDS,
    OF_SMOKE,
    PASS_THROUGH,
    SECONDS,
    SMOKE_FIRST,
    backend_options,
    identity_options,
    make_options,
    make_smoke,
    smoke_options,
    timing_options,
)
from launcher.output import HEAD
from launcher.settings import TERMINATION_LOG, Settings
from launcher.token import VARIABLE, read_token

ELSEWHERE = {
    "check": "launcher.check.cli",
    "completion": "launcher.extras",
    "simulate": "launcher.simulate.cli",
    "smoke": "launcher.smoke.cli",
    "status": "launcher.status_cli",
    "unpack": "launcher.extras",
}


def fail(error: ConfigError, hold_seconds: float = 0) -> NoReturn:
    """Tell the faults and end with the configuration code."""
    for line in error.text().splitlines():
        click.echo(f"lwsrun: {line}", err=True)
    leave_message(f"stopped because of the configuration: {error.text()}")
    hold(hold_seconds)
    sys.exit(exits.CONFIG)


def leave_message(text: str) -> None:
    """What ended `lwsrun start` before it had any settings, as the pod's termination message."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["start"], ["smoke"]):
        from launcher.report import write_termination_message

        path = os.environ.get("LWSRUN_TERMINATION_LOG", TERMINATION_LOG)
        with contextlib.suppress(ConfigError):
            path = argv.text(arguments, Flag("--termination-log")) or path
        write_termination_message(path, text, None)


def run() -> NoReturn:
    """The whole program. A usage error is a configuration error: in a pod it must not spin either."""
    open_standard_streams()
    if os.environ.get("LWSRUN_PORT", "").startswith("tcp://"):
        # A Service named "lwsrun" in the namespace: Kubernetes injects its address into every pod.
        del os.environ["LWSRUN_PORT"]
        click.echo("lwsrun: LWSRUN_PORT is the address of a Service of that name, not ours: ignored", err=True)
    try:
        lwsrun.main(prog_name="lwsrun", standalone_mode=False)
    except click.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as shown:
        shown.show()
        sys.exit(exits.CONFIG)
    except ConfigError as error:
        fail(error)
    except click.ClickException as error:
        error.show()
        leave_message(f"stopped because of the configuration: {error.format_message()}")
        hold()
        sys.exit(exits.CONFIG)
    sys.exit(0)


def hold(seconds: float | None = None) -> None:
    """As PID 1, do not let a configuration error spin: LWS recreates a group with no backoff. SIGTERM ends the wait."""
    if os.getpid() != 1:
        return
    if seconds is None:
        try:
            seconds = SECONDS.convert(os.environ.get("LWSRUN_FAILURE_HOLD", "10s"), None, None)
        except click.BadParameter:
            seconds = 10.0
    signal.sigtimedwait((signal.SIGTERM, signal.SIGINT), seconds)


def open_standard_streams() -> None:
    """A stream that was closed by whoever started us becomes /dev/null, before a pipe of ours takes its number."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


class Commands(click.Group):
    """Some commands have a module of their own, imported only for those who name one or list them. `probe` is only
    described here, for help, completion and reference: __main__ runs it without us."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "probe", *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in ELSEWHERE:
            command: click.Command = getattr(import_module(ELSEWHERE[cmd_name]), cmd_name)
            return command
        if cmd_name == "probe":
            from launcher import probe

            params = [
                click.Argument(["what"], type=click.Choice(list(probe.PATHS))),
                click.Option(["--port"], envvar="LWSRUN_PORT", default=probe.PORT, show_default=True, metavar="N",
                             help=probe.OPTIONS["--port"]),
                click.Option(["--listen"], envvar="LWSRUN_LISTEN", help=probe.OPTIONS["--listen"]),
                click.Option(["--timeout"], default=probe.TIMEOUT, show_default=True, metavar="SECONDS",
                             help=probe.OPTIONS["--timeout"]),
            ]  # fmt: skip
            return click.Command("probe", help=probe.ABOUT, params=params)
        return super().get_command(ctx, cmd_name)


def show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from launcher.ourselves import describe

        click.echo(describe())
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=show_version,
              help="Show the version, what it was built from, and which Python runs it.")  # fmt: skip
@click.pass_context
def lwsrun(context: click.Context) -> None:
    """Turn a single-node serving command into a multi-node one, as PID 1 in every pod of a LeaderWorkerSet group.

    The same line in the leader and the worker template:

        lwsrun start -- vllm serve MODEL --tensor-parallel-size 16

    Every option has an environment twin, LWSRUN_<OPTION>.
    """
    if context.invoked_subcommand not in ("start", "smoke"):
        # They were blocked for PID 1's sake; a command that is not a supervisor wants them as usual.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


@lwsrun.command(context_settings=PASS_THROUGH)
@identity_options
@click.option("--token-file", metavar="FILE", show_envvar=True,
              help="The group's shared secret, 16 bytes or more, the same in all its pods: only who knows it can join,"
              " and the channel is encrypted. Or give the secret itself in LWSRUN_TOKEN.")  # fmt: skip
@click.option("--listen", show_envvar=True, help="Address to listen on. Default: all of the pod's.")
@backend_options
@timing_options(drain_delay="5s")
@click.option("--mismatch", type=click.Choice(["refuse", "warn"]), default="refuse", show_default=True,
              show_envvar=True, help="On the leader, for a worker whose size, command, versions or GPU count differ:"
              " refuse it, or let it in with a warning.")  # fmt: skip
@click.option("--mismatch-timeout", type=SECONDS, default="5m", show_default=True, show_envvar=True,
              help="How long a worker that is refused for such a difference asks again before it fails.")  # fmt: skip
@click.option("--exec", is_flag=True, show_envvar=True,
              help="Once the group has formed, become COMMAND instead of watching it: no probes, failure detection or"
              " drain from then on.")  # fmt: skip
@SMOKE_FIRST
@smoke_options
@click.option("--termination-log", default=TERMINATION_LOG, show_default=True, show_envvar=True,
              help="Where the reason of an unsuccessful end is written for `kubectl describe pod`.")  # fmt: skip
@click.option("--report-bytes", type=click.IntRange(0, 4096), default=HEAD, show_default=True, show_envvar=True,
              help="How much of the engine's first traceback or fatal line that report holds.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
              show_envvar=True, help="The launcher's own lines; the engine's output is never touched.")  # fmt: skip
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def start(command: tuple[str, ...], smoke: bool, **values: Any) -> None:
    """Gather the group, then run COMMAND as this pod's part of it. Write `--` before COMMAND.

    \b
    Exit codes:
      0    asked to stop and stopped in time; or a job that ended with 0 everywhere
      70   a server or helper ended with 0 although nobody had asked it to, or one of its ranks ended; or lwsrun
           itself failed
      75   another pod failed or was lost
      77   the leader refused this pod for --mismatch-timeout: they are configured differently
      78   the configuration cannot work; nothing was started
      137  it had to be killed after the grace period
      else the engine's own code, 128+n for signal n
    """
    live_as_pod(command, make_smoke(values, first=smoke), values)


def live_as_pod(command: tuple[str, ...], smoke: Smoke, values: dict[str, Any]) -> None:
    """The rest of this process's life, with the options of `start`."""
    drain_timeout, drain_delay = values.pop("drain_timeout"), values.pop("drain_delay")
    termination_grace_period = values.pop("termination_grace_period")
    try:
        budget = share_out(drain_timeout, drain_delay, termination_grace_period)
        settings = Settings(
            argv=tuple(command),
            # A variable without a name, which some shells can make, cannot be handed on: execve(2) by way of Python.
            environ={k: v for k, v in os.environ.items() if k and not k.startswith("LWSRUN_")},
            token=read_token(os.environ.get(VARIABLE), values.pop("token_file")),
            options=make_options(
                answering=budget.answering,
                channel_port=values["port"],
                smoke=smoke,
                **{name: values[name] for name in OF_BACKENDS},
            ),
            budget=budget,
            termination_log=os.path.abspath(values.pop("termination_log")),
            **{name: value for name, value in values.items() if name not in (*OF_BACKENDS, *OF_SMOKE)},
        )
    except ConfigError as error:
        fail(error, values["failure_hold"])
    from launcher.lifecycle import live
    from launcher.log import drain
    from launcher.report import write_termination_message

    async def live_and_leave() -> None:
        code = exits.ENDED_UNASKED
        try:
            code = await live(settings)
        except Exception as error:  # a mistake of ours: with PID 1 everything else in the pod ends too
            traceback.print_exc()
            write_termination_message(
                settings.termination_log, f"stopped because lwsrun itself failed: {error!r}", None
            )
        drain()
        # From inside the loop: its end would wait for threads, for one in getaddrinfo as long as DNS is silent, and
        # for one at a pipe as long as somebody who survived SIGKILL holds it.
        os._exit(code)

    asyncio.run(live_and_leave())


@lwsrun.command(context_settings=PASS_THROUGH)
@click.option("--size", type=click.IntRange(1, MAX_SIZE), required=True, help="Pods in the group.")
@click.option("--gpus-per-node", type=click.IntRange(0), required=True, help="GPUs of each node.")
@click.option("--image-ray", metavar="VERSION", default=None,
              help="Plan for an image with this Ray version. Default: an image without Ray.")  # fmt: skip
@click.option("--image-engine", metavar="VERSION", default=NEWEST_VLLM, show_default=True,
              help="Plan for an image with this vLLM version.")  # fmt: skip
@click.option("--image-openmpi", metavar="VERSION", default="5.0.10", show_default=True,
              help="Plan for an image with this version of Open MPI.")  # fmt: skip
@click.option("--index", type=click.IntRange(0), default=None, help="Show only this pod.")
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@backend_options
@SMOKE_FIRST
@smoke_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def plan(
    size: int,
    gpus_per_node: int,
    image_ray: str | None,
    image_engine: str,
    image_openmpi: str,
    index: int | None,
    output: str,
    command: tuple[str, ...],
    smoke: bool,
    **values: Any,
) -> None:
    """Print what every pod would write, start, wait for and run. Has no effects, needs no cluster.

    Names and addresses are examples (10.0.0.10 leads); everything else is what `start` would do.
    """
    from launcher.preview import preview

    chosen = make_options(smoke=make_smoke(values, first=smoke), **{name: values[name] for name in OF_BACKENDS})
    shown = preview(
        tuple(command), size, gpus_per_node, chosen,
        ray=image_ray, engine=image_engine, openmpi=image_openmpi, index=index,
    )  # fmt: skip
    if output == "json":
        click.echo(json.dumps([data for data, _ in shown], indent=2))
    else:
        click.echo("\n\n".join(text for _, text in shown))
