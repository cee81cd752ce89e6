"""The command line: parses argv and environment once into Settings, and hands over. Nothing here decides."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import click

from backends import argv
from backends.argv import Flag
from backends.errors import ConfigError, Fault
from backends.plan import Kind, Options
from backends.planner import NAMES
from backends.vllm import NEWEST as NEWEST_VLLM
from launcher import exits
from launcher.budget import share_out
from launcher.output import HEAD
from launcher.settings import PORT, TERMINATION_LOG, Settings
from launcher.token import VARIABLE, read_token

# No option may follow COMMAND: what stands there belongs to it.
PASS_THROUGH = {"allow_interspersed_args": False, "auto_envvar_prefix": "LWSRUN"}


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
    if arguments[:1] == ["start"]:
        from launcher.report import write_termination_message

        path = os.environ.get("LWSRUN_TERMINATION_LOG", TERMINATION_LOG)
        with contextlib.suppress(ConfigError):
            path = argv.text(arguments, Flag("--termination-log")) or path
        write_termination_message(path, text, None)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A duration: a number of seconds, or with a unit, as in 500ms, 25s, 5m."""

    name = "duration"
    units: ClassVar = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        unit, factor = next(pair for pair in self.units.items() if value.endswith(pair[0]))
        try:
            number = float(value.removesuffix(unit)) * factor
        except ValueError:
            number = math.nan
        if not 0 <= number < 1e9:
            self.fail(f"{value!r} is not a duration: write 25, 25s, 500ms or 5m", param, ctx)
        return number


SECONDS = Seconds()

backend_options = options(
    click.option("--backend", type=click.Choice(NAMES), default="auto", show_default=True, show_envvar=True,
                 help="How the group is formed for the command; auto finds the engine in it."),
    click.option("--kind", type=click.Choice([k.value for k in Kind]), default=None, show_envvar=True,
                 help="server: its end is a failure. job: 0 is success. Default: by backend."),
    click.option("--env", "env", multiple=True, metavar="NAME=VALUE", show_envvar=True,
                 help="Set a variable for the engine; placeholders such as {index} are filled in. Repeatable."),
    click.option("--ray-port", type=click.IntRange(1, 65535), default=6379, show_default=True, show_envvar=True,
                 help="The Ray head's port."),
    click.option("--peer-timeout", type=SECONDS, default="15s", show_default=True, show_envvar=True,
                 help="Silence after which a peer is dead. A closed connection is noticed at once."),
    click.option("--leader-excluded", is_flag=True, show_envvar=True,
                 help="The leader takes no part in the layout (LWS subgroups with LeaderExcluded): GPUs are those of"
                 " the workers."),
)  # fmt: skip


def timing_options(drain_delay: str) -> Callable[[Any], Any]:
    return options(
        click.option("--gather-timeout", type=SECONDS, default=None, show_envvar=True,
                     help="Give up when the group is not complete by then. Default: wait for ever, because in LWS an"
                     " exit recreates the whole group."),
        click.option("--drain-timeout", type=SECONDS, default=None, show_envvar=True,
                     help="All that stopping may take, --drain-delay included.  [default: 25s, or"
                     " --termination-grace-period less 5s, below 30s less a sixth]"),
        click.option("--termination-grace-period", type=SECONDS, default=None, show_envvar=True,
                     help="The pod's terminationGracePeriodSeconds, less what a preStop hook takes: stopping is made"
                     " to fit."),
        click.option("--drain-delay", type=SECONDS, default=drain_delay, show_default=True, show_envvar=True,
                     help="On SIGTERM: unready for this long before a serving leader's engine is asked to stop."),
        click.option("--failure-hold", type=SECONDS, default="10s", show_default=True, show_envvar=True,
                     help="As PID 1, wait this long before a configuration error ends the pod (LWS has no backoff)."),
        click.option("--max-restarts", type=click.IntRange(0), default=0, show_default=True, show_envvar=True,
                     help="After a failure, start the engines of the whole group anew in the same pods, so many times;"
                     " the leader's value counts."),
        click.option("--restart-reset", type=SECONDS, default="10m", show_default=True, show_envvar=True,
                     help="Serving for so long makes earlier restarts forgotten."),
        click.option("--report-every", type=SECONDS, default="15s", show_default=True, show_envvar=True,
                     help="How often a waiting pod says whom it waits for."),
    )  # fmt: skip


def make_options(
    backend: str,
    kind: str | None,
    env: tuple[str, ...],
    ray_port: int,
    peer_timeout: float,
    leader_excluded: bool = False,
    answering: int = Options.answering,
) -> Options:
    """Raises ConfigError for an --env that is no NAME=VALUE."""
    pairs = []
    for text in env:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(Fault(f"--env {text!r}", "NAME=VALUE"))
        pairs.append((name, value))
    if peer_timeout <= 0:
        raise ConfigError(Fault("--peer-timeout is 0", "a duration above zero, such as 15s"))
    return Options(
        backend, Kind(kind) if kind else None, tuple(pairs), ray_port, peer_timeout, answering, leader_excluded
    )


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


