"""Bad input gets one clear line saying what, where from and what to do; exit 78; never a traceback."""

from __future__ import annotations

import socket

import pytest
from conftest import start

ADDRESS = "--leader-address=my-lws-0.my-lws.default"
CASES = [
    # arguments, what the first line must hold, what must be said besides
    (["start", "--", "true"], "LWS_LEADER_ADDRESS, LWS_GROUP_SIZE and LWS_WORKER_INDEX are not set", "simulate"),
    (["start", "--size=2", "--index=2", ADDRESS, "--", "true"], "--index is 2, outside the group", "0 to 1"),
    (["start", "--size=0", "--index=0", ADDRESS, "--", "true"], "--size is 0", "1 to "),
    (["start", "--size=two", "--index=0", ADDRESS, "--", "true"], "--size is 'two'", "whole number"),
    (["start", "--size=2", "--index=0", "--leader-address=", "--", "true"], "it is empty", "host name"),
    (["start", "--size=2", "--index=0", "--leader-address=a_b..c", "--", "true"], "empty label", "host name"),
    (["start", "--size=1", "--", "no-such-program"], "no-such-program is not on PATH", "check the command"),
    (["start", "--size=1", "--", "/etc/passwd"], "/etc/passwd is not executable", "check the command"),
    (["start", "--size=1", "--", "/etc"], "/etc is a directory", "check the command"),
    (["start", "--size=1"], "the leader has no command", "lwsrun start -- COMMAND"),
    (["start", "--size=1", "--env=X", "--", "true"], "--env 'X'", "NAME=VALUE"),
    (["start", "--size=1", "--pod-ip=me", "--", "true"], "--pod-ip is 'me'", "IPv4 or IPv6"),
    (["start", "--size=1", "--drain-timeout=soon", "--", "true"], "Usage", "'soon' is not a duration"),
    (["start", "--size=1", "--no-such-flag", "--", "true"], "Usage", "No such option"),
    (
        ["start", "--size=2", "--index=1", ADDRESS, "--", "sh", "-c", "vllm serve m | tee log"],
        "the engine is inside a shell",
        "write: lwsrun start -- vllm serve m",
    ),
    (
        ["plan", "--size=2", "--gpus-per-node=4", "--image-ray=2.60.0", "--", "vllm", "serve", "m", "-tp", "16"],
        "TP 16 × PP 1 needs 16 GPUs; the group has 2 nodes × 4 = 8",
        "TP 8 × PP 1, TP 4 × PP 2",
    ),
    (
        ["plan", "--size=2", "--gpus-per-node=4", "--vllm-mode=ray", "--", "vllm", "serve", "m", "-tp=8", "--nnodes=2"],
        "--vllm-mode ray, but the command has --nnodes: that is native",
        "leave --nnodes or --vllm-mode out",
    ),
    (
        ["plan", "--size=2", "--gpus-per-node=4", "--image-engine=0.11.0", "--", "vllm", "serve", "m", "-tp", "8"],
        "vLLM 0.11.0 has no native multi-node mode",
        "0.11.1 or newer",
    ),
    (
        ["start", "--vllm-mode=fast", "--size=1", "--", "true"],
        "Usage",
        "'fast' is not one of",
    ),
    (
        ["plan", "--size=2", "--gpus-per-node=4", "--", "trtllm-serve", "m"],
        "TP 1 × PP 1 needs 1 GPU; the group has 2 nodes × 4 = 8",
        "Fits: TP 8 × PP 1",
    ),
    (
        ["plan", "--size=2", "--gpus-per-node=4", "--backend=mpi", "--", "mpirun", "-np", "8", "a.out"],
        "mpirun in the command",
        "lwsrun writes the mpirun",
    ),
    (
        ["start", "--size=1", "--exec", "--gpus-per-node=1", "--backend=mpi", "--", "true"],
        "--exec with MPI",
        "leave --exec out",
    ),
    (["start", "--size=1", "--mpi-ports=80", "--", "true"], "Usage", "'80' is not a range of ports"),
]


@pytest.mark.parametrize(("arguments", "first", "besides"), CASES, ids=lambda value: str(value)[:40])
def test_bad_input_says_what_and_what_to_do(arguments: list[str], first: str, besides: str) -> None:
    done = start(*arguments)
    assert done.returncode == 78
    assert first in done.stderr.splitlines()[0]
    assert besides in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_every_fault_is_told_at_once() -> None:
    done = start("start", "--", "true", LWS_GROUP_SIZE="many", LWS_WORKER_INDEX="-1", LWS_LEADER_ADDRESS="$(ADDRESS)")
    assert done.returncode == 78
    first = done.stderr.splitlines()[0]
    assert "3 faults" in first
    for name in ("LWS_GROUP_SIZE is 'many'", "LWS_WORKER_INDEX is '-1'", "LWS_LEADER_ADDRESS is '$(ADDRESS)'"):
        assert name in first
    assert "variable that nobody expanded" in done.stderr


def test_a_port_in_use_is_named_with_its_owner() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ("--size=2", "--index=0", "--leader-address=localhost", f"--port={port}", "--listen=127.0.0.1")
        done = start("start", *arguments, "--", "true")
    assert done.returncode == 78
    assert f"port {port} is in use by" in done.stderr
    assert "LWSRUN_PORT" in done.stderr
