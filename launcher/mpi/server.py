"""The process that answers requests, somewhere below mpirun in the leader's pod: asked first, watched by itself.

trtllm-llmapi-launch starts it beside rank 0 and may go on for ever without it, so mpirun's own end tells too late.
"""

from __future__ import annotations

import asyncio
import contextlib
import os.path
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import psutil

from backends.command import SHELLS, detect
from backends.errors import ConfigError
from backends.plan import Kind
from backends.tensorrt_llm import LAUNCH
from launcher import exits
from launcher.channel.events import RankMissed
from launcher.descendants import LOOK_EVERY, left_code, on_end

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.supervisor import Child

IN_FRONT = 4  # words of a command line among which a program's name stands: an interpreter, its switches, -m
CONSEQUENCE = 0.3  # seconds after which mpirun would have ended, had the server gone because of it


def entry_of(program: Sequence[str]) -> str | None:
    """The program or module that serves, where trtllm-llmapi-launch starts it beside the ranks."""
    if not any(os.path.basename(word) == LAUNCH for word in program):
        return None
    try:
        command = detect(program)
    except ConfigError:
        return None
    return os.path.basename(command.entry) if command.engine == "tensorrt-llm" else None


def is_server(argv: Sequence[str], entry: str) -> bool:
    """Whether a process of this command line serves, and is none of the shells around it, which quote it."""
    words = [os.path.basename(word) for word in argv[:IN_FRONT]]
    return entry in words and words[0] not in SHELLS and LAUNCH not in words


def find(child: Child, entry: str) -> psutil.Process | None:
    """The topmost such process below mpirun."""
    with contextlib.suppress(psutil.Error, OSError):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if is_server(process.cmdline(), entry):
                    return process
    return None


async def watch(pod: Pod, child: Child) -> None:
    """Its end is the end of service, whatever mpirun does; returns when it is found."""
    mpi = pod.the_plan.mpi
    entry = entry_of(mpi.program) if mpi is not None and pod.the_plan.kind is Kind.SERVER else None
    if entry is None:
        return
    while child.alive:
        found = find(child, entry)
        if found is not None:
            on_end(found.pid, partial(_tell, pod, child, entry, found.pid))
            return
        await asyncio.sleep(LOOK_EVERY)


def _tell(pod: Pod, child: Child, entry: str, pid: int) -> None:
    pod.background(_ended(pod, child, entry, left_code(pid), pid))


async def _ended(pod: Pod, child: Child, entry: str, code: int | None, pid: int) -> None:
    await asyncio.sleep(CONSEQUENCE)
    if child.alive:
        how = "ended" if code is None else exits.describe(code)
        pod.emit(RankMissed(f"{entry} (pid {pid}) {how}, although nobody asked it to stop", child.keepsake.text()))
