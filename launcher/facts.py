"""What this pod knows of itself: address, wiring, GPUs, /dev/shm, and which engine and Ray its image holds."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from backends.command import detect
from backends.errors import ConfigError, Fault
from backends.plan import Node
from backends.plan_mpi import MpiTools
from launcher.fabric import interface_of, interfaces, rdma_ports
from launcher.gpus import ask_nvml, look_at_gpus
from launcher.settings import Settings
from launcher.supervisor import CannotStart, Supervisor, locate

VERSIONS_TIMEOUT = 60.0  # seconds; it takes 0.1 on a warm disk
# Asked of the image's own interpreter; our own may be another.
VERSIONS = """
import importlib.metadata as m, json, sys
def v(n):
    try: return m.version(n)
    except m.PackageNotFoundError: return None
print(json.dumps({n: v(n) for n in sys.argv[1:]} | {"python": "%d.%d.%d" % sys.version_info[:3]}))
"""


async def look(settings: Settings, supervisor: Supervisor, backend: str, *, size: int) -> Node:
    """This pod's Node. Versions are asked only where the backend decides by them. size: of its group. Raises
    ConfigError."""
    # In threads: a driver that wakes up or a resolver that hangs must not keep a signal waiting.
    driver = await asyncio.to_thread(ask_nvml)
    gpus = look_at_gpus(settings.environ, settings.gpus_per_node, driver)
    ip = await asyncio.to_thread(own_ip, settings)
    wired = interfaces()
    own = frozenset(address for addresses in wired.values() for address in addresses)
    python = image_python(settings.argv, settings.environ)
    versions: dict[str, str | None] = {}
    if backend in ("vllm", "sglang", "ray") and settings.argv:
        with contextlib.suppress(CannotStart, TimeoutError):
            versions = await ask_versions(supervisor, python, settings.environ, ("vllm", "sglang", "ray"))
    if settings.argv and (backend == "smoke" or settings.options.smoke.first):
        from launcher.smoke.first import require_torch

        await require_torch(supervisor, python, settings.environ)
    over_mpi = backend == "mpi" or (backend == "tensorrt-llm" and size > 1)  # alone it starts its own ranks
    mpi = await _mpi_tools(settings, supervisor) if over_mpi else None
    return Node(
        ip=ip,
        hostname=socket.gethostname(),
        gpus=gpus.count,
        gpus_from=gpus.source,
        interface=interface_of(ip, wired),
        interfaces=tuple(wired),
        addresses=tuple(sorted(own)),
        rdma=await asyncio.to_thread(rdma_ports, own),
        shm_bytes=shm_bytes(),
        python=python,
        engine_version=versions.get(backend) if backend != "ray" else None,
        ray=versions.get("ray"),
        gpu_model=gpus.model,
        driver=gpus.driver,
        python_version=versions.get("python"),
        openmpi=mpi.version if mpi else None,
        mpi=mpi,
    )


async def _mpi_tools(settings: Settings, supervisor: Supervisor) -> MpiTools:
    from launcher.mpi.image import look as look_at_image

    return await look_at_image(settings, supervisor)


def own_ip(settings: Settings) -> str:
    """This pod's address: --pod-ip, else what its own host name says (the kubelet writes it to /etc/hosts), else the
    source address of the default route.

    Raises ConfigError for a --pod-ip that is none.
    """
    if settings.pod_ip is not None:
        try:
            return str(ipaddress.ip_address(settings.pod_ip))
        except ValueError:
            raise ConfigError(Fault(f"--pod-ip is {settings.pod_ip!r}", "an IPv4 or IPv6 address")) from None
    mine = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    try:
        answers = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        answers = []
    for answer in answers:
        address = str(answer[4][0])
        if address in mine and not ipaddress.ip_address(address).is_loopback:
            return address
    for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((anywhere, 9))  # sends nothing: it only asks the routing table
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"


def shm_bytes() -> int | None:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return None
    return status.f_frsize * status.f_blocks


def image_python(argv: tuple[str, ...], environ: Mapping[str, str]) -> str:
    """The interpreter that the engine runs in: the one before `-m`, or that of the script's first line."""
    if not argv:
        return "python3"
    try:
        command = detect(argv)
    except ConfigError:  # an engine inside a shell: whether that may be, the planner tells
        return "python3"
    for at in (*range(command.start, -1, -1), *range(command.start + 1, len(argv))):
        token: str = argv[at]
        if os.path.basename(token).startswith("python"):
            try:
                return locate(token, environ)
            except CannotStart:
                return token
        if at == command.start:
            interpreter = _shebang(token, environ)
            if interpreter:
                return interpreter
        if at > command.start:
            break
    return "python3"


def _shebang(program: str, environ: Mapping[str, str]) -> str | None:
    try:
        with Path(locate(program, environ)).open("rb") as file:
            first = file.readline(512)
    except (CannotStart, OSError):
        return None
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env":
        words = words[1:]
    if not words or not os.path.basename(words[0]).startswith("python"):
        return None
    try:
        return locate(words[0], environ)
    except CannotStart:
        return None


async def ask_versions(
    supervisor: Supervisor, python: str, environ: Mapping[str, str], packages: tuple[str, ...]
) -> dict[str, str | None]:
    """The versions of these packages beside that interpreter, and its own as "python". Raises CannotStart,
    TimeoutError."""
    async with asyncio.timeout(VERSIONS_TIMEOUT):
        code, output = await supervisor.run("versions", (python, "-c", VERSIONS, *packages), environ)
    try:
        found = json.loads(output) if code == 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
