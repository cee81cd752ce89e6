"""Processes and signals: one signalfd, one reaper that owns every pid, process groups that end TERM first, KILL after.

Nothing else in the launcher may wait for a process: a second waiter loses exit codes (cpython#96863).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from launcher import exits, kernel
from launcher.kernel import Caught
from launcher.log import log
from launcher.output import HEAD, STDERR, STDOUT, Keepsake, Pump
from launcher.spawn import spawn

AFTER_KILL = 5.0  # seconds; a process stuck in a driver survives SIGKILL, so every wait after it is bounded
SWEEP_GRACE = 0.5
REAPED_AT_ONCE = 500  # then the loop gets its turn, however many more orphans there are
ASK_AGAIN = 2.0  # seconds between two SIGTERMs to an engine that loses them while it starts
LAST_CALL = 2.0  # seconds before SIGKILL at which the children of a process that was asked alone are asked too
KEEP_SIGNALS = 60.0  # seconds that an engine has to install its handlers for what came before it
HARMLESS = (signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)  # ignored by default: signal(7)
NO_ROOM = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # for a process: no fault of the command
TERMINAL_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


@dataclass(eq=False)
class Child:
    """A process of ours, leader of its own session; exited becomes its exit code (128 + n for signal n)."""

    name: str
    pid: int
    exited: asyncio.Future[int]
    keepsake: Keepsake = field(default_factory=Keepsake)
    pumps: list[Pump] = field(default_factory=list)
    stdout: asyncio.StreamReader | None = None
    signalled: bool = False  # ended by a signal itself, not with the code that a shell gives for one

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    @property
    def output_waits(self) -> bool:
        """Whether output of it has not been passed on yet, or more may come."""
        return any(pump.alive for pump in self.pumps)

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


def locate(program: str, environ: Mapping[str, str], directory: str = "") -> str:
    """The program's path, found as execvp would find it from that directory. Raises CannotStart."""
    if os.path.dirname(program):
        program = os.path.join(directory, program)
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


def takes(pid: int, number: int) -> bool:
    """Whether a signal does not end the process: it has a handler for it, ignores it, or the kernel does."""
    if number in HARMLESS:
        return True
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = (int(line.split()[1], 16) for line in lines if line.startswith(("SigCgt:", "SigIgn:")))
    return any(mask >> (number - 1) & 1 for mask in masks)


