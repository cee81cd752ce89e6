"""Lines about whoever was turned away: each is told once in a while, so that a flood of them does not flood the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.log import log

EVERY = 60.0  # seconds
AT_MOST = 20  # different ones within that time


class Complaints:
    """Tells each subject once in EVERY seconds, AT_MOST subjects in all; the others are counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: set[str] = set()
        self._since = clock()
        self._untold = 0

    def tell(self, subject: str, what: str) -> None:
        """subject is what the complaint is about, such as an address; it is remembered for a short time only."""
        now = self._clock()
        if now - self._since >= EVERY:
            if self._untold:
                log.warning("%d more like these were turned away", self._untold)
            self._told, self._since, self._untold = set(), now, 0
        if subject in self._told or len(self._told) >= AT_MOST:
            self._untold += 1
            return
        self._told.add(subject)
        log.warning("%s", what)
