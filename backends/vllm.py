"""vLLM: which multi-node mode a command means. Each mode's plan is made in a module of its own.

A mode follows from the flags, in the order in which vLLM itself reads them; without a telling flag it follows from the
degrees, the image and the group. docs/vllm.md has the table.
"""

from __future__ import annotations

from backends import argv
from backends.command import detect
from backends.errors import ConfigError, Fault
from backends.generic import main_argv
from backends.layout import check_layout
from backends.plan import Plan, Request
from backends.vllm_asked import NATIVE_FLAGS, Asked, Edit, read
from backends.vllm_data_parallel import plan_external, plan_hybrid, plan_internal, plan_multi_port
from backends.vllm_engine import engine_plan
from backends.vllm_flags import (
    DP_BACKEND,
    DP_LOCAL,
    DP_RANK,
    DP_START,
    ELASTIC_EP,
    EPLB,
    EXTERNAL,
    HEADLESS,
    HYBRID,
    MULTI_PORT,
    NNODES,
)
from backends.vllm_native import plan_native
from backends.vllm_ray import plan_data_parallel_on_ray, plan_on_ray

# --vllm-mode and the planner of each.
PLANNERS = {
    "ray": plan_on_ray,
    "native": plan_native,
    "internal-lb": plan_internal,
    "hybrid-lb": plan_hybrid,
    "external-lb": plan_external,
    "multi-port-lb": plan_multi_port,
    "data-parallel-ray": plan_data_parallel_on_ray,
}
OF_ONE_REPLICA = ("ray", "native")
MODES = ("auto", *PLANNERS)


def plan_vllm(request: Request) -> Plan:
    """One pod's plan. Raises ConfigError for layouts that cannot form, and for flags that contradict the group."""
    if request.options.leader_excluded:
        raise ConfigError(_no_gpu_no_driver())
    asked = read(request, detect(main_argv(request)))
    if request.group.size == 1:
        return _alone(asked)
    _check_elastic(asked)
    mode, reason = choose(asked)
    return PLANNERS[mode](asked, reason)


def choose(asked: Asked) -> tuple[str, str]:
    """The mode and why. Raises ConfigError where flags contradict each other or --vllm-mode."""
    forced = asked.request.options.vllm_mode
    told = _told(asked)
    if len({mode for mode, _ in told}) > 1:
        signs = " and ".join(sign for _, sign in told)
        raise ConfigError(
            Fault(
                f"{signs} contradict each other", "the flags of one mode of data parallelism", "leave all but one out"
            )
        )
    if told:
        mode, sign = told[0]
        if forced not in ("auto", mode):
            raise ConfigError(
                Fault(
                    f"--vllm-mode {forced}, but the command has {sign}: that is {mode}",
                    "a mode and flags that mean the same",
                    f"leave {sign} or --vllm-mode out",
                )
            )
        return mode, f"--vllm-mode {mode}" if forced == mode else f"the command says {sign}"
    one_replica = asked.data == 1
    if forced != "auto":
        if one_replica != (forced in OF_ONE_REPLICA):
            raise ConfigError(
                Fault(
                    f"--vllm-mode {forced}, but --data-parallel-size is {asked.data}",
                    f"one of: {', '.join(mode for mode in PLANNERS if (mode in OF_ONE_REPLICA) == one_replica)}",
                    "change --data-parallel-size, or leave --vllm-mode out",
                )
            )
        return forced, f"--vllm-mode {forced}"
    size, ray = asked.request.group.size, asked.request.node.ray
    if one_replica and ray:
        return "ray", f"the image has Ray {ray} and the model spans {size} nodes"
    if one_replica:
        return "native", f"the image has no Ray and the model spans {size} nodes"
    if asked.command.is_dynamo:
        return "hybrid-lb", f"{asked.data} replicas, and Dynamo's own front end chooses among the pods"
    return "internal-lb", f"{asked.data} replicas behind one server, because nothing else is said"


