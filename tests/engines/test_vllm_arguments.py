"""Every pod's final command, in every mode and many layouts, is accepted by vLLM and means to it what was meant."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_real_vllm import ON_CPU, vllm

from backends import argv, vllm_flags
from backends.argv import Flag
from backends.plan import Options
from launcher.preview import preview

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
__all__ = ["vllm"]  # a fixture

HERE = Path(__file__).parent
LEADER = "10.0.0.10"
# Enough heads and experts for every degree below; a configuration needs no weights.
COMMON = {
    "hidden_size": 4096,
    "intermediate_size": 1024,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_hidden_layers": 16,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **COMMON},
    "moe": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8, **COMMON},
}


@dataclass(frozen=True)
class Case:
    """One group: what the user writes after the model, and the shape; tp is TP × PP of one replica."""

    mode: str
    model: str
    flags: str
    tp: int
    dp: int
    size: int
    gpus: int


def native() -> list[Case]:
    shapes = [  # TP, PP, size, GPUs per node
        (16, 1, 2, 8), (8, 2, 2, 8), (4, 4, 2, 8), (32, 1, 4, 8), (8, 4, 4, 8), (2, 1, 2, 1), (1, 2, 2, 1),
        (4, 1, 4, 1), (8, 3, 3, 8), (64, 1, 8, 8), (8, 8, 8, 8),
    ]  # fmt: skip
    return [
        Case("native", "dense", f"-tp {tp} -pp {pp} {more}", tp * pp, 1, size, gpus)
        for tp, pp, size, gpus in shapes
        for more in ("", "--distributed-executor-backend mp --master-port 12345")
    ] + [
        Case("native", "dense", flags, 16, 1, 2, 8)
        for flags in ("-t 16", "-t 8 -pp 2 -dpa 10.9.9.9 -dpp 5", "-tp 16 -as 1 --por 9000 --master-addr my-lws-0")
    ]


def replicas(mode: str, flag: str, models: tuple[str, ...], *shapes: tuple[int, int, int, int]) -> list[Case]:
    return [
        Case(mode, model, f"-tp {tp} -dp {dp} {flag}" + (" -ep" if model == "moe" else ""), tp, dp, size, gpus)
        for tp, dp, size, gpus in shapes
        for model in models
    ]


CASES = [
    *native(),
    *replicas(
        "internal", "", ("dense", "moe"),
        (1, 16, 2, 8), (4, 4, 2, 8), (8, 2, 2, 8), (2, 16, 4, 8), (8, 4, 4, 8), (1, 2, 2, 1), (1, 8, 8, 1),
        (2, 12, 3, 8),
    ),
    *replicas("internal", "--nnodes {size} --node-rank {index}", ("dense",), (4, 4, 2, 8), (8, 4, 4, 8)),
    *replicas("internal", "", ("moe",), (16, 2, 4, 8), (16, 4, 8, 8), (4, 2, 8, 1), (2, 2, 4, 1)),
    *replicas("internal", "-dph --no-data-parallel-h -dpa my-lws-0", ("dense",), (4, 4, 2, 8)),
    *replicas(
        "hybrid", "--data-parallel-hybrid-lb", ("dense", "moe"),
        (1, 16, 2, 8), (4, 4, 2, 8), (2, 16, 4, 8), (2, 12, 3, 8),
    ),
    *replicas("external", "--data-parallel-hybrid-lb", ("moe",), (8, 2, 2, 8)),  # what vLLM makes of one replica a pod
    *replicas(
        "external", "--data-parallel-external-lb", ("moe",),
        (8, 2, 2, 8), (8, 4, 4, 8), (1, 8, 8, 1), (16, 2, 4, 8), (4, 2, 8, 1),
    ),
    *replicas("external", "--data-parallel-rank {index}", ("moe",), (8, 2, 2, 8), (8, 4, 4, 8)),
    *replicas("multi-port", "-dpm", ("moe",), (1, 16, 2, 8), (4, 4, 2, 8), (2, 16, 4, 8)),
    *replicas("ray", "-dpb ray", ("dense", "moe"), (4, 4, 2, 8), (1, 16, 2, 8)),
]  # fmt: skip


def meant(case: Case, index: int) -> list[dict[str, Any]]:
    """What vLLM's configuration must say on this pod, for each server that it starts."""
    spans = max(case.tp // case.gpus, 1)  # nodes of a replica
    local = max(case.gpus // case.tp, 1)
    rank = index // spans if spans > 1 else index * local
    serves = index == 0 or case.mode in ("hybrid", "multi-port") or (case.mode == "external" and index % spans == 0)
    wanted: dict[str, Any] = {
        "world_size": case.tp,
        "headless": not serves,
        "data_parallel_size": case.dp,
        "data_parallel_hybrid_lb": case.mode == "hybrid",
        "data_parallel_external_lb": case.mode in ("external", "multi-port"),
    }
    if case.mode == "native" or (spans > 1 and case.mode != "ray"):
        wanted |= {"nnodes": case.size, "node_rank": index, "master_addr": LEADER, "local_world_size": case.gpus}
        wanted |= {"node_rank_within_dp": index % spans}
        if case.mode == "native":
            wanted["master_port"] = 12345 if "master-port" in case.flags else 29501
    if case.mode != "native":
        wanted |= {"data_parallel_size_local": local, "data_parallel_rank": rank, "data_parallel_master_ip": LEADER}
        wanted |= {"data_parallel_backend": "ray" if case.mode == "ray" else "mp"}
    if case.mode not in ("native", "ray"):
        wanted["data_parallel_rpc_port"] = 29550
    itself = (case.mode == "native" and index == 0) or case.mode == "multi-port"
    wanted["shutdown_timeout"] = 15 if itself and serves else 0
    if case.mode != "multi-port":
        return [wanted]
    one = {"data_parallel_size_local": 1}
    return [wanted | one | {"data_parallel_rank": rank + at, "port": 8000 + at} for at in range(local)]


def test_what_every_pod_runs_is_accepted_by_vllm_and_means_what_was_meant(vllm: Path, tmp_path: Path) -> None:
    for name, config in MODELS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    commands, wanted = [], []
    for case in CASES:
        line = ("vllm", "serve", str(tmp_path / case.model), *case.flags.split(), "--skip-tokenizer-init")
        ray = "2.60.0" if case.mode == "ray" else None
        pods = preview(line, case.size, case.gpus, Options(), ray=ray, engine="0.32.0", openmpi="5.0.10")
        for data, _ in pods:
            if data["main"] is None:
                assert case.mode == "ray"
                continue
            argv = data["main"]["argv"]
            assert argv[:2] == ["vllm", "serve"]
            commands.append(argv[2:])
            wanted.append((case, data["index"], meant(case, data["index"])))
    assert len(commands) > 200
    began = time.monotonic()
    done = subprocess.run(
        [vllm / "bin" / "python", HERE / "vllm_configure.py"], input=json.dumps(commands), capture_output=True,
        text=True, timeout=390, env={**os.environ, **ON_CPU},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    got = json.loads(done.stdout.splitlines()[-1])
    print(f"{len(got)} commands read by vLLM in {time.monotonic() - began:.0f} s")
    assert len(got) == len(wanted)
    wrong = []
    for (case, index, fields), servers in zip(wanted, got, strict=True):
        if isinstance(servers, str):
            wrong.append(f"{case} pod {index}: refused: {servers}")
            continue
        seen = [{name: server[name] for name in want} for want, server in zip(fields, servers, strict=True)]
        if seen != fields:
            differ = [{k: (w[k], s[k]) for k in w if w[k] != s[k]} for w, s in zip(fields, seen, strict=True)]
            wrong.append(f"{case} pod {index}: meant and understood: {differ}")
    assert not wrong, f"{len(wrong)} of {len(got)}:\n" + "\n".join(wrong[:40])


# What a flag takes that takes no number.
VALUES = {
    vllm_flags.EXECUTOR: "mp",
    vllm_flags.DP_BACKEND: "ray",
    vllm_flags.ALL2ALL: "deepep_low_latency",
    vllm_flags.KV_TRANSFER: '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}',
}
# Handled before the parser's own reading, and without prefixes here.
FLAGS = [
    flag
    for flag in vars(vllm_flags).values()
    if isinstance(flag, Flag) and flag not in (vllm_flags.MODEL, vllm_flags.CONFIG)
]


def spelled(flag: Flag, name: str) -> list[str]:
    return ["m", name, VALUES.get(flag, "3")] if flag.takes_value else ["m", name]


def test_every_spelling_of_a_flag_counts_here_as_in_vllms_own_parser(vllm: Path) -> None:
    asked: list[tuple[Flag, list[str]]] = [(flag, ["m"]) for flag in FLAGS]
    for flag in FLAGS:
        names = {flag.name, *flag.aliases, flag.shortest or flag.name}
        asked += [(flag, spelled(flag, name)) for name in sorted(names)]
        if flag.shortest:
            asked.append((flag, spelled(flag, flag.shortest[:-1])))  # too short
        if not flag.takes_value:
            off = flag.negation.shortest or flag.negation.name
            asked += [(flag, ["m", flag.name, off]), (flag, ["m", off, flag.name])]
    fields = [flag.name.removeprefix("--").replace("-", "_") for flag in FLAGS]
    parse = subprocess.run(
        [vllm / "bin" / "python", HERE / "vllm_parse.py", *fields], input=json.dumps([line for _, line in asked]),
        capture_output=True, text=True, timeout=300, env={**os.environ, **ON_CPU},
    )  # fmt: skip
    assert parse.returncode == 0, parse.stderr[-2000:]
    answers = json.loads(parse.stdout.splitlines()[-1])
    default = answers[0]
    read = 0
    for (flag, line), answer in zip(asked, answers, strict=True):
        if answer is None:
            continue  # what vLLM refuses may mean anything here
        field = fields[FLAGS.index(flag)]
        assert argv.given(line[1:], flag) is (answer[field] != default[field]), line
        read += 1
    assert read > 2 * len(FLAGS)
    taken = [line for (_, line), answer in zip(asked, answers, strict=True) if answer is not None]
    for flag in FLAGS:
        for name in (flag.name, *flag.aliases, flag.shortest or flag.name):
            assert spelled(flag, name) in taken, name
