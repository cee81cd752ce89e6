"""What leader and members say to each other: JSON text frames, versioned at the join, validated on arrival."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from typing import Any

from backends.group import member_name
from backends.plan import Smoke
from launcher.channel.typed import BadMessage as BadMessage
from launcher.channel.typed import build

VERSION = 3
MAX_MESSAGE = 512 * 1024  # bytes, from the leader: the nodes of a group of MAX_SIZE
MAX_NODE = 384  # bytes of one of them; an IPv6 address, a host name and two versions at their longest take some 300
MAX_COMMAND = 256 * 1024  # bytes of the message that hands the command over
MAX_FROM_MEMBER = 64 * 1024  # its longest is a failure with 4 KiB of the engine's words


@dataclass(frozen=True)
class Cause:
    """Why the group stops: who was first, what happened, and the head of its error output."""

    index: int
    what: str
    exit_code: int | None = None
    head: str = ""
    configuration: bool = False  # nobody's failure but the configuration's: restarting at once would only spin

    def sentence(self) -> str:
        return f"{member_name(self.index)}: {self.what}"


@dataclass(frozen=True)
class NodeFacts:
    """A member's node as the others need to know it."""

    ip: str
    hostname: str
    gpus: int
    engine_version: str | None = None
    ray: str | None = None
    openmpi: str | None = None


@dataclass(frozen=True)
class Facts:
    """What should be the same over the group besides; compared at the join and not handed on.

    engine and python (its version) are known where a backend asks for them; nccl holds those of agreement.NCCL that
    are set. From leader_excluded on, None is what a member does not know; ray_port also where its group needs none.
    """

    engine: str | None = None
    python: str | None = None
    gpu_model: str | None = None
    driver: str | None = None
    nccl: dict[str, str] | None = None
    leader_excluded: bool | None = None
    kind: str | None = None
    ray_port: int | None = None
    mode: str | None = None


@dataclass(frozen=True)
class Join:
    """member -> leader, first frame. digest is that of the command, or None when the template leaves it out."""

    version: int
    group: str
    index: int
    size: int
    incarnation: str
    digest: str | None
    node: NodeFacts
    exec: bool = False  # it will become its engine and leave the channel
    left: str = ""  # the run that it was part of before
    facts: Facts = Facts()


@dataclass(frozen=True)
class Refused:
    """leader -> member, then the connection closes. code is one word; reason names both sides' values.

    mismatch: the two sides are configured differently, which time alone may not cure. command is then the leader's,
    so that the member can show where its own parts from it.
    """

    code: str
    reason: str
    mismatch: bool = False
    command: list[str] | None = None


@dataclass(frozen=True)
class Welcome:
    """leader -> member: the place is yours. command is the leader's, for members whose template has none."""

    run: str
    leader: NodeFacts
    command: list[str]
    secrets: dict[str, str]
    peer_timeout: float  # the leader's, which counts
    size: int = 0  # the leader's, which counts (with --mismatch warn); 0 from one that does not say
    kind: str | None = None  # the command's, for members whose template has none
    smoke: Smoke | None = None  # the smoke run that goes before the engine


@dataclass(frozen=True)
class Formed:
    """leader -> members: all are here; nodes by index."""

    nodes: list[NodeFacts]


@dataclass(frozen=True)
class Handed:
    """leader -> members, for a launch over MPI: the public key that it comes with, where it comes over ssh; and its
    variables, those that a rank has where its own pod lacks them, and those that it has in any case."""

    client_key: str | None
    lacking: dict[str, str]
    always: dict[str, str]


@dataclass(frozen=True)
class Equipped:
    """member -> leader: ready for MPI's daemon; over ssh its public host key, and as whom it lets the leader in."""

    host_key: str | None = None
    user: str | None = None


@dataclass(frozen=True)
class Launch:
    """leader -> member, with --mpi-agent channel: start this daemon of mpirun's. number: of this launch."""

    number: int
    command: str


@dataclass(frozen=True)
class LaunchEnded:
    """member -> leader: that daemon has ended, or was never started; words then say why."""

    number: int
    code: int
    words: str = ""


