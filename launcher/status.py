"""What others see of a pod: whether it is ready, and if not why; the group as it knows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launcher.nodes import member_data, node_facts
from launcher.phases import spent

if TYPE_CHECKING:
    from launcher.channel.leader import Seat
    from launcher.channel.member import MemberSide
    from launcher.channel.wire import Wire
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


def wires(pod: Pod) -> list[Wire]:
    """The connections to those who are here: on the leader to its members, on a worker to the leader."""
    if pod.leader is not None:
        return [seat.wire for seat in pod.leader.seats.values()]
    return [pod.member.wire] if pod.member is not None and pod.member.wire is not None else []


def silence(pod: Pod) -> float | None:
    """Seconds since something was heard from the peer that has been silent longest; None while there is none."""
    return max((wire.silence for wire in wires(pod)), default=None)


def describe(pod: Pod) -> dict[str, Any]:
    """The group as this pod sees it; the leader sees all members."""
    members: list[dict[str, Any]] = []
    if pod.group is not None and pod.node is not None:
        mine = member_data(pod.group.index, node_facts(pod.node), pod.phase)
        members.append(mine | {"since_seconds": since(pod), "restarts": pod.epoch - 1} | _heard(pod.member))
    if pod.leader is not None:
        for index, seat in sorted(pod.leader.seats.items()):
            seen = {
                "incarnation": seat.incarnation,
                "since_seconds": round(time.monotonic() - seat.since, 3),
                "restarts": pod.tally.joined[index] - 1,
            }
            members.append(member_data(index, seat.node, seat.phase) | seen | _heard(seat))
    return {
        "group": pod.group.id if pod.group else None,
        "size": pod.group.size if pod.group else None,
        "index": pod.group.index if pod.group else None,
        "run": pod.run,
        "epoch": pod.epoch,
        "restarts": pod.restarts.used,
        "phase": pod.phase,
        "since_seconds": since(pod),
        "leader": _leader(pod),
        "not_ready": not_ready(pod),
        "phases": pod.phases,
        "phase_seconds": spent(pod.phases, pod.age()),
        "backend": pod.plan.backend if pod.plan else None,
        "mode": pod.plan.mode if pod.plan else None,
        "members": members,
        "missing": pod.leader.missing if pod.leader else [],
        "joins_refused": pod.leader.refused if pod.leader else {},
    }


def since(pod: Pod) -> float:
    """Seconds in the present phase."""
    return round(pod.age() - pod.phases.get(pod.phase, 0.0), 3)


def _heard(side: Seat | MemberSide | None) -> dict[str, Any]:
    wire = side.wire if side is not None else None
    return {"heard_seconds": round(wire.silence, 3), "round_trip_seconds": wire.round_trip} if wire else {}


def _leader(pod: Pod) -> dict[str, Any] | None:
    """Where the leader answers: who asks a worker can ask there for the whole group."""
    if pod.group is None:
        return None
    here = pod.node.ip if pod.node is not None and pod.group.is_leader else None
    ip = pod.member.leader_ip or None if pod.member is not None else here
    return {"name": pod.group.leader_address, "ip": ip, "port": pod.settings.port}
