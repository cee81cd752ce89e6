"""How a pod's life ends: drain or stop in order, tell the others, leave no process, within one budget of time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from backends.group import member_names
from backends.plan import InFlight, Kind, PortOpen
from launcher import exits
from launcher.budget import TEARDOWN
from launcher.channel.events import DaemonEnded, LeaderDrains, LeaderLost, LeaderRestarts, LeaderSaid, SignalCaught
from launcher.channel.messages import Cleared, Drained, Draining, Failed, Leaving, Restart, Stop
from launcher.gates import refuses
from launcher.log import log
from launcher.report import Ending
from launcher.supervisor import Child

if TYPE_CHECKING:
    from launcher.channel.leader import LeaderSide
    from launcher.channel.member import MemberSide
    from launcher.lifecycle import Pod

MAIN = "main"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SERVICE_GRACE = 1.0  # Ray's own shutdown takes seconds and keeps nothing that anybody needs
FAILURE_GRACE = 5.0  # after a failure nothing can be served any more; long enough to release a GPU
LAST_OUTPUT = 2.0  # seconds beyond the drain budget for a reader that is slow to take the engine's last output
LOOK_EVERY = 0.2  # seconds
MISSES = 3  # looks without an answer
NO_WORK = 5.0  # seconds without work in the engine, after which what the server still counts are clients that went away
HURRY = 3.0  # what a second SIGTERM leaves of the grace


class Drain:
    """One ending of one pod. The deadline covers everything; it is the only thing that a further SIGTERM changes."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.deadline = float("inf")
        self.budget = pod.settings.budget
        self.reserve = self.budget.reserve  # what is kept of it for services and stragglers
        self.killed_after: float | None = None  # seconds that the engine had, when it had to be killed

    async def carry_out(self, ending: Ending) -> Ending:
        """Carry the ending out on this pod, and on the leader for everybody; the ending that it came to."""
        served = self.pod.phase == "serving"
        self.pod.enter("draining" if ending.asked else "stopping")
        limit = self.budget.total if ending.asked else min(self.budget.total, FAILURE_GRACE)
        self.deadline = asyncio.get_running_loop().time() + limit
        minder = asyncio.create_task(self.mind_events())
        try:
            if self.pod.leader is not None:
                await self.on_leader(self.pod.leader, ending, served)
            elif self.pod.member is not None:
                await self.on_member(self.pod.member, ending, served)
            else:
                await self.drain_delay(ending, served)
                await self.stop_main(keep_reserve=ending.asked)
            await asyncio.gather(self.stop_main(), *map(self.stop_service, self.pod.children))
            survivors = await self.pod.supervisor.sweep()
            if self.pod.member is not None and self.pod.member.wire is not None and self.own(ending):
                await self.told(self.pod.told)  # its launcher may be slow, or still drain its engine
            ending = self.groups_own(ending)
            if survivors:
                log.error("still alive after SIGKILL: %s", ", ".join(survivors))
                if ending.restart is not None:
                    log.error("no restart in place beside them")
                    ending = replace(ending, restart=None)
            await self.last_output(ending, bounded=bool(survivors))
            if self.pod.leader is not None:
                ending = await self.leave_members(self.pod.leader, ending)
            if self.pod.member is not None:
                ending = await self.leave_leader(self.pod.member, ending)
            if self.pod.watchers is not None and ending.restart is None:
                await self.pod.watchers.close()
        finally:
            minder.cancel()
            for task in (*self.pod.tasks, *self.pod.watches):
                task.cancel()
            self.pod.leftovers.close()
        if ending.asked and self.killed_after is not None:
            reason = (
                f"{ending.reason}; the engine had to be killed, {self.killed_after:.1f} s after it was asked to end"
            )
            return replace(ending, reason=reason, exit_code=exits.KILLED)
        return ending

    async def last_output(self, ending: Ending, bounded: bool) -> None:
        """Until the readers of our streams have taken what the engine wrote last: a finished job has all the time."""
        loop = asyncio.get_running_loop()
        bounded = bounded or ending.failed or ending.asked
        patience = max(self.left(), 0) if ending.asked else self.budget.total
        end = loop.time() + patience + LAST_OUTPUT
        while any(child.output_waits for child in self.pod.children.values()):
            if self.pod.signals and not bounded:
                bounded, end = True, loop.time() + LAST_OUTPUT
            if bounded and loop.time() >= end:
                log.warning("the last output of the engine was not taken by its reader in time: dropped")
                return
            await asyncio.sleep(0.02)

    async def on_leader(self, leader: LeaderSide, ending: Ending, served: bool) -> None:
        leader.stopping = True
        if not ending.failed:
            if ending.asked:
                await leader.tell_all(Draining(ending.reason))
            await self.drain_delay(ending, served)
            if self.all_answer:
                await self.answer_own()
                if late := await leader.wait_said("drained", self.left_to_answer):
                    log.warning("requests are cut off: not drained in time: %s", member_names(late))
            # The engine drains while the workers still serve it; only then are they told.
            await self.stop_main(keep_reserve=True)
        await leader.tell_all(Stop(ending.cause, ending.reason, ending.restart))

    async def leave_members(self, leader: LeaderSide, ending: Ending) -> Ending:
        """Part from the members; they start anew only if we say at the very end that we do."""
        patience = max(self.left(), 1.0)
        if ending.restart is not None:
            end = asyncio.get_running_loop().time() + patience
            if late := await leader.wait_said("cleared", lambda: end - asyncio.get_running_loop().time()):
                log.warning("not ready for the restart in time: %s", member_names(late))
            if self.pod.signals:
                ending = replace(ending, restart=None)
            else:
                await leader.tell_all(Restart())
            await leader.hang_up()
        elif silent := await leader.wait_empty(patience):
            log.warning("did not hang up in time: %s", member_names(silent))
            await leader.hang_up()
        return ending

    async def leave_leader(self, member: MemberSide, ending: Ending) -> Ending:
        """Part from the leader; before a restart it has the last word, because it may be the one that cannot."""
        if ending.restart is not None:
            await member.tell(Cleared())
            await self.told(self.pod.restarts_too)
            if not self.pod.restarts_too.done() or not self.pod.restarts_too.result():
                why = "this pod is asked to stop" if self.pod.signals else "the leader does not begin one"
                log.warning("no restart in place: %s", why)
                ending = replace(ending, restart=None)
        await member.close()
        return ending

    def groups_own(self, ending: Ending) -> Ending:
        """A pod that failed says and does what the leader made of it for the whole group."""
        stop = self.pod.stop
        if stop is None or not ending.failed:
            return ending
        if stop.cause is None:  # the group was asked to stop, and this engine broke off when another one ended
            return Ending(stop.reason, exits.OK, asked=True)
        return replace(ending, cause=stop.cause, restart=None if ending.final else stop.restart)

    def own(self, ending: Ending) -> bool:
        """Whether it was this pod that failed."""
        group = self.pod.group
        return ending.cause is not None and group is not None and ending.cause.index == group.index

    async def told(self, word: asyncio.Future[Any]) -> None:
        """Wait for a word of the leader, for as long as its own ending can take; one more SIGTERM ends the wait."""
        loop, asked = asyncio.get_running_loop(), self.pod.signals
        until = loop.time() + self.pod.settings.options.peer_timeout + self.budget.total
        while not word.done() and self.pod.signals == asked and loop.time() < until:
            await asyncio.wait([word], timeout=0.2)

    async def on_member(self, member: MemberSide, ending: Ending, served: bool) -> None:
        if ending.cause is not None and self.own(ending):
            await member.tell(Failed(ending.cause))
        elif ending.asked and member.formed.done() and not self.pod.told.done():
            await member.tell(Leaving(ending.reason))
            if self.all_answer:
                await self.drain_delay(ending, served)
                await self.answer_own()
                await member.tell(Drained())
            await self.pause(self.pod.told, self.budget.total)

    async def drain_delay(self, ending: Ending, served: bool) -> None:
        """Let endpoints catch up with our readiness before the engine stops taking requests."""
        main = self.pod.children.get(MAIN)
        if ending.asked and served and main is not None and self.pod.the_plan.kind is Kind.SERVER:
            log.info("unready for %g s (--drain-delay) before the engine is asked to end", self.budget.delay)
            await self.pause(main.exited, self.budget.delay)

    @property
    def all_answer(self) -> bool:
        return self.pod.plan is not None and self.pod.plan.all_answer

    async def answer_own(self) -> None:
        """Where every pod has clients: wait until this one's engine has answered its own, before any engine ends."""
        main, child = self.pod.the_plan.main, self.pod.children.get(MAIN)
        if main is not None and main.in_flight is not None and child is not None:
            await self.let_finish(main.in_flight, child, self.left_to_answer)

    def left_to_answer(self) -> float:
        return self.left() - self.reserve - TEARDOWN

    async def stop_main(self, keep_reserve: bool = False) -> None:
        """Ask the engine to end; kill it when no time, or only the reserve, is left."""
        main = self.pod.plan.main if self.pod.plan else None
        child = self.pod.children.get(MAIN)
        if main is None or child is None or not child.alive:
            return

        def left() -> float:
            return self.left() - (self.reserve if keep_reserve else 0)

        if main.in_flight is not None and keep_reserve and not self.all_answer:
            await self.let_finish(main.in_flight, child, lambda: left() - TEARDOWN)
        asked = asyncio.get_running_loop().time()
        log.info("asking the engine to end; it has %.1f s", max(left(), 0))
        over_mpi = self.pod.mpi is not None
        if over_mpi and keep_reserve:
            from launcher.mpi.ending import ask_first

            await ask_first(self.pod, child, left)
        ended = await self.pod.supervisor.stop(
            child,
            left,
            alone=main.asked_alone,
            hears=None if main.serves is None or over_mpi else partial(accepts, main.serves),
        )
        took = asyncio.get_running_loop().time() - asked
        if ended:
            log.info("the engine ended %.1f s after it was asked", took)
        else:
            self.killed_after = took
            log.warning("the engine has not ended within %.1f s: killed; what it was still doing is lost", took)

    async def let_finish(self, engine: InFlight, child: Child, left: Callable[[], float]) -> None:
        """Wait until an engine that would drop its requests has none."""
        from launcher import in_flight

        loop, count, none_served, misses = asyncio.get_running_loop(), 0, 0, 0
        worked = loop.time()
        while child.alive and left() > 0:
            looking = asyncio.create_task(in_flight.look(engine))
            await self.pause(looking, in_flight.TIMEOUT)
            answered = looking.done() and looking.exception() is None
            requests = looking.result() if answered else None
            looking.cancel()
            if requests is None:
                misses += 1
                # One that has served and does not answer is busy with more than our question.
                if count == 0 and misses >= MISSES and (answered or self.pod.served_since is None):
                    return  # it does not tell, or has not started
            else:
                misses = 0
                # Twice: a request may be between two of the server's hands.
                none_served = none_served + 1 if requests.server is not None and requests.server <= 0 else 0
                worked = loop.time() if requests.engine else worked
                if none_served == 2 or loop.time() - worked >= NO_WORK:
                    return
                now = max(requests.engine, requests.server or 0)
                if now and now != count:
                    log.info("%d requests in flight; %.1f s left for them", now, left())
                count = now or count
            await self.pause(child.exited, LOOK_EVERY)
        if child.alive and (count or not misses):
            log.warning("%d requests in flight are cut off: no time is left (--drain-timeout)", count)
        elif child.alive:
            log.warning("requests in flight are cut off, if there are any: the engine does not answer in time")

    async def stop_service(self, name: str) -> None:
        child, end = self.pod.children[name], asyncio.get_running_loop().time() + SERVICE_GRACE
        if name != MAIN:
            await self.pod.supervisor.stop(child, lambda: min(self.deadline, end) - asyncio.get_running_loop().time())

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
                        self.reserve = min(self.reserve, hurry / 5)
                        log.info("%s again: %.0f s left", signal.Signals(caught.number).name, max(self.left(), 0))
                case LeaderSaid(stop):
                    self.pod.stop = stop
                    settle(self.pod.told, None)
                case LeaderDrains() if self.pod.mpi is not None:
                    self.pod.mpi.leader_drains()
                case DaemonEnded(_, message) if self.pod.mpi is not None:
                    self.pod.mpi.launch_ended(message)
                case LeaderLost():
                    settle(self.pod.told, None)
                    settle(self.pod.restarts_too, False)
                case LeaderRestarts():
                    settle(self.pod.restarts_too, True)
                case SignalCaught(caught) if caught.sender != os.getpid():
                    self.pod.pass_on(caught.number)
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


def settle(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


async def accepts(gate: PortOpen) -> bool:
    """Whether an engine has started by now, and with that takes a SIGTERM."""
    return await refuses(gate, timeout=0.5) is None
