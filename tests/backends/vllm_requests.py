"""Requests for vLLM's plans: two or more nodes at 10.0.0.10, 10.0.0.11, …"""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import Node, Options, Plan, Request
from backends.vllm import plan_vllm


def made(
    line: str,
    index: int = 0,
    gpus: tuple[int, ...] = (8, 8),
    *,
    ray: str | None = None,
    version: str | None = None,
    mode: str = "auto",
    environ: dict[str, str] | None = None,
) -> Request:
    nodes = tuple(
        Node(f"10.0.0.1{at}", f"pod-{at}", n, engine_version=version, ray=ray, python="/usr/bin/python3")
        for at, n in enumerate(gpus)
    )
    group = Group("my-lws-0.my-lws.default", len(gpus), index, "id")
    return Request(group, nodes, tuple(line.split()), Options(vllm_mode=mode), environ or {})


def plans(line: str, gpus: tuple[int, ...] = (8, 8), **more: object) -> list[Plan]:
    """Of every pod, by index."""
    return [plan_vllm(made(line, index, gpus, **more)) for index in range(len(gpus))]  # type: ignore[arg-type]


def added(line: str, gpus: tuple[int, ...] = (8, 8), **more: object) -> list[str]:
    """What every pod's command has behind the user's, by index."""
    lines = []
    for plan in plans(line, gpus, **more):
        assert plan.main is not None
        argv = " ".join(plan.main.argv)
        assert argv.startswith(line), argv
        lines.append(argv[len(line) :].strip())
    return lines


def refusal(line: str, index: int = 0, gpus: tuple[int, ...] = (8, 8), **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_vllm(made(line, index, gpus, **more))  # type: ignore[arg-type]
    return caught.value.text()