class Supervisor:
    """Spawns, reaps, signals and ends processes for one event loop."""

    def __init__(self, on_signal: Callable[[Caught], None], keep: int = HEAD) -> None:
        """keep: how many bytes of each process's first traceback or fatal line are kept."""
        self._loop = asyncio.get_running_loop()
        self._children: dict[int, Child] = {}
        self._adopted: dict[int, asyncio.Future[int]] = {}
        self._on_signal = on_signal
        self._keep = keep
        self.directory = os.getcwd()
        signals = signal.valid_signals()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self._signalfd = kernel.signalfd(signals)
        self._loop.add_reader(self._signalfd, self._take_signals)
        self.reaps_orphans = os.getpid() == 1 or kernel.be_subreaper(True)

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
        bare: bool = False,
        keep_stdin: bool = False,
    ) -> Child:
        """Start a process in a session of its own, with a clean signal mask and default dispositions.

        Its output is passed through; with capture its stdout is read from Child.stdout instead, with merge its
        stderr too; with bare it writes to our own streams itself. Raises CannotStart.
        """
        path = self.locate(argv[0], environ)
        readers: list[int] = []
        with contextlib.ExitStack() as handed_over:

            def outlet() -> int:
                reader, writer = os.pipe()
                readers.append(reader)
                handed_over.callback(os.close, writer)
                return writer

            stdin = 0
            if not keep_stdin:
                stdin = os.open(os.devnull, os.O_RDONLY)
                handed_over.callback(os.close, stdin)
            stdout = 1 if bare else outlet()
            # Where our two streams are one, the engine's are too: two pipes would lose the order between them.
            stderr = 2 if bare else stdout if merge or STDERR is STDOUT else outlet()
            try:
                pid = spawn(path, argv, environ, (stdin, stdout, stderr), self.directory)
            except OSError as error:
                for reader in readers:
                    os.close(reader)
                if error.errno in NO_ROOM:
                    raise
                raise CannotStart(f"{path} cannot be executed: {error.strerror}") from error
        child = Child(name, pid, self._loop.create_future(), Keepsake(self._keep))
        self._children[pid] = child
        if capture or merge:
            child.stdout = self._reader(readers.pop(0))
        elif len(readers) > 1:
            child.pumps.append(Pump(readers.pop(0), 1, STDOUT, child.keepsake, f"{name}-stdout"))
        for reader in readers:
            child.pumps.append(Pump(reader, 2, STDERR, child.keepsake, f"{name}-stderr"))
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

    def locate(self, program: str, environ: Mapping[str, str]) -> str:
        """The program's path as spawn would find it. Raises CannotStart."""
        return locate(program, environ, self.directory)

    def adopt(self, pid: int) -> asyncio.Future[int]:
        """The exit code of a descendant, should it be an orphan when it ends; else it never comes."""
        return self._adopted.setdefault(pid, self._loop.create_future())

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
        if not child.alive:
            return  # reaped: its number may be somebody else's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)

    def forward(self, child: Child | None, number: int) -> None:
        """Pass a signal of ours on to the child's process group, if there is one.

        A terminal's stop signals stop the child and then us, as dumb-init does it: the kernel ignores the originals
        in a session without a terminal (https://github.com/Yelp/dumb-init#signal-handling), and a shell sees that its
        job has stopped only by us. For PID 1 the kernel ignores our own SIGSTOP.
        """
        if child is not None:
            self.signal(child, signal.SIGSTOP if number in TERMINAL_STOPS else number)
        if number in TERMINAL_STOPS:
            os.kill(os.getpid(), signal.SIGSTOP)

    async def deliver(self, child: Child, numbers: Sequence[int]) -> None:
        """Forward signals that came before the child was there, once it takes them: earlier they would kill it."""
        waiting, until = list(numbers), self._loop.time() + KEEP_SIGNALS
        while waiting and child.alive and self._loop.time() < until:
            for number in [number for number in waiting if takes(child.pid, number)]:
                waiting.remove(number)
                self.forward(child, number)
            if waiting:
                await asyncio.sleep(0.1)
        for number in waiting if child.alive else ():
            log.warning("%s came before the engine, which does not handle it: dropped", exits.signal_name(number))

    async def stop(
        self,
        child: Child,
        left: Callable[[], float],
        *,
        alone: bool = False,
        hears: Callable[[], Awaitable[bool]] | None = None,
    ) -> bool:
        """Ask it to end with SIGTERM, kill its group when no time is left. True when it did not have to be killed.

        left gives the seconds of grace that remain; it is asked again and again, because it may be shortened.
        With alone, only the process itself is asked, and its children shortly before the end.
        hears tells whether the process takes a SIGTERM by now; until then it is asked again and again.
        """
        last_call = min(LAST_CALL, left() / 4) if alone else -1.0
        heard, again = False, self._loop.time()
        while child.alive and left() > 0:
            if not heard and self._loop.time() >= again:
                heard = hears is None or await hears()
                self._ask(child, alone)
                again = self._loop.time() + ASK_AGAIN
            if left() <= last_call:
                last_call = -1.0
                self._ask(child, alone=False)
            await self._wait(child, min(left(), 0.2))
        if not child.alive:
            return True
        self.signal(child, signal.SIGKILL)
        await self._wait(child, AFTER_KILL)
        return False

    def _ask(self, child: Child, alone: bool) -> None:
        if alone and child.alive:
            with contextlib.suppress(PermissionError):  # it runs as another user by now
                os.kill(child.pid, signal.SIGTERM)
        else:
            self.signal(child, signal.SIGTERM)
        with contextlib.suppress(psutil.Error):
            if psutil.Process(child.pid).status() == psutil.STATUS_STOPPED:
                self.signal(child, signal.SIGCONT)  # a stopped process cannot act on TERM

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

    def _take_signals(self) -> None:
        for caught in kernel.read_signals(self._signalfd):
            if caught.number == signal.SIGCHLD:
                self._reap()
            else:
                self._on_signal(caught)

    def _reap(self) -> None:
        # SIGCHLD coalesces: one signal may stand for many exits, so drain until nothing is left.
        for _ in range(REAPED_AT_ONCE):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None and not child.exited.done():
                child.signalled = os.WIFSIGNALED(status)
                child.exited.set_result(exits.of_status(status))
            adopted = self._adopted.pop(pid, None)
            if adopted is not None:
                adopted.set_result(exits.of_status(status))
        self._loop.call_soon(self._reap)
