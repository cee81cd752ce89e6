"""What is seen of a group from outside: the leader's /group, as people would watch it, and its /readyz."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import aiohttp

from launcher.simulate.faults.schedule import MOMENTS
from launcher.simulate.life import Life
from launcher.simulate.screen import Screen
from launcher.simulate.spec import LEADER_READY, Spec

POLL = 0.2  # seconds between looks at /group
PROBE = 1.0  # seconds between looks at /readyz, as a readinessProbe with periodSeconds: 1


class Observer:
    """moments: what the schedule waits for; each comes once. leader_ready: of the present generation."""

    def __init__(self, spec: Spec, screen: Screen, pods: Mapping[int, Life]) -> None:
        """pods: the newest life of each pod, kept by the cluster."""
        self.spec = spec
        self.moments: dict[str, asyncio.Event] = {name: asyncio.Event() for name in MOMENTS}
        self.leader_ready = asyncio.Event()
        self.state: dict[str, Any] = {}
        self._screen = screen
        self._pods = pods

    def leader_ip(self) -> str:
        return self._pods[0].ip if 0 in self._pods else self.spec.ip(0)

    async def watch_group(self) -> None:
        """Follow the leader's /group for ever."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
                    async with session.get(f"http://{self.leader_ip()}:{self.spec.port}/group") as response:
                        self.state = await response.json()
                        self._take_state()
                await asyncio.sleep(POLL)

    def _take_state(self) -> None:
        reached = self.state.get("phases", {})
        self._screen.status(self.state)
        if "formed" in reached or self.spec.size == 1:
            self.moments["formed"].set()
        if "loading" in reached or "serving" in reached:
            self.moments["loading"].set()
        if "serving" in reached and not self.moments["serving"].is_set():
            self.moments["serving"].set()
            self._screen.table(self.state)

    async def probe_leader(self) -> None:
        """With LeaderReady: the leader's readinessProbe, by which the controller creates the workers."""
        if self.spec.startup_policy != LEADER_READY:
            return
        told: tuple[Life, str] | None = None
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE)) as session:
            while True:
                await asyncio.sleep(PROBE)
                leader = self._pods.get(0)
                if leader is None or self.leader_ready.is_set():
                    continue
                answer = "no answer"
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with session.get(f"http://{leader.ip}:{self.spec.port}/readyz") as response:
                        answer = "ready" if response.status == 200 else (await response.text()).strip()
                if self._pods.get(0) is not leader:
                    continue  # it was recreated meanwhile
                if answer == "ready":
                    self.leader_ready.set()
                if (leader, answer) != told:
                    told = (leader, answer)
                    what = "the workers are created" if answer == "ready" else f"no workers yet ({answer})"
                    self._screen.say(f"{LEADER_READY}: {what}")
