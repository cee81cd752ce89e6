"""A start-up's phases, one by one: an engine that was started loads until it accepts connections."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Launched, Simulate, free_port, launched, wait_until
from hypothesis import given
from hypothesis import strategies as st

from launcher.phases import OF_MEMBERS, PHASES, spent, summary
from launcher.simulate.live import COLOURS

ROOT = Path(__file__).parents[2]

# By its name a server. It opens its port once a file is there, and is well from then on.
ENGINE = """#!/usr/bin/env python3
import os, socket, sys, time
port, go = int(sys.argv[sys.argv.index("--port") + 1]), sys.argv[0] + ".go"
print("up", flush=True)
while not os.path.exists(go):
    time.sleep(0.02)
if open(go).read():
    sys.exit(int(open(go).read()))
listener = socket.create_server(("127.0.0.1", port))
while True:
    client, _ = listener.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
    client.close()
"""


def page(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())
    except OSError:
        return ""


class Engine:
    """A pod of one whose engine loads, and what it says."""

    def __init__(self, pod: Launched, port: int, program: Path, log: Path) -> None:
        self.pod, self.port, self.program, self._log = pod, port, program, log

    def load(self, code: str = "") -> None:
        """It is loaded now; with a code it ends so instead."""
        (self.program.parent / "half").write_text(code)
        (self.program.parent / "half").rename(f"{self.program}.go")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def group(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(page(self.port, "/group"))
        return state


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    program = tmp_path / "vllm"
    program.write_text(ENGINE)
    program.chmod(0o755)
    port = free_port()
    command = [str(program), "serve", "m", "--port", str(free_port())]
    options = (f"--port={port}", "--report-every=300ms", "--drain-delay=9s")
    with (tmp_path / "log").open("wb") as log, launched(*options, "--", *command, pid_1=False, stderr=log) as pod:
        wait_until(lambda: page(port, "/readyz") == "loading\n")
        yield Engine(pod, port, program, tmp_path / "log")


def test_an_engine_loads_until_it_accepts_connections_and_the_log_says_for_how_long(engine: Engine) -> None:
    still = r"loading for \d+ s: vllm does not accept connections on port \d+ yet"
    wait_until(lambda: re.search(still, engine.log))
    assert page(engine.port, "/startupz") == "loading\n"
    engine.load()
    wait_until(lambda: page(engine.port, "/readyz") == "ok\n")
    loaded = r"loaded: vllm accepts connections after (\d+\.\d) s \(.*loading (\d+\.\d) s\)"
    wait_until(lambda: re.search(loaded, engine.log))
    ((total, loading),) = re.findall(loaded, engine.log)
    assert 0.3 <= float(loading) <= float(total)
    state = engine.group()
    assert list(state["phases"])[-2:] == ["loading", "serving"]
    took = state["phase_seconds"]
    assert list(took) == list(state["phases"])
    assert took["loading"] == pytest.approx(state["phases"]["serving"] - state["phases"]["loading"], abs=0.002)


def test_an_engine_that_loads_is_asked_to_end_without_a_delay_for_clients_it_has_not_got(engine: Engine) -> None:
    engine.pod.send(signal.SIGTERM)
    assert engine.pod.wait() == 0
    assert "(--drain-delay)" not in engine.log


def test_an_engine_that_ends_while_it_loads_is_never_said_to_serve(engine: Engine) -> None:
    engine.load("9")
    assert engine.pod.wait() == 9
    assert "loaded" not in engine.log


def loads(tmp_path: Path, sabotage: str = "") -> None:
    program, port = tmp_path / "vllm", free_port()
    program.write_text(ENGINE)
    program.chmod(0o755)
    command = (str(program), "serve", "m", "--port", str(free_port()))
    with launched(f"--port={port}", "--", *command, pid_1=False, sabotage=sabotage):
        wait_until(lambda: page(port, "/readyz") not in ("", "starting\n"))
        assert page(port, "/readyz") == "loading\n"


def test_an_engine_that_has_not_opened_its_port_does_not_serve(tmp_path: Path) -> None:
    loads(tmp_path)


def test_one_that_is_not_seen_through_its_loading_makes_that_test_fail(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="engine: GET"):
        loads(tmp_path, sabotage="loading")


def test_a_command_that_opens_no_port_that_is_known_serves_from_its_start(tmp_path: Path) -> None:
    port = free_port()
    command = ("sh", "-c", "echo up; sleep 600 & wait")
    with launched(f"--port={port}", "--kind=server", "--", *command, pid_1=False, stderr=subprocess.DEVNULL):
        wait_until(lambda: page(port, "/readyz") == "ok\n")
        assert "loading" not in json.loads(page(port, "/group"))["phases"]


def test_what_a_simulation_does_once_the_group_serves_waits_until_the_engine_has_loaded(
    simulate: Simulate, tmp_path: Path
) -> None:
    program, late = tmp_path / "vllm", tmp_path / "late"
    program.write_text(ENGINE)
    late.write_text(f"#!/bin/sh\n(sleep 2; : > {program}.go) &\nexec {program} serve m --port 8000\n")
    for file in (program, late):
        file.chmod(0o755)
    engine = [str(late), "vllm", "serve", "m"]  # behind a wrapper
    done = simulate("--size=1", "--then=true", "--fault=term:0@loading+600s", command=engine)
    assert done.code == 0, done.output
    assert list(done.result["group"]["phases"])[:3] == ["starting", "loading", "serving"]
    assert done.output.index("loaded: vllm") < done.output.index("running: true")
    assert "term:0@loading+600s did not happen: the simulation had ended by then" in done.output


def test_every_phase_that_a_pod_enters_is_known_and_the_documents_tell_of_it() -> None:
    entered = set()
    for file in (ROOT / "launcher").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "enter":
                words = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
                entered |= {word for word in words if isinstance(word, str)}
    entered.add("starting")  # which is where a pod is from the beginning
    assert set(PHASES) == entered - {"leaving", "failed"}
    assert entered - set(PHASES) <= set(OF_MEMBERS)
    assert set(COLOURS) <= set(PHASES)
    rows = re.findall(
        r"^\| (`.+?) \|", (ROOT / "docs" / "group.md").read_text().partition("### Phases")[2], re.MULTILINE
    )
    assert set(re.findall(r"`(\w+)`", " ".join(rows[: len(PHASES)]))) >= set(PHASES)
    sentence = (ROOT / "docs" / "concepts.md").read_text().rpartition("The phases are")[2]
    assert set(re.findall(r"`(\w+)`", sentence)) == set(PHASES)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
def test_the_times_in_all_phases_add_up_to_the_pods_age(moments: list[float]) -> None:
    *begins, age = sorted([0.0, *moments])
    began = {f"phase {number}": at for number, at in enumerate(begins)}
    assert sum(spent(began, age).values()) == pytest.approx(age, abs=0.001 * (len(begins) + 1))


def test_a_summary_leaves_out_what_took_no_time() -> None:
    began = {"starting": 0.0, "gathering": 0.3, "formed": 0.7, "preparing": 0.71, "loading": 6.8, "serving": 63.5}
    assert summary(began, 63.5) == "starting 0.3 s, gathering 0.4 s, preparing 6.1 s, loading 56.7 s"
