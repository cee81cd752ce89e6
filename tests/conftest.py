"""What the tests share: the `lwsrun simulate` that users get, run with its own ports, directories and namespaces."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


Simulate = Callable[..., Simulation]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A test that did not run proves nothing: here a skip is a failure."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped: that is a failure here", red=True)
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers outside a network namespace of their own must not meet those of a test that runs beside."""
    monkeypatch.setenv("LWSRUN_PORT", str(free_port()))


@pytest.fixture
def simulate(tmp_path: Path) -> Simulate:
    """Run `lwsrun simulate OPTIONS -- COMMAND`; fails loudly where this machine gives no namespaces.

    sabotage names a mechanism of the launcher to switch off in every pod (tests/sabotage). A simulation that does not
    end within `limit` seconds is stopped, and then has no result.
    """

    def run(*options: str, command: list[str], limit: float = 60, sabotage: str = "", **environ: str) -> Simulation:
        directory = tmp_path / "logs"
        argv = [*LWSRUN, "simulate", "--isolation=namespaces", f"--keep-logs={directory}", *options, "--", *command]
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **environ}
        if sabotage:
            env.update(PYTHONPATH=str(SABOTAGE), LWSRUN_TEST_SABOTAGE=sabotage)
        with (tmp_path / "output").open("wb") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, env=env)
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                (directory / "result.json").unlink(missing_ok=True)
                process.send_signal(signal.SIGKILL)  # the kernel takes the whole sandbox along
                process.wait(10)
        return Simulation(process.returncode, (tmp_path / "output").read_text(errors="replace"), directory)

    return run


def start(*arguments: str, limit: float = 30, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `lwsrun ARGUMENTS` as an ordinary process, outside any group."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LWS_")}
    return subprocess.run([*LWSRUN, *arguments], capture_output=True, text=True, timeout=limit, env={**env, **environ})
