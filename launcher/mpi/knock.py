"""The leader's first login on every worker, all at once, so that mpirun's own cannot fail for a reason that it hides.

Usage: python knock.py DIRECTORY TIMEOUT. A process of its own, because the library is heavy and blocks. It reads
logins.json, known_hosts and the client key in the directory; prints one JSON line at each change, {"missing": {INDEX:
REASON}}; exits 0 when all workers have let it in, 1 when one certainly will not, or TIMEOUT seconds are over.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import paramiko

AGAIN = 0.2  # seconds between two tries
REFUSALS = 5.0  # seconds for which a worker may refuse us: its sshd may just be starting
CONNECT, BANNER, LOGIN = 5.0, 10.0, 20.0  # seconds
AT_ONCE = 64
HELLO = "lwsrun-hello"  # gate.py answers it


@dataclass(frozen=True)
class Login:
    """A worker's sshd."""

    index: int
    address: str
    port: int
    user: str


class Refused(Exception):
    """It answered, and does not let us in."""


def try_once(login: Login, key: paramiko.PKey, known: paramiko.HostKeys) -> None:
    """Raises Refused, or OSError when nothing usable answers."""
    client = paramiko.SSHClient()
    client._host_keys = known  # type: ignore[attr-defined]  # the same for all: no file is read for each try
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        client.connect(
            login.address,
            login.port,
            login.user,
            pkey=key,
            look_for_keys=False,
            allow_agent=False,
            timeout=CONNECT,
            banner_timeout=BANNER,
            auth_timeout=LOGIN,
        )
        _, stdout, stderr = client.exec_command(HELLO, timeout=LOGIN)
        answer = stdout.read(200).decode(errors="replace").strip()
        if answer != HELLO:
            said = stderr.read(200).decode(errors="replace").strip() or answer or "nothing"
            raise Refused(f"it lets us in, but runs no command of lwsrun's: {said}")
    except paramiko.BadHostKeyException:
        raise Refused("its host key is not the one that the worker told: another sshd listens there") from None
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error).lower():
            raise TimeoutError from None  # a node that is busy refuses nobody
        raise Refused("it does not let us in with the key of this run (see the worker's log)") from None
    except paramiko.SSHException as error:
        text = str(error)
        if "not found in known_hosts" in text:
            raise Refused("it has another kind of host key than the worker told: another sshd listens there") from None
        if "banner" in text or "timeout" in text.lower() or "timed out" in text:
            raise TimeoutError from None
        raise Refused(f"the handshake broke off: {text}") from None
    except EOFError:
        raise Refused("it hung up (see the worker's log)") from None
    finally:
        client.close()


class Knocking:
    def __init__(self, logins: list[Login], key: paramiko.PKey, known: paramiko.HostKeys, timeout: float) -> None:
        self._key, self._known = key, known
        self._until = time.monotonic() + timeout
        self._missing = {login.index: "not tried yet" for login in logins}
        self._refused: dict[int, float] = {}  # since when
        self._over = threading.Event()
        self._lock = threading.Lock()

    def run(self, logins: list[Login]) -> bool:
        with concurrent.futures.ThreadPoolExecutor(min(len(logins), AT_ONCE)) as pool:
            list(pool.map(self._knock, logins))
        return not self._missing

    def _knock(self, login: Login) -> None:
        while not self._over.is_set():
            try:
                try_once(login, self._key, self._known)
            except Refused as error:
                since = self._refused.setdefault(login.index, time.monotonic())
                self._say(login.index, str(error))
                if time.monotonic() - since >= REFUSALS:
                    self._over.set()
            except (OSError, EOFError) as error:
                self._refused.pop(login.index, None)
                self._say(login.index, _plain(error, login.port))
            else:
                self._say(login.index, None)
                return
            if time.monotonic() >= self._until:
                self._over.set()
            self._over.wait(AGAIN)

    def _say(self, index: int, reason: str | None) -> None:
        with self._lock:
            before = dict(self._missing)
            if reason is None:
                self._missing.pop(index, None)
            else:
                self._missing[index] = reason
            if self._missing != before:
                print(json.dumps({"missing": self._missing}), flush=True)


def _plain(error: Exception, port: int) -> str:
    if isinstance(error, TimeoutError):
        return f"port {port} does not answer (a NetworkPolicy?)"
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        inner = next(iter(error.errors.values()), error)
        return f"port {port}: {(getattr(inner, 'strerror', None) or str(inner)).lower()}"
    return f"port {port}: {(getattr(error, 'strerror', None) or str(error) or type(error).__name__).lower()}"


def main(directory: Path, timeout: float) -> int:
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    given = json.loads((directory / "logins.json").read_text())
    logins = [Login(each["index"], each["address"], each["port"], each["user"]) for each in given]
    key = paramiko.PKey.from_path(directory / "client_key")
    known = paramiko.HostKeys(str(directory / "known_hosts"))
    return 0 if Knocking(logins, key, known, timeout).run(logins) else 1


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), float(sys.argv[2]))
    sys.stdout.flush()
    os._exit(code)  # paramiko's threads may wait for a peer that is silent
