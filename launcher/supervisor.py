"""Processes and signals: one signalfd, one reaper that owns every pid, process groups that end TERM first, KILL after.

Nothing else in the launcher may wait for a process: a second waiter loses exit codes (cpython#96863).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from launcher import exits, kernel
from launcher.kernel import Caught
from launcher.output import Keepsake, Pump

AFTER_KILL = 5.0  # seconds; a process stuck in a driver survives SIGKILL, so every wait after it is bounded
SWEEP_GRACE = 0.5
RESET = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


@dataclass(eq=False)
class Child:
    """A process of ours, leader of its own session; exited becomes its exit code (128 + n for signal n)."""

    name: str
    pid: int
    exited: asyncio.Future[int]
    keepsake: Keepsake = field(default_factory=Keepsake)
    pumps: list[Pump] = field(default_factory=list)
    stdout: asyncio.StreamReader | None = None

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    def join_output(self, timeout: float) -> None:
        """Wait until its output has been passed on, timeout seconds at most: an orphan may hold the pipes open, and
        our own stdout may be stuck."""
        deadline = time.monotonic() + timeout
        for pump in self.pumps:
            pump.join(max(deadline - time.monotonic(), 0))


class CannotStart(Exception):
    """The program is not there or cannot be executed; str() says which and why."""

    def __init__(self, why: str, remedy: str = "check the command and the image") -> None:
        super().__init__(why)
        self.remedy = remedy


def locate(program: str, environ: Mapping[str, str]) -> str:
    """The program's path, found as execvp would find it. Raises CannotStart."""
    found = shutil.which(program, path=environ.get("PATH", os.defpath))
    if found:
        return found
    if os.path.dirname(program):
        if os.path.isdir(program):
            raise CannotStart(f"{program} is a directory")
        if os.path.exists(program):
            raise CannotStart(f"{program} is not executable")
        raise CannotStart(f"{program} does not exist")
    anywhere = shutil.which(program, mode=os.F_OK, path=environ.get("PATH", os.defpath))
    if anywhere:
        raise CannotStart(f"{anywhere} is not executable")
    raise CannotStart(
        f"{program} is not on PATH", f"check the command and the image; PATH is {environ.get('PATH', os.defpath)}"
    )


