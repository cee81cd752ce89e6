"""Stopping in order and within one budget of time, and what every unsuccessful end leaves to be read."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from conftest import LWSRUN, free_port, launched, start, wait_until

from backends.plan import InFlight
from launcher.budget import Budget
from launcher.drain import Drain
from launcher.settings import Settings
from launcher.supervisor import Child

SERVER = "--kind=server"
STUBBORN = ["sh", "-c", "trap 'echo heard' TERM; echo up; while :; do sleep 0.05; done"]
# Stands for an engine that is still loading: it is called vllm, takes SIGTERMs for nothing, then serves and takes them.
SLOW_STARTER = """#!/usr/bin/env python3
import os, signal, socket, subprocess, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
worker = subprocess.Popen([sys.executable, "-S", "-c", "import time; print('worker up', flush=True); time.sleep(600)"])
heard = []
signal.signal(signal.SIGTERM, lambda *_: (heard.append(1), print("lost", flush=True)))
print("up", flush=True)
while not heard:
    time.sleep(0.05)
time.sleep(0.5)
signal.signal(signal.SIGTERM, lambda *_: (print("worker is", worker.poll(), flush=True), sys.exit(3)))
listener = socket.create_server(("127.0.0.1", port))
while True:
    listener.accept()
"""


def health(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_a_server_turns_unready_first_and_is_asked_to_end_after_the_delay() -> None:
    port = free_port()
    options = (f"--port={port}", "--drain-delay=2s", SERVER)
    with launched(*options, "--", "sh", "-c", "trap 'echo term; exit' TERM; echo up; while :; do sleep 0.05; done",
                  pid_1=False) as pod:  # fmt: skip
        wait_until(lambda: health(port, "/readyz") == (200, "ok\n"))
        pod.send(signal.SIGTERM)
        wait_until(lambda: health(port, "/readyz") == (503, "draining\n"))
        assert health(port, "/livez")[0] == 200
        assert pod.line() == "term"
        assert pod.wait() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--drain-timeout=60s", "--termination-grace-period=30s"], "--drain-timeout 60 s is cut to 25 s"),
        (["--drain-timeout=2s", "--drain-delay=9s"], "--drain-delay 9 s is cut to 0.8 s"),
    ],
)
def test_what_does_not_fit_into_the_grace_is_said(options: list[str], said: str) -> None:
    assert said in start("start", "--size=1", *options, "--", "true").stderr


def test_the_pods_grace_period_is_the_budget_when_no_other_is_given() -> None:
    with launched("--termination-grace-period=3s", "--drain-delay=0", SERVER, "--", *STUBBORN,
                  pid_1=True, stderr=subprocess.PIPE) as pod:  # fmt: skip
        pod.send(signal.SIGTERM)
        assert pod.wait() == 137
        assert pod.process.stderr is not None
        assert b"asking the engine to end; it has 2.0 s" in pod.process.stderr.read()


def slow_starter(tmp_path: Path, sabotage: str = "") -> None:
    (tmp_path / "vllm").write_text(SLOW_STARTER)
    (tmp_path / "vllm").chmod(0o755)
    command = [str(tmp_path / "vllm"), "serve", "m", "--port", str(free_port())]
    with launched("--drain-timeout=60s", "--drain-delay=0", "--", *command, pid_1=False, sabotage=sabotage) as pod:
        assert pod.line() == "worker up"
        pod.send(signal.SIGTERM)
        assert pod.line() == "lost"
        assert pod.line(limit=10) == "worker is None", "its worker was asked too, and dropped what it was doing"
        assert pod.wait() == 0


def test_an_engine_that_loses_a_sigterm_while_it_starts_is_asked_again_and_alone(tmp_path: Path) -> None:
    slow_starter(tmp_path)


@pytest.mark.parametrize("off", ["asking_again", "asking_alone"])
def test_without_its_mechanism_the_slow_starter_fails(off: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        slow_starter(tmp_path, sabotage=off)


# ------------------------------------------------------------------ the termination message

HUGE = "import sys; print('x' * 9999); raise RuntimeError('é' * 9999)"
ENDS = [
    # options, command, exit code, how the message begins, what else it holds
    ([], ["sh", "-c", "exit 3"], 3, "stopped because the leader: the engine exited 3; the leader exits 3", ""),
    ([SERVER], ["true"], 70, "stopped because the leader: the engine exited 0, although nobody asked", ""),
    ([], ["sh", "-c", "kill -9 $$"], 137, "stopped because the leader: the engine exited 137 (SIGKILL)", ""),
    ([], [sys.executable, "-c", HUGE], 1, "stopped because the leader: the engine exited 1", "RuntimeError: é"),
    ([], ["/no/such/program"], 78, "stopped because the leader: configuration: /no/such/program does not", "to do:"),
    (["--no-such-option"], ["true"], 78, "stopped because of the configuration: No such option", ""),
    (["--env=X"], ["true"], 78, "stopped because of the configuration: --env 'X'", "NAME=VALUE"),
]


@pytest.mark.parametrize(("options", "command", "code", "begins", "holds"), ENDS, ids=lambda value: str(value)[:30])
def test_every_unsuccessful_end_is_told_in_the_termination_message(
    options: list[str], command: list[str], code: int, begins: str, holds: str, tmp_path: Path
) -> None:
    log = tmp_path / "termination-log"
    done = start("start", "--size=1", f"--termination-log={log}", *options, "--", *command)
    assert done.returncode == code
    message = log.read_bytes()
    assert message.decode().startswith(begins)
    assert holds in message.decode()
    assert len(message) <= 4096


def test_an_engine_that_had_to_be_killed_is_told_in_the_termination_message(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    options = (f"--termination-log={log}", "--drain-timeout=1s", "--drain-delay=0", SERVER)
    with launched(*options, "--", *STUBBORN, pid_1=True) as pod:
        pod.send(signal.SIGTERM)
        assert pod.wait() == 137
    assert log.read_text().startswith("stopped: SIGTERM from outside the pod; the engine had to be killed, 0.")


def test_a_mistake_of_our_own_is_told_too_and_takes_nobody_along_unseen(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    with launched(f"--termination-log={log}", "--", "true", pid_1=True, ready=False,
                  sabotage="broken_launcher") as pod:  # fmt: skip
        assert pod.wait() == 70
    assert log.read_text().startswith("stopped because lwsrun itself failed: RuntimeError('sabotage')")


def test_a_good_end_leaves_the_termination_message_empty(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    assert start("start", "--size=1", f"--termination-log={log}", "--", "true").returncode == 0
    assert not log.exists()


def test_outside_a_pod_no_file_is_made_where_the_kubelet_would_have_one() -> None:
    before = os.path.exists("/dev/termination-log")
    assert start("start", "--size=1", "--", "false").returncode == 1
    assert os.path.exists("/dev/termination-log") == before


@pytest.mark.parametrize("size", [0, 100, 4096])
def test_how_much_of_the_engines_error_is_kept_can_be_chosen(size: int, tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    engine = [sys.executable, "-c", "raise RuntimeError('x' * 5000)"]
    start("start", "--size=1", f"--termination-log={log}", f"--report-bytes={size}", "--", *engine)
    first, _, head = log.read_text().partition("first error output of the leader:\n")
    assert first.startswith("stopped because")
    assert len(head.strip()) == min(size, 4096 - len(first) - len("first error output of the leader:\n"))


# ------------------------------------------------------------------ requests in flight


NOT_TOLD = -1


class Scripted(http.server.BaseHTTPRequestHandler):
    """An engine's metrics page: for each look the seconds that it takes, and the requests that it then shows."""

    script: ClassVar[list[tuple[float, int]]] = []

    def do_GET(self) -> None:
        wait, requests = self.script.pop(0) if self.script else (0.0, 0)
        time.sleep(wait)
        name = "vllm:other" if requests == NOT_TOLD else "vllm:requests"
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'{name}{{engine="0"}} {requests}\n'.encode())

    def log_message(self, *_: object) -> None:
        pass


