"""What a launch over MPI adds to a pod's life: before mpirun, beside it, and what its events mean."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from backends.plan import Kind
from backends.plan_mpi import Agent
from launcher import exits
from launcher.channel.events import (
    DaemonEnded,
    DaemonGone,
    Event,
    LaunchAsked,
    MpirunEnded,
    MpirunFinished,
    ProcessEnded,
    RankMissed,
)
from launcher.channel.messages import Cause, LaunchEnded, Settled
from launcher.drain import MAIN
from launcher.log import log
from launcher.mpi import callback, server, verdict
from launcher.mpi.equip import equip
from launcher.mpi.gate import DAEMONS
from launcher.mpi.launch import Launches, launch
from launcher.mpi.ranks import Ranks, daemons
from launcher.report import Ending

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.supervisor import Child

PATIENCE = 3.0  # seconds in which mpirun says why a daemon ended, or ends because of it
LOOK_EVERY = 0.05


class MpiRun:
    """Of one pod, in one epoch."""

    def __init__(self, pod: Pod) -> None:
        mpi = pod.the_plan.mpi
        assert mpi is not None
        self._pod = pod
        self.mpi = mpi
        self.ranks = Ranks(pod)
        self.launches = Launches(pod, mpi) if pod.leader is not None and mpi.agent is Agent.CHANNEL else None

    def attend(self, mpirun: Child) -> None:
        """On the leader, beside a running mpirun."""
        self._pod.background(server.watch(self._pod, mpirun))
        if self.mpi.workers:
            task = asyncio.create_task(callback.await_daemons(self._pod, self.ranks, mpirun))
            task.add_done_callback(self._pod.story_ended)
            self._pod.watches.append(task)

    async def weigh(self, child: Child, ended: ProcessEnded) -> Event:
        """What the end of a child means; it may take as long as the other pods need to tell what they have seen."""
        return await verdict.weigh(self._pod, self.ranks, child, ended) if child.name == MAIN else ended

    def leader_drains(self) -> None:
        """Each pod asks its own ranks of a job to end; a server's work until it has drained."""
        if self._pod.the_plan.kind is Kind.JOB:
            self.ranks.terminate()

    def launch_ended(self, message: LaunchEnded) -> None:
        if self.launches is not None:
            self.launches.ended(message)

    def judge(self, event: MpirunEnded | LaunchAsked | DaemonEnded | DaemonGone | MpirunFinished) -> Ending | None:
        pod = self._pod
        match event:
            case LaunchAsked(message):
                pod.background(launch(pod, message))
            case DaemonEnded(_, message):
                self.launch_ended(message)
            case MpirunFinished():
                pod.background(self._settle())
            case MpirunEnded(code, cause):
                pod.suspects.clear()  # mpirun has seen them all, and says which was first
                if pod.group is not None and cause.index != pod.group.index:
                    return Ending(cause.sentence(), exits.PEER_FAILED, cause)
                return Ending(cause.what, cause.exit_code or code or exits.ENDED_UNASKED, cause)
            case DaemonGone(name, code, words):
                return self._daemon_gone(name, code, words)
        return None

    def _daemon_gone(self, name: str, code: int | None, words: str) -> Ending | None:
        """On a worker. It ends well because mpirun told it to, with a code mostly because mpirun has gone."""
        pod = self._pod
        if pod.leader_drains or pod.group is None:
            return None
        what = f"mpirun's daemon {name} {'ended' if code is None else exits.describe(code)}"
        if code is not None and code - 128 in signal.valid_signals():
            return Ending(what, code, Cause(pod.group.index, what, code, words))
        if code != 0 or pod.the_plan.kind is Kind.SERVER:
            pod.background(self._until_missed(what, words))
        return None

    async def _until_missed(self, what: str, words: str) -> None:
        await asyncio.sleep(PATIENCE)
        self._pod.emit(RankMissed(what, words))

    async def _settle(self) -> None:
        """On a worker, when mpirun has ended with 0: tell when nothing of it is left; silent where something failed."""
        pod = self._pod
        while daemons():
            await asyncio.sleep(LOOK_EVERY)
        ours = [child for child in pod.children.values() if child.name in DAEMONS]
        failed = [child for child in ours if await asyncio.shield(child.exited) != 0]
        await asyncio.sleep(LOOK_EVERY)  # how the ranks ended is told by then
        if failed or self.ranks.orphaned():
            what = "a daemon has failed" if failed else "ranks have lost their daemon"
            log.warning("mpirun exited 0, but here %s", what)
        elif pod.member is not None:
            await pod.member.tell(Settled())


async def prepare(pod: Pod) -> None:
    """Before any daemon or rank. Raises ConfigError or GateFailed."""
    await equip(pod)
    pod.mpi = run = MpiRun(pod)
    pod.background(run.ranks.watch())
    if run.launches is not None:
        await run.launches.open(run.mpi.directory)
        pod.leftovers.callback(run.launches.close)
