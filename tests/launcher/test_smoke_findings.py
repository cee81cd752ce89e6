"""What a smoke run makes of its measurements, and whom it blames."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pytest
from conftest import start

from launcher.smoke import conductor
from launcher.smoke.conductor import Conductor, Failed
from launcher.smoke.findings import (
    Pair,
    World,
    blame,
    bus_bandwidth,
    describe_blame,
    micros,
    rank_pairs,
    rate,
    rounds,
    usual,
)

USUAL = {"latency": 100e-6, "bandwidth": 10e9}


def measured(nodes: int, bad: dict[tuple[int, int], dict[str, Any]]) -> list[Pair]:
    return [Pair(a, b, **{**USUAL, **bad.get((a, b), {})}) for a, b in itertools.combinations(range(nodes), 2)]


@pytest.mark.parametrize("count", range(1, 18))
def test_every_node_meets_every_other_once_and_none_is_in_two_pairs_at_once(count: int) -> None:
    nodes = list(range(3, 3 + count))
    made = rounds(nodes)
    assert len(made) == (0 if count == 1 else count - 1 if count % 2 == 0 else count)
    assert Counter(pair for each in made for pair in each) == Counter(itertools.combinations(nodes, 2))
    for each in made:
        assert max(Counter(node for pair in each for node in pair).values()) == 1


def test_processes_meet_those_of_the_same_number() -> None:
    assert rank_pairs(World((2, 2, 1)), [(0, 1)]) == [(0, 2), (1, 3)]
    assert rank_pairs(World((2, 2, 1)), [(0, 2)]) == [(0, 4)]


@pytest.mark.parametrize(("ranks", "factor"), [(1, 0), (2, 1), (4, 1.5), (8, 1.75)])
def test_bus_bandwidth_is_that_of_nccl_tests(ranks: int, factor: float) -> None:
    assert bus_bandwidth(1000, 0.5, ranks) == pytest.approx(2000 * factor)


SLOW, LATE, DEAD = {"bandwidth": 1e9}, {"latency": 9e-3}, {"error": "no answer within 20 s"}


@pytest.mark.parametrize(
    ("nodes", "bad", "ranks", "links"),
    [
        (2, {}, (), []),
        (2, {(0, 1): DEAD}, (), [(0, 1)]),
        (3, {}, (), []),
        (3, {(1, 2): SLOW}, (), [(1, 2)]),
        (3, {(1, 2): LATE}, (), [(1, 2)]),
        (3, {(0, 2): SLOW, (1, 2): SLOW}, (2,), []),  # most pairs are slow: the good one is still the usual
        (3, {(0, 1): DEAD, (0, 2): LATE}, (0,), []),
        (3, {(0, 1): DEAD, (0, 2): DEAD, (1, 2): DEAD}, (), [(0, 1), (0, 2), (1, 2)]),
        (4, {(0, 3): SLOW, (1, 3): SLOW, (2, 3): SLOW}, (3,), []),
        (4, {(0, 3): SLOW, (1, 2): SLOW}, (), [(0, 3), (1, 2)]),
        (4, {(0, 3): DEAD, (1, 3): DEAD}, (), [(0, 3), (1, 3)]),
        (5, {**{(at, 4): SLOW for at in range(4)}, (0, 1): DEAD}, (4,), [(0, 1)]),
    ],
)
def test_a_node_common_to_all_its_bad_pairs_is_named_and_else_the_link(
    nodes: int, bad: dict[tuple[int, int], dict[str, Any]], ranks: tuple[int, ...], links: list[tuple[int, int]]
) -> None:
    found = blame(measured(nodes, bad), 2.0, 20e-6)
    assert found.ranks == ranks
    assert [(pair.a, pair.b) for pair in found.links] == links
    assert {(pair.a, pair.b) for pair in found.bad} == bad.keys()


def test_a_pair_within_the_factor_is_good_and_latencies_that_are_alike_do_not_count() -> None:
    even = {(0, 1): {"bandwidth": 5.1e9}, (0, 2): {"latency": 190e-6}}
    assert blame(measured(3, even), 2.0, 20e-6).bad == ()
    assert blame(measured(3, {(0, 1): {"latency": 550e-6}}), 2.0, 500e-6).bad == ()
    assert len(blame(measured(3, {(0, 1): {"latency": 650e-6}}), 2.0, 500e-6).bad) == 1
    assert usual(measured(3, {(0, 1): DEAD})) == (USUAL["latency"], USUAL["bandwidth"])


def test_a_whole_node_is_named_as_such_and_a_single_gpu_by_its_number() -> None:
    world = World((2, 2, 2), gpus=True)
    nodes = [(0, 1), (0, 2), (1, 2)]
    pairs = [Pair(a, b, **USUAL) for a, b in rank_pairs(world, nodes)]

    def told(bad: set[int]) -> str:
        spoilt = [Pair(p.a, p.b, USUAL["latency"], 1e9) if {p.a, p.b} & bad else p for p in pairs]
        return describe_blame(world, blame(spoilt, 2.0, 20e-6))

    assert told(set()) == ""
    assert told({5}).startswith("worker 2 GPU 1: every one of its links is slow: 1.00 GB/s, 100 µs (usual here: 10.00")
    assert told({4, 5}).startswith("worker 2: every one of its links is slow")
    link = [Pair(p.a, p.b, error="unreachable") if world.place(p.a)[0] == 1 and p.b >= 4 else p for p in pairs]
    assert describe_blame(world, blame(link, 2.0, 20e-6)).startswith("worker 1 ↔ worker 2: unreachable (usual here")


def test_numbers_are_readable_at_every_size() -> None:
    assert [rate(value) for value in (3.21e11, 1.5e8, 1.2e6)] == ["321.00 GB/s", "0.15 GB/s", "0.0012 GB/s"]
    assert [micros(value) for value in (3.14e-6, 0.01234)] == ["3.1", "12340"]


class Obeying:
    """A store in which ranks have always done already what they are told; those in deaf do less."""

    def __init__(self, size: int, deaf: dict[int, str]) -> None:
        self.size, self.deaf, self.ops, self.beats = size, deaf, list[str](), 0

    def set(self, key: str, value: str) -> None:
        self.ops.append(json.loads(value)["op"])

    def check(self, keys: list[str]) -> bool:
        return all(self._has(*key.split("/")) for key in keys)

    def _has(self, what: str, _: str, rank: str) -> bool:
        how = self.deaf.get(int(rank)) if self.ops[-1] != "hello" else None
        return how is None or how == "fails" or (how == "hangs" and what == "at")

    def get(self, key: str) -> bytes:
        rank = int(key.split("/")[2])
        if self.ops[-1] != "hello" and self.deaf.get(rank) == "fails":
            return b'{"error": "connection reset"}'
        told = {"software": "PyTorch", "device": "CPU", "seconds": 1e-3, "latency": 1e-4, "bandwidth": 1e9}
        return json.dumps(told).encode()

    def add(self, key: str, _: int) -> int:
        self.beats += 1
        return 0 if self.deaf.get(int(key.split("/")[1])) == "stopped" else self.beats


@pytest.mark.parametrize(
    ("deaf", "says"),
    [
        ({1: "stopped"}, "worker 1 does not run (dead, stopped or stuck): barrier did not end in"),
        ({1: "stopped", 2: "hangs"}, "worker 1 does not run"),
        ({1: "absent", 2: "hangs"}, "worker 1 did not come to barrier within"),
        ({0: "hangs", 1: "hangs"}, "barrier hangs: all ranks came to it, and after 0 s it has not ended on the leader"),
        ({1: "fails"}, "barrier failed on worker 1: connection reset"),
        ({0: "fails", 1: "stopped"}, "worker 1 does not run"),
    ],
)
def test_who_holds_a_step_up_is_named(deaf: dict[int, str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SILENT", "SETTLE", "BEAT"):
        monkeypatch.setattr(conductor, name, 0.1)
    led = Conductor(Obeying(3, deaf), World((1, 1, 1)), "gloo", 0.4, 4.0, lambda: None)
    with pytest.raises(Failed) as told:
        led.step("barrier", "barrier")
    assert str(told.value).startswith(says)


def test_a_whole_run_ends_with_a_verdict() -> None:
    store = Obeying(3, {})
    verdict = Conductor(store, World((1, 1, 1)), "gloo", 5.0, 4.0, lambda: None).conduct()
    assert verdict == (
        "3 ranks on 3 nodes, all-reduce exact, 22.37 GB/s at 16 MiB, slowest pair worker 1 ↔ worker 2 1.00 GB/s, 100 µs"
    )
    assert store.ops == ["hello", *["pairs"] * 3, "world", "barrier", "gather", *["reduce"] * 5, "end"]


def test_an_image_without_pytorch_is_a_configuration_error() -> None:
    """Ours has none."""
    for command in (("smoke", "--size=1"), ("start", "--size=1", "--smoke", "--", "echo", "started")):
        done = start(*command)
        assert done.returncode == 78
        assert "a smoke run needs PyTorch, which " in done.stderr
        assert "started" not in done.stdout
