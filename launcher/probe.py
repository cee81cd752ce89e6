"""`lwsrun probe`: asks the launcher of this pod what a kubelet would ask over HTTP, for probes that run a command.

Begun without the rest of the program: a kubelet runs it every few seconds, in a pod whose CPUs are the engine's.
"""

from __future__ import annotations

import argparse
import os
import socket
import time

PORT = 9470  # as in launcher/settings.py
LARGEST = 16 * 1024  # bytes of an answer
TIMEOUT = 5.0  # seconds; Kubernetes' own timeoutSeconds ends the probe before, where it is shorter
PATHS = {"live": "/livez", "ready": "/readyz", "startup": "/startupz"}
EVERYWHERE = ("", "0.0.0.0", "::")
ABOUT = "Ask the launcher of this pod, for exec probes: exit 0, or 1 with the reason."
OPTIONS = {
    "--port": "As given to `start`",
    "--listen": "As given to `start`",
    "--timeout": "Seconds to wait for the answer",
}


def main(arguments: list[str]) -> int:
    """Exit code 0 when the probe passes, 1 when it does not; what was answered is printed."""
    parser = argparse.ArgumentParser("lwsrun probe", description=ABOUT)
    parser.add_argument("probe", choices=PATHS)
    parser.add_argument("--port", type=_port, default=_given_port(), help=f"{OPTIONS['--port']} [env: LWSRUN_PORT]")
    parser.add_argument("--listen", default=os.environ.get("LWSRUN_LISTEN", ""),
                        help=f"{OPTIONS['--listen']} [env: LWSRUN_LISTEN]")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help=f"{OPTIONS['--timeout']} [%(default)g]")
    try:
        given = parser.parse_args(arguments)
    except SystemExit as left:
        return 1 if left.code else 0
    passed, reason = ask(PATHS[given.probe], given.listen, given.port, given.timeout)
    print(reason)
    return 0 if passed else 1


def ask(path: str, listen: str, port: int, timeout: float) -> tuple[bool, str]:
    """Whether the launcher answers 200, and what it says; or that there is none."""
    hosts = ("127.0.0.1", "::1") if listen in EVERYWHERE else (listen,)
    reason = ""
    for host in hosts:
        try:
            head, _, body = _get(host, port, path, timeout).partition(b"\r\n\r\n")
        except TimeoutError:
            return False, f"the launcher at {host} port {port} has not answered within {timeout:g} s"
        except (OSError, ValueError, OverflowError) as error:
            reason = reason or _why(error)
            continue
        protocol, _, status = head.partition(b"\r\n")[0].partition(b" ")
        if protocol.startswith(b"HTTP/"):
            said = next(iter((body.strip() or status).decode(errors="replace").splitlines()), "an empty answer")
            return status.startswith(b"200"), said if len(said) < 1000 else f"{said[:1000]} …"
        reason = reason or "what listens there speaks no HTTP"
    where = " and ".join(hosts)
    return False, (
        f"no launcher answers at {where} port {port}: {reason}. It listens from its first second on;"
        " give its --port and --listen here too (LWSRUN_PORT, LWSRUN_LISTEN); with --exec there is none once"
        " the engine runs: probe that"
    )


def _get(host: str, port: int, path: str, timeout: float) -> bytes:
    """The whole answer. By hand: http.client brings e-mail and TLS along, which take longer than all the rest."""
    end, answer = time.monotonic() + timeout, b""
    with socket.create_connection((host, port), timeout) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: lwsrun\r\n\r\n".encode())
        while len(answer) < LARGEST:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            data = connection.recv(LARGEST)
            if not data:
                break
            answer += data
    return answer


def _why(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "no such address"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _port(text: str) -> int:
    if not 0 < int(text) < 65536:
        raise ValueError
    return int(text)


def _given_port() -> int:
    text = os.environ.get("LWSRUN_PORT", "")
    return int(text) if text.isascii() and text.isdigit() else PORT  # a Service named lwsrun makes it tcp://…
