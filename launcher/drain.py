"""How a pod's life ends: drain or stop in order, tell the others, leave no process, within one budget of time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from backends.group import member_name
from backends.plan import Kind
from launcher import exits
from launcher.channel.events import LeaderLost, LeaderSaid, SignalCaught
from launcher.channel.messages import Failed, Leaving, Stop
from launcher.log import log
from launcher.report import Ending
from launcher.supervisor import Child

if TYPE_CHECKING:
    from launcher.channel.leader import LeaderSide
    from launcher.channel.member import MemberSide
    from launcher.lifecycle import Pod

MAIN = "main"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESERVE = 3.0  # seconds of the drain budget that are kept for services and stragglers
SERVICE_GRACE = 1.0  # Ray's own shutdown takes seconds and keeps nothing that anybody needs
FAILURE_GRACE = 5.0  # after a failure nothing can be served any more; long enough to release a GPU
HEAR_OUT = 1.0  # how long a failed worker listens for the cause that the leader made the group's
LAST_OUTPUT = 2.0  # seconds beyond the drain budget for a reader that is slow to take the engine's last output
HURRY = 3.0  # what a second SIGTERM leaves of the grace


class Drain:
    """One ending of one pod. The deadline covers everything; it is the only thing that a further SIGTERM changes."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.deadline = float("inf")
        # With a short budget, most of it is still the engine's.
        self.reserve = min(RESERVE, pod.settings.drain_timeout / 5)

    async def carry_out(self, ending: Ending) -> int:
        """Carry the ending out on this pod, and on the leader for everybody; the exit code."""
        served = self.pod.phase == "serving"
        self.pod.enter("draining" if ending.asked else "stopping")
        budget = (
            self.pod.settings.drain_timeout if ending.asked else min(self.pod.settings.drain_timeout, FAILURE_GRACE)
        )
        self.deadline = asyncio.get_running_loop().time() + budget
        minder = asyncio.create_task(self.mind_events())
        try:
            if self.pod.leader is not None:
                clean = await self.on_leader(self.pod.leader, ending, served)
            elif self.pod.member is not None:
                clean = await self.on_member(self.pod.member, ending)
            else:
                await self.drain_delay(ending, served)
                clean = await self.stop_children(MAIN)
            clean = await self.stop_children(*self.pod.children) and clean
            survivors = await self.pod.supervisor.sweep()
            if survivors:
                log.error("still alive after SIGKILL: %s", ", ".join(survivors))
            patience = max(self.left(), 0) + LAST_OUTPUT
            await asyncio.gather(
                *(asyncio.to_thread(child.join_output, patience) for child in self.pod.children.values())
            )
            if self.pod.leader is not None:
                silent = await self.pod.leader.wait_empty(max(self.left(), 1.0))
                if silent:
                    log.warning("did not hang up in time: %s", ", ".join(map(member_name, silent)))
            if self.pod.member is not None:
                await self.pod.member.close()
            if self.pod.watchers is not None:
                await self.pod.watchers.close()
        finally:
            minder.cancel()
            for task in (*self.pod.tasks, *self.pod.watches):
                task.cancel()
        return exits.KILLED if ending.asked and not clean else ending.exit_code

    async def on_leader(self, leader: LeaderSide, ending: Ending, served: bool) -> bool:
        leader.stopping = True
        if ending.failed:
            await leader.tell_all(Stop(ending.cause, ending.reason))
            return True
        await self.drain_delay(ending, served)
        # The engine drains while the workers still serve it; only then are they told.
        clean = await self.stop_children(MAIN, reserve=self.reserve)
        await leader.tell_all(Stop(None, ending.reason))
        return clean

    async def on_member(self, member: MemberSide, ending: Ending) -> bool:
        if ending.cause is not None and self.pod.group and ending.cause.index == self.pod.group.index:
            await member.tell(Failed(ending.cause))
            await self.pause(self.pod.told, HEAR_OUT)
        elif ending.asked and member.formed.done() and not self.pod.told.done():
            await member.tell(Leaving(ending.reason))
            await self.pause(self.pod.told, self.pod.settings.drain_timeout)
        return True

    async def drain_delay(self, ending: Ending, served: bool) -> None:
        """Let endpoints catch up with our readiness before the engine stops taking requests."""
        main = self.pod.children.get(MAIN)
        if ending.asked and served and main is not None and self.pod.the_plan.kind is Kind.SERVER:
            await self.pause(main.exited, self.pod.settings.drain_delay)

    async def stop_children(self, *names: str, reserve: float = 0) -> bool:
        """TERM, then KILL when only the reserve of the deadline is left.

        True when the main process did not have to be killed.
        """
        children = [self.pod.children[name] for name in names if name in self.pod.children]
        services_end = min(self.deadline, asyncio.get_running_loop().time() + SERVICE_GRACE)

        def left(child: Child) -> float:
            return self.left() - reserve if child.name == MAIN else services_end - asyncio.get_running_loop().time()

        ended = await asyncio.gather(*(self.pod.supervisor.stop(child, partial(left, child)) for child in children))
        return all(fine for child, fine in zip(children, ended, strict=True) if child.name == MAIN)

    def left(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    async def pause(self, until: asyncio.Future[Any], seconds: float) -> None:
        """Wait, but never into the reserve of a drain budget that a second SIGTERM may shorten meanwhile."""
        end = asyncio.get_running_loop().time() + seconds
        while (
            left := min(end - asyncio.get_running_loop().time(), self.left() - self.reserve)
        ) > 0 and not until.done():
            await asyncio.wait([until], timeout=min(left, 0.2))

    async def mind_events(self) -> None:
        """While winding down: a second SIGTERM shortens the grace, a third ends it; peers may still speak."""
        while True:
            match await self.pod.events.get():
                case SignalCaught(caught) if caught.number in STOP_SIGNALS:
                    self.pod.signals += 1
                    if self.pod.signals > 1:
                        hurry = HURRY if self.pod.signals == 2 else 0
                        self.deadline = min(self.deadline, asyncio.get_running_loop().time() + hurry)
                        log.info("%s again: %.0f s left", signal.Signals(caught.number).name, max(self.left(), 0))
                case LeaderSaid(stop):
                    self.pod.groups_cause = stop.cause
                    if not self.pod.told.done():
                        self.pod.told.set_result(None)
                case LeaderLost():
                    if not self.pod.told.done():
                        self.pod.told.set_result(None)
                case _:
                    pass

    async def hold(self) -> None:
        """Kubernetes restarts a group with no backoff: a configuration that cannot work must not spin."""
        log.info("holding %.0f s before exit (--failure-hold)", self.pod.settings.failure_hold)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.pod.settings.failure_hold):
                while True:
                    event = await self.pod.events.get()
                    if isinstance(event, SignalCaught) and event.caught.number in STOP_SIGNALS:
                        return
