"""What a first process owes to what runs under it, as PID 1 of a real PID namespace and as an ordinary process.

The behaviour that dumb-init and tini test for themselves is among it.
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import LWSRUN, Launched, launched, mask_of, wait_until
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

PUPPET = [sys.executable, "-S", "-E", str(Path(__file__).with_name("puppet.py"))]
CATCHABLE = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})
TERMINAL_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
TO_THE_ENGINE = [n for n in CATCHABLE if n not in (signal.SIGTERM, signal.SIGINT, *TERMINAL_STOPS)]
BLOCKED = {signal.SIGTERM, signal.SIGUSR1}

everywhere = pytest.mark.parametrize("pid_1", [True, False], ids=["as PID 1", "as an ordinary process"])


def puppet(pid_1: bool, *options: str, **more: Any) -> AbstractContextManager[Launched]:
    return launched("--kind=server", *options, "--", *PUPPET, pid_1=pid_1, stdin=subprocess.PIPE, **more)


def order(pod: Launched, line: str) -> None:
    assert pod.process.stdin is not None
    pod.process.stdin.write(line.encode() + b"\n")


def engine_of(pod: Launched) -> psutil.Process:
    return min(psutil.Process(pod.pid).children(), key=lambda child: child.create_time())


# ------------------------------------------------------------------ exit codes


@everywhere
@pytest.mark.parametrize("code", [0, 1, 2, 32, 64, 127, 254, 255])
def test_the_exit_code_of_a_job_is_the_pods(code: int, pid_1: bool) -> None:
    with launched("--", "sh", "-c", f"exit {code}", pid_1=pid_1, ready=False) as pod:
        assert pod.wait() == code


def exit_code(launcher: list[str], command: list[str]) -> int:
    unshare = ["unshare", "--pid", "--net", "--mount-proc", "--fork", "--kill-child"]
    return subprocess.run([*unshare, *launcher, *command], capture_output=True, timeout=60).returncode


def test_an_engine_that_dies_of_a_signal_gives_the_code_that_dumb_init_gives_for_every_signal() -> None:
    dumb_init = shutil.which("dumb-init")
    assert dumb_init, "dumb-init is not on PATH: it comes with the development dependencies"
    numbers = [n for n in [*CATCHABLE, signal.SIGKILL] if n not in TERMINAL_STOPS]

    def both(number: int) -> tuple[int, int]:
        command = ["sh", "-c", f"kill -{number} $$; exit 7"]
        return exit_code([*LWSRUN, "start", "--size=1", "--"], command), exit_code([dumb_init, "--"], command)

    with ThreadPoolExecutor(4) as pool:
        codes = dict(zip(numbers, pool.map(both, numbers), strict=True))
    assert {number: ours for number, (ours, _) in codes.items()} == {n: theirs for n, (_, theirs) in codes.items()}
    assert codes[signal.SIGSEGV][0] == 128 + signal.SIGSEGV
    assert codes[signal.SIGWINCH][0] == 7


# ------------------------------------------------------------------ signals


@everywhere
def test_every_catchable_signal_reaches_the_engine_real_time_ones_too(pid_1: bool) -> None:
    with puppet(pid_1) as pod:
        for number in TO_THE_ENGINE:
            pod.send(number)
            assert pod.line() == f"signal {number}"
        pod.send(signal.SIGTERM)
        assert pod.line() == f"signal {signal.SIGTERM.value}"
        assert pod.process.poll() is None


@everywhere
def test_sigint_asks_the_engine_with_sigterm(pid_1: bool) -> None:
    with puppet(pid_1, "--drain-timeout=1s") as pod:
        pod.send(signal.SIGINT)
        assert pod.line() == f"signal {signal.SIGTERM.value}"
        assert pod.wait() == 137


@everywhere
def test_signals_go_to_the_engines_whole_process_group(pid_1: bool) -> None:
    command = "trap 'echo parent' USR1; (trap 'echo child' USR1; echo up; while :; do sleep 0.05; done) & "
    with launched("--", "sh", "-c", command + "while :; do sleep 0.05; done", pid_1=pid_1) as pod:
        pod.send(signal.SIGUSR1)
        assert sorted([pod.line(), pod.line()]) == ["child", "parent"]


@everywhere
def test_what_runs_on_hears_a_sigterm_when_the_engine_ends(pid_1: bool) -> None:
    stays = "trap 'echo heard; exit' TERM; echo up; while :; do sleep 0.05; done"
    engine = f'sh -c "{stays}" & read go; exit 3'
    with launched("--", "sh", "-c", engine, pid_1=pid_1, stdin=subprocess.PIPE) as pod:
        order(pod, "go")
        assert pod.line() == "heard"
        assert pod.wait() == 3


@everywhere
@pytest.mark.parametrize("after", [0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_sigterm_at_any_moment_of_the_start_is_neither_lost_nor_fatal(after: float, pid_1: bool) -> None:
    with launched("--kind=server", "--drain-delay=0", "--", "sleep", "600", pid_1=pid_1, ready=False) as pod:
        wait_until(lambda: mask_of(pod.pid, "SigBlk") >= BLOCKED)
        time.sleep(after)  # moments, not a wait: any of them is right
        pod.send(signal.SIGTERM)
        assert pod.wait() == 0


def kept_signal(pid_1: bool, sabotage: str = "") -> None:
    engine = "sleep 0.5; trap 'echo usr1' USR1; echo up; while :; do sleep 0.05; done"
    with launched("--", "bash", "-c", engine, pid_1=pid_1, ready=False, sabotage=sabotage) as pod:
        wait_until(lambda: mask_of(pod.pid, "SigBlk") >= BLOCKED)
        pod.send(signal.SIGUSR1)
        assert pod.line() == "up"
        assert pod.line() == "usr1"


@everywhere
def test_a_signal_before_the_engine_is_there_reaches_it_once_it_handles_it(pid_1: bool) -> None:
    kept_signal(pid_1)


def test_signals_that_are_kept_do_not_wait_for_each_other() -> None:
    # USR1 is never handled; USR2 is, but was sent later.
    engine = "trap 'echo usr2' USR2; echo up; while :; do sleep 0.05; done"
    with launched("--", "bash", "-c", engine, pid_1=True, ready=False) as pod:
        wait_until(lambda: mask_of(pod.pid, "SigBlk") >= BLOCKED)
        pod.send(signal.SIGUSR1)
        time.sleep(0.02)
        pod.send(signal.SIGUSR2)
        assert pod.line() == "up"
        assert pod.line() == "usr2"


@everywhere
def test_the_second_sigterm_shortens_the_grace_and_the_third_kills(pid_1: bool) -> None:
    for more in (1, 2):
        with puppet(pid_1, "--drain-timeout=600s", "--drain-delay=0") as pod:
            pod.send(signal.SIGTERM)
            assert pod.line() == f"signal {signal.SIGTERM.value}"
            for _ in range(more):
                pod.send(signal.SIGINT)
                time.sleep(0.05)  # standard signals that are pending coalesce
            assert pod.wait() == 137


def test_further_signals_reach_an_engine_that_drains() -> None:
    with puppet(True, "--drain-timeout=600s", "--drain-delay=0") as pod:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
            pod.send(number)
            assert pod.line() == f"signal {number.value}"


# ------------------------------------------------------------------ job control


@pytest.mark.parametrize("number", TERMINAL_STOPS)
@everywhere
def test_a_terminals_stop_signals_stop_the_engine_and_sigcont_resumes_it(number: int, pid_1: bool) -> None:
    with puppet(pid_1) as pod:
        engine = engine_of(pod)
        pod.send(number)
        wait_until(lambda: engine.status() == psutil.STATUS_STOPPED)
        if not pid_1:  # the kernel does not let PID 1 stop itself
            wait_until(lambda: psutil.Process(pod.pid).status() == psutil.STATUS_STOPPED)
        pod.send(signal.SIGCONT)
        assert pod.line() == f"signal {signal.SIGCONT.value}"
        order(pod, "run")
        assert pod.line() == "done run"


def test_in_a_shell_ctrl_z_suspends_it_fg_resumes_it_and_ctrl_c_drains_it() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash", "--norc", "-i"])
    said = b""

    def expect(text: bytes) -> None:
        nonlocal said
        deadline = time.monotonic() + 20
        while text not in said:
            assert time.monotonic() < deadline, said
            if select.select([terminal], [], [], 0.1)[0]:
                said += os.read(terminal, 4096)
        said = said.partition(text)[2]

    def type_in(text: str) -> None:
        os.write(terminal, text.encode())

    try:
        engine = "trap 'echo drained; exit' TERM; echo up and running; while read line; do echo got \\$line; done"
        type_in(f"PS1='$ '; {' '.join(LWSRUN)} start --size=1 --kind=server --drain-delay=0 -- bash -c \"{engine}\"\n")
        expect(b"\nup and running")
        type_in("\x1a")
        expect(b"Stopped")
        expect(b"$ ")  # what is typed before may be lost
        type_in("fg\n")
        expect(b"start --size=1")
        type_in("hello\n")
        expect(b"got hello")
        type_in("\x03")
        expect(b"drained")
        type_in("echo code $?\n")
        expect(b"code 0")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(pid, 0)


# ------------------------------------------------------------------ reaping


def storm(pid_1: bool, sabotage: str = "") -> None:
    with puppet(pid_1, sabotage=sabotage) as pod:
        order(pod, "flash 10000")
        assert pod.line(60) == "done flash 10000"
        wait_until(lambda: len(pod.children()) == 1, limit=5)
        before = sum(psutil.Process(pod.pid).cpu_times()[:2])
        order(pod, "run")
        assert pod.line() == "done run"
        time.sleep(1)  # a busy loop would use all of it
        assert sum(psutil.Process(pod.pid).cpu_times()[:2]) - before < 0.3
        order(pod, "exit 7")
        assert pod.wait() == 7


@everywhere
def test_a_storm_of_ten_thousand_orphans_leaves_no_zombie_and_takes_no_exit_code(pid_1: bool) -> None:
    storm(pid_1)


@everywhere
def test_daemons_of_the_engine_are_reaped_when_they_end_and_ended_when_it_ends(pid_1: bool) -> None:
    with puppet(pid_1) as pod:
        for line in ("daemon", "daemon", "orphan", "run"):
            order(pod, line)
            assert pod.line() == f"done {line}"
        family = pod.children()
        assert len(family) == 5
        daemon = next(p for p in family if p.ppid() == pod.pid and p != engine_of(pod))
        daemon.kill()
        wait_until(lambda: not daemon.is_running())
        order(pod, "exit 5")
        assert pod.wait() == 5
        assert [process for process in family if process.is_running()] == []


def dies_with_the_launcher(pid_1: bool, sabotage: str = "") -> None:
    with puppet(pid_1, sabotage=sabotage) as pod:
        engine = engine_of(pod)
        try:
            pod.send(signal.SIGKILL)
            wait_until(lambda: not engine.is_running(), limit=3)
        finally:
            if engine.is_running():
                engine.kill()


@everywhere
def test_the_engine_dies_with_a_launcher_that_is_killed(pid_1: bool) -> None:
    dies_with_the_launcher(pid_1)


def test_as_pid_1_it_holds_no_mount_while_the_engine_stays_where_it_was_started(tmp_path: Path) -> None:
    with launched("--", "sh", "-c", "pwd; echo up; sleep 600", pid_1=True, ready=False, cwd=tmp_path) as pod:
        assert [pod.line(), pod.line()] == [str(tmp_path), "up"]
        wait_until(lambda: os.readlink(f"/proc/{pod.pid}/cwd") == "/")


# ------------------------------------------------------------------ random lives

STEPS = st.one_of(
    st.sampled_from(["run", "orphan", "daemon", "flash 3", "flash 40"]),
    st.sampled_from(TO_THE_ENGINE).map(lambda number: f"signal {int(number)}"),
)
ENDS = st.one_of(
    st.integers(1, 255).map(lambda code: (f"exit {code}", code)),
    st.sampled_from([signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1]).map(lambda n: (f"die {n.value}", 128 + n)),
)


def zombies_of(pod: Launched) -> list[psutil.Process]:
    """Those that the launcher should have reaped; an engine may leave its own children unreaped while it lives."""
    return [process for process in psutil.Process(pod.pid).children() if is_zombie(process)]


def is_zombie(process: psutil.Process) -> bool:
    """One that has been reaped between our two looks is none."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        return False


@everywhere
@settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(STEPS, max_size=12), end=ENDS)
def test_whatever_the_engine_does_no_signal_no_exit_code_is_lost_and_nobody_survives(
    steps: list[str], end: tuple[str, int], pid_1: bool
) -> None:
    with puppet(pid_1) as pod:
        for step in steps:
            if step.startswith("signal"):
                pod.send(int(step.split()[1]))
                assert pod.line() == step
            else:
                order(pod, step)
                assert pod.line() == f"done {step}"
        wait_until(lambda: not zombies_of(pod))
        family = pod.children()
        order(pod, end[0])
        assert pod.wait() == end[1]
        assert [process for process in family if process.is_running()] == []


# ------------------------------------------------------------------ proofs

PROOFS = [
    (kept_signal, "kept_signals", True),
    (storm, "reaping", True),
    (dies_with_the_launcher, "parent_death", False),
]


@pytest.mark.parametrize(("scenario", "off", "pid_1"), PROOFS, ids=[off for _, off, _ in PROOFS])
def test_without_its_mechanism_the_test_fails(scenario: Any, off: str, pid_1: bool) -> None:
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        scenario(pid_1, sabotage=off)
