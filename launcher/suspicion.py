"""What the end of one of an engine's own processes says about who was first.

An engine ends some time after one of its ranks, and a peer's may end before it. But an engine that fails by itself ends
its ranks too, often before it says why. So a rank's end is no failure of its own: it tells whom to name when an engine
ends soon after, and ends the pod only where the rank has died by itself and its engine stays.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from launcher.channel.events import RankLost, RankMissed
from launcher.channel.messages import Cause, Suspected
from launcher.descendants import exiting
from launcher.drain import MAIN
from launcher.log import log

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.supervisor import Child

MEMORY = 10.0  # seconds within which an engine's end is taken for the consequence of a rank's
PATIENCE = 2.0  # seconds that an engine has to end by itself, with its own code and words
LADDER = 3.5  # the same over MPI: Open MPI 4 takes 2.1 s to end the others before it says who was first
LOADING = 10.0  # the same before it serves: nobody waits for an answer
ORDERLY = (0, 128 + signal.SIGTERM)  # how an engine's own shutdown ends its ranks


@dataclass(frozen=True)
class Suspect:
    """at is the time in seconds at which this pod learned of it; words are the head of the engine's traceback."""

    index: int
    what: str
    at: float
    words: str


def rank_lost(pod: Pod, event: RankLost) -> None:
    """One of this pod's ranks has ended."""
    me = pod.group.index if pod.group else 0
    died = event.died
    if died is None:
        died = event.code is not None and event.code not in ORDERLY
    main, child = pod.children.get(MAIN), pod.children[event.name]
    if any(not one.alive or exiting(one.pid) for one in (main, child) if one is not None):
        return  # the engine is ending already, and takes its ranks along
    words = main.keepsake.head() if main is not None else child.keepsake.head()
    if died:
        log.warning("%s", event.what)
        pod.background(_until_missed(pod, child, event.what))
    elif event.died is False:
        return
    note(pod, me, event.what, died, words)
    if pod.member is not None:
        pod.background(pod.member.tell(Suspected(event.what, died, words)))


def note(pod: Pod, index: int, what: str, died: bool, words: str) -> None:
    """Remember that a rank has ended, on the leader one of any member; unless it tells nothing of who was first."""
    # How it ended is often not known (Ray collects its actors at once). Then it may be the consequence of another
    # engine's failure, which is told by what that one has said, and is likely while it starts.
    main = pod.children.get(MAIN)
    first = pod.served_since is not None and (main is None or not main.keepsake.head())
    if died or first:
        pod.suspects.append(Suspect(index, what, time.monotonic(), words))


async def _until_missed(pod: Pod, child: Child, what: str) -> None:
    main = pod.the_plan.main
    loading = main is not None and main.serves is not None and pod.served_since is None
    until = time.monotonic() + (LOADING if loading else PATIENCE if pod.mpi is None else LADDER)
    while time.monotonic() < until or (exiting(child.pid) and time.monotonic() < until + LOADING):
        await asyncio.sleep(0.1)
    if child.alive:
        pod.emit(RankMissed(what, child.keepsake.text()))


def first(pod: Pod, cause: Cause) -> Cause:
    """The cause that a failure has, or the rank's end in another pod before it, or in this one what preceded it."""
    now = time.monotonic()
    suspect = min((s for s in pod.suspects if now - s.at < MEMORY), key=lambda s: s.at, default=None)
    if suspect is None or cause.configuration or suspect.what in cause.what:
        return cause
    if suspect.index == cause.index:
        what = f"{cause.what}, after {suspect.what}"
        return replace(cause, what=what)
    return Cause(suspect.index, suspect.what, None, suspect.words)
