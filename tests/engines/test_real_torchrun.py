"""Real torchrun on the CPU: its own parser reads what lwsrun plans, and two pods compute together over gloo."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Simulate, start

from backends.errors import ConfigError
from backends.torchrun_options import SWITCHES, VALUES, read_options

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def torch() -> Path:
    """The environment that `make test-engines` builds for vLLM, which holds PyTorch; its absence is a failure."""
    path = Path(os.environ.get("LWSRUN_TEST_VLLM", ""))
    assert (path / "bin" / "torchrun").exists(), "no torchrun at $LWSRUN_TEST_VLLM: run `make test-engines`"
    return path


def parse(torch: Path, lines: list[tuple[bool, list[str]]]) -> list[dict[str, Any]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    done = subprocess.run(
        [torch / "bin" / "python", HERE / "torchrun_parse.py"],
        input=json.dumps(lines), capture_output=True, text=True, timeout=200, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    understood: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(understood) == len(lines)
    return understood


# What stands before the script, in the forms that argparse takes (before Python 3.12 a prefix that fits both spellings
# of one option is ambiguous to it); then the script, with arguments that look like torchrun's.
GIVEN = (
    "", "--nnodes 2", "--nnodes=2", "--nn 2", "--nnodes 1:2", "--node_rank=1", "--node-r 1", "--master_ad h",
    "--role=", "--nproc_per_node=auto", "-r3", "-r 3", "-t=1", "--tee 0:1,1:2", "--max_restarts -1", "--rdzv_b c10d",
    "--local_a x", "--rdzv-conf is_host=1,a=2", "--log-dir -", "--standalone", "--stan", "--virtual_l", "--run_path",
    "--signals-t SIGTERM",
)  # fmt: skip
SCRIPTS = ("t.py", "t.py --nnodes 9 -r 7", "-- t.py --standalone", "-m train --node-rank 9", "-m -- train -m")
BROKEN = (
    "--nnodes", "--nnodes --standalone t.py", "--rdzv 3 t.py", "--st spawn t.py", "--m 3 t.py", "--frobnicate t.py",
    "--frobnicate 3 t.py", "--use-env t.py",
)  # fmt: skip


def test_lwsrun_reads_a_command_as_torchruns_own_parser_does(torch: Path) -> None:
    cases = [[*a.split(), *b.split(), *script.split()] for a, b, script in itertools.product(GIVEN, GIVEN, SCRIPTS)]
    for arguments, theirs in zip(cases, parse(torch, [(False, case) for case in cases]), strict=True):
        assert "error" not in theirs, arguments
        ours = read_options(arguments).values
        for name in (*VALUES, *SWITCHES):
            value = theirs.get(name.replace("-", "_"))
            if name not in ours:
                assert value in DEFAULTS.get(name, (None, False)), (name, arguments)
            elif name in VALUES:
                assert str(value) == ours[name], (name, arguments)
            else:
                assert value is True, (name, arguments)
    broken = [line.split() for line in BROKEN]
    for arguments, theirs in zip(broken, parse(torch, [(False, case) for case in broken]), strict=True):
        assert "error" in theirs, arguments
        with contextlib.suppress(ConfigError):
            assert read_options(arguments).unknown is not None, arguments
    legacy = parse(torch, [(True, ["--use-env", "--nnodes", "2", "t.py"])])[0]
    assert (legacy["use_env"], legacy["nnodes"], legacy["training_script"]) == (True, "2", "t.py")


DEFAULTS: dict[str, tuple[Any, ...]] = {
    "nnodes": ("1:1",), "nproc-per-node": ("1",), "rdzv-backend": ("static",), "rdzv-endpoint": ("",),
    "rdzv-id": ("none",), "rdzv-conf": ("",), "max-restarts": (0,), "monitor-interval": (0.1,),
    "start-method": ("spawn",), "event-log-handler": ("null",), "role": ("default",), "redirects": ("0",),
    "tee": ("0",), "local-ranks-filter": ("",), "duplicate-stdout-filters": ([],), "duplicate-stderr-filters": ([],),
    "node-rank": (0,), "master-addr": ("127.0.0.1",), "signals-to-handle": ("SIGTERM,SIGINT,SIGHUP,SIGQUIT",),
}  # fmt: skip


def test_torchrun_understands_the_planned_command_as_it_was_meant(torch: Path) -> None:
    # before the script -> nodes and endpoint that torchrun must understand
    given = {
        "": ([3, 3], "10.0.0.10:29500"),
        "--nnodes 3": ([3, 3], "10.0.0.10:29500"),
        "--nnodes=1:3": ([1, 3], "10.0.0.10:29500"),
        "--master_port 1234": ([3, 3], "10.0.0.10:1234"),
        "--master-addr leader --nproc_per_node 2": ([3, 3], "leader:29500"),
        "--rdzv-endpoint leader:1": ([3, 3], "leader:1"),
        "--rdzv-backend c10d": ([3, 3], "10.0.0.10:29500"),
        "--rdzv-backend c10d --nnodes 1:8": ([1, 8], "10.0.0.10:29500"),
    }
    planned, meant = [], []
    for options, script in itertools.product(given, ("t.py --nnodes 9", "-m train --node-rank 7", "-- t.py")):
        line = ["torchrun", *options.split(), *script.split()]
        done = start("plan", "--size=3", "--gpus-per-node=2", "--format=json", "--", *line)
        assert done.returncode == 0, done.stderr
        for pod in json.loads(done.stdout):
            planned.append((False, pod["main"]["argv"][1:]))
            meant.append((given[options], pod["index"], "c10d" in options, script.split()[-1]))
    for (nodes, index, c10d, last), theirs in zip(meant, parse(torch, planned), strict=True):
        assert "refused" not in theirs, theirs
        assert (theirs["nodes"], theirs["endpoint"]) == (list(nodes[0]), nodes[1])
        assert theirs["nproc_per_node"] == "2"
        if c10d:
            assert theirs["configs"]["is_host"] == ("true" if index == 0 else "false")
            assert (theirs["id"], theirs["local_addr"]) == ("my-lws-0.my-lws.default", f"10.0.0.1{index}")
        else:
            assert theirs["configs"]["rank"] == index
        assert [theirs["training_script"], *theirs["training_script_args"]][-1] == last


ALL_REDUCE = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
mine = torch.tensor([2.0 ** dist.get_rank()])
dist.all_reduce(mine)
os.write(1, f"rank {dist.get_rank()} of {dist.get_world_size()} has {int(mine)}\\n".encode())  # whole lines
dist.destroy_process_group()
"""
TORCHRUN = ("-m", "torch.distributed.run")
ASK = "curl -sS --fail --retry 90 --retry-connrefused --retry-delay 1 http://$LEADER_IP:8000/"


