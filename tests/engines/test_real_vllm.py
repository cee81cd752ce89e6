"""Real vLLM on the CPU: its own parser reads what lwsrun plans, and two pods serve one model."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import Simulate, Simulation, start
from streams import ALL_ASKED, stream

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
ON_CPU = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
ASK = (
    "curl -sS --fail --retry 300 --retry-connrefused --retry-delay 1 http://$LEADER_IP:8000/v1/completions"
    """ -H 'Content-Type: application/json' -d '{"model": "tiny", "prompt": "Hello", "max_tokens": 8}'"""
)


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The environment that `make test-engines` builds; its absence is a failure, not a skip."""
    path = Path(os.environ.get("LWSRUN_TEST_VLLM", ""))
    assert (path / "bin" / "vllm").exists(), "no vLLM at $LWSRUN_TEST_VLLM: run `make test-engines`"
    return path


def serve(vllm: Path) -> list[str]:
    return [
        str(vllm / "bin" / "vllm"), "serve", str(vllm / "tiny-llama"), "--served-model-name", "tiny",
        "--max-model-len", "256", "--enforce-eager", "--tensor-parallel-size", "2",
    ]  # fmt: skip


# what the user writes after `vllm serve`, size, GPUs per node -> what vLLM's parser must understand on the leader:
# the model, TP, PP, and how long vLLM itself drains (alone 15 s where the user does not say; on Ray we do it)
PARSED = [
    (["m", "-tp", "16"], 2, 8, ("m", 16, 1, 0)),
    (["m", "-tp=16"], 2, 8, ("m", 16, 1, 0)),
    (["m", "--tensor-parallel-size", "4", "--pipeline-parallel-size=2"], 2, 4, ("m", 4, 2, 0)),
    (["m", "--tensor_parallel_size=8"], 2, 4, ("m", 8, 1, 0)),
    (["m", "--tensor-par", "8"], 2, 4, ("m", 8, 1, 0)),
    (["m", "--te", "4", "--pi", "3"], 3, 4, ("m", 4, 3, 0)),
    (["m", "-tp", "2", "-tp", "8"], 2, 4, ("m", 8, 1, 0)),
    (["--tensor-parallel-size", "8", "m"], 2, 4, ("m", 8, 1, 0)),
    (["m", "--served-model-name", "a", "b", "-tp", "8"], 2, 4, ("m", 8, 1, 0)),
    (["m", "-tp", "8", "--allowed-media-domains", "a", "b"], 2, 4, ("m", 8, 1, 0)),
    (["m", "-tp", "8", "--kv-transfer-config", '{"kv_role": "kv_both"}'], 2, 4, ("m", 8, 1, 0)),
    (["m", "-tp", "8", "--distributed-executor-backend", "ray"], 2, 4, ("m", 8, 1, 0)),
    (["m", "-tp", "8", "--shutdown-timeout", "7"], 2, 4, ("m", 8, 1, 7)),
    (["m", "-tp", "8", "--shutdown_timeout=7"], 2, 4, ("m", 8, 1, 7)),
    (["m", "--shu", "7", "-tp", "8"], 2, 4, ("m", 8, 1, 7)),
    (["m", "-tp", "8", "--enable-server-load-tracking"], 2, 4, ("m", 8, 1, 0)),
    (["m", "-tp", "8"], 1, 8, ("m", 8, 1, 15)),
    (["m", "-tp", "8", "--shutdown_timeout=7"], 1, 8, ("m", 8, 1, 7)),
    (["m", "--shu", "7", "-tp", "8"], 1, 8, ("m", 8, 1, 7)),
    (["m", "-tp", "8", "--shutdown-timeout", "0"], 1, 8, ("m", 8, 1, 0)),
]


def test_the_planned_command_is_read_by_vllms_own_parser_as_it_was_meant(vllm: Path) -> None:
    planned = []
    for arguments, size, gpus, _ in PARSED:
        shape = (f"--size={size}", f"--gpus-per-node={gpus}", "--image-ray=2.60.0", "--index=0", "--format=json")
        done = start("plan", *shape, "--", "vllm", "serve", *arguments)
        assert done.returncode == 0, done.stderr
        argv = json.loads(done.stdout)[0]["main"]["argv"]
        assert argv[:2] == ["vllm", "serve"]
        planned.append(argv[2:])
    python = vllm / "bin" / "python"
    parse = subprocess.run(
        [python, HERE / "vllm_parse.py"], input=json.dumps(planned), capture_output=True, text=True, timeout=300,
        env={**os.environ, **ON_CPU},
    )  # fmt: skip
    assert parse.returncode == 0, parse.stderr[-2000:]
    understood = json.loads(parse.stdout.splitlines()[-1])
    assert len(understood) == len(PARSED)
    for (_, size, _, (model, tensor, pipeline, shutdown)), got in zip(PARSED, understood, strict=True):
        assert got == {
            "model_tag": model,
            "tensor_parallel_size": tensor,
            "pipeline_parallel_size": pipeline,
            "distributed_executor_backend": "ray" if size > 1 else None,
            "enable_server_load_tracking": size > 1,
            "nnodes": 1,
            "shutdown_timeout": shutdown,
        }


