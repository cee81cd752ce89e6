"""A rendezvous address that the user gave: is it this group's leader, and at which port?"""

from __future__ import annotations

import ipaddress

from backends.errors import ConfigError, Fault
from backends.plan import Request, join_host_port


def port_of(flag: str, text: str, request: Request) -> int:
    """The port of HOST:PORT, after checking that HOST is the leader. Raises ConfigError that shows both."""
    leader = join_host_port(request.leader.ip, 20000)
    refuse_variable(flag, text, f"HOST:PORT, such as {leader}")
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed) or not is_port(port):
        raise ConfigError(
            Fault(f"{flag} is {text!r}", f"HOST:PORT, such as {leader}; an IPv6 address in brackets", _remedy(flag))
        )
    if not is_leader(host.strip("[]"), request):
        raise ConfigError(not_the_leader(flag, text, request))
    return int(port)


def refuse_variable(flag: str, text: str, expected: str) -> None:
    """Raise ConfigError for a value such as $LWS_LEADER_ADDRESS that reached the command as it is written."""
    if "$" in text:
        raise ConfigError(
            Fault(
                f"{flag} is {text!r}: it looks like a variable that nobody expanded",
                expected,
                f"{_remedy(flag)}; Kubernetes expands $(NAME) only",
            )
        )


def not_the_leader(flag: str, text: str, request: Request) -> Fault:
    return Fault(
        f"{flag} is {text}, but the group's leader is {request.group.leader_address} ({request.leader.ip})",
        "the leader's name or address, the same in all pods",
        f"{_remedy(flag)}; for another of the leader's addresses, give it --pod-ip",
    )


def _remedy(flag: str) -> str:
    return f"leave {flag} out: lwsrun adds it"


def is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= 65535


def is_leader(host: str, request: Request) -> bool:
    """Whether a name or an IP without brackets is the leader's, as far as this pod knows the leader."""
    if not request.group.is_leader and request.leader.ip == request.node.ip:
        return True  # a worker that has not joined yet takes the leader to be like itself: it cannot tell
    try:
        return ipaddress.ip_address(host) == ipaddress.ip_address(request.leader.ip)
    except ValueError:
        # Shorter or longer by search domains it is the same name, such as my-lws-0.my-lws.default.svc.cluster.local
        ours, theirs = ((name.lower().rstrip(".") + ".") for name in (request.group.leader_address, host))
        hostname = request.leader.hostname.lower() + "."
        return theirs == hostname or theirs.startswith(ours) or ours.startswith(theirs)
