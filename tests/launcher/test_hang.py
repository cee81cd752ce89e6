"""An engine that lives and does nothing any more: --hang-timeout ends its group, names it, and shows its stacks."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Launched, free_port, launched, start, wait_until
from kubelet import http_get
from loopback import Pod, Pods
from test_probes import Engine, engine

from launcher.hang import Standing, culprit
from launcher.stacks import _handles

pytestmark = pytest.mark.slow

__all__ = ["engine"]  # a fixture
HANG = "--hang-timeout=1.5s"
GENERIC = "--backend=generic"


def processes_of(pid: int) -> list[psutil.Process]:
    """The little engines below this process."""
    return [child for child in psutil.Process(pid).children(recursive=True) if "--port" in child.cmdline()]


@contextlib.contextmanager
def alone(engine: Engine, tmp_path: Path, *options: str, sabotage: str = "") -> Iterator[tuple[Launched, Path]]:
    """A group of one whose engine serves, and its log."""
    port, log = free_port(), tmp_path / "log"
    engine.says("status", 200)
    given = (f"--port={port}", *options, "--", *engine.command)
    with (
        log.open("wb") as file,
        launched(*given, pid_1=False, env=engine.environ, stderr=file, sabotage=sabotage) as pod,
    ):
        wait_until(lambda: http_get("127.0.0.1", port, "/readyz")(5) == (True, "ok"))
        yield pod, log


def stands_still(engine: Engine, tmp_path: Path, sabotage: str = "") -> None:
    with alone(engine, tmp_path, HANG, sabotage=sabotage) as (pod, log):
        processes_of(pod.pid)[0].send_signal(signal.SIGSTOP)
        assert pod.wait() == 70
    assert re.search(
        r"stopped because the leader: python\S* \(pid \d+\) is stopped \(state T\), and the engine answers no health"
        r" check for 1.5 s \(GET \S+/health: no answer\): hung; stacks are in the log; the leader exits 70$",
        log.read_text().splitlines()[-1],
    )
    assert "serve_forever (socketserver.py" in log.read_text()  # as py-spy shows it


def test_an_engine_that_stands_still_ends_its_pod_and_the_cause_says_where(engine: Engine, tmp_path: Path) -> None:
    stands_still(engine, tmp_path)


def test_without_the_search_for_the_culprit_that_test_fails(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is stopped"):
        stands_still(engine, tmp_path, sabotage="culprit")


def test_without_the_option_it_stays_and_so_does_one_that_has_never_served(engine: Engine, tmp_path: Path) -> None:
    loads = Engine(tmp_path / "loads")
    loads.says("status", 503)
    never = launched(f"--port={free_port()}", HANG, "--", *loads.command, pid_1=False, env=loads.environ)
    with never as loading, alone(engine, tmp_path) as (pod, log):
        wait_until(lambda: loads.told("asked"))
        processes_of(pod.pid)[0].send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            pod.wait(3)
        assert loading.process.poll() is None
    assert "hung" not in log.read_text()


def test_a_hung_engine_is_started_anew_where_restarts_are_left(engine: Engine, tmp_path: Path) -> None:
    with alone(engine, tmp_path, HANG, "--max-restarts=1") as (pod, log):
        processes_of(pod.pid)[0].send_signal(signal.SIGSTOP)
        wait_until(lambda: log.read_text().count("the engine serves: GET") == 2, 40)
        pod.send(signal.SIGTERM)
        assert pod.wait() == 0
    assert "restart 1 of 1 in place" in log.read_text()


def test_without_py_spy_only_a_process_with_a_handler_is_asked_for_its_stacks(engine: Engine, tmp_path: Path) -> None:
    # A Python that has no py-spy beside it, and one that would end of the signal.
    python = str(Path(sys.executable).resolve())
    deaf = tmp_path / "deaf.py"
    deaf.write_text("import time; time.sleep(600)")
    program = Path(engine.command[0])
    script = program.read_text().replace(sys.executable, python)
    program.write_text(script.replace("shift\n", f"shift\n{python} {deaf} &\n"))
    engine.environ["PATH"] = "/usr/bin:/bin"
    with alone(engine, tmp_path, HANG) as (pod, log):
        engine.says("status", 503)
        asked = "the image has no py-spy: asked by SIGUSR1 for their stacks: "
        wait_until(lambda: asked in log.read_text())
        assert any(str(deaf) in child.cmdline() for child in pod.children())
        assert pod.wait() == 70
    said = log.read_text()
    assert said.partition(asked)[2].splitlines()[0].count("(pid ") == 1
    assert "most recent call first" in said  # faulthandler's words, through the engine's own stderr
    assert "answers no health check for 1.5 s (GET " in said
    assert "/health: 503)" in said


def test_a_pod_whose_processes_cannot_be_looked_at_ends_all_the_same(engine: Engine, tmp_path: Path) -> None:
    with alone(engine, tmp_path, HANG, sabotage="inspection") as (pod, log):
        processes_of(pod.pid)[0].send_signal(signal.SIGSTOP)
        assert pod.wait() == 70
    assert "the processes of this pod could not be looked at: RuntimeError('sabotage')" in log.read_text()
    assert "the leader: the engine answers no health check for 1.5 s" in log.read_text()


def test_a_handler_is_found_whatever_name_a_process_has_given_itself() -> None:
    cut = "open('/proc/self/comm', 'wb').write(('\u00e9' * 8).encode())"  # the kernel keeps 15 bytes: half a letter
    script = f"import signal; signal.signal(10, print); {cut}; print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            with pytest.raises(UnicodeDecodeError):
                Path(f"/proc/{process.pid}/status").read_text()
            assert _handles(process.pid)
        finally:
            process.kill()


def test_an_engine_that_gets_no_further_with_its_requests_hangs_though_its_health_is_fine(
    engine: Engine, tmp_path: Path
) -> None:
    engine.says("running", 2)
    with alone(engine, tmp_path, HANG) as (pod, log):
        for tokens in range(40):  # as long as it gets on, it works
            engine.says("tokens", tokens)
            time.sleep(0.1)
        assert pod.process.poll() is None
        assert pod.wait() == 70
    assert "the leader: the engine gets no further with 2 requests for 1.5 s: hung" in log.read_text()


def test_an_idle_engine_that_stands_still_is_found_by_a_request_of_our_own(engine: Engine, tmp_path: Path) -> None:
    engine.says("tokens", 1)
    with alone(engine, tmp_path, HANG) as (pod, log):
        wait_until(lambda: engine.told("asked").count("/v1/completions") > 1)  # it answers them
        assert pod.process.poll() is None
        engine.says("stuck", 1)
        assert pod.wait() == 70
    assert "the leader: the engine gets no further with a request of ours for 1.5 s: hung" in log.read_text()


@contextlib.contextmanager
def group(engine: Engine, tmp_path: Path, *options: str) -> Iterator[tuple[Pod, Pod]]:
    """A leader whose engine serves and a worker with a part of it, as where the model spans both."""
    engine.says("status", 200)
    with Pods(tmp_path / "pods") as pods:
        leader = pods.start(0, GENERIC, *options, "--", *engine.command, **engine.environ)
        worker = pods.start(1, GENERIC, *options, "--", *engine.command, ENGINE_DIRECTORY="/")
        leader.says("the engine serves")
        wait_until(lambda: processes_of(worker.process.pid))
        yield leader, worker


def test_the_pod_whose_rank_stands_still_is_the_cause_in_every_pod(engine: Engine, tmp_path: Path) -> None:
    with group(engine, tmp_path, HANG) as (leader, worker):
        processes_of(worker.process.pid)[0].send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        assert leader.process.poll() is worker.process.poll() is None  # the leader's engine serves, as far as it knows
        engine.says("tokens", 7)
        engine.says("running", 1)
        assert (leader.wait(), worker.wait()) == (75, 70)
        for pod in (leader, worker):
            assert re.search(
                r"stopped because worker 1: python\S* \(pid \d+\) is stopped \(state T\), and the engine gets no"
                r" further with a request for 1.5 s: hung; stacks are in the log; ",
                pod.last_line,
            )
            assert "the engine's processes (pid, state, where in the kernel, name)" in pod.log
        assert "little_engine.py" in worker.log


def test_standing_is_counted_for_each_replica_and_only_while_it_has_requests() -> None:
    standing = Standing()
    history = [
        ({"0": (1, 5), "1": (0, 9), "2": (1, 0)}, 0),  # the first look tells nothing
        ({"0": (1, 6), "1": (0, 9), "2": (1, 0)}, 0),  # replica 2 has never made a step
        ({"0": (1, 6), "1": (0, 9), "2": (1, 0)}, 2),
        ({"0": (2, 6), "1": (3, 9), "2": (1, 0)}, 4),
        (None, 4),  # no answer is no step, and no standing either
        ({"0": (0, 6), "1": (3, 9), "2": (1, 0)}, 4),
        ({"0": (0, 6), "1": (3, 10), "2": (1, 0)}, 0),
    ]
    for seen, expected in history:
        standing.take(seen, 2.0)
        assert standing.seconds == expected


@pytest.mark.parametrize(
    ("stopped", "index"),
    [
        ({0: "", 1: ""}, None),
        ({0: "", 1: "a (pid 1) is stopped (state T)"}, 1),
        ({0: "a (pid 1) is waiting in the kernel, uninterruptible (state D)", 1: "b (pid 2) is stopped (state T)"}, 1),
        ({0: "", 1: "", 2: "a (pid 1) is waiting in the kernel, uninterruptible (state D)"}, 2),
        ({0: "a (state D)", 2: "b (state D)"}, None),
    ],
)
def test_the_pod_with_the_process_that_stands_still_is_to_blame(stopped: dict[int, str], index: int | None) -> None:
    assert culprit(stopped) == index


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--kind=server", ": where this engine tells its health is not known (--health-url says it)"),
        ("--exec", " with --exec: nobody is left to watch the engine"),
    ],
)
def test_where_no_hang_could_be_seen_the_option_says_so(option: str, why: str) -> None:
    done = start("start", "--size=1", f"--port={free_port()}", HANG, option, "--", "true")
    assert f"WARNING: --hang-timeout does nothing{why}" in done.stderr


def test_an_option_of_nothing_is_refused() -> None:
    done = start("start", "--size=1", "--hang-timeout=0", "--", "true")
    assert done.returncode == 78
    assert "no duration above zero" in done.stderr
