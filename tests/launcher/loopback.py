"""Groups of ordinary launchers on loopback addresses, and a wire between them that can be listened to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import LWSRUN, SABOTAGE, free_port, wait_until

from backends.group import Group
from launcher.channel.member import MemberSide
from launcher.channel.messages import Facts, NodeFacts
from launcher.tally import Tally

LEADER, TAP = "127.0.0.1", "127.0.0.99"


class Pod:
    """A running launcher whose output goes to a file; beside it lies its termination message."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, address: str, port: int) -> None:
        self.process = process
        self.output = output
        self.address = address
        self.port = port

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return self.log.splitlines()[-1]

    @property
    def message(self) -> str:
        return self.output.with_suffix(".message").read_text()

    def says(self, text: str, limit: float = 20) -> None:
        """Wait until it has said something that matches."""
        wait_until(lambda: re.search(text, self.log) or self.process.poll() is not None, limit)
        assert re.search(text, self.log), self.log[-4000:]

    def page(self, path: str = "/group", limit: float = 5) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}:{self.port}{path}", timeout=limit) as answer:
            data: bytes = answer.read()
            return data

    def group(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.page())
        return data

    def wait(self, limit: float = 20) -> int:
        return self.process.wait(limit)


@contextlib.contextmanager
def pod(
    index: int,
    port: int,
    directory: Path,
    *arguments: str,
    size: int = 2,
    command: tuple[str, ...] = ("true",),
    token: str = "",
    sabotage: str = "",
    descriptors: int | None = None,
    **environ: str,
) -> Iterator[Pod]:
    """One member of a group: index 0 on 127.0.0.1, index 1 on 127.0.0.2, and so on.

    A later option, or an entry of environ, wins over what is set here. descriptors is its `ulimit -n`. Without a
    command the arguments may end with one, after "--".
    """
    address = f"127.0.0.{index + 1}"
    argv = [
        *LWSRUN, "start", f"--size={size}", f"--index={index}", f"--leader-address={LEADER}", f"--port={port}",
        f"--listen={address}", f"--pod-ip={address}", "--group-id=g", "--report-every=0.3s", "--mismatch-timeout=1s",
        *arguments, *(("--", *command) if command else ()),
    ]  # fmt: skip
    if descriptors is not None:
        argv = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *argv]
    if token:
        environ["LWSRUN_TOKEN"] = token
    with running(argv, directory, sabotage, **environ) as (process, output):
        yield Pod(process, output, address, port)


@contextlib.contextmanager
def running(
    argv: list[str], directory: Path, sabotage: str = "", **environ: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process in a session of its own, all of which is killed at the end, and the file of its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LWS_", "NCCL_"))}
    if sabotage:
        env |= {"PYTHONPATH": str(SABOTAGE), "LWSRUN_TEST_SABOTAGE": sabotage}
    output = directory / f"pod-{len(list(directory.glob('pod-*.log')))}.log"
    env["LWSRUN_TERMINATION_LOG"] = str(output.with_suffix(".message"))
    with output.open("wb") as file:
        process = subprocess.Popen(
            argv, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env={**env, **environ}
        )
    try:
        yield process, output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


class Pods:
    """Pods of one group in one directory; they live until the block ends."""

    def __init__(self, directory: Path, sabotage: str = "") -> None:
        directory.mkdir()
        self.directory = directory
        self.port = free_port()
        self.sabotage = sabotage
        self.all: list[Pod] = []
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def start(self, index: int, *arguments: str, size: int = 2, **environ: str) -> Pod:
        """arguments end with the command, after "--", where the template has one."""
        own: dict[str, Any] = {"size": size, "command": (), "sabotage": self.sabotage}
        made = self._running.enter_context(pod(index, self.port, self.directory, *arguments, **own, **environ))
        self.all.append(made)
        return made

    def run(self, argv: list[str]) -> subprocess.Popen[bytes]:
        """Any other process, for as long."""
        process, _ = self._running.enter_context(running(argv, self.directory, self.sabotage))
        return process


def member_side(port: int, **changes: Any) -> MemberSide:
    """Worker 1 of two, without a process of its own; its leader is at this port."""
    given: dict[str, Any] = {
        "digest": None, "command": (), "facts": Facts(), "mismatch_timeout": 1.0, "incarnation": "i",
        "node": lambda _: NodeFacts("127.0.0.2", "puppet", 0), "peer_timeout": 15.0, "report_every": 15.0,
        "detaches": False, "left": "", "tls": None, "tally": Tally(), "emit": lambda _: None,
    }  # fmt: skip
    return MemberSide(Group(LEADER, 2, 1, "g"), port=port, **given | changes)


class Tap:
    """A TCP proxy at its own address in front of the leader's port; keeps what each connection said."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.from_member: list[bytearray] = []  # one for each connection
        self.from_leader: list[bytearray] = []
        self._listening = socket.create_server((TAP, port))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                member, _ = self._listening.accept()
            except OSError:
                return
            try:
                leader = socket.create_connection((LEADER, self.port), timeout=10)
            except OSError:
                member.close()
                continue
            leader.settimeout(None)
            for source, sink, kept in ((member, leader, self.from_member), (leader, member, self.from_leader)):
                kept.append(bytearray())
                thread = threading.Thread(target=self._copy, args=(source, sink, kept[-1]), daemon=True)
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                kept += data
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(5)


@contextlib.contextmanager
def tap(port: int) -> Iterator[Tap]:
    made = Tap(port)
    try:
        yield made
    finally:
        made.close()
