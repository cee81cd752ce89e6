"""Data parallel vLLM: several replicas of the model, or of its attention, over the nodes of a group.

Ranks go to pods in the order of their indexes. All pods but the leader wait for the port on which vLLM's front end on
the leader greets the replicas: it is open from before the first replica starts until the last is ready, and a replica
that finds nobody there within 5 minutes ends its pod (HANDSHAKE_TIMEOUT_MINS in vllm/v1/engine/core.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from backends import argv
from backends.errors import ConfigError, Fault
from backends.layout import LayoutError, check_layout, describe
from backends.plan import Gate, Plan, PortOpen
from backends.serving import PORTS
from backends.vllm_asked import NATIVE_FLAGS, Asked, Edit, even_gpus, refuse_headless_leader, refuse_older
from backends.vllm_engine import engine_plan
from backends.vllm_flags import (
    API_SERVERS,
    DEFAULT_DP_PORT,
    DEFAULT_SUPERVISOR_PORT,
    DP_ADDRESS,
    DP_LOCAL,
    DP_PORT,
    DP_RANK,
    DP_RANK_SINCE,
    DP_SINCE,
    DP_START,
    ELASTIC_EP,
    EXTERNAL,
    GRPC,
    HEADLESS,
    HYBRID,
    HYBRID_SINCE,
    MULTI_PORT,
    MULTI_PORT_SINCE,
    NATIVE_SINCE,
    PORT,
    SUPERVISOR_PORT,
    UNIX_SOCKET,
)

NEWER = "use a newer image"
MOE_ONLY = "vLLM takes external load balancing for MoE models only (since 0.21); others are better off as groups each"
ELASTIC = f"{ELASTIC_EP.name} can scale only with --data-parallel-backend ray; without it the replicas stay as they are"
DENSE = (
    "a replica spans nodes: vLLM does this for MoE models; the ranks of others never find each other (measured with"
    " 0.32). For those use a group for each replica, or --data-parallel-backend ray"
)


@dataclass(frozen=True)
class Share:
    """This pod's part of the replicas: local ones from start; or one over several nodes, of which this is node."""

    start: int
    local: int
    spans: int = 1
    node: int = 0


