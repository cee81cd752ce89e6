"""What all the processes below the launcher use together: the engine, its services, and orphans of theirs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


@dataclass
class Usage:
    """cpu_seconds covers those that have ended too, as far as somebody waited for them."""

    processes: int = 0
    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    threads: int = 0
    descriptors: int = 0


def read_usage() -> Usage:
    """Takes some 40 ms of CPU for every hundred processes: not for the loop's thread."""
    usage = Usage()
    launcher = psutil.Process()
    # The kernel adds a process's time to its parent's when that waits for it: proc_pid_stat(5), cutime and cstime.
    ended = launcher.cpu_times()
    usage.cpu_seconds += ended.children_user + ended.children_system
    with contextlib.suppress(psutil.Error, OSError):
        for process in launcher.children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError), process.oneshot():
                times = process.cpu_times()
                usage.processes += 1
                usage.cpu_seconds += times.user + times.system + times.children_user + times.children_system
                usage.resident_bytes += process.memory_info().rss
                usage.threads += process.num_threads()
                usage.descriptors += process.num_fds()  # last: of another user's process it is not told
    return usage
