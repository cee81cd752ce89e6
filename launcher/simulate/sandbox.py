"""The sandbox from outside: made, entered, waited for; nothing of it is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from backends.errors import ConfigError, Fault
from launcher import exits, ourselves
from launcher.simulate.spec import Spec, dump

PREFIX = "lwsrun-sim-"
LOOPBACK_LOSES = (
    "What that loses: the launcher is not PID 1, there is no DNS (the leader is given by address), pods share /tmp,"
    " /dev/shm, the host name and every wildcard port, and Ray is not tested there."
)


@contextlib.contextmanager
def own_directory() -> Iterator[str]:
    """A directory for what the simulation and its pods write down; those of killed simulations are removed first."""
    remove_leftovers()
    directory = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp")
    # Held until we end, however we end: what can be locked is a leftover.
    fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_EX)
    os.chmod(directory, 0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def remove_leftovers() -> None:
    """What a killed simulation left: the kernel has ended its processes, its directory is still there."""
    for directory in Path("/tmp").glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Without it, the directory is so young that its owner has not locked it yet.
                if (directory / "spec.json").exists():
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)


def isolate(isolation: str) -> bool:
    """Enter the sandbox. False when only loopback addresses are to be had (and wanted)."""
    if isolation == "loopback":
        click.echo(f"simulate: plain processes on 127.0.0.x. {LOOPBACK_LOSES}", err=True)
        return False
    from launcher.simulate import namespaces

    try:
        # In a child first: what fails half-way (an AppArmor rule against mounts, say) must not leave us half inside.
        _try(namespaces.enter_sandbox)
        namespaces.enter_sandbox()
    except OSError as error:
        reason = f"this machine allows no namespaces to us ({error})"
        if isolation == "namespaces":
            remedy = "run as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
            raise ConfigError(Fault(reason, "", f"{remedy}; or --isolation loopback")) from None
        click.echo(f"simulate: {reason}: plain processes on 127.0.0.x instead. {LOOPBACK_LOSES}", err=True)
        return False
    return True


def _try(action: Callable[[], None]) -> None:
    """Carry an action out in a child that ends at once. Raises the OSError that it raised there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except OSError as error:
            os.write(writing, f"{error.errno} {error}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        number, _, text = told.read().partition(" ")
    os.waitpid(pid, 0)
    if number:
        raise OSError(int(number) if number.isdigit() else 0, text)


def run(spec: Spec) -> int:
    """Start the sandbox's first process and wait; SIGINT and SIGTERM are passed on, once each time. Its exit code."""
    file = Path(spec.directory) / "spec.json"
    file.touch(mode=0o600)
    file.write_text(dump(spec))
    signals = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    argv = ourselves.command("launcher.simulate.cluster", str(file))
    # Its own session: a terminal's Ctrl-C reaches us alone, and the pods as a SIGTERM from the kubelet would.
    pid = os.posix_spawn(sys.executable, argv, os.environ, setsid=True)
    while True:
        number = signal.sigwait(signals)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return exits.of_status(status)


def listen(text: str) -> tuple[socket.socket, int]:
    """`[HOST_PORT:]PORT` as a socket that listens on loopback outside the sandbox, and PORT. Raises ConfigError."""
    outer, colon, inner = text.rpartition(":")
    if not _is_port(inner) or (colon and not _is_port(outer)):
        raise ConfigError(Fault(f"--publish {text!r}", "[HOST_PORT:]PORT, e.g. 8000 or 18000:8000"))
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", int(outer or inner)))
    except (OSError, OverflowError) as error:
        raise ConfigError(Fault(f"--publish {text}: {error}", "a free port", "--publish OTHER:PORT")) from None
    listener.listen()
    listener.set_inheritable(True)
    return listener, int(inner)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text[:9]) < 65536