def share_of(asked: Asked) -> Share:
    """Raises LayoutError where replicas and nodes do not fit each other."""
    nodes, index = asked.request.nodes, asked.request.group.index
    check_layout([*asked.axes, ("DP", asked.data)], nodes)
    if asked.world > min(node.gpus for node in nodes):
        gpus = even_gpus(asked, f"a replica of {asked.world} GPUs spans nodes, which must then be alike")
        if asked.world % gpus:
            raise _misfit(asked)
        spans = asked.world // gpus
        return Share(index // spans, 1, spans, index % spans)
    if any(node.gpus % asked.world for node in nodes):
        raise _misfit(asked)
    local = [node.gpus // asked.world for node in nodes]
    return Share(sum(local[:index]), local[index])


def _misfit(asked: Asked) -> LayoutError:
    replica = " × ".join(f"{name} {degree}" for name, degree in asked.axes)
    return LayoutError(
        Fault(
            f"a replica of {replica} fits neither into a node nor into whole nodes:"
            f" the group has {describe(asked.request.nodes)}",
            "as many GPUs as divide those of a node, or a multiple of those",
            "change TP or PP, and --data-parallel-size with it",
        )
    )


def plan_internal(asked: Asked, reason: str) -> Plan:
    """The leader serves for all replicas; the other pods are headless."""
    refuse_older(asked, DP_SINCE, "data parallelism over nodes", NEWER)
    refuse_headless_leader(asked)
    share, edit, group = share_of(asked), Edit(asked), asked.request.group
    gates = _rendezvous(asked, edit, share)
    if not group.is_leader:
        # On a leader vLLM takes a start rank for hybrid load balancing.
        edit.number(DP_START, share.start, "this pod's first rank")
        edit.headless()
    return engine_plan(
        asked,
        edit,
        mode="data parallel, internal load balancing",
        reason=reason,
        why=_why(asked, share, "the leader serves for all" if group.is_leader else "it serves no HTTP"),
        gates=gates,
        extra_notes=_notes(asked, share),
        servers=asked.data,
        remote=True,
    )


def plan_hybrid(asked: Asked, reason: str) -> Plan:
    """Every pod serves for its own replicas; what is in front chooses among the pods."""
    refuse_older(asked, HYBRID_SINCE, HYBRID.name, NEWER)
    _refuse_headless(asked, "with hybrid load balancing every pod serves")
    share, edit = share_of(asked), Edit(asked)
    if share.spans > 1:
        raise LayoutError(
            Fault(
                f"hybrid load balancing needs whole replicas in a pod; one of {asked.world} GPUs spans {share.spans}",
                f"TP × PP of at most {asked.request.node.gpus}",
                f"use {EXTERNAL.name}, with an API server for each replica",
            )
        )
    edit.switch(HYBRID)
    gates = _rendezvous(asked, edit, share)
    edit.number(DP_START, share.start, "this pod's first rank")
    one = ("one replica in a pod is external load balancing to vLLM: " + MOE_ONLY,) if share.local == 1 else ()
    return engine_plan(
        asked,
        edit,
        mode="data parallel, hybrid load balancing",
        reason=reason,
        why=_why(asked, share, "every pod serves for its own"),
        gates=gates,
        extra_notes=one,
        servers=share.local,
        remote=True,
        all_answer=True,
    )


def plan_external(asked: Asked, reason: str) -> Plan:
    """Every replica has its own API server; where it spans nodes, its further nodes are headless."""
    refuse_older(asked, DP_RANK_SINCE, DP_RANK.name, NEWER)
    share, edit = share_of(asked), Edit(asked)
    if share.local > 1:
        raise LayoutError(
            Fault(
                f"external load balancing is one replica for each `vllm serve`; a pod's"
                f" {asked.request.node.gpus} GPUs hold {share.local} of {asked.world}",
                f"TP × PP of {asked.request.node.gpus}, or of whole nodes",
                f"use {MULTI_PORT.name} (vLLM 0.22), or {HYBRID.name}",
            )
        )
    if share.node == 0:
        _refuse_headless(asked, "with external load balancing every replica's first pod serves")
    if asked.has(DP_START):
        raise ConfigError(
            Fault(f"{DP_START.name} with external load balancing", DP_RANK.name, f"leave {DP_START.name} out")
        )
    gates = _rendezvous(asked, edit, share)
    edit.number(DP_RANK, share.start, "this pod's rank")
    if share.node > 0:
        edit.headless()
    return engine_plan(
        asked,
        edit,
        mode="data parallel, external load balancing",
        reason=reason,
        why=_why(asked, share, "it serves no HTTP" if share.node else "it serves for its replica"),
        gates=gates,
        extra_notes=(MOE_ONLY,),
        remote=True,
        all_answer=True,
    )


def plan_multi_port(asked: Asked, reason: str) -> Plan:
    """In every pod one API server for each replica, on ports in a row, and a supervisor that answers for all."""
    refuse_older(asked, MULTI_PORT_SINCE, MULTI_PORT.name, NEWER)
    _refuse_headless(asked, "every pod serves")
    share, edit = share_of(asked), Edit(asked)
    _check_multi_port(asked, share)
    edit.switch(MULTI_PORT)
    gates = _rendezvous(asked, edit, share)
    edit.number(DP_START, share.start, "this pod's first rank")
    first = argv.whole_number(asked.arguments, PORT, PORTS["vllm"])
    for port in range(first, first + share.local):
        edit.takes(port, PORT.name)
    edit.takes(argv.whole_number(asked.arguments, SUPERVISOR_PORT, DEFAULT_SUPERVISOR_PORT), SUPERVISOR_PORT.name)
    return engine_plan(
        asked,
        edit,
        mode="data parallel, external load balancing on several ports",
        reason=reason,
        why=_why(asked, share, f"it serves on ports {first} to {first + share.local - 1}"),
        gates=gates,
        extra_notes=(MOE_ONLY,),
        serve_only=True,
    )


def _check_multi_port(asked: Asked, share: Share) -> None:
    """vLLM's own rules (vllm/entrypoints/launchers/dp_supervisor.py), before anything starts."""
    faults = []
    if asked.command.is_dynamo:
        faults.append(Fault(f"{MULTI_PORT.name} with Dynamo", "`vllm serve`, which alone has the supervisor"))
    faults.extend(
        Fault(f"{flag.name} with {MULTI_PORT.name}", f"no {flag.name}")
        for flag in (UNIX_SOCKET, GRPC, DP_RANK)
        if asked.has(flag)
    )
    if argv.whole_number(asked.arguments, API_SERVERS, 1, lowest=0) != 1:
        faults.append(Fault(f"{API_SERVERS.name} with {MULTI_PORT.name}", "one API server for each rank"))
    first = argv.whole_number(asked.arguments, PORT, PORTS["vllm"])
    supervisor = argv.whole_number(asked.arguments, SUPERVISOR_PORT, DEFAULT_SUPERVISOR_PORT)
    if first <= supervisor < first + share.local:
        faults.append(
            Fault(
                f"the supervisor's port {supervisor} is one of the replicas' {first} to {first + share.local - 1}",
                f"a {SUPERVISOR_PORT.name} outside of them",
            )
        )
    if faults:
        raise ConfigError(*faults)
    if share.local < 2 or asked.data % share.local:
        raise LayoutError(
            Fault(
                f"{MULTI_PORT.name}: this pod's GPUs hold {share.local} of {asked.data} replicas",
                "at least two in every pod, in a number that divides all",
                f"use {EXTERNAL.name} for one in a pod",
            )
        )


def _rendezvous(asked: Asked, edit: Edit, share: Share) -> tuple[Gate, ...]:
    """How the replicas find each other; the gate of all pods but the leader."""
    if share.spans > 1:
        refuse_older(asked, NATIVE_SINCE, "replicas that span nodes (--nnodes)", "make a replica fit into a node")
    if share.spans > 1 or any(asked.has(flag) for flag in NATIVE_FLAGS if flag is not HEADLESS):
        edit.nodes()
    edit.number(DP_LOCAL, share.local, "this pod's number of replicas")
    edit.leader(DP_ADDRESS)
    port = edit.port(DP_PORT, DEFAULT_DP_PORT)
    group, leader = asked.request.group, asked.request.leader
    return () if group.is_leader else (PortOpen(leader.ip, port, "vLLM's front end on the leader"),)


def _refuse_headless(asked: Asked, why: str) -> None:
    if asked.has(HEADLESS):
        raise ConfigError(Fault(f"--headless: {why}", "no --headless", "leave it out, in both templates"))


def _why(asked: Asked, share: Share, part: str) -> str:
    if share.spans > 1:
        return f"node {share.node} of the {share.spans} of replica {share.start}, of {asked.data} replicas; {part}"
    last = share.start + share.local - 1
    ranks = f"replica {share.start}" if share.local == 1 else f"replicas {share.start} to {last}"
    return f"{ranks} of {asked.data}; {part}"


def _notes(asked: Asked, share: Share) -> tuple[str, ...]:
    return (*((DENSE,) if share.spans > 1 else ()), *((ELASTIC,) if asked.has(ELASTIC_EP) else ()))
