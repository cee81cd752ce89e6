"""Smoke runs with the real PyTorch over Gloo, in simulated pods: good groups pass, and what is broken is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import SABOTAGE, Simulate, start

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]


@pytest.fixture(scope="session")
def torch_bin() -> Path:
    """The environment that `make test-engines` builds for vLLM, which holds PyTorch; its absence is a failure."""
    path = Path(os.environ.get("LWSRUN_TEST_VLLM", "")) / "bin"
    assert (path / "torchrun").exists(), "no PyTorch at $LWSRUN_TEST_VLLM: run `make test-engines`"
    return path


def path_with(directory: Path) -> str:
    return f"{directory}:{os.environ['PATH']}"


def test_a_good_group_passes_with_a_table_and_a_verdict(simulate: Simulate, torch_bin: Path) -> None:
    done = simulate(
        "--size=3", "--smoke", "--procs-per-node=2", command=[], limit=200, PATH=path_with(torch_bin)
    )  # fmt: skip
    assert done.codes() == [0, 0, 0], done.output[-4000:]
    said = done.said(0)
    assert said[0].startswith("smoke: 6 processes on 3 nodes, gloo, PyTorch 2.")
    assert [line.split()[:2] for line in said if line.endswith("  yes")] == [
        ["8", "B"], ["1", "KiB"], ["32", "KiB"], ["1", "MiB"], ["16", "MiB"],
    ]  # fmt: skip
    assert sum("↔" in line and "GB/s" in line and not line.startswith("smoke") for line in said) == 6
    assert said[-1].startswith("smoke: passed: 6 ranks on 3 nodes, all-reduce exact, ")
    assert "at 16 MiB, slowest pair " in said[-1]
    assert done.said(1) == done.said(2) == []


def test_a_pod_alone_has_nothing_to_compare_and_tells_it_as_json(torch_bin: Path) -> None:
    done = start("smoke", "--size=1", "--format=json", limit=120, PATH=path_with(torch_bin))
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert (result["passed"], result["ranks"], result["backend"]) == (True, 1, "gloo")
    assert (result["nodes"], result["pairs"]) == ({"0": [0]}, [])
    assert [row["bytes"] for row in result["all_reduce"]] == [8, 1 << 10, 1 << 15, 1 << 20, 1 << 24]
    assert all(row["seconds"] > 0 for row in result["all_reduce"])
    assert result["verdict"].endswith("one rank: nothing to compare")


# What the starter of worker 2 does to its pod's network before it becomes PyTorch's Python.
BREAK = {
    "slow": "network.tc('add', 'tbf', link, 0x10000, rate='50mbit', burst=65536, latency='400ms')",
    "cut": "network.route('add', dst='10.244.0.11/32', type='blackhole')",
}
NAMED = {
    "slow": "smoke: FAILED: worker 2: every one of its links is slow: ",
    "cut": "smoke: FAILED: worker 1 ↔ worker 2: ",
}


@pytest.mark.parametrize("how", BREAK)
def test_what_is_wrong_with_the_network_is_named(how: str, simulate: Simulate, torch_bin: Path, tmp_path: Path) -> None:
    breaking = tmp_path / "breaking.py"
    breaking.write_text(
        "from pyroute2 import IPRoute\nwith IPRoute() as network:\n"
        f"    link, = network.link_lookup(ifname='eth0')\n    {BREAK[how]}\n"
    )
    python = tmp_path / "python3"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *--rank=*) ;; *--index=2*) {sys.executable} {breaking} || exit 99;; esac\n'
        f'exec {torch_bin}/python3 "$@"\n'
    )
    python.chmod(0o755)
    done = simulate("--size=3", "--smoke", command=[], limit=300, PATH=path_with(tmp_path))
    assert done.codes() == [70, 75, 75], done.output[-4000:]
    assert NAMED[how] in done.said(0)[-1]
    for pod in done.pods():
        assert f"stopped because the leader: {NAMED[how]}" in pod["termination_message"]


@pytest.mark.parametrize(
    ("sabotage", "codes", "cause"),
    [
        ("wrong_values", [70, 75], "the leader: smoke: FAILED: wrong values in all-gather: what came from worker 1"),
        ("wrong_sums", [70, 75], "the leader: smoke: FAILED: wrong values in all-reduce of 32 KiB: on all ranks:"),
        ("stops", [70, 75], "the leader: smoke: FAILED: worker 1 does not run (dead, stopped or stuck): "),
        ("dies", [75, 137], "worker 1: smoke: FAILED: rank 1 (worker 1) was ended by SIGKILL"),
    ],
)
def test_a_bad_process_is_found_and_the_engine_is_not_started(
    sabotage: str, codes: list[int], cause: str, simulate: Simulate, torch_bin: Path
) -> None:
    done = simulate(
        "--size=2", "--smoke", "--smoke-timeout=30s", command=["echo", "the engine"], limit=200,
        PATH=path_with(torch_bin), PYTHONPATH=str(SABOTAGE), TEST_SMOKE_SABOTAGE=sabotage,
    )  # fmt: skip
    for pod in done.pods():
        assert f"stopped because {cause}" in pod["termination_message"], done.output[-4000:]
    assert done.codes() in (codes, [70 if code == 137 else code for code in codes])
    for index in range(2):
        assert "the engine" not in done.said(index)


LEFT = """
import os, pathlib
commands = [(p / "cmdline").read_bytes().split(b"\\0") for p in pathlib.Path("/proc").iterdir() if p.name.isdigit()]
print("left:", sum(any(word.endswith(b"collectives.py") for word in words) for words in commands))
"""


def test_before_an_engine_it_runs_once_and_leaves_nothing(simulate: Simulate, torch_bin: Path, tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(LEFT)
    # An engine that failed before the other pod's smoke run is over would have it repeated.
    done = simulate(
        "--size=2", "--smoke", "--max-restarts=1", command=["sh", "-c", f"python3 {script}; sleep 5; exit 3"],
        limit=200, PATH=path_with(torch_bin),
    )  # fmt: skip
    assert "restart 1 of 1 in place" in done.log(0), done.output[-4000:]
    left = [line for index in range(2) for line in done.said(index) if line.startswith("left:")]
    assert len(left) >= 2  # whose engine fails first ends the other's, which may not have come so far
    assert set(left) == {"left: 0"}
    for index in range(2):
        assert done.log(index).count("the smoke run took") == 1
    assert sum(line.startswith("smoke: passed: 2 ranks on 2 nodes") for line in done.said(0)) == 1
