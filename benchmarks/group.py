"""How a group scales: gathering, the leader's work for each heartbeat, and the end after a lost member.

    make bench-group

Real launchers as plain processes on loopback addresses, one engine `sleep` each, so that hundreds fit on one machine;
they share its cores, so the first rows also hold the start of N Python processes. What to compare is how a row grows
with N: the leader's work for a heartbeat of one member should not.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

PORT = 9471
PEER_TIMEOUT = 15.0  # seconds; both sides ping five times in it
LIMIT = 300.0
CLOCK = re.compile(r"\[lwsrun (\d\d:\d\d:\d\d\.\d\d\d) ")


@dataclass
class Group:
    """The launchers by index, and where each one's output is kept."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def when(self, index: int, text: str) -> float | None:
        """The clock of the first line of ours that holds the text, in seconds of the day."""
        for line in self.logs[index].read_text(errors="replace").splitlines():
            if text in line and (found := CLOCK.match(line)):
                clock = datetime.strptime(found[1], "%H:%M:%S.%f")
                return clock.hour * 3600 + clock.minute * 60 + clock.second + clock.microsecond / 1e6
        return None


def address(index: int) -> str:
    return f"127.1.{index // 200}.{index % 200 + 1}"


def start(size: int, directory: Path) -> Group:
    processes, logs = [], [directory / f"{index}.log" for index in range(size)]
    for index, log in enumerate(logs):
        own = (f"--index={index}", f"--pod-ip={address(index)}", f"--listen={address(index)}")
        shared = (f"--size={size}", f"--leader-address={address(0)}", f"--port={PORT}", "--kind=server")
        argv = [sys.executable, "-m", "launcher", "start", *shared, *own, f"--peer-timeout={PEER_TIMEOUT}s"]
        with log.open("wb") as output:
            command = [*argv, "--drain-delay=0", "--", "sleep", "3600"]
            processes.append(subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True))
    return Group(processes, logs)


def wait_for(group: Group, index: int, text: str) -> float:
    deadline = time.monotonic() + LIMIT
    while (at := group.when(index, text)) is None:
        if time.monotonic() > deadline or group.processes[index].poll() is not None:
            sys.exit(f"no {text!r} from member {index}:\n{group.logs[index].read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)
    return at


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads, ended ones too, in full resolution: clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def resident(pid: int) -> float:
    """MiB that are the process's own share."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))) / 1024


def measure(size: int, idle: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        begun = time.monotonic()
        group = start(size, Path(directory))
        try:
            formed = wait_for(group, 0, "group formed")
            took = time.monotonic() - begun
            last = max(wait_for(group, index, "looking for the leader") for index in range(1, size))
            for index in range(size):
                wait_for(group, index, "running: ")
            time.sleep(3)
            leader = group.processes[0].pid
            before = cpu_seconds(leader)
            time.sleep(idle)
            used = cpu_seconds(leader) - before
            memory = resident(leader)
            group.processes[-1].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            codes = [process.wait(LIMIT) for process in group.processes]
            ended = time.monotonic() - killed
        finally:
            for process in group.processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
    if codes[:-1] != [75] * (size - 1):
        sys.exit(f"exit codes after a lost member: {codes}")
    heartbeats = 2 * (size - 1) * idle / (PEER_TIMEOUT / 5)  # its own and the members'
    return {
        "all launchers started at once: formed after (s)": took,
        "formed after the last one began to look for its leader (s)": formed - last,
        "leader: CPU for one heartbeat of one member (µs)": used / heartbeats * 1e6,
        "leader: CPU while nothing happens (% of a core)": used / idle * 100,
        "leader: PSS (MiB)": memory,
        "member killed: all others ended after (s)": ended,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="4,16,64,256")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of idleness that are measured")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    results = {size: measure(size, options.idle) for size in sizes}
    print(f"{os.cpu_count()} cores{'members':>70}" + "".join(f"{size:>10}" for size in sizes))
    for name in results[sizes[0]]:
        print(f"{name:76}" + "".join(f"{results[size][name]:10.3g}" for size in sizes))
    ratio = "leader: CPU for one heartbeat of one member (µs)"
    print(
        f"ratio to N = {sizes[0]:<4} {ratio:60}"
        + "".join(f"{results[s][ratio] / results[sizes[0]][ratio]:10.2f}" for s in sizes)
    )


if __name__ == "__main__":
    main()
