"""Checks that the ports at which this pod would listen are free, or its own group's already."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import psutil

from backends import argv, sglang, vllm_flags
from backends.argv import Flag
from backends.command import detect
from backends.plan import Plan
from launcher.check.limits import is_lwsrun
from launcher.check.result import Result, failed, passed, skipped, warning
from launcher.check.scene import Scene
from launcher.ports import owner

# Where rank 0 meets the others, and what else the engines' flags say that they listen at. The planner fills in the
# first kind, so that it stands in the planned command.
LEADERS = (vllm_flags.MASTER_PORT, vllm_flags.DP_PORT, sglang.DIST_INIT_ADDR, Flag("--rdzv-endpoint"))
OWN = (vllm_flags.GRPC_PORT, sglang.BOOTSTRAP_PORT, *sglang.OTHER_PORTS)
OPTIONS = {
    "group channel": "--port (LWSRUN_PORT)",
    "Ray": "--ray-port (LWSRUN_RAY_PORT)",
    "sshd": "--ssh-port (LWSRUN_SSH_PORT)",
}


def ports(scene: Scene) -> Iterator[Result]:
    """Each port of the plan."""
    wanted = [("group channel", scene.settings.port)]
    if scene.plan is not None:
        wanted += _of(scene.plan, scene)
    uses: dict[int, str] = {}
    for what, port in wanted:
        if port in uses and uses[port] != what:
            remedy = f"give {what} another: {OPTIONS.get(what, what)}"
            yield failed("ports", f"port {port} is wanted twice: {uses[port]}, {what}", remedy)
        uses.setdefault(port, what)
    free = []
    for port, what in uses.items():
        why = taken(port)
        if why is None:
            free.append(f"{port} ({what})")
            continue
        process = owner(port)
        if process is not None and _ours(process):
            yield passed("ports", f"{port} ({what}) is used by this pod's own group: {_named(process)}")
        else:
            by = f" by {_named(process)}" if process is not None else ""
            remedy = f"end what uses it, or choose another: {OPTIONS.get(what, what)}, the same in all pods"
            yield failed("ports", f"{port} ({what}) {why}{by}", remedy)
    if free:
        yield passed("ports", f"free: {', '.join(free)}")
    if scene.plan is not None and scene.plan.mpi is not None and scene.settings.options.mpi.ports is not None:
        yield from _range(*scene.settings.options.mpi.ports, uses)
    if scene.plan is None:
        yield skipped("ports", "without a plan only the launcher's own is known")


def _range(first: int, last: int, uses: dict[int, str]) -> Iterator[Result]:
    """--mpi-ports: MPI passes over a port that is taken, and is none of the others."""
    what = f"--mpi-ports {first}-{last}"
    both = [f"{port} ({use})" for port, use in uses.items() if first <= port <= last]
    if both:
        yield failed("ports", f"in {what}, but wanted for something else too: {', '.join(both)}", f"move {what}")
    used = [port for port in range(first, last + 1) if port not in uses and taken(port) is not None]
    if used:
        shown = ", ".join(map(str, used[:8])) + (f" and {len(used) - 8} more" if len(used) > 8 else "")
        yield warning("ports", f"of {what}, in use: {shown}", "end what uses them, or give a range of your own")
    elif not both:
        yield passed("ports", f"free: {what}")


def _of(plan: Plan, scene: Scene) -> list[tuple[str, int]]:
    found = []
    if any(service.name == "ray-head" for service in plan.services):
        found.append(("Ray", scene.settings.options.ray_port))
    if any(service.name == "sshd" for service in plan.services):
        found.append(("sshd", scene.settings.options.mpi.ssh_port))
    if plan.main is None:
        return found
    if plan.main.serves is not None:
        found.append(("--port of the engine", plan.main.serves.port))
    if scene.command is None or scene.command.engine not in ("vllm", "sglang", "torchrun"):
        return found
    arguments = detect(plan.main.argv).arguments
    for flag in (*(LEADERS if scene.leads and scene.size > 1 else ()), *OWN):
        port = _port(argv.text(arguments, flag))
        if port:
            found.append((flag.name, port))
    return found


def _port(text: str | None) -> int:
    """The port of PORT or HOST:PORT; 0 for what is none."""
    digits = (text or "").rpartition(":")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 6 and int(digits) < 65536 else 0


def taken(port: int) -> str | None:
    """Why nobody could listen at the port on all addresses; None where it is free."""
    for family, anywhere in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue  # a family that this kernel was told to do without
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((anywhere, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    continue  # IPv6 is there, but switched off
                return (
                    "is in use"
                    if error.errno == errno.EADDRINUSE
                    else f"cannot be had: {os.strerror(error.errno or 0)}"
                )
    return None


def _ours(process: psutil.Process) -> bool:
    try:
        return any(is_lwsrun(each.cmdline()) for each in (process, *process.parents()))
    except psutil.Error:
        return False


def _named(process: psutil.Process) -> str:
    try:
        return f"{process.name()} (pid {process.pid})"
    except psutil.Error:
        return f"pid {process.pid}"
