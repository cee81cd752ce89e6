"""Does what the command asks for fit what the group has? Asked before anything is started."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from backends.errors import ConfigError, Fault
from backends.plan import Node

SHOWN = 4  # proposals
MOST_GPUS = 8  # that a node is proposed to have, where none of the group has more: beyond, few machines exist
REPLICAS = "DP"  # this axis counts copies of the model; all others are within one


class LayoutError(ConfigError):
    """The layout does not fit the group's GPUs, as far as they are known."""


def check_layout(axes: Sequence[tuple[str, int]], nodes: Sequence[Node]) -> None:
    """Raise LayoutError unless the product of the axes equals the GPUs of the group.

    axes are (short name, degree) in order, TP first, e.g. [("TP", 8), ("PP", 2)]. Besides TP and PP, an axis of
    degree 1 is neither shown nor proposed.
    """
    axes = [(name, degree) for name, degree in axes if degree != 1 or name in ("TP", "PP")]
    needed = math.prod(degree for _, degree in axes)
    has = sum(node.gpus for node in nodes)
    if needed == has:
        return
    asked = _written(axes)
    gpus = f"{needed} GPU{'s' if needed != 1 else ''}"
    if has == 0:
        raise LayoutError(
            Fault(
                f"{asked} needs {gpus}; no GPU was found on this node",
                f"{gpus} over {len(nodes)} node{'s' if len(nodes) != 1 else ''}",
                "request GPUs in the pod template; where they are not seen by NVML, say --gpus-per-node N",
            )
        )
    fits = fitting(nodes, axes)
    found = f"{asked} needs {gpus}; the group has {describe(nodes)}."
    groups = " or ".join(_other_groups(needed, nodes))
    remedy = [*(["set one of these"] if fits else []), *([f"make it a group of {groups}"] if groups else [])]
    raise LayoutError(Fault(found + (f" Fits: {', '.join(fits)}." if fits else ""), "", ", or ".join(remedy)))


def describe(nodes: Sequence[Node]) -> str:
    """The group's GPUs as "2 nodes × 4 = 8", or a sum where the nodes differ."""
    counts = [node.gpus for node in nodes]
    many = f"{len(counts)} node{'s' if len(counts) != 1 else ''}"
    if len(set(counts)) == 1:
        return f"{many} × {counts[0]} = {sum(counts)}"
    return f"{many} with {' + '.join(map(str, counts))} = {sum(counts)}"


def fitting(nodes: Sequence[Node], asked: Sequence[tuple[str, int]] = (("TP", 1), ("PP", 1))) -> list[str]:
    """Layouts in the axes that were asked for (PP besides) that use every GPU, at most four.

    Those with the fewest axes changed go first, TP falling; of TP and PP alone, all pairs with TP falling. A stage of
    a pipeline has whole nodes or a part of one, never parts of several; so has a replica.
    """
    axes = list(asked)
    if "PP" not in dict(axes):
        axes.insert(1, ("PP", 1))
    total = sum(node.gpus for node in nodes)
    wanted = [degree for _, degree in axes]
    found = []
    for degrees in _factors(total, len(axes)):
        layout = [(name, degree) for (name, _), degree in zip(axes, degrees, strict=True)]
        if not _whole(layout, nodes):
            continue
        changed = sum(mine != theirs for mine, theirs in zip(degrees, wanted, strict=True)) if len(axes) > 2 else 0
        found.append((changed, [-degree for degree in degrees], _written(layout)))
    return [text for _, _, text in sorted(found)[:SHOWN]]


def _whole(layout: Sequence[tuple[str, int]], nodes: Sequence[Node]) -> bool:
    counts = [node.gpus for node in nodes if node.gpus]  # a leader without GPUs holds no part
    even = counts[0] if len(set(counts)) == 1 else 0
    replicas = dict(layout).get(REPLICAS, 1)
    replica = math.prod(degree for _, degree in layout) // replicas
    stages = dict(layout)["PP"]
    if not even and REPLICAS in dict(layout):
        return all(count % replica == 0 for count in counts)
    if not even:  # nobody can say how parts would lie on nodes that differ
        return stages == 1
    if replica <= even:
        return even % replica == 0
    return replica % even == 0 and (replica // even) % stages == 0


def _factors(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write total as a product of so many numbers, in order."""
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total + 1):
        if total % first == 0:
            yield from ((first, *rest) for rest in _factors(total // first, parts - 1))


def _other_groups(needed: int, nodes: Sequence[Node]) -> list[str]:
    """Groups of like nodes with just the GPUs needed: other nodes in number, then in size."""
    counts = [node.gpus for node in nodes if node.gpus]
    largest = max(counts)
    groups = []
    if needed % largest == 0:
        groups.append((needed // largest, largest))
    if needed % len(counts) == 0 and needed // len(counts) <= max(MOST_GPUS, largest):
        groups.append((len(counts), needed // len(counts)))
    return [
        f"{count} node{'s' if count != 1 else ''} with {gpus} GPU{'s' if gpus != 1 else ''} each"
        for count, gpus in dict.fromkeys(groups)
    ]


def _written(axes: Sequence[tuple[str, int]]) -> str:
    return " × ".join(f"{name} {degree}" for name, degree in axes)
