"""Real vLLM on the CPU over two pods without Ray: native TP 2, and data parallel 2. It answers, drains, dies as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Simulate
from streams import ALL_ASKED, stream
from test_real_vllm import ASK, ON_CPU, serve, vllm

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
__all__ = ["vllm"]  # a fixture

MODES = {
    "native": (["--vllm-mode=native"], []),
    "data parallel": ([], ["--tensor-parallel-size", "1", "--data-parallel-size", "2"]),
}
# Both replicas have answered when each has a request of its own: a front end gives a new one to the idler.
ANSWERED = (
    "for _ in 1 2 3 4 5 6; do curl -sS --fail -o /dev/null http://$LEADER_IP:8000/v1/completions"
    """ -H 'Content-Type: application/json' -d '{"model": "tiny", "prompt": "Hello", "max_tokens": 2}'; done;"""
    " curl -sS http://$LEADER_IP:8000/metrics | grep '^vllm:generation_tokens_total'"
)
# The stream still runs when the drain first looks: on 2 cores TP 2 makes some 10 tokens a second, a replica 60.
TOKENS = {"native": 120, "data parallel": 240}
UNTIL_ENDED = "sleep 90  # the end of this script would hurry the pods"


@pytest.mark.parametrize("mode", MODES)
def test_two_pods_answer_and_finish_a_stream_when_every_pod_gets_sigterm(
    mode: str, vllm: Path, simulate: Simulate, tmp_path: Path
) -> None:
    options, flags = MODES[mode]
    file, tokens = tmp_path / "stream", TOKENS[mode]
    script = f"{ASK} && {ANSWERED}\n{stream(file, 8000, tokens, ALL_ASKED)}\n{UNTIL_ENDED}"
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--drain-timeout=60s", *options, f"--then={script}",
        command=[*serve(vllm), *flags], limit=500, VLLM_PORT="tcp://10.96.0.7:8000", **ON_CPU,
    )  # fmt: skip
    assert "curl ended with 0" in done.output, done.output[-3000:]
    answer, _ = json.JSONDecoder().raw_decode(done.output[done.output.index('{"id"') :])
    assert answer["usage"]["completion_tokens"] == 8
    got = file.read_text()
    assert got.rstrip().endswith("data: [DONE]")
    assert f'"completion_tokens":{tokens}' in got
    assert done.codes() == [0, 0], done.output[-3000:]
    # vLLM would have failed at once with a URI for a port.
    assert "VLLM_PORT is not handed on: tcp://10.96.0.7:8000 is the address of a Service" in done.log(0)
    assert "world_size=2 rank=1" in done.log(1) or mode == "data parallel"
    if mode == "data parallel":
        assert "vLLM's front end on the leader at 10.244.0.10:29550 accepts connections" in done.log(1)
        assert "requests in flight" in done.log(0)
        replicas = [line for line in done.output.splitlines() if line.startswith("vllm:generation_tokens_total")]
        assert len(replicas) == 2, replicas
        assert all(float(line.split()[-1]) > 0 for line in replicas), "one replica answered nothing"


def test_where_every_pod_serves_a_workers_clients_get_their_answers_too(
    vllm: Path, simulate: Simulate, tmp_path: Path
) -> None:
    file, worker = tmp_path / "stream", "10.244.0.11"
    ask = ASK.replace("$LEADER_IP", worker)
    streamed = stream(file, 8000, TOKENS["data parallel"], ALL_ASKED, host=worker)
    done = simulate(
        "--size=2", "--gpus-per-node=2", "--drain-timeout=60s", f"--then={ASK} && {ask}\n{streamed}\n{UNTIL_ENDED}",
        command=[*serve(vllm), "-tp", "1", "--data-parallel-size", "4", "--data-parallel-hybrid-lb"], limit=550,
        **ON_CPU,
    )  # fmt: skip
    assert "curl ended with 0" in done.output, done.output[-3000:]
    assert file.read_text().rstrip().endswith("data: [DONE]")
    assert done.codes() == [0, 0], done.output[-3000:]
    assert "requests in flight" in done.log(1)
    assert "cut off" not in done.log(0) + done.log(1)


@pytest.mark.parametrize(("victim", "codes"), [(0, [137, 75]), (1, [75, 137])])
@pytest.mark.parametrize("mode", MODES)
def test_the_death_of_an_engine_ends_both_pods_and_both_name_it(
    mode: str, victim: int, codes: list[int], vllm: Path, simulate: Simulate
) -> None:
    # Without us the other pod would stay: idle vLLM notices no dead node, and a headless one waits for ever.
    options, flags = MODES[mode]
    script = f"{ASK} && kill -9 $(pgrep -P $POD_{victim}_PID | head -1) && sleep 60"
    done = simulate(
        "--size=2", "--gpus-per-node=1", *options, f"--then={script}",
        command=[*serve(vllm), *flags], limit=500, **ON_CPU,
    )  # fmt: skip
    assert done.codes() == codes, done.output[-3000:]
    who = "the leader" if victim == 0 else "worker 1"
    for pod in done.pods():
        assert pod["termination_message"].startswith(f"stopped because {who}: the engine exited 137 (SIGKILL)")
    assert abs(done.pods()[0]["ended"] - done.pods()[1]["ended"]) < 15


def test_a_sigterm_while_it_starts_still_ends_both_pods_in_the_grace(vllm: Path, simulate: Simulate) -> None:
    faults = [f"--fault=term:{index}@loading+12s" for index in range(2)]
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--vllm-mode=native", "--drain-timeout=60s", *faults,
        command=serve(vllm), limit=200, **ON_CPU,
    )  # fmt: skip
    assert done.codes() == [0, 0], done.output[-3000:]
    assert "killed" not in done.log(0) + done.log(1)
