"""Small translations between a pod's own facts, what travels on the channel, and what a plan is made from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from backends.plan import Node
from launcher.channel.messages import NodeFacts


def digest(argv: tuple[str, ...]) -> str:
    """A short digest of the command as it is in the template; the same in all pods of a group."""
    return hashlib.sha256("\0".join(argv).encode(errors="surrogateescape")).hexdigest()[:12]


def member_data(index: int, node: NodeFacts, phase: str) -> dict[str, Any]:
    return {"index": index, "host": node.hostname, "ip": node.ip, "phase": phase, "gpus": node.gpus}


def node_facts(node: Node) -> NodeFacts:
    return NodeFacts(node.ip, node.hostname, node.gpus, node.engine_version, node.ray)


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
