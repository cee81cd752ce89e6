"""vLLM on Ray: one command on the leader, Ray alone on the workers. One replica over all nodes, or data parallel."""

from __future__ import annotations

from dataclasses import replace

from backends import argv, ray
from backends.errors import ConfigError, Fault
from backends.layout import LayoutError, check_layout
from backends.plan import EnvVar, Plan, unless_set
from backends.serving import VLLM_ON_RAY, ranks
from backends.vllm_asked import NATIVE_FLAGS, Asked, Edit, even_gpus, refuse_older
from backends.vllm_drain import RAY, api_servers, by_us
from backends.vllm_engine import environment, notes, serves, unset
from backends.vllm_flags import (
    ALL2ALL,
    DP_ADDRESS,
    DP_BACKEND,
    DP_LOCAL,
    DP_RAY_SINCE,
    DP_SPAN_SINCE,
    ELASTIC_EP,
    EXECUTOR,
)

PACKING = "VLLM_RAY_DP_PACK_STRATEGY"


def plan_on_ray(asked: Asked, reason: str) -> Plan:
    """TP × PP over all GPUs of the group. Raises ConfigError where the image has no Ray."""
    if asked.sized:
        check_layout(asked.axes, asked.request.nodes)
    edit = Edit(asked)
    edit.switch(EXECUTOR, "ray")
    return _plan(asked, edit, mode="Ray", reason=reason)


def plan_data_parallel_on_ray(asked: Asked, reason: str) -> Plan:
    """Replicas that vLLM places over Ray's nodes (vllm/v1/engine/utils.py, create_dp_placement_groups)."""
    refuse_older(asked, DP_RAY_SINCE, "--data-parallel-backend ray", "use a newer image")
    native = [flag.name for flag in NATIVE_FLAGS if asked.has(flag)]
    if native:
        raise ConfigError(
            Fault(
                f"{', '.join(native)} and {DP_BACKEND.name} ray contradict each other",
                "vLLM takes --nnodes with --data-parallel-backend mp only",
                f"leave out {', '.join(native)}: Ray knows the nodes",
            )
        )
    axes, nodes = [*asked.axes, ("DP", asked.data)], asked.request.nodes
    elastic = asked.has(ELASTIC_EP)
    if not (elastic and asked.world * asked.data <= sum(node.gpus for node in nodes)):
        check_layout(axes, nodes)
    edit = Edit(asked)
    edit.switch(DP_BACKEND, "ray")
    edit.leader(DP_ADDRESS)
    packing = _packing(asked, edit)
    extra = (_fixed_size(asked),) if elastic else ()
    why = "Ray places the replicas; the leader's share lies beside its server"
    return _plan(asked, edit, mode="data parallel on Ray", reason=reason, env=packing, why=why, extra=extra)


def _packing(asked: Asked, edit: Edit) -> tuple[EnvVar, ...]:
    """How replicas lie on nodes: within one (vLLM's default), filling unlike nodes, or over several."""
    counts = [node.gpus for node in asked.request.nodes]
    if asked.world > min(counts):
        refuse_older(asked, DP_SPAN_SINCE, "replicas that span nodes", "make a replica fit into a node")
        gpus = even_gpus(asked, "a replica that spans nodes needs all GPUs of each")
        if asked.world % gpus:
            raise LayoutError(
                Fault(
                    f"a replica of {asked.world} GPUs does not fill nodes of {gpus}",
                    f"a multiple of {gpus} GPUs for each replica, or a divisor of it",
                )
            )
        wanted, why = "span", f"a replica has {asked.world} GPUs, a node {gpus}"
    else:
        edit.number(DP_LOCAL, _local(asked), "the leader's share of the replicas")
        if len(set(counts)) == 1:
            return ()
        wanted, why = "fill", "the nodes have unlike numbers of GPUs"
        if str(argv.text(asked.arguments, ALL2ALL)).startswith("deepep"):
            raise LayoutError(Fault(f"{ALL2ALL.name} of DeepEP on unlike nodes", "as many GPUs on every node"))
    given = asked.request.environ.get(PACKING)
    if given not in (None, wanted):
        raise LayoutError(Fault(f"{PACKING} is {given}, but {why}", f"{PACKING}={wanted}", "leave it out"))
    return unless_set(asked.request, EnvVar(PACKING, wanted, why))


def _local(asked: Asked) -> int:
    """Replicas on the leader. An elastic deployment that starts small starts there."""
    return min(asked.request.leader.gpus // asked.world, asked.data)


def _fixed_size(asked: Asked) -> str:
    total = sum(node.gpus for node in asked.request.nodes)
    return (
        f"{ELASTIC_EP.name}: a group has a fixed number of pods, so vLLM can scale between 1 and"
        f" {total // asked.world} replicas on its {total} GPUs, not beyond; more pods take a new group"
    )


def _plan(
    asked: Asked,
    edit: Edit,
    *,
    mode: str,
    reason: str,
    env: tuple[EnvVar, ...] = (),
    why: str = "",
    extra: tuple[str, ...] = (),
) -> Plan:
    request = asked.request
    if request.node.ray is None:
        raise ray.no_ray(request.node)
    main, decisions = None, edit.decisions(why) if why and request.group.is_leader else ()
    if request.group.is_leader:
        command = replace(asked.command, argv=asked.command.with_arguments(edit.arguments))
        main, drain = by_us(asked, command, RAY, api_servers(command, asked.data))
        edit.takes(request.options.ray_port, "Ray (--ray-port)")
        serves(edit, main)
        decisions = (*decisions, *drain)
    return Plan(
        backend="vllm",
        mode=mode,
        reason=reason,
        kind=asked.kind,
        env=(*environment(asked), *env, *ray.cluster_env(request)),
        unset=unset(request),
        services=(replace(ray.cluster_service(request), ranks=ranks(asked.command, asked.kind, VLLM_ON_RAY)),),
        gates=ray.cluster_gates(request),
        main=main,
        leader_only=True,
        decisions=decisions,
        notes=(*notes(asked, drains_itself=False), *extra),
    )
