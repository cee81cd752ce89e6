"""Carries out a plan's gates: each returns when it is passed and, until then, keeps the reason why it is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from backends.group import member_name
from backends.plan import Gate, PortOpen, RayNodes
from backends.plan_mpi import SshLogins
from launcher import exits, ourselves
from launcher.supervisor import Child, Supervisor
from launcher.waiting import saying

RETRY = 0.1  # seconds
CONNECT = 5.0
SHOWN = 16  # members that are named with their reasons


class GateFailed(Exception):
    """A gate can never be passed; str() says why."""


async def pass_gate(gate: Gate, supervisor: Supervisor, environ: Mapping[str, str], report_every: float) -> None:
    """Wait until the gate is passed, saying every report_every seconds what is still missing. Raises GateFailed."""
    reason = ["not tried yet"]
    async with saying(report_every, lambda: f"until {gate.describe()}: {reason[0]}"):
        match gate:
            case PortOpen():
                await _port_open(gate, reason)
            case RayNodes():
                await _ray_nodes(gate, reason, supervisor, environ)
            case SshLogins():
                await _ssh_logins(gate, reason, supervisor, environ)


async def _port_open(gate: PortOpen, reason: list[str]) -> None:
    while (why := await refuses(gate)) is not None:
        reason[0] = why
        await asyncio.sleep(RETRY)


async def refuses(gate: PortOpen, timeout: float = CONNECT) -> str | None:
    """Why it accepts no connection, or None when it does."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(gate.host, gate.port)
    except TimeoutError:
        return "timed out"
    except (OSError, UnicodeError) as error:  # the latter for a host that is no name
        return str(getattr(error, "strerror", None) or error).lower()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


async def _ray_nodes(gate: RayNodes, reason: list[str], supervisor: Supervisor, environ: Mapping[str, str]) -> None:
    source = resources.files("launcher").joinpath("ray_nodes.py").read_text()
    expected = dict(gate.gpus)
    argv = (gate.python, "-c", source, gate.address, json.dumps(expected))
    child, code = await _ask("ray-nodes", argv, reason, supervisor, environ, lambda seen: _missing(seen, expected))
    if code != 0:
        raise GateFailed(f"asking Ray's GCS failed: {exits.describe(code)}; {child.keepsake.text()}")


async def _ssh_logins(gate: SshLogins, reason: list[str], supervisor: Supervisor, environ: Mapping[str, str]) -> None:
    argv = ourselves.command("launcher.mpi.knock", gate.directory, str(gate.timeout))
    child, code = await _ask("ssh-logins", argv, reason, supervisor, environ, _not_in)
    if code != 0:
        words = child.keepsake.text() if code != 1 or not reason[0] else ""
        raise GateFailed(f"not reached over ssh: {reason[0]}{words and '; '}{words}")


async def _ask(
    name: str,
    argv: Sequence[str],
    reason: list[str],
    supervisor: Supervisor,
    environ: Mapping[str, str],
    read: Callable[[dict[str, object]], str],
) -> tuple[Child, int]:
    """Run a helper to its end that tells as JSON lines what is missing; itself, and its exit code."""
    child = supervisor.spawn(name, argv, environ, capture=True)
    assert child.stdout is not None
    try:
        while line := await child.stdout.readline():
            with contextlib.suppress(ValueError):
                reason[0] = read(json.loads(line))
        return child, await asyncio.shield(child.exited)
    finally:
        if child.alive:
            supervisor.signal(child, signal.SIGKILL)


def _not_in(seen: dict[str, object]) -> str:
    missing = seen.get("missing")
    if not isinstance(missing, dict):
        return "no answer"
    shown = [
        f"{member_name(int(index))}: {why}" for index, why in sorted(missing.items(), key=lambda each: int(each[0]))
    ]
    return "; ".join(shown[:SHOWN]) + (f"; and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def _missing(seen: dict[str, object], expected: Mapping[str, int]) -> str:
    if seen.get("error"):
        return str(seen["error"])
    alive = seen.get("alive")
    if not isinstance(alive, dict):
        return "no answer"
    absent = [ip for ip in expected if ip not in alive]
    poor = [f"{ip} offers {alive[ip]:g} of {expected[ip]} GPUs" for ip in expected if alive.get(ip, 1e9) < expected[ip]]
    parts = ([f"{len(absent)} of {len(expected)} nodes missing: {', '.join(absent)}"] if absent else []) + poor
    return "; ".join(parts) or "complete"