class Supervisor:
    """Spawns, reaps, signals and ends processes for one event loop."""

    def __init__(self, on_signal: Callable[[Caught], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._children: dict[int, Child] = {}
        self._on_signal = on_signal
        signals = signal.valid_signals()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self._signalfd = kernel.signalfd(signals)
        self._loop.add_reader(self._signalfd, self._take_signals)
        if os.getpid() != 1:
            kernel.become_subreaper()

    def close(self) -> None:
        self._loop.remove_reader(self._signalfd)
        os.close(self._signalfd)

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        environ: Mapping[str, str],
        *,
        capture: bool = False,
        merge: bool = False,
        keep_stdin: bool = False,
    ) -> Child:
        """Start a process in a session of its own, with a clean signal mask and default dispositions.

        Its output is passed through; with capture its stdout is read from Child.stdout instead, with merge its
        stderr too. Raises CannotStart.
        """
        path = locate(argv[0], environ)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        actions = [
            (os.POSIX_SPAWN_DUP2, out_write, 1),
            (os.POSIX_SPAWN_DUP2, out_write if merge else err_write, 2),
        ]
        if not keep_stdin:
            actions.append((os.POSIX_SPAWN_DUP2, null, 0))
        try:
            pid = os.posix_spawn(
                path, list(argv), dict(environ), file_actions=actions, setsid=True, setsigmask=(), setsigdef=RESET
            )
        except OSError as error:
            os.close(out_read)
            os.close(err_read)
            raise CannotStart(f"{path} cannot be executed: {error.strerror}") from error
        finally:
            for fd in (out_write, err_write, null):
                os.close(fd)
        child = Child(name, pid, self._loop.create_future())
        self._children[pid] = child
        if capture or merge:
            child.stdout = self._reader(out_read)
        else:
            child.pumps.append(Pump(out_read, 1, child.keepsake, f"{name}-stdout"))
        child.pumps.append(Pump(err_read, 2, child.keepsake, f"{name}-stderr"))
        return child

    def _reader(self, fd: int) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=1 << 20)
        os.set_blocking(fd, False)

        def ready() -> None:
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                reader.feed_data(data)
            else:
                reader.feed_eof()
                self._loop.remove_reader(fd)
                os.close(fd)

        self._loop.add_reader(fd, ready)
        return reader

    async def run(self, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> tuple[int, bytes]:
        """Run a short helper to its end; its exit code and stdout. Killed when the caller is cancelled."""
        child = self.spawn(name, argv, environ, capture=True)
        assert child.stdout is not None
        try:
            output = await child.stdout.read()
            return await asyncio.shield(child.exited), output
        finally:
            if child.alive:
                self.signal(child, signal.SIGKILL)

    def signal(self, child: Child, number: int) -> None:
        """Signal the child's process group; one that has gone already is not an error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)

    async def stop(self, child: Child, left: Callable[[], float]) -> bool:
        """TERM its group, KILL when no time is left. True when it ended without being killed.

        left gives the seconds of grace that remain; it is asked again and again, because it may be shortened.
        """
        if child.alive:
            self.signal(child, signal.SIGTERM)
            # A stopped process cannot act on TERM.
            self.signal(child, signal.SIGCONT)
            while child.alive and left() > 0:
                await self._wait(child, min(left(), 0.2))
        if not child.alive:
            return True
        self.signal(child, signal.SIGKILL)
        await self._wait(child, AFTER_KILL)
        return False

    async def _wait(self, child: Child, timeout: float) -> None:
        await asyncio.wait([child.exited], timeout=max(timeout, 0))

    async def sweep(self, grace: float = SWEEP_GRACE) -> list[str]:
        """End every descendant that is left, whoever bore it; names those that survive even SIGKILL."""
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, AFTER_KILL)):
            deadline = self._loop.time() + patience
            told: set[int] = set()
            while True:
                left = self._descendants()
                if not left:
                    return []
                for process in left:
                    if process.pid not in told:
                        told.add(process.pid)
                        with contextlib.suppress(psutil.Error):
                            process.send_signal(number)
                if self._loop.time() >= deadline:
                    break
                await asyncio.sleep(0.02)
        return [str(process.pid) for process in self._descendants()]

    def _descendants(self) -> list[psutil.Process]:
        self._reap()
        try:
            return psutil.Process().children(recursive=True)
        except (psutil.Error, OSError):
            return []

    async def watch(self, child: Child, names: Sequence[str], on_lost: Callable[[str], None]) -> None:
        """Call on_lost(name) the moment that a named descendant of the child ends.

        Returns when all were seen (or the child ended); from then on the kernel tells of their end (pidfd_open(2)).
        """
        missing = set(names)
        while missing and child.alive:
            with contextlib.suppress(psutil.Error, OSError):
                for process in psutil.Process(child.pid).children(recursive=True):
                    name = process.name()
                    if name in missing:
                        missing.discard(name)
                        self._watch_pid(process.pid, lambda name=name: on_lost(name))  # type: ignore[misc]
            if missing:
                await asyncio.sleep(0.25)

    def _watch_pid(self, pid: int, on_end: Callable[[], None]) -> None:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            on_end()
            return
        except OSError:
            return  # no pidfd here (an old kernel, a sandbox): then nobody watches it, which is no failure of its own

        def ended() -> None:
            self._loop.remove_reader(fd)
            os.close(fd)
            on_end()

        self._loop.add_reader(fd, ended)

    def _take_signals(self) -> None:
        for caught in kernel.read_signals(self._signalfd):
            if caught.number == signal.SIGCHLD:
                self._reap()
            else:
                self._on_signal(caught)

    def _reap(self) -> None:
        # SIGCHLD coalesces: one signal may stand for many exits, so drain until nothing is left.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None and not child.exited.done():
                child.exited.set_result(exits.of_status(status))
