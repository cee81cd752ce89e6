"""OpenSSH's side of a launch over MPI, as text: its server's and its client's configuration, keys and accounts.

sshd_config(5), ssh_config(5), sshd(8) "AUTHORIZED_KEYS FILE FORMAT"; the values were tried with OpenSSH 9.2.
"""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Iterable, Sequence

from backends.errors import ConfigError, Fault
from backends.plan_mpi import (
    AUTHORIZED_KEYS,
    CLIENT_KEY,
    GROUP,
    HOST_KEY,
    KNOWN_HOSTS,
    PASSWD,
    SSHD_CONFIG,
    Account,
    MpiTools,
)

NO_LOGIN = ("nologin", "false", "sync", "halt", "shutdown")
INSTEAD = "say --mpi-agent channel, which needs no sshd, no keys and no account"
INSTALL = "add openssh-server to the image (apt-get install -y openssh-server)"
LOGIN_GRACE = 30  # seconds
ALIVE = (15, 4)  # seconds between, and how many may stay unanswered: Open MPI 5 keeps its sessions while the job lasts


def account(tools: MpiTools) -> Account:
    """As whom the leader is let in: always as the user that the pod runs as; without root, sshd can do no other.

    OpenSSH needs a passwd entry with a shell that runs commands; and StrictModes, that nobody else can write to a
    parent of authorized_keys, up to the home. Where the pod has no such entry, ours is shown in its place by
    nss_wrapper, with the private directory as home. Raises ConfigError where the image has no nss_wrapper either.
    """
    if tools.uid == 0 and tools.lacks:
        raise ConfigError(
            Fault(
                f"sshd as root needs {', '.join(tools.lacks)}, which this container lacks",
                "the capabilities of a container by default, or a user that is not root",
                f"{INSTEAD}; or set runAsUser, or add them in securityContext.capabilities",
            )
        )
    lacking = _lacking(tools)
    if not lacking:
        return Account(tools.user or "", tools.uid, tools.home or "/", wrapped=False)
    if tools.nss_wrapper is None:
        raise ConfigError(
            Fault(
                f"sshd cannot let the leader in as uid {tools.uid}: {lacking}",
                "a passwd entry with a shell, and a directory that only this user or root can write to; or"
                " libnss_wrapper.so in the image, with which lwsrun shows sshd an entry of its own",
                f"{INSTEAD}; or add libnss-wrapper to the image",
            )
        )
    return Account(tools.user or ("root" if tools.uid == 0 else "lwsrun"), tools.uid, tools.directory, wrapped=True)


def client_account(tools: MpiTools) -> Account:
    """As whom the leader's ssh and mpirun run. Raises ConfigError where OpenSSH's client would not run at all."""
    if tools.user is not None:
        return Account(tools.user, tools.uid, tools.home or "/", wrapped=False)
    if tools.nss_wrapper is None:
        raise ConfigError(
            Fault(
                f"ssh does not run for uid {tools.uid}, which has no entry in /etc/passwd",
                "a passwd entry; or libnss_wrapper.so in the image, with which lwsrun shows ssh an entry of its own",
                f"{INSTEAD}; or add libnss-wrapper to the image",
            )
        )
    return Account("lwsrun", tools.uid, tools.directory, wrapped=True)


def _lacking(tools: MpiTools) -> str:
    if tools.user is None:
        return "it has no entry in /etc/passwd"
    if os.path.basename(tools.shell or "") in NO_LOGIN:
        return f"its shell is {tools.shell}"
    if tools.locked:
        return "its account is locked in /etc/shadow"
    if not tools.trusted and tools.beside is None:
        return "StrictModes accepts no directory that it can write to"
    return ""


def authorized_keys_path(tools: MpiTools, account: Account) -> str:
    """Where StrictModes accepts it; it holds nothing secret."""
    inside = account.wrapped or tools.trusted or tools.beside is None
    return f"{tools.directory if inside else tools.beside}/{AUTHORIZED_KEYS}"


def sshd_argv(tools: MpiTools) -> tuple[str, ...]:
    """In the foreground, to its own stderr. sshd must be called by an absolute path: it executes itself anew."""
    return (tools.sshd or "sshd", "-D", "-e", "-f", f"{tools.directory}/{SSHD_CONFIG}")