def _told(asked: Asked) -> list[tuple[str, str]]:
    """The modes that the flags name, each with the flag that does."""
    told = []
    if argv.text(asked.arguments, DP_BACKEND) == "ray":
        told.append(("data-parallel-ray", f"{DP_BACKEND.name} ray"))
    if asked.has(MULTI_PORT):
        told.append(("multi-port-lb", MULTI_PORT.name))
    elif asked.has(DP_START) and not asked.has(HEADLESS) and not asked.has(HYBRID):
        told.append(("hybrid-lb", f"{DP_START.name} without {HEADLESS.name}"))
    if asked.has(HYBRID):
        told.append(("hybrid-lb", HYBRID.name))
    if asked.has(EXTERNAL) or asked.has(DP_RANK):
        told.append(("external-lb", EXTERNAL.name if asked.has(EXTERNAL) else DP_RANK.name))
    native = [flag.name for flag in NATIVE_FLAGS if asked.has(flag)]
    if asked.data == 1:
        _refuse_lone_replica(asked, [sign for _, sign in told])
    if asked.executor not in (None, "ray", "mp"):
        raise ConfigError(
            Fault(
                f"--distributed-executor-backend {asked.executor} in a group of {asked.request.group.size}",
                "ray or mp, or no such flag",
                "--backend generic runs the command as it is on every pod",
            )
        )
    if asked.executor == "ray" and native:
        raise ConfigError(
            Fault(
                f"{', '.join(native)} and --distributed-executor-backend ray contradict each other",
                "vLLM takes --nnodes with its multiprocessing executor only",
                f"leave out {', '.join(native)}: lwsrun tells Ray the nodes",
            )
        )
    if asked.data > 1 and asked.executor == "ray" and "data-parallel-ray" not in dict(told):
        raise ConfigError(
            Fault(
                f"--data-parallel-size {asked.data} with --distributed-executor-backend ray",
                f"{DP_BACKEND.name} ray, which places the replicas over the nodes",
                f"add {DP_BACKEND.name} ray, or leave --distributed-executor-backend out",
            )
        )
    if asked.data == 1 and asked.executor == "ray":
        told.append(("ray", "--distributed-executor-backend ray"))
    elif asked.data == 1 and (native or asked.executor == "mp"):
        told.append(("native", native[0] if native else "--distributed-executor-backend mp"))
    return told


def _refuse_lone_replica(asked: Asked, signs: list[str]) -> None:
    """Where replicas would be shared out, but there is one: vLLM refuses some of these flags then (config/parallel.py),
    others on a headless pod. An address or a port alone does nothing.
    """
    named = [*signs, *(flag.name for flag in (DP_LOCAL, DP_START) if asked.has(flag) and not signs)]
    # An elastic deployment may start with one replica and grow.
    if not named or asked.has(ELASTIC_EP):
        return
    first, total = named[0], sum(node.gpus for node in asked.request.nodes)
    several, rest = divmod(total, asked.world)
    size = f"--data-parallel-size {several}" if several > 1 and rest == 0 else "a --data-parallel-size that fits"
    raise ConfigError(
        Fault(
            f"{first}, but no --data-parallel-size above 1",
            f"{size}, or no {first}",
            f"for one replica leave {first} out, for several say how many; on every pod",
        )
    )


def _check_elastic(asked: Asked) -> None:
    """What vLLM itself refuses, minutes later (vllm/config/parallel.py)."""
    if not asked.has(ELASTIC_EP):
        return
    balancing = [flag.name for flag in (HYBRID, EXTERNAL, DP_RANK, MULTI_PORT) if asked.has(flag)]
    wrong = [*([] if asked.has(EPLB) else [f"no {EPLB.name}"]), *balancing]
    remedies = [*([] if asked.has(EPLB) else [f"add {EPLB.name}"]), *(f"leave {flag} out" for flag in balancing)]
    if asked.pipeline > 1:
        wrong.append(f"PP {asked.pipeline}")
        remedies.append("leave pipeline parallelism out")
    if wrong:
        raise ConfigError(
            Fault(
                f"{ELASTIC_EP.name} with {', '.join(wrong)}",
                f"{EPLB.name}, PP 1, and vLLM's internal load balancing: all else vLLM refuses, minutes later",
                f"{', '.join(remedies)}; or leave {ELASTIC_EP.name} out",
            )
        )


def _alone(asked: Asked) -> Plan:
    request = asked.request
    nodes = argv.whole_number(asked.arguments, NNODES, 1)
    if nodes > 1:
        raise ConfigError(
            Fault(
                f"--nnodes is {nodes}, but the group's size is 1",
                "no --nnodes, or a group of that size",
                "check LWS_GROUP_SIZE or --size",
            )
        )
    local, server_each = _local(asked)
    # Fewer than the node has is legal on one node (several engines may share it); more can never start.
    if request.node.gpus and asked.world * local > request.node.gpus:
        check_layout([*asked.axes, ("DP", local)], request.nodes)
    return engine_plan(
        asked,
        Edit(asked),
        mode="single node",
        reason="the group is this pod alone",
        servers=local if server_each else asked.data,
        remote=local < asked.data,
    )


def _local(asked: Asked) -> tuple[int, bool]:
    """This pod's part of the replicas, which may be of several groups; and whether its API servers are of it alone."""
    if asked.has(DP_RANK) or asked.has(EXTERNAL):
        return 1, True
    hybrid = asked.has(HYBRID) or (asked.has(DP_START) and not asked.has(HEADLESS))
    return argv.whole_number(asked.arguments, DP_LOCAL, asked.data, lowest=0), hybrid


def _no_gpu_no_driver() -> Fault:
    # https://github.com/vllm-project/vllm/issues/27318, https://github.com/vllm-project/vllm/issues/29265
    return Fault(
        "--leader-excluded: vLLM's server cannot run on a leader that has no part in the model",
        "a leader with GPUs: without one vLLM ends with `Failed to infer device type` or `Current node has no GPU`",
        "give the leader the workers' GPUs and leave --leader-excluded out; --backend ray and generic take it",
    )
