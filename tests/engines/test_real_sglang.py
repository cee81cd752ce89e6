"""Real SGLang on the CPU: its own parser and rank arithmetic read what lwsrun plans, and two pods serve one model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Simulate, Simulation
from streams import stream

from backends.errors import ConfigError
from backends.plan import Options
from launcher.preview import preview

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
PODS = HERE.parents[1] / "benchmarks" / "failure" / "pods.py"
# Without the last, SGLang wants a NUMA node for every rank of the group on each machine.
ON_CPU = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_CPU_OMP_THREADS_BIND": f"0|{1 % (os.cpu_count() or 1)}",
}
BODY = {"model": "tiny", "prompt": "Hello", "max_tokens": 8}
RETRY = "curl -sS --fail --retry 300 --retry-connrefused --retry-delay 1"
ASK = (
    f"{RETRY} http://$LEADER_IP:30000/v1/completions"
    f" -H 'Content-Type: application/json' -d '{json.dumps(BODY)}' && echo"
)
# Rank 1 is ready a moment after rank 0 answers.
PROBE_WORKER = f"{RETRY} -o /dev/null -w 'worker answers %{{http_code}}\\n' http://10.244.0.11:30000/health"


@pytest.fixture(scope="session")
def sglang() -> Path:
    """The environment that `make test-engines` builds; its absence is a failure, not a skip."""
    path = Path(os.environ.get("LWSRUN_TEST_SGLANG", ""))
    assert (path / "bin" / "sglang").exists(), "no SGLang at $LWSRUN_TEST_SGLANG: run `make test-engines`"
    return path


def serve(sglang: Path) -> list[str]:
    return [
        str(sglang / "bin" / "python"), "-m", "sglang.launch_server", "--model-path", str(sglang / "tiny-llama"),
        "--served-model-name", "tiny", "--device", "cpu", "--disable-overlap-schedule", "--max-total-tokens", "2048",
        "--max-running-requests", "4", "--context-length", "512", "--skip-server-warmup", "--tp", "2",
    ]  # fmt: skip


def ask_sglang(sglang: Path, commands: list[list[str]], layouts: list[list[int]]) -> dict[str, Any]:
    """What SGLang's own parser and arithmetic say (sglang_parse.py)."""
    done = subprocess.run(
        [sglang / "bin" / "python", HERE / "sglang_parse.py"],
        input=json.dumps({"commands": commands, "layouts": layouts}), capture_output=True, text=True, timeout=300,
        env={**os.environ, **ON_CPU},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


# ------------------------------------------------------------------ what SGLang reads

# what the user writes, size, GPUs per node -> TP, PP, attention DP and EP that SGLang must understand
LAYOUTS = [
    ("--tp 16", 2, 8, (16, 1, 1, 1)),
    ("--tp-size=16", 2, 8, (16, 1, 1, 1)),
    ("--tensor-parallel-size 16", 2, 8, (16, 1, 1, 1)),
    ("--tensor-par 16 --random-seed -1", 2, 8, (16, 1, 1, 1)),
    ("--tp 1 --tp-s 16", 2, 8, (16, 1, 1, 1)),
    ("--tp 8 --pp-size 2", 2, 8, (8, 2, 1, 1)),
    ("--tp 4 --pipeline-parallel-size 4", 2, 8, (4, 4, 1, 1)),
    ("--tp 8 --pi 4", 4, 8, (8, 4, 1, 1)),
    ("--tp 32", 4, 8, (32, 1, 1, 1)),
    ("--tp 16 --pp-size 2", 4, 8, (16, 2, 1, 1)),
    ("--tp 6", 3, 2, (6, 1, 1, 1)),
    ("--tp 2 --pp-size 3", 3, 2, (2, 3, 1, 1)),
    ("--tp 2 --base-gpu-id 7", 2, 8, (2, 1, 1, 1)),
    ("--tp 16 --dp 16 --enable-dp-attention --moe-a2a-backend deepep --moe-dense-tp-size 1", 2, 8, (16, 1, 16, 1)),
    ("--tp 16 --data-parallel-size 4 --enable-dp-attention --ep 16", 2, 8, (16, 1, 4, 16)),
    ("--tp 16 --attn-dp-size 8 --ep-size 8 --enable-dp-lm-head", 2, 8, (16, 1, 8, 8)),
    ("--tp 16 --attention-data 2 --expert-parallel-size 4", 2, 8, (16, 1, 2, 4)),
    ("--tp 4 --device cpu --allowed-media-domains a b", 2, 0, (4, 1, 1, 1)),
    ("--tp 8 --json-model-override-args {\"a\":{}}", 1, 8, (8, 1, 1, 1)),
    ("--tp 4 --pp-size 2 --disaggregation-ib-device mlx5_0,mlx5_1", 1, 8, (4, 2, 1, 1)),
]  # fmt: skip
# what the user says of places and addresses -> port of the rendezvous, --host, --port, --disaggregation-mode
PLACES = [
    ("", 20000, "0.0.0.0", 30000, "null"),
    ("--port 8000", 20000, "0.0.0.0", 8000, "null"),
    ("--po 20005 --ho 127.0.0.1", 20100, "127.0.0.1", 20005, "null"),
    ("--host {pod_ip}", 20000, "{pod_ip}", 30000, "null"),
    ("--nnodes {size} --node-rank {index} --dist-init-addr {leader_ip}:21000", 21000, "0.0.0.0", 30000, "null"),
    ("--nnode {size} --nccl-init-addr my-lws-0.my-lws.default:5000", 5000, "0.0.0.0", 30000, "null"),
    ("--disaggregation-mode prefill --disaggregation-transfer-backend nixl", 20000, "0.0.0.0", 30000, "prefill"),
    ("--disaggregation-mode decode --port 20000", 20100, "0.0.0.0", 20000, "decode"),
]
STARTS = (["python3", "-m", "sglang.launch_server", "--model-path", "m"], ["sglang", "serve", "m"])


def planned(argv: list[str], size: int, gpus: int) -> list[list[str]]:
    """The final command of every pod of the group."""
    pods = preview(tuple(argv), size, gpus, Options(), ray=None, engine="0.5.23", openmpi="5.0.10")
    return [data["main"]["argv"] for data, _ in pods]


def test_the_final_command_of_every_pod_is_read_by_sglangs_own_parser_as_it_was_meant(sglang: Path) -> None:
    commands: list[list[str]] = []
    meant, groups = [], []
    for at, (layout, size, gpus, (tp, pp, attention_dp, ep)) in enumerate(LAYOUTS):
        for place, meeting, host, port, mode in PLACES if size > 1 else PLACES[:1]:
            start = STARTS[(at + len(place)) % 2]
            pods = planned([*start, *layout.split(), *place.split()], size, gpus)
            groups.append((len(commands), size, tp * pp))
            for rank, argv in enumerate(pods):
                ip = f"10.0.0.{10 + rank}"
                commands.append(["--model-path", *argv[2:]] if argv[0] == "sglang" else argv[3:])
                meant.append(
                    {
                        "model_path": "m",
                        "tp_size": tp,
                        "pp_size": pp,
                        "attn_dp_size": attention_dp,
                        "dp_size": 1,
                        "ep_size": ep,
                        "nnodes": size,
                        "node_rank": rank,
                        "meet": ["10.0.0.10", meeting] if size > 1 else None,
                        "host": host.replace("{pod_ip}", ip) if size > 1 else "127.0.0.1",
                        "port": port,
                        "disaggregation_mode": mode,
                    }
                )
    assert len(commands) > 300
    understood = ask_sglang(sglang, commands, [])["parsed"]
    ranks = [got.pop("ranks") for got in understood]
    for command, wanted, got in zip(commands, meant, understood, strict=True):
        assert got == wanted, command
    for first, size, total in groups:
        started = [tuple(rank) for pod in ranks[first : first + size] for rank in pod]
        assert len(started) == len(set(started)) == total, commands[first]


def test_exactly_the_layouts_in_which_sglang_starts_every_rank_once_are_taken(sglang: Path) -> None:
    layouts = [[tp, pp, nodes] for tp in range(1, 9) for pp in range(1, 9) for nodes in range(2, 9)]
    exact = ask_sglang(sglang, [], layouts)["exact"]
    assert 0 < sum(exact) < len(layouts)
    for (tp, pp, nodes), whole in zip(layouts, exact, strict=True):
        argv = [*STARTS[0], "--device", "cpu", "--tp", str(tp), "--pp-size", str(pp)]
        try:
            taken = len(planned(argv, nodes, 0)) == nodes
        except ConfigError:
            taken = False
        assert taken == whole, f"TP {tp}, PP {pp} on {nodes} nodes"


# ------------------------------------------------------------------ two pods


def run(sglang: Path, simulate: Simulate, then: str, *options: str, flags: tuple[str, ...] = ()) -> Simulation:
    command = [*serve(sglang), *flags]
    return simulate("--size=2", f"--then={then}", *options, command=command, limit=400, **ON_CPU)


def test_two_pods_serve_one_model_the_worker_answers_probes_and_all_stop_with_zero(
    sglang: Path, simulate: Simulate
) -> None:
    done = run(sglang, simulate, f"{ASK} && {PROBE_WORKER}")
    assert done.codes() == [0, 0], done.output[-3000:]
    assert done.code == 0
    answer, _ = json.JSONDecoder().raw_decode(done.output[done.output.index('{"id"') :])
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["model"] == "tiny"
    assert "worker answers 200" in done.output
    assert "sglang, multi-node: every pod runs SGLang with its own rank; TP 2: 1 rank on each node" in done.log(0)
    assert "all 2: command" in done.log(0)
    assert "sglang 0.5.23" in done.log(0)


def test_attention_dp_meets_where_the_leader_can_bind_though_the_user_gave_its_name(
    sglang: Path, simulate: Simulate
) -> None:
    # It answers no completion here: SGLang's attention for CPUs without AMX cannot pad the ranks' batches.
    flags = ("--attn-dp-size", "2", "--dist-init-addr", "{leader}:21000")
    done = run(sglang, simulate, f"{RETRY} http://$LEADER_IP:30000/ping", flags=flags)
    assert done.codes() == [0, 0], done.output[-3000:]
    assert done.code == 0
    assert ":21000 is given as the leader's address, port 21000" in done.log(0)
    assert "DP1 TP1" in done.log(1)


UNTIL_ENDED = "for _ in $(seq 300); do [ -e /proc/$POD_0_PID ] || break; sleep 0.1; done"


def test_a_worker_pod_that_is_asked_to_stop_serves_until_the_leader_has_drained(
    sglang: Path, simulate: Simulate, tmp_path: Path
) -> None:
    # A bare SGLang worker ignores the SIGTERM until it is killed, and breaks the group then.
    file = tmp_path / "stream"
    script = f"{ASK}\n{stream(file, 30000, 150, 'kill -TERM $POD_1_PID')}\n{UNTIL_ENDED}"
    done = run(sglang, simulate, script, "--drain-timeout=60s")
    assert "curl ended with 0" in done.output, done.output[-3000:]
    assert '"completion_tokens":150' in file.read_text()
    assert file.read_text().rstrip().endswith("data: [DONE]")
    assert done.codes() == [0, 0], done.output[-3000:]


def test_a_sigterm_while_sglang_loads_ends_both_pods_at_once(sglang: Path, simulate: Simulate) -> None:
    # As PID 1 it would lose the signal, and serve.
    faults = [f"--fault=term:{index}@loading+6s" for index in range(2)]
    done = run(sglang, simulate, "sleep 60", "--drain-timeout=60s", *faults)
    assert done.codes() == [0, 0], done.output[-3000:]
    assert "killed" not in done.log(0)
    asked = next(line for line in done.log(0).splitlines() if "the engine ended" in line)
    assert float(asked.split("the engine ended ")[1].split(" s")[0]) < 10


def broken(sglang: Path, simulate: Simulate, index: int, what: str) -> Simulation:
    """Two pods that serve; then this happens in one of them, and what comes of it has a minute."""
    breaks = f"{sys.executable} {HERE / 'break_sglang.py'} $POD_{index}_PID {what}"
    done = run(sglang, simulate, f"{ASK} && {breaks} && sleep 60")
    assert f"broken: {what}" in done.output, done.output[-3000:]
    return done


@pytest.mark.parametrize("victim", ["main", "scheduler"])
@pytest.mark.parametrize("index", [0, 1])
def test_when_a_process_of_sglang_dies_every_pod_ends_and_none_with_zero(
    index: int, victim: str, sglang: Path, simulate: Simulate
) -> None:
    done = broken(sglang, simulate, index, victim)
    codes, process = ({137}, "the engine exited 137") if victim == "main" else ({70, 137}, "sglang::schedul")
    assert done.codes()[index] in codes, done.output[-3000:]
    assert done.codes()[1 - index] in (75, 137)  # its engine may end, before it is told to, when its peer is gone
    who = "the leader" if index == 0 else "worker 1"
    assert max(pod["ended"] for pod in done.pods()) - min(pod["noticed"] for pod in done.pods()) < 15
    for pod in done.pods():
        said = pod["termination_message"].splitlines()[0]
        assert said.startswith(f"stopped because {who}: ")
        assert process in said


def test_a_frozen_worker_of_an_idle_group_is_noticed_though_no_time_out_of_sglang_is(
    sglang: Path, simulate: Simulate
) -> None:
    done = broken(sglang, simulate, 1, "freeze")
    leader = done.pods()[0]
    assert leader["exit_code"] == 75, done.output[-3000:]
    assert leader["termination_message"].startswith("stopped because worker 1: lost: ")
    assert leader["ended"] - leader["noticed"] < 10


def test_the_bare_engine_ends_with_zero_when_a_rank_dies_or_does_not_end(sglang: Path, tmp_path: Path) -> None:
    """What the tests above are measured against: the same model as PID 1 of two pods, without lwsrun."""
    place = ["--host", "0.0.0.0", "--dist-init-addr", "10.244.0.10:20000", "--nnodes", "2", "--node-rank"]
    trial = {
        "directory": str(tmp_path),
        "commands": [[*serve(sglang), *place, str(rank)] for rank in range(2)],
        "environs": [
            {**os.environ, **ON_CPU, "GLOO_SOCKET_IFNAME": "eth0", "SGLANG_HOST_IP": f"10.244.0.1{rank}"}
            for rank in range(2)
        ],
        "port": 30000,
        "path": "/v1/completions",
        "ask": json.dumps(BODY),
        "fault": "rank",
        "index": 1,
        "rank_name": "sglang::scheduler",
        "limit": 60,
        "start_limit": 300,
    }
    file = tmp_path / "trial.json"
    file.write_text(json.dumps(trial))
    with subprocess.Popen(
        [sys.executable, PODS, file], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            line, _ = process.communicate(timeout=420)
        finally:
            process.kill()  # the kernel takes the whole sandbox along
    result = json.loads(line)
    assert not result["error"], result["error"]
    assert {code for code, _ in result["ended"].values()} <= {0}, result
