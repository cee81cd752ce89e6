"""The start-up watchdog: a daemon that cannot call the leader back leaves mpirun waiting for ever, without a word."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import psutil

from backends.group import member_name
from backends.plan_mpi import Mpi
from launcher.gates import GateFailed
from launcher.waiting import saying

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.mpi.ranks import Ranks
    from launcher.supervisor import Child

LOOK_EVERY = 0.5  # seconds
SHOWN = 16


async def await_daemons(pod: Pod, ranks: Ranks, mpirun: Child) -> None:
    """Returns when the ranks start, or mpirun ends. Raises GateFailed after --mpi-timeout.

    mpirun starts ranks when every daemon has called back, not before: the first rank in this pod says that all have.
    """
    mpi = pod.the_plan.mpi
    assert mpi is not None
    loop = asyncio.get_running_loop()
    until, reached = loop.time() + mpi.timeout, set[str]()
    async with saying(pod.settings.report_every, lambda: f"until mpirun's daemons call back: {_who(mpi, reached)}"):
        while mpirun.alive and not ranks.seen:
            reached |= callers(mpirun.pid)
            if loop.time() >= until:
                raise GateFailed(_blocked(pod, mpi, reached))
            await asyncio.sleep(LOOK_EVERY)


def callers(pid: int) -> set[str]:
    """The addresses with which mpirun is connected."""
    with contextlib.suppress(psutil.Error, OSError):
        found = psutil.Process(pid).net_connections("tcp")
        return {each.raddr.ip.removeprefix("::ffff:") for each in found if each.raddr and each.status == "ESTABLISHED"}
    return set()


def _who(mpi: Mpi, reached: set[str]) -> str:
    missing = [f"{member_name(host.index)} ({host.ip})" for host in mpi.workers if host.ip not in reached]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return ", ".join(missing[:SHOWN]) + more


def _blocked(pod: Pod, mpi: Mpi, reached: set[str]) -> str:
    ports = pod.settings.options.mpi.ports
    which = (
        f"TCP ports {ports[0]} to {ports[1]} (--mpi-ports)"
        if ports
        else "all TCP ports, or those that --mpi-ports FIRST-LAST names,"
    )
    who = _who(mpi, reached)
    if not who:
        return f"all daemons have called mpirun back, but no rank was started within {mpi.timeout:g} s (--mpi-timeout)"
    return (
        f"mpirun's daemon has not called back within {mpi.timeout:g} s (--mpi-timeout) from {who}: a NetworkPolicy must"
        f" open {which} between all pods of the group"
    )
