"""The name servers of a cluster, for tests: the simulation's authority, and before it a resolver that caches, as a node
or a cluster has it. A program for a network of its own; it tells what it caches, with the time.

AUTHORITY CACHE: their addresses. MINIMUM: how long a denial may be cached, in seconds. RECORDS: a file that may change,
with a host name and its address on each line.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from launcher.simulate import dns as authority


class Cache(asyncio.DatagramProtocol):
    """Asks the authority what it does not know. Denials are kept as RFC 2308, 5 has it: for the whole name, and for
    what the SOA record beside them says."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.kept: dict[object, tuple[float, dns.message.Message]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.create_task(self.reply(dns.message.from_wire(data), addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def reply(self, query: dns.message.Message, addr: tuple[str, int]) -> None:
        name, kind = query.question[0].name, query.question[0].rdtype
        now = time.monotonic()
        known = next((each for key in (name, (name, kind)) if (each := self.kept.get(key)) and each[0] > now), None)
        if known is None:
            try:
                found = await dns.asyncquery.udp(dns.message.make_query(name, kind), self.upstream, timeout=2)
            except (dns.exception.DNSException, OSError):
                return
            denied = found.rcode() == dns.rcode.NXDOMAIN
            known = (now + lifetime(found), found)
            self.kept[name if denied else (name, kind)] = known
            what = "denied" if denied else "found" if found.answer else "no such record"
            print(what, name, dns.rdatatype.to_text(kind), f"until {known[0]:.3f}", flush=True)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        answer.set_rcode(known[1].rcode())
        answer.answer, answer.authority = known[1].answer, known[1].authority
        self.transport.sendto(answer.to_wire(), addr)


def lifetime(message: dns.message.Message) -> float:
    if message.answer:
        return min(each.ttl for each in message.answer)
    return min((min(each.ttl, each[0].minimum) for each in message.authority), default=0)


async def serve(upstream: str, here: str, minimum: int, records: Path) -> None:
    authority.NEGATIVE_TTL = minimum

    def known() -> dict[str, str]:
        return dict(line.split() for line in records.read_text().splitlines())

    await authority.serve_dns(upstream, known)
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: Cache(upstream), local_addr=(here, 53))
    await asyncio.Event().wait()


asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
