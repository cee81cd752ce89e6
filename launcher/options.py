"""Options that several commands share, each declared once, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import click

from backends.errors import ConfigError, Fault
from backends.orchestrator import NAMES as ORCHESTRATORS
from backends.plan import Kind, Options, Smoke
from backends.plan_mpi import Agent, MpiOptions
from backends.planner import NAMES
from backends.presets import NAMES as PRESETS
from backends.vllm import MODES as VLLM_MODES
from launcher.settings import PORT, READY_WHEN

# No option may follow COMMAND: what stands there belongs to it.
PASS_THROUGH = {"allow_interspersed_args": False, "auto_envvar_prefix": "LWSRUN"}


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

identity_options = options(
    click.option("--leader-address", show_envvar=True,
                 help="The leader's name or IP, without a port. Default: LWS_LEADER_ADDRESS."),
    click.option("--size", show_envvar=True,
                 help="Pods in the group, the leader included. Default: LWS_GROUP_SIZE."),
    click.option("--index", show_envvar=True, help="This pod's place; 0 leads. Default: LWS_WORKER_INDEX."),
    click.option("--group-id", show_envvar=True,
                 help="The group's identity, the same in all its pods. Default: the leader address as given."),
    click.option("--orchestrator", type=click.Choice(ORCHESTRATORS), default="auto", show_default=True,
                 show_envvar=True, help="Whose variables tell this pod's place. auto: of the first controller, in this"
                 " order, that set any."),
    click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, show_envvar=True,
                 help="The group channel, probes and status, the same in all pods."),
    click.option("--pod-ip", show_envvar=True,
                 help="This pod's address. Default: by its host name; on workers the route to the leader."),
    click.option("--gpus-per-node", type=click.IntRange(0), default=None, show_envvar=True,
                 help="GPUs of this node. Default: CUDA_VISIBLE_DEVICES, else NVML (MIG instances), else what the"
                 " runtime handed in."),
)  # fmt: skip


class AboveZero(Seconds):
    """A duration that is one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if number <= 0:
            self.fail(f"{value!r} is no duration above zero, such as 30s", param, ctx)
        return number


class PortRange(click.ParamType):  # type: ignore[type-arg]
    """FIRST-LAST, both included."""

    name = "ports"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        first, dash, last = str(value).partition("-")
        numbers = all(part.isascii() and part.isdigit() and len(part) < 6 for part in (first, last))
        if not dash or not numbers or not 1024 <= int(first) <= int(last) <= 65535:
            self.fail(f"{value!r} is not a range of ports: write 50000-50099, from 1024 on", param, ctx)
        return f"{int(first)}-{int(last)}"


PORTS = PortRange()

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
                 help="Silence after which a peer is dead; the leader's value counts. A closed connection is noticed at"
                 " once."),
    click.option("--leader-excluded", is_flag=True, show_envvar=True,
                 help="The leader takes no part in the layout (LWS subgroups with LeaderExcluded): GPUs are those of"
                 " the workers."),
    click.option("--vllm-mode", type=click.Choice(VLLM_MODES), default="auto", show_default=True, show_envvar=True,
                 help="How vLLM spans the nodes, the same in all pods; auto derives it from its flags, the GPUs and the"
                 " image."),
    click.option("--preset", type=click.Choice(PRESETS), default=None, show_envvar=True,
                 help="For a command that runs as it is: add the variables by which such an image learns its role."),
    click.option("--await-workers", type=click.IntRange(1, 65535), metavar="PORT", default=None, show_envvar=True,
                 help="For a command that runs as it is: the leader's starts when every worker accepts connections"
                 " on this port."),
    click.option("--health-url", metavar="URL", default=None, show_envvar=True,
                 help="Where the leader's engine tells that it serves, as seen in its pod; tcp://HOST:PORT: by"
                 " accepting a connection. Placeholders are filled in. Default: found in the engine's flags."),
    click.option("--mpi-agent", type=click.Choice([a.value for a in Agent]), default="ssh", show_default=True,
                 show_envvar=True, help="What starts MPI's daemon on the workers: ssh, to an sshd in each of them; or"
                 " channel, lwsrun itself over the group channel. The same in all pods."),
    click.option("--mpi-ranks", type=click.IntRange(1), default=None, show_envvar=True,
                 help="Ranks of an MPI program. Default: one for each GPU of the group."),
    click.option("--mpi-env", multiple=True, metavar="NAME", show_envvar=True,
                 help="Every rank has the leader's value of this variable, instead of its own pod's. Repeatable."),
    click.option("--mpi-arg", multiple=True, metavar="ARGUMENT", show_envvar=True,
                 help="One more argument for mpirun, before the program. Repeatable."),
    click.option("--mpi-ports", type=PORTS, metavar="FIRST-LAST", default=None, show_envvar=True,
                 help="The ports that mpirun, its daemons and the ranks listen on, for a NetworkPolicy. Default: any."),
    click.option("--mpi-timeout", type=SECONDS, default="5m", show_default=True, show_envvar=True,
                 help="How long the leader tries to reach every worker's sshd, and mpirun's daemons have to call"
                      " back, before it fails."),
    click.option("--ssh-port", type=click.IntRange(1, 65535), default=2222, show_default=True, show_envvar=True,
                 help="The port of the workers' sshd, the same in all pods."),
    click.option("--ssh-keys", metavar="DIR", default=None, show_envvar=True,
                 help="A mounted key pair for MPI's ssh, in all pods. Default: a key is minted for each run, and handed"
                 " over on the group channel."),
)  # fmt: skip
OF_BACKENDS = (
    "backend",
    "kind",
    "env",
    "ray_port",
    "peer_timeout",
    "leader_excluded",
    "vllm_mode",
    "preset",
    "await_workers",
    "health_url",
    "mpi_agent",
    "mpi_ranks",
    "mpi_env",
    "mpi_arg",
    "mpi_ports",
    "mpi_timeout",
    "ssh_port",
    "ssh_keys",
)


