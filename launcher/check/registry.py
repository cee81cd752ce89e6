"""All checks, in the order in which they are told; each is bounded, and none that fails keeps the others from it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable

from launcher.check import command, group, image, limits, node, ports
from launcher.check.result import Result, failed
from launcher.check.scene import Scene

Check = Callable[[Scene], Iterable[Result] | Awaitable[Iterable[Result]]]

LIMIT = 75.0  # seconds for one check; what it asks of a child has a shorter limit of its own
SLOW = {"parser": command.PARSE + 15}
CHECKS: dict[str, Check] = {
    "identity": group.identity,
    "leader": group.leader,
    "token": group.token,
    "program": command.program,
    "engine": image.engine,
    "plan": command.plan,
    "layout": command.layout,
    "parser": command.parser,
    "ray": image.ray,
    "mpi": image.mpi,
    "gpus": node.gpus,
    "shm": limits.shared_memory,
    "memlock": limits.locked_memory,
    "nofile": limits.open_files,
    "interface": node.interface,
    "rdma": node.rdma,
    "ports": ports.ports,
    "environment": group.environment,
    "pid-1": limits.pid_1,
    "termination-log": limits.termination_log,
}
OUR_FAULT = "this is a fault of lwsrun: report it with this line; the other checks stand"


async def run_all(scene: Scene) -> list[Result]:
    """What every check found, in order."""
    return [result for name, check in CHECKS.items() for result in await run_one(name, check, scene)]


async def run_one(name: str, check: Check, scene: Scene) -> list[Result]:
    """Never raises, and never takes longer than its limit: a thread that hangs is left behind."""
    limit = SLOW.get(name, LIMIT)
    try:
        async with asyncio.timeout(limit):
            if inspect.iscoroutinefunction(check):
                results = list(await check(scene))
            else:
                results = await asyncio.to_thread(lambda: list(check(scene)))  # type: ignore[arg-type]
    except TimeoutError:
        return [
            failed(name, f"no answer within {limit:g} s", "something that it asked hangs: look at disks and drivers")
        ]
    except Exception as error:
        return [failed(name, f"this check itself failed: {error!r}", OUR_FAULT)]
    return results or [failed(name, "this check itself failed: it said nothing", OUR_FAULT)]
