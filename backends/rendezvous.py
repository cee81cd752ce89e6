"""A rendezvous address that the user gave: is it this group's leader, and at which port?"""

from __future__ import annotations

import ipaddress

from backends.errors import ConfigError, Fault
from backends.plan import Request, join_host_port


def port_of(flag: str, text: str, request: Request) -> int:
    """The port of HOST:PORT, after checking that HOST is the leader. Raises ConfigError that shows both."""
    leader = join_host_port(request.leader.ip, 20000)
    remedy = f"leave {flag} out: lwsrun adds it"
    if "$" in text:
        raise ConfigError(
            Fault(
                f"{flag} is {text!r}: it looks like a variable that nobody expanded",
                f"HOST:PORT, such as {leader}",
                f"{remedy}; Kubernetes expands $(NAME) only",
            )
        )
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed) or not _is_port(port):
        raise ConfigError(
            Fault(f"{flag} is {text!r}", f"HOST:PORT, such as {leader}; an IPv6 address in brackets", remedy)
        )
    host = host.strip("[]")
    if not _is_leader(host, request):
        raise ConfigError(
            Fault(
                f"{flag} is {text}, but the group's leader is {request.group.leader_address} ({request.leader.ip})",
                "the leader's name or address, the same in all pods",
                f"{remedy}; for another of the leader's addresses, give it --pod-ip",
            )
        )
    return int(port)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= 65535


def _is_leader(host: str, request: Request) -> bool:
    if not request.group.is_leader and request.leader.ip == request.node.ip:
        return True  # a worker that has not joined yet takes the leader to be like itself: it cannot tell
    try:
        return ipaddress.ip_address(host) == ipaddress.ip_address(request.leader.ip)
    except ValueError:
        # Shorter or longer by search domains it is the same name, such as my-lws-0.my-lws.default.svc.cluster.local
        ours, theirs = ((name.lower().rstrip(".") + ".") for name in (request.group.leader_address, host))
        hostname = request.leader.hostname.lower() + "."
        return theirs == hostname or theirs.startswith(ours) or ours.startswith(theirs)
