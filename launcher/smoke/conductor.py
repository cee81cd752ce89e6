"""Conducts the ranks of a smoke run, one step at a time, and finds whom to blame when one does not end.

The ranks obey commands that stand in a store, and write there when they have arrived at a step, and what came of it. A
heartbeat of each tells a rank that waits in a collective from one that does not run at all. Runs in the image's Python.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from launcher.smoke import findings
from launcher.smoke.findings import Blame, Pair, World

SIZES = {"gloo": (8, 1 << 10, 1 << 15, 1 << 20, 1 << 24), "nccl": (8, 1 << 10, 1 << 15, 1 << 20, 1 << 24, 1 << 28)}
PAIR_BYTES = {"gloo": 1 << 20, "nccl": 1 << 26}
FACTOR = {"gloo": 4.0, "nccl": 2.0}  # TCP on busy CPUs is not as even as GPUs on a fabric of their own
FLOOR = {"gloo": 500e-6, "nccl": 20e-6}  # seconds; latencies that differ by less are alike
AGAIN = 2  # times that a pair that seems slow is measured again
LOOK_EVERY = 0.02  # seconds
BEAT = 1.0  # seconds between two heartbeats of a rank
SILENT = 5.0  # seconds without one, measured by us: the rank does not run
SETTLE = 3.0  # seconds that the others have to end a step in which one has failed, before the verdict
SHARE = 0.25  # of the timeout that the all-reduces of one size may be expected to take
SLOWEST = 1e8  # bytes/s that are expected where no pair was measured


class Store(Protocol):
    """What is used of torch.distributed.TCPStore."""

    def set(self, key: str, value: str) -> Any: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def add(self, key: str, amount: int) -> int: ...


class Failed(Exception):
    """The verdict of a bad run, without its "smoke: FAILED: "."""


def better(one: Pair, other: Pair) -> Pair:
    return Pair(one.a, one.b, min(one.latency, other.latency), max(one.bandwidth, other.bandwidth))


class Conductor:
    """On the leader. timeout bounds each step, finding out whom to blame included, in seconds; mind is called while it
    waits, and may raise Failed."""

    def __init__(
        self, store: Store, world: World, backend: str, timeout: float, factor: float, mind: Callable[[], None]
    ) -> None:
        self.store = store
        self.world = world
        self.timeout = timeout
        self.factor = factor
        self.mind = mind
        self.steps = 0
        self.pairs: list[Pair] = []
        self.result: dict[str, Any] = {"backend": backend, "software": "", "all_reduce": [], "notes": []}

    @property
    def backend(self) -> str:
        backend: str = self.result["backend"]
        return backend

    @property
    def blame(self) -> Blame:
        return findings.blame(self.pairs, self.factor, FLOOR[self.backend])

    def conduct(self) -> str:
        """The verdict of a good run. Raises Failed."""
        self.say_hello()
        self.measure_pairs()
        bad = self.blame
        if bad.bad:
            raise Failed(findings.describe_blame(self.world, bad))  # a collective over them would hang, or take long
        self.step("the set-up of all ranks", "world")
        self.result["barrier"] = max(told["seconds"] for told in self.step("barrier", "barrier").values())
        self.correct("all-gather", self.step("all-gather", "gather"))
        self.sweep()
        self.step("the end", "end")
        return findings.passed(self.result, self.world, self.pairs)

    def say_hello(self) -> None:
        told = self.step("the start of its process", "hello")
        software = {each["software"] for each in told.values()}
        self.result["software"] = "; ".join(sorted(software))
        self.result["devices"] = {rank: each["device"] for rank, each in sorted(told.items())}
        if len(software) > 1:
            self.result["notes"].append("the ranks run unlike software")

    def measure_pairs(self) -> None:
        """Every node with every other, in rounds; those that seem slow again, alone, because others may have been in
        their way: the best counts."""
        for nodes in findings.rounds(self.world.nodes):
            self.pairs += self.measure(findings.rank_pairs(self.world, nodes))
        for _ in range(AGAIN):
            for pair in self.blame.bad:
                if not pair.error:
                    again = self.measure([(pair.a, pair.b)])[0]
                    self.pairs[self.pairs.index(pair)] = again if again.error else better(pair, again)

    def measure(self, pairs: list[tuple[int, int]]) -> list[Pair]:
        who = ", ".join(f"{self.world.name(a)} ↔ {self.world.name(b)}" for a, b in pairs[: findings.NAMED])
        patience = min(self.timeout / 2, 20.0)
        told = self.step(
            f"the pairs {who}", "pairs", pairs=pairs, bytes=PAIR_BYTES[self.backend], patience=patience, fail=False
        )
        if any("error" in each for each in told.values()):
            self.step("the start of its process", "hello")  # who gave up has begun anew
        measured = []
        for a, b in pairs:
            errors = [told[rank]["error"] for rank in (a, b) if "error" in told[rank]]
            if errors:
                measured.append(Pair(a, b, error=min(errors, key=lambda error: error.startswith("no answer"))))
            else:
                both = [told[rank] for rank in (a, b)]
                measured.append(
                    Pair(a, b, max(each["latency"] for each in both), min(each["bandwidth"] for each in both))
                )
        return measured

    def sweep(self) -> None:
        """All-reduce by size, until the next would take too long."""
        slowest = min((pair.bandwidth for pair in self.pairs), default=0.0) or SLOWEST
        seconds = 0.0
        for size in SIZES[self.backend]:
            expected = seconds + 2 * size / slowest
            times = min(20 if size <= 1 << 20 else 5, int(self.timeout * SHARE / expected))
            if times == 0:
                self.result["notes"].append(f"{findings.bytes_text(size)} and more would have taken too long")
                return
            name = f"all-reduce of {findings.bytes_text(size)}"
            told = self.step(name, "reduce", bytes=size, times=times)
            self.correct(name, told)
            seconds = max(each["seconds"] for each in told.values())
            self.result["all_reduce"].append(
                {
                    "bytes": size,
                    "seconds": seconds,
                    "algbw": findings.algorithm_bandwidth(size, seconds),
                    "busbw": findings.bus_bandwidth(size, seconds, self.world.size),
                }
            )

    def correct(self, name: str, told: dict[int, dict[str, Any]]) -> None:
        """Raises Failed for a wrong value, naming whose contribution was wrong, or else who has it."""
        wrong = {rank: each for rank, each in told.items() if each.get("wrong")}
        if not wrong:
            return
        sources = {rank for each in wrong.values() for rank in each.get("sources", ())}
        example = next(each["example"] for each in wrong.values())
        if sources:
            whose = f"what came from {self.world.names(sources)}, as {self.world.names(wrong)} got it"
        else:
            whose = f"on {'all ranks' if len(wrong) == self.world.size else self.world.names(wrong)}"
        raise Failed(f"wrong values in {name}: {whose}: {example}")

    # ------------------------------------------------------------------ one step

    def step(self, name: str, op: str, *, fail: bool = True, **arguments: Any) -> dict[int, dict[str, Any]]:
        """Let all ranks do one thing; what came of it, by rank. Raises Failed when it does not end in time, and with
        fail also when a rank tells an error."""
        number, self.steps = self.steps, self.steps + 1
        told: dict[int, dict[str, Any]] = {}
        pending = set(range(self.world.size))
        began = time.monotonic()
        end = began + max(self.timeout - SILENT, self.timeout / 2)
        self.store.set(f"go/{number}", json.dumps({"op": op, **arguments}))
        while pending and time.monotonic() < end:
            self.mind()
            for rank in self.arrived(f"done/{number}", pending):
                told[rank] = json.loads(self.store.get(f"done/{number}/{rank}"))
                pending.discard(rank)
                if fail and "error" in told[rank]:
                    end = min(end, time.monotonic() + SETTLE)
            if pending:
                time.sleep(LOOK_EVERY)
        errors = {rank: each["error"] for rank, each in told.items() if "error" in each} if fail else {}
        if pending or errors:
            raise Failed(self.diagnosis(name, number, pending, errors, time.monotonic() - began))
        return told

    def arrived(self, key: str, ranks: Iterable[int]) -> list[int]:
        """Those that have written this key. All at once is one question; which of them, one for each."""
        keys = {rank: f"{key}/{rank}" for rank in ranks}
        if self.store.check(list(keys.values())):
            return list(keys)
        return [rank for rank, each in keys.items() if self.store.check([each])]

    def diagnosis(self, name: str, number: int, pending: set[int], errors: dict[int, str], waited: float) -> str:
        """Who is to blame: who does not run; else who has not come; else who tells an error; else who still waits."""
        silent = self.silent(pending)
        if silent:
            verb = "does" if len(silent) == 1 else "do"
            who = f"{self.world.names(silent)} {verb} not run (dead, stopped or stuck)"
            return f"{who}: {name} did not end in {waited:.0f} s"
        absent = pending - set(self.arrived(f"at/{number}", pending))
        if absent:
            return f"{self.world.names(absent)} did not come to {name} within {waited:.0f} s"
        if errors:
            return f"{name} failed on {self.world.names(errors)}: {next(iter(errors.values()))}"
        where = self.world.names(pending)
        return f"{name} hangs: all ranks came to it, and after {waited:.0f} s it has not ended on {where}"

    def silent(self, ranks: set[int]) -> set[int]:
        """Those whose heart does not beat while we listen."""
        before = {rank: self.store.add(f"beat/{rank}", 0) for rank in ranks}
        still = set(before)
        end = time.monotonic() + min(SILENT, self.timeout / 2)
        while still and time.monotonic() < end:
            self.mind()
            time.sleep(BEAT / 4)
            still = {rank for rank in still if self.store.add(f"beat/{rank}", 0) == before[rank]}
        return still
