"""TensorRT-LLM: its ranks are its layout, the server listens where probes arrive, and who starts it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mpi_requests import TOOLS, main, plan, refusal

from backends.plan import Kind, PortOpen

EIGHT = (8, 8)


def program(line: str, **more: object) -> str:
    """What every rank is."""
    argv = main(plan(line, gpus=EIGHT, **more)).argv
    return " ".join(argv[argv.index("eth0", argv.index("btl_tcp_if_include")) + 1 :])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trtllm-serve m --tp_size 16", "trtllm-llmapi-launch trtllm-serve m --tp_size 16 --host 0.0.0.0"),
        (
            "trtllm-serve serve m --tp_size=8 --pp_size 2 --host ::",
            "trtllm-llmapi-launch trtllm-serve serve m --tp_size=8 --pp_size 2 --host ::",
        ),
        (
            "python3 -m dynamo.trtllm --model-path m --tensor-parallel-size 16",
            "trtllm-llmapi-launch python3 -m dynamo.trtllm --model-path m --tensor-parallel-size 16",
        ),
        (
            "trtllm-llmapi-launch trtllm-serve m --tp_size 16 --host 0.0.0.0",
            "trtllm-llmapi-launch trtllm-serve m --tp_size 16 --host 0.0.0.0",
        ),
        ("trtllm-serve disaggregated_mpi_worker -c f", "trtllm-serve disaggregated_mpi_worker -c f"),
    ],
)
def test_every_rank_is_what_tensorrt_llm_asks_for(line: str, expected: str) -> None:
    assert program(line) == expected


def test_a_program_of_the_users_own_is_run_as_it_is() -> None:
    made = plan("python3 bench.py", gpus=EIGHT, backend="tensorrt-llm")
    assert main(made).argv[-2:] == ("python3", "bench.py")
    assert made.kind is Kind.JOB
    assert "-np" in main(made).argv


@pytest.mark.parametrize("line", ["trtllm-serve m --tp_size 8 --pp_size 2", "trtllm-serve m --tp_size 4 --cp_size 4"])
def test_there_is_a_rank_for_each_gpu(line: str) -> None:
    argv = main(plan(line, gpus=EIGHT)).argv
    assert argv[argv.index("-np") + 1] == "16"


@pytest.mark.parametrize("sizes", ["", " --tp_size 8", " --tp_size 8 --pp_size 4"])
def test_a_layout_that_does_not_fill_the_group_is_refused(sizes: str) -> None:
    text = refusal(f"trtllm-serve m{sizes}", gpus=EIGHT)
    assert "the group has 2 nodes × 8 = 16" in text
    assert "Fits: TP 16" in text


@pytest.mark.parametrize("flag", ["--config", "--extra_llm_api_options"])
def test_sizes_in_a_file_are_left_to_it(flag: str) -> None:
    made = plan(f"trtllm-serve m {flag} f.yaml", gpus=EIGHT)
    argv = main(made).argv
    assert argv[argv.index("-np") + 1] == "16"
    assert any("f.yaml, which lwsrun does not read: TP × PP × CP must be 16" in note for note in made.notes)


def test_other_counts_of_gpus_or_ranks_are_refused() -> None:
    assert refusal("trtllm-serve m --tp_size 16 --gpus_per_node 4", gpus=EIGHT).startswith("--gpus_per_node is 4, but")
    assert refusal("trtllm-serve m --tp_size 16", gpus=EIGHT, ranks=8).startswith("--mpi-ranks 8: TensorRT-LLM has a")


def test_the_router_has_no_ranks() -> None:
    assert refusal("trtllm-serve disaggregated -c f", gpus=EIGHT).startswith("trtllm-serve disaggregated is a router")


def test_without_the_launch_script_every_rank_would_be_a_server() -> None:
    text = refusal("trtllm-serve m --tp_size 16", gpus=EIGHT, tools=replace(TOOLS, llmapi_launch=None))
    assert text.startswith("this image has no trtllm-llmapi-launch")


def test_a_users_own_mpirun_before_the_server_is_refused_without_a_backend_too() -> None:
    assert refusal("mpirun -np 16 trtllm-serve m --tp_size 16", gpus=EIGHT).startswith("mpirun in the command")


def test_it_is_a_server_whose_port_is_known() -> None:
    made = plan("trtllm-serve m --tp_size 16 --port 9000", gpus=EIGHT)
    assert made.kind is Kind.SERVER
    assert main(made).serves == PortOpen("localhost", 9000, "tensorrt-llm")
    assert main(plan("python3 -m dynamo.trtllm --tensor-parallel-size 16", gpus=EIGHT)).serves is None


def test_alone_it_runs_as_it_is() -> None:
    assert main(plan("trtllm-serve m --tp_size 8", gpus=(8,))).argv == ("trtllm-serve", "m", "--tp_size", "8")
