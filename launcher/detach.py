"""`--exec`: once every member is prepared, the launchers leave the channel and become their engines; all or none."""

from __future__ import annotations

import asyncio
import shlex
import signal
from typing import TYPE_CHECKING, NoReturn

from backends.group import member_names
from backends.plan import Main
from launcher import kernel
from launcher import log as logs
from launcher.channel.messages import Become, Detach, Prepared
from launcher.gates import GateFailed
from launcher.log import log
from launcher.report import cannot_start
from launcher.spawn import execute
from launcher.supervisor import CannotStart
from launcher.waiting import saying

if TYPE_CHECKING:
    from launcher.lifecycle import Pod

DETACH = 10.0  # seconds in which every member has detached once it was told


async def detach(pod: Pod) -> None:
    """Agree with the group, then become the engine. Returns only where services are the pod's whole part.

    Raises GateFailed when a member does not follow; ConfigError when the engine cannot be executed.
    """
    if pod.settings.hang_timeout is not None and pod.member is None:
        log.warning("--hang-timeout does nothing with --exec: nobody is left to watch the engine")
    pod.enter("prepared")
    every = pod.settings.report_every
    if pod.leader is not None:
        leader = pod.leader
        async with saying(every, lambda: f"until all are prepared: {member_names(leader.not_yet('prepared'))} missing"):
            await leader.wait_all("prepared")
        await leader.tell_all(Detach())
        try:
            async with asyncio.timeout(DETACH):
                await leader.wait_all("detached")
        except TimeoutError:
            late = member_names(leader.not_yet("detached"))
            raise GateFailed(f"not detached within {DETACH:g} s: {late}") from None
        # From here on all will: what ends now is not taken for death.
        await leader.tell_all(Become())
        await leader.wait_empty(DETACH)
        pod.leader = None
    elif pod.member is not None:
        await pod.member.tell(Prepared())
        async with saying(every, lambda: "until all members are prepared"):
            await pod.member.may_become.wait()
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
    # A SIGTERM that has come by now is for us, and so is the end of a service; taking either cancels this coroutine.
    while not pod.events.empty() or signal.sigpending() or not all(child.alive for child in pod.children.values()):
        await asyncio.sleep(0.01)
    kernel.be_subreaper(False)  # the engine would inherit it, and reaps no strangers
    try:
        execute(path, list(main.argv), pod.environ())
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        raise cannot_start(CannotStart(f"{path} cannot be executed: {error.strerror}")) from error
