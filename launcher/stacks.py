"""What a hung engine's processes are doing: their states, and the Python stacks of those that tell them.

Bounded in time and size, and with no signal that could end a process: py-spy where the image has it, else SIGUSR1 to a
process with a handler for it, which is what faulthandler.register is used with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.log import log
from launcher.supervisor import CannotStart, Supervisor

LIMIT = 10.0  # seconds for all stacks
EACH = 5.0  # for one stack
PROCESSES = 32  # whose stacks are taken; those of a node with 8 GPUs are some 20
BYTES = 8 * 1024  # of each stack
LOOK_AGAIN = 0.5  # seconds; many a process is uninterruptible for a moment
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting in the kernel, uninterruptible"}
SIGNAL = signal.SIGUSR1


@dataclass(frozen=True)
class Process:
    """One that runs below the launcher. state is the kernel's letter: proc_pid_stat(5)."""

    pid: int
    name: str
    state: str
    python: bool

    @property
    def odd(self) -> str:
        """Its state in words, where a working process is never in it for long."""
        return f"{self.name} (pid {self.pid}) is {STATES[self.state]} (state {self.state})"


async def inspect(supervisor: Supervisor, environ: Mapping[str, str]) -> str:
    """Log the states and stacks of all processes below this launcher. Which of them are stopped, in words; or ""."""
    before = {process.pid: process.state for process in _below()}
    await asyncio.sleep(LOOK_AGAIN)
    after = _below()
    odd = [process for process in after if process.state in STATES and before.get(process.pid) == process.state]
    table = "\n".join(f"{p.pid:8} {p.state} {_waits_in(p.pid):24} {p.name}" for p in after)
    log.error("the engine's processes (pid, state, where in the kernel, name):\n%s", table or "none")
    # The odd ones first: what the others wait for.
    python = [process for process in (*odd, *(p for p in after if p not in odd)) if process.python]
    try:
        async with asyncio.timeout(LIMIT):
            await _tell_stacks(supervisor, environ, python[:PROCESSES])
    except TimeoutError:
        log.error("not all stacks were to be had within %g s", LIMIT)
    return ", ".join(process.odd for process in odd[:4]) + (f" and {len(odd) - 4} more" if len(odd) > 4 else "")


async def _tell_stacks(supervisor: Supervisor, environ: Mapping[str, str], processes: list[Process]) -> None:
    program = shutil.which("py-spy", path=environ.get("PATH")) or next(filter(None, map(_beside, processes)), None)
    if program is not None:
        few = asyncio.Semaphore(4)

        async def tell(process: Process) -> None:
            async with few:
                log.error("%s (pid %d):\n%s", process.name, process.pid, await _dump(supervisor, program, process.pid))

        await asyncio.gather(*map(tell, processes))
        return
    told = [process for process in processes if process.state not in STATES and _handles(process.pid)]
    for process in told:
        with contextlib.suppress(OSError):
            os.kill(process.pid, SIGNAL)
    names = ", ".join(f"{process.name} (pid {process.pid})" for process in told)
    log.error(
        "the image has no py-spy: %s",
        f"asked by {SIGNAL.name} for their stacks: {names}" if told else "no stacks (pip install py-spy)",
    )
    if told:
        await asyncio.sleep(1.0)  # until they have written them, to their own stderr


async def _dump(supervisor: Supervisor, program: str, pid: int) -> str:
    # Not stopped for it: a process that is stopped already would stay so.
    argv = (program, "dump", "--nonblocking", "--pid", str(pid))
    try:
        child = supervisor.spawn("py-spy", argv, os.environ, merge=True)
    except (CannotStart, OSError) as error:
        return str(error)
    assert child.stdout is not None
    try:
        async with asyncio.timeout(EACH):
            text = await child.stdout.read()
            await asyncio.shield(child.exited)
    except TimeoutError:
        return f"py-spy gave no stack within {EACH:g} s"
    finally:
        if child.alive:
            supervisor.signal(child, signal.SIGKILL)
    return text[:BYTES].decode(errors="replace").rstrip()


def _below() -> list[Process]:
    found = []
    with contextlib.suppress(psutil.Error, OSError):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
                state = stat.rpartition(")")[2].split()[0]
                if state not in ("Z", "X"):
                    found.append(Process(process.pid, process.name(), state, _is_python(process.pid)))
    return found


def _is_python(pid: int) -> bool:
    """By its program: vLLM's and SGLang's processes give themselves names of their own."""
    return os.path.basename(_program(pid)).startswith("python")


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _beside(process: Process) -> str | None:
    """py-spy in the virtual environment of that process's Python."""
    with contextlib.suppress(psutil.Error, OSError):
        argv = psutil.Process(process.pid).cmdline()
        candidates = (os.path.dirname(word) for word in argv[:2] if os.path.isabs(word))
        return next((found for place in candidates if (found := shutil.which("py-spy", path=place))), None)
    return None


def _handles(pid: int) -> bool:
    """Whether it has a handler for the signal: without one it would end."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return False
    return bool(caught >> (SIGNAL - 1) & 1)


def _waits_in(pid: int) -> str:
    try:
        where = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:
        return "-"
    return where if where not in ("", "0") else "-"