def let_finish(
    script: list[tuple[float, int]], left: float, served: bool = False, load: str = ""
) -> tuple[float, list[tuple[float, int]]]:
    """How long the drain waits for such an engine that has `left` seconds, and what of the script it did not ask."""
    Scripted.script = script

    async def wait(url: str) -> float:
        settings = Settings((), {}, budget=Budget(total=60))
        drain = Drain(cast(Any, SimpleNamespace(settings=settings, served_since=0.0 if served else None)))
        loop = asyncio.get_running_loop()
        engine = cast(Child, SimpleNamespace(alive=True, exited=loop.create_future()))
        begun = loop.time()
        asked = InFlight(url, ("vllm:requests",), load=url if load else None, load_key=load)
        await drain.let_finish(asked, engine, lambda: begun + left - loop.time())
        return loop.time() - begun

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        took = asyncio.run(wait(f"http://127.0.0.1:{server.server_address[1]}/metrics"))
        server.shutdown()
    return took, script


def test_one_slow_answer_does_not_end_the_wait_for_requests_in_flight() -> None:
    _, rest = let_finish([(0, 5), (0, 5), (2.5, 5), (0, 5), (0, 5), (0, 0)], left=30)
    assert rest == []


def test_an_engine_that_has_not_served_and_does_not_answer_is_not_waited_for() -> None:
    took, _ = let_finish([(9, 0)] * 9, left=30)
    assert took < 15


