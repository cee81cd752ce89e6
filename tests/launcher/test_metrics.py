"""/metrics in groups of real launchers: the numbers move when the thing happens, and what reads them fits."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import wait_until
from loopback import Pod, Pods
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from backends.errors import ConfigError, Fault
from launcher import metrics
from launcher.channel.events import (
    DaemonGone,
    Event,
    GatherTimeout,
    HangJudged,
    HelperLost,
    LeaderLost,
    LeaderSaid,
    MemberDone,
    MemberFailed,
    MemberLost,
    Mismatched,
    MpirunEnded,
    ProcessEnded,
    RankMissed,
    StoryEnded,
)
from launcher.channel.messages import Cause, Stop
from launcher.failures import CAUSES, cause_of
from launcher.gates import GateFailed
from launcher.metrics import METRICS, REASONS, Exporter, Kind, startup
from launcher.tally import ROUND_TRIPS, Histogram
from launcher.usage import Usage, read_usage

ROOT = Path(__file__).parents[2]
TOKEN = "a secret of this group"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
# Two processes, of which the second ends with the first, however that ends.
TWO = "import os, time; r, w = os.pipe(); os.fork() or (os.close(w), os.read(r, 1), os._exit(0)); time.sleep(600)"
SERVE = ("--kind=server", "--peer-timeout=5s", "--", "python3", "-c", TWO)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path / "pods") as pods:
        yield pods


def scrape(pod: Pod, accept: str = "") -> tuple[str, str]:
    request = urllib.request.Request(f"http://{pod.address}:{pod.port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def samples(pod: Pod) -> dict[str, float]:
    """As "name{label=value}"."""
    found = {}
    for family in parse_text(scrape(pod)[0]):
        for each in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(each.labels.items()))
            found[each.name + (f"{{{labels}}}" if labels else "")] = each.value
    return found


def becomes(pod: Pod, name: str, value: float) -> None:
    wait_until(lambda: samples(pod).get(name) == value, 30)


def engine(pod: Pod) -> psutil.Process:
    return psutil.Process(pod.process.pid).children()[0]


# ------------------------------------------------------------------ a group's whole life


def test_the_numbers_move_when_the_thing_happens(pods: Pods) -> None:
    leader = pods.start(0, "--max-restarts=2", *SERVE, size=3, LWSRUN_TOKEN=TOKEN)
    worker = pods.start(1, *SERVE, size=3, LWSRUN_TOKEN=TOKEN)
    becomes_here(leader)
    other = pods.start(2, "--kind=server", "--peer-timeout=5s", "--", "true", size=3, LWSRUN_TOKEN=TOKEN)
    wait_until(lambda: samples(leader)["lwsrun_joins_refused_total{reason=command}"] >= 1)
    assert other.wait() == 77
    pods.start(2, *SERVE, size=3)  # without the token
    wait_until(lambda: samples(leader)["lwsrun_joins_refused_total{reason=token}"] >= 1)
    gathering = samples(leader)
    assert gathering["lwsrun_engine_up"] == gathering["lwsrun_ready"] == 0
    assert gathering["lwsrun_members{state=missing}"] == 1
    pods.all[-1].process.kill()
    third = pods.start(2, *SERVE, size=3, LWSRUN_TOKEN=TOKEN)
    for pod in (leader, worker, third):
        becomes(pod, "lwsrun_phase{phase=serving}", 1)
    becomes(leader, "lwsrun_members{state=serving}", 3)

    for pod in (leader, worker):  # its processes are looked at once a second at most
        becomes(pod, "lwsrun_engine_processes", 2)
    serving_pods(leader, worker)
    both_formats_are_read(leader)
    assert TOKEN not in scrape(leader)[0]
    assert {name.partition("{")[0] for name in samples(leader)} == given_names(), "a leader that serves gives them all"

    engine(worker).kill()  # the group restarts in place
    for pod in (leader, worker):
        becomes(pod, "lwsrun_epoch", 2)
        becomes(pod, "lwsrun_phase{phase=serving}", 1)
    after, of_worker = samples(leader), samples(worker)
    assert after["lwsrun_restarts_total"] == of_worker["lwsrun_restarts_total"] == 1
    assert after["lwsrun_failures_total{cause=peer_failed}"] == 1
    assert of_worker["lwsrun_failures_total{cause=engine}"] == 1
    assert after["lwsrun_joins_refused_total{reason=command}"] >= 1, "what was counted lasts through epochs"
    assert after["lwsrun_startup_phase_seconds{phase=restarting}"] >= 0.5, "the pause before the epoch is part of it"
    wait_until(lambda: [member["restarts"] for member in leader.group()["members"]] == [1, 1, 1])

    third.process.kill()  # a pod that dies: this time one is missing afterwards
    becomes(leader, "lwsrun_failures_total{cause=peer_lost}", 1)
    becomes(leader, "lwsrun_members{state=missing}", 1)


def becomes_here(leader: Pod) -> None:
    """The page answers, and one worker has joined."""
    leader.says(r"worker 1 joined", 30)
    becomes(leader, "lwsrun_phase{phase=gathering}", 1)
    becomes(leader, "lwsrun_members{state=missing}", 1)


def serving_pods(leader: Pod, worker: Pod) -> None:
    found, of_worker = samples(leader), samples(worker)
    for each in (found, of_worker):
        assert each["lwsrun_engine_up"] == each["lwsrun_ready"] == each["lwsrun_epoch"] == 1
        assert sum(value for name, value in each.items() if name.startswith("lwsrun_phase{")) == 1
        phases = [value for name, value in each.items() if name.startswith("lwsrun_startup_phase_seconds")]
        assert sum(phases) == pytest.approx(each["lwsrun_startup_seconds"], abs=0.01)
        assert each["lwsrun_engine_processes"] == each["lwsrun_engine_threads"] == 2
        assert each["lwsrun_engine_open_fds"] >= 4
        assert each["lwsrun_engine_resident_memory_bytes"] > 100_000
        assert each["process_resident_memory_bytes"] > 10_000_000
        assert each["lwsrun_peer_silence_seconds"] < each["lwsrun_peer_timeout_seconds"] == 5
    states = {name: value for name, value in found.items() if name.startswith("lwsrun_members")}
    assert sum(states.values()) == found["lwsrun_group_size"] == 3
    assert not [name for name in of_worker if name.startswith(("lwsrun_members", "lwsrun_joins_refused"))]
    for pod in (leader, worker):
        wait_until(lambda: samples(pod)["lwsrun_heartbeat_round_trip_seconds_count"] >= 2)  # noqa: B023
        found = samples(pod)
        assert found["lwsrun_heartbeat_round_trip_seconds_sum"] > 0
        count = found["lwsrun_heartbeat_round_trip_seconds_count"]
        assert found["lwsrun_heartbeat_round_trip_seconds_bucket{le=+Inf}"] == count
    assert "lwsrun_group_info{backend=generic,group=g,index=1,mode=as it is}" in of_worker


def both_formats_are_read(pod: Pod) -> None:
    text, content_type = scrape(pod)
    assert content_type.startswith("text/plain")
    plain = {family.name for family in parse_text(text)}
    text, content_type = scrape(pod, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in parse_openmetrics(text)}  # raises for what breaks the format
    infos = {metric.name for metric in METRICS.values() if metric.kind is Kind.INFO}  # gauges in plain text
    assert plain == {name + "_info" if name in infos else name for name in families}
    assert families.keys() >= METRICS.keys() - {"lwsrun_startup_seconds"}
    for name, metric in METRICS.items():
        if name in families:
            assert families[name].type == metric.kind.value
            assert families[name].documentation == metric.meaning
            for sample in families[name].samples:
                assert set(sample.labels) - {"le"} == set(metric.labels)
    assert scrape(pod, "application/openmetrics-text;version=no,text/plain;version=no")[0]


def test_a_drain_is_measured_while_it_lasts_and_cpu_time_outlives_the_process(pods: Pods) -> None:
    burn = "python3 -c 'import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass'"
    script = f"trap 'sleep 2; exit 0' TERM; {burn}; while :; do sleep 0.1; done"
    pod = pods.start(0, "--kind=server", "--drain-delay=0s", "--", "sh", "-c", script, size=1)
    wait_until(lambda: pod.process.poll() is None and answers(pod), 30)
    wait_until(lambda: samples(pod)["lwsrun_engine_cpu_seconds_total"] >= 0.4)
    assert samples(pod)["lwsrun_drain_seconds"] == 0
    pod.process.send_signal(signal.SIGTERM)
    wait_until(lambda: samples(pod)["lwsrun_drain_seconds"] > 0.5)
    draining = samples(pod)
    assert draining["lwsrun_phase{phase=draining}"] == 1
    assert draining["lwsrun_drain_timeout_seconds"] == 25
    assert draining["lwsrun_ready"] == 0
    assert pod.wait() == 0


def answers(pod: Pod) -> bool:
    try:
        return bool(pod.page("/metrics"))
    except OSError:
        return False


# ------------------------------------------------------------------ the parts


def test_start_up_is_told_phase_by_phase_and_the_present_one_grows() -> None:
    phases = {"starting": 0.0, "gathering": 1.0, "formed": 4.0}
    assert startup(phases, 6.0) == {("starting",): 1.0, ("gathering",): 3.0, ("formed",): 2.0}
    served = phases | {"serving": 5.0, "draining": 9.0}
    assert startup(served, 60.0) == {("starting",): 1.0, ("gathering",): 3.0, ("formed",): 1.0}


def test_a_histogram_counts_as_prometheus_does() -> None:
    histogram = Histogram()
    for value in (0.001, 0.002, 0.3, 60):
        histogram.observe(value)
    counts = dict(histogram.cumulative())
    assert counts["0.001"] == 1, "a bound belongs to its own bucket"
    assert (counts["0.0025"], counts["0.25"], counts["0.5"], counts["5.0"], counts["+Inf"]) == (2, 2, 3, 3, 4)
    assert len(counts) == len(ROUND_TRIPS) + 1


def test_the_documentation_names_every_reason_of_a_refusal() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    sentence = text.partition("`reason` is the refusal's word")[2].partition("([group.md]")[0]
    assert set(re.findall(r"`([\w-]+)`", sentence)) == set(REASONS)


WHAT_ENDED = [
    (ProcessEnded("main", 1, ""), True, "engine"),
    (ProcessEnded("ray-head", 1, ""), True, "helper"),
    (ProcessEnded("main", 1, ""), False, "peer_failed"),  # it followed a rank of another pod
    (HelperLost("ray-head", "raylet", ""), True, "helper"),
    (RankMissed("the engine's Worker_TP1", ""), True, "rank"),
    (MemberFailed(Cause(1, "")), False, "peer_failed"),
    (MemberFailed(Cause(1, "")), True, "rank"),
    (LeaderSaid(Stop(Cause(2, ""), "", None)), False, "peer_failed"),
    (LeaderSaid(Stop(Cause(1, ""), "", None)), True, "rank"),
    (MemberLost(1, "lost"), False, "peer_lost"),
    (MemberLost(1, "lost", silent=True), False, "peer_silent"),
    (LeaderLost("lost"), False, "leader_lost"),
    (StoryEnded(ConfigError(Fault("a", "b"))), True, "configuration"),
    (StoryEnded(GateFailed("")), True, "gate"),
    (StoryEnded(GatherTimeout("")), True, "gather_timeout"),
    (StoryEnded(Mismatched("")), True, "mismatch"),
    (StoryEnded(ZeroDivisionError()), True, "launcher"),
    (HangJudged(Cause(1, "")), False, "hang"),
    (MpirunEnded(1, Cause(1, "")), True, "engine"),
    (DaemonGone("orted", 1, ""), True, "helper"),
    (MemberDone(1), True, "other"),  # what no failure is: a new kind of one has no word yet
]


@pytest.mark.parametrize(("event", "mine", "cause"), WHAT_ENDED)
def test_a_failure_is_counted_by_what_this_pod_saw(event: Event, mine: bool, cause: str) -> None:
    assert cause_of(event, mine) == cause


def test_every_cause_that_the_documentation_lists_can_come() -> None:
    assert {cause for _, _, cause in WHAT_ENDED} == set(CAUSES)


def test_a_page_that_nobody_has_asked_for_costs_nothing() -> None:
    """Truth: start-up is light. What the page needs is loaded by the first scrape."""
    look = "import sys, launcher.lifecycle, launcher.watchers; print('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True).stdout == "False\n"


def test_a_scrape_by_many_at_once_looks_at_the_processes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def counted() -> Usage:
        looks.append(1)
        return read_usage()

    monkeypatch.setattr(metrics, "read_usage", counted)

    async def ask() -> None:
        exporter = Exporter()
        await asyncio.gather(*(exporter._usage() for _ in range(20)))

    asyncio.run(ask())
    assert len(looks) == 1


# ------------------------------------------------------------------ names, and who uses them


def test_names_follow_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming/: one prefix, base units, _total for counters alone."""
    for metric in METRICS.values():
        assert re.fullmatch(r"lwsrun_[a-z]+(_[a-z]+)*", metric.name)
        assert not re.search(r"_(total|info|count|sum|bucket|ms|millis|seconds_total|percent|kb|mb|gb)$", metric.name)
        assert metric.meaning.endswith(".")
        assert len(metric.labels) <= 4
        if metric.kind is Kind.INFO:
            assert metric.full_name.endswith("_info")
        if metric.kind is Kind.COUNTER:
            assert metric.full_name.endswith("_total")


