"""What others see of a pod: whether it is ready, and if not why; the group as it knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.nodes import member_data, node_facts
from launcher.phases import spent

if TYPE_CHECKING:
    from launcher.lifecycle import Pod


def not_ready(pod: Pod) -> str | None:
    return None if pod.phase == "serving" else f"{pod.phase}{whom(pod)}"


def not_started(pod: Pod) -> str | None:
    return None if "serving" in pod.phases else f"{pod.phase}{whom(pod)}"


def whom(pod: Pod) -> str:
    if pod.phase == "gathering" and pod.leader is not None:
        return f": waiting for {pod.leader.why_missing()}"
    if pod.phase == "gathering" and pod.member is not None:
        return f": {pod.member.why_waiting}"
    return ""


def describe(pod: Pod) -> dict[str, Any]:
    """The group as this pod sees it; the leader sees all members."""
    members: list[dict[str, Any]] = []
    if pod.group is not None and pod.node is not None:
        members.append(member_data(pod.group.index, node_facts(pod.node), pod.phase))
    if pod.leader is not None:
        for index, seat in sorted(pod.leader.seats.items()):
            heard = {"incarnation": seat.incarnation, "round_trip_seconds": seat.wire.round_trip}
            members.append(member_data(index, seat.node, seat.phase) | heard)
    return {
        "group": pod.group.id if pod.group else None,
        "size": pod.group.size if pod.group else None,
        "index": pod.group.index if pod.group else None,
        "run": pod.run,
        "epoch": pod.epoch,
        "restarts": pod.restarts.used,
        "phase": pod.phase,
        "not_ready": not_ready(pod),
        "phases": pod.phases,
        "phase_seconds": spent(pod.phases, pod.age()),
        "backend": pod.plan.backend if pod.plan else None,
        "mode": pod.plan.mode if pod.plan else None,
        "members": members,
        "joins_refused": pod.leader.refused if pod.leader else {},
    }
