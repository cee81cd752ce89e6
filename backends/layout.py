"""Does what the command asks for fit what the group has? Asked before anything is started."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends.errors import ConfigError, Fault
from backends.plan import Node


class LayoutError(ConfigError):
    """The layout does not fit the group's GPUs, as far as they are known."""


def check_layout(axes: Sequence[tuple[str, int]], nodes: Sequence[Node]) -> None:
    """Raise LayoutError unless the product of the axes equals the GPUs of the group.

    axes are (short name, degree) in order, TP first, e.g. [("TP", 8), ("PP", 2)].
    """
    needed = math.prod(degree for _, degree in axes)
    has = sum(node.gpus for node in nodes)
    if needed == has:
        return
    asked = " × ".join(f"{name} {degree}" for name, degree in axes)
    if has == 0:
        raise LayoutError(
            Fault(
                f"{asked} needs {needed} GPUs; no GPU was found on this node",
                f"{needed} GPUs over {len(nodes)} nodes",
                "request GPUs in the pod template; where they are not seen by NVML, say --gpus-per-node N",
            )
        )
    largest = max(node.gpus for node in nodes)
    remedy = f"fits: {', '.join(fitting(nodes))}"
    if needed % largest == 0:
        count = needed // largest
        remedy += f"; or a group of {count} node{'s' if count != 1 else ''} with {largest} GPUs each"
    raise LayoutError(
        Fault(f"{asked} needs {needed} GPU{'s' if needed != 1 else ''}; the group has {describe(nodes)}", "", remedy)
    )


def describe(nodes: Sequence[Node]) -> str:
    """The group's GPUs as "2 nodes × 4 = 8", or a sum where the nodes differ."""
    counts = [node.gpus for node in nodes]
    many = f"{len(counts)} node{'s' if len(counts) != 1 else ''}"
    if len(set(counts)) == 1:
        return f"{many} × {counts[0]} = {sum(counts)}"
    return f"{many} with {' + '.join(map(str, counts))} = {sum(counts)}"


def fitting(nodes: Sequence[Node]) -> list[str]:
    """TP × PP pairs that use every GPU, TP falling, at most four; a stage has whole nodes, never parts of several."""
    total = sum(node.gpus for node in nodes)
    pairs = [(total // pp, pp) for pp in range(1, total + 1) if total % pp == 0]
    whole = [(tp, pp) for tp, pp in pairs if len(nodes) == 1 or (pp <= len(nodes) and len(nodes) % pp == 0)]
    return [f"TP {tp} × PP {pp}" for tp, pp in whole[:4]]