def given_names() -> set[str]:
    """Every sample name that a pod can give."""
    own = {metric.full_name for metric in METRICS.values() if metric.kind is not Kind.HISTOGRAM}
    histograms = [metric.name for metric in METRICS.values() if metric.kind is Kind.HISTOGRAM]
    own |= {name + suffix for name in histograms for suffix in ("_bucket", "_sum", "_count")}
    return own | {
        "process_virtual_memory_bytes", "process_resident_memory_bytes", "process_start_time_seconds",
        "process_cpu_seconds_total", "process_open_fds", "process_max_fds",
    }  # fmt: skip


def used_names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:lwsrun|process)_[a-z_]+", query))


def queries() -> dict[str, str]:
    """Every PromQL expression that we ship, by where it stands."""
    board = json.loads((ROOT / "container/observability/dashboard.json").read_text())
    found = {
        f"panel {panel['title']!r} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    found |= {f"variable {each['name']}": each.get("definition", "") for each in board["templating"]["list"]}
    rules = yaml.safe_load((ROOT / "container/observability/alerts.yaml").read_text())
    return found | {
        f"alert {rule['alert']}": rule["expr"] + rule["annotations"]["runbook"]
        for group in rules["groups"]
        for rule in group["rules"]
    }


def test_every_query_that_we_ship_asks_for_what_a_pod_gives() -> None:
    given = given_names()
    unknown = {where: used_names(query) - given for where, query in queries().items()}
    assert {where: names for where, names in unknown.items() if names} == {}
    assert used_names("rate(lwsrun_no_such_thing_total[5m])") - given, "the check itself can fail"


def test_the_dashboard_shows_what_was_asked_for_and_finds_its_data_by_a_variable() -> None:
    board = json.loads((ROOT / "container/observability/dashboard.json").read_text())
    assert board["uid"] == "lwsrun-groups"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    sources = {json.dumps(target["datasource"]) for panel in board["panels"] for target in panel["targets"]}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    shown = set().union(*(used_names(panel["expr"]) for each in board["panels"] for panel in each["targets"]))
    unseen = {metric.full_name for metric in METRICS.values() if metric.kind is not Kind.HISTOGRAM} - shown
    assert unseen == {"lwsrun_group_size"}, "every other metric is on a panel"


def test_every_alert_says_what_to_do() -> None:
    rules = yaml.safe_load((ROOT / "container/observability/alerts.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) == 3
    for alert in alerts:
        assert alert["labels"] == {"severity": "critical"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        assert "kubectl" in alert["annotations"]["runbook"]


# ------------------------------------------------------------------ the documentation


def documented() -> str:
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.full_name}` | {metric.kind.value} | {labels} | {metric.meaning} |")
    rows += ["", "| `cause` | |", "|---|---|", *(f"| `{cause}` | {what} |" for cause, what in CAUSES.items())]
    return "\n".join(rows) + "\n"


def test_the_documentation_lists_every_metric() -> None:
    """`make golden` writes the list anew."""
    page = ROOT / "docs" / "metrics.md"
    before, begin, rest = page.read_text().partition("<!-- begin: made from launcher/metrics.py -->\n")
    listed, end, after = rest.partition("<!-- end -->\n")
    assert begin
    assert end
    if os.environ.get("LWSRUN_WRITE_GOLDEN"):
        page.write_text(before + begin + documented() + end + after)
        return
    assert listed == documented(), "make golden writes it anew"
