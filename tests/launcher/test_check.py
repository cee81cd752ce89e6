"""`lwsrun check` under real conditions: each of them is found, with a remedy, in bounded time, without a traceback."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import LWSRUN, free_port, launched, start, wait_until

from launcher.check import registry
from launcher.check.registry import CHECKS
from launcher.check.result import Result, Status, exit_code, failed, passed, skipped, warning
from launcher.check.scene import Scene

OWN = ["--user", "--map-root-user"] if os.geteuid() else []
LWS = {"LWS_LEADER_ADDRESS": "127.0.0.1", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "0"}
VLLM = ("--", "vllm", "serve", "m", "--port", "0")


class Checked:
    """What one `lwsrun check --format json` said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert "Traceback" not in done.stdout + done.stderr
        assert "this check itself failed" not in done.stdout
        self.code = done.returncode
        self.data: dict[str, Any] = json.loads(done.stdout)
        self.checks: list[dict[str, str]] = self.data["checks"]

    def of(self, name: str, status: str) -> str:
        """What was found by the check with that name, where it came to that; and the remedy, in one text."""
        here = [check for check in self.checks if check["name"] == name]
        found = [f"{check['found']} -> {check['remedy']}" for check in here if check["status"] == status]
        assert found, here
        return "\n".join(found)


