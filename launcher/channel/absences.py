"""What the leader knows of each place that is not taken: never seen, refused and why, or here before and gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from backends.group import member_name


class Absences:
    """Remembers the last thing that happened to each place; in bounded memory, because the indexes are real places."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[int, tuple[float, str]] = {}
        self._left: dict[int, tuple[float, str, str]] = {}

    def refused(self, index: int, reason: str) -> bool:
        """Note a refusal; whether it is another one than the last of this place."""
        news = index not in self._refused or self._refused[index][1] != reason
        self._refused[index] = (self._clock(), reason)
        return news

    def left(self, index: int, ip: str, how: str) -> None:
        self._left[index] = (self._clock(), ip, how)

    def joined(self, index: int) -> None:
        self._refused.pop(index, None)
        self._left.pop(index, None)

    def describe(self, missing: Iterable[int]) -> str:
        """The absent members by name, each with what is known; neighbours that were never seen together."""
        return ", ".join(self._parts(missing))

    def _parts(self, missing: Iterable[int]) -> Iterator[str]:
        def run(place: tuple[int, int]) -> object:
            # Neighbours have the same distance from their rank in the list.
            return place[1] - place[0] if self._why(place[1]) is None else (place[1], "known")

        for _, places in groupby(enumerate(missing), run):
            indexes = [index for _, index in places]
            first, last = indexes[0], indexes[-1]
            if first == last:
                yield f"{member_name(first)} ({self._why(first) or 'never seen'})"
            else:
                yield f"workers {first} to {last} (never seen)"

    def _why(self, index: int) -> str | None:
        refused, left = self._refused.get(index), self._left.get(index)
        parts = []
        if refused is not None:
            parts.append(f"refused: {refused[1]}")
        if left is not None:
            parts.append(f"was here and left {self._clock() - left[0]:.0f} s ago from {left[1]}: {left[2]}")
        return "; ".join(parts) or None