smoke_options = options(
    click.option("--smoke-backend", type=click.Choice(["auto", "nccl", "gloo"]), default="auto", show_default=True,
                 show_envvar=True, help="What a smoke run measures with; auto: NCCL on GPUs, else Gloo."),
    click.option("--procs-per-node", type=click.IntRange(1), default=None, show_envvar=True,
                 help="Processes of a smoke run in each pod. Default: one for each GPU; without GPUs one."),
    click.option("--smoke-timeout", type=SECONDS, default="60s", show_default=True, show_envvar=True,
                 help="What each step of a smoke run may take: the start of its processes, one size, one round of"
                 " pairs."),
    click.option("--smoke-port", type=click.IntRange(1, 65535), default=29470, show_default=True, show_envvar=True,
                 help="Where a smoke run's processes meet, on the leader."),
    click.option("--smoke-slow", type=click.FloatRange(1, min_open=True), metavar="FACTOR", default=None,
                 show_envvar=True, help="How many times slower than usual a pair of nodes is bad. Default: 2 with NCCL,"
                 " 4 with Gloo."),
)  # fmt: skip
SMOKE_FIRST = click.option("--smoke", is_flag=True, show_envvar=True,
                           help="A smoke run over the whole group goes before the engine; it is not started unless that"
                           " passes. The same in all pods.")  # fmt: skip
OF_SMOKE = ("smoke_backend", "procs_per_node", "smoke_timeout", "smoke_port", "smoke_slow")


def make_smoke(values: dict[str, Any], **others: Any) -> Smoke:
    """values are those of the options above. Raises ConfigError."""
    if values["smoke_timeout"] <= 0:
        raise ConfigError(Fault("--smoke-timeout is 0", "a duration above zero, such as 60s"))
    return Smoke(**{name.removeprefix("smoke_"): values[name] for name in OF_SMOKE}, **others)


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
        click.option("--ready-when", type=click.Choice(READY_WHEN), default="engine", show_default=True,
                     show_envvar=True, help="When /readyz and /startupz pass. launcher: as soon as lwsrun listens, as"
                     " startupPolicy LeaderReady needs it on the leader. group: when all have joined. engine: when it"
                     " serves."),
        click.option("--hang-timeout", type=AboveZero(), default=None, show_envvar=True,
                     help="End the group, with the stacks of its processes in the log, when its engine has served but"
                     " answers no health check, or gets no further with its requests, for so long. Default: never."),
        click.option("--report-every", type=SECONDS, default="15s", show_default=True, show_envvar=True,
                     help="How often a waiting pod says whom it waits for."),
    )  # fmt: skip


def parse_env(option: str, texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """NAME=VALUE as pairs. Raises ConfigError for what is none."""
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(Fault(f"{option} {text!r}", "NAME=VALUE"))
        pairs.append((name, value))
    return tuple(pairs)


def make_options(
    *,
    kind: str | None,
    env: tuple[str, ...],
    peer_timeout: float,
    mpi_agent: str,
    mpi_ranks: int | None,
    mpi_env: tuple[str, ...],
    mpi_arg: tuple[str, ...],
    mpi_ports: str | None,
    mpi_timeout: float,
    ssh_port: int,
    ssh_keys: str | None,
    **others: Any,
) -> Options:
    """Raises ConfigError for an --env that is no NAME=VALUE."""
    pairs = parse_env("--env", env)
    if peer_timeout <= 0:
        raise ConfigError(Fault("--peer-timeout is 0", "a duration above zero, such as 15s"))
    first, _, last = (mpi_ports or "").partition("-")
    mpi = MpiOptions(
        agent=Agent(mpi_agent),
        ssh_port=ssh_port,
        keys=ssh_keys,
        environment=mpi_env,
        ports=(int(first), int(last)) if mpi_ports else None,
        ranks=mpi_ranks,
        arguments=mpi_arg,
        timeout=mpi_timeout,
    )
    return Options(kind=Kind(kind) if kind else None, env=pairs, peer_timeout=peer_timeout, mpi=mpi, **others)