@pytest.mark.parametrize("rendezvous", [[], ["--rdzv-backend=c10d"]], ids=["static", "c10d"])
def test_two_pods_of_two_processes_add_up_their_ranks(
    rendezvous: list[str], torch: Path, simulate: Simulate, tmp_path: Path
) -> None:
    script = tmp_path / "all_reduce.py"
    script.write_text(ALL_REDUCE)
    python = str(torch / "bin" / "python")
    done = simulate(
        "--size=2", "--gpus-per-node=2", command=[python, *TORCHRUN, *rendezvous, str(script)], limit=120
    )  # fmt: skip
    assert done.codes() == [0, 0], done.output[-3000:]
    said = sorted(line for index in range(2) for line in done.said(index) if line.startswith("rank "))
    assert said == [f"rank {rank} of 4 has 15" for rank in range(4)]
    if not rendezvous:
        assert "rank 0 of 4 has 15" in done.said(0)


# Rank 1 ends while rank 0 is busy elsewhere: nothing else tells rank 0's pod.
ONE_DIES = """
import sys, time, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank() == 1:
    sys.exit(7)
time.sleep(100)
"""


@pytest.mark.parametrize("kind", ["job", "server"])
def test_one_rank_that_dies_ends_every_pod(kind: str, torch: Path, simulate: Simulate, tmp_path: Path) -> None:
    script = tmp_path / "one_dies.py"
    script.write_text(ONE_DIES)
    python = str(torch / "bin" / "python")
    command = [python, *TORCHRUN, str(script)]
    done = simulate("--size=2", "--gpus-per-node=1", f"--kind={kind}", command=command, limit=120)
    assert done.codes() == [75, 1], done.output[-3000:]  # torchrun's own code for a process that ended with 7
    leader, worker = done.pods()
    assert "worker 1" in leader["termination_message"]
    assert leader["ended"] - worker["ended"] < 5


SERVES = """
import http.server, os, signal, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
signal.signal(signal.SIGTERM, lambda *_: (print(f"rank {dist.get_rank()} leaves", flush=True), os._exit(0)))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        one = torch.ones(1)
        dist.all_reduce(one)
        self.send_response(200); self.end_headers(); self.wfile.write(f"{int(one)} ranks".encode())
if dist.get_rank() == 0:
    http.server.HTTPServer(("", 8000), Handler).serve_forever()
while True:
    dist.all_reduce(torch.ones(1))
"""


def test_a_server_of_two_pods_answers_together_and_stops_with_zero(
    torch: Path, simulate: Simulate, tmp_path: Path
) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVES)
    python = str(torch / "bin" / "python")
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--kind=server", f"--then={ASK}", command=[python, *TORCHRUN, str(script)],
        limit=120,
    )  # fmt: skip
    assert "2 ranks" in done.output
    assert done.codes() == [0, 0], done.output[-3000:]
    assert "rank 0 leaves" in done.said(0)


DEAF = """
import http.server, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("", 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.mark.parametrize(("patience", "code"), [({}, 0), ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "30"}, 137)])
def test_torchruns_patience_with_a_deaf_process_fits_the_drain(
    patience: dict[str, str], code: int, torch: Path, simulate: Simulate, tmp_path: Path
) -> None:
    script = tmp_path / "deaf.py"
    script.write_text(DEAF)
    command = [str(torch / "bin" / "python"), *TORCHRUN, str(script)]
    done = simulate(
        "--size=1", "--gpus-per-node=1", "--drain-timeout=9s", f"--then={ASK}", command=command, limit=120, **patience
    )  # fmt: skip
    assert "Directory listing" in done.output, "it had not started"
    assert done.codes() == [code], done.output[-3000:]
