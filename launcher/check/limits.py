"""Checks of what the container allows: shared memory, locked memory, descriptors, PID 1, the termination log."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

from backends.fabric import MIB, SMALL_SHM, shared_memory_note
from launcher import kernel
from launcher.check.result import Result, failed, passed, skipped, warning
from launcher.check.scene import Scene

SHM_REMEDY = "mount an emptyDir with `medium: Memory` at /dev/shm, of 1 GiB or more"
IPC_LOCK = 14  # include/uapi/linux/capability.h
# vLLM and SGLang raise the soft limit to this by themselves (set_ulimit), as far as the hard one allows.
FILES = 65535
SPARE_FILES = 64
SHELLS = ("sh", "bash", "dash", "ash", "busybox", "zsh")
REAPERS = ("lwsrun", "tini", "docker-init", "dumb-init", "catatonit", "systemd", "pause")


def shared_memory(scene: Scene) -> Iterator[Result]:
    """The room by which the ranks of one node talk."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError as error:
        yield failed("shm", f"/dev/shm: {error.strerror}", SHM_REMEDY)
        return
    size, free = status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail
    found = f"/dev/shm has {size // MIB} MiB, {free // MIB} free"
    notes = (
        shared_memory_note(scene.plan, scene.request) if scene.plan is not None and scene.request is not None else ()
    )
    gpus = scene.node.gpus if scene.node is not None else 0
    if notes:
        what, _, remedy = notes[0].rpartition("; ")
        yield warning("shm", what, remedy)
    elif size < SMALL_SHM and gpus > 1:
        yield warning("shm", f"{found}: little for the ranks of {gpus} GPUs", SHM_REMEDY)
    elif free < size // 10 and free < SMALL_SHM:
        yield warning("shm", f"{found}: it is full", "remove what an earlier run left there, or mount a larger one")
    else:
        yield passed("shm", found)


def locked_memory(scene: Scene) -> Iterator[Result]:
    """RDMA pins its buffers; nothing else of a group does."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"
    if scene.node is None or not scene.node.rdma:
        yield skipped("memlock", f"{limit}; no RDMA device is here that would pin memory")
    elif soft == resource.RLIM_INFINITY:
        yield passed("memlock", "unlimited")
    elif _capable(IPC_LOCK):
        yield passed("memlock", f"{limit}, and the capability IPC_LOCK, for which it does not count")
    else:
        yield failed(
            "memlock",
            f"{limit}: RDMA cannot register its buffers (ibv_reg_mr: Cannot allocate memory)",
            "add the capability IPC_LOCK to the container, or give the runtime LimitMEMLOCK=infinity",
        )


def _capable(number: int) -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    mask = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return bool(mask >> number & 1)


def open_files(scene: Scene) -> Iterator[Result]:
    """A descriptor for each member on the leader, twice while all come; thousands for an engine's clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = 2 * scene.size + SPARE_FILES if scene.leads else SPARE_FILES
    found = f"{soft} open files ({hard} at most)"
    remedy = "raise LimitNOFILE of the container runtime, or `ulimit -n` in the image's entrypoint"
    if soft < least:
        yield failed("nofile", f"{found}: the channel of {scene.size} pods needs {least}", remedy)
    elif hard < FILES:
        yield warning("nofile", f"{found}: engines ask for {FILES}, for their clients' connections", remedy)
    else:
        yield passed("nofile", found)


def pid_1(scene: Scene) -> Iterator[Result]:
    """Who reaps and hands signals on in this container."""
    if os.getpid() == 1:
        yield passed("pid-1", "this is PID 1, as `lwsrun start` would be")
        return
    try:
        argv = psutil.Process(1).cmdline()
        name = psutil.Process(1).name()
    except psutil.Error as error:
        yield warning("pid-1", f"PID 1 cannot be looked at: {error}", "make `lwsrun start` the container's entrypoint")
        return
    orphans = kernel.be_subreaper(True)
    is_ours = is_lwsrun(argv)
    if not orphans and not is_ours:
        remedy = "make `lwsrun start` the container's entrypoint, so that it is PID 1"
        yield warning("pid-1", f"PID 1 is {name}, and the kernel lets nobody else reap orphans", remedy)
    elif is_ours or name in REAPERS:
        as_what = "" if is_ours else "; `lwsrun start` under it reaps as a sub-reaper"
        yield passed("pid-1", f"PID 1 is {'lwsrun' if is_ours else name}{as_what}")
    elif name in SHELLS:
        what = f"PID 1 is {' '.join(argv[:3])[:80]}: a shell hands no SIGTERM on, and the pod would be killed"
        yield warning("pid-1", what, "make `lwsrun start` the container's entrypoint, or begin its line with `exec`")
    else:
        yield passed("pid-1", f"PID 1 is {name}; `lwsrun start` under it reaps as a sub-reaper")


def is_lwsrun(argv: list[str]) -> bool:
    """Whether it is a launcher, by its command line."""
    names = [os.path.basename(token) for token in argv[:4]]
    return not {"start", "smoke"}.isdisjoint(argv) and ("lwsrun" in names or "launcher" in names)


def termination_log(scene: Scene) -> Iterator[Result]:
    """Where the pod's last words go."""
    path = scene.settings.termination_log
    if not os.path.exists(path):
        if "KUBERNETES_SERVICE_HOST" in scene.environ:
            remedy = "leave terminationMessagePath at its default, or say --termination-log PATH"
            yield warning("termination-log", f"{path} is not there, where the kubelet would read it", remedy)
        else:
            yield skipped("termination-log", f"{path} is not there: the kubelet makes it in a pod")
    elif os.path.isfile(path) and os.access(path, os.W_OK):
        yield passed("termination-log", path)
    else:
        yield failed(
            "termination-log",
            f"{path} cannot be written by uid {os.geteuid()}: why a pod ended would not be in `kubectl describe pod`",
            "run as a user who may, or set terminationMessagePath and --termination-log to a file that it may write",
        )
