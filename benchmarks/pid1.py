"""lwsrun as PID 1 beside tini, dumb-init and the bare command, on the same machine in the same run.

    make bench-pid1          # as root on Linux, with tini and dumb-init installed

Each launcher runs alone, as a real PID 1 in PID, network and mount namespaces of its own; the rounds are interleaved.
"bare" is the command itself as PID 1, the floor of each measure.

* start-up: from the execve of the launcher to the first act of its child (`date`, whose own start is in every column),
  and the whole life of `true`. Making the namespaces is in neither; tearing down the PID namespace is in the second.
* memory of PID 1 with a child that sleeps. Pages of files are shared with whoever maps them too, and this benchmark
  runs lwsrun's interpreter: alone on a node, its PSS and private memory lie between these and the RSS.
* CPU of PID 1 while nothing happens: once, for all launchers at the same time.
* signals: SIGUSR1, sent to PID 1 from outside the namespace, until the child has it from sigwaitinfo.
* orphans: a shell makes them, each by a double fork, and waits until none is left, dead or alive. Where PID 1 keeps up,
  their rate is the shell's own; the CPU seconds of PID 1 are what reaping costs.
* output: a child writes log lines in blocks of 128 KiB; this benchmark reads them from a pipe, as `cat >/dev/null`
  does. tini and dumb-init hand the pipe to the child, so their columns are the bare pipe's. How fast that is depends on
  whether the scheduler puts its two ends on one core; so everything is also measured on one core, which is steadier.

Medians of the rounds; machines differ, so the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import psutil

UNSHARE = ("unshare", "--pid", "--net", "--mount-proc", "--fork", "--kill-child")
SCRIPT = Path(sys.executable).with_name("lwsrun")
LWSRUN = (str(SCRIPT),) if SCRIPT.exists() else (sys.executable, "-m", "launcher")
ARGV = {
    "lwsrun": (*LWSRUN, "start", "--size=1", "--"),
    "tini": ("tini", "--"),
    "dumb-init": ("dumb-init", "--"),
    "bare": (),
}
LAUNCHERS = ("lwsrun", "tini", "dumb-init")
EVERYBODY = (*LAUNCHERS, "bare")
NOT_CONFIGURED = 78
LIMIT = 300.0  # seconds of one pod's life
SIGNALS = 100
BETWEEN_SIGNALS = 0.005  # long enough for everybody to be asleep again
BLOCK = 1 << 17

# The children. They print numbers only: times, in ns. All but the first let a second pass before the first of them,
# because a launcher may still be busy with itself when its child is there.
STAMPED = ("sh", "-c", 'date +%s%N; exec "$@"', "sh")
IDLE = ("sh", "-c", "sleep 1; date +%s%N; exec sleep 86400")
ANSWER = """
import signal, time
time.sleep(1)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print(time.monotonic_ns(), flush=True)
while signal.sigwaitinfo([signal.SIGUSR1]):
    print(time.monotonic_ns(), flush=True)
