"""Small translations between a pod's own facts, what travels on the channel, and what a plan is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backends.digest import common_part
from backends.errors import Fault
from backends.plan import Node, Options, Plan
from backends.planner import backend_of
from launcher.channel.agreement import NCCL
from launcher.channel.messages import Facts, NodeFacts


def digest(argv: tuple[str, ...]) -> str:
    """A short digest of the command as it is in the template; the same in all pods of a group, whatever their role."""
    return hashlib.sha256("\0".join(common_part(argv)).encode(errors="surrogateescape")).hexdigest()[:12]


def member_data(index: int, node: NodeFacts, phase: str) -> dict[str, Any]:
    return {
        "index": index,
        "host": node.hostname,
        "ip": node.ip,
        "phase": phase,
        "gpus": node.gpus,
        "engine_version": node.engine_version,
    }


def node_facts(node: Node) -> NodeFacts:
    return NodeFacts(node.ip, node.hostname, node.gpus, node.engine_version, node.ray, node.openmpi)


def facts_of(
    node: Node, argv: tuple[str, ...], options: Options, environ: Mapping[str, str], plan: Plan | None
) -> Facts:
    """What the group should have in common. A command that no backend knows has no engine, and no need of Ray's port.

    plan is what is planned so far: it knows the kind where the command decides it.
    """
    backend = backend_of(argv, options) if argv else "generic"
    engine = None if backend == "generic" else backend
    told = {**environ, **dict(options.env)}
    kind = plan.kind if plan is not None else options.kind
    on_ray = plan is not None and any(service.name.startswith("ray-") for service in plan.services)
    return Facts(
        engine=engine,
        python=node.python_version,
        gpu_model=node.gpu_model,
        driver=node.driver,
        nccl={name: told[name] for name in NCCL if name in told},
        leader_excluded=options.leader_excluded,
        kind=kind.value if kind else None,
        mode=", ".join((plan.backend, plan.mode, *plan.agreed)) if plan is not None else None,
        ray_port=options.ray_port if on_ray or not argv else None,
    )


def unlike(node: Node, leader: NodeFacts) -> list[Fault]:
    """In what this image differs from the leader's; for a pod that could not tell when it joined."""
    pairs = (
        ("engine version", node.engine_version, leader.engine_version),
        ("Ray version", node.ray, leader.ray),
        ("Open MPI version", node.openmpi, leader.openmpi),
    )
    return [
        Fault(
            f"this image's {what} is {here or 'none'}, the leader's is {there or 'none'}",
            "the same image in the leader and the worker template",
            "--mismatch warn goes on with both",
        )
        for what, here, there in pairs
        if here != there
    ]


def as_node(known: NodeFacts, like: Node) -> Node:
    """A peer's node: what it told, and for the rest as ours (same image, by the join's checks)."""
    return replace(
        like,
        ip=known.ip,
        hostname=known.hostname,
        gpus=known.gpus,
        engine_version=known.engine_version,
        ray=known.ray,
        openmpi=known.openmpi,
    )
