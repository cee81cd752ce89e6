"""Why mpirun has ended: it is the messenger, and seldom the first to fail; its exit code alone tells little.

Open MPI 5 ends with 0 after some losses of a pod (facts: 3 of 6 killed workers), with 255 after others. So its words
are read, the members are heard, and a 0 counts only when every pod has said that its daemon ended well.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.group import member_names
from backends.plan import Kind
from backends.plan_mpi import Mpi
from launcher import exits
from launcher.channel.events import Event, MpirunEnded, ProcessEnded, RankMissed
from launcher.channel.messages import Cause, Finished

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.mpi.ranks import Ranks
    from launcher.supervisor import Child

HEARING = 1.0  # seconds in which a pod tells what has happened there
LAST_RANKS = 0.1  # seconds in which the kernel has told of the last rank's end
SETTLING = 5.0  # seconds in which a daemon ends, beyond the silence after which a member is lost
# What mpirun says: orterun of 4.1 (help-orterun.txt, help-orte-errmgr-hnp.txt), prterun of PRRTE 3.
EXITED = re.compile(r"Process name: *\[\S*,(\d+)\]\s*Exit code: *(\d+)")
KILLED = re.compile(r"process rank (\d+) with PID \d+ on\s+node \S+ exited on\s+signal (\d+)")
ABORTED = re.compile(r"MPI_ABORT was invoked on rank (\d+)[\s\S]{0,200}?errorcode (-?\d+)")
LOST = re.compile(r"lost communication with a remote daemon[\s\S]{0,300}?Remote daemon *: *\[\S*,(\d+)\] on node")


@dataclass(frozen=True)
class Said:
    """Whom mpirun names: a rank with its exit code, or the daemon of the host at a place of the hostfile."""

    rank: int | None = None
    code: int | None = None
    daemon: int | None = None


def read(words: str) -> Said | None:
    """Whom it names as the first; None when it names nobody."""
    if found := ABORTED.search(words):
        return Said(rank=int(found[1]), code=int(found[2]) & 0xFF)
    if found := KILLED.search(words):
        return Said(rank=int(found[1]), code=128 + int(found[2]))
    if found := EXITED.search(words):
        return Said(rank=int(found[1]), code=int(found[2]))
    if found := LOST.search(words):
        return Said(daemon=int(found[1]))
    return None


def host_of(mpi: Mpi, rank: int) -> int:
    """The index of the pod in which a rank runs: the hostfile is filled in order."""
    for host in mpi.hosts:
        if rank < host.slots:
            return host.index
        rank -= host.slots
    return 0


def named(mpi: Mpi, words: str, head: str) -> Cause | None:
    said = read(words)
    if said is None:
        return None
    if said.rank is not None:
        code = said.code or 0
        return Cause(host_of(mpi, said.rank), f"rank {said.rank} {exits.describe(code)}", code, head)
    at = said.daemon or 0
    if not 0 < at < len(mpi.hosts):
        return None
    return Cause(mpi.hosts[at].index, "mpirun has lost its daemon there", None, head)


async def weigh(pod: Pod, ranks: Ranks, child: Child, ended: ProcessEnded) -> Event:
    """What the end of mpirun was, on the leader."""
    mpi, leader, code = pod.the_plan.mpi, pod.leader, ended.code
    if mpi is None or leader is None or leader.stopping or child.signalled:
        return ended
    left: RankMissed | None = None
    if code == 0 and pod.the_plan.kind is Kind.JOB:
        await asyncio.sleep(LAST_RANKS)
        if not ranks.alive:
            return await _settle(pod) or ended
        left = RankMissed("mpirun exited 0 and left its ranks behind", child.keepsake.text())
    otherwise: Event = left if left is not None else ended
    cause = named(mpi, child.keepsake.tail(), child.keepsake.text())
    if cause is not None and "daemon" not in cause.what:
        return MpirunEnded(code, cause)
    # A member that has seen the first failure tells it now, or is lost with it: either is judged before this.
    loop = asyncio.get_running_loop()
    until = loop.time() + HEARING
    while loop.time() < until and not pod.suspects and not leader.missing and not leader.stopping:
        await asyncio.sleep(0.02)
    return otherwise if cause is None or pod.suspects else MpirunEnded(code, cause)


async def _settle(pod: Pod) -> Event | None:
    """None when nothing of mpirun is left anywhere; a pod that has lost it tells so itself, or is lost."""
    leader, loop = pod.leader, asyncio.get_running_loop()
    assert leader is not None
    await leader.tell_all(Finished())
    until = loop.time() + pod.settings.options.peer_timeout + SETTLING
    late = await leader.wait_said("settled", lambda: until - loop.time())
    late = sorted({*late, *leader.missing})
    return RankMissed(f"mpirun exited 0, but not its daemon on {member_names(late)}", "") if late else None
