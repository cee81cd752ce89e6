"""What an engine that was killed leaves in /dev/shm: in a pod that lives on nobody else would remove it.

The containers of a pod share this room, so only what is certainly an engine's is touched: files, not folders, of our
own user, that came since we started, with a name that engines' libraries give theirs.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

ROOM = Path("/dev/shm")
# NCCL, PyTorch, Python's shared memory and its semaphores, CUDA, Ray's object store, the engines themselves.
ENGINES = ("nccl-", "torch_", "psm_", "sem.mp-", "sem.loky-", "cuda.shm.", "plasma", "vllm", "sglang", "tllm_", "gloo")
HOSTS_IPC = 0xEFFFFFFF  # the inode of the first IPC namespace: include/linux/proc_ns.h, PROC_IPC_INIT_INO


def listing() -> frozenset[str]:
    """The names in /dev/shm; none where there is no such room."""
    try:
        return frozenset(os.listdir(ROOM))
    except OSError:
        return frozenset()


def remove_new(before: frozenset[str]) -> list[str]:
    """Remove what engines have left since; the names. Nothing where we are not PID 1, or share the node's own room."""
    if os.getpid() != 1 or _on_the_hosts_ipc():
        return []
    removed = []
    for name in sorted(listing() - before):
        path = ROOM / name
        with contextlib.suppress(OSError):
            found = path.lstat()
            if name.startswith(ENGINES) and stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                path.unlink()
                removed.append(name)
    return removed


def _on_the_hosts_ipc() -> bool:
    try:
        return os.stat("/proc/self/ns/ipc").st_ino == HOSTS_IPC
    except OSError:
        return True  # better to leave something than to take what is another's
