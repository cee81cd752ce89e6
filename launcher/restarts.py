"""Restarts of the whole group in place: whether one more is left, and how long to wait before it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backends.plan import Main
from launcher.drain import MAIN
from launcher.gates import refuses

if TYPE_CHECKING:
    from launcher.lifecycle import Pod

FIRST = 1.0  # seconds before the first restart; doubled for each that follows
LONGEST = 60.0
LOOK_EVERY = 2.0


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


async def note_service(pod: Pod, main: Main) -> None:
    """Loading a model is no service yet: restarts are forgotten only after the engine has answered for a while."""
    while main.serves is not None and await refuses(main.serves) is not None:
        await asyncio.sleep(LOOK_EVERY)
    pod.served_since = time.monotonic()
    if main.serves is not None:
        pod.children[MAIN].keepsake.forget()  # it serves in spite of it: SGLang logs each early look at itself
