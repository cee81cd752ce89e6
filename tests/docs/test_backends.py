"""The worked example of docs/backends.md, taken from the page, made known as the page says, and run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from backends import command, planner
from backends.errors import ConfigError
from backends.group import Group
from backends.plan import Kind, Node, Options, Plan, Request

PAGE = (Path(__file__).parents[2] / "docs" / "backends.md").read_text()
LONGEST = 60  # lines
FORBIDDEN = ("import os", "open(", "launcher", "subprocess", "time")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    module = types.ModuleType("backends.llama_cpp")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "docs/backends.md", "exec"), module.__dict__)
    monkeypatch.setitem(command.PROGRAMS, ("llama-server", None), "llama.cpp")
    monkeypatch.setitem(planner.PLANNERS, "llama.cpp", module.plan_llama_cpp)
    return str(code)


def planned(line: str, index: int, size: int = 3, options: Options | None = None) -> Plan:
    nodes = tuple(Node(ip=f"10.0.0.1{i}", hostname=f"pod-{i}", gpus=8) for i in range(size))
    group = Group("my-lws-0.my-lws.default", size, index, "id")
    return planner.make_plan(Request(group, nodes, tuple(line.split()), options or Options()))


def test_it_is_short_and_pure(example: str) -> None:
    assert len(example.splitlines()) < LONGEST
    assert not [word for word in FORBIDDEN if word in example]


def test_the_leader_serves_when_the_workers_lend_their_gpus(example: str) -> None:
    leader = planned("numactl -N 0 llama-server -m m.gguf --port 9000", 0)
    assert leader.main is not None
    assert " ".join(leader.main.argv) == (
        "numactl -N 0 llama-server -m m.gguf --port 9000 --rpc 10.0.0.11:50052,10.0.0.12:50052 --host 0.0.0.0"
    )
    assert leader.main.serves is not None
    assert leader.main.serves.port == 9000
    assert [gate.describe() for gate in leader.gates] == [
        "worker 1 at 10.0.0.11:50052 accepts connections",
        "worker 2 at 10.0.0.12:50052 accepts connections",
    ]
    worker = planned("llama-server -m m.gguf", 2)
    assert worker.main is not None
    assert worker.main.argv == ("rpc-server", "--host", "10.0.0.12", "--port", "50052")
    assert worker.kind is Kind.SERVER
    assert not worker.gates


def test_what_the_user_gave_is_kept_or_refused(example: str) -> None:
    alone = planned("llama-server -m m.gguf --host 10.0.0.10", 0, size=1)
    assert alone.main is not None
    assert alone.main.argv == ("llama-server", "-m", "m.gguf", "--host", "10.0.0.10")
    with pytest.raises(ConfigError) as caught:
        planned("llama-server -m m.gguf --rpc elsewhere:50052", 0)
    assert "10.0.0.11:50052,10.0.0.12:50052" in caught.value.text()
