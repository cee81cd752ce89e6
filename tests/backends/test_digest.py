"""Two templates of one group may differ in a pod's role and address, and in nothing else."""

from __future__ import annotations

import pytest

from backends.digest import common_part, difference


@pytest.mark.parametrize(
    ("leader", "worker"),
    [
        ("vllm serve m -tp 16", "vllm serve m -tp 16 --headless"),
        (
            "vllm serve m -tp 16 --nnodes 2 --node-rank 0 --master-addr a --port 8000",
            "vllm serve m -tp 16 -n 2 -r1 --master-addr=b --headless",
        ),
        ("vllm serve m --nnodes 2 --node_rank=0", "vllm serve m --nn 2 --nod 1"),
        (
            "vllm serve m -dp 16 --data-parallel-size-local 8 --data-parallel-address a --api-server-count 8",
            "vllm serve m -dp 16 -dpl 8 -dpa b --data-parallel-start-rank 8 --headless",
        ),
        ("vllm serve m --host 0.0.0.0 --port 8000", "vllm serve m --uds /tmp/s"),
        ("vllm serve m --ho 0.0.0.0 --por 8000", "vllm serve m --ud /tmp/s --head -as 0"),
        (
            "python3 -m vllm.entrypoints.openai.api_server --model m -r 0",
            "python3 -m vllm.entrypoints.openai.api_server --model m -r 1",
        ),
        ("numactl -N 0 vllm serve m --node-rank 0", "numactl -N 0 vllm serve m --node-rank 1"),
        (
            "python3 -m sglang.launch_server --model-path m --dist-init-addr a:1 --nnodes 2 --node-rank 0 --host ::",
            "python3 -m sglang.launch_server --model-path m --nccl-init-addr b:2 --nnodes=2 --node_rank=1",
        ),
        ("trtllm-serve m --tp_size 16 --port 8000", "trtllm-serve m --tp_size 16 --host 10.0.0.1"),
        (
            "torchrun --nnodes=2 --node_rank=0 --master_addr a --master-port 1 --rdzv-conf is_host=1 train.py",
            "torchrun --nnodes 2 --node-rank 1 --rdzv-endpoint b:1 train.py",
        ),
        ("torchrun --nn 2 --node_r=0 -t 3 x.py --node-rank 1", "torchrun -t 3 x.py --node-rank 1"),
        ("my-server --node-rank 0 --seed 1", "my-server --node-rank 1 --seed 1"),
        ("accelerate launch --machine_rank 0 t.py", "accelerate launch --machine_rank=1 --main_process_ip a t.py"),
        ("my-server --rank {index} {leader_ip}", "my-server --rank {index} {leader_ip}"),
    ],
)
def test_what_a_role_decides_is_left_out(leader: str, worker: str) -> None:
    assert common_part(leader.split()) == common_part(worker.split())
    assert difference(leader.split(), worker.split()) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "parts"),
    [
        ("vllm serve m -tp 16", "vllm serve other -tp 16", ("m", "other")),
        ("vllm serve m -tp 16", "vllm serve m -tp 8", ("16", "8")),
        ("vllm serve m", "vllm serve m --enforce-eager", ("nothing", "--enforce-eager")),
        ("vllm serve m -r 1 --seed 1", "vllm serve m -r 0 --seed 2", ("1", "2")),
        ("vllm serve m --data-parallel-hybrid-lb", "vllm serve m", ("--data-parallel-hybrid-lb", "nothing")),
        ("vllm serve m -dpp 5555", "vllm serve m", ("-dpp 5555", "nothing")),
        ("vllm serve m --master-port 1", "vllm serve m --master-port 2", ("1", "2")),
        ("vllm serve m -- --port 1", "vllm serve m -- --port 2", ("1", "2")),
        ("sglang serve m", "vllm serve m", ("sglang", "vllm")),
        ("my-server --host a", "my-server --host b", ("a", "b")),
        ("torchrun x.py --master-port 3 --node-rank 1", "torchrun x.py", ("--master-port 3 --node-rank 1", "nothing")),
        ("torchrun --rdzv-id a x.py", "torchrun --rdzv-id b x.py", ("a", "b")),
        ("a 'b", "a b", ("'\"'\"'b'", "b")),
    ],
)
def test_anything_else_is_a_difference_and_is_shown_without_what_both_share(
    ours: str, theirs: str, parts: tuple[str, str]
) -> None:
    found = difference(ours.split(), theirs.split())
    assert found is not None
    assert tuple(part.strip("'") for part in found) == tuple(part.strip("'") for part in parts)


@pytest.mark.parametrize("command", [["sh", "-c", "exec vllm serve m --node-rank 1"], ["vllm", "serve", "m", "--port"]])
def test_a_command_that_cannot_be_read_is_compared_whole(command: list[str]) -> None:
    assert common_part(command) == tuple(command)


def test_a_long_difference_is_cut() -> None:
    found = difference(["a", "x" * 1000], ["a", "y"])
    assert found is not None
    assert len(found[0]) == 301
