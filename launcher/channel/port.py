"""The port's door: TLS and plain HTTP side by side, and what a connection may do before it has joined.

Who has not joined is a stranger: probes, people, members on their way in, and whoever else is on the network. Strangers
are few and short-lived here whatever they do: when there are too many, the oldest of the address that has most must go.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from aiohttp import web

from launcher.channel.complaints import Complaints

HANDSHAKE = b"\x16"  # the first byte of every TLS connection (RFC 8446, 5.1); no HTTP method begins with it
ACCEPTS = 4  # connections taken at once, before members are heard again
OWN = 32  # descriptors for what the launcher opens later: pipes of children, DNS, a thread's files
PAUSE = 0.2  # seconds without accepting, when the kernel has no descriptor left to give


@dataclass(frozen=True)
class Limits:
    """What strangers may have, and in bytes what a member may send."""

    strangers: int  # open connections in all
    per_address: int = 32
    first_byte: float = 5.0  # seconds from connecting
    stay: float = 15.0  # seconds from the first byte to having joined, or to the end of the answer
    before_joining: int = 32 * 1024
    member_bytes: int = 256 * 1024  # within member_window seconds
    member_window: float = 10.0


def limits_for(seats: int) -> Limits:
    """Strangers get what the descriptor limit leaves when every member is here, and enough for all to come at once."""
    wanted = max(256, 2 * seats)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY:
        wanted = min(wanted, limit - len(os.listdir("/proc/self/fd")) - seats - OWN)
    return Limits(strangers=max(wanted, 4))


class Port:
    """Accepts on listening sockets for an aiohttp server. With tls, whoever begins a handshake must finish it."""

    def __init__(
        self,
        server: web.Server,
        limits: Limits,
        tls: ssl.SSLContext | None = None,
        refused: Callable[[str], None] = lambda code: None,
    ) -> None:
        self.server = server
        self.limits = limits
        self.tls = tls
        self._refused = refused
        self._listening: list[socket.socket] = []
        self._strangers: dict[str, dict[Connection, None]] = {}
        self._count = 0
        self._by_handler: dict[object, Connection] = {}
        self._complaints = Complaints()

    def open(self, sockets: Sequence[socket.socket]) -> None:
        for each in sockets:
            each.setblocking(False)
            self._listening.append(each)
            self._watch(each)

    def close(self) -> None:
        """Accept nobody any more and drop the strangers; members hang up themselves."""
        loop = asyncio.get_running_loop()
        for each in self._listening:
            loop.remove_reader(each)
            each.close()
        self._listening.clear()
        for connections in list(self._strangers.values()):
            for connection in list(connections):
                connection.cut()

    def admit(self, request: web.BaseRequest) -> None:
        """The request's connection is a member's from here on: it stays until it ends."""
        connection = self._by_handler.get(request.protocol)
        if connection is not None and not connection.member:
            self._leave(connection)
            connection.become_member()

    def refuse(self, code: str, address: str, what: str) -> None:
        """Count and tell that somebody was turned away."""
        self._refused(code)
        self._complaints.tell(address, f"turned away {address}: {what}")

    def _watch(self, listening: socket.socket) -> None:
        if listening in self._listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTS):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # No descriptor, or no memory for one. The socket stays readable: do not spin on it.
                self._drop_oldest()
                loop.remove_reader(listening)
                loop.call_later(PAUSE, self._watch, listening)
                return
            accepted.setblocking(False)
            self._enter(Connection(self, accepted, str(address[0])))

    def _enter(self, connection: Connection) -> None:
        mine = self._strangers.setdefault(connection.address, {})
        if len(mine) >= self.limits.per_address:
            next(iter(mine)).cut()
        elif self._count >= self.limits.strangers:
            self._drop_oldest()
        # Asked for again: the address's last connection may just have gone.
        self._strangers.setdefault(connection.address, {})[connection] = None
        self._count += 1
        connection.begin()

    def _drop_oldest(self) -> None:
        fullest = max(self._strangers.values(), key=len, default=None)
        if fullest:
            next(iter(fullest)).cut()

    def _leave(self, connection: Connection) -> None:
        """It is no stranger any more: gone, or a member."""
        mine = self._strangers.get(connection.address, {})
        if connection in mine:
            del mine[connection]
            self._count -= 1
            if not mine:
                del self._strangers[connection.address]

    def opened(self, connection: Connection, handler: object) -> None:
        self._by_handler[handler] = connection

    def closed(self, connection: Connection, handler: object) -> None:
        self._leave(connection)
        self._by_handler.pop(handler, None)


class Connection(asyncio.Protocol):
    """One connection: from accepted, over its first byte, to aiohttp's handler, which it passes everything on to."""

    def __init__(self, port: Port, accepted: socket.socket, address: str) -> None:
        self.port = port
        self.address = address
        self.member = False
        self._socket = accepted
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._handler: asyncio.Protocol | None = None
        self._bytes = 0
        self._since = 0.0

    def begin(self) -> None:
        self._cut_after(self.port.limits.first_byte)
        self._loop.add_reader(self._socket, self._look)

    def _cut_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.cut)

    def cut(self) -> None:
        """End it now, whatever state it is in."""
        self.port._leave(self)  # at once, so that its place is free; the rest follows when the transport has closed
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        elif self._opening is not None:
            self._opening.cancel()
        else:
            self._loop.remove_reader(self._socket)
            self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._socket.close()
        self.port.closed(self, self._handler)

    def _look(self) -> None:
        """TLS or HTTP? The byte stays in the socket for whoever reads it then."""
        try:
            first = self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        if not first:
            self.cut()
            return
        self._loop.remove_reader(self._socket)
        secure = first == HANDSHAKE
        if secure and self.port.tls is None:
            self.port.refuse("token", self.address, "it wants TLS, as members with a token do, and here is no token")
            self.cut()
            return
        self._cut_after(self.port.limits.stay)
        self._opening = self._loop.create_task(self._open(secure))
        self._opening.add_done_callback(self._opened)

    async def _open(self, secure: bool) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: self,
                self._socket,
                ssl=self.port.tls if secure else None,
                ssl_handshake_timeout=self.port.limits.stay if secure else None,
                ssl_shutdown_timeout=1.0 if secure else None,
            )
        except OSError as error:
            if secure:
                self.port.refuse("token", self.address, f"wrong token, or no member at all ({_reason(error)})")
            raise

    def _opened(self, opening: asyncio.Task[None]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._end()

    def become_member(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.member = True
        self._bytes, self._since = 0, self._loop.time()

    # ------------------------------------------------------------------ between the transport and aiohttp's handler

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._handler = self.port.server()
        self.port.opened(self, self._handler)
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        assert self._handler is not None
        limits = self.port.limits
        if self.member and self._loop.time() - self._since >= limits.member_window:
            self._bytes, self._since = 0, self._loop.time()
        self._bytes += len(data)
        if self._bytes <= (limits.member_bytes if self.member else limits.before_joining):
            self._handler.data_received(data)
        else:
            what = f"{limits.member_window:g} s" if self.member else "this connection, without joining"
            self.port.refuse("flood", self.address, f"it sent {self._bytes // 1024} KiB within {what}")
            self.cut()

    def eof_received(self) -> bool | None:
        assert self._handler is not None
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        assert self._handler is not None
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        assert self._handler is not None
        self._handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        assert self._handler is not None
        self._handler.connection_lost(error)
        self._end()


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or str(error) or type(error).__name__