def check(*arguments: str, wrap: Sequence[str] = (), **environ: str) -> Checked:
    """environ is the pod's own; wrap is what runs it, such as unshare."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LWS_", "NCCL_", "GLOO_"))}
    argv = [*wrap, *LWSRUN, "check", "--format=json", *arguments]
    return Checked(subprocess.run(argv, capture_output=True, text=True, timeout=110, env=env | environ))


@pytest.fixture
def vllm(tmp_path: Path) -> dict[str, str]:
    """A PATH on which a vLLM is that is found and told, beside a Python that says so."""
    versions = json.dumps({"vllm": "0.32.0", "ray": "2.60.0", "python": "3.12.3"})
    python, program = tmp_path / "python3", tmp_path / "vllm"
    python.write_text(f"#!/bin/sh\necho '{versions}'\n")
    program.write_text(f"#!{python}\n")
    for file in (python, program):
        file.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


# ------------------------------------------------------------------ what is told


def test_every_check_tells_of_itself_and_what_is_not_in_order_has_a_remedy() -> None:
    done = check()
    assert {each["name"] for each in done.checks} == set(CHECKS)
    assert list(dict.fromkeys(each["name"] for each in done.checks)) == list(CHECKS)
    statuses = {status.value for status in Status}
    for each in done.checks:
        assert set(each) == {"name", "status", "found", "remedy"}
        assert each["status"] in statuses
        assert each["found"], "nothing is skipped, or passed, without a word"
        assert bool(each["remedy"]) == (each["status"] in ("warning", "failed"))
    assert set(done.data) == {"ok", "checks", *statuses}
    assert sum(done.data[status] for status in statuses) == len(done.checks)
    assert done.data["ok"] is True
    assert done.code == 0


def test_a_warning_or_a_failure_without_a_remedy_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="without a remedy"):
        Result("x", Status.FAILED, "found")


@pytest.mark.parametrize(
    ("results", "plain", "strict"),
    [
        ([passed("a", "x"), skipped("b", "y")], 0, 0),
        ([passed("a", "x"), warning("b", "y", "z")], 0, 1),
        ([failed("a", "x", "z"), warning("b", "y", "z")], 1, 1),
    ],
)
def test_the_exit_code_is_one_where_something_failed_and_with_strict_where_it_warns(
    results: list[Result], plain: int, strict: int
) -> None:
    assert exit_code(results, strict=False) == plain
    assert exit_code(results, strict=True) == strict


def test_an_option_that_cannot_be_understood_ends_with_78() -> None:
    for arguments in (["--port=x"], ["--no-such"], ["--env=X"]):
        done = start("check", *arguments)
        assert done.returncode == 78
        assert "Traceback" not in done.stderr
        assert not done.stdout


def test_a_line_for_each_a_remedy_below_and_a_sum_in_plain_ascii_where_that_is_all() -> None:
    done = start("check", "--size=2", "--gpus-per-node=4", "--strict", *VLLM, "-tp", "16", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAIL layout"))
    assert "TP 16 x PP 1 needs 16 GPUs; the group has 2 nodes x 4 = 8. Fits: TP 8 x PP 1" in lines[at]
    assert lines[at + 1].strip().startswith("to do: set one of these, or make it a group of 4 nodes")
    assert done.stdout.isascii()
    assert lines[-1].split()[1::2] == ["passed,", "warnings,", "failed,", "skipped"]


def test_on_a_terminal_the_lines_have_marks() -> None:
    ours, theirs = pty.openpty()
    argv = [*LWSRUN, "check", "--", "no-such-program"]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(argv, stdout=theirs, stderr=subprocess.STDOUT, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # EIO: the other side is closed
            pass
        os.close(ours)
    assert process.returncode == 1
    text = shown.decode()
    assert "✗" in text
    assert "✓" in text
    assert "no-such-program is not on PATH" in text


# ------------------------------------------------------------------ conditions


def test_the_identity_is_checked_with_all_its_faults() -> None:
    done = check(LWS_GROUP_SIZE="many", LWS_WORKER_INDEX="-1", LWS_LEADER_ADDRESS="$(ADDRESS)")
    told = done.of("identity", "failed")
    for fault in ("LWS_GROUP_SIZE is 'many'", "LWS_WORKER_INDEX is '-1'", "LWS_LEADER_ADDRESS is '$(ADDRESS)'"):
        assert fault in told
    assert "variable that nobody expanded" in told
    assert done.code == 1


def test_what_is_in_order_passes(vllm: dict[str, str]) -> None:
    options = ("--gpus-per-node=8", "--token-file=/dev/null", "--vllm-mode=ray")
    done = check(*options[::2], *VLLM, "-tp", "16", **vllm, **LWS, LWSRUN_TOKEN="0123456789abcdef")
    assert "the leader of 2 at 127.0.0.1, as told by LeaderWorkerSet" in done.of("identity", "passed")
    assert "127.0.0.1 is 127.0.0.1, this pod" in done.of("leader", "passed")
    assert "16 bytes" in done.of("token", "passed")
    assert "vllm 0.32.0" in done.of("engine", "passed")
    assert "Ray 2.60.0" in done.of("ray", "passed")
    assert "vllm, Ray: " in done.of("plan", "passed")
    assert "fits 2 nodes × 8 GPUs" in done.of("layout", "passed")
    assert "6379 (Ray)" in done.of("ports", "passed")
    assert "with --parse vllm itself reads" in done.of("parser", "skipped")
    assert done.code == 0


def test_variables_and_a_token_that_mislead_are_found(vllm: dict[str, str]) -> None:
    misleading = {
        "VLLM_PORT": "tcp://10.96.0.7:8000", "GLOO_SOCKET_IFNAME": "nowhere0", "LWSRUN_TOKEN": "short",
        "VLLM_HOST_IP": "10.9.9.9",
    }  # fmt: skip
    done = check("--gpus-per-node=8", "--index=0", *VLLM, "-tp", "16", **vllm, **LWS, **misleading)
    told = done.of("environment", "warning")
    assert "VLLM_PORT=tcp://10.96.0.7:8000 is the address of a Service" in told
    assert "enableServiceLinks: false" in told
    assert "GLOO_SOCKET_IFNAME=nowhere0 names nowhere0; this pod has" in told
    assert "has 5 bytes" in done.of("token", "failed")
    assert "VLLM_HOST_IP is 10.9.9.9, which this pod has not got" in done.of("plan", "warning")


def test_ports_that_are_taken_are_told_with_their_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as channel, socket.create_server(("127.0.0.1", 0)) as engine:
        port, other = channel.getsockname()[1], engine.getsockname()[1]
        done = check(f"--port={port}", "--", "vllm", "serve", "m", "--port", str(other))
    told = done.of("ports", "failed")
    assert f"{port} (group channel) is in use by {Path(sys.executable).name}"[:30] in told
    assert f"(pid {os.getpid()})" in told
    assert f"{other} (--port of the engine) is in use by" in told
    assert "set" in told or "choose another: --port (LWSRUN_PORT)" in told
    assert done.code == 1


def test_a_port_that_is_wanted_twice_is_told() -> None:
    port = free_port()
    done = check(f"--port={port}", "--backend=generic", "--", "vllm", "serve", "m", "--port", str(port))
    assert f"port {port} is wanted twice: group channel, --port of the engine" in done.of("ports", "failed")


def test_ports_of_the_group_that_runs_here_already_are_in_order() -> None:
    port = free_port()
    with launched(f"--port={port}", "--kind=server", "--", "sh", "-c", "echo up; sleep 600 & wait", pid_1=False):
        wait_until(lambda: listens(port))
        done = check(f"--port={port}")
    assert f"{port} (group channel) is used by this pod's own group" in done.of("ports", "passed")
    assert done.code == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_small_shared_memory_and_few_descriptors_are_found() -> None:
    script = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && ulimit -n 250 && exec "$@"'
    wrap = ("unshare", *OWN, "--mount", "sh", "-c", script, "sh")
    done = check("--size=100", "--gpus-per-node=2", *VLLM, "-tp", "2", "-dp", "100", wrap=wrap)
    assert "/dev/shm has 64 MiB, a container's default" in done.of("shm", "warning")
    assert "emptyDir with `medium: Memory`" in done.of("shm", "warning")
    assert "250 open files (250 at most): the channel of 100 pods needs 264" in done.of("nofile", "failed")


def test_a_full_shared_memory_is_found() -> None:
    fill = "head -c 8M /dev/zero > /dev/shm/left || true"
    script = f'mount -t tmpfs -o size=8m tmpfs /dev/shm && {{ {fill}; }} 2>/dev/null; exec "$@"'
    done = check(wrap=("unshare", *OWN, "--mount", "sh", "-c", script, "sh"))
    assert "/dev/shm has 8 MiB, 0 free: it is full" in done.of("shm", "warning")


def test_a_leader_whose_name_does_not_resolve_is_found_within_seconds() -> None:
    identity = {**LWS, "LWS_LEADER_ADDRESS": "nobody.nowhere.invalid", "LWS_WORKER_INDEX": "1"}
    done = check("--", "true", wrap=("unshare", *OWN, "--net"), **identity)  # a network without a name server
    assert "nobody.nowhere.invalid: its name does not resolve" in done.of("leader", "failed")
    assert "headless Service" in done.of("leader", "failed")


def test_a_leader_that_does_not_listen_yet_is_no_failure_and_neither_is_one_that_does() -> None:
    port = free_port()
    worker = {**LWS, "LWS_WORKER_INDEX": "1"}
    assert "nobody listens at 127.0.0.1" in check(f"--port={port}", **worker).of("leader", "passed")
    with socket.create_server(("127.0.0.1", port)):
        assert "accepts connections" in check(f"--port={port}", **worker).of("leader", "passed")


@pytest.mark.parametrize(
    ("wrapped", "status", "told"),
    [
        (("sh", "-c", '"$@"; exit $?', "sh"), "warning", "a shell hands no SIGTERM on"),
        ((), "passed", "this is PID 1"),
    ],
)
def test_who_is_pid_1_is_told(wrapped: tuple[str, ...], status: str, told: str) -> None:
    done = check(wrap=("unshare", *OWN, "--pid", "--mount-proc", "--fork", "--kill-child", *wrapped))
    assert told in done.of("pid-1", status)


def test_a_termination_log_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    assert "cannot be written" in check(f"--termination-log={tmp_path}").of("termination-log", "failed")
    gone = check(f"--termination-log={tmp_path}/gone", KUBERNETES_SERVICE_HOST="10.96.0.1")
    assert "is not there" in gone.of("termination-log", "warning")


def test_a_bare_image_that_may_be_one_of_many_is_not_refused_for_its_layout(vllm: dict[str, str]) -> None:
    done = check("--gpus-per-node=8", *VLLM, "-tp", "16", **vllm)
    assert "say --size N for a group of N such pods" in done.of("layout", "warning")
    assert done.code == 0


def test_a_plan_that_cannot_be_made_and_an_engine_that_is_not_there_fail() -> None:
    done = check("--size=2", "--gpus-per-node=8", "--", "sh", "-c", "vllm serve m | tee log")
    assert "the engine is inside a shell" in done.of("plan", "failed")
    assert "write: lwsrun start -- vllm serve m" in done.of("plan", "failed")
    absent = check("--", sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "m")
    assert "no vllm in" in absent.of("engine", "failed")


# ------------------------------------------------------------------ checks that go wrong


MPI = ("--gpus-per-node=1", "--backend=mpi", "--mpi-agent")


@pytest.fixture
def mpi_path(tmp_path: Path) -> Path:
    """Where the programs are that a launch over MPI may need, as far as their version."""
    for name in ("mpirun", "ssh", "sshd"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("agent", "index", "needed"),
    [("ssh", "0", {"mpirun", "ssh"}), ("ssh", "1", {"mpirun", "sshd"}), ("channel", "0", {"mpirun"}),
     ("channel", "1", {"mpirun"}), ("ssh", "", {"mpirun", "ssh", "sshd"})],
)  # fmt: skip
def test_of_mpis_programs_those_are_needed_that_this_pod_starts(
    agent: str, index: str, needed: set[str], mpi_path: Path
) -> None:
    place = LWS | {"LWS_WORKER_INDEX": index} if index else {}
    size = () if index else ("--size=2",)
    done = check(*size, *MPI, agent, "--", "true", PATH=f"{mpi_path}:{os.environ['PATH']}", **place)
    found = done.of("mpi", "passed").splitlines()
    assert {line.partition(":")[0] for line in found} == {str(mpi_path / name) for name in needed}


def test_mpis_ports_are_looked_at(mpi_path: Path) -> None:
    worker = LWS | {"LWS_WORKER_INDEX": "1", "PATH": f"{mpi_path}:{os.environ['PATH']}"}
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ssh_port, of_range = first.getsockname()[1], second.getsockname()[1]
        ports = f"--mpi-ports={of_range - 5}-{of_range + 5}"
        done = check(f"--ssh-port={ssh_port}", ports, *MPI, "ssh", "--", "true", **worker)
        assert f"{ssh_port} (sshd) is in use" in done.of("ports", "failed")
        assert str(of_range) in done.of("ports", "warning").partition("in use: ")[2]
    port = free_port()
    done = check(f"--port={port}", f"--mpi-ports={port - 5}-{port + 5}", *MPI, "channel", "--", "true", **worker)
    assert f"wanted for something else too: {port} (group channel)" in done.of("ports", "failed")


def test_a_program_that_hangs_is_ended_and_told(tmp_path: Path) -> None:
    hangs = tmp_path / "mpirun"
    hangs.write_text("#!/bin/sh\nsleep 7341 & wait\n")
    hangs.chmod(0o755)
    shorter = "import launcher.check.image as i; i.PROGRAM = 0.5; from launcher.cli import run; run()"
    argv = [sys.executable, "-c", shorter, "check", "--format=json", "--", "mpirun", "-n", "2", "x"]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = Checked(subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env))
    assert f"{hangs} does not tell its version: no answer in time" in done.of("mpi", "failed")
    assert not any(b"7341" in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path))


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def one(check: registry.Check) -> Result:
    (result,) = asyncio.run(registry.run_one("x", check, cast(Scene, None)))
    return result


def test_a_check_that_fails_itself_is_a_failed_line_and_no_traceback() -> None:
    def broken(_: Scene) -> list[Result]:
        raise RuntimeError("sabotage")

    assert one(broken).status is Status.FAILED
    assert one(broken).found == "this check itself failed: RuntimeError('sabotage')"
    assert "said nothing" in one(lambda _: []).found


def test_a_check_that_hangs_is_a_failed_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LIMIT", 0.2)

    def hangs(_: Scene) -> list[Result]:
        time.sleep(1.5)
        return []

    assert "no answer within 0.2 s" in one(hangs).found
