"""The processes of a smoke run: in each pod a starter, under it one rank for each GPU. Run by the image's own Python.

`python3 collectives.py --index 1 --procs 2,2 --backend gloo --timeout 60`, with MASTER_ADDR and MASTER_PORT set. The
leader's starter holds the store, conducts the ranks, and prints what was measured and the verdict. Needs PyTorch and
the standard library, and of lwsrun only its siblings, which need nothing more. Every import of torch is a lazy one.
"""

from __future__ import annotations

import os
import sys

# Not the directory of this file, whose modules could hide others; and for our own siblings only.
sys.path[:1] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

import argparse
import json
import signal
import subprocess
import time
from typing import Any, NoReturn

from launcher.smoke import findings
from launcher.smoke.conductor import FACTOR, Conductor, Failed
from launcher.smoke.findings import World
from launcher.smoke.rank import Rank, first_line

del sys.path[0]

FAILED, CONFIG = 70, 78  # as in launcher/exits.py
DEATHS = 0.1  # seconds between two looks for ranks that have ended


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--procs", required=True)
    parser.add_argument("--backend", choices=["gloo", "nccl"], required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--slow", type=float)
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--step", type=int, default=0)
    asked = parser.parse_args()
    world = World(tuple(map(int, asked.procs.split(","))), asked.backend == "nccl")
    if asked.rank is not None:
        Rank(asked.rank, world, asked.backend, asked.timeout).live(asked.step)
    else:
        Starter(asked, world).run()


class Starter:
    """Starts this pod's ranks and ends with 0 when all have; on the leader it conducts those of all pods."""

    def __init__(self, asked: argparse.Namespace, world: World) -> None:
        self.asked = asked
        self.world = world
        self.ranks: dict[int, subprocess.Popen[bytes]] = {}

    def run(self) -> NoReturn:
        signal.signal(signal.SIGTERM, lambda *_: self.leave(128 + signal.SIGTERM))
        try:
            conductor = self.prepare() if self.asked.index == 0 else None
            for local, rank in enumerate(self.world.ranks_of(self.asked.index)):
                self.ranks[rank] = start_rank(rank, local, self.world.procs[self.asked.index], self.world.size)
            if conductor is not None:
                self.conduct(conductor)
            while self.ranks:
                self.mind()
                time.sleep(DEATHS)
        except Died as error:
            print(f"smoke: FAILED: {error}", file=sys.stderr, flush=True)
            self.leave(error.code)
        self.leave(0)

    def prepare(self) -> Conductor:
        import torch.distributed as dist

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            store = dist.TCPStore(host, port, None, True, wait_for_workers=False)
        except (RuntimeError, OSError) as error:
            print(f"smoke: FAILED: port {port} cannot be had: {first_line(error)}; --smoke-port", file=sys.stderr)
            self.leave(CONFIG)
        factor = self.asked.slow or FACTOR[self.asked.backend]
        return Conductor(store, self.world, self.asked.backend, self.asked.timeout, factor, self.mind)

    def conduct(self, conductor: Conductor) -> None:
        """Print what was found; leaves when it was not good, or when this pod has no ranks of its own."""
        try:
            verdict, good = f"smoke: passed: {conductor.conduct()}", True
        except Failed as error:
            verdict, good = f"smoke: FAILED: {error}", False
        if self.asked.format == "json":
            print(json.dumps(as_json(conductor, good, verdict), indent=2), flush=True)
            print(verdict, file=sys.stderr, flush=True)
        else:
            print(findings.table(conductor.result, self.world, conductor.pairs, conductor.blame), flush=True)
            print(verdict, flush=True)
        if not good:
            self.leave(FAILED)
        if not self.ranks:
            time.sleep(1.0)  # the store's last word is still read elsewhere

    def mind(self) -> None:
        """Raises Died when a rank of this pod has ended otherwise than with 0."""
        for rank, process in list(self.ranks.items()):
            code = process.poll()
            if code == 0:
                del self.ranks[rank]
            elif code is not None:
                how = f"exited {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
                raise Died(f"rank {rank} ({self.world.name(rank)}) {how}", code if code > 0 else 128 - code)

    def leave(self, code: int) -> NoReturn:
        """Not before every rank is gone: its GPU's memory is free only then."""
        for process in self.ranks.values():
            process.kill()
        for process in self.ranks.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                print(f"smoke: pid {process.pid} survives SIGKILL", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


class Died(Exception):
    """A rank of this pod ended; code is for this pod's exit."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


def start_rank(rank: int, local: int, locals_: int, size: int) -> subprocess.Popen[bytes]:
    """With the names that torchrun gives them; whatever it prints goes to stderr: stdout is for the result."""
    own = {"RANK": rank, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": locals_, "WORLD_SIZE": size}
    # PyTorch's warnings hold whole stacks of C++, for what is expected here: that connections end.
    environ = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, **{name: str(value) for name, value in own.items()}}
    argv = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], f"--rank={rank}"]
    return subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stdout=2)


def as_json(conductor: Conductor, good: bool, verdict: str) -> dict[str, Any]:
    world, blame = conductor.world, conductor.blame
    return {
        "passed": good,
        "verdict": verdict,
        "ranks": world.size,
        "nodes": {str(index): list(world.ranks_of(index)) for index in world.nodes},
        **conductor.result,
        "pairs": [
            {"a": p.a, "b": p.b, "latency": p.latency, "bandwidth": p.bandwidth, "error": p.error or None}
            | {"bad": p in blame.bad}
            for p in conductor.pairs
        ],
        "usual": {"latency": blame.latency, "bandwidth": blame.bandwidth},
        "bad_ranks": list(blame.ranks),
    }


if __name__ == "__main__":
    main()
