"""The `lwsrun simulate` command line: read once into a Spec, which the sandbox is to carry out."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from backends.errors import ConfigError, Fault
from backends.group import MAX_SIZE
from launcher.options import (
    OF_BACKENDS,
    OF_SMOKE,
    PASS_THROUGH,
    SMOKE_FIRST,
    backend_options,
    make_options,
    parse_env,
    smoke_options,
    timing_options,
)
from launcher.settings import PORT
from launcher.simulate import sandbox
from launcher.simulate.faults.schedule import NETWORK, read_faults
from launcher.simulate.spec import WRAPPED, Spec
from launcher.simulate.spec import Fault as FaultOf

# Each pod has its own of these, or gets them by option.
NOT_FOR_PODS = frozenset(
    f"LWSRUN_{name}" for name in ("SIZE", "INDEX", "LEADER_ADDRESS", "GROUP_ID", "POD_IP", "LISTEN", "GPUS_PER_NODE")
)
NEEDED = ("pyroute2", "rich")  # the extra `simulate` of our package
# Options of `start` that a simulation hands on, by parameter name.
HANDED_ON = (
    *OF_BACKENDS, *OF_SMOKE, "gather_timeout", "drain_timeout", "drain_delay", "termination_grace_period",
    "failure_hold", "report_every", "exec", "max_restarts", "restart_reset", "ready_when",
    "hang_timeout", "smoke",
)  # fmt: skip


@click.command(context_settings=PASS_THROUGH)
@click.option("--size", type=click.IntRange(1, MAX_SIZE), required=True, show_envvar=True, help="Pods in the group.")
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
@click.option("--root-fs", metavar="DIR", type=click.Path(file_okay=False, exists=True), default=None,
              show_envvar=True, help="Pods run from this root file system, such as an image's that is mounted, as"
              " their own: COMMAND behind its own lwsrun, with its variables and not with yours.")  # fmt: skip
@click.option("--root-env", metavar="NAME=VALUE", multiple=True, show_envvar=True,
              help="With --root-fs: a variable of the image, such as its PATH. Repeatable.")  # fmt: skip
@click.option("--root-user", metavar="UID[:GID]", default=None, show_envvar=True,
              help="With --root-fs: whom the pods run as, as runAsUser. Default: root.")  # fmt: skip
@backend_options
@timing_options(drain_delay="0s")
@click.option("--exec", is_flag=True, show_envvar=True, help="As for `start`: the launchers become their engines.")
@SMOKE_FIRST
@smoke_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
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
    root_fs: str | None,
    root_env: tuple[str, ...],
    root_user: str | None,
    command: tuple[str, ...],
    **values: Any,
) -> None:
    """Run COMMAND as an LWS group of real launchers on this machine; exit with the group's code. With --smoke and
    without a COMMAND: `lwsrun smoke` in each pod.

    Ctrl-C deletes the group as Kubernetes would (SIGTERM to every pod); a second one kills it. There are no endpoints
    to wait for here, so --drain-delay is 0 unless it is given.
    """
    for name in NEEDED:
        if find_spec(name) is None:
            raise ConfigError(Fault(f"simulate needs {name}", "", "pip install 'lwsrun[simulate]'"))
    verb, names = "start", list(HANDED_ON)
    if not command:
        if not values["smoke"]:
            raise click.MissingParameter(param_hint="COMMAND", param_type="argument")
        from launcher.smoke.cli import FIXED

        verb, names = "smoke", [name for name in HANDED_ON if name not in {*FIXED, "smoke"}]
    make_options(**{name: values[name] for name in OF_BACKENDS})
    parsed = read_faults(faults, scenario, size)
    if values["exec"] and (then is not None or any(fault.since == "serving" for fault in parsed)):
        raise ConfigError(
            Fault(
                "with --exec no launcher is left that could tell when the group serves",
                "no --then, and faults by time (kill:0@10s) or at `formed`",
            )
        )
    check_root(root_fs, root_env, root_user, parsed)
    try:
        worker_argv = None if worker_command is None else shlex.split(worker_command)
    except ValueError as error:
        raise ConfigError(Fault(f"--worker-command {worker_command!r}: {error}", "a command, quoted")) from None
    listeners = [sandbox.listen(text) for text in publish]
    if keep_logs:
        try:
            Path(keep_logs).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(Fault(f"--keep-logs {keep_logs}: {error.strerror}", "a directory to write to")) from None
    start_options = handed_on(values, names)
    if gpus_per_node is not None:
        start_options = [f"--gpus-per-node={gpus_per_node}", *start_options]
        click.echo(f"simulate: {gpus_per_node} GPUs per node are faked (--gpus-per-node): no device is behind them")
    with sandbox.own_directory() as directory:
        isolated = sandbox.isolate(isolation)
        absent = [fault.what for fault in parsed if fault.what in NETWORK]
        if root_fs is not None and not isolated:
            raise ConfigError(Fault("--root-fs: plain loopback has no file systems", "--isolation namespaces"))
        if absent and not isolated:
            why = "plain loopback has neither links nor DNS of its own"
            raise ConfigError(Fault(f"{', '.join(absent)}: {why}", "--isolation namespaces"))
        code = sandbox.run(
            Spec(
                size=size,
                command=list(command),
                worker_command=worker_argv,
                start_options=start_options,
                environ={name: value for name, value in os.environ.items() if name not in NOT_FOR_PODS},
                directory=directory,
                isolated=isolated,
                shm_bytes=shm_size << 20,
                port=port,
                publish=[(listener.fileno(), inner) for listener, inner in listeners],
                then=then,
                faults=parsed,
                restart_policy=restart_policy,
                startup_policy=startup_policy,
                max_recreations=max_recreations,
                keep_logs=str(Path(keep_logs).absolute()) if keep_logs else None,
                colour=sys.stdout.isatty(),
                verb=verb,
                root_fs=os.path.realpath(root_fs) if root_fs is not None else None,
                root_env=list(parse_env("--root-env", root_env)),
                root_user=parse_user(root_user),
            )
        )
    sys.exit(code)


def check_root(root_fs: str | None, env: tuple[str, ...], user: str | None, faults: list[FaultOf]) -> None:
    """Raises ConfigError for what does not go together."""
    if root_fs is None and (env or user):
        raise ConfigError(Fault("--root-env and --root-user are of the image that --root-fs names", "--root-fs DIR"))
    if parse_user(user) and os.geteuid() != 0:
        raise ConfigError(Fault("--root-user: only root can run pods as other users", "", "sudo lwsrun simulate …"))
    wrapped = [fault.what for fault in faults if fault.what in WRAPPED]
    if root_fs is not None and wrapped:
        raise ConfigError(Fault(f"{', '.join(wrapped)}: the wrapper of that fault is not in the image", "other faults"))


def parse_user(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    user, _, group = text.partition(":")
    if not (user.isdigit() and (group or user).isdigit()):
        raise ConfigError(Fault(f"--root-user {text!r}", "UID or UID:GID, in numbers"))
    return int(user), int(group or user)


def handed_on(values: dict[str, Any], names: list[str]) -> list[str]:
    """The options of `start` that were given, as its arguments."""
    arguments = []
    for name in names:
        value = values[name]
        for item in value if isinstance(value, tuple) else (value,):
            flag = f"--{name.replace('_', '-')}"
            if isinstance(item, bool):
                arguments += [flag] * item
            elif item is not None:
                arguments.append(f"{flag}={item}")
    return arguments
