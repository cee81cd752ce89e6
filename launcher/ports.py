"""Taking the group channel's port, with a clash told so that a person can mend it."""

from __future__ import annotations

import errno
import os
import socket

import psutil

from backends.errors import ConfigError, Fault
from backends.group import MAX_SIZE

BACKLOG = MAX_SIZE  # all may come at once; the kernel allows less where net.core.somaxconn is


def listen(host: str | None, port: int) -> list[socket.socket]:
    """Sockets that listen on the address, or on all of the pod's. Raises ConfigError.

    Whoever connects before they are served waits in the kernel.
    """
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise ConfigError(Fault(f"--listen is {host!r}", "an address or a host name of this pod")) from None
    opened: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(answers):
            try:
                each = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # a family that this kernel was told to do without
            opened.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                each.bind(address)
            except OSError as error:
                if host is None and error.errno == errno.EADDRNOTAVAIL:
                    opened.pop().close()  # IPv6 is there, but switched off: https://bugs.python.org/issue30945
                    continue
                raise
            each.listen(BACKLOG)
        if not opened:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    except OSError as error:
        for each in opened:
            each.close()
        if error.errno == errno.EADDRINUSE:
            fault = Fault(
                f"port {port} is in use{_by_whom(port)}",
                "a free port for the group channel, the same in every pod of the group",
                "set --port (LWSRUN_PORT); with host networking, one port for each group on a node",
            )
        else:
            fault = Fault(f"cannot listen on {host or '*'} port {port}: {error.strerror}", "", "--listen, --port")
        raise ConfigError(fault) from None
    return opened


def _by_whom(port: int) -> str:
    process = owner(port)
    try:
        return f" by {process.name()} (pid {process.pid})" if process is not None else ""
    except psutil.Error:
        return ""


def owner(port: int) -> psutil.Process | None:
    """Who listens at the port; None for nobody, or for one that this user may not see."""
    try:
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN and connection.pid
            if listening and connection.laddr and connection.laddr[1] == port:
                return psutil.Process(connection.pid)
    except psutil.Error:
        pass
    return None
