"""The leader's name as the engines will see it: getaddrinfo decides; dnspython only explains why not."""

from __future__ import annotations

import asyncio
import socket

UNRESOLVED = "its name does not resolve"


class Unresolved(Exception):
    """The system resolver gave no address; str() begins with UNRESOLVED."""


async def resolve(host: str, port: int) -> list[str]:
    """All addresses, in the system's order of preference, each once. Raises Unresolved."""
    loop = asyncio.get_running_loop()
    try:
        answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Unresolved(f"{UNRESOLVED} ({reason})") from None
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


async def explain(host: str) -> str:
    """Why DNS has no answer, e.g. that the record is not there yet, or that no name server replies."""
    return await asyncio.to_thread(_explain, host)


def _explain(host: str) -> str:
    import dns.exception
    import dns.resolver

    try:
        resolver = dns.resolver.Resolver()
        servers = ", ".join(str(server) for server in resolver.nameservers)
        resolver.lifetime = 3
        try:
            resolver.resolve(host, "A", search=True)
        except dns.resolver.NoAnswer:
            resolver.resolve(host, "AAAA", search=True)
    except dns.resolver.NXDOMAIN:
        return (
            f"{UNRESOLVED}: NXDOMAIN from {servers} (the leader's pod has no record yet, or its headless Service is"
            " missing; denials are cached up to 30 s)"
        )
    except dns.resolver.NoAnswer:
        return f"{UNRESOLVED}: {servers} knows the name but has no address for it"
    except dns.resolver.NoNameservers as error:
        return f"{UNRESOLVED}: no name server answered properly ({error})"
    except dns.exception.Timeout:
        return f"{UNRESOLVED}: no answer from {servers}"
    except (dns.exception.DNSException, OSError) as error:
        return f"{UNRESOLVED}: {error}"
    return (
        f"{UNRESOLVED} for the system resolver at the last attempt, although {servers} has it now (just come?"
        " else: search list? hosts file?)"
    )
