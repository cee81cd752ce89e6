"""What measurements mean: which pairs to measure at once, bandwidth by size, and which node or link is to blame. Pure.

Runs in the image's own Python, which may be older than ours (3.9 suffices), beside collectives.py.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

NAMED = 4  # culprits in a verdict; the others are counted


@dataclass(frozen=True)
class World:
    """Who takes part: procs holds the number of processes of each pod, by index; ranks are counted through them."""

    procs: tuple[int, ...]
    gpus: bool = False

    @property
    def size(self) -> int:
        return sum(self.procs)

    @property
    def nodes(self) -> list[int]:
        """The indexes that have processes."""
        return [index for index, count in enumerate(self.procs) if count]

    def ranks_of(self, index: int) -> range:
        first = sum(self.procs[:index])
        return range(first, first + self.procs[index])

    def place(self, rank: int) -> tuple[int, int]:
        """(pod's index, number within the pod) of a rank."""
        for index, count in enumerate(self.procs):
            if rank < count:
                return index, rank
            rank -= count
        raise IndexError(rank)

    def node_name(self, index: int) -> str:
        return "the leader" if index == 0 else f"worker {index}"

    def name(self, rank: int) -> str:
        """worker 2, or where it has several processes worker 2 GPU 1."""
        index, local = self.place(rank)
        what = "GPU" if self.gpus else "process"
        return self.node_name(index) + (f" {what} {local}" if self.procs[index] > 1 else "")

    def names(self, ranks: Iterable[int]) -> str:
        """Ranks by name, a pod of which all are among them as a whole."""
        among, found = set(ranks), []
        for index in self.nodes:
            own = self.ranks_of(index)
            if among.issuperset(own):
                found.append(self.node_name(index))
            else:
                found += [self.name(rank) for rank in own if rank in among]
        return listed(found)


@dataclass(frozen=True)
class Pair:
    """Two ranks of different nodes. latency in seconds one way, bandwidth in bytes/s one way; error instead of both."""

    a: int
    b: int
    latency: float = 0.0
    bandwidth: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Blame:
    """What was found wrong with the pairs: nodes (or single processes) common to all of theirs, and single links.

    latency and bandwidth are the usual ones, against which pairs were held; 0 where there is nothing to compare.
    """

    latency: float = 0.0
    bandwidth: float = 0.0
    ranks: tuple[int, ...] = ()
    links: tuple[Pair, ...] = ()
    bad: tuple[Pair, ...] = field(default=(), repr=False)  # all pairs that failed or are slow


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def rounds(nodes: Sequence[int]) -> list[list[tuple[int, int]]]:
    """All pairs of nodes in rounds of disjoint pairs: the circle method of round-robin tournaments.

    n nodes make n - 1 rounds (n, if n is odd: in each one sits out).
    https://en.wikipedia.org/wiki/Round-robin_tournament#Circle_method
    """
    seats: list[int | None] = [*nodes] + ([None] if len(nodes) % 2 else [])
    made = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        facing = zip(seats[:half], reversed(seats[half:]))  # noqa: B905 - strict is not known to Python 3.9
        made.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return [pairs for pairs in made if pairs]


def rank_pairs(world: World, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of nodes that meet, the processes that do: each with the one of the same number, so that every GPU's own network
    card is used."""
    return [both for a, b in pairs for both in zip(world.ranks_of(a), world.ranks_of(b))]  # noqa: B905


def algorithm_bandwidth(size: int, seconds: float) -> float:
    """Bytes/s."""
    return size / seconds if seconds > 0 else 0.0


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Bytes/s of an all-reduce that compare with the hardware's: 2(n-1)/n of the algorithm's bandwidth.

    https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md#allreduce
    """
    return algorithm_bandwidth(size, seconds) * 2 * (ranks - 1) / ranks


def usual(pairs: Sequence[Pair]) -> tuple[float, float]:
    """(latency, bandwidth) to hold pairs against: the median, over the ranks, of each one's best pair.

    Not the median of all pairs: of three nodes one bad one spoils two pairs of three.
    """
    best: dict[int, tuple[float, float]] = {}
    for pair in pairs:
        for rank in (pair.a, pair.b) if not pair.error else ():
            latency, bandwidth = best.get(rank, (pair.latency, pair.bandwidth))
            best[rank] = (min(latency, pair.latency), max(bandwidth, pair.bandwidth))
    if not best:
        return 0.0, 0.0
    return statistics.median(each for each, _ in best.values()), statistics.median(each for _, each in best.values())


def blame(pairs: Sequence[Pair], factor: float, floor: float) -> Blame:
    """Bad is a pair that failed, or is slower than the usual by more than the factor, and in latency by more than
    floor (seconds). A rank is bad all of whose pairs are, two or more; what is bad besides is a link between two."""
    latency, bandwidth = usual(pairs)
    slowest = max(latency * factor, latency + floor)
    bad = tuple(pair for pair in pairs if pair.error or pair.latency > slowest or pair.bandwidth * factor < bandwidth)
    measured = Counter(rank for pair in pairs for rank in (pair.a, pair.b))
    wrong = Counter(rank for pair in bad for rank in (pair.a, pair.b))
    guilty = {rank for rank, count in wrong.items() if count == measured[rank] >= 2}
    if guilty == measured.keys():
        guilty = set()  # nothing works: no rank is to blame more than another
    links = tuple(pair for pair in bad if not guilty & {pair.a, pair.b})
    return Blame(latency, bandwidth, tuple(sorted(guilty)), links, bad)


def describe_links(world: World, links: Sequence[Pair]) -> str:
    """worker 2 ↔ worker 3, of two nodes once, whichever of their processes it was, if it was all of them."""
    between: dict[tuple[int, int], list[Pair]] = {}
    for pair in links:
        between.setdefault((world.place(pair.a)[0], world.place(pair.b)[0]), []).append(pair)
    found = []
    for (a, b), of in between.items():
        if len(of) == min(world.procs[a], world.procs[b]):
            found.append(f"{world.node_name(a)} ↔ {world.node_name(b)}: {_how(of)}")
        else:
            found += [f"{world.name(pair.a)} ↔ {world.name(pair.b)}: {_how([pair])}" for pair in of]
    return listed(found)


def _how(of: Sequence[Pair]) -> str:
    error = next((pair.error for pair in of if pair.error), "")
    return error or f"{rate(sum(pair.bandwidth for pair in of))}, {micros(max(pair.latency for pair in of))} µs"


def describe_blame(world: World, found: Blame) -> str:
    """What is wrong with the pairs, in one line; empty when nothing is."""
    parts = []
    if found.ranks:
        own = [pair for pair in found.bad if {pair.a, pair.b} & set(found.ranks)]
        failed = next((pair.error for pair in own if pair.error), "")
        worst = min(own, key=lambda pair: (not pair.error, pair.bandwidth))
        how = f"fails: {failed}" if failed else f"is slow: {_how([worst])}"
        parts.append(f"{world.names(found.ranks)}: every one of its links {how}")
    if found.links:
        parts.append(describe_links(world, found.links))
    if parts and found.bandwidth:
        parts[-1] += f" (usual here: {rate(found.bandwidth)}, {micros(found.latency)} µs)"
    return "; ".join(parts)


def slowest(world: World, pairs: Sequence[Pair]) -> str:
    worst = min(pairs, key=lambda pair: pair.bandwidth)
    return f"{world.name(worst.a)} ↔ {world.name(worst.b)} {_how([worst])}"


def rate(value: float) -> str:
    """Bytes/s for people, in GB/s as nccl-tests has it."""
    return f"{value / 1e9:.{2 if value >= 1e8 else 4}f} GB/s"


def micros(seconds: float) -> str:
    return f"{seconds * 1e6:.{0 if seconds >= 1e-4 else 1}f}"


def bytes_text(size: int) -> str:
    for unit, width in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << width and size % (1 << width) == 0:
            return f"{size >> width} {unit}"
    return f"{size} B"


def table(result: dict[str, Any], world: World, pairs: Sequence[Pair], found: Blame) -> str:
    """What was measured, for people; the verdict is not part of it."""
    lines = [
        f"smoke: {counted(world.size, 'process')} on {counted(len(world.nodes), 'node')}, {result['backend']},"
        f" {result['software']}"
    ]
    if "barrier" in result:
        lines.append(f"barrier: {micros(result['barrier'])} µs")
    if result["all_reduce"]:
        lines.append(f"{'all-reduce':>10} {'latency µs':>12} {'algbw GB/s':>12} {'busbw GB/s':>12}  exact")
        lines += [
            f"{bytes_text(row['bytes']):>10} {micros(row['seconds']):>12} {row['algbw'] / 1e9:>12.3f}"
            f" {row['busbw'] / 1e9:>12.3f}  yes"
            for row in result["all_reduce"]
        ]
    if pairs:
        lines.append(f"pairs of nodes: {len(pairs)} measured, the slowest first (usual: {rate(found.bandwidth)})")
        worst = sorted(pairs, key=lambda pair: (not pair.error, pair.bandwidth))[:10]
        width = max(len(f"{world.name(p.a)} ↔ {world.name(p.b)}") for p in worst)
        for p in worst:
            mark = "  << bad" if p in found.bad else ""
            lines.append(f"  {world.name(p.a) + ' ↔ ' + world.name(p.b):<{width}}  {_how([p])}{mark}")
    elif len(world.nodes) == 1:
        what = "one rank: nothing to compare" if world.size == 1 else "one node: no links between nodes"
        lines.append(f"pairs of nodes: {what}")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines)


def passed(result: dict[str, Any], world: World, pairs: Sequence[Pair]) -> str:
    """The verdict of a good run, without its "smoke: passed: "."""
    parts = [f"{counted(world.size, 'rank')} on {counted(len(world.nodes), 'node')}", "all-reduce exact"]
    if result["all_reduce"]:
        last = result["all_reduce"][-1]
        speed = rate(last["busbw"]) if world.size > 1 else f"{micros(last['seconds'])} µs"
        parts.append(f"{speed} at {bytes_text(last['bytes'])}")
    if pairs:
        parts.append(f"slowest pair {slowest(world, pairs)}")
    elif world.size == 1:
        parts.append("one rank: nothing to compare")
    return ", ".join(parts)


def counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("s") else "s")
