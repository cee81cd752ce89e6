"""Restarts of the whole group in place: whether one more is left, how long to wait before it, how it begins."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from launcher.log import log
from launcher.report import Ending
from launcher.shared_memory import remove_new

if TYPE_CHECKING:
    from launcher.lifecycle import Pod

FIRST = 1.0  # seconds before the first restart; doubled for each that follows
LONGEST = 60.0


@dataclass(frozen=True)
class Restarts:
    """What the leader still grants. limit and used count restarts; reset is the time in seconds that the group must
    have served for its earlier restarts to be forgotten."""

    limit: int = 0
    reset: float = 600.0
    used: int = 0

    def after(self, served: float) -> Restarts:
        """What is granted when an epoch has failed that had served for so many seconds, 0 if it never did."""
        return replace(self, used=0) if served > 0 and served >= self.reset else self

    @property
    def left(self) -> bool:
        return self.used < self.limit

    def one_more(self, jitter: Callable[[], float] = random.random) -> tuple[Restarts, float]:
        """One restart taken, and the seconds to wait before it: with jitter, so that groups do not fall in step."""
        wait = min(FIRST * 2**self.used, LONGEST) * (0.5 + jitter())
        return replace(self, used=self.used + 1), wait


def restarted(pod: Pod, ending: Ending) -> Ending:
    """The leader's word on whether a failure ends the pods or only this epoch."""
    leads = pod.group is not None and pod.group.is_leader
    if not ending.failed or ending.final or not leads or pod.signals or pod.settings.exec:
        return ending
    pod.restarts = pod.restarts.after(time.monotonic() - pod.served_since if pod.served_since else 0.0)
    if not pod.restarts.left:
        return ending
    pod.restarts, wait = pod.restarts.one_more()
    log.warning("restart %d of %d in place (--max-restarts)", pod.restarts.used, pod.restarts.limit)
    return replace(ending, restart=wait)


async def begin_epoch(pod: Pod) -> None:
    """Wait for a later epoch's time, with nothing left of the epoch before."""
    pod.enter("restarting")
    with contextlib.suppress(OSError):
        os.chdir(pod.supervisor.directory)
    removed = remove_new(pod.shared_memory)
    if removed:
        log.info("removed from /dev/shm, where the engine had left them: %s", ", ".join(removed))
    await asyncio.sleep(pod.pause)
    pod.paused = pod.age()
    log.info("epoch %d begins", pod.epoch)
