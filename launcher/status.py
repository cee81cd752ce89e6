"""What others see of a pod: whether it is ready, and if not why; the group as it knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launcher.nodes import member_data, node_facts
from launcher.phases import spent

if TYPE_CHECKING:
    from launcher.lifecycle import Pod


ENDING = ("draining", "stopping", "done")  # whatever --ready-when says, nobody should be sent here any more


def probed(pod: Pod, why_not: Callable[[Pod], str | None]) -> str | None:
    """The answer to a probe; the engine's health, which is part of it, is asked anew for the next."""
    if pod.health is not None:
        pod.health.wanted()
    return why_not(pod)


def not_ready(pod: Pod) -> str | None:
    """Why this pod is not ready by --ready-when, in one line; None when it is."""
    if pod.phase in ENDING:
        return pod.phase
    return not_there(pod, pod.health.why_not() if pod.health else None)


def not_started(pod: Pod) -> str | None:
    """As not_ready, until the pod has been ready once in this epoch; from then on None."""
    engine = pod.health.why_not() if pod.health and not pod.health.first.is_set() else None
    return not_there(pod, engine)


def not_there(pod: Pod, engine: str | None) -> str | None:
    """How far --ready-when wants the pod to have come, and it has not. engine: why its engine does not serve."""
    ready_when = pod.settings.ready_when
    complete = "formed" in pod.phases or (pod.group is not None and pod.group.size == 1)
    if ready_when == "launcher" or (ready_when == "group" and complete):
        return None
    if "serving" not in pod.phases:
        return f"{pod.phase}{whom(pod)}"
    return None if engine is None else f"engine: {engine}"


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
