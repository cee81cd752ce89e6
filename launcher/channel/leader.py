"""The leader's side of the channel: who has joined, who is refused and why, and what everybody is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aiohttp import web

from backends.group import Group, member_name
from launcher.channel import messages as m
from launcher.channel.events import Event, MemberDone, MemberFailed, MemberLeaving, MemberLost
from launcher.channel.wire import Gone, Wire
from launcher.log import log

JOIN_TIMEOUT = 10.0  # seconds from connecting to the first frame
MAX_STRANGERS = 64  # connections that have not joined yet


@dataclass(eq=False)
class Seat:
    """A member that has joined."""

    index: int
    node: m.NodeFacts
    incarnation: str
    wire: Wire
    phase: str = "joined"
    done: bool = False
    prepared: bool = False
    detached: bool = False


class LeaderSide:
    """Holds the seats. Before the group has formed a lost member only frees its seat; afterwards it is a failure."""

    def __init__(
        self,
        group: Group,
        node: m.NodeFacts,
        *,
        run: str,
        command: tuple[str, ...],
        digest: str,
        secrets: Mapping[str, str],
        peer_timeout: float,
        detaches: bool,
        emit: Callable[[Event], None],
    ) -> None:
        self.group = group
        self.node = node
        self._detaches = detaches
        self.run = run
        self.seats: dict[int, Seat] = {}
        self.refused: dict[str, int] = {}
        self.formed = False
        self.stopping = False
        self._complete = asyncio.Event()
        self._prepared = asyncio.Event()
        self._welcome = m.Welcome(run, node, list(command), dict(secrets), peer_timeout)
        self._digest = digest
        self._peer_timeout = peer_timeout
        self._emit = emit
        self._strangers = 0
        self._last_refusal: dict[int, str] = {}

    @property
    def missing(self) -> list[int]:
        return [index for index in range(1, self.group.size) if index not in self.seats]

    @property
    def all_done(self) -> bool:
        return not self.missing and all(seat.done for seat in self.seats.values())

    def why_missing(self) -> str:
        """The absent members, with the last refusal where there was one."""
        parts = []
        for index in self.missing:
            refusal = self._last_refusal.get(index)
            parts.append(member_name(index) + (f" (refused: {refusal})" if refusal else ""))
        return ", ".join(parts)

    async def wait_complete(self) -> list[m.NodeFacts]:
        """Until every member has joined; then tells all, and returns the nodes by index."""
        while self.missing:
            self._complete.clear()
            await self._complete.wait()
        self.formed = True
        nodes = [self.node, *(self.seats[index].node for index in range(1, self.group.size))]
        await self.tell_all(m.Formed(nodes))
        return nodes

    async def wait_prepared(self) -> None:
        """Until every member has said that its engine could start."""
        while self.missing or not all(seat.prepared for seat in self.seats.values()):
            self._prepared.clear()
            await self._prepared.wait()

    async def tell_all(self, message: m.Message) -> None:
        await asyncio.gather(*(seat.wire.try_send(message) for seat in self.seats.values()))

    async def wait_empty(self, timeout: float) -> list[int]:
        """Until every member has hung up, at most timeout seconds; those that have not."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self.seats and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return sorted(self.seats)

    async def handle_join(self, request: web.Request) -> web.WebSocketResponse | web.Response:
        """GET /join: a member's connection, for as long as it lasts."""
        if self._strangers >= MAX_STRANGERS:
            return web.Response(status=503, text="too many connections that have not joined\n")
        socket = web.WebSocketResponse(max_msg_size=m.MAX_MESSAGE, compress=False, timeout=1.0)
        self._strangers += 1
        try:
            await socket.prepare(request)
            wire = Wire(socket, self._peer_timeout)
            seat = await self._admit(wire, request.remote or "?")
        finally:
            self._strangers -= 1
        if seat is not None:
            await self._serve(seat)
        await wire.close()
        return socket

    async def _admit(self, wire: Wire, remote: str) -> Seat | None:
        try:
            async with asyncio.timeout(JOIN_TIMEOUT):
                join = await wire.receive()
        except (Gone, TimeoutError):
            return None
        except m.BadMessage as error:
            log.warning("%s sent no join but %s; closed", remote, error)
            return None
        if not isinstance(join, m.Join):
            return None
        refusal = self._refusal(join)
        if refusal is not None:
            self.refused[refusal.code] = self.refused.get(refusal.code, 0) + 1
            # Kept for real places only, so that a stranger cannot fill our memory with made-up ones.
            place = join.index if 0 < join.index < self.group.size else 0
            if self._last_refusal.get(place) != refusal.reason:
                log.warning("refused worker %d at %s: %s", join.index, remote, refusal.reason)
                self._last_refusal[place] = refusal.reason
            await wire.try_send(refusal)
            return None
        seat = Seat(join.index, join.node, join.incarnation, wire)
        # Taken before anything is awaited, so that two joins of one index cannot both pass.
        self.seats[join.index] = seat
        self._last_refusal.pop(join.index, None)
        try:
            await wire.send(self._welcome)
        except Gone:
            del self.seats[join.index]
            if self.formed:
                self._emit(MemberLost(join.index, "lost while it was let in"))
            return None
        log.info(
            "worker %d joined from %s (%s, %d GPUs); %d of %d here",
            join.index, join.node.ip, join.node.hostname, join.node.gpus, len(self.seats) + 1, self.group.size,
        )  # fmt: skip
        self._complete.set()
        return seat

    def _refusal(self, join: m.Join) -> m.Refused | None:
        group = self.group
        if join.version != m.VERSION:
            return m.Refused("protocol", f"it speaks protocol {join.version}, the leader {m.VERSION}: same lwsrun?")
        if join.group != group.id:
            return m.Refused("group", f"it belongs to group {join.group!r}, this leader leads {group.id!r}")
        if self.stopping:
            return m.Refused("draining", "this leader is stopping")
        if join.size != group.size:
            return m.Refused("size", f"its group size is {join.size}, the leader's is {group.size}")
        if not 0 < join.index < group.size:
            return m.Refused("index", f"its index is {join.index}, the leader expects 1 to {group.size - 1}")
        seat = self.seats.get(join.index)
        if seat is not None:
            return m.Refused("taken", f"index {join.index} is taken by {seat.node.ip} ({seat.node.hostname})")
        if join.exec != self._detaches:
            with_it, without = ("it", "the leader") if join.exec else ("the leader", "it")
            return m.Refused("exec", f"{with_it} runs with --exec, {without} without")
        if join.digest not in (None, self._digest):
            return m.Refused("command", f"its command differs: digest {join.digest}, the leader's is {self._digest}")
        if join.digest is None:
            return None  # without a command it does not know its engine yet; its own plan checks what it finds
        for what, theirs, ours in (
            ("engine version", join.node.engine_version, self.node.engine_version),
            ("Ray version", join.node.ray, self.node.ray),
        ):
            if theirs != ours:
                return m.Refused("version", f"its {what} is {theirs or 'none'}, the leader's is {ours or 'none'}")
        return None

    async def _serve(self, seat: Seat) -> None:
        error = await seat.wire.until_gone(self._listen(seat))
        what = f"lost: {error}" if error else "lost"
        if self.seats.get(seat.index) is seat:
            del self.seats[seat.index]
        if self.stopping or seat.detached:
            return
        log.warning("%s at %s %s", member_name(seat.index), seat.node.ip, what)
        self._emit(MemberLost(seat.index, what))

    async def _listen(self, seat: Seat) -> None:
        while True:
            message = await seat.wire.receive()
            match message:
                case m.Phase(phase):
                    seat.phase = phase
                case m.Failed(cause):
                    # The seat speaks for itself alone, whatever index the message claims.
                    honest = replace(cause, index=seat.index, what=cause.what[:1000], head=cause.head[:4096])
                    seat.phase = "failed"
                    self._emit(MemberFailed(honest))
                case m.Leaving(reason):
                    seat.phase = "leaving"
                    self._emit(MemberLeaving(seat.index, reason))
                case m.Done():
                    seat.done = True
                    seat.phase = "done"
                    self._emit(MemberDone(seat.index))
                case m.Prepared():
                    seat.prepared = True
                    seat.phase = "prepared"
                    self._prepared.set()
                case m.Detached():
                    seat.detached = True
                case _:
                    raise m.BadMessage(f"a {type(message).__name__.lower()} from a member")
