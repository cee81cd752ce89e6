"""Carries faults out on pods that live, and undoes them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Mapping

import psutil

from backends.group import member_name
from launcher.simulate import namespaces
from launcher.simulate.faults.schedule import INJECTED
from launcher.simulate.life import Life
from launcher.simulate.screen import Screen
from launcher.simulate.spec import RESTART, Fault, Spec, order_file

LOOK_EVERY = 0.02  # seconds


class Injector:
    """What is broken now. Of two that overlap on one pod, the one that ends last mends it."""

    def __init__(
        self, spec: Spec, screen: Screen, pods: Mapping[int, Life], moments: Mapping[str, asyncio.Event]
    ) -> None:
        """pods: the newest life of each pod, kept by the cluster. ahead: what has not happened yet."""
        self.ahead = [fault for fault in spec.faults if fault.what in INJECTED]
        self._spec = spec
        self._screen = screen
        self._pods = pods
        self._moments = moments
        self._cut: Counter[str] = Counter()  # by address: a pod keeps it when its container is restarted
        self._frozen: Counter[Life] = Counter()
        self._ordered: dict[int, Fault] = {}  # index -> the last engine-exit
        self._wiring = asyncio.Lock()

    def connected(self, ip: str) -> bool:
        """Whether no partition cuts off the pod with that address; its link is made accordingly."""
        return not self._cut[ip]

    async def inject(self, fault: Fault) -> None:
        """Break it when its moment has come and its pod is there; mend it when it is over."""
        await self._moments[fault.since].wait()
        await asyncio.sleep(fault.after)
        if fault.index not in self._pods:
            self._screen.say(f"fault {fault.text} waits until {member_name(fault.index)} is created")
        life = await self._present(fault.index)
        self.ahead.remove(fault)
        if self._gone(life) or (not life.alive and fault.what != "partition"):
            self._no_process(fault, life)
        elif fault.what == "partition":
            await self._partition(fault, life)
        elif fault.what == "engine-exit":
            self._screen.say(f"fault engine-exit: the engine in {where(life)} is to end with {fault.code}")
            order_file(self._spec, life.index).write_text(str(fault.code))
            self._ordered[life.index] = fault
        else:
            await self._signal(fault, life)

    def tell_rest(self) -> None:
        """The simulation has ended: what had not happened by then."""
        for fault in self.ahead:
            why = "the simulation had ended by then"
            if not self._moments[fault.since].is_set():
                why = f"the group was not seen to be {fault.since}"
            elif fault.index not in self._pods:
                why = f"{member_name(fault.index)} was never created"
            self._did_not_happen(fault, why)
        for index in self._ordered:
            self._withdraw(index)

    def _withdraw(self, index: int) -> None:
        """The order to an engine that nobody has carried out."""
        order = order_file(self._spec, index)
        if order.exists():
            order.unlink()
            self._did_not_happen(self._ordered[index], "no engine was there to end so")

    def _did_not_happen(self, fault: Fault, why: str) -> None:
        self._screen.say(f"fault {fault.text} did not happen: {why}")

    def _no_process(self, fault: Fault, life: Life) -> None:
        waits = self._spec.restart_policy == RESTART
        why = f"the container of {life.name} waits for its restart" if waits else f"{life.name} has already ended"
        self._did_not_happen(fault, why)

    def tell_of_new(self, life: Life, earlier: Life) -> None:
        """What becomes of the faults that an earlier life of the pod had: a new one begins."""
        self._withdraw(life.index)
        same = life.ip == earlier.ip
        if self._frozen[earlier]:
            self._screen.say(f"fault freeze is over: the new {'container' if same else 'pod'} of {life.name} runs")
        if not self.connected(earlier.ip):
            told = f"goes on: the link of {where(life)} is cut" if same else f"is over: {where(life)} is a new one"
            self._screen.say(f"fault partition {told}")

    async def _partition(self, fault: Fault, life: Life) -> None:
        self._screen.say(f"fault partition: the link of {where(life)} drops everything")
        self._cut[life.ip] += 1
        await self._wire(life)
        if fault.lasts is None:
            return
        await asyncio.sleep(fault.lasts)
        self._cut[life.ip] -= 1
        if self._pods[life.index].ip != life.ip or self._gone(life):
            return
        if not self.connected(life.ip):
            self._screen.say(f"fault partition is over, another one in {where(life)} goes on")
            return
        await self._wire(life)
        self._screen.say(f"fault partition is over: the link of {where(life)} carries again")

    def _gone(self, life: Life) -> bool:
        """Whether the pod is no more; one whose container waits for its restart is there, with its link."""
        return self._spec.restart_policy != RESTART and not life.alive

    async def _wire(self, life: Life) -> None:
        """Put the link of the pod's present container on the bridge or off it."""
        present = await self._present(life.index)
        async with self._wiring:
            # In a thread: the netlink library runs an event loop of its own.
            link = self._spec.link(present.index, present.generation)
            await asyncio.to_thread(namespaces.connect, link, self.connected(present.ip))

    async def _signal(self, fault: Fault, life: Life) -> None:
        try:
            launcher = psutil.Process(life.pid())
            # The kernel ends a PID namespace with its PID 1: killing that one is killing the pod.
            victims, number = {
                "kill": ([launcher], signal.SIGKILL),
                "kill-engine": (launcher.children(), signal.SIGKILL),
                "term": ([launcher], signal.SIGTERM),
                "freeze": ([launcher, *launcher.children(recursive=True)], signal.SIGSTOP),
            }[fault.what]
        except psutil.NoSuchProcess:
            self._no_process(fault, life)
            return
        if not victims:
            self._did_not_happen(fault, f"nothing runs under the launcher of {life.name}")
            return
        self._screen.say(f"fault {fault.what}: {number.name} in {where(life)}")
        send(victims, number)
        if fault.what != "freeze":
            return
        self._frozen[life] += 1
        if fault.lasts is None:
            return
        await asyncio.sleep(fault.lasts)
        self._frozen[life] -= 1
        if not life.alive:
            return
        if self._frozen[life]:
            self._screen.say(f"fault freeze is over, another one in {where(life)} goes on")
            return
        send(victims, signal.SIGCONT)
        self._screen.say(f"fault freeze is over: SIGCONT in {where(life)}")

    async def _present(self, index: int) -> Life:
        """The pod's newest life, when it has a PID 1 or has ended."""
        while (life := self._pods.get(index)) is None or (life.alive and life.pid() is None):
            await asyncio.sleep(LOOK_EVERY)
        return life


def where(life: Life) -> str:
    return f"the pod of {life.name}"


def send(victims: list[psutil.Process], number: signal.Signals) -> None:
    for victim in victims:
        with contextlib.suppress(psutil.Error):
            victim.send_signal(number)
