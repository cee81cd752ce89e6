"""One life of a pod: from the start of its container to its end, with what it said meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from backends.group import member_name
from launcher.simulate.spec import PREVIOUS, Spec
from launcher.supervisor import Child

OWN = (b"[lwsrun ", b'{"time": ')  # how a launcher's own lines begin, by --log-format
ASKED = re.compile(rb"SIG(?:TERM|INT) .*: stopping")
# What a launcher says first when it learns of a failure, its own or a peer's; the second only when nobody asked it to.
FAILED = re.compile(rb"stopped because|\blost: |\bwas lost\b")
STOPPING = re.compile(rb"asking the engine to end")


def tells_of_request(line: bytes) -> bool:
    """Whether it is a launcher's own line that says that the pod was asked to stop."""
    return line.startswith(OWN) and ASKED.search(line) is not None


def tells_of_failure(line: bytes, asked: bool) -> bool:
    """Whether it is a launcher's own line that says that something has failed."""
    return line.startswith(OWN) and bool(FAILED.search(line) or (STOPPING.search(line) and not asked))


class Life:
    """noticed, ended: seconds since the simulation began. code: its exit code, None while it lives."""

    def __init__(self, spec: Spec, index: int, generation: int, child: Child, age: Callable[[], float]) -> None:
        self.spec = spec
        self.index = index
        self.generation = generation
        self.child = child
        self.started = age()
        self.ended: float | None = None
        self.code: int | None = None
        self._age = age
        self._asked = False
        self._noticed: float | None = None

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

    @property
    def noticed(self) -> float | None:
        """When it first said that something had failed. A pod that ends with 0 was asked, or was done: nothing had."""
        return self._noticed if self.code else None

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
        code = await self.child.exited
        self.code, self.ended = code, self._age()

    def _take(self, line: bytes, show: Callable[[Life, bytes], None]) -> None:
        self._asked = self._asked or tells_of_request(line)
        if self._noticed is None and tells_of_failure(line, self._asked):
            self._noticed = self._age()
        show(self, line)

    def result(self) -> dict[str, Any]:
        """As result.json tells it."""
        report = self.spec.directory_of(self.index, self.generation) / "termination-log"
        return {
            "index": self.index,
            "generation": self.generation,
            "host": self.spec.host(self.index),
            "exit_code": self.code,
            "noticed": None if self.noticed is None else round(self.noticed, 3),
            "ended": None if self.ended is None else round(self.ended, 3),
            "termination_message": report.read_text(errors="replace") if report.exists() else "",
        }
