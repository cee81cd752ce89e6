"""How a launch over MPI is asked to end: mpirun's own way gives the ranks 0.25 to 4 s, and kills.

So mpirun is asked last. A server is asked alone and gets the time, while all its ranks still work for it. The ranks of
a job are asked in every pod, each by its own launcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil

from backends.plan import Kind
from launcher.gates import refuses
from launcher.log import log
from launcher.mpi import server

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.supervisor import Child

LADDER = (
    4.0  # seconds that mpirun takes to end everything: Open MPI 4 asks, waits, kills, and asks the workers' daemons
)
AGAIN = 2.0  # seconds between two SIGTERMs to a server that may have lost the first while it starts
LOOK_EVERY = 0.1


async def ask_first(pod: Pod, mpirun: Child, left: Callable[[], float]) -> None:
    """Let the server, or the ranks, end in their own time; returns when they have, or when mpirun's time has come."""
    ladder = min(LADDER, left() / 3)
    if pod.the_plan.kind is Kind.JOB:
        if pod.mpi is not None:
            pod.mpi.ranks.terminate()
        while mpirun.alive and left() > ladder:
            await asyncio.wait([mpirun.exited], timeout=LOOK_EVERY)
        return
    process = serving(pod, mpirun)
    if process is None:
        log.info("no server is there yet to be asked: mpirun ends its ranks")
        return
    mpi = pod.the_plan.mpi
    name = (server.entry_of(mpi.program) if mpi else None) or "rank 0"
    log.info("asking %s (pid %d) to end, and mpirun after it", name, process.pid)
    main, asked, heard = pod.the_plan.main, 0.0, False
    loop = asyncio.get_running_loop()
    while mpirun.alive and process.is_running() and _runs(process) and left() > ladder:
        if not heard and loop.time() >= asked + AGAIN:
            heard = main is None or main.serves is None or await refuses(main.serves, timeout=0.5) is None
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
            asked = loop.time()
        await asyncio.sleep(LOOK_EVERY)


def serving(pod: Pod, mpirun: Child) -> psutil.Process | None:
    """The process that answers requests: that of trtllm-llmapi-launch, else rank 0."""
    mpi = pod.the_plan.mpi
    entry = server.entry_of(mpi.program) if mpi is not None else None
    if entry is not None:
        return server.find(mpirun, entry)
    zero = pod.mpi.ranks.zero() if pod.mpi is not None else None
    with contextlib.suppress(psutil.Error):
        return psutil.Process(zero) if zero is not None else None
    return None


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
