"""What every pod of the manifests would run is accepted by the real vLLM's and SGLang's own parsers, as it was meant.

The commands are those of the reviewed plans (tests/manifests/golden), which are held against the manifests by
tests/manifests/test_commands.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from test_real_sglang import ask_sglang, sglang
from test_real_vllm import ON_CPU, vllm

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]
__all__ = ["sglang", "vllm"]  # fixtures

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "manifests" / "golden"
FIELDS = ("nnodes", "node_rank", "headless", "data_parallel_size", "data_parallel_start_rank", "tensor_parallel_size")
# manifest -> by pod, the fields above
VLLM: dict[str, list[tuple[object, ...]]] = {
    "vllm-native": [(2, 0, False, 1, None, 16), (2, 1, True, 1, None, 16)],
    "vllm-ray": [(1, 0, False, 1, None, 8)],
    "vllm-dp": [(1, 0, False, 16, 0, 1), (1, 0, False, 16, 8, 1)],
    "kserve": [(1, 0, False, 16, None, 1), (1, 0, True, 16, 8, 1)],
    "grove": [(2, 0, False, 1, None, 16), (2, 1, True, 1, None, 16)],
}
SGLANG = {"sglang": ["null"], "sglang-disaggregated": ["decode", "prefill"], "disaggregatedset": ["prefill", "decode"]}


def run_by(manifest: str) -> list[list[str]]:
    """The main processes in a manifest's plan, pod by pod."""
    text = (GOLDEN / f"{manifest}.txt").read_text()
    return [shlex.split(line) for line in re.findall(r"^  run     (.*)  \(server\)$", text, re.MULTILINE)]


def test_the_manifests_of_vllm_are_read_by_vllms_own_parser_as_they_were_meant(vllm: Path) -> None:
    commands = [argv for manifest in VLLM for argv in run_by(manifest)]
    assert all(argv[:2] == ["vllm", "serve"] for argv in commands)
    done = subprocess.run(
        [vllm / "bin" / "python", HERE / "vllm_parse.py", *FIELDS], input=json.dumps([argv[2:] for argv in commands]),
        capture_output=True, text=True, timeout=300, env={**os.environ, **ON_CPU},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    understood = json.loads(done.stdout.splitlines()[-1])
    got = [tuple(each[field] for field in FIELDS) for each in understood if each is not None]
    assert got == [pod for pods in VLLM.values() for pod in pods]


def test_the_manifests_of_sglang_are_read_by_sglangs_own_parser_as_they_were_meant(sglang: Path) -> None:
    expected, commands = [], []
    for manifest, modes in SGLANG.items():
        found = run_by(manifest)
        assert len(found) == 2 * len(modes)
        commands += [argv[3:] for argv in found]
        expected += [(mode, index) for mode in modes for index in (0, 1)]
    for got, (mode, index) in zip(ask_sglang(sglang, commands, [])["parsed"], expected, strict=True):
        assert (got["disaggregation_mode"], got["node_rank"], got["nnodes"], got["tp_size"]) == (mode, index, 2, 16)
        assert (got["host"], got["port"], got["meet"]) == ("0.0.0.0", 30000, ["10.0.0.10", 20000])
        assert got["ranks"] == [[0, rank] for rank in range(8 * index, 8 * index + 8)]
