"""One rank of a smoke run: obeys the conductor's commands. Runs in the image's Python; torch is imported late."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from launcher.smoke import findings
from launcher.smoke.conductor import BEAT
from launcher.smoke.findings import World

PATTERN = 1 << 16  # elements, after which the values repeat
GATHERED = 1 << 10  # elements of each rank
LATENCY_ROUNDS, BANDWIDTH_ROUNDS = 30, 4
ORPHANED = 30.0  # seconds that a rank without its store waits to be ended, so that it is not the first to fail
PR_SET_PDEATHSIG = 1


class Rank:
    """Obeys the conductor's commands until the last, "end"; an error is told to it and is not this process's end."""

    def __init__(self, rank: int, world: World, backend: str, timeout: float) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        import torch
        import torch.distributed as dist

        self.torch, self.dist = torch, dist
        self.rank, self.world, self.backend, self.timeout = rank, world, backend, timeout
        self.local = world.place(rank)[1]
        self.device = torch.device("cuda", self.local) if backend == "nccl" else torch.device("cpu")
        self.step = 0

    def live(self, first: int) -> NoReturn:
        """From this step on, until the last."""
        try:
            self.obey(first)
        except Lost:
            time.sleep(ORPHANED)
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)  # without the libraries' own farewells, which may wait for a peer

    def obey(self, first: int) -> None:
        self.told = self.store()
        threading.Thread(target=self.beat, daemon=True).start()
        for self.step in itertools.count(first):
            with lost_store():
                command = json.loads(self.told.get(f"go/{self.step}"))
                self.told.set(f"at/{self.step}/{self.rank}", "1")
            try:
                result = getattr(self, f"do_{command['op']}")(command)
            except Exception as error:
                result = {"error": first_line(error)}
            self.tell(result)
            if command["op"] == "end":
                return

    def tell(self, result: dict[str, Any]) -> None:
        with lost_store():
            self.told.set(f"done/{self.step}/{self.rank}", json.dumps(result))

    def begin_anew(self, why: str) -> None:
        """Out of a call that never returns, or a library in a state that nobody knows, into this program's next step:
        exec ends all threads, wherever they are."""
        with contextlib.suppress(Lost):
            self.tell({"error": why})
            argv = [each for each in sys.argv if not each.startswith("--step=")]
            os.execv(sys.executable, [sys.executable, *argv, f"--step={self.step + 1}"])

    def store(self) -> Any:
        from datetime import timedelta

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with lost_store():
            return self.dist.TCPStore(address, port, None, False, timedelta(seconds=2 * self.timeout + 60))

    def beat(self) -> None:
        """With a connection of its own: the other one may be waiting for an answer."""
        with lost_store(quietly=True):
            store = self.store()
            while True:
                store.add(f"beat/{self.rank}", 1)
                time.sleep(BEAT)

    def do_hello(self, _: dict[str, Any]) -> dict[str, Any]:
        torch = self.torch
        software, device = f"PyTorch {torch.__version__}", "CPU"
        if self.backend == "nccl":
            if self.local >= torch.cuda.device_count():
                raise RuntimeError(f"PyTorch sees {torch.cuda.device_count()} GPUs (--smoke-backend gloo for none)")
            torch.cuda.set_device(self.device)
            software += f", NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
            device = torch.cuda.get_device_name(self.device)
        else:
            torch.set_num_threads(1)
        return {"software": software, "device": device}

    def join(self, name: str, rank: int, size: int) -> None:
        """A process group, the one that there is; those before it must have been left. Its own timeout is never the
        first: with NCCL it would end the process."""
        from datetime import timedelta

        store = self.dist.PrefixStore(name, self.store())
        self.dist.init_process_group(
            self.backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=10 * self.timeout)
        )

    def leave(self) -> None:
        if self.dist.is_initialized():
            self.dist.destroy_process_group()

    def do_pairs(self, command: dict[str, Any]) -> dict[str, Any]:
        """This rank with its partner, if it has one, in a group of their own: what others do is not in the way."""
        pair = next((pair for pair in command["pairs"] if self.rank in pair), None)
        if pair is None:
            return {}
        me = pair.index(self.rank)
        # Neither library can be relied on to give up by itself: NCCL ends the process, Gloo's connect(2) waits on.
        patience: float = command["patience"]
        limit = threading.Timer(patience, self.begin_anew, [f"no answer within {patience:.0f} s"])
        limit.daemon = True
        limit.start()
        try:
            self.join(f"pair/{self.step}/{pair[0]}-{pair[1]}", me, 2)
            measured = self.measure_pair(me, command["bytes"])
            self.leave()
        except Exception as error:
            limit.cancel()
            self.begin_anew(first_line(error))
            raise
        limit.cancel()
        return measured

    def measure_pair(self, me: int, size: int) -> dict[str, Any]:
        torch = self.torch
        mine, theirs = (self.pattern(who, size // 4) for who in (me, 1 - me))
        small, large = torch.zeros(2, device=self.device), torch.zeros(size // 4, device=self.device)
        self.exchange(me, mine, large)  # the first of all also makes the connection
        if not torch.equal(large, theirs):
            raise RuntimeError(f"wrong values arrived: {int((large != theirs).sum())} of {size // 4}")
        # The best of several: what else runs on the CPUs is not the link's fault.
        latency = min(self.timed(1, lambda: self.exchange(me, small, small)) for _ in range(LATENCY_ROUNDS)) / 2
        seconds = min(self.timed(1, lambda: self.exchange(me, mine, large)) for _ in range(BANDWIDTH_ROUNDS)) / 2
        return {"latency": latency, "bandwidth": findings.algorithm_bandwidth(size, seconds)}

    def exchange(self, me: int, mine: Any, theirs: Any) -> None:
        """There, then back: one direction at a time."""
        if me == 0:
            self.dist.send(mine, 1)
            self.dist.recv(theirs, 1)
        else:
            self.dist.recv(theirs, 0)
            self.dist.send(mine, 0)

    def timed(self, times: int, work: Any) -> float:
        """Seconds of one, on average."""
        self.finish()
        began = time.perf_counter()
        for _ in range(times):
            work()
        self.finish()
        return (time.perf_counter() - began) / times

    def finish(self) -> None:
        if self.backend == "nccl":
            self.torch.cuda.synchronize(self.device)

    def do_world(self, _: dict[str, Any]) -> dict[str, Any]:
        self.join("world", self.rank, self.world.size)
        self.barrier()
        return {}

    def barrier(self) -> None:
        if self.backend == "nccl":
            self.dist.barrier(device_ids=[self.local])
        else:
            self.dist.barrier()

    def do_barrier(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"seconds": self.timed(10, self.barrier)}

    def pattern(self, rank: int, length: int) -> Any:
        """Small whole numbers, other ones for each rank: float32 adds up those of 100 000 ranks exactly."""
        torch = self.torch
        base = torch.arange(min(length, PATTERN), device=self.device)
        values = ((base * 7 + rank * 13 + 1) % 101).to(torch.float32)
        return values.repeat(-(-length // PATTERN))[:length].contiguous()

    def do_gather(self, _: dict[str, Any]) -> dict[str, Any]:
        torch = self.torch
        got = [torch.zeros(GATHERED, device=self.device) for _ in range(self.world.size)]
        self.dist.all_gather(got, self.pattern(self.rank, GATHERED))
        wrong = [rank for rank in range(self.world.size) if not torch.equal(got[rank], self.pattern(rank, GATHERED))]
        if not wrong:
            return {"wrong": 0}
        return {"wrong": len(wrong), "sources": wrong} | example(got[wrong[0]], self.pattern(wrong[0], GATHERED))

    def do_reduce(self, command: dict[str, Any]) -> dict[str, Any]:
        torch, length = self.torch, command["bytes"] // 4
        total = self.pattern(self.rank, length)
        self.dist.all_reduce(total)  # also warms up
        expected = self.pattern(0, min(length, PATTERN))
        for rank in range(1, self.world.size):
            expected += self.pattern(rank, min(length, PATTERN))
        expected = expected.repeat(-(-length // PATTERN))[:length]
        if not torch.equal(total, expected):
            return {"seconds": 0.0, "wrong": int((total != expected).sum())} | example(total, expected)
        zeros = torch.zeros(length, device=self.device)
        return {"seconds": self.timed(command["times"], lambda: self.dist.all_reduce(zeros)), "wrong": 0}

    def do_end(self, _: dict[str, Any]) -> dict[str, Any]:
        return {}


def example(got: Any, expected: Any) -> dict[str, str]:
    at = int((got != expected).nonzero()[0])
    return {"example": f"element {at} is {float(got[at]):g}, not {float(expected[at]):g}"}


class Lost(Exception):
    """The store has gone, or never came: the leader ends, or the way to it is broken."""


class lost_store:
    """Within the block any error of the store is Lost; quietly: it only ends the block."""

    def __init__(self, quietly: bool = False) -> None:
        self.quietly = quietly

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if isinstance(error, (RuntimeError, OSError)) and not self.quietly:
            raise Lost(first_line(error)) from error
        return self.quietly and isinstance(error, (RuntimeError, OSError, Lost))


def first_line(error: BaseException) -> str:
    """Without the place in its source that PyTorch puts before it."""
    lines = re.sub(r"^\[[^]]*\]:? *", "", str(error).strip()).splitlines()
    return lines[0][:300] if lines else type(error).__name__
