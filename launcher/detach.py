"""`--exec`: once every member is prepared, the launchers leave the channel and become their engines; all or none."""

from __future__ import annotations

import asyncio
import shlex
import signal
from typing import TYPE_CHECKING, NoReturn

from backends.group import member_name
from backends.plan import Main
from launcher import kernel
from launcher import log as logs
from launcher.channel.messages import Detach, Detached, Prepared
from launcher.gates import GateFailed
from launcher.log import log
from launcher.report import cannot_start
from launcher.spawn import execute
from launcher.supervisor import CannotStart

if TYPE_CHECKING:
    from launcher.lifecycle import Pod

HANG_UP = 10.0  # seconds in which every member has detached once it was told


async def detach(pod: Pod) -> None:
    """Agree with the group, then become the engine. Returns only where services are the pod's whole part.

    Raises GateFailed when a member does not follow; ConfigError when the engine cannot be executed.
    """
    pod.enter("prepared")
    if pod.leader is not None:
        await pod.leader.wait_prepared()
        await pod.leader.tell_all(Detach())
        silent = await pod.leader.wait_empty(HANG_UP)
        if silent:
            raise GateFailed(f"not detached within {HANG_UP:g} s: {', '.join(map(member_name, silent))}")
        pod.leader = None
    elif pod.member is not None:
        await pod.member.tell(Prepared())
        await pod.member.may_detach.wait()
        await pod.member.tell(Detached())
        await pod.member.close()
        pod.member = None
    if pod.watchers is not None:
        await pod.watchers.close()
        pod.watchers = None
    main = pod.the_plan.main
    if main is None:
        log.info("detached: this pod's part is %s; nobody watches its peers from here on", ", ".join(pod.children))
        return
    await _become(pod, main)


async def _become(pod: Pod, main: Main) -> NoReturn:
    try:
        path = pod.supervisor.locate(main.argv[0], pod.environ())
    except CannotStart as error:
        raise cannot_start(error) from None
    log.info("becoming: %s", shlex.join(main.argv))
    logs.drain()
    # A SIGTERM that has come by now is for us; taking it cancels this coroutine.
    while not pod.events.empty() or signal.sigpending():
        await asyncio.sleep(0.01)
    kernel.be_subreaper(False)  # the engine would inherit it, and reaps no strangers
    try:
        execute(path, list(main.argv), pod.environ())
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        raise cannot_start(CannotStart(f"{path} cannot be executed: {error.strerror}")) from error
