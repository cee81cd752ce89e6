"""Everything that can happen to a pod, as one type of event for the one loop in lifecycle.py."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.channel.messages import Cause, Launch, LaunchEnded, Stop
from launcher.kernel import Caught


class Mismatched(Exception):
    """The leader has refused us for --mismatch-timeout because we are not alike; str() names both sides' values."""


class GatherTimeout(Exception):
    """--gather-timeout passed before all had come."""


@dataclass(frozen=True)
class SignalCaught:
    caught: Caught


@dataclass(frozen=True)
class ProcessEnded:
    """A service or the main process ended; words are the head of its error output."""

    name: str
    code: int
    words: str


@dataclass(frozen=True)
class HelperLost:
    """What a service stands for is gone although the service itself still runs. words as in ProcessEnded."""

    service: str
    process: str
    words: str


@dataclass(frozen=True)
class RankLost:
    """One of the engine's own processes has ended. name is the child that it belonged to; code is often not known.

    died: not as a shutdown ends it; None: told by the code.
    """

    name: str
    what: str
    code: int | None
    died: bool | None = None


@dataclass(frozen=True)
class RankMissed:
    """A rank has died, and its engine does not end. words as in ProcessEnded."""

    what: str
    words: str


@dataclass(frozen=True)
class MemberSuspected:
    """On the leader: a rank of a member has ended; died: not as an engine's own shutdown ends it."""

    index: int
    what: str
    died: bool
    words: str


@dataclass(frozen=True)
class MpirunEnded:
    """On the leader: mpirun has ended with this code because of what it says itself."""

    code: int
    cause: Cause


@dataclass(frozen=True)
class LaunchAsked:
    """On a worker: the leader's mpirun wants its daemon started here."""

    message: Launch


@dataclass(frozen=True)
class DaemonEnded:
    """On the leader: a daemon that was started over the channel has ended, or was never started."""

    index: int
    message: LaunchEnded


@dataclass(frozen=True)
class DaemonGone:
    """On a worker: mpirun's daemon has ended; code is None where only a stranger knows it. words as in ProcessEnded."""

    name: str
    code: int | None
    words: str


@dataclass(frozen=True)
class MpirunFinished:
    """On a worker: the leader's mpirun has ended with 0."""


@dataclass(frozen=True)
class MemberFailed:
    cause: Cause


@dataclass(frozen=True)
class MemberLost:
    """On the leader: a member's connection ended without a word, or nothing was heard for the peer timeout."""

    index: int
    what: str
    silent: bool = False


@dataclass(frozen=True)
class MemberLeaving:
    index: int
    reason: str


@dataclass(frozen=True)
class EngineHung:
    """This pod's engine has served, lives, and does nothing any more."""

    what: str


@dataclass(frozen=True)
class MemberHung:
    """On the leader: the same with a member that has clients of its own."""

    index: int
    what: str


@dataclass(frozen=True)
class LeaderInspects:
    """An engine of the group hangs: this pod is to look at its processes."""


@dataclass(frozen=True)
class HangJudged:
    """On the leader: every pod has looked; this is what the group stops for."""

    cause: Cause


@dataclass(frozen=True)
class MemberDone:
    index: int


@dataclass(frozen=True)
class LeaderDrains:
    reason: str


@dataclass(frozen=True)
class LeaderRestarts:
    """The leader will gather the group again."""


@dataclass(frozen=True)
class LeaderSaid:
    stop: Stop


@dataclass(frozen=True)
class LeaderLost:
    what: str


@dataclass(frozen=True)
class StoryEnded:
    """The story could not go on; error says why: a ConfigError, GateFailed, GatherTimeout, Mismatched or our own."""

    error: Exception


Event = (
    SignalCaught
    | ProcessEnded
    | HelperLost
    | RankLost
    | RankMissed
    | MemberSuspected
    | MpirunEnded
    | LaunchAsked
    | DaemonEnded
    | DaemonGone
    | MpirunFinished
    | MemberFailed
    | MemberLost
    | MemberLeaving
    | EngineHung
    | MemberHung
    | LeaderInspects
    | HangJudged
    | MemberDone
    | LeaderDrains
    | LeaderSaid
    | LeaderRestarts
    | LeaderLost
    | StoryEnded
)
