"""The `lwsrun simulate` command: makes the sandbox, starts its first process in it, waits, leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from backends.errors import ConfigError, Fault
from launcher import exits
from launcher.simulate.spec import Fault as SpecFault
from launcher.simulate.spec import Spec, dump

PREFIX = "lwsrun-sim-"
# Each pod has its own of these, or gets them by option.
NOT_FOR_PODS = frozenset(
    f"LWSRUN_{name}" for name in ("SIZE", "INDEX", "LEADER_ADDRESS", "GROUP_ID", "POD_IP", "LISTEN", "GPUS_PER_NODE")
)
LOOPBACK_LOSES = (
    "What that loses: the launcher is not PID 1, there is no DNS (the leader is given by address), pods share /tmp,"
    " /dev/shm, the host name and every wildcard port, and Ray is not tested there."
)
# Options of `start` that a simulation hands on, by parameter name.
HANDED_ON = (
    "backend", "kind", "env", "ray_port", "peer_timeout", "gather_timeout", "drain_timeout", "drain_delay",
    "termination_grace_period", "failure_hold", "report_every", "exec", "max_restarts", "restart_reset",
    "leader_excluded",
)  # fmt: skip


def simulate_group(
    *,
    size: int,
    command: tuple[str, ...],
    worker_command: str | None,
    start_options: list[str],
    gpus_per_node: int | None,
    isolation: str,
    shm_size: int,
    port: int,
    publish: tuple[str, ...],
    then: str | None,
    faults: tuple[str, ...],
    scenario: str | None,
    restart_policy: str,
    startup_policy: str,
    max_recreations: int,
    keep_logs: str | None,
) -> NoReturn:
    """Run the simulation to its end and exit with the group's code. Raises ConfigError."""
    parsed = _read_faults(faults, scenario, size)
    if "--exec" in start_options and (then is not None or any(fault.since == "serving" for fault in parsed)):
        raise ConfigError(
            Fault(
                "with --exec no launcher is left that could tell when the group serves",
                "no --then, and faults by time (kill:0@10s) or at `formed`",
            )
        )
    try:
        worker_argv = None if worker_command is None else shlex.split(worker_command)
    except ValueError as error:
        raise ConfigError(Fault(f"--worker-command {worker_command!r}: {error}", "a command, quoted")) from None
    remove_leftovers()
    listeners = [_listen(text) for text in publish]
    if keep_logs:
        try:
            Path(keep_logs).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(Fault(f"--keep-logs {keep_logs}: {error.strerror}", "a directory to write to")) from None
    if gpus_per_node is not None:
        start_options = [f"--gpus-per-node={gpus_per_node}", *start_options]
        click.echo(f"simulate: {gpus_per_node} GPUs per node are faked (--gpus-per-node): no device is behind them")
    directory = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp")
    # Held until we end, however we end: what can be locked is a leftover.
    fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_EX)
    os.chmod(directory, 0o755)
    code = exits.ENDED_UNASKED
    try:
        isolated = _isolate(isolation)
        if not isolated:
            _refuse_without_network(parsed)
        spec = Spec(
            size=size,
            command=list(command),
            worker_command=worker_argv,
            start_options=start_options,
            environ={name: value for name, value in os.environ.items() if name not in NOT_FOR_PODS},
            directory=directory,
            isolated=isolated,
            shm_bytes=shm_size << 20,
            port=port,
            publish=[(listener.fileno(), inner) for listener, inner in listeners],
            then=then,
            faults=parsed,
            restart_policy=restart_policy,
            startup_policy=startup_policy,
            max_recreations=max_recreations,
            keep_logs=str(Path(keep_logs).absolute()) if keep_logs else None,
            colour=sys.stdout.isatty(),
        )
        file = Path(directory) / "spec.json"
        file.touch(mode=0o600)
        file.write_text(dump(spec))
        code = _run(file)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(code)


def _read_faults(texts: tuple[str, ...], scenario: str | None, size: int) -> list[SpecFault]:
    """Those of the command line, then those of the scenario file. Raises ConfigError with everything that is wrong."""
    from launcher.simulate.faults.schedule import GRAMMAR, parse_fault, parse_scenario

    faults: list[SpecFault] = []
    wrong: list[Fault] = []
    for text in texts:
        try:
            faults.append(parse_fault(text, size))
        except ConfigError as error:
            wrong += error.faults
    if scenario is not None:
        try:
            faults += parse_scenario(Path(scenario).read_text(), scenario, size)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            wrong.append(Fault(f"--scenario {scenario}: {why}", "a file with one fault a line"))
        except ConfigError as error:
            wrong += error.faults
    if size == 1:
        wrong[:0] = [
            Fault(f"{fault.what} in a group of one", "a larger group: nobody looks the leader up", "--size 2 or more")
            for fault in faults
            if fault.what in ("late-dns", "stale-leader")
        ]
    if wrong:
        # The grammar is long: told once, at the end.
        again = [replace(one, expected="" if one.expected == GRAMMAR else one.expected) for one in wrong[:-1]]
        raise ConfigError(*again, wrong[-1])
    return faults


def _isolate(isolation: str) -> bool:
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


def _refuse_without_network(faults: list[SpecFault]) -> None:
    from launcher.simulate.faults.schedule import NETWORK

    absent = [fault.what for fault in faults if fault.what in NETWORK]
    if absent:
        raise ConfigError(
            Fault(
                f"{', '.join(absent)}: plain loopback has neither links nor DNS of its own",
                "--isolation namespaces",
            )
        )


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


def _run(spec_file: Path) -> int:
    """Start the sandbox's first process and wait; SIGINT and SIGTERM are passed on, once each time."""
    signals = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    argv = [sys.executable, "-m", "launcher.simulate.cluster", str(spec_file)]
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


def _listen(text: str) -> tuple[socket.socket, int]:
    """`[HOST_PORT:]PORT` as a socket that listens on loopback outside the sandbox."""
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


def handed_on(values: dict[str, Any]) -> list[str]:
    """The options of `start` that were given, as its arguments."""
    arguments = []
    for name in HANDED_ON:
        value = values[name]
        for item in value if isinstance(value, tuple) else (value,):
            flag = f"--{name.replace('_', '-')}"
            if isinstance(item, bool):
                arguments += [flag] * item
            elif item is not None:
                arguments.append(f"{flag}={item}")
    return arguments
