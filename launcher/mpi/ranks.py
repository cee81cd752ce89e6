"""The ranks of this pod: children of mpirun on the leader, of its daemon on a worker. Their ends are seen here first.

The daemon is our own child with `--mpi-agent channel`; over ssh it is one of sshd's session, or an orphan (Open MPI 4's
daemon detaches), and this launcher its reaper. Who is which rank stands in the environment that Open MPI gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from backends.plan import Kind
from launcher import exits
from launcher.channel.events import DaemonGone, RankLost
from launcher.descendants import FEWER_LOOKS, LOOK_EVERY, SELDOM, exiting, left_code, on_end
from launcher.drain import MAIN
from launcher.log import log
from launcher.mpi.gate import DAEMONS

if TYPE_CHECKING:
    from launcher.lifecycle import Pod

NUMBER = b"OMPI_COMM_WORLD_RANK="


@dataclass(frozen=True)
class Rank:
    """parent: the pid of mpirun or its daemon."""

    number: int
    pid: int
    parent: int


class Ranks:
    """Of one pod, in one epoch."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._daemons: set[int] = set()  # those that are no children of ours
        self.alive: dict[int, Rank] = {}  # by pid
        self.seen = False  # any at all
        self._orphans: dict[int, asyncio.Future[int]] = {}  # by pid, of each that was seen: done if its end is ours

    async def watch(self) -> None:
        """As long as the epoch lasts."""
        loop = asyncio.get_running_loop()
        news = loop.time()
        while True:
            if self._look():
                news = loop.time()
            await asyncio.sleep(min(max((loop.time() - news) / FEWER_LOOKS, LOOK_EVERY), SELDOM))

    def terminate(self) -> None:
        """Ask every rank of this pod to end."""
        self._look()
        if self.alive:
            log.info("asking the ranks of this pod to end: %s", ", ".join(str(r.number) for r in self.alive.values()))
        for rank in self.alive.values():
            with contextlib.suppress(OSError):
                os.kill(rank.pid, signal.SIGTERM)

    def orphaned(self) -> bool:
        """Once no daemon is left here: whether a rank has outlived the one who started it, or went with it.

        The order in which we hear of the ends tells nothing on a busy node; who has collected the rank does.
        """
        return any(end.done() or Path(f"/proc/{pid}").exists() for pid, end in self._orphans.items())

    def zero(self) -> int | None:
        """The pid of rank 0, where it lives here."""
        return next((rank.pid for rank in self.alive.values() if rank.number == 0), None)

    def _look(self) -> bool:
        """Whether something new was seen."""
        main = self._pod.children.get(MAIN)
        parents = [main.pid] if main is not None and main.alive else []
        new = False
        for process, first in () if self._pod.the_plan.main is not None else _daemons():
            parents.append(process.pid)
            if first and process.pid not in self._daemons:
                self._daemons.add(process.pid)
                new = True
                if all(process.pid != child.pid for child in self._pod.children.values()):
                    self._watch_daemon(process.pid, process.name())
        for parent in parents:
            for pid in _children(parent):
                number = None if pid in self.alive else _number(pid)
                if number is not None:
                    self.alive[pid] = rank = Rank(number, pid, parent)
                    self._orphans[pid] = self._pod.supervisor.adopt(pid)
                    self.seen = new = True
                    on_end(pid, lambda rank=rank: self._ended(rank))  # type: ignore[misc]
        return new

    def _watch_daemon(self, pid: int, name: str) -> None:
        adopted = self._pod.supervisor.adopt(pid)

        def ended() -> None:
            code = left_code(pid)
            asyncio.get_running_loop().call_later(0.05, tell, code)  # our own reaper may know better

        def tell(code: int | None) -> None:
            self._pod.emit(DaemonGone(name, adopted.result() if adopted.done() else code, ""))

        on_end(pid, ended)

    def _ended(self, rank: Rank) -> None:
        self.alive.pop(rank.pid, None)
        code = left_code(rank.pid)
        if not Path(f"/proc/{rank.parent}").exists() or exiting(rank.parent):
            return  # it ends with, or because of, the one who started it
        how = "ended" if code is None else exits.describe(code)
        owner = next((name for name, child in self._pod.children.items() if child.alive), None)
        if owner is not None:
            # SIGTERM is how mpirun ends the others; a job's ranks may end as they like, a server's may not.
            asked = code == 128 + signal.SIGTERM
            died = not asked if self._pod.the_plan.kind is Kind.SERVER else code is not None and code != 0 and not asked
            self._pod.emit(RankLost(owner, f"rank {rank.number} (pid {rank.pid}) {how}", code, died))


def daemons() -> list[psutil.Process]:
    """mpirun's daemons in this pod, whoever their parent is."""
    return [process for process, first in _daemons() if first]


def _daemons() -> Iterator[tuple[psutil.Process, bool]]:
    """All processes of that name; first: not a child of another, which a daemon behind a wrapper (as in PyPI's
    packages) is, and a rank until it becomes its program."""
    with contextlib.suppress(psutil.Error, OSError):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if process.name() in DAEMONS and process.status() != psutil.STATUS_ZOMBIE:
                    parent = process.parent()
                    yield process, parent is None or parent.name() not in DAEMONS


def _children(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error, OSError):
        return [process.pid for process in psutil.Process(pid).children()]
    return []


def _number(pid: int) -> int | None:
    """Which rank a process is; None for one that is none, or has not become its program yet."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = next((entry for entry in environ if entry.startswith(NUMBER)), None)
    return int(found.removeprefix(NUMBER)) if found and found.removeprefix(NUMBER).isdigit() else None
