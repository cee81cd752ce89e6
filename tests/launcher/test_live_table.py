"""On a terminal a simulation shows where every pod is; elsewhere its output is lines and nothing else."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

from conftest import LWSRUN, Simulate

COMMAND = ("sh", "-c", "echo hello from {index}; exec sleep 600")
OPTIONS = ("--size=2", "--isolation=namespaces", "--kind=server", "--then=sleep 2")
ROW = r"{index} *│ {ip} *│ {phase} *│ \d+ s *│ {line}"


def on_a_terminal(*argv: str, rows: int = 40, columns: int = 150) -> tuple[int, str]:
    """The exit code, and all that was written to the terminal, without colours and cursor movements."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.STDOUT, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # EIO: nobody has the other side any more
            pass
        finally:
            process.kill()
            os.close(ours)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))


def test_a_terminal_shows_each_pod_with_its_phase_and_last_line_below_their_output() -> None:
    code, shown = on_a_terminal(*LWSRUN, "simulate", *OPTIONS, "--", *COMMAND)
    assert code == 0, shown[-3000:]
    for heading in ("index", "IP", "phase", "since", "last line"):
        assert heading in shown
    assert re.search(ROW.format(index=0, ip=r"10\.244\.0\.10", phase="serving", line="hello from 0"), shown)
    assert re.search(ROW.format(index=1, ip=r"10\.244\.0\.11", phase="serving", line="hello from 1"), shown)
    assert re.search(ROW.format(index=1, ip=r"10\.244\.0\.11", phase="(starting|gathering)", line=""), shown)
    assert "sim-0-1  | hello from 1" in shown, "the output itself is there too"


def test_without_a_terminal_there_is_no_table_that_moves(simulate: Simulate, tmp_path: Path) -> None:
    done = simulate("--size=2", "--kind=server", "--then=true", command=list(COMMAND))
    assert done.code == 0
    assert "last line" not in done.output
    assert "\x1b" not in done.output
    assert "the leader's time in each phase: " in done.output