def test_a_worker_pod_killed_in_mid_service_ends_the_leader_at_once(vllm: Path, simulate: Simulate) -> None:
    # The bare engine's own exit code would be 0 here, seconds later.
    script = f"{ASK} && kill -9 $POD_1_PID && sleep 60"
    done = simulate("--size=2", "--gpus-per-node=1", f"--then={script}", command=serve(vllm), limit=400, **ON_CPU)
    assert done.codes() == [75, 137], done.output[-3000:]
    leader, worker = done.pods()
    assert leader["termination_message"].startswith("stopped because worker 1: lost: the connection was closed")
    assert leader["ended"] - worker["ended"] < 15


def rank_killed(vllm: Path, simulate: Simulate, sabotage: str = "") -> None:
    # vLLM's own way takes seconds, and the leader's engine ends first: with 0, when it is alone.
    script = f"{ASK} && kill -9 $(pgrep --ns $POD_1_PID --nslist pid -f '^(ray|VLLM)::.*Worker') && sleep 60"
    done = simulate(
        "--size=2", "--gpus-per-node=1", f"--then={script}", command=serve(vllm), limit=400, sabotage=sabotage, **ON_CPU
    )  # fmt: skip
    assert done.codes() == [75, 70], done.output[-3000:]
    for pod in done.pods():
        assert re.match(
            r"stopped because worker 1: the engine's \S+ \(pid \d+\) (ended|exited 137)", pod["termination_message"]
        )


def test_a_killed_rank_of_a_worker_is_the_first_cause_in_both_pods(vllm: Path, simulate: Simulate) -> None:
    rank_killed(vllm, simulate)


def test_an_engine_that_fails_by_itself_is_told_by_its_own_code_and_words(vllm: Path, simulate: Simulate) -> None:
    # It ends its ranks, on the worker too, before its process ends.
    command = [*serve(vllm), "--num-gpu-blocks-override", "1"]
    done = simulate("--size=2", "--gpus-per-node=1", command=command, limit=300, **ON_CPU)
    assert done.codes() == [1, 75], done.output[-3000:]
    for pod in done.pods():
        assert pod["termination_message"].startswith("stopped because the leader: the engine exited 1")
        assert "Traceback" in pod["termination_message"]


# By size: how many tokens the request asks for (on 2 cores TP 2 makes some 10 a second on one node), and what the
# leader says of it.
TOKENS = {1: 50, 2: 200}
IN_FLIGHT = {1: "draining in-flight requests count=1", 2: "1 requests in flight"}
HEALTHY = "curl -sS --fail --retry 300 --retry-connrefused --retry-delay 1 http://$LEADER_IP:8000/health"


def stream_in_flight(
    vllm: Path, simulate: Simulate, file: Path, size: int, sabotage: str = ""
) -> tuple[Simulation, bool]:
    """SIGTERM to every pod at once while one request streams; whether the client got all of it."""
    tokens = TOKENS[size]
    script = f"{HEALTHY}\n{stream(file, 8000, tokens, ALL_ASKED)}"
    done = simulate(
        f"--size={size}", f"--gpus-per-node={2 // size}", f"--then={script}",
        command=serve(vllm), limit=300, sabotage=sabotage, **ON_CPU,
    )  # fmt: skip
    got = file.read_text()
    assert "data: {" in got, done.output[-3000:]  # it had begun
    whole = (
        "curl ended with 0" in done.output
        and got.rstrip().endswith("data: [DONE]")
        and '"finish_reason":"length"' in got
        and f'"completion_tokens":{tokens}' in got
    )
    return done, whole


@pytest.mark.parametrize("size", [2, 1])
def test_a_stream_in_flight_is_finished_when_every_pod_gets_sigterm(
    size: int, vllm: Path, simulate: Simulate, tmp_path: Path
) -> None:
    done, whole = stream_in_flight(vllm, simulate, tmp_path / "stream", size)
    assert whole, done.output[-3000:]
    assert done.codes() == [0] * size, done.output[-3000:]
    assert IN_FLIGHT[size] in done.log(0), "the request had ended before the SIGTERM"
    if size == 2:
        assert "shows 2 nodes alive with 2 GPUs" in done.log(0)
        assert "vllm, Ray: the image has Ray" in done.log(0)


# On one node the engine's workers are in its process group, and drop everything at a SIGTERM of their own; on Ray the
# engine does so itself.
@pytest.mark.parametrize(("size", "off"), [(1, "asking_alone"), (2, "waiting_for_requests")])
def test_without_its_mechanism_the_stream_breaks(
    size: int, off: str, vllm: Path, simulate: Simulate, tmp_path: Path
) -> None:
    done, whole = stream_in_flight(vllm, simulate, tmp_path / "stream", size, sabotage=off)
    assert not whole, done.output[-3000:]


def test_a_sigterm_that_the_engine_loses_while_it_starts_still_ends_it_in_the_grace(
    vllm: Path, simulate: Simulate
) -> None:
    # vLLM is importing or loading; measured: it loses a SIGTERM then
    faults = [f"--fault=term:{index}@loading+12s" for index in range(2)]
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--drain-timeout=60s", *faults, command=serve(vllm), limit=200, **ON_CPU
    )  # fmt: skip
    assert done.codes() == [0, 0], done.output[-3000:]
    assert "killed" not in done.log(0)
