"""The group that was there before: a real leader that was asked to stop, drains, and still has the leader's name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from launcher import ourselves
from launcher.simulate.life import Life
from launcher.simulate.screen import Screen
from launcher.simulate.spec import PREVIOUS, STOP, Spec, dump
from launcher.supervisor import Supervisor

# A leader that still gathers ends at once when it is asked to; one whose engine is slow to end lingers.
SLOW_TO_END = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]
LOOK_EVERY = 0.1  # seconds


class PreviousGroup:
    """A leader and one worker; a draining leader refuses joins before it looks at their size."""

    def __init__(
        self, spec: Spec, seconds: float, supervisor: Supervisor, screen: Screen, age: Callable[[], float]
    ) -> None:
        """seconds: how long the leader drains."""
        drain = [f"--drain-timeout={seconds}", "--drain-delay=0", "--backend=generic", "--kind=server"]
        self.spec = replace(
            spec,
            size=2,
            command=SLOW_TO_END,
            worker_command=None,
            start_options=[*(option for option in spec.start_options if option != "--smoke"), *drain],
            verb="start",
            faults=[],
            restart_policy=STOP,
        )
        self.supervisor = supervisor
        self.screen = screen
        self.age = age
        self.lives: list[Life] = []

    def records(self) -> dict[str, str]:
        """The leader's name, as long as it lives."""
        return {life.spec.host(0): life.ip for life in self.lives if life.alive and life.index == 0}

    async def drain_with(self, background: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """Let the group form, then delete it: returns when its leader drains."""
        file = Path(self.spec.directory) / "previous.json"
        file.touch(mode=0o600)
        file.write_text(dump(self.spec))
        self.screen.say("fault stale-leader: an earlier group forms first")
        for index in range(self.spec.size):
            self.spec.directory_of(index, PREVIOUS).mkdir()
            argv = ourselves.command("launcher.simulate.pod", str(file), str(index), str(PREVIOUS), "1")
            child = self.supervisor.spawn(self.spec.host(index), argv, dict(os.environ), merge=True)
            life = Life(self.spec, index, PREVIOUS, child, self.age)
            self.lives.append(life)
            background(life.follow(self.screen.show))
        background(self.tell_when_gone())
        await self.wait_for("serving")
        for life in self.lives:
            await life.signal(signal.SIGTERM)
        await self.wait_for("draining")
        if self.lives[0].alive:
            self.screen.say("fault stale-leader: the leader's name is that of the earlier leader, which is draining")

    def kill(self, background: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        for life in self.lives:
            background(life.signal(signal.SIGKILL))

    async def wait_for(self, phase: str) -> None:
        """Until the leader was in that phase, or has ended."""
        url = f"http://{self.lives[0].ip}:{self.spec.port}/group"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while self.lives[0].alive:
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
                    async with session.get(url) as response:
                        if phase in (await response.json()).get("phases", {}):
                            return
                await asyncio.sleep(LOOK_EVERY)

    async def tell_when_gone(self) -> None:
        while self.lives[0].alive:
            await asyncio.sleep(LOOK_EVERY)
        self.screen.say("fault stale-leader is over: the earlier leader has gone")
