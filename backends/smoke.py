"""A smoke run: on every pod one process for each GPU, which meet over the group and measure what it can do.

The command is the image's Python and the script that it runs (launcher/smoke/collectives.py).
"""

from __future__ import annotations

from dataclasses import replace

from backends.errors import ConfigError, Fault
from backends.plan import EnvVar, Kind, Main, Plan, Request, Smoke

FAILED = "smoke: FAILED"  # what the line begins with that tells why


def plan_smoke(request: Request) -> Plan:
    """One starter per pod; the leader's conducts. Raises ConfigError for a choice that the GPUs do not allow."""
    if len(request.argv) != 2:
        raise ConfigError(Fault("--backend smoke is what `lwsrun smoke` uses", "lwsrun smoke"))
    smoke = request.options.smoke
    backend, reason = _backend(request)
    procs = tuple(_procs(request, index, backend) for index in range(request.group.size))
    flags = [
        f"--index={request.group.index}",
        f"--procs={','.join(map(str, procs))}",
        f"--backend={backend}",
        f"--timeout={smoke.timeout:g}",
        *([f"--slow={smoke.slow:g}"] if smoke.slow is not None else []),
        *([f"--format={smoke.format}"] if smoke.format != "text" else []),
    ]
    return Plan(
        backend="smoke",
        mode="collectives",
        reason=f"{backend}: {reason}",
        kind=Kind.JOB,
        # Not left as the user may have set them: those are the engine's, which starts when this is over.
        env=(
            EnvVar("MASTER_ADDR", request.leader.ip, "the leader's address, as an IP"),
            EnvVar("MASTER_PORT", str(smoke.port), "where the smoke run's processes meet (--smoke-port)"),
        ),
        main=Main((*request.argv, *flags), Kind.JOB, fails_with=FAILED),
        agreed=(agreed(smoke),),
        decisions=(f"{sum(procs)} ranks over the group, here {procs[request.group.index]}: {backend}, {reason}",),
    )


def agreed(smoke: Smoke) -> str:
    """What every pod of the group must mean to do."""
    procs = "each GPU" if smoke.procs_per_node is None else f"{smoke.procs_per_node} processes a node"
    return f"smoke run on {procs} by {smoke.backend} at port {smoke.port}"


def before(request: Request, python: str, script: str) -> Request:
    """The same group, for the smoke run that goes before the command."""
    options = replace(request.options, backend="smoke", preset=None, await_workers=None, vllm_mode="auto")
    return replace(request, argv=(python, script), options=options)


def _backend(request: Request) -> tuple[str, str]:
    """NCCL or Gloo, and why. Raises ConfigError where only some nodes have GPUs."""
    gpus = [request.gpus_of(index) for index in _taking_part(request)]
    if request.options.smoke.backend != "auto":
        return request.options.smoke.backend, "--smoke-backend"
    if all(gpus):
        return "nccl", "a process for each GPU"
    if any(gpus):
        without = [index for index in _taking_part(request) if not request.gpus_of(index)]
        raise ConfigError(
            Fault(
                f"GPUs on some nodes only: none on {', '.join(map(str, without))}",
                "GPUs on all nodes that take part, or on none",
                "--leader-excluded for a leader without GPUs; --smoke-backend gloo for a run on the CPUs",
            )
        )
    return "gloo", "no GPUs: on the CPUs"


def _taking_part(request: Request) -> range:
    return range(1 if request.options.leader_excluded else 0, request.group.size)


def _procs(request: Request, index: int, backend: str) -> int:
    """Processes of a pod. Raises ConfigError where NCCL would have none to run on, or two on one GPU."""
    if index not in _taking_part(request):
        return 0
    gpus, asked = request.gpus_of(index), request.options.smoke.procs_per_node
    unknown = request.options.leader_excluded and not any(node.gpus for node in request.nodes)  # as yet
    if backend == "nccl" and not unknown and not 1 <= (asked or gpus) <= gpus:
        raise ConfigError(
            Fault(
                f"--procs-per-node {asked or 1} with NCCL, but {gpus} GPUs",
                "one process for each GPU, or fewer",
                "leave --procs-per-node out; --smoke-backend gloo runs on the CPUs",
            )
        )
    return asked or (gpus if backend == "nccl" else 0) or 1
