"""A worker's side of the channel: find the leader, join, stay, hear when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
import tenacity

from backends.group import Group
from backends.plan import join_host_port
from launcher import resolver
from launcher.channel import messages as m
from launcher.channel.events import Event, LeaderLost, LeaderSaid
from launcher.channel.wire import Gone, Wire
from launcher.log import log

CONNECT_TIMEOUT = 5.0


class NotAdmitted(Exception):
    """This attempt failed; str() says why, for the report."""


class MemberSide:
    """One worker. join() tries for ever; afterwards listen() lasts as long as the connection does."""

    def __init__(
        self,
        group: Group,
        *,
        port: int,
        digest: str | None,
        incarnation: str,
        node: Callable[[str], m.NodeFacts],
        peer_timeout: float,
        report_every: float,
        detaches: bool,
        emit: Callable[[Event], None],
    ) -> None:
        self.group = group
        self.why_waiting = "not tried yet"
        self.welcome: m.Welcome | None = None
        self.leader_ip = ""
        self.wire: Wire | None = None
        self.formed: asyncio.Future[list[m.NodeFacts]] = asyncio.get_running_loop().create_future()
        self.may_detach = asyncio.Event()
        self._port = port
        self._digest = digest
        self._incarnation = incarnation
        self._node = node
        self._peer_timeout = peer_timeout
        self._report_every = report_every
        self._detaches = detaches
        self._emit = emit
        self._session: aiohttp.ClientSession | None = None
        self._closing = False

    async def join(self) -> m.Welcome:
        """Until the leader lets us in; says why not every report_every seconds. Never raises by itself."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT))
        reporter = asyncio.create_task(self._report())
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(NotAdmitted),
                wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
            ):
                with attempt:
                    self.welcome = await self._attempt()
        finally:
            reporter.cancel()
        assert self.welcome is not None
        return self.welcome

    async def _report(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(self._report_every)
            why = self.why_waiting
            if why.startswith(resolver.UNRESOLVED):
                why = await resolver.explain(self.group.leader_address)
            waited = time.monotonic() - started
            log.info("waiting %.0f s for the leader at %s: %s", waited, self._target(), why)

    def _target(self) -> str:
        return f"{self.group.leader_address} port {self._port}"

    async def _attempt(self) -> m.Welcome:
        try:
            # Asked anew each time: the name may still point at an earlier leader that is going away.
            addresses = await resolver.resolve(self.group.leader_address, self._port)
            reasons = []
            for address in addresses:
                try:
                    return await self._join_at(address)
                except NotAdmitted as error:
                    reasons.append(f"{address}: {error}")
            raise NotAdmitted("; ".join(reasons))
        except (NotAdmitted, resolver.Unresolved) as error:
            self.why_waiting = str(error)
            raise NotAdmitted(str(error)) from error

    async def _join_at(self, address: str) -> m.Welcome:
        assert self._session is not None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT * 2):
                socket = await self._session.ws_connect(
                    f"ws://{join_host_port(address, self._port)}/join", max_msg_size=m.MAX_MESSAGE, compress=0
                )
        except TimeoutError:
            raise NotAdmitted("timed out") from None
        except aiohttp.WSServerHandshakeError as error:
            raise NotAdmitted(f"it answers, but is no leader of a group (HTTP {error.status})") from None
        except (aiohttp.ClientError, OSError) as error:
            raise NotAdmitted(_plain(error)) from None
        wire = Wire(socket, self._peer_timeout)
        mine = socket.get_extra_info("sockname")
        node = self._node(mine[0] if mine else "")
        group = self.group
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT * 2):
                await wire.send(
                    m.Join(
                        m.VERSION,
                        group.id,
                        group.index,
                        group.size,
                        self._incarnation,
                        self._digest,
                        node,
                        self._detaches,
                    )
                )
                answer = await wire.receive()
        except (Gone, TimeoutError, m.BadMessage) as error:
            await wire.close()
            raise NotAdmitted(f"it did not answer our join: {str(error) or 'timed out'}") from None
        if isinstance(answer, m.Welcome):
            self.wire = wire
            self.leader_ip = address
            return answer
        await wire.close()
        if isinstance(answer, m.Refused):
            raise NotAdmitted(f"the leader refuses us: {answer.reason}")
        raise NotAdmitted(f"it answered our join with a {type(answer).__name__.lower()}")

    async def listen(self) -> None:
        """Until the connection ends; every end that we did not ask for is the loss of the leader."""
        assert self.wire is not None
        error = await self.wire.until_gone(self._hear(self.wire))
        if not self._closing:
            self._emit(LeaderLost(f"lost: {error}"))

    async def _hear(self, wire: Wire) -> None:
        while True:
            message = await wire.receive()
            match message:
                case m.Formed(nodes) if len(nodes) == self.group.size:
                    if not self.formed.done():
                        self.formed.set_result(nodes)
                case m.Detach():
                    self.may_detach.set()
                case m.Stop():
                    self._emit(LeaderSaid(message))
                case _:
                    raise m.BadMessage(f"an unexpected {type(message).__name__.lower()} from the leader")

    async def tell(self, message: m.Message) -> None:
        if self.wire is not None:
            await self.wire.try_send(message)

    async def close(self) -> None:
        self._closing = True
        if self.wire is not None:
            await self.wire.close()
        if self._session is not None:
            await self._session.close()


def _plain(error: Exception) -> str:
    cause: BaseException = error
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused (no launcher listens there yet)"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause) or type(cause).__name__
