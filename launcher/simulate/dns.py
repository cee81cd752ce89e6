"""The cluster's DNS: real answers and real denials for the group's headless Service, over UDP and TCP."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from launcher.simulate.spec import DOMAIN, LWS, NAMESPACE

TTL = 5  # CoreDNS's kubernetes plugin
NEGATIVE_TTL = 30  # CoreDNS's `cache 30`
SERVICE = dns.name.from_text(f"{LWS}.{NAMESPACE}.svc.{DOMAIN}.")
ZONE = dns.name.from_text(f"{DOMAIN}.")

Records = Callable[[], dict[str, str]]


def answer(query: bytes, records: Records) -> bytes | None:
    """The reply to one query; records gives host name -> IPv4 address of the pods that have one now."""
    try:
        message = dns.message.from_wire(query)
        question = message.question[0]
    except (dns.exception.DNSException, IndexError):
        return None
    reply = dns.message.make_response(message)
    reply.flags |= dns.flags.AA | dns.flags.RA
    known = {dns.name.from_text(host, SERVICE): [address] for host, address in records().items()}
    if known:
        known[SERVICE] = [address for addresses in known.values() for address in addresses]
    addresses = known.get(question.name)
    if addresses is None:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    elif question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text_list(question.name, TTL, "IN", "A", addresses))
    if not reply.answer:
        # Without an SOA a resolver may not cache the denial: RFC 2308.
        soa = f"ns.dns.{DOMAIN}. hostmaster.{DOMAIN}. 1 7200 1800 86400 {NEGATIVE_TTL}"
        reply.authority.append(dns.rrset.from_text(ZONE, NEGATIVE_TTL, "IN", "SOA", soa))
    return reply.to_wire()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, records: Records) -> None:
        self._records = records

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = answer(data, self._records)
        if reply is not None:
            self._transport.sendto(reply, addr)


async def serve_dns(address: str, records: Records) -> None:
    """Answer on port 53 of the address until the loop ends."""

    async def over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            reply = answer(await reader.readexactly(length), records)
            if reply is not None:
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Udp(records), local_addr=(address, 53))
    await asyncio.start_server(over_tcp, address, 53)
