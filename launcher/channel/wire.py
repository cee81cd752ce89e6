"""One connection between leader and member: frames in and out, and how long the other side has been silent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any, Protocol

from aiohttp import WSCloseCode, WSMsgType

from launcher.channel.messages import BadMessage, Message, Ping, Pong, decode, encode
from launcher.tally import Histogram

TCP_THIN_LINEAR_TIMEOUTS = 16  # linux/tcp.h; Python has no names for these
TCP_RTO_MAX_MS = 44  # Linux 6.15
SEND_TIMEOUT = 5.0  # a peer that does not read must not hold us up
FRAMES = 200  # within one peer timeout; a member that has much to say sends some 20


class Socket(Protocol):
    """What aiohttp's server and client WebSockets have in common."""

    async def send_str(self, data: str) -> None: ...
    async def receive(self, timeout: float | None = None) -> Any: ...
    async def close(self, *, code: int = ..., message: bytes = ...) -> bool: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


class Gone(Exception):
    """The connection has ended; str() says how."""


def retry_steadily(connection: socket.socket) -> None:
    """Have the kernel repeat lost segments at a steady pace, instead of waiting twice as long each time.

    With one segment in flight every few seconds, six losses in a row would be 12 s of silence on a link that loses
    every fifth packet: a death that is none. Source: networking/tcp-thin.rst of the kernel.
    """
    for option, value in ((TCP_THIN_LINEAR_TIMEOUTS, 1), (TCP_RTO_MAX_MS, 1000)):
        with contextlib.suppress(OSError):  # an older kernel
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Wire:
    """Speaks messages over a WebSocket. Both sides ping; silence for peer_timeout seconds is death."""

    def __init__(self, connection: Socket, peer_timeout: float, round_trips: Histogram | None = None) -> None:
        """round_trips: where each of them is counted too."""
        self.socket = connection
        self.peer_timeout = peer_timeout
        self._loop = asyncio.get_running_loop()
        plain = connection.get_extra_info("socket")
        if plain is not None:
            retry_steadily(plain)
        self.silent = False  # the peer timeout has passed; else its end was told by the connection's
        self.heard = self._loop.time()
        self.round_trip: float | None = None
        self._round_trips = round_trips
        self._pinged: tuple[int, float] = (0, 0.0)
        self._frames, self._frames_since = 0, self.heard

    async def send(self, message: Message) -> None:
        """Raises Gone when the peer cannot be told."""
        await self.send_frame(encode(message))

    async def send_frame(self, frame: str) -> None:
        """A message that is encoded already."""
        try:
            await asyncio.wait_for(self.socket.send_str(frame), SEND_TIMEOUT)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise Gone(f"cannot send: {error or type(error).__name__}") from error

    async def try_send(self, message: Message) -> None:
        with contextlib.suppress(Gone):
            await self.send(message)

    async def receive(self) -> Message:
        """The next message other than ping and pong. Raises Gone or BadMessage."""
        while True:
            frame = await self.socket.receive()
            self._count_frame()
            if frame.type is WSMsgType.TEXT:
                self.heard = self._loop.time()
                message = decode(frame.data)
                if isinstance(message, Ping):
                    await self.try_send(Pong(message.number))  # what it said before it hung up is still to be read
                elif isinstance(message, Pong):
                    if message.number == self._pinged[0]:
                        self._note_round_trip(self.heard - self._pinged[1])
                else:
                    return message
            elif frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                raise Gone("the connection was closed")
            elif frame.type is WSMsgType.ERROR:
                raise Gone(f"the connection broke: {frame.data}")
            elif frame.type in (WSMsgType.PING, WSMsgType.PONG):
                continue  # WebSocket's own, which are no part of this protocol
            else:
                raise BadMessage("a binary frame")

    def _note_round_trip(self, seconds: float) -> None:
        self.round_trip = seconds
        if self._round_trips is not None:
            self._round_trips.observe(seconds)

    @property
    def silence(self) -> float:
        """Seconds since it was last heard."""
        return self._loop.time() - self.heard

    def _count_frame(self) -> None:
        now = self._loop.time()
        if now - self._frames_since >= self.peer_timeout:
            self._frames, self._frames_since = 0, now
        self._frames += 1
        if self._frames > FRAMES:
            raise BadMessage(f"it sent more than {FRAMES} messages within {self.peer_timeout:g} s")

    async def keep_alive(self) -> None:
        """Ping for ever; raises Gone when nothing was heard for the peer timeout.

        Silence counts only while we ourselves were running: after a pause of our own (a throttled CPU, SIGSTOP) the
        peer gets the full time again, because its messages may lie unread in our own buffers.
        """
        every = self.peer_timeout / 5
        number = 0
        while True:
            slept_at = self._loop.time()
            # Not longer than until the peer would be dead, so that it is found dead then and not at the next ping.
            nap = min(every, self.heard + self.peer_timeout - slept_at)
            await asyncio.sleep(nap)
            now = self._loop.time()
            if now - slept_at > nap + every:
                self.heard = now
            if now - self.heard >= self.peer_timeout:
                self.silent = True
                raise Gone(f"nothing was heard from it for {now - self.heard:.0f} s")
            if now - self._pinged[1] >= every:
                number += 1
                self._pinged = (number, now)
                await self.send(Ping(number))

    async def until_gone(self, listening: Coroutine[Any, Any, None]) -> BaseException | None:
        """Keep alive and listen until either ends; why it ended."""
        tasks = [asyncio.create_task(self.keep_alive()), asyncio.create_task(listening)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in tasks if task.done()).exception()
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            await asyncio.wait_for(self.socket.close(code=WSCloseCode.OK), 1.0)