@dataclass(frozen=True)
class Finished:
    """leader -> members: mpirun has ended with 0; say when nothing of it is left."""


@dataclass(frozen=True)
class Settled:
    """member -> leader: no daemon of mpirun's is left here, and none has failed."""


@dataclass(frozen=True)
class Phase:
    """member -> leader: how far it has come."""

    phase: str


@dataclass(frozen=True)
class Ping:
    """Either way; answered at once by Pong with the same number."""

    number: int


@dataclass(frozen=True)
class Pong:
    number: int


@dataclass(frozen=True)
class Done:
    """member -> leader: its job ended with 0."""


@dataclass(frozen=True)
class Failed:
    """member -> leader."""

    cause: Cause


@dataclass(frozen=True)
class Suspected:
    """member -> leader: a rank of its engine has ended; if an engine ends soon after, that was the first.

    died: not in the way in which engines end their ranks themselves. head: of what its engine has said so far.
    """

    what: str
    died: bool
    head: str = ""


@dataclass(frozen=True)
class Hung:
    """member -> leader: its engine has served, lives, and does nothing any more (--hang-timeout)."""

    what: str


@dataclass(frozen=True)
class Inspect:
    """leader -> members: an engine of the group hangs; look at your processes."""


@dataclass(frozen=True)
class Inspected:
    """member -> leader: the stacks of its processes are in its log; those that are stopped, in words, or none."""

    stopped: str


@dataclass(frozen=True)
class Leaving:
    """member -> leader: it was asked to stop (SIGTERM) and serves on until the leader has drained."""

    reason: str


@dataclass(frozen=True)
class Prepared:
    """member -> leader, with --exec: its engine could start now."""


@dataclass(frozen=True)
class Detach:
    """leader -> members, with --exec: everybody is prepared; say whether you still are."""


@dataclass(frozen=True)
class Detached:
    """member -> leader, its last word: from here on the end of the connection is not its death."""


@dataclass(frozen=True)
class Become:
    """leader -> members, its last word: everybody has detached, become your engines."""


@dataclass(frozen=True)
class Draining:
    """leader -> members: it was asked to stop, and its engine ends in its own time; theirs may end with it."""

    reason: str


@dataclass(frozen=True)
class Drained:
    """member -> leader, where every pod has clients of its own: this one has answered its own."""


@dataclass(frozen=True)
class Stop:
    """leader -> members: end now. cause is None when the group was asked to stop or has finished.

    restart: the group is to start anew in so many seconds, in the same pods; None when this is the end.
    """

    cause: Cause | None
    reason: str
    restart: float | None = None


@dataclass(frozen=True)
class Cleared:
    """member -> leader, before a restart: nothing of this epoch's engine is left in its pod."""


@dataclass(frozen=True)
class Restart:
    """leader -> members, its last word before a restart: nothing is left here either, gather again."""


Message = (
    Join
    | Refused
    | Welcome
    | Formed
    | Handed
    | Equipped
    | Launch
    | LaunchEnded
    | Finished
    | Settled
    | Phase
    | Ping
    | Pong
    | Done
    | Failed
    | Suspected
    | Hung
    | Inspect
    | Inspected
    | Leaving
    | Prepared
    | Detach
    | Detached
    | Become
    | Draining
    | Drained
    | Stop
    | Cleared
    | Restart
)

_TYPES: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in typing.get_args(Message)}


def encode(message: Message) -> str:
    return json.dumps({"type": type(message).__name__.lower(), **dataclasses.asdict(message)})


def size_of(node: NodeFacts) -> int:
    """The bytes that it takes in a message."""
    return len(json.dumps(dataclasses.asdict(node)))


def decode(frame: str) -> Message:
    """Raises BadMessage for anything that is not exactly a message: unknown types, missing or mistyped fields.

    Fields that this version does not know are ignored, so that a newer peer can say more.
    """
    try:
        data = json.loads(frame)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadMessage("not an object")
    name = data.get("type")
    if not isinstance(name, str):
        raise BadMessage("an object without a type")
    kind = _TYPES.get(name)
    if kind is None:
        raise BadMessage(f"unknown type {name[:40]!r}")
    message: Message = build(kind, data, kind.__name__.lower())
    return message
