"""/metrics: a pod's state as Prometheus reads it. Imported at the first scrape: `lwsrun start` itself needs none of it.

Every metric is declared once, in METRICS: what is declared is what the page, the documentation and the dashboard's test
go by. Labels take their values from fixed sets, whatever a member says of itself.
Names: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from launcher.channel.agreement import MUST
from launcher.drain import MAIN
from launcher.failures import CAUSES
from launcher.phases import OF_MEMBERS, PHASES, spent
from launcher.status import not_ready, silence
from launcher.usage import Usage, read_usage

if TYPE_CHECKING:
    from launcher.lifecycle import Pod

FRESH = 1.0  # seconds: to look at every process of an engine costs CPU, and whoever reaches the port may ask
STATES = ("missing", *OF_MEMBERS, *(phase for phase in PHASES if phase not in ("starting", "restarting")), "other")
STARTED = ("serving", "draining", "stopping", "done")
REASONS = ("protocol", "group", "draining", "run", "node", "index", "taken", "token", "flood", *sorted(MUST))


class Kind(Enum):
    INFO = "info"
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Declared:
    """name is without the ending that its kind gives it: _info, _total."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        return self.name + {Kind.INFO: "_info", Kind.COUNTER: "_total"}.get(self.kind, "")


def _declare(*metrics: Declared) -> dict[str, Declared]:
    return {metric.name: metric for metric in metrics}


METRICS = _declare(
    Declared("lwsrun_build", Kind.INFO, "The launcher's version and its Python's.", ("version", "python")),
    Declared(
        "lwsrun_group",
        Kind.INFO,
        "Where this pod belongs: its group's id, its index in it (0 leads), and how the group is formed.",
        ("group", "index", "backend", "mode"),
    ),
    Declared("lwsrun_group_size", Kind.GAUGE, "Pods that the group should have, the leader included."),
    Declared("lwsrun_phase", Kind.GAUGE, "1 for the phase that this pod is in, 0 for the others.", ("phase",)),
    Declared(
        "lwsrun_startup_phase_seconds",
        Kind.GAUGE,
        "How long this pod was in each phase before it served, in the present epoch; the present one grows.",
        ("phase",),
    ),
    Declared(
        "lwsrun_startup_seconds",
        Kind.GAUGE,
        "From this pod's start, or that of its present epoch with the pause before it, until it served; absent before.",
    ),
    Declared("lwsrun_ready", Kind.GAUGE, "1 when /readyz says that this pod is ready."),
    Declared("lwsrun_epoch", Kind.GAUGE, "Runs of the engines in this pod, the present one included."),
    Declared("lwsrun_restarts", Kind.COUNTER, "Restarts of the group's engines in this pod (--max-restarts)."),
    Declared(
        "lwsrun_failures",
        Kind.COUNTER,
        "Failures that ended an epoch, by what this pod saw. One failure counts once on every pod of the group.",
        ("cause",),
    ),
    Declared(
        "lwsrun_members",
        Kind.GAUGE,
        "On the leader: the group's pods, the leader itself included, by the phase that they are in.",
        ("state",),
    ),
    Declared("lwsrun_joins_refused", Kind.COUNTER, "On the leader: joins that were refused, by why.", ("reason",)),
    Declared(
        "lwsrun_heartbeat_round_trip_seconds",
        Kind.HISTOGRAM,
        "Heartbeats of this pod until their answer: on the leader of all its members, on a worker of the leader.",
    ),
    Declared(
        "lwsrun_peer_silence_seconds",
        Kind.GAUGE,
        "Since something was heard from whoever has been silent longest: on the leader of its members, on a worker the"
        " leader. Absent while there is no peer.",
    ),
    Declared("lwsrun_peer_timeout_seconds", Kind.GAUGE, "The silence after which a peer is dead (--peer-timeout)."),
    Declared("lwsrun_drain_seconds", Kind.GAUGE, "Since this pod began to drain; 0 before."),
    Declared("lwsrun_drain_timeout_seconds", Kind.GAUGE, "What stopping may take in all (--drain-timeout)."),
    Declared(
        "lwsrun_engine_up", Kind.GAUGE, "1 while every process runs that this pod started as its part of the engine."
    ),
    Declared("lwsrun_engine_processes", Kind.GAUGE, "Processes below the launcher: the engine, its services, orphans."),
    Declared(
        "lwsrun_engine_cpu_seconds",
        Kind.COUNTER,
        "CPU time of all processes below the launcher, those that have ended included.",
    ),
    Declared(
        "lwsrun_engine_resident_memory_bytes",
        Kind.GAUGE,
        "Resident memory of all processes below the launcher; a page that they share counts once for each.",
    ),
    Declared("lwsrun_engine_threads", Kind.GAUGE, "Threads of all processes below the launcher."),
    Declared("lwsrun_engine_open_fds", Kind.GAUGE, "File descriptors open in all processes below the launcher."),
)

# Labels' values, and what they stand for; the size of a group by members' states, and so on.
Values = Mapping[tuple[str, ...], float]


