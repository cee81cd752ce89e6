"""--hang-timeout: an engine that has served, lives, and does nothing any more; who of the group is the cause.

The pod that has clients notices. The leader then has every pod look at its own processes: a rank that stands still in
one pod makes the engines of all of them wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from backends.group import member_names
from backends.plan import Progress
from launcher import stacks
from launcher.channel.events import EngineHung, HangJudged, LeaderInspects, MemberHung
from launcher.channel.messages import Cause, Hung, Inspect, Inspected
from launcher.log import log

if TYPE_CHECKING:
    from launcher.health import EngineHealth
    from launcher.lifecycle import Pod

TICKS = 20  # looks within the time-out
LONGEST_TICK = 2.0  # seconds
TRIALS = 4  # within the time-out, while the engine is idle
OURS = "ours"
LATE = 3.0  # seconds beyond stacks.LIMIT in which a member's word arrives


async def watch_for_hang(pod: Pod, asked: EngineHealth, progress: Progress | None, timeout: float) -> None:
    """Tell when the engine, having served, answers no health check for so many seconds, or makes no step with its
    requests. Time in which this launcher itself did not run does not count."""
    await asked.first.wait()
    tick = min(timeout / TICKS, LONGEST_TICK)
    silent, standing, before = 0.0, Standing(), time.monotonic()
    trial = None if progress is None else Trial(pod, progress, timeout / TRIALS)
    while True:
        await asyncio.sleep(tick)
        now = time.monotonic()
        passed, before = min(now - before, 2 * tick), now
        silent = silent + passed if asked.fails else 0.0
        if progress is not None and trial is not None and not asked.fails:
            seen = await look(progress)
            standing.take(seen if seen is None else seen | trial.turn(seen), passed)
        if silent >= timeout:
            last = asked.failure or "no answer"
            pod.emit(EngineHung(f"the engine answers no health check for {timeout:g} s ({asked.what}: {last})"))
            return
        if standing.seconds >= timeout:
            pod.emit(EngineHung(f"the engine gets no further with {standing.what} for {timeout:g} s"))
            return


class Trial:
    """A request of our own for one token, where the engine is idle for a while: it may stand still already, and then
    tells nothing of the requests that reach it."""

    def __init__(self, pod: Pod, at: Progress, every: float) -> None:
        self._pod, self._at, self._every = pod, at, every
        self._steps, self._since = 0.0, time.monotonic()
        self._request: asyncio.Task[None] | None = None

    def turn(self, seen: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Whether such a request waits, as one more replica; whichever has it, all of them make no step then."""
        if not seen:
            return {}
        busy, steps = (sum(column) for column in zip(*seen.values(), strict=True))
        now = time.monotonic()
        if busy or steps != self._steps:
            self._steps, self._since = steps, now
        if self._request is not None and self._request.done():
            self._request, self._since = None, now
        elif self._request is None and now - self._since > self._every:
            self._request = asyncio.create_task(self._ask())
            self._pod.tasks.add(self._request)  # cancelled with the others
            self._request.add_done_callback(self._pod.tasks.discard)
        return {OURS: (0.0 if self._request is None else 1.0, steps)}

    async def _ask(self) -> None:
        from launcher.in_flight import complete

        await complete(self._at)


class Standing:
    """For how long an engine has had requests and made no step, by each of its replicas."""

    def __init__(self) -> None:
        self._steps: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._busy: dict[str, float] = {}

    def take(self, seen: dict[str, tuple[float, float]] | None, passed: float) -> None:
        """seen: what each replica works on, and the sum of its counters; None where they were not to be had."""
        for engine, (busy, steps) in (seen or {}).items():
            # The first step may take minutes: what the engine compiles for it.
            stands = busy > 0 and 0 < steps == self._steps.get(engine)
            self._seconds[engine] = self._seconds.get(engine, 0.0) + passed if stands else 0.0
            self._steps[engine], self._busy[engine] = steps, busy

    @property
    def seconds(self) -> float:
        return max(self._seconds.values(), default=0.0)

    @property
    def what(self) -> str:
        """The requests of that which has stood for longest."""
        engine = max(self._seconds, key=lambda engine: self._seconds[engine])
        busy = self._busy[engine]
        return "a request of ours" if engine == OURS else "a request" if busy == 1 else f"{busy:g} requests"


async def look(at: Progress) -> dict[str, tuple[float, float]] | None:
    """(busy, steps) by the label `engine`."""
    from launcher.in_flight import samples

    found = await samples(at.metrics, (*at.busy, *at.steps))
    if found is None:
        return None
    seen: dict[str, tuple[float, float]] = {}
    for name, labels, value in found:
        engine = labels.partition('engine="')[2].partition('"')[0]
        busy, steps = seen.get(engine, (0.0, 0.0))
        seen[engine] = (busy + value, steps) if name in at.busy else (busy, steps + value)
    return seen


# ---------------------------------------------------------------------- what follows


def heard(pod: Pod, event: EngineHung | MemberHung | LeaderInspects) -> None:
    """What such an event begins."""
    match event:
        case EngineHung(what):
            hung(pod, pod.group.index if pod.group else 0, what)
        case MemberHung(index, what):
            hung(pod, index, what)
        case LeaderInspects():
            asked(pod)


def hung(pod: Pod, index: int, what: str) -> None:
    """An engine hangs, here or, as the leader is told, with a member: find out what every pod's processes do."""
    if pod.hang_inspected:
        return
    pod.hang_inspected = True
    log.error("%s: hung; looking at the processes of every pod", what)
    if pod.member is not None:
        pod.background(pod.member.tell(Hung(what)))  # the leader asks everybody, us too
    else:
        pod.background(_judge(pod, index, what))


def asked(pod: Pod) -> None:
    """A member is to look at its own processes."""

    async def answer() -> None:
        stopped = await look_around(pod)
        if pod.member is not None:
            await pod.member.tell(Inspected(stopped))

    pod.background(answer())


async def look_around(pod: Pod) -> str:
    """Which of this pod's processes are stopped, in words. Whatever goes wrong with that, the group must end."""
    try:
        return await stacks.inspect(pod.supervisor, pod.environ())
    except Exception as error:
        log.error("the processes of this pod could not be looked at: %r", error)
        return ""


def culprit(stopped: Mapping[int, str]) -> int | None:
    """Whose processes stand still, by what each pod has said of them. One that waits in the kernel may do so because
    of another pod's, and then there are several."""
    odd = [index for index in sorted(stopped) if stopped[index]]
    halted = [index for index in odd if "(state T)" in stopped[index]]
    return halted[0] if halted else odd[0] if len(odd) == 1 else None


async def _judge(pod: Pod, index: int, what: str) -> None:
    leader, me, loop = pod.leader, pod.group.index if pod.group else 0, asyncio.get_running_loop()
    if leader is not None:
        await leader.tell_all(Inspect())
    stopped = {me: await look_around(pod)}
    if leader is not None:
        end = loop.time() + LATE
        if late := await leader.wait_said("inspected", lambda: end - loop.time()):
            log.warning("no word on its processes in time from %s", member_names(late))
        stopped |= {seat.index: seat.stopped for seat in leader.seats.values()}
    what = f"{what}: hung; stacks are in the log"
    first = culprit(stopped)
    if first is not None:
        what, index = f"{stopped[first]}, and {what}", first
    pod.emit(HangJudged(Cause(index, what)))
