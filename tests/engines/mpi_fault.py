"""A rank of the failure tests: `mpi_fault.py WHAT RANK`. When all are up, that one breaks something; all others wait.

Each says "rank N is up" and, right before the fault, "fault at SECONDS" (of the day, as the launchers' logs tell it).
"""

import os
import signal
import sys
import time
from pathlib import Path

from mpi4py import MPI

SURVIVORS = ("mpi_fault.py",)


def say(text: str) -> None:
    os.write(1, (text + "\n").encode())


def named(name: str) -> list[int]:
    """The processes of this pod with such a name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, _ = path.read_text().rpartition(")")
        except OSError:
            continue
        if head.partition("(")[2].startswith(name):
            found.append(int(path.parent.name))
    return found


def earlier(universe: str) -> list[int]:
    """Ranks in this pod of another launch than ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environ = path.read_bytes().split(b"\0")
        except OSError:
            continue
        mine = [entry.partition(b"=")[2].decode() for entry in environ if entry.startswith(b"PMIX_NAMESPACE=")]
        if mine and mine[0] != universe:
            found.append(int(path.parent.name))
    return found


def main(what: str, who: int) -> None:
    rank = MPI.COMM_WORLD.rank
    MPI.COMM_WORLD.Barrier()
    say(f"rank {rank} is up; of other launches: {earlier(os.environ['PMIX_NAMESPACE'])}")
    if what in ("term", "patient"):
        signal.signal(signal.SIGTERM, lambda *_: leave(rank, 3 if what == "patient" else 0))
    elif rank == who:
        time.sleep(1.5)  # a worker's launcher has seen its ranks by then
        now = time.time()
        say(f"fault at {now % 86400 - time.timezone}")
        if what == "exit":
            os.write(2, b"Traceback (most recent call last):\nRuntimeError: CUDA error\n")
            os._exit(7)
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "parent":
            os.kill(os.getppid(), signal.SIGKILL)
        elif what != "wait":
            for pid in named(what):
                os.kill(pid, signal.SIGKILL)
    while True:
        time.sleep(60)


def leave(rank: int, after: float) -> None:
    time.sleep(after)
    say(f"rank {rank} leaves")
    MPI.Finalize()  # else mpirun takes it for a failure and ends the others
    os._exit(0)


main(sys.argv[1], int(sys.argv[2]))
