"""What a simulation shows: the pods' output behind coloured names, the group's table, the summary."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.simulate.life import Life
from launcher.simulate.live import LiveTable
from launcher.simulate.spec import STOP, Spec

COLOURS = (36, 33, 35, 32, 34, 31, 96, 93, 95, 92, 94, 91)


class Screen:
    """Lines go to stdout; on a terminal a table of the pods stays below them."""

    def __init__(self, spec: Spec, pods: Mapping[int, Life]) -> None:
        """pods: the newest life of each, kept by the cluster."""
        self._spec = spec
        suffix = ".old" if spec.faults_of("stale-leader") else ".1" if spec.restart_policy != STOP else ""
        self._width = max(len(spec.host(spec.size - 1) + suffix), len("simulate"))
        self._console = Console(highlight=False, force_terminal=spec.colour or None, width=None if spec.colour else 120)
        self._born = time.monotonic()
        self._live: LiveTable | None = None
        self._phase = ""
        self.faults: list[dict[str, Any]] = []
        if spec.colour:
            self._live = LiveTable(self._console, pods, spec.size, lambda: time.monotonic() - self._born)
            self._live.start()

    def show(self, life: Life, line: bytes) -> None:
        """One line of a pod, its bytes unchanged behind the prefix."""
        if self._live is not None:
            self._live.heard(life.index, line)
        self._write(self._prefix(life.label, COLOURS[life.index % len(COLOURS)]) + line + b"\n")

    def say(self, text: str) -> None:
        """One line of the simulation's own."""
        age = time.monotonic() - self._born
        if text.startswith("fault"):
            self.faults.append({"at": round(age, 3), "what": text})
        self._write(self._prefix("simulate", 1) + f"{age:7.2f} s  {text}\n".encode())

    def status(self, state: dict[str, Any]) -> None:
        """What the leader's /group says now."""
        phase = str(state.get("phase", ""))
        if self._live is not None:
            self._live.state = state
        elif phase != self._phase:
            self.say(f"the leader is {phase}")
        self._phase = phase

    def table(self, state: dict[str, Any]) -> None:
        table = Table(title=f"group {state.get('group')} · {state.get('backend')} · {state.get('mode')}")
        for heading in ("index", "pod", "IP", "GPUs", "phase"):
            table.add_column(heading)
        for member in state.get("members", []):
            table.add_row(*(str(member[key]) for key in ("index", "host", "ip", "gpus", "phase")))
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            self._console.print(table)
        times = ", ".join(f"{phase} {took:.1f} s" for phase, took in state.get("phase_seconds", {}).items())
        self.say(f"the leader's time in each phase: {times}")

    def summary(self, lives: Sequence[Life]) -> None:
        """How every life of every pod ended."""
        if self._live is not None:
            self._live.stop()
        self.say(f"{'pod':{self._width}}  {'member':11}  generation  noticed    ended      exit")
        for life in sorted(lives, key=lambda life: (life.generation, life.index)):
            *restarted, last = life.epochs
            ends = [(epoch, "restart in place") for epoch in restarted]
            if life.code is not None:
                ends.append((last, f"{life.code:4}"))
            for epoch, end in ends:
                self.say(
                    f"{self._spec.host(life.index):{self._width}}  {life.name:11}  {life.generation:10}"
                    f"  {seconds(epoch.noticed):>9}  {seconds(epoch.ended):>9}  {end}"
                )

    def _prefix(self, name: str, colour: int) -> bytes:
        text = f"{name:{self._width}} | "
        return f"\x1b[{colour}m{text}\x1b[0m".encode() if self._spec.colour else text.encode()

    def _write(self, data: bytes) -> None:
        if self._live is not None:
            # rich redraws its line below; raw bytes would be torn by it.
            self._console.file.flush()
            self._console.out(data.decode(errors="replace"), end="", highlight=False)
            return
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # whoever read us has left; the pods must not notice
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def seconds(at: float | None) -> str:
    return "-" if at is None else f"{at:.2f} s"