"""
# Zombies are in /proc too; what stays is PID 1 and the shell itself.
STORM = """
sleep 1; i=0; date +%s%N
while [ $i -lt $1 ]; do (: &); i=$((i+1)); done
while set -- /proc/[0-9]*; [ $# -gt 2 ]; do sleep 0.005; done
date +%s%N; exec sleep 86400
"""
WRITE = r"""
import os, sys, time
line = b"INFO 01-01 00:00:00 [loggers.py:123] Engine 000: generation throughput: 1234.5 tokens/s, Running: 64 reqs\n"
left, block = int(sys.argv[1]), line * (int(sys.argv[2]) // len(line))
time.sleep(1)
os.write(1, b"%d\n" % time.monotonic_ns())
while left:
    left -= os.write(1, block[:left])
"""


@dataclass
class Pod:
    """A launcher as PID 1 with its child; process is the `unshare` around it, output is what the child prints."""

    launcher: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    @property
    def init(self) -> psutil.Process:
        """PID 1, as it is seen from outside; once the pod has printed something."""
        return psutil.Process(self.process.pid).children()[0]

    def number(self) -> int:
        """The next number that is printed."""
        return int(self.output.readline() or self.fail())

    def swallow(self, size: int) -> None:
        """Read so many bytes, as `cat >/dev/null` does."""
        buffer = memoryview(bytearray(BLOCK))
        while size:
            size -= os.readv(self.output.fileno(), [buffer[:size]]) or self.fail()

    def cpu(self) -> float:
        """CPU seconds of PID 1, to the nanosecond. The clock's number: clock_getcpuclockid(3), linux/posix-timers.h."""
        return time.clock_gettime(~self.init.pid << 3 | 2)

    def fail(self) -> NoReturn:
        sys.exit(f"{self.launcher}: the pod ended too early, or took longer than {LIMIT:.0f} s")


@contextlib.contextmanager
def running(launcher: str, *child: str, before: Sequence[str] = (), limit: float = LIMIT) -> Iterator[Pod]:
    """The child behind the launcher, in namespaces of its own; killed at the end, or after limit seconds."""
    argv = (*UNSHARE, *before, *ARGV[launcher], *child)
    with subprocess.Popen(
        argv, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(limit, process.kill)
        watchdog.start()
        try:
            yield Pod(launcher, process, process.stdout)
        finally:
            watchdog.cancel()
            process.kill()
            while process.stdout.read(BLOCK):
                pass  # its end of file says that nobody of the pod is left to disturb the next one


def start_up(launcher: str, options: argparse.Namespace) -> dict[str, float]:
    with running(launcher, "date", "+%s%N", before=STAMPED) as pod:
        begun = pod.number()
        act = (pod.number() - begun) / 1e6
    with running(launcher, "true", before=STAMPED) as pod:
        begun = pod.number()
        if pod.process.wait() != 0:
            pod.fail()
        life = (time.time_ns() - begun) / 1e6
    return {"start-up, to the child's first act (ms)": act, "whole life of `true` (ms)": life}


def memory(launcher: str, options: argparse.Namespace) -> dict[str, float]:
    with running(launcher, *IDLE) as pod:
        pod.number()
        used = pod.init.memory_full_info()
    return {
        "idle: RSS (MiB)": used.rss / 2**20,
        "idle: PSS (MiB)": used.pss / 2**20,
        "idle: private memory (MiB)": used.uss / 2**20,
    }


def idle(options: argparse.Namespace) -> dict[str, float]:
    """% of one core that each PID 1 uses, all at the same time."""
    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(running(name, *IDLE, limit=LIMIT + options.idle)) for name in LAUNCHERS]
        for pod in pods:
            pod.number()
        begun, before = time.monotonic(), [pod.cpu() for pod in pods]
        time.sleep(options.idle)
        used = [pod.cpu() - earlier for pod, earlier in zip(pods, before, strict=True)]
        elapsed = time.monotonic() - begun
    return {pod.launcher: 100 * seconds / elapsed for pod, seconds in zip(pods, used, strict=True)}


def signals(launcher: str, options: argparse.Namespace) -> dict[str, float]:
    with running(launcher, sys.executable, "-ISc", ANSWER) as pod:
        pod.number()
        target, times = pod.init.pid, []
        for _ in range(SIGNALS):
            time.sleep(BETWEEN_SIGNALS)
            sent = time.monotonic_ns()
            os.kill(target, signal.SIGUSR1)
            times.append((pod.number() - sent) / 1e3)
    return {"SIGUSR1 to the child's answer (µs)": statistics.median(times)}


def orphans(launcher: str, options: argparse.Namespace) -> dict[str, float]:
    with running(launcher, "sh", "-c", STORM, "sh", str(options.orphans)) as pod:
        begun, before = pod.number(), pod.cpu()
        seconds = (pod.number() - begun) / 1e9
        used = pod.cpu() - before
    return {
        "orphans made and reaped (1/s)": options.orphans / seconds,
        f"CPU of PID 1 for {options.orphans} orphans (s)": used,
    }


def output(launcher: str, options: argparse.Namespace) -> dict[str, float]:
    cores = os.sched_getaffinity(0)
    free = throughput(launcher, options.output << 20)
    os.sched_setaffinity(0, {max(cores)})
    try:
        on_one_core = throughput(launcher, options.output << 20)
    finally:
        os.sched_setaffinity(0, cores)
    return {"output passed on (MB/s)": free, "output passed on, all on one core (MB/s)": on_one_core}


def throughput(launcher: str, size: int) -> float:
    with running(launcher, sys.executable, "-ISc", WRITE, str(size), str(BLOCK)) as pod:
        begun = pod.number()
        pod.swallow(size)
        return size / 1e6 / ((time.monotonic_ns() - begun) / 1e9)


MEASURES: tuple[tuple[Callable[[str, argparse.Namespace], dict[str, float]], tuple[str, ...]], ...] = (
    (start_up, EVERYBODY),
    (memory, LAUNCHERS),
    (signals, EVERYBODY),
    (orphans, LAUNCHERS),
    (output, EVERYBODY),
)


def missing() -> str | None:
    """Why nothing can be measured here, or None."""
    if not all(map(shutil.which, ("tini", "dumb-init"))):
        return "tini or dumb-init is not installed: apt-get install tini dumb-init"
    if os.geteuid() != 0:
        return "only root may make the namespaces: run it as root"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    return f"no namespaces can be made here: {tried.stderr.strip()}" if tried.returncode else None


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return short(values[0]) if values else "-"
    return f"{short(statistics.median(values))} ({short(min(values))} - {short(max(values))})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    return short(statistics.median(map(operator.truediv, ours, theirs))) if theirs and all(theirs) else "-"


def show(label: str, cells: Sequence[str]) -> None:
    print(f"{label:44}" + "".join(f"{cell:>25}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=float, default=60, help="seconds of doing nothing")
    parser.add_argument("--orphans", type=int, default=10000)
    parser.add_argument("--output", type=int, default=2048, help="MiB that the child writes")
    options = parser.parse_args()
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        sys.exit(NOT_CONFIGURED)
    rows: dict[str, dict[str, list[float]]] = {}

    def note(row: str, launcher: str, value: float) -> None:
        rows.setdefault(row, {name: [] for name in EVERYBODY})[launcher].append(value)

    for launcher, value in idle(options).items():
        note("idle: CPU (% of a core)", launcher, value)
    for _ in range(options.rounds):
        for measure, launchers in MEASURES:
            for launcher in launchers:
                for row, value in measure(launcher, options).items():
                    note(row, launcher, value)
    print(
        f"{options.rounds} rounds, median (min - max); {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )
    show("", EVERYBODY)
    for row, cells in rows.items():
        show(row, [spread(cells[name]) for name in EVERYBODY])
    others = EVERYBODY[1:]
    show("ratios, median of the rounds", ["", *(f"lwsrun / {name}" for name in others)])
    for row, cells in rows.items():
        show(row, ["", *(ratio(cells["lwsrun"], cells[name]) for name in others)])


if __name__ == "__main__":
    main()