def wrapping(directory: str, library: str, preloaded: str) -> tuple[tuple[str, str], ...]:
    """The variables by which nss_wrapper shows our entries: https://cwrap.org/nss_wrapper.html

    preloaded: what the pod has in LD_PRELOAD.
    """
    return (
        ("LD_PRELOAD", ":".join(filter(None, (library, preloaded)))),
        ("NSS_WRAPPER_PASSWD", f"{directory}/{PASSWD}"),
        ("NSS_WRAPPER_GROUP", f"{directory}/{GROUP}"),
    )


def sshd_config(tools: MpiTools, account: Account, port: int, addresses: Iterable[str]) -> str:
    """addresses: where it listens."""
    lines = [
        f"Port {port}",
        *(f"ListenAddress {address}" for address in addresses),
        f"HostKey {tools.directory}/{HOST_KEY}",
        "PidFile none",
        "StrictModes yes",
        "UsePAM no",
        "UseDNS no",
        # forced-commands-only: of root's keys, those that are bound to one command.
        f"PermitRootLogin {'forced-commands-only' if account.uid == 0 else 'no'}",
        f"AllowUsers {account.name}",
        "AuthenticationMethods publickey",
        "PubkeyAuthentication yes",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        f"AuthorizedKeysFile {authorized_keys_path(tools, account)}",
        "DisableForwarding yes",
        "PermitTTY no",
        "PermitUserRC no",
        "PermitUserEnvironment no",
        "PrintMotd no",
        "PrintLastLog no",
        f"LoginGraceTime {LOGIN_GRACE}",
        "MaxAuthTries 3",
        "MaxStartups 64:30:256",
        f"ClientAliveInterval {ALIVE[0]}",
        f"ClientAliveCountMax {ALIVE[1]}",
        "LogLevel INFO",
    ]
    return "\n".join(lines) + "\n"


def authorized_key(public_key: str, gate: Sequence[str]) -> str:
    """One key for one command: the gate, which runs an MPI daemon and nothing else. sshd gives it to a shell."""
    command = shlex.join(gate).replace("\\", "\\\\").replace('"', '\\"')
    return f'restrict,command="{command}" {public_key}\n'


def known_host(address: str, port: int, public_key: str) -> str:
    """One line, for one worker. OpenSSH writes the port in brackets where it is not 22."""
    return f"{address if port == 22 else f'[{address}]:{port}'} {public_key}\n"


def ssh_config(directory: str, port: int, users: Iterable[tuple[str, str]], key: str | None = None) -> str:
    """users: (address, user) of each worker. Nothing of the image's own configuration counts beside it (ssh -F)."""
    lines = []
    for address, user in users:
        lines += [f"Host {address}", f"  User {user}"]
    lines += [
        "Host *",
        f"  Port {port}",
        f"  IdentityFile {key or f'{directory}/{CLIENT_KEY}'}",
        "  IdentitiesOnly yes",
        "  PreferredAuthentications publickey",
        "  BatchMode yes",
        "  StrictHostKeyChecking yes",
        f"  UserKnownHostsFile {directory}/{KNOWN_HOSTS}",
        "  GlobalKnownHostsFile /dev/null",
        "  CheckHostIP no",
        "  UpdateHostKeys no",
        "  ForwardAgent no",
        "  ForwardX11 no",
        "  ConnectTimeout 10",
        "  ConnectionAttempts 3",
        f"  ServerAliveInterval {ALIVE[0]}",
        f"  ServerAliveCountMax {ALIVE[1]}",
        "  LogLevel ERROR",
    ]
    return "\n".join(lines) + "\n"


def passwd(given: str, account: Account, gid: int) -> str:
    """The image's passwd with our account in the place of its uid's and its name's; sshd as root wants its own too."""
    kept = [line for line in given.splitlines() if not _is(line, account)]
    mine = f"{account.name}:*:{account.uid}:{gid}:lwsrun:{account.home}:/bin/sh"
    if not any(line.startswith("sshd:") for line in kept):
        kept.append("sshd:*:65533:65533:sshd:/run/sshd:/usr/sbin/nologin")
    return "\n".join([mine, *kept]) + "\n"


def group(given: str, account: Account, gid: int) -> str:
    """The image's groups, and ours where its gid has none."""
    kept = [line for line in given.splitlines() if line.count(":") >= 3]
    if not any(line.split(":")[2] == str(gid) for line in kept):
        kept.append(f"{account.name}:*:{gid}:")
    return "\n".join(kept) + "\n"


def _is(line: str, account: Account) -> bool:
    fields = line.split(":")
    return len(fields) < 7 or fields[0] == account.name or fields[2] == str(account.uid)
