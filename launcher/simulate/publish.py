"""Ports of the leader on the machine outside: the listening socket was made there and works from in here."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable


async def publish(descriptor: int, host: Callable[[], str], port: int) -> None:
    """Carry every connection on the inherited listening socket to what host names by then, as long as the loop runs."""
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inside = await asyncio.open_connection(host(), port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, inside[1]), _copy(inside[0], writer))

    await asyncio.start_server(carry, sock=listener)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
