"""On a terminal, a table below the pods' output: where every pod is, since when, and what it said last."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher import exits
from launcher.simulate.life import OWN, Life

REFRESH = 4  # a second
LEAST_ROWS = 3
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x1f\x7f]")  # of terminals: a pod's line must not move ours
COLOURS = dict.fromkeys(("serving", "done"), "green") | dict.fromkeys(
    ("smoke", "preparing", "prepared", "loading"), "yellow"
)


class LiveTable:
    """pods: the newest life of each, kept by the cluster; age: seconds since the simulation began.

    It is drawn by a thread of rich's own, so what it reads is copied first.
    """

    def __init__(self, console: Console, pods: Mapping[int, Life], size: int, age: Callable[[], float]) -> None:
        self.state: dict[str, Any] = {}  # the leader's /group
        self._pods, self._size, self._age = pods, size, age
        self._console = console
        self._lines: dict[int, str] = {}
        self._phases: dict[int, tuple[str, float]] = {}  # and since when
        self._live = Live(console=console, get_renderable=self.table, refresh_per_second=REFRESH, transient=True)

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def heard(self, index: int, line: bytes) -> None:
        """A line of the pod: an engine's progress bar ends with a carriage return, its last state counts."""
        last = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
        if line.startswith(OWN):
            last = last.partition("] ")[2] or last
        self._lines[index] = CONTROL.sub("", last)

    def table(self) -> Table:
        age, state, pods = self._age(), self.state, dict(self._pods)
        table = Table(title=f"{self._size} pods · {age:.0f} s", title_justify="left", expand=True)
        for heading in ("index", "IP", "phase", "since"):
            table.add_column(heading, no_wrap=True)
        table.add_column("last line", no_wrap=True, ratio=1, overflow="ellipsis")
        phases = {index: self._phase(index, pods.get(index), state, age) for index in range(self._size)}
        room = max(self._console.height // 2, LEAST_ROWS)
        # Where not all fit, those that have not got there yet are of interest.
        order = (
            sorted(phases, key=lambda index: (phases[index][0] == "serving", index)) if self._size > room else phases
        )
        shown = sorted(list(order)[:room])
        for index in shown:
            phase, since = phases[index]
            ip = pods[index].ip if index in pods else ""
            colour = COLOURS.get(phase, "red" if phase.startswith("exited") and phase != "exited 0" else "")
            row = (str(index), ip, Text(phase, colour), f"{age - since:.0f} s", Text(self._lines.get(index, "")))
            table.add_row(*row)
        left = Counter(phases[index][0] for index in phases.keys() - set(shown))
        if left:
            table.caption = "and " + ", ".join(f"{count} {phase}" for phase, count in left.most_common())
        return table

    def _phase(self, index: int, life: Life | None, state: dict[str, Any], age: float) -> tuple[str, float]:
        known = {member["index"]: str(member["phase"]) for member in state.get("members", [])}
        if life is None:
            phase = "not created"
        elif not life.alive:
            phase = exits.describe(life.code or 0)
        else:
            phase = known.get(index, "starting")
        if self._phases.get(index, ("", 0.0))[0] != phase:
            self._phases[index] = (phase, age)
        return self._phases[index]
