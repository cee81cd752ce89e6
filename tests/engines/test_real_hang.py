"""Real vLLM over two pods: a rank of the worker that stands still under traffic, which no part of vLLM notices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Simulate, Simulation
from test_real_vllm import ON_CPU, serve, vllm

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
__all__ = ["vllm"]  # a fixture

# The engine compiles something for its first request.
FIRST = (
    "curl -sS -o /dev/null http://$LEADER_IP:8000/v1/completions -H 'Content-Type: application/json'"
    """ -d '{"model": "tiny", "prompt": "Hello", "max_tokens": 8}'"""
)
# Its health before and after; in the end the group is gone, or this script ends it.
SCRIPT = """
until curl -sf -o {file}.health http://$LEADER_IP:8000/health; do sleep 1; done
{ask}
curl -sSN -o {file} http://$LEADER_IP:8000/v1/completions -H 'Content-Type: application/json' -d '
  {{"model": "tiny", "prompt": "Hello", "max_tokens": 240, "ignore_eos": true, "stream": true}}' &
touch {file}; until grep -q data: {file}; do sleep 0.02; done
kill -STOP $(pgrep --ns $POD_1_PID --nslist pid -f '^VLLM::Worker')
sleep 6; echo "health is $(curl -sS -m 5 -o {file}.health -w '%{{http_code}}' http://$LEADER_IP:8000/health)"
sleep {wait}
"""


def stopped_under_traffic(
    vllm: Path, simulate: Simulate, tmp_path: Path, *options: str, wait: int = 300
) -> Simulation:  # fmt: skip
    script = SCRIPT.format(ask=FIRST, file=tmp_path / "stream", wait=wait)
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--vllm-mode=native", *options, f"--then={script}",
        command=serve(vllm), limit=800, **ON_CPU,
    )  # fmt: skip
    assert "data: {" in (tmp_path / "stream").read_text(), done.output[-3000:]
    assert "health is 200" in done.output, done.output[-3000:]
    return done


def test_a_rank_that_stands_still_ends_both_pods_and_both_name_it(
    vllm: Path, simulate: Simulate, tmp_path: Path
) -> None:
    done = stopped_under_traffic(vllm, simulate, tmp_path, "--hang-timeout=20s")
    assert done.codes() == [75, 70], done.output[-3000:]
    for pod in done.pods():
        assert re.match(
            r"stopped because worker 1: VLLM::Worker\S* \(pid \d+\) is stopped \(state T\), and the engine gets no"
            r" further with a request for 20 s: hung; stacks are in the log",
            pod["termination_message"],
        )
    for index in range(2):
        assert re.search(r"VLLM::Worker\S* \(pid \d+\):", done.log(index)), "no stack of the rank"
        assert "(vllm/" in done.log(index)  # of py-spy's stacks


def test_a_rank_that_stands_still_while_the_group_is_idle_is_found_too(
    vllm: Path, simulate: Simulate, tmp_path: Path
) -> None:
    script = SCRIPT.format(ask=FIRST, file=tmp_path / "stream", wait=300)
    wait, _, rest = script.strip().partition("\n")
    idle = "\n".join([wait, *(line for line in rest.splitlines() if line.startswith((FIRST, "kill", "sleep")))])
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--vllm-mode=native", "--hang-timeout=20s", f"--then={idle}",
        command=serve(vllm), limit=800, **ON_CPU,
    )  # fmt: skip
    assert done.codes() == [75, 70], done.output[-3000:]
    assert re.match(
        r"stopped because worker 1: VLLM::Worker\S* \(pid \d+\) is stopped .* with a request of ours for 20 s: hung",
        done.pods()[0]["termination_message"],
    )


def test_without_the_option_both_pods_stay(vllm: Path, simulate: Simulate, tmp_path: Path) -> None:
    done = stopped_under_traffic(vllm, simulate, tmp_path, wait=30)
    assert "SIGTERM to every pod" in done.output  # the script's end, not theirs
    assert "--then exited 0" in done.output
    assert "hung" not in done.log(0) + done.log(1)
