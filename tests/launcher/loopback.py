"""Groups of ordinary launchers on loopback addresses, and a wire between them that can be listened to."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import LWSRUN, SABOTAGE, wait_until

LEADER, TAP = "127.0.0.1", "127.0.0.99"


class Pod:
    """A running launcher whose output goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, address: str, port: int) -> None:
        self.process = process
        self.output = output
        self.address = address
        self.port = port

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def says(self, sentence: str, limit: float = 20) -> None:
        """Wait until it has said so."""
        wait_until(lambda: sentence in self.said() or self.process.poll() is not None, limit)
        assert sentence in self.said(), self.said()[-3000:]

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
    *options: str,
    size: int = 2,
    leader: str = LEADER,
    command: tuple[str, ...] = ("true",),
    token: str = "",
    sabotage: str = "",
    descriptors: int | None = None,
) -> Iterator[Pod]:
    """One member of a group; killed at the end when it has not ended by itself. descriptors is its `ulimit -n`."""
    address = f"127.0.0.{index + 1}"
    argv = [
        *LWSRUN, "start", f"--size={size}", f"--index={index}", f"--leader-address={leader}", f"--port={port}",
        f"--listen={address}", "--group-id=g", "--report-every=0.5s", "--gpus-per-node=0", *options, "--", *command,
    ]  # fmt: skip
    if descriptors is not None:
        argv = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *argv]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LWS_")}
    if token:
        env["LWSRUN_TOKEN"] = token
    if sabotage:
        env |= {"PYTHONPATH": str(SABOTAGE), "LWSRUN_TEST_SABOTAGE": sabotage}
    output = directory / f"pod-{index}-{len(list(directory.iterdir()))}"
    with output.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, env=env)
    try:
        yield Pod(process, output, address, port)
    finally:
        process.kill()
        process.wait(10)


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
