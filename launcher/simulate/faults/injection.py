"""Carries a fault out on a pod that lives, and undoes it."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import psutil

from launcher.simulate import namespaces
from launcher.simulate.life import Life
from launcher.simulate.screen import Screen
from launcher.simulate.spec import Fault, order_file


async def inject(fault: Fault, life: Life, pid: int, screen: Screen) -> None:
    """Break it now; pid is the pod's PID 1. Mend it after fault.lasts seconds, where that is asked for."""
    where = f"the pod of {life.name}"
    link = life.spec.link(life.index, life.generation)
    victims: list[psutil.Process] = []
    if fault.what == "engine-exit":
        screen.say(f"fault engine-exit: the engine in {where} is to end with {fault.code}")
        order_file(life.spec, life.index).write_text(str(fault.code))
    elif fault.what == "partition":
        screen.say(f"fault partition: the link of {where} drops everything")
        await _connect(link, False)
    else:
        launcher = psutil.Process(pid)
        # The kernel ends a PID namespace with its PID 1: killing that one is killing the pod.
        victims, number = {
            "kill": ([launcher], signal.SIGKILL),
            "kill-engine": (launcher.children(), signal.SIGKILL),
            "term": ([launcher], signal.SIGTERM),
            "freeze": ([launcher, *launcher.children(recursive=True)], signal.SIGSTOP),
        }[fault.what]
        screen.say(f"fault {fault.what}: {number.name} in {where}")
        _signal(victims, number)
    if fault.lasts is None:
        return
    await asyncio.sleep(fault.lasts)
    if not life.alive:
        return
    if fault.what == "partition":
        await _connect(link, True)
        screen.say(f"fault partition is over: the link of {where} carries again")
    else:
        _signal(victims, signal.SIGCONT)
        screen.say(f"fault {fault.what} is over: SIGCONT in {where}")


def _signal(victims: list[psutil.Process], number: signal.Signals) -> None:
    for victim in victims:
        with contextlib.suppress(psutil.Error):
            victim.send_signal(number)


async def _connect(link: str, connected: bool) -> None:
    # In a thread: the netlink library runs an event loop of its own.
    await asyncio.to_thread(namespaces.connect, link, connected)