def test_an_engine_that_served_and_is_too_busy_to_answer_is_waited_for() -> None:
    _, rest = let_finish([(2.2, 1)] * 4 + [(0, 1), (0, 0)], left=40, served=True)
    assert rest == []


def test_an_engine_that_served_but_does_not_tell_its_requests_is_not_waited_for() -> None:
    took, _ = let_finish([(0, NOT_TOLD)] * 99, left=30, served=True)
    assert took < 10
    took, _ = let_finish([(0, 1)] * 99, left=30, served=True, load="server_load")  # that page is no JSON
    assert took < 10


def test_the_wait_for_requests_ends_with_the_time_that_is_left() -> None:
    took, _ = let_finish([(0, 5), *[(9, 5)] * 9], left=1)
    assert took < 4


# ------------------------------------------------------------------ output


def test_a_finished_job_waits_for_a_reader_that_is_slow_to_take_its_output() -> None:
    script = f"{shlex.join(LWSRUN)} start --size=1 -- seq 1 100000 | {{ sleep 9; wc -l; }}"
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=40).stdout.strip() == "100000"


def test_output_that_nobody_takes_is_said_to_be_dropped_when_the_pod_has_to_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stdout")
    held = os.open(tmp_path / "stdout", os.O_RDWR)  # open, but never read: it fills up
    engine = [sys.executable, "-c", "print('x' * 900000)"]
    argv = [*LWSRUN, "start", "--size=1", "--", *engine]
    with subprocess.Popen(argv, stdout=held, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any("running:" in line for line in process.stderr)
            time.sleep(1)  # the job ends; its output waits
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert "not taken by its reader in time: dropped" in process.stderr.read()
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(held)


BOTH = """
import os, threading
def write(fd, letter):
    for _ in range(20000):
        os.write(fd, letter * 99 + b"\\n")
threads = [threading.Thread(target=write, args=pair) for pair in ((1, b"o"), (2, b"e"))]
[thread.start() for thread in threads], [thread.join() for thread in threads]
"""


def test_where_stdout_and_stderr_are_one_no_line_is_torn() -> None:
    argv = [*LWSRUN, "start", "--size=1", "--", sys.executable, "-c", BOTH]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    lines = [line for line in done.stdout.splitlines() if "lwsrun" not in line]
    assert sorted(set(lines)) == ["e" * 99, "o" * 99]
    assert len(lines) == 40000


FLOOD = """
import hashlib, os, sys
digest, block = hashlib.sha256(), os.urandom(1 << 20)
for number in range(200):
    part = number.to_bytes(4, "big") + block[number * 7 :]
    digest.update(part)
    view = memoryview(part)
    while view:
        view = view[os.write(1, view[: 1 + number * 997]) :]
os.write(2, digest.hexdigest().encode())
"""


def test_hundreds_of_megabytes_pass_unchanged_while_memory_stays_bounded() -> None:
    import hashlib

    import psutil

    argv = [*LWSRUN, "start", "--size=1", "--", sys.executable, "-c", FLOOD]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            got, most, launcher = hashlib.sha256(), 0, psutil.Process(process.pid)
            while chunk := process.stdout.read(1 << 20):
                got.update(chunk)
                most = max(most, launcher.memory_info().rss)
            said = process.stderr.read().decode()
        finally:
            process.kill()
    assert got.hexdigest() in said
    assert most < 100 << 20


def test_a_line_of_ours_never_tears_one_of_the_engines() -> None:
    engine = "printf half >&2; sleep 0.1; kill -USR1 $PPID; sleep 1.5; printf ' line\\n' >&2; exit 3"
    done = start("start", "--size=1", SERVER, "--", "bash", "-c", f"trap '' USR1; {engine}")
    lines = done.stderr.splitlines()
    assert [line for line in lines if "[lwsrun " in line and not line.startswith("[lwsrun ")] == []
    assert "half line" in lines or lines.index("half") < lines.index(" line")


def test_as_json_every_line_of_ours_is_one_object_and_the_engines_are_as_they_were() -> None:
    engine = "echo '{\"mine\": 1}' >&2; printf 'unfinished' >&2; exit 3"
    done = start("start", "--size=1", "--log-format=json", "--", "sh", "-c", engine)
    ours: list[dict[str, Any]] = []
    theirs = []
    for line in done.stderr.splitlines():
        if line.startswith("{") and json.loads(line).get("logger") == "lwsrun":
            ours.append(json.loads(line))
        else:
            theirs.append(line)
    assert theirs == ['{"mine": 1}', "unfinished"]
    assert ours[-1]["level"] == "error"
    assert ours[-1]["member"] == "leader"
    assert ours[-1]["message"].startswith("stopped because the leader: the engine exited 3")
