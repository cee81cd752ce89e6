"""Processes below our own children, which only their own parents can wait for: the kernel tells of their end by pidfd.

Found by name, because nobody else says which of an engine's processes it cannot do without.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher import exits
from launcher.supervisor import Child

LOOK_EVERY = 0.25  # seconds
FEWER_LOOKS = 10  # a look costs CPU: the next one comes after this fraction of the time since something was new
SELDOM = 60.0  # seconds; a rank that an engine starts after hours of service is seen no later
# In /proc/PID/stat, counted from the field after the name: proc_pid_stat(5).
STATE, FLAGS, EXIT_CODE = 0, 6, 49
EXITING = 0x4  # PF_EXITING among the flags: it is ending, which takes seconds with much memory


@dataclass
class Rank:
    """One of an engine's own processes; its name may become more precise while it starts."""

    pid: int
    name: str


async def watch_helpers(child: Child, names: Sequence[str], on_lost: Callable[[str], None]) -> None:
    """Call on_lost(name) the moment that a named descendant of the child ends.

    Returns when all were seen (or the child ended); from then on the kernel tells of their end (pidfd_open(2)).
    """
    missing = set(names)
    while missing and child.alive:
        for process, name in _below(child):
            if name in missing:
                missing.discard(name)
                on_end(process.pid, lambda name=name: on_lost(name))  # type: ignore[misc]
        if missing:
            await asyncio.sleep(LOOK_EVERY)


async def watch_ranks(child: Child, ranks: Sequence[str], on_lost: Callable[[str, int | None], None]) -> None:
    """Call on_lost with a sentence and its exit code, where the kernel still tells it, the moment that a
    descendant with one of these parts in its name ends.

    Lasts as long as the child does. Nothing is said of ranks that end with it or after it.
    """
    loop = asyncio.get_running_loop()
    known: dict[int, Rank] = {}
    news = loop.time()
    while ranks and child.alive:
        for process, name in _ranks(child, ranks):
            if process.pid not in known:
                known[process.pid] = rank = Rank(process.pid, name)
                on_end(process.pid, lambda rank=rank: _told(child, known, rank, on_lost))  # type: ignore[misc]
                news = loop.time()
            known[process.pid].name = name
        await asyncio.sleep(min(max((loop.time() - news) / FEWER_LOOKS, LOOK_EVERY), SELDOM))


def _told(child: Child, known: dict[int, Rank], rank: Rank, on_lost: Callable[[str, int | None], None]) -> None:
    known.pop(rank.pid, None)
    if child.alive:
        code = left_code(rank.pid)
        how = "ended" if code is None else exits.describe(code)
        on_lost(f"the engine's {rank.name} (pid {rank.pid}) {how}", code)


def _ranks(child: Child, ranks: Sequence[str]) -> Iterator[tuple[psutil.Process, str]]:
    """Those whose name is their own: a process between fork and exec has its parent's, and is none."""
    for process, name in _below(child):
        if any(rank in name for rank in ranks):
            with contextlib.suppress(psutil.Error, OSError):
                parent = process.parent()
                if parent is not None and parent.name() != name:
                    yield process, name


def _below(child: Child) -> Iterator[tuple[psutil.Process, str]]:
    with contextlib.suppress(psutil.Error, OSError):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                yield process, process.name()


def on_end(pid: int, ended: Callable[[], None]) -> None:
    """Call ended once the process has ended, at once where it has already."""
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        ended()
        return
    except OSError:
        return  # no pidfd here (an old kernel, a sandbox): then nobody watches it, which is no failure of its own

    def readable() -> None:
        loop.remove_reader(fd)
        os.close(fd)
        ended()

    loop.add_reader(fd, readable)


def left_code(pid: int) -> int | None:
    """The exit code of a process that has ended; None where its parent has collected it already."""
    fields = _stat(pid)
    return exits.of_status(int(fields[EXIT_CODE])) if fields and fields[STATE] == b"Z" else None


def exiting(pid: int) -> bool:
    """Whether the process is on its way out."""
    fields = _stat(pid)
    return bool(fields and int(fields[FLAGS]) & EXITING)


def _stat(pid: int) -> list[bytes]:
    """Empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
