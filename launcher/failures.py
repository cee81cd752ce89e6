"""What kind of failure ended an epoch, as this pod saw it: one word of few, for a metric's label."""

from __future__ import annotations

from backends.errors import ConfigError
from launcher.channel.events import (
    DaemonGone,
    Event,
    GatherTimeout,
    HangJudged,
    HelperLost,
    LeaderLost,
    LeaderSaid,
    MemberFailed,
    MemberLost,
    Mismatched,
    MpirunEnded,
    ProcessEnded,
    RankMissed,
    StoryEnded,
)
from launcher.drain import MAIN
from launcher.gates import GateFailed

# Each with what it means; the documentation's table is made from this.
CAUSES = {
    "engine": "the engine of this pod ended unasked",
    "rank": "one of the engine's own processes on this pod ended, or the leader found that it hangs",
    "hang": "on the leader: the engine lived and did nothing any more (--hang-timeout)",
    "helper": "a service of this pod, such as Ray, ended",
    "gate": "something that the engine needs did not come in time",
    "configuration": "the configuration cannot work",
    "mismatch": "the leader refused this pod for --mismatch-timeout",
    "gather_timeout": "the group was not complete after --gather-timeout",
    "peer_failed": "another pod failed, and said so",
    "peer_lost": "on the leader: the connection of a worker ended without a word",
    "peer_silent": "on the leader: nothing was heard of a worker for --peer-timeout",
    "leader_lost": "on a worker: the leader is gone, or silent",
    "launcher": "lwsrun itself failed",
    "other": "anything else",
}


def cause_of(event: Event, mine: bool) -> str:
    """The word for what has ended an epoch. mine: whether this pod was the first that failed."""
    match event:
        case HangJudged():
            return "hang"
        case LeaderLost():
            return "leader_lost"
        case MemberLost(silent=silent) if not mine:
            return "peer_silent" if silent else "peer_lost"
        case _ if not mine:
            return "peer_failed"
        case MemberFailed() | MemberLost() | LeaderSaid() | RankMissed():  # others can only blame a rank of ours
            return "rank"
        case ProcessEnded(name):
            return "engine" if name == MAIN else "helper"
        case MpirunEnded():
            return "engine"
        case HelperLost() | DaemonGone():
            return "helper"
        case StoryEnded(ConfigError()):
            return "configuration"
        case StoryEnded(GatherTimeout()):
            return "gather_timeout"
        case StoryEnded(Mismatched()):
            return "mismatch"
        case StoryEnded(GateFailed()):
            return "gate"
        case StoryEnded():
            return "launcher"
        case _:
            return "other"
