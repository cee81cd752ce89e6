"""A worker's side of the channel: find the leader, join, stay, hear when it is over."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus

import aiohttp
import tenacity

from backends.digest import difference
from backends.group import Group
from backends.plan import join_host_port
from launcher import resolver
from launcher.channel import messages as m
from launcher.channel.events import (
    Event,
    LaunchAsked,
    LeaderDrains,
    LeaderInspects,
    LeaderLost,
    LeaderRestarts,
    LeaderSaid,
    Mismatched,
    MpirunFinished,
)
from launcher.channel.wire import Gone, Wire
from launcher.log import log
from launcher.tally import Tally

CONNECT_TIMEOUT = 5.0
HANG_UPS = 3  # in a row, before a leader is taken for one that does not speak TLS
SOON = tenacity.wait_random_exponential(multiplier=0.1, max=1.0)
LATER = (5.0, 7.5)  # seconds, at random between: nobody but a person mends a wrong token


class NotAdmitted(Exception):
    """This attempt failed; str() says why, for the report. mismatch: a leader told us that we are not alike."""

    def __init__(self, reason: str, mismatch: bool = False) -> None:
        super().__init__(reason)
        self.mismatch = mismatch


class MemberSide:
    """One worker. join() tries for ever; afterwards listen() lasts as long as the connection does."""

    def __init__(
        self,
        group: Group,
        *,
        port: int,
        digest: str | None,
        command: tuple[str, ...],
        facts: m.Facts,
        mismatch_timeout: float,
        incarnation: str,
        node: Callable[[str], m.NodeFacts],
        peer_timeout: float,
        report_every: float,
        detaches: bool,
        left: str,
        tls: ssl.SSLContext | None,
        tally: Tally,
        emit: Callable[[Event], None],
    ) -> None:
        self.group = group
        self.why_waiting = "its name is being looked up, and nothing has answered yet"
        self.welcome: m.Welcome | None = None
        self.leader_ip = ""
        self.wire: Wire | None = None
        self.peer_timeout = peer_timeout  # until the leader has told its own, which counts
        self.formed: asyncio.Future[list[m.NodeFacts]] = asyncio.get_running_loop().create_future()
        self.handed: asyncio.Future[m.Handed] = asyncio.get_running_loop().create_future()
        self.may_become = asyncio.Event()
        self._port = port
        self._digest = digest
        self._command = command
        self._facts = facts
        self._mismatch_timeout = mismatch_timeout
        self._mismatched_since: float | None = None
        self._incarnation = incarnation
        self._node = node
        self._report_every = report_every
        self._detaches = detaches
        self._answered = False  # what came of the last attempt is told until the next has an outcome too
        self._hung_up = 0
        self._left = left
        self._tls = tls
        self._tally = tally
        self._unauthorised = False
        self._told_unauthorised = False
        self._emit = emit
        self._session: aiohttp.ClientSession | None = None
        self._closing = False

    async def join(self) -> m.Welcome:
        """Until the leader lets us in; says why not every report_every seconds. Raises Mismatched, nothing else."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT))
        reporter = asyncio.create_task(self._report())
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(NotAdmitted),
                wait=self._pause,
            ):
                with attempt:
                    self.welcome = await self._attempt()
        finally:
            reporter.cancel()
        assert self.welcome is not None
        return self.welcome

    def _pause(self, attempts: tenacity.RetryCallState) -> float:
        return random.uniform(*LATER) if self._unauthorised else SOON(attempts)

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
        self._unauthorised = False
        try:
            # Asked anew each time: the name may still point at an earlier leader that is going away.
            addresses = await resolver.resolve(self.group.leader_address, self._port)
            if not self._answered:
                self.why_waiting = f"no answer yet from {', '.join(addresses)}"
            failed = []
            for address in addresses:
                try:
                    return await self._join_at(address)
                except NotAdmitted as error:
                    failed.append((address, error))
            reason = "; ".join(f"{address}: {error}" for address, error in failed)
            raise NotAdmitted(reason, any(error.mismatch for _, error in failed))
        except (NotAdmitted, resolver.Unresolved) as error:
            self.why_waiting = str(error)
            self._answered = isinstance(error, NotAdmitted)
            if self._unauthorised and not self._told_unauthorised:
                self._told_unauthorised = True
                log.warning("%s; asking again every few seconds", self.why_waiting)
            self._count_mismatch(isinstance(error, NotAdmitted) and error.mismatch)
            raise NotAdmitted(str(error)) from error

    def _count_mismatch(self, mismatch: bool) -> None:
        """The clock runs while attempt after attempt is refused for not being alike; any other outcome resets it."""
        now = time.monotonic()
        if not mismatch:
            self._mismatched_since = None
            return
        if self._mismatched_since is None:
            self._mismatched_since = now
            log.warning("%s; asking again for %g s (--mismatch-timeout)", self.why_waiting, self._mismatch_timeout)
        refused = now - self._mismatched_since
        if refused >= self._mismatch_timeout:
            raise Mismatched(f"refused for {refused:.0f} s (--mismatch-timeout): {self.why_waiting}")

    async def _join_at(self, address: str) -> m.Welcome:
        assert self._session is not None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT * 2):
                scheme, tls = ("ws", True) if self._tls is None else ("wss", self._tls)
                url = f"{scheme}://{join_host_port(address, self._port)}/join"
                socket = await self._session.ws_connect(url, max_msg_size=m.MAX_MESSAGE, compress=0, ssl=tls)
        except TimeoutError:
            raise NotAdmitted("timed out") from None
        except aiohttp.WSServerHandshakeError as error:
            if error.status == HTTPStatus.FORBIDDEN:
                self._unauthorised = True
                raise NotAdmitted("the leader has a token, this pod has none (LWSRUN_TOKEN, --token-file)") from None
            raise NotAdmitted(f"it answers, but is no leader of a group (HTTP {error.status})") from None
        except (aiohttp.ClientError, OSError) as error:
            self._hung_up = self._hung_up + 1 if _hung_up(error) else 0
            reason = None if self._tls is None else _why_no_handshake(error, self._hung_up)
            self._unauthorised = self._unauthorised or reason is not None
            raise NotAdmitted(reason or _plain(error)) from None
        wire = Wire(socket, self.peer_timeout, self._tally.round_trips)
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
                        self._left,
                        self._facts,
                    )
                )
                answer = await wire.receive()
        except (Gone, TimeoutError, m.BadMessage) as error:
            await wire.close()
            raise NotAdmitted(f"it did not answer our join: {str(error) or 'timed out'}") from None
        if isinstance(answer, m.Welcome):
            self.wire = wire
            self.leader_ip = address
            if answer.size and answer.size != group.size:
                log.warning("the group size is %d here, the leader's is %d, which counts", group.size, answer.size)
                self.group = replace(group, size=answer.size)
            if answer.peer_timeout != self.peer_timeout:
                ours, theirs = self.peer_timeout, answer.peer_timeout
                log.warning("--peer-timeout is %g s here, the leader's is %g s, which counts", ours, theirs)
                self.peer_timeout = wire.peer_timeout = theirs
            self._tell_parting(answer.command)
            return answer
        await wire.close()
        if isinstance(answer, m.Refused):
            parting = f" ({self._parting(answer.command)})" if answer.command and self._command else ""
            raise NotAdmitted(f"the leader refuses us: {answer.reason}{parting}", answer.mismatch)
        raise NotAdmitted(f"it answered our join with a {type(answer).__name__.lower()}")

    def _tell_parting(self, command: list[str]) -> None:
        if self._command and difference(self._command, command) is not None:
            log.warning("let in with another command than the leader's: %s", self._parting(command))

    def _parting(self, command: list[str]) -> str:
        parts = difference(self._command, command)
        return "the leader's command is the same" if parts is None else f"here: {parts[0]}; the leader's: {parts[1]}"

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
                case m.Handed():
                    if not self.handed.done():
                        self.handed.set_result(message)
                case m.Detach():
                    await wire.send(m.Detached())
                case m.Become():
                    self.may_become.set()
                case m.Launch():
                    self._emit(LaunchAsked(message))
                case m.Finished():
                    self._emit(MpirunFinished())
                case m.Draining(reason):
                    self._emit(LeaderDrains(reason))
                case m.Inspect():
                    self._emit(LeaderInspects())
                case m.Stop():
                    self._emit(LeaderSaid(message))
                case m.Restart():
                    self._emit(LeaderRestarts())
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


def _hung_up(error: Exception) -> bool:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return isinstance(cause, ConnectionResetError | BrokenPipeError)


def _why_no_handshake(error: Exception, hung_up: int) -> str | None:
    """What ended our TLS handshake, where anything but the network did. hung_up: so often in a row, this one too."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "wrong token: the leader has another one, or belongs to another group"
    # Whoever hangs up in every handshake does not speak TLS; a leader that has just died does so once or twice.
    if (isinstance(error, aiohttp.ClientSSLError) and not _hung_up(error)) or hung_up >= HANG_UPS:
        return "this pod has a token, but the leader does not speak TLS: it has none, or is no leader"
    return None


def _plain(error: Exception) -> str:
    cause: BaseException = error
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused (no launcher listens there yet)"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause) or type(cause).__name__
