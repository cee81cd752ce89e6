"""Real vLLM on the CPU: its own parser reads what lwsrun plans, and two pods serve one model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import Simulate, start

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
# the model, TP, PP, and how long it drains (15 s where the user does not say)
PARSED = [
    (["m", "-tp", "16"], 2, 8, ("m", 16, 1, 15)),
    (["m", "-tp=16"], 2, 8, ("m", 16, 1, 15)),
    (["m", "--tensor-parallel-size", "4", "--pipeline-parallel-size=2"], 2, 4, ("m", 4, 2, 15)),
    (["m", "--tensor_parallel_size=8"], 2, 4, ("m", 8, 1, 15)),
    (["m", "--tensor-par", "8"], 2, 4, ("m", 8, 1, 15)),
    (["m", "--te", "4", "--pi", "3"], 3, 4, ("m", 4, 3, 15)),
    (["m", "-tp", "2", "-tp", "8"], 2, 4, ("m", 8, 1, 15)),
    (["--tensor-parallel-size", "8", "m"], 2, 4, ("m", 8, 1, 15)),
    (["m", "--served-model-name", "a", "b", "-tp", "8"], 2, 4, ("m", 8, 1, 15)),
    (["m", "-tp", "8", "--allowed-media-domains", "a", "b"], 2, 4, ("m", 8, 1, 15)),
    (["m", "-tp", "8", "--kv-transfer-config", '{"kv_role": "kv_both"}'], 2, 4, ("m", 8, 1, 15)),
    (["m", "-tp", "8", "--distributed-executor-backend", "ray"], 2, 4, ("m", 8, 1, 15)),
    (["m", "-tp", "8", "--shutdown-timeout", "7"], 2, 4, ("m", 8, 1, 7)),
    (["m", "-tp", "8", "--shutdown_timeout=7"], 2, 4, ("m", 8, 1, 7)),
    (["m", "--shu", "7", "-tp", "8"], 2, 4, ("m", 8, 1, 7)),
    (["m", "-tp", "8", "--shutdown-timeout", "0"], 2, 4, ("m", 8, 1, 0)),
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
    for (_, _, _, (model, tensor, pipeline, shutdown)), got in zip(PARSED, understood, strict=True):
        assert got == {
            "model_tag": model,
            "tensor_parallel_size": tensor,
            "pipeline_parallel_size": pipeline,
            "distributed_executor_backend": "ray",
            "nnodes": 1,
            "shutdown_timeout": shutdown,
        }


def test_two_pods_serve_one_model_and_stop_with_zero(vllm: Path, simulate: Simulate) -> None:
    done = simulate("--size=2", "--gpus-per-node=1", f"--then={ASK}", command=serve(vllm), limit=400, **ON_CPU)
    assert done.codes() == [0, 0], done.output[-3000:]
    assert done.code == 0
    answer, _ = json.JSONDecoder().raw_decode(done.output[done.output.index('{"id"') :])
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["model"] == "tiny"
    assert "shows 2 nodes alive with 2 GPUs" in done.log(0)
    assert "vllm, Ray: the image has Ray" in done.log(0)


def test_a_worker_pod_killed_in_mid_service_ends_the_leader_at_once(vllm: Path, simulate: Simulate) -> None:
    # The bare engine's own exit code would be 0 here, seconds later.
    script = f"{ASK} && kill -9 $POD_1_PID && sleep 60"
    done = simulate("--size=2", "--gpus-per-node=1", f"--then={script}", command=serve(vllm), limit=400, **ON_CPU)
    assert done.codes() == [75, 137], done.output[-3000:]
    leader, worker = done.pods()
    assert leader["termination_message"].startswith("stopped because worker 1: lost: the connection was closed")
    assert leader["ended"] - worker["ended"] < 15


def test_sigterm_while_the_engine_starts_still_ends_the_pods_in_the_grace(vllm: Path, simulate: Simulate) -> None:
    script = "sleep 12"  # vLLM is importing or loading; measured: it loses a SIGTERM then
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--drain-timeout=15s", f"--then={script}", command=serve(vllm), limit=200,
        **ON_CPU,
    )  # fmt: skip
    assert all(code in (0, 137) for code in done.codes()), done.output[-3000:]
    told = float(next(line for line in done.output.splitlines() if "SIGTERM to every pod" in line).split()[2])
    assert max(pod["ended"] for pod in done.pods()) - told < 25
