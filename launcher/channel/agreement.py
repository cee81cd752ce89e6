"""What must be the same in all pods of a group and what only should be: compared at every join, shown as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.group import member_name
from launcher.channel.messages import Join

# How lwsrun was started: a column of the table only where it differs. Not known of a member that does not tell it.
STARTED = frozenset({"size", "exec", "leader-excluded", "kind", "mode", "ray-port"})
# What a rollout that is under way may still cure: the member asks again, and gives up after --mismatch-timeout.
MUST = STARTED | {"command", "engine", "ray", "openmpi", "gpus"}
# A pod that leaves the channel cannot be watched by one that stays: whatever --mismatch says, no group has both.
NEVER = frozenset({"exec"})
GPUS = frozenset({"gpus", "GPU", "driver"})  # facts of the GPUs, which an excluded leader does not have
OF_COMMAND = frozenset({"command", "engine", "ray", "openmpi", "python"})  # not known before a command is
SHOWN = 80  # characters of a value: it comes from outside
ROWS = 32  # members that a table names one by one
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


@dataclass(frozen=True)
class Difference:
    """One fact in which a member differs; text names both sides' values."""

    code: str
    text: str


@dataclass(frozen=True)
class Fact:
    """A column of the table. of gives the value as text, or None where there is none. hint is what to do about it."""

    code: str
    name: str
    of: Callable[[Join], str | None]
    hint: str = ""


SWITCH, SAME = "say it in both templates or in none", "say the same in both templates"
FACTS = (
    Fact("size", "group size", lambda join: str(join.size)),
    Fact("exec", "--exec", lambda join: _switch(join.exec), SWITCH),
    Fact("leader-excluded", "--leader-excluded", lambda join: _switch(join.facts.leader_excluded), SWITCH),
    Fact("kind", "--kind", lambda join: join.facts.kind, SAME),
    Fact("mode", "mode", lambda join: join.facts.mode, "say the same of it in both templates"),
    Fact("ray-port", "--ray-port", lambda join: _number(join.facts.ray_port), SAME),
    Fact("command", "command", lambda join: join.digest),
    Fact(
        "engine", "engine", lambda join: " ".join(filter(None, (join.facts.engine, join.node.engine_version))) or None
    ),
    Fact("ray", "Ray", lambda join: join.node.ray),
    Fact("openmpi", "Open MPI", lambda join: join.node.openmpi),
    Fact("gpus", "GPU count", lambda join: str(join.node.gpus)),
    Fact("GPU", "GPU", lambda join: join.facts.gpu_model),
    Fact("driver", "driver", lambda join: join.facts.driver),
    Fact("python", "Python", lambda join: join.facts.python),
)


def differences(join: Join, leader: Join, gpus_like: Join | None) -> list[Difference]:
    """In what a member differs from the leader, and in its GPUs from gpus_like; what it cannot know yet is left out."""
    found = []
    for fact in (*FACTS, *_nccl([join, leader])):
        like = gpus_like if fact.code in GPUS else leader
        if like is None or (fact.code in OF_COMMAND and join.digest is None):
            continue
        theirs, ours = fact.of(join), fact.of(like)
        if fact.code in STARTED and None in (theirs, ours):
            continue
        if theirs != ours:
            found.append(Difference(fact.code, _text(fact, theirs, ours, member_name(like.index))))
            if fact.code == "gpus" and like.index == 0 and ours == "0":
                hint = "is the leader meant to have none? then say --leader-excluded in both templates"
                found[-1] = Difference(fact.code, f"{found[-1].text} ({hint})")
    return found


def mismatches(found: Sequence[Difference], *, even_gpus: bool) -> list[Difference]:
    """Those that no group can be formed with; even_gpus: the engine needs as many GPUs on every node."""
    return [each for each in found if each.code in MUST and (even_gpus or each.code != "gpus")]


def table(members: Sequence[Join], *, leader_excluded: bool) -> tuple[list[str], list[str]]:
    """Lines: what all members share in one, then the facts in which they differ, a row per member; and these' names.

    Of a large group only the rows that are not like the leader's are shown.
    """
    shared, differing = [], []
    for fact in (*FACTS, *_nccl(members)):
        values = [_value(fact, join, leader_excluded) for join in members]
        known = {value for value in values if value != "?"}
        if len(known) > 1:
            differing.append((fact.name, [fact.name, *values]))
        elif fact.code not in STARTED and (value := known.pop() if known else "none") != "none":
            shared.append(_said(fact, value))
    lines = [f"all {len(members)}: {', '.join(shared)}"] if shared else []
    if differing:
        names = ["member", *(member_name(join.index) for join in members)]
        hosts = ["host", *(f"{_short(join.node.hostname)} {_short(join.node.ip)}" for join in members)]
        rows = list(zip(names, hosts, *(column for _, column in differing), strict=True))
        if len(members) > ROWS:
            odd = [row for row in rows[2:] if row[2:] != rows[1][2:]]
            left = len(rows) - 2 - len(odd[:ROWS])
            rows = [*rows[:2], *odd[:ROWS], (f"and {left} more",) + ("",) * (len(rows[0]) - 1)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    return lines, [name for name, _ in differing]


def _switch(on: bool | None) -> str | None:
    return None if on is None else "with" if on else "without"


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)


def _nccl(members: Sequence[Join]) -> list[Fact]:
    told = {name for join in members for name in join.facts.nccl or ()}
    names = [name for name in NCCL if name in told]  # a stranger may tell what he likes
    return [Fact(name, name, lambda join, name=name: (join.facts.nccl or {}).get(name)) for name in names]  # type: ignore[misc]


def _value(fact: Fact, join: Join, leader_excluded: bool) -> str:
    value = fact.of(join)
    if (fact.code in OF_COMMAND and join.digest is None) or (fact.code in GPUS and leader_excluded and join.index == 0):
        return "?"
    return "?" if value is None and fact.code in STARTED else _short(value)


def _said(fact: Fact, value: str) -> str:
    if fact.code == "gpus":
        return f"{value} GPUs"
    if fact.code in ("engine", "GPU"):
        return value
    return f"{fact.name}={value}" if fact.name.startswith("NCCL_") else f"{fact.name} {value}"


def _text(fact: Fact, theirs: str | None, ours: str | None, whose: str) -> str:
    hint = f" ({fact.hint})" if fact.hint else ""
    if fact.hint == SWITCH:
        with_it, without = ("it", whose) if theirs == "with" else (whose, "it")
        return f"{with_it} runs with {fact.name}, {without} without{hint}"
    if fact.code == "command":
        return f"its command differs: digest {_short(theirs)}, {whose}'s is {_short(ours)}"
    return f"its {fact.name} is {_short(theirs)}, {whose}'s is {_short(ours)}{hint}"


def printable(text: str) -> str:
    """Text from outside as one line that no terminal obeys."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _short(value: str | None) -> str:
    text = printable(value or "none")
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
