"""A smoke run that goes before the engine, in the same group; and what any smoke run needs of the image."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from backends import smoke
from backends.errors import ConfigError, Fault
from backends.planner import make_plan
from launcher import exits
from launcher.gates import GateFailed
from launcher.log import log
from launcher.supervisor import CannotStart, Supervisor

if TYPE_CHECKING:
    from launcher.lifecycle import Pod

SCRIPT = str(Path(__file__).with_name("collectives.py"))
LOOK = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('torch') else 3)"
LOOK_TIMEOUT = 30.0  # seconds; no probe is answered before
GONE = 10.0  # seconds that a killed process may take to leave its GPU
LAST_WORDS = 1.0  # seconds


async def require_torch(supervisor: Supervisor, python: str, environ: Mapping[str, str]) -> None:
    """Raises ConfigError for an image without PyTorch, before anybody waits for it."""
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            code, _ = await supervisor.run("torch", (python, "-c", LOOK), environ)
    except TimeoutError:
        log.warning("%s did not say within %g s whether it has PyTorch: the smoke run will show", python, LOOK_TIMEOUT)
        return
    except CannotStart as error:
        raise ConfigError(Fault(str(error), "the image's Python, with PyTorch", error.remedy)) from None
    if code:
        raise ConfigError(
            Fault(
                f"a smoke run needs PyTorch, which {python} has not",
                "the engine's image, whose Python has it",
                "name another Python with `lwsrun smoke --python`, or leave --smoke out",
            )
        )


async def smoke_first(pod: Pod) -> None:
    """Measure the group, and return when it is fit and nothing of that is left. Raises GateFailed."""
    assert pod.request is not None
    pod.enter("smoke")
    plan = make_plan(smoke.before(pod.request, pod.the_node.python, SCRIPT))
    assert plan.main is not None
    for note in (*plan.decisions, *plan.notes):
        log.info("%s", note)
    log.info("running: %s", shlex.join(plan.main.argv))
    began = time.monotonic()
    child = pod.supervisor.spawn("smoke", plan.main.argv, plan.environ(pod.settings.environ))
    code = await asyncio.shield(child.exited)
    await asyncio.to_thread(child.join_output, LAST_WORDS)
    if code:
        line = child.keepsake.line(plan.main.fails_with)
        raise GateFailed(line or f"the smoke run {exits.describe(code)}; {child.keepsake.text()}")
    await wait_gone(child.pid)
    log.info("the smoke run took %.1f s", time.monotonic() - began)
    pod.smoke_due = None


async def wait_gone(session: int) -> None:
    """Until no process of the session is left. Raises GateFailed."""
    end = time.monotonic() + GONE
    while left := await asyncio.to_thread(_of_session, session):
        if time.monotonic() > end:
            raise GateFailed(f"still there after the smoke run: pid {', '.join(map(str, left))}")
        await asyncio.sleep(0.1)


def _of_session(session: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            found += [pid] * (os.getsid(pid) == session)
    return found