def read(pod: Pod) -> dict[str, Values]:
    """Every metric that is the launcher's own knowledge, but the histogram. In the loop's thread."""
    now, tally, group = pod.age(), pod.tally, pod.group
    found: dict[str, Values] = {
        "lwsrun_build": {(_version(), platform.python_version()): 1},
        "lwsrun_phase": _one_hot(PHASES, pod.phase),
        "lwsrun_startup_phase_seconds": startup(pod.phases, now),
        "lwsrun_ready": _one(not_ready(pod) is None),
        "lwsrun_epoch": _one(pod.epoch),
        "lwsrun_restarts": _one(pod.epoch - 1),
        "lwsrun_failures": _counted(CAUSES, tally.failures),
        "lwsrun_peer_timeout_seconds": _one(pod.settings.options.peer_timeout),
        "lwsrun_drain_seconds": _one(now - pod.phases["draining"] if "draining" in pod.phases else 0),
        "lwsrun_drain_timeout_seconds": _one(pod.settings.budget.total),
        "lwsrun_engine_up": _one(_engine_up(pod)),
    }
    if "serving" in pod.phases:
        found["lwsrun_startup_seconds"] = _one(pod.phases["serving"])
    if group is not None:
        plan = pod.plan
        labels = (group.id, str(group.index), plan.backend if plan else "", plan.mode if plan else "")
        found["lwsrun_group"] = {labels: 1}
        found["lwsrun_group_size"] = _one(group.size)
    if (silent := silence(pod)) is not None:
        found["lwsrun_peer_silence_seconds"] = _one(silent)
    if group is not None and (pod.leader is not None or group.size == 1):
        seats = pod.leader.seats.values() if pod.leader else ()
        states = [pod.phase, *(seat.phase for seat in seats)]
        states += ["missing"] * (group.size - len(states))
        found["lwsrun_members"] = {
            (state,): sum(state == (each if each in STATES else "other") for each in states) for state in STATES
        }
        found["lwsrun_joins_refused"] = _counted(REASONS, tally.refused)
    return found


def startup(phases: Mapping[str, float], now: float) -> Values:
    """Seconds in each phase up to the engine's start. phases: when each was entered, in the order of that."""
    lasted = spent(phases, now).items()
    return {(phase,): took for phase, took in takewhile(lambda each: each[0] not in STARTED, lasted)}


def _engine_up(pod: Pod) -> bool:
    complete = pod.plan is not None and (pod.plan.main is None or MAIN in pod.children)
    return complete and bool(pod.children) and all(child.alive for child in pod.children.values())


def _used(usage: Usage) -> dict[str, Values]:
    return {
        "lwsrun_engine_processes": _one(usage.processes),
        "lwsrun_engine_cpu_seconds": _one(usage.cpu_seconds),
        "lwsrun_engine_resident_memory_bytes": _one(usage.resident_bytes),
        "lwsrun_engine_threads": _one(usage.threads),
        "lwsrun_engine_open_fds": _one(usage.descriptors),
    }


def _one(value: float) -> Values:
    return {(): float(value)}


def _one_hot(names: Iterable[str], which: str) -> Values:
    return {(name,): float(name == which) for name in (*names, *(() if which in names else (which,)))}


def _counted(names: Iterable[str], counts: Mapping[str, int]) -> Values:
    """Those that have not happened yet are 0: an increase from nothing is none to Prometheus."""
    return {(name,): float(counts.get(name, 0)) for name in dict.fromkeys((*names, *counts))}


@cache
def _version() -> str:
    try:
        return version("lwsrun")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


class Snapshot(Collector):
    """What was read for one scrape, as the library's own families."""

    def __init__(self, values: Mapping[str, Values], buckets: list[tuple[str, float]], total: float) -> None:
        self._values = values
        self._buckets = buckets
        self._sum = total

    def collect(self) -> Iterator[Metric]:
        for name, metric in METRICS.items():
            if metric.kind is Kind.HISTOGRAM:
                histogram = HistogramMetricFamily(name, metric.meaning)
                histogram.add_metric([], self._buckets, self._sum)
                yield histogram
            elif name in self._values:
                yield _family(metric, self._values[name])


def _family(metric: Declared, values: Values) -> Metric:
    if metric.kind is Kind.INFO:
        info = InfoMetricFamily(metric.name, metric.meaning)
        for labels in values:
            info.add_metric([], dict(zip(metric.labels, labels, strict=True)))
        return info
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


class Exporter:
    """One for a pod's whole life. Scrapes that come together share one look at the processes."""

    def __init__(self) -> None:
        self._looking: asyncio.Task[Usage] | None = None
        self._looked = 0.0
        self._cpu_seconds = 0.0

    async def page(self, pod: Pod, accept: str) -> tuple[bytes, str]:
        """The page in the format that the scraper asks for, and its content type."""
        usage = await self._usage()
        # A process that ends between two looks may take some of its time along, and a counter must not fall.
        self._cpu_seconds = max(self._cpu_seconds, usage.cpu_seconds)
        values = read(pod) | _used(usage) | {"lwsrun_engine_cpu_seconds": _one(self._cpu_seconds)}
        snapshot = Snapshot(values, pod.tally.round_trips.cumulative(), pod.tally.round_trips.sum)
        return await asyncio.to_thread(_render, snapshot, accept)

    async def _usage(self) -> Usage:
        now = time.monotonic()
        if self._looking is None or (self._looking.done() and now - self._looked >= FRESH):
            self._looked = now
            self._looking = asyncio.create_task(asyncio.to_thread(read_usage))
        return await asyncio.shield(self._looking)


def _render(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    registry = CollectorRegistry()
    registry.register(snapshot)
    ProcessCollector(registry=registry)  # the launcher's own, by the names that every client library gives
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # the library compares whatever stands for a version
        encode, content_type = choose_encoder("")
    return encode(registry), content_type
