"""A plan as text for people and as plain data for tools. Secrets appear in neither."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from backends.group import Group, member_name
from backends.plan import EnvVar, Gate, Health, Main, Node, Plan, RayNodes, Stage
from backends.plan_mpi import HOSTFILE, Agent, Mpi, SshLogins

SECRET = "<secret, minted per run>"


def plan_data(group: Group, node: Node, plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready data; keys are stable."""
    return {
        "index": group.index,
        "size": group.size,
        "host": node.hostname,
        "ip": node.ip,
        "gpus": node.gpus,
        "backend": plan.backend,
        "mode": plan.mode,
        "reason": plan.reason,
        "kind": plan.kind.value,
        "env": [{"name": v.name, "value": _shown(v), "reason": v.reason, "secret": v.secret} for v in plan.env],
        "unset": [{"name": v.name, "reason": v.reason} for v in plan.unset],
        "files": [{"path": f.path, "mode": oct(f.mode), "content": f.content, "reason": f.reason} for f in plan.files],
        "services": [
            {
                "name": s.name,
                "argv": list(s.argv),
                "starts": s.stage.value,
                "after": [_gate_data(g) for g in s.gates],
                "watch": list(s.watch),
                "ranks": list(s.ranks),
            }
            for s in plan.services
        ],
        "gates": [_gate_data(g) for g in plan.gates],
        "main": None if plan.main is None else _main_data(plan.main),
        "mpi": None if plan.mpi is None else _mpi_data(plan.mpi),
        "agreed": list(plan.agreed),
        "decisions": list(plan.decisions),
        "notes": list(plan.notes),
    }


def plan_text(group: Group, node: Node, plan: Plan) -> str:
    """The plan as it is read aloud: writes, sets, starts, waits for, runs."""
    lines = [
        f"{member_name(group.index)} of {group.size} · {node.hostname} · {node.ip} · {node.gpus} GPUs",
        f"  mode    {plan.backend}, {plan.mode}: {plan.reason}",
    ]
    for file in plan.files:
        lines.append(f"  write   {file.path} ({file.mode:04o}): {file.reason}")
    for variable in plan.env:
        lines.append(f"  set     {variable.name}={_shown(variable)}  # {variable.reason}")
    for gone in plan.unset:
        lines.append(f"  unset   {gone.name}  # {gone.reason}")
    if plan.mpi is not None:
        lines.extend(_mpi_lines(group, plan.mpi))
    for service in plan.services:
        when = "at once" if service.stage is Stage.ADMITTED else "when all have joined"
        if service.gates:
            when = "when " + " and ".join(gate.describe() for gate in service.gates)
        elif service.stage is Stage.ADMITTED and not group.is_leader:
            when = "when the leader has let it in"
        lines.append(f"  start   {shlex.join(service.argv)}")
        lines.append(f"            {service.name}, {when}; ends the pod when it, or its {_watch(service.watch)}, ends")
    for gate in plan.gates:
        lines.append(f"  wait    until {gate.describe()}")
    if plan.main is not None:
        lines.append(f"  run     {shlex.join(plan.main.argv)}  ({plan.main.kind.value})")
        if plan.main.health is not None:
            lines.append(f"  ready   when {_asked(plan.main.health)}")
            lines.extend(f"  hang    {told}" for told in _hang(plan.main.health))
    else:
        part = "nothing more: the services above are this pod's part"
        if plan.mpi is not None and plan.mpi.agent is Agent.CHANNEL:
            part = "MPI's daemon, when the leader's mpirun asks for it over the group channel"
        lines.append(f"  run     {part}")
    lines.extend(f"  agree   on {text}, as every other pod" for text in plan.agreed)
    lines.extend(f"  added   {decision}" for decision in plan.decisions)
    lines.extend(f"  note    {note}" for note in plan.notes)
    return "\n".join(lines)


def _main_data(main: Main) -> dict[str, Any]:
    serves = None if main.serves is None else _gate_data(main.serves)
    progress = main.health.progress if main.health else None
    return {
        "argv": list(main.argv),
        "kind": main.kind.value,
        "serves": serves,
        "asked_alone": main.asked_alone,
        "in_flight": main.in_flight.metrics if main.in_flight else None,
        "ranks": list(main.ranks),
        "health": main.health.url if main.health else None,
        "health_through": main.health.through if main.health else None,
        "progress": None if progress is None else {"metrics": progress.metrics, "completions": progress.completions},
        "fails_with": main.fails_with,
    }


def _asked(health: Health) -> str:
    if health.url.startswith("tcp:"):
        return f"{health.url} accepts connections"
    return f"GET {health.url} succeeds" + (f" (or {health.otherwise}, if it is not known)" if health.otherwise else "")


def _hang(health: Health) -> Iterator[str]:
    """What is asked besides, with --hang-timeout."""
    if health.through is not None:
        yield f"with --hang-timeout: GET {health.through} is asked too"
    if health.progress is not None:
        at = health.progress
        yield f"with --hang-timeout: GET {at.metrics} is asked too, and while idle a token of POST {at.completions}"


def _mpi_data(mpi: Mpi) -> dict[str, Any]:
    return {
        "agent": mpi.agent.value,
        "hosts": [{"index": host.index, "ip": host.ip, "slots": host.slots} for host in mpi.hosts],
        "ranks": mpi.ranks,
        "program": list(mpi.program),
        "directory": mpi.directory,
        "user": None if mpi.account is None else mpi.account.name,
        "ssh_port": mpi.ssh_port,
        "keys": mpi.keys,
        "environment": list(mpi.environment),
    }


def _mpi_lines(group: Group, mpi: Mpi) -> list[str]:
    """What the launcher makes ready for mpirun, in a private directory and over the group channel."""
    lines, over = [], mpi.agent is Agent.SSH and len(mpi.hosts) > 1
    keys = f"the pair in {mpi.keys}" if mpi.keys else "a client key of this run"
    if group.is_leader:
        lines.append(f"  write   {mpi.directory}/{HOSTFILE}: " + ", ".join(mpi.hostfile_text().splitlines()))
        if over:
            lines.append(f"  keys    {keys}; of every worker its host key, by the group channel: strict checking")
        if len(mpi.hosts) > 1:
            named = f", and {', '.join(mpi.environment)} (--mpi-env)" if mpi.environment else ""
            lines.append(f"  hand    each worker the variables that it lacks{named}, over the group channel")
    elif over and mpi.account is not None:
        lines.append(f"  keys    a host key of this run; the leader is let in with {keys}, for MPI's daemon only")
    return lines


def _watch(names: tuple[str, ...]) -> str:
    return " or ".join(names) if names else "child"


def _shown(variable: EnvVar) -> str:
    return SECRET if variable.secret else variable.value


def _gate_data(gate: Gate) -> dict[str, Any]:
    if isinstance(gate, RayNodes):
        return {"gate": "ray-nodes", "address": gate.address, "gpus": dict(gate.gpus)}
    if isinstance(gate, SshLogins):
        return {"gate": "ssh-logins", "hosts": [host.ip for host in gate.hosts], "port": gate.port}
    return {"gate": "port-open", "host": gate.host, "port": gate.port, "what": gate.what}
