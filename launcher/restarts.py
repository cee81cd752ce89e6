"""Restarts of the whole group in place: whether one more is left, and how long to wait before it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

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
