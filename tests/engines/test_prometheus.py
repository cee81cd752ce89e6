"""Metrics, dashboard and alerts as Prometheus itself takes them: its lint, and a server that scrapes a group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, wait_until

sys.path.append(str(Path(__file__).parents[1] / "launcher"))
from loopback import Pod, Pods

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "container/observability/alerts.yaml"
DASHBOARD = ROOT / "container/observability/dashboard.json"
SERVE = ("--kind=server", "--peer-timeout=5s", "--", "sleep", "600")


def program(name: str) -> str:
    return str(Path(os.environ["LWSRUN_TEST_PROMETHEUS"]) / name)


def promtool(*arguments: str, given: bytes = b"") -> str:
    done = subprocess.run([program("promtool"), *arguments], input=given, capture_output=True, timeout=120)
    told = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, told
    return told


@pytest.fixture
def group(tmp_path: Path) -> Iterator[tuple[Pod, Pod]]:
    """A leader and a worker that serve."""
    with Pods(tmp_path / "pods") as pods:
        leader, worker = pods.start(0, *SERVE), pods.start(1, *SERVE)
        leader.says("running: ", 60)
        wait_until(lambda: [one["phase"] for one in leader.group()["members"]] == ["serving"] * 2, 60)
        yield leader, worker


def test_promtool_finds_nothing_to_complain_of_in_a_pods_page(group: tuple[Pod, Pod]) -> None:
    for pod in group:
        assert promtool("check", "metrics", given=pod.page("/metrics", 20)) == ""


def test_the_lint_itself_complains_of_a_bad_name() -> None:
    with pytest.raises(AssertionError, match="counter metrics should have"):
        promtool("check", "metrics", given=b"# HELP x_seconds Help.\n# TYPE x_seconds counter\nx_seconds 1\n")


def test_the_alerts_wake_somebody_when_they_should_and_only_then() -> None:
    assert "3 rules found" in promtool("check", "rules", str(ALERTS))
    assert "SUCCESS" in promtool("test", "rules", str(Path(__file__).with_name("alerts_test.yaml")))


class Server:
    """A Prometheus server that scrapes pods every half second and has our alerts."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def is_up(self) -> bool:
        try:
            return len(self.query("up == 1")) == 2
        except OSError:
            return False


@pytest.fixture
def server(group: tuple[Pod, Pod], tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    targets = [f"{pod.address}:{pod.port}" for pod in group]
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": "lwsrun", "static_configs": [{"targets": targets}]}],
        "rule_files": [str(ALERTS)],
    }
    file = tmp_path / "prometheus.json"  # JSON is YAML
    file.write_text(json.dumps(config))
    argv = [
        program("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (tmp_path / "prometheus.log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as process:
        try:
            server = Server(f"http://127.0.0.1:{port}")
            wait_until(server.is_up, 120)
            yield server
        finally:
            process.kill()


def test_every_panel_of_the_dashboard_shows_a_real_group(server: Server) -> None:
    variables = {"$__rate_interval": "10s", "$namespace": ".*", "$job": ".*", "$group": ".*"}
    board = json.loads(DASHBOARD.read_text())
    # Rates need two scrapes; a round trip comes once a second.
    wait_until(lambda: server.query("min(lwsrun_heartbeat_round_trip_seconds_count) > 2"), 60)
    for panel in board["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].removesuffix(" > 0")  # without what hides a 0: nothing has failed here
            for name, value in variables.items():
                expression = expression.replace(name, value)
            print(f"{panel['title']}: {expression}")  # the last one is shown if nothing comes
            wait_until(partial(server.query, expression), 30)  # a scrape may have failed on a busy machine
    (serves,) = server.query('sum(lwsrun_ready * on (job, instance) lwsrun_group_info{index="0"})')
    assert serves["value"][1] == "1"
    assert {one["metric"]["index"] for one in server.query("lwsrun_group_info")} == {"0", "1"}
    rules = [rule for one in server.ask("rules")["groups"] for rule in one["rules"]]
    assert len(rules) == 3
    wait_until(lambda: all(rule["health"] == "ok" for one in server.ask("rules")["groups"] for rule in one["rules"]))
    assert server.ask("alerts")["alerts"] == []
