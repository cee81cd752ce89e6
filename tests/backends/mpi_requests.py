"""Requests for plans over MPI: two or more pods at 10.0.0.10, 10.0.0.11, … whose image has all that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import Main, Node, Options, Plan, Request
from backends.plan_mpi import MpiOptions, MpiTools
from backends.planner import make_plan

TOOLS = MpiTools(
    "/run/x",
    mpirun="/opt/mpi/bin/mpirun",
    version="4.1.6",
    ssh="/usr/bin/ssh",
    sshd="/usr/sbin/sshd",
    llmapi_launch="/usr/bin/trtllm-llmapi-launch",
    user="root",
    home="/root",
    shell="/bin/bash",
    trusted=True,
)


def request(
    line: str | Sequence[str],
    index: int = 0,
    gpus: tuple[int, ...] = (2, 2),
    *,
    backend: str = "auto",
    tools: MpiTools = TOOLS,
    environ: dict[str, str] | None = None,
    host: str = "pod",
    options: Options | None = None,
    interface: str | None = "eth0",
    **mpi: Any,
) -> Request:
    nodes = tuple(
        Node(f"10.0.0.1{at}", f"{host}-{at}", n, "NVML", interface=interface, openmpi=tools.version, mpi=tools)
        for at, n in enumerate(gpus)
    )
    chosen = replace(options or Options(), backend=backend, mpi=MpiOptions(**mpi))
    argv = tuple(line.split() if isinstance(line, str) else line)
    return Request(Group("my-lws-0.my-lws.default", len(gpus), index, "id"), nodes, argv, chosen, environ or {})


def plan(line: str | Sequence[str], *args: Any, **more: Any) -> Plan:
    return make_plan(request(line, *args, **more))


def main(made: Plan) -> Main:
    assert made.main is not None
    return made.main


def mca(made: Plan) -> dict[str, str]:
    """mpirun's settings, by name."""
    argv = main(made).argv
    return {argv[at + 1]: argv[at + 2] for at, word in enumerate(argv) if word == "--mca"}


def refusal(line: str | Sequence[str], *args: Any, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(line, *args, **more)
    return caught.value.text()
