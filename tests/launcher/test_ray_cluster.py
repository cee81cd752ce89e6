"""A real Ray cluster over simulated pods, with the example server on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Simulate, Simulation

pytestmark = pytest.mark.slow

SERVER = Path(__file__).parents[2] / "examples" / "ray_completions.py"
COMMAND = [sys.executable, str(SERVER), "--port", "8000"]
ON_RAY = ("--gpus-per-node=1", "--backend=ray", "--kind=server")
ASK = (
    "curl -sS --retry 60 --retry-connrefused --retry-delay 1 http://$LEADER_IP:8000/v1/completions"
    """ -d '{"prompt": "Who is here?", "max_tokens": 6}'"""
)

RAYLET = "pgrep -x raylet -a | grep 'node_ip_address=10.244.0.11' | cut -d ' ' -f 1"


def answer_of(done: Simulation) -> dict[str, Any]:
    line = next(line for line in done.output.splitlines() if line.startswith('{"id"'))
    answer: dict[str, Any] = json.loads(line)
    return answer


def test_a_request_is_answered_by_every_node_of_a_three_pod_cluster(simulate: Simulate) -> None:
    its_environment = f"tr '\\0' '\\n' < /proc/$({RAYLET})/environ"
    done = simulate("--size=3", *ON_RAY, f"--then={ASK} && {its_environment}", command=COMMAND, limit=100)
    assert done.codes() == [0, 0, 0], done.output[-3000:]
    choice = answer_of(done)["choices"][0]
    assert choice["written_by"] == ["sim-0", "sim-0-1", "sim-0-2"] * 2
    assert len(choice["text"].split()) == 6
    assert "Ray's GCS at 10.244.0.10:6379 shows 3 nodes alive with 3 GPUs" in done.log(0)
    assert "RAY_AUTH_MODE=token" in done.log(0)
    for index in range(3):
        assert "RAY_AUTH_TOKEN=<secret>" in done.log(index)
    # A worker's ranks are children of its Ray: what they shall see must be there when Ray starts.
    assert {"GLOO_SOCKET_IFNAME=eth0", "NCCL_SOCKET_IFNAME=eth0"} <= set(done.output.splitlines())


def test_a_worker_template_without_a_command_joins_the_leaders_cluster(simulate: Simulate) -> None:
    done = simulate("--size=2", *ON_RAY, "--worker-command=", f"--then={ASK}", command=COMMAND, limit=100)
    assert done.codes() == [0, 0], done.output[-3000:]
    assert answer_of(done)["choices"][0]["written_by"] == ["sim-0", "sim-0-1"] * 3
    assert "the command comes from the leader" in done.log(1)


def raylet_death(simulate: Simulate, sabotage: str = "") -> None:
    # SIGTERM is what Ray itself takes for a graceful end: `ray start --block` stays when its raylet goes like this.
    end_raylet = f"kill -TERM $({RAYLET})"
    script = f"{ASK} && {end_raylet} && sleep 15"
    done = simulate("--size=2", *ON_RAY, f"--then={script}", command=COMMAND, limit=60, sabotage=sabotage)
    assert done.codes() == [75, 70], done.output[-3000:]
    for index in range(2):
        assert "stopped because worker 1: raylet of ray-worker ended" in done.log(index).splitlines()[-1]


def test_a_raylet_that_ends_gracefully_ends_the_group(simulate: Simulate) -> None:
    raylet_death(simulate)


def test_without_the_watch_a_graceful_end_of_the_raylet_goes_unnoticed(simulate: Simulate) -> None:
    with pytest.raises(AssertionError):
        raylet_death(simulate, sabotage="raylet_watch")


def test_killing_a_worker_pod_ends_the_cluster_and_no_ray_process_is_left(simulate: Simulate) -> None:
    done = simulate("--size=2", *ON_RAY, "--fault=kill:1@serving", command=COMMAND, limit=60)
    assert done.codes() == [75, 137]
    assert "stopped because worker 1: lost: the connection was closed" in done.log(0).splitlines()[-1]
