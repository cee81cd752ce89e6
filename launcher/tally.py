"""What a pod counts from its first moment to its last, through every epoch: plain numbers, which cost no import.

/metrics (launcher/metrics.py) and /group show them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

# Seconds. From a quiet network to the five seconds after which a sender gives up; a round trip takes a millisecond, and
# more is the wait of a launcher that gets no CPU.
ROUND_TRIPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass
class Histogram:
    """How many observations fell below each bound, as Prometheus counts: counts[i] is of those in (bound i-1, i]."""

    bounds: tuple[float, ...] = ROUND_TRIPS
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Pairs of a bound and how many observations were not above it, the last bound being +Inf."""
        bounds = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


@dataclass
class Tally:
    """refused: joins by the refusal's code. failures: epochs that a failure ended, by failures.CAUSES.
    joined: how often each index was let in. round_trips: of heartbeats, in seconds."""

    refused: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    joined: Counter[int] = field(default_factory=Counter)
    round_trips: Histogram = field(default_factory=Histogram)
