"""One life of a pod: from the start of its container to its end, with what it said meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backends.group import member_name
from launcher.simulate.spec import PREVIOUS, Spec
from launcher.supervisor import Child

OWN = (b"[lwsrun ", b'{"time": ')  # how a launcher's own lines begin, by --log-format
ASKED = re.compile(rb"SIG(?:TERM|INT) .*: stopping|\bthe leader drains\b")
# What a launcher says first when it learns of a failure, its own or a peer's; the second only when nobody asked it to.
FAILED = re.compile(rb"stopped because|\blost: |\bwas lost\b|\brestart (?:\d+ of \d+ )?in place")
STOPPING = re.compile(rb"asking the engine to end")
RESTARTED = re.compile(rb"\brestart in place in \d")  # the last line of an epoch that ends so
# Who was lost before the group formed has come back; or nothing had failed: the pod was asked to stop, or was done.
WELL = re.compile(rb"\bgroup formed: |\bstopped: ")


def tells_of_failure(line: bytes, asked: bool) -> bool:
    """Whether it is a launcher's own line that says that something has failed."""
    return line.startswith(OWN) and bool(FAILED.search(line) or (STOPPING.search(line) and not asked))


@dataclass
class Epoch:
    """A run of the engine in a pod, until a restart in place or the pod's end. Seconds since the simulation began.

    noticed: when the pod first said that something had failed, of that which ended the epoch.
    """

    noticed: float | None = None
    ended: float | None = None

    def result(self) -> dict[str, float | None]:
        return {"noticed": _rounded(self.noticed), "ended": _rounded(self.ended)}


def _rounded(at: float | None) -> float | None:
    return None if at is None else round(at, 3)


class Life:
    """epochs: the last one ends with this life. code: its exit code, None while it lives."""

    def __init__(self, spec: Spec, index: int, generation: int, child: Child, age: Callable[[], float]) -> None:
        self.spec = spec
        self.index = index
        self.generation = generation
        self.child = child
        self.started = age()
        self.epochs = [Epoch()]
        self.code: int | None = None
        self._age = age
        self._asked = False

    @property
    def alive(self) -> bool:
        return self.code is None

    @property
    def label(self) -> str:
        """The pod's host name, and which life of it where it is not the first."""
        if self.generation == PREVIOUS:
            return f"{self.spec.host(self.index)}.old"
        return self.spec.host(self.index) + (f".{self.generation}" if self.generation else "")

    @property
    def name(self) -> str:
        return member_name(self.index)

    @property
    def ip(self) -> str:
        return self.spec.ip(self.index, self.generation)

    def pid(self) -> int | None:
        """The pod's PID 1 as seen from the sandbox; the pod wrote it down."""
        try:
            return int((self.spec.directory_of(self.index, self.generation) / "pid").read_text())
        except (OSError, ValueError):
            return None

    async def signal(self, number: signal.Signals) -> None:
        """To the pod's PID 1, as soon as it has one."""
        while self.alive:
            pid = self.pid()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                return
            await asyncio.sleep(0.02)

    async def follow(self, show: Callable[[Life, bytes], None]) -> None:
        """Show and keep its output, line by line, until it ends."""
        assert self.child.stdout is not None
        kept: BinaryIO | None = None
        if self.spec.keep_logs:
            kept = (Path(self.spec.keep_logs) / f"{self.label}.log").open("wb")
        try:
            rest = b""
            while chunk := await self.child.stdout.read(1 << 16):
                if kept:
                    kept.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line, show)
            if rest:
                self._take(rest, show)
        finally:
            if kept:
                kept.close()
        self.code = await self.child.exited
        self.epochs[-1].ended = self._age()

    def _take(self, line: bytes, show: Callable[[Life, bytes], None]) -> None:
        show(self, line)
        if not line.startswith(OWN):
            return
        self._asked = self._asked or ASKED.search(line) is not None
        epoch = self.epochs[-1]
        if tells_of_failure(line, self._asked):
            epoch.noticed = self._age() if epoch.noticed is None else epoch.noticed
        elif WELL.search(line):
            epoch.noticed = None
        if RESTARTED.search(line):
            epoch.ended = self._age()
            self.epochs.append(Epoch())

    def result(self) -> dict[str, Any]:
        """As result.json tells it."""
        report = self.spec.directory_of(self.index, self.generation) / "termination-log"
        return {
            "index": self.index,
            "generation": self.generation,
            "host": self.spec.host(self.index),
            "exit_code": self.code,
            **self.epochs[-1].result(),
            "restarts": [epoch.result() for epoch in self.epochs[:-1]],
            "termination_message": report.read_text(errors="replace") if report.exists() else "",
        }
