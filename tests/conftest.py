"""What the tests share: the `lwsrun simulate` that users get, run with its own ports, directories and namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

LWSRUN = (sys.executable, "-m", "launcher")
SABOTAGE = Path(__file__).parent / "sabotage"


@dataclass
class Simulation:
    """How a simulation ended: its exit code, what it printed, and its result.json."""

    code: int
    output: str
    directory: Path

    @property
    def result(self) -> dict[str, Any]:
        file = self.directory / "result.json"
        assert file.exists(), f"the simulation did not end by itself:\n{self.output[-4000:]}"
        data: dict[str, Any] = json.loads(file.read_text())
        return data

    def pods(self) -> list[dict[str, Any]]:
        pods: list[dict[str, Any]] = self.result["pods"]
        return pods

    def codes(self) -> list[int]:
        """The pods' exit codes, by index."""
        return [pod["exit_code"] for pod in self.pods()]

    def log(self, index: int) -> str:
        name = "sim-0" if index == 0 else f"sim-0-{index}"
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def said(self, index: int) -> list[str]:
        """What the pod's command printed: whole lines, without the launcher's own (which quote the command)."""
        return [line for line in self.log(index).splitlines() if not line.startswith("[lwsrun ")]


# A command that serves for ever, and tells first that it started.
SERVE = ["sh", "-c", "echo >> $STARTS; exec sleep 600"]


def then_wait_for_starts(times: int) -> str:
    """The --then that ends the group once SERVE has been started so often, over all pods."""
    return f"--then=until [ $(wc -l < $STARTS) -ge {times} ]; do sleep 0.2; done"


Simulate = Callable[..., Simulation]


# What a plain clone has not got, and only this: LWS's complete CRDs. tests/manifests/schemas has the part that counts.
MAY_BE_ABSENT = "../shared/data"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A test that did not run proves nothing: here a skip is a failure."""
    skipped = terminalreporter.stats.get("skipped", [])
    absent = [report for report in skipped if MAY_BE_ABSENT in str(report.longrepr)]
    if absent:
        terminalreporter.write_line(f"{len(absent)} tests did NOT run: there is no {MAY_BE_ABSENT}", yellow=True)
    skipped = [report for report in skipped if report not in absent]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped: that is a failure here", red=True)
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


def free_port() -> int:
    """Not one of those that the kernel gives to outgoing connections: another test's could take it before we do."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("", port), backlog=1):
            return port


@pytest.fixture(autouse=True)
def own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers outside a network namespace of their own must not meet those of a test that runs beside."""
    monkeypatch.setenv("LWSRUN_PORT", str(free_port()))


@pytest.fixture
def simulate(tmp_path: Path) -> Iterator[Simulate]:
    """Run `lwsrun simulate OPTIONS -- COMMAND`; fails loudly where this machine gives no namespaces.

    sabotage names a mechanism of the launcher to switch off in every pod (tests/sabotage). A simulation that does not
    end within `limit` seconds is stopped, and then has no result.
    """

    def run(*options: str, command: list[str], limit: float = 60, sabotage: str = "", **environ: str) -> Simulation:
        directory = tmp_path / "logs"
        argv = [*LWSRUN, "simulate", "--isolation=namespaces", f"--keep-logs={directory}", *options, "--", *command]
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "STARTS": str(starts), **environ}
        if sabotage:
            env.update(PYTHONPATH=str(SABOTAGE), LWSRUN_TEST_SABOTAGE=sabotage)
        starts.write_text("")
        with (tmp_path / "output").open("wb") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, env=env)
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                (directory / "result.json").unlink(missing_ok=True)
                process.send_signal(signal.SIGKILL)  # the kernel takes the whole sandbox along
                process.wait(10)
        return Simulation(process.returncode, (tmp_path / "output").read_text(errors="replace"), directory)

    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:  # /tmp is each pod's own
        starts = Path(place) / "starts"
        yield run


class Launched:
    """A running `lwsrun start --size=1`. process is what we started, pid the launcher's as seen from here."""

    def __init__(self, process: subprocess.Popen[bytes], pid: int) -> None:
        self.process = process
        self.pid = pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def line(self, limit: float = 20) -> str:
        """The next line of its stdout; what there is of it when stdout ends."""
        assert self.process.stdout is not None
        deadline, line = time.monotonic() + limit, b""
        while not line.endswith(b"\n"):
            left = max(deadline - time.monotonic(), 0)
            assert select.select([self.process.stdout], [], [], left)[0], f"no line within {limit} s, but {line!r}"
            byte = self.process.stdout.read(1)  # unbuffered, so that select sees what there is
            if not byte:
                break
            line += byte
        return line.decode().rstrip("\n")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def wait(self, limit: float = 20) -> int:
        return self.process.wait(limit)


@contextlib.contextmanager
def launched(*arguments: str, pid_1: bool, sabotage: str = "", ready: bool = True, **popen: Any) -> Iterator[Launched]:
    """Run `lwsrun start --size=1 ARGUMENTS` as PID 1 of namespaces of its own, or as an ordinary process.

    With ready, the command's first line on stdout must be "up": it is read before the launcher is handed over.
    Everything is killed at the end.
    """
    argv = [*LWSRUN, "start", "--size=1", *arguments]
    if pid_1:
        own = ["--user", "--map-root-user"] if os.geteuid() else []
        argv = ["unshare", *own, "--pid", "--net", "--mount-proc", "--fork", "--kill-child", *argv]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LWS_")} | popen.pop("env", {})
    if sabotage:
        env |= {"PYTHONPATH": str(SABOTAGE), "LWSRUN_TEST_SABOTAGE": sabotage}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL} | popen
    with subprocess.Popen(argv, env=env, bufsize=0, **streams) as process:
        try:
            if pid_1:
                wait_until(lambda: psutil.Process(process.pid).children() or process.poll() is not None)
                inner = psutil.Process(process.pid).children()
            pod = Launched(process, inner[0].pid if pid_1 and inner else process.pid)
            if ready:
                assert pod.line() == "up"
            yield pod
        finally:
            with contextlib.suppress(psutil.Error):
                for left in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        left.kill()
            process.kill()


def wait_until(true: Callable[[], object], limit: float = 20) -> None:
    """Poll with a bound; fails when the bound is reached."""
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status, by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def mask_of(pid: int, which: str) -> set[int]:
    """The signals in one of the masks of /proc/PID/status, such as SigBlk."""
    mask = int(status_of(pid)[which], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def start(*arguments: str, limit: float = 30, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `lwsrun ARGUMENTS` as an ordinary process, outside any group."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LWS_")}
    return subprocess.run([*LWSRUN, *arguments], capture_output=True, text=True, timeout=limit, env={**env, **environ})
