"""The leader's side of the channel: who has joined, who is refused and why, and what everybody is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from aiohttp import web

from backends.errors import ConfigError, Fault
from backends.group import Group, member_name
from backends.plan import Smoke
from launcher.channel import agreement
from launcher.channel import messages as m
from launcher.channel.absences import Absences
from launcher.channel.complaints import Complaints
from launcher.channel.events import (
    DaemonEnded,
    Event,
    MemberDone,
    MemberFailed,
    MemberHung,
    MemberLeaving,
    MemberLost,
    MemberSuspected,
)
from launcher.channel.wire import Gone, Wire
from launcher.log import log
from launcher.tally import Tally

JOIN_TIMEOUT = 10.0  # seconds from connecting to the first frame


@dataclass(eq=False)
class Seat:
    """A member that has joined."""

    index: int
    node: m.NodeFacts
    incarnation: str
    wire: Wire
    join: m.Join
    phase: str = "joined"
    since: float = field(default_factory=time.monotonic)  # when it entered the phase
    done: bool = False
    prepared: bool = False
    equipped: m.Equipped | None = None
    detached: bool = False
    drained: bool = False
    cleared: bool = False
    settled: bool = False
    inspected: bool = False
    stopped: str = ""  # of its processes, in words

    def enter(self, phase: str) -> None:
        if phase != self.phase:
            self.phase, self.since = phase, time.monotonic()


class LeaderSide:
    """Holds the seats. Before the group has formed a lost member only frees its seat; afterwards it is a failure.

    Raises ConfigError for a command that is too long to be handed over.
    """

    def __init__(
        self,
        group: Group,
        node: m.NodeFacts,
        *,
        run: str,
        command: tuple[str, ...],
        digest: str,
        facts: m.Facts,
        mismatches_warn: bool,
        leader_excluded: bool,
        secrets: Mapping[str, str],
        peer_timeout: float,
        detaches: bool,
        tally: Tally,
        smoke: Smoke | None,
        emit: Callable[[Event], None],
    ) -> None:
        self.group = group
        self.node = node
        self.run = run
        self.seats: dict[int, Seat] = {}
        self.refused = tally.refused
        self.formed = False
        self.stopping = False
        self._complete = asyncio.Event()
        self._said = asyncio.Event()
        self._welcome = m.Welcome(run, node, list(command), dict(secrets), peer_timeout, group.size, facts.kind, smoke)
        if (takes := len(m.encode(self._welcome))) > m.MAX_COMMAND:
            raise ConfigError(
                Fault(
                    f"the command is too long for the group channel: {takes // 1024} KiB",
                    f"at most {m.MAX_COMMAND // 1024} KiB, written as JSON",
                    "put what is long into a file of the image, or of a ConfigMap",
                )
            )
        self._me = m.Join(m.VERSION, group.id, 0, group.size, "", digest, node, detaches, facts=facts)
        self._warn = mismatches_warn
        self._excluded = leader_excluded
        self._told_mismatch = False
        self._peer_timeout = peer_timeout
        self._tally = tally
        self._emit = emit
        self._absences = Absences()
        self._complaints = Complaints()

    @property
    def missing(self) -> list[int]:
        return [index for index in range(1, self.group.size) if index not in self.seats]

    @property
    def all_done(self) -> bool:
        return not self.missing and all(seat.done for seat in self.seats.values())

    def why_missing(self) -> str:
        """The absent members, each with what is known of it."""
        return self._absences.describe(self.missing)

    async def wait_complete(self) -> list[m.NodeFacts]:
        """Until every member has joined; then tells all, and returns the nodes by index."""
        while self.missing:
            self._complete.clear()
            await self._complete.wait()
        self.formed = True
        self._show_facts([seat.join for seat in self.seats.values()])
        nodes = [self.node, *(self.seats[index].node for index in range(1, self.group.size))]
        await self.tell_all(m.Formed(nodes))
        return nodes

    def not_yet(self, state: str) -> list[int]:
        """The members that have not said "equipped", "prepared" or "detached" yet."""
        seats = self.seats
        return [i for i in range(1, self.group.size) if i not in seats or not getattr(seats[i], state)]

    async def wait_all(self, state: str) -> None:
        """Until every member has said "equipped", "prepared", or "detached"."""
        while self.not_yet(state):
            self._said.clear()
            await self._said.wait()

    async def tell_all(self, message: m.Message) -> None:
        frame = m.encode(message)  # once: the nodes of a large group take milliseconds

        async def tell(seat: Seat) -> None:
            with contextlib.suppress(Gone):
                await seat.wire.send_frame(frame)

        await asyncio.gather(*(tell(seat) for seat in self.seats.values()))

    async def wait_empty(self, timeout: float) -> list[int]:
        """Until every member has hung up, at most timeout seconds; those that have not."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self.seats and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return sorted(self.seats)

    async def wait_said(self, state: str, left: Callable[[], float]) -> list[int]:
        """Until every member that is here has said "drained", "settled", "cleared" or "inspected"; in the time left,
        who has not."""
        while late := sorted(index for index, seat in self.seats.items() if not getattr(seat, state)):
            if left() <= 0:
                break
            await asyncio.sleep(0.02)
        return late

    async def hang_up(self) -> None:
        """Close what members have left open: nothing of this run may reach the next."""
        await asyncio.gather(*(seat.wire.close() for seat in self.seats.values()))

    async def handle_join(self, request: web.Request, admitted: Callable[[], None]) -> web.WebSocketResponse:
        """GET /join: a member's connection, for as long as it lasts. admitted is called when it has a seat."""
        # WebSocket's own pings are no part of our protocol: unanswered and counted, they make no work.
        socket = web.WebSocketResponse(max_msg_size=m.MAX_FROM_MEMBER, compress=False, timeout=1.0, autoping=False)
        await socket.prepare(request)
        wire = Wire(socket, self._peer_timeout, self._tally.round_trips)
        seat = await self._admit(wire, request.remote or "?", admitted)
        if seat is not None:
            await self._serve(seat)
        await wire.close()
        return socket

    async def _admit(self, wire: Wire, remote: str, admitted: Callable[[], None]) -> Seat | None:
        try:
            async with asyncio.timeout(JOIN_TIMEOUT):
                join = await wire.receive()
        except (Gone, TimeoutError):
            return None
        except m.BadMessage as error:
            self._complaints.tell(remote, f"turned away {remote}: it sent no join but {error}")
            return None
        if not isinstance(join, m.Join):
            return None
        refusal = self._refusal(join)
        if refusal is not None:
            self.refused[refusal.code] += 1
            # Kept for real places only, so that a stranger cannot fill our memory with made-up ones.
            ours = 0 < join.index < self.group.size and join.group == self.group.id
            if self._absences.refused(join.index if ours else 0, refusal.reason):
                told = f"refused worker {join.index} at {remote}: {refusal.reason}"
                self._complaints.tell(f"{remote} {refusal.code}", told)
            if refusal.mismatch and not self._told_mismatch:
                self._told_mismatch = True
                self._show_facts([*(seat.join for seat in self.seats.values()), join])
            await wire.try_send(refusal)
            return None
        seat = Seat(join.index, join.node, join.incarnation, wire, join)
        let_in = self._mismatches(join)
        # Taken before anything is awaited, so that two joins of one index cannot both pass.
        self.seats[join.index] = seat
        admitted()
        self._absences.joined(join.index)
        self._tally.joined[join.index] += 1
        try:
            await wire.send(self._welcome)
        except Gone:
            del self.seats[join.index]
            if self.formed:
                self._emit(MemberLost(join.index, "lost while it was let in"))
            return None
        log.info(
            "worker %d joined from %s (%s, %d GPUs); %d of %d here",
            join.index, agreement.printable(join.node.ip), agreement.printable(join.node.hostname), join.node.gpus,
            len(self.seats) + 1, self.group.size,
        )  # fmt: skip
        if let_in:
            texts = "; ".join(each.text for each in let_in)
            log.warning("worker %d is let in although (--mismatch warn) %s", join.index, texts)
        self._complete.set()
        return seat

    def _refusal(self, join: m.Join) -> m.Refused | None:
        group = self.group
        if join.version != m.VERSION:
            return m.Refused("protocol", f"it speaks protocol {join.version}, the leader {m.VERSION}: same lwsrun?")
        if join.group != group.id:
            return m.Refused("group", f"it belongs to group {join.group[:256]!r}, this leader leads {group.id!r}")
        if self.stopping:
            return m.Refused("draining", "this leader is stopping")
        if join.left == self.run:
            return m.Refused("run", f"it was lost from run {self.run}, which goes on without it")
        if (takes := m.size_of(join.node)) > m.MAX_NODE:
            # Every member gets it, in one message for the whole group.
            return m.Refused("node", f"its address, host name and versions take {takes} bytes of {m.MAX_NODE}")
        wrong = [each for each in self._mismatches(join) if not self._warn or each.code in agreement.NEVER]
        if wrong:
            command = list(self._welcome.command) if any(each.code == "command" for each in wrong) else None
            return m.Refused(wrong[0].code, "; ".join(each.text for each in wrong), mismatch=True, command=command)
        if not 0 < join.index < group.size:
            reason = f"its index is {join.index}, the leader expects 1 to {group.size - 1}"
            return m.Refused("index", reason, mismatch=True)
        seat = self.seats.get(join.index)
        if seat is not None:
            return m.Refused("taken", f"index {join.index} is taken by {seat.node.ip} ({seat.node.hostname})")
        return None

    def _mismatches(self, join: m.Join) -> list[agreement.Difference]:
        seated = (seat.join for index, seat in sorted(self.seats.items()) if index != join.index)
        gpus_like = next(seated, None) if self._excluded else self._me
        # A command that we do not know may well place its parts on nodes that differ.
        even_gpus = self._me.facts.engine is not None
        return agreement.mismatches(agreement.differences(join, self._me, gpus_like), even_gpus=even_gpus)

    def _show_facts(self, joins: list[m.Join]) -> None:
        members = [self._me, *sorted(joins, key=lambda join: join.index)]
        lines, differing = agreement.table(members, leader_excluded=self._excluded)
        if differing:
            log.warning("the members differ in: %s", ", ".join(differing))
        for line in lines:
            log.info("%s", line)

    async def _serve(self, seat: Seat) -> None:
        error = await seat.wire.until_gone(self._listen(seat))
        what = f"lost: {error}" if error else "lost"
        if self.seats.get(seat.index) is seat:
            del self.seats[seat.index]
            self._absences.left(seat.index, seat.node.ip, what)
        if self.stopping or seat.detached:
            return
        log.warning("%s at %s %s", member_name(seat.index), seat.node.ip, what)
        self._emit(MemberLost(seat.index, what, seat.wire.silent))

    async def _listen(self, seat: Seat) -> None:
        while True:
            message = await seat.wire.receive()
            match message:
                case m.Phase(phase):
                    seat.enter(phase)
                case m.Failed(cause):
                    # The seat speaks for itself alone, whatever index the message claims.
                    honest = replace(cause, index=seat.index, what=cause.what[:1000], head=cause.head[:4096])
                    seat.enter("failed")
                    self._emit(MemberFailed(honest))
                case m.Suspected(what, died, head):
                    self._emit(MemberSuspected(seat.index, what[:1000], died, head[:4096]))
                case m.Hung(what):
                    self._emit(MemberHung(seat.index, what[:1000]))
                case m.Inspected(stopped):
                    seat.inspected, seat.stopped = True, stopped[:1000]
                case m.Leaving(reason):
                    seat.enter("leaving")
                    self._emit(MemberLeaving(seat.index, reason))
                case m.Done():
                    seat.done = True
                    seat.enter("done")
                    self._emit(MemberDone(seat.index))
                case m.Prepared():
                    seat.prepared = True
                    seat.enter("prepared")
                    self._said.set()
                case m.Equipped():
                    seat.equipped = message
                    self._said.set()
                case m.LaunchEnded():
                    self._emit(DaemonEnded(seat.index, replace(message, words=message.words[:1000])))
                case m.Settled():
                    seat.settled = True
                case m.Detached():
                    seat.detached = True
                    self._said.set()
                case m.Drained():
                    seat.drained = True
                case m.Cleared():
                    seat.cleared = True
                case _:
                    raise m.BadMessage(f"a {type(message).__name__.lower()} from a member")
