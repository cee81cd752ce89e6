"""What a command that runs as it is finds in its pod, in real pods."""

from __future__ import annotations

import json
import sys

from conftest import Simulate, start

PRINT = (
    "import json, os; print(json.dumps({k: v for k, v in os.environ.items()"
    " if k.startswith(('MASTER_', 'NNODES', 'NODE_RANK', 'TPU_', 'NEURON_'))}))"
)
ACCELERATORS = {"TPU_WORKER_ID": "7", "TPU_WORKER_HOSTNAMES": "a,b", "NEURON_RT_ROOT_COMM_ID": "leader:8990"}


def test_every_pod_finds_the_standard_variables_and_its_accelerators_own_as_they_were(simulate: Simulate) -> None:
    done = simulate("--size=2", command=[sys.executable, "-c", PRINT], **ACCELERATORS)
    assert done.codes() == [0, 0]
    for index in range(2):
        assert json.loads(done.said(index)[0]) == {
            **ACCELERATORS, "MASTER_ADDR": "10.244.0.10", "MASTER_PORT": "29500", "NNODES": "2",
            "NODE_RANK": str(index),
        }  # fmt: skip
        assert "MASTER_ADDR=10.244.0.10: the leader's address, as an IP" in done.log(index)
        assert "as told by LeaderWorkerSet: LWS_LEADER_ADDRESS, LWS_GROUP_SIZE, LWS_WORKER_INDEX" in done.log(index)


def test_what_contradicts_lws_is_left_to_the_command_and_warned_of(simulate: Simulate) -> None:
    done = simulate("--size=2", command=[sys.executable, "-c", PRINT], NNODES="9")
    assert [json.loads(done.said(index)[0])["NNODES"] for index in range(2)] == ["9", "9"]
    assert "WARNING: LeaderWorkerSet says size 2, torchrun's names size 9: the former counts" in done.log(1)


def test_a_place_told_by_torchruns_names_reaches_the_command_unchanged() -> None:
    theirs = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1234", "NNODES": "1", "NODE_RANK": "0"}
    for options in ([], ["--orchestrator=torchrun"]):
        done = start("start", *options, "--", sys.executable, "-c", PRINT, **theirs)
        assert (done.returncode, json.loads(done.stdout)) == (0, theirs), done.stderr
        assert "the leader of 1, as told by torchrun's names: MASTER_ADDR, NNODES, NODE_RANK" in done.stderr


# Each worker opens its port late; a leader that did not wait would be refused.
LATE = """
import os, socket, sys, time
if os.environ["NODE_RANK"] == "0":
    for worker in sys.argv[1].split(","):
        host, port = worker.split(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    print("all are there", flush=True)
else:
    time.sleep(2)
    server = socket.create_server(("", 5005))
    for _ in range(2):
        server.accept()
"""


def test_the_leader_waits_for_its_workers_port(simulate: Simulate) -> None:
    command = [sys.executable, "-c", LATE, "{workers:5005}"]
    done = simulate("--size=3", "--await-workers=5005", command=command)
    assert done.codes() == [0, 0, 0], done.output[-3000:]
    assert done.said(0) == ["all are there"]


def test_without_waiting_the_leader_is_too_early(simulate: Simulate) -> None:
    done = simulate("--size=3", command=[sys.executable, "-c", LATE, "{workers:5005}"])
    assert done.codes()[0] == 1
    assert "ConnectionRefusedError" in done.log(0)


def test_an_engine_inside_a_shell_runs_where_the_user_says_that_it_is_generic(simulate: Simulate) -> None:
    shell = ["sh", "-c", 'vllm() { echo it runs "$@"; }; vllm serve m']
    done = simulate("--size=2", "--backend=generic", "--kind=job", command=shell)
    assert done.codes() == [0, 0], done.output[-3000:]
    assert [done.said(index) for index in range(2)] == [["it runs serve m"]] * 2
