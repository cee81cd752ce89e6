"""The supervisor against real processes: exit codes, signals, orphans."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LWSRUN, start


@pytest.mark.parametrize("code", [0, 1, 2, 70, 75, 78, 127, 255])
def test_the_engines_exit_code_is_the_pods(code: int) -> None:
    assert start("start", "--size=1", "--", "sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGHUP])
def test_an_engine_that_dies_of_a_signal_gives_128_and_the_number(number: signal.Signals) -> None:
    done = start("start", "--size=1", "--", "sh", "-c", f"kill -{number.value} $$")
    assert done.returncode == 128 + number
    assert f"exited {128 + number} ({number.name})" in done.stderr


def test_the_engine_starts_with_a_clean_mask_and_default_dispositions() -> None:
    done = start("start", "--size=1", "--", "grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status")
    # glibc keeps its own two internal signals (32 and 33) as they are.
    values = {line.split()[0]: int(line.split()[1], 16) & ~(0b11 << 31) for line in done.stdout.splitlines()}
    assert values == {"SigBlk:": 0, "SigIgn:": 0}


def test_output_passes_through_byte_for_byte() -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 9999); sys.stderr.write('no newline')"
    argv = [*LWSRUN, "start", "--size=1", "--", sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, timeout=30)
    assert done.stdout == bytes(range(256)) * 9999
    assert b"no newline" in done.stderr


def test_a_closed_stdout_costs_the_engine_nothing() -> None:
    script = f"{shlex.join(LWSRUN)} start --size=1 -- sh -c 'echo lost; sleep 0.5; echo lost; exit 3' | true"
    done = subprocess.run(["bash", "-c", script + "; exit ${PIPESTATUS[0]}"], capture_output=True, timeout=30)
    assert done.returncode == 3


def test_without_any_standard_stream_the_exit_code_is_still_the_engines() -> None:
    script = f"{shlex.join(LWSRUN)} start --size=1 -- sh -c 'echo lost; exit 3' <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", script], timeout=30).returncode == 3


@pytest.mark.parametrize("exec_", [[], ["--exec"]], ids=["supervised", "exec"])
def test_a_standard_stream_that_was_closed_is_the_engines_dev_null(exec_: list[str]) -> None:
    command = shlex.join([*LWSRUN, "start", "--size=1", *exec_, "--", "readlink", "/proc/self/fd/0"])
    done = subprocess.run(["bash", "-c", f"{command} <&-"], capture_output=True, text=True, timeout=30)
    assert done.stdout == "/dev/null\n"


def test_a_variable_without_a_name_is_left_out() -> None:
    done = subprocess.run(["env", "=x=y", *LWSRUN, "start", "--size=1", "--", "echo", "hi"], capture_output=True,
                          text=True, timeout=30)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "hi\n")


def test_a_slow_reader_gets_the_last_output_whole() -> None:
    engine = f"{shlex.quote(sys.executable)} -c 'print(\"x\" * 150000)'"
    script = f"{shlex.join(LWSRUN)} start --size=1 -- {engine} | {{ sleep 3; wc -c; }}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "150001"


def test_a_stderr_that_nobody_reads_does_not_keep_the_launcher_from_stopping(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stderr")
    held = os.open(tmp_path / "stderr", os.O_RDWR)  # open, but never read: it fills up
    engine = "head -c 400000 /dev/zero >&2; sleep 600"
    argv = [*LWSRUN, "start", "--size=1", "--drain-timeout=2s", "--", "sh", "-c", engine]
    with subprocess.Popen(argv, stderr=held, stdout=subprocess.DEVNULL) as process:
        try:
            assert select.select([held], [], [], 20)[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in (0, 137)
        finally:
            process.kill()
            os.close(held)


def test_a_traceback_is_kept_for_the_report(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    script = "print('x' * 100000); raise RuntimeError('the first cause')"
    done = start("start", "--size=1", f"--termination-log={log}", "--", sys.executable, "-c", script)
    assert done.returncode == 1
    message = log.read_text()
    assert message.startswith("stopped because the leader: the engine exited 1; the leader exits 1\n")
    assert "Traceback (most recent call last)" in message
    assert "RuntimeError: the first cause" in message
    assert len(message.encode()) <= 4096


def test_signals_are_forwarded_to_the_engine() -> None:
    traps = "trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo term; exit 3' TERM"
    script = f"{traps}; echo up; while :; do sleep 0.05; done"
    argv = [*LWSRUN, "start", "--size=1", "--", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            for number, heard in ((signal.SIGUSR1, "usr1\n"), (signal.SIGHUP, "hup\n"), (signal.SIGTERM, "term\n")):
                process.send_signal(number)
                assert process.stdout.readline() == heard
            assert process.wait(10) == 0
        finally:
            process.kill()
