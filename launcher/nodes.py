"""Small translations between a pod's own facts, what travels on the channel, and what a plan is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backends.digest import common_part
from backends.errors import Fault
from backends.plan import Node, Options
from backends.planner import backend_of
from launcher.channel.messages import Facts, NodeFacts

# What the ranks of one communicator should agree on: how they talk, and in what pieces. Left out is what names one
# node's devices (NCCL_IB_HCA, NCCL_SOCKET_IFNAME, NCCL_TOPO_FILE) or what it writes (NCCL_DEBUG).
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
NCCL = (
    "NCCL_ALGO",
    "NCCL_BUFFSIZE",
    "NCCL_COLLNET_ENABLE",
    "NCCL_CROSS_NIC",
    "NCCL_CUMEM_ENABLE",
    "NCCL_IB_DISABLE",
    "NCCL_IB_GID_INDEX",
    "NCCL_IB_QPS_PER_CONNECTION",
    "NCCL_IB_SL",
    "NCCL_IB_SPLIT_DATA_ON_QPS",
    "NCCL_IB_TC",
    "NCCL_MAX_NCHANNELS",
    "NCCL_MIN_NCHANNELS",
    "NCCL_MNNVL_ENABLE",
    "NCCL_NET",
    "NCCL_NET_PLUGIN",
    "NCCL_NTHREADS",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_NET_CHUNKSIZE",
    "NCCL_PROTO",
    "NCCL_PXN_DISABLE",
    "NCCL_SHM_DISABLE",
    "NCCL_SOCKET_FAMILY",
    "NCCL_TUNER_PLUGIN",
)


def digest(argv: tuple[str, ...]) -> str:
    """A short digest of the command as it is in the template; the same in all pods of a group, whatever their role."""
    return hashlib.sha256("\0".join(common_part(argv)).encode(errors="surrogateescape")).hexdigest()[:12]


def member_data(index: int, node: NodeFacts, phase: str) -> dict[str, Any]:
    return {"index": index, "host": node.hostname, "ip": node.ip, "phase": phase, "gpus": node.gpus}


def node_facts(node: Node) -> NodeFacts:
    return NodeFacts(node.ip, node.hostname, node.gpus, node.engine_version, node.ray)


def facts_of(node: Node, argv: tuple[str, ...], options: Options, environ: Mapping[str, str]) -> Facts:
    """What the group should have in common. A command that no backend knows has no engine."""
    backend = backend_of(argv, options) if argv else "generic"
    engine = None if backend == "generic" else backend
    told = {**environ, **dict(options.env)}
    nccl = {name: told[name] for name in NCCL if name in told}
    return Facts(engine, node.python_version, node.gpu_model, node.driver, nccl)


def unlike(node: Node, leader: NodeFacts) -> list[Fault]:
    """In what this image differs from the leader's; for a pod that could not tell when it joined."""
    pairs = (("engine version", node.engine_version, leader.engine_version), ("Ray version", node.ray, leader.ray))
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
    )
