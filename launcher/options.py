"""Options that several commands share, each declared once, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import click

from backends.errors import ConfigError, Fault
from backends.orchestrator import NAMES as ORCHESTRATORS
from backends.plan import Kind, Options
from backends.planner import NAMES
from backends.presets import NAMES as PRESETS
from backends.vllm import MODES as VLLM_MODES
from launcher.settings import PORT

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
)


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


def make_options(*, kind: str | None, env: tuple[str, ...], peer_timeout: float, **others: Any) -> Options:
    """Raises ConfigError for an --env that is no NAME=VALUE."""
    pairs = []
    for text in env:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(Fault(f"--env {text!r}", "NAME=VALUE"))
        pairs.append((name, value))
    if peer_timeout <= 0:
        raise ConfigError(Fault("--peer-timeout is 0", "a duration above zero, such as 15s"))
    return Options(kind=Kind(kind) if kind else None, env=tuple(pairs), peer_timeout=peer_timeout, **others)