def use_default_signals() -> None:
    """Signals were blocked for PID 1's sake; a command that is not a supervisor wants them as usual."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="lwsrun", prog_name="lwsrun")
def lwsrun() -> None:
    """Turn a single-node serving command into a multi-node one, as PID 1 in every pod of a LeaderWorkerSet group.

    The same line in the leader and the worker template:

        lwsrun start -- vllm serve MODEL --tensor-parallel-size 16

    Every option has an environment twin, LWSRUN_<OPTION>.
    """


@lwsrun.command(context_settings=PASS_THROUGH)
@click.option("--leader-address", show_envvar=True,
              help="The leader's name or IP, without a port. Default: LWS_LEADER_ADDRESS.")  # fmt: skip
@click.option("--size", show_envvar=True,
              help="Pods in the group, the leader included. Default: LWS_GROUP_SIZE.")  # fmt: skip
@click.option("--index", show_envvar=True,
              help="This pod's place; 0 leads. Default: LWS_WORKER_INDEX.")  # fmt: skip
@click.option("--group-id", show_envvar=True,
              help="The group's identity, the same in all its pods. Default: the leader address as given.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, show_envvar=True,
              help="The group channel, probes and status, the same in all pods.")  # fmt: skip
@click.option("--token-file", metavar="FILE", show_envvar=True,
              help="The group's shared secret, 16 bytes or more, the same in all its pods: only who knows it can join,"
              " and the channel is encrypted. Or give the secret itself in LWSRUN_TOKEN.")  # fmt: skip
@click.option("--listen", show_envvar=True, help="Address to listen on. Default: all of the pod's.")
@click.option("--pod-ip", show_envvar=True,
              help="This pod's address. Default: by its host name; on workers the route to the leader.")  # fmt: skip
@click.option("--gpus-per-node", type=click.IntRange(0), default=None, show_envvar=True,
              help="GPUs of this node. Default: CUDA_VISIBLE_DEVICES, else NVML.")  # fmt: skip
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
@click.option("--termination-log", default=TERMINATION_LOG, show_default=True, show_envvar=True,
              help="Where the reason of an unsuccessful end is written for `kubectl describe pod`.")  # fmt: skip
@click.option("--report-bytes", type=click.IntRange(0, 4096), default=HEAD, show_default=True, show_envvar=True,
              help="How much of the engine's first traceback or fatal line that report holds.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
              show_envvar=True, help="The launcher's own lines; the engine's output is never touched.")  # fmt: skip
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def start(
    command: tuple[str, ...],
    backend: str,
    kind: str | None,
    env: tuple[str, ...],
    ray_port: int,
    peer_timeout: float,
    leader_excluded: bool,
    drain_timeout: float | None,
    drain_delay: float,
    termination_grace_period: float | None,
    termination_log: str,
    token_file: str | None,
    **values: Any,
) -> None:
    """Gather the group, then run COMMAND as this pod's part of it. Write `--` before COMMAND.

    \b
    Exit codes:
      0    asked to stop and stopped in time; or a job that ended with 0 everywhere
      70   a server or helper ended with 0 although nobody had asked it to; or lwsrun itself failed
      75   another pod failed or was lost
      77   the leader refused this pod for --mismatch-timeout: they are configured differently
      78   the configuration cannot work; nothing was started
      137  it had to be killed after the grace period
      else the engine's own code, 128+n for signal n
    """
    try:
        budget = share_out(drain_timeout, drain_delay, termination_grace_period)
        settings = Settings(
            argv=tuple(command),
            # A variable without a name, which some shells can make, cannot be handed on: execve(2) by way of Python.
            environ={k: v for k, v in os.environ.items() if k and not k.startswith("LWSRUN_")},
            token=read_token(os.environ.get(VARIABLE), token_file),
            options=make_options(backend, kind, env, ray_port, peer_timeout, leader_excluded, budget.answering),
            budget=budget,
            termination_log=os.path.abspath(termination_log),
            **values,
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
@click.option("--size", type=click.IntRange(1, 4096), required=True, help="Pods in the group.")
@click.option("--gpus-per-node", type=click.IntRange(0), required=True, help="GPUs of each node.")
@click.option("--image-ray", metavar="VERSION", default=None,
              help="Plan for an image with this Ray version. Default: an image without Ray.")  # fmt: skip
@click.option("--image-engine", metavar="VERSION", default=NEWEST_VLLM, show_default=True,
              help="Plan for an image with this vLLM version.")  # fmt: skip
@click.option("--index", type=click.IntRange(0), default=None, help="Show only this pod.")
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@backend_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def plan(
    size: int,
    gpus_per_node: int,
    image_ray: str | None,
    image_engine: str,
    index: int | None,
    output: str,
    command: tuple[str, ...],
    **values: Any,
) -> None:
    """Print what every pod would write, start, wait for and run. Has no effects, needs no cluster.

    Names and addresses are examples (10.0.0.10 leads); everything else is what `start` would do.
    """
    use_default_signals()
    from launcher.preview import preview

    try:
        shown = preview(tuple(command), size, gpus_per_node, image_ray, image_engine, make_options(**values), index)
    except ConfigError as error:
        fail(error)
    if output == "json":
        click.echo(json.dumps([data for data, _ in shown], indent=2))
    else:
        click.echo("\n\n".join(text for _, text in shown))


@lwsrun.command(context_settings=PASS_THROUGH)
@click.option("--size", type=click.IntRange(1, 1024), required=True, show_envvar=True, help="Pods in the group.")
@click.option("--gpus-per-node", type=click.IntRange(0), default=None, show_envvar=True,
              help="Pretend that each pod has this many GPUs.")  # fmt: skip
@click.option("--isolation", type=click.Choice(["auto", "namespaces", "loopback"]), default="auto",
              show_default=True, show_envvar=True,
              help="namespaces: each pod is real (own IP, PID 1, DNS). loopback: plain processes. auto: the best"
              " that this machine allows.")  # fmt: skip
@click.option("--shm-size", type=click.IntRange(1), default=1024, show_default=True, metavar="MIB",
              show_envvar=True, help="Each pod's /dev/shm.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, show_envvar=True,
              help="The group channel's port in every pod.")  # fmt: skip
@click.option("--worker-command", metavar="COMMAND", default=None, show_envvar=True,
              help="The worker template's command, where it differs; '' for a template without one.")  # fmt: skip
@click.option("--publish", multiple=True, metavar="[HOST_PORT:]PORT", show_envvar=True,
              help="Make a port of the leader reachable on 127.0.0.1. Repeatable.")  # fmt: skip
@click.option("--then", metavar="SCRIPT", default=None, show_envvar=True,
              help="When the group serves, run this in its network, then end it. $LEADER_IP is set.")  # fmt: skip
@click.option("--fault", "faults", multiple=True, metavar="WHAT:INDEX@WHEN", show_envvar=True,
              help="Break something by schedule, e.g. kill:1@10s, kill-engine:0@serving+2s, partition:1@serving+2s+5s;"
              " also term, freeze, late, engine-exit:1@5s=0, slow-start:1=30s, late-dns:3s, stale-leader:5s."
              " Repeatable.")  # fmt: skip
@click.option("--scenario", metavar="FILE", type=click.Path(dir_okay=False), default=None, show_envvar=True,
              help="Faults from a file, one a line; # starts a comment.")  # fmt: skip
@click.option("--restart-policy", type=click.Choice(["stop", "RecreateGroupOnPodRestart", "None"]), default="stop",
              show_default=True, show_envvar=True,
              help="As LWS has it; stop: nothing is restarted, the simulation ends with its pods.")  # fmt: skip
@click.option("--max-recreations", type=click.IntRange(0, 1000), default=5, show_default=True, show_envvar=True,
              help="Recreations of the group, or restarts of one container, after which the simulation"
              " ends.")  # fmt: skip
@click.option("--startup-policy", type=click.Choice(["LeaderCreated", "LeaderReady"]), default="LeaderCreated",
              show_default=True, show_envvar=True,
              help="LeaderReady: the workers are created when the leader's /readyz answers 200.")  # fmt: skip
@click.option("--keep-logs", metavar="DIR", type=click.Path(file_okay=False), default=None, show_envvar=True,
              help="Keep each pod's output, and a result.json, in DIR.")  # fmt: skip
@backend_options
@timing_options(drain_delay="0s")
@click.option("--exec", is_flag=True, show_envvar=True, help="As for `start`: the launchers become their engines.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def simulate(
    size: int,
    gpus_per_node: int | None,
    isolation: str,
    shm_size: int,
    port: int,
    worker_command: str | None,
    publish: tuple[str, ...],
    then: str | None,
    faults: tuple[str, ...],
    scenario: str | None,
    restart_policy: str,
    max_recreations: int,
    startup_policy: str,
    keep_logs: str | None,
    command: tuple[str, ...],
    **values: Any,
) -> None:
    """Run COMMAND as an LWS group of real launchers on this machine; exit with the group's code.

    Ctrl-C deletes the group as Kubernetes would (SIGTERM to every pod); a second one kills it. There are no endpoints
    to wait for here, so --drain-delay is 0 unless it is given.
    """
    use_default_signals()
    try:
        from launcher.simulate.cli import handed_on, simulate_group
    except ModuleNotFoundError as error:
        fail(ConfigError(Fault(f"simulate needs {error.name}", "", "pip install 'lwsrun[simulate]'")))
    try:
        make_options(
            *(values[name] for name in ("backend", "kind", "env", "ray_port", "peer_timeout", "leader_excluded"))
        )
        simulate_group(
            size=size,
            command=command,
            start_options=handed_on(values),
            gpus_per_node=gpus_per_node,
            isolation=isolation,
            shm_size=shm_size,
            port=port,
            worker_command=worker_command,
            publish=publish,
            then=then,
            faults=faults,
            scenario=scenario,
            restart_policy=restart_policy,
            startup_policy=startup_policy,
            max_recreations=max_recreations,
            keep_logs=keep_logs,
        )
    except ConfigError as error:
        fail(error)
