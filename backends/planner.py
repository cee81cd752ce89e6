"""One way in: from a request to a plan, by the engine that the command starts or that --backend names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from backends.command import detect
from backends.errors import ConfigError, Fault
from backends.fabric import connected
from backends.generic import plan_generic
from backends.health import with_health
from backends.mpi import plan_mpi
from backends.placeholders import expand_all
from backends.plan import EnvVar, Options, Plan, Request
from backends.ray import plan_ray
from backends.sglang import plan_sglang
from backends.smoke import agreed as smoke_agreed
from backends.smoke import plan_smoke
from backends.tensorrt_llm import plan_tensorrt_llm
from backends.torchrun import plan_torchrun
from backends.vllm import plan_vllm

PLANNERS: dict[str, Callable[[Request], Plan]] = {
    "vllm": plan_vllm,
    "sglang": plan_sglang,
    "tensorrt-llm": plan_tensorrt_llm,
    "mpi": plan_mpi,
    "torchrun": plan_torchrun,
    "ray": plan_ray,
    "generic": plan_generic,
    "smoke": plan_smoke,
}
NAMES = ("auto", *(name for name in PLANNERS if name != "smoke"))  # for the last there is `lwsrun smoke`
GIVEN = "--env"  # the reason of a variable that the user gave
# What a user who names an engine must start: its name, and how that looks.
STARTS = {
    "vllm": ("vLLM server", "`vllm serve …` or `python3 -m vllm.entrypoints.openai.api_server …`"),
    "sglang": ("SGLang server", "`sglang serve …` or `python3 -m sglang.launch_server …`"),
    "torchrun": ("torchrun", "`torchrun …` or `python3 -m torch.distributed.run …`"),
}


def backend_of(argv: tuple[str, ...], options: Options) -> str:
    """The backend's name. Raises ConfigError where the user's choice and the command contradict each other."""
    chosen = options.backend
    if chosen in ("generic", "smoke"):
        return chosen
    found = detect(argv)
    if chosen == "auto":
        return found.engine
    if chosen in STARTS and found.engine != chosen:
        what, plainly = STARTS[chosen]
        raise ConfigError(
            Fault(
                f"--backend {chosen}, but no {what} was found in: {' '.join(argv)}",
                f"{plainly}, also behind a wrapper",
                "write the command plainly; --backend generic runs a command as it is",
            )
        )
    return chosen


def make_plan(request: Request) -> Plan:
    """What this pod does. Pure: the same request gives the same plan, on any machine. Raises ConfigError."""
    if request.options.leader_excluded and request.group.size == 1:
        raise ConfigError(
            Fault(
                "--leader-excluded in a group of size 1: nobody is left to take part",
                "a leader and at least one worker",
                "leave --leader-excluded out, or check LWS_GROUP_SIZE or --size",
            )
        )
    name = backend_of(request.argv, request.options)
    if name != "generic":
        _refuse_generic_options(name, request.options)
    if name != "vllm" and request.options.vllm_mode != "auto":
        raise _no_vllm(name, request.options.vllm_mode)
    values = expand_all(tuple(value for _, value in request.options.env), request)
    given = dict(zip((variable for variable, _ in request.options.env), values, strict=True))
    # Planned as if the pod had them, so that they count as set by the user wherever that is asked.
    request = replace(request, environ={**request.environ, **given})
    plan = connected(PLANNERS[name](request), request)
    if name != "smoke":  # it has no clients: --health-url is that of the engine after it
        plan = with_health(plan, request)
    added = (EnvVar(variable, value, GIVEN) for variable, value in given.items())
    first = request.options.smoke.first and name != "smoke"
    agreed = (*plan.agreed, f"first {smoke_agreed(request.options.smoke)}") if first else plan.agreed
    return replace(plan, env=(*(v for v in plan.env if v.name not in given), *added), agreed=agreed)


def _refuse_generic_options(name: str, options: Options) -> None:
    given = {"--preset": options.preset, "--await-workers": options.await_workers}
    flags = [f"{flag} {value}" for flag, value in given.items() if value is not None]
    if flags:
        raise ConfigError(
            Fault(
                f"{' and '.join(flags)}: {name} forms its group by itself",
                "a command that runs as it is on every pod",
                f"leave {' and '.join(flags)} out; or say --backend generic",
            )
        )


def _no_vllm(name: str, mode: str) -> ConfigError:
    return ConfigError(
        Fault(
            f"--vllm-mode {mode}, but what is planned is {name}",
            "a vLLM server, `vllm serve …`, and no other --backend",
            "leave --vllm-mode out",
        )
    )
