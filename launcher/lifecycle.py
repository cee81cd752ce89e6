"""The story of a pod's life, in order: identify, look around, gather, prepare, load, serve, wind down, report.

`story` is what should happen; `decide` is the one loop that sees everything that does happen; judge.py turns the first
thing that ends this life into an Ending; drain.py carries the ending out. Nothing else ends the pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backends.errors import ConfigError, Fault
from backends.group import Group, parse_group
from backends.layout import LayoutError
from backends.plan import Node, Plan, Request, Service, Stage
from backends.planner import backend_of, make_plan
from backends.ray import TOKEN
from launcher import exits, facts
from launcher import log as logs
from launcher.channel.events import Event, HelperLost, ProcessEnded, RankLost, SignalCaught, StoryEnded
from launcher.channel.messages import Done, Phase, Stop
from launcher.descendants import watch_helpers, watch_ranks
from launcher.detach import detach
from launcher.drain import MAIN, Drain
from launcher.files import write_files
from launcher.formation import all_here, gather, join, open_port, take_port
from launcher.gates import pass_gate
from launcher.health import EngineHealth, watch_engine
from launcher.judge import judge
from launcher.log import log
from launcher.phases import load
from launcher.report import Ending, cannot_start, last_line, write_termination_message
from launcher.restarts import Restarts, begin_epoch, restarted
from launcher.settings import Settings
from launcher.shared_memory import listing
from launcher.supervisor import TERMINAL_STOPS, CannotStart, Child, Supervisor, locate
from launcher.suspicion import Suspect
from launcher.tally import Tally
from launcher.telling import Telling
from launcher.waiting import both

if TYPE_CHECKING:
    from launcher.channel.leader import LeaderSide
    from launcher.channel.member import MemberSide
    from launcher.channel.tls import Tls
    from launcher.mpi.run import MpiRun
    from launcher.watchers import Watchers

WORDS = 0.05  # seconds for the last output of a process that has ended


async def live(settings: Settings) -> int:
    """One pod, from its first moment to its exit code; with --max-restarts through several epochs of its group."""
    logs.set_up("starting", settings.log_format)
    pod = Pod(settings, Supervisor(lambda caught: pod.emit(SignalCaught(caught)), settings.report_bytes))
    pod.shared_memory = listing()
    for cut in settings.budget.cuts:
        log.warning("%s", cut)
    if not pod.supervisor.reaps_orphans:
        log.warning("neither PID 1 nor a sub-reaper (the kernel refuses): orphans of the engine are not seen here")
    while (ending := await live_through(pod)).restart is not None and not pod.signals:
        log.warning("restart in place in %.1f s, because %s", ending.restart, ending.why)
        pod = pod.next_epoch(ending.restart)
    line = last_line(pod.group, ending)
    if ending.exit_code:
        write_termination_message(settings.termination_log, line, ending.cause)
    (log.error if ending.exit_code else log.info)("%s", line)
    if ending.cause is not None and ending.cause.configuration and os.getpid() == 1 and not pod.signals:
        await Drain(pod).hold()
    pod.supervisor.close()
    return ending.exit_code


async def live_through(pod: Pod) -> Ending:
    """One epoch: how it ended, with nothing of it left."""
    story = asyncio.create_task(pod.story())
    story.add_done_callback(pod.story_ended)
    ending = await pod.decide()
    story.cancel()
    await asyncio.wait([story])
    return await Drain(pod).carry_out(restarted(pod, ending))


class Pod:
    """What a pod knows and holds during one epoch of its group: one run of the engines, from gathering to the end."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self.settings = settings
        self.supervisor = supervisor
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.emit: Callable[[Event], None] = self.events.put_nowait
        self.tally = Tally()
        self.restarts = Restarts(settings.max_restarts, settings.restart_reset)  # what the leader grants
        self.epoch = 1
        self.pause = 0.0  # seconds before this epoch begins
        self.left = ""  # the run of the epoch before
        self.shared_memory: frozenset[str] = frozenset()  # what was in /dev/shm before the first epoch
        self.born = time.monotonic()
        self.paused = 0.0  # seconds of its age that were the pause before it
        self.phase = "starting"
        self.phases: dict[str, float] = {"starting": 0.0}
        self.group: Group | None = None
        self.node: Node | None = None
        self.run = ""
        self.argv = settings.argv
        self.secrets: dict[str, str] = {}
        self.request: Request | None = None  # what the plan was made from
        self.plan: Plan | None = None
        self.children: dict[str, Child] = {}
        self.telling = Telling()
        smoke = settings.options.smoke
        self.smoke_due = smoke if smoke.first else None  # on a worker its leader's word
        self.finished = False
        self.leader: LeaderSide | None = None
        self.member: MemberSide | None = None
        self.watchers: Watchers | None = None
        self.tls: Tls | None = None  # with a token: how members of this group know each other
        self.sockets: list[socket.socket] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.watches: list[asyncio.Task[None]] = []
        self.mpi: MpiRun | None = None
        self.leftovers = contextlib.ExitStack()  # what must be gone when this epoch is over
        self.signals = 0  # how often we were asked to stop
        self.asked: Ending | None = None  # the ending that the first time is
        self.kept_signals: list[int] = []  # for an engine that is not there yet
        self.served_since: float | None = None  # when the engine began to, where that can be seen
        self.health: EngineHealth | None = None  # of an engine that has clients in this pod
        self.hang_inspected = False
        self.suspects: list[Suspect] = []  # ranks that have ended, here and on the leader those of members
        self.stop: Stop | None = None  # what the leader made of the group's first failure
        loop = asyncio.get_running_loop()
        self.told: asyncio.Future[None] = loop.create_future()  # by the leader, or it is gone
        self.restarts_too: asyncio.Future[bool] = loop.create_future()  # whether the leader does, or it is gone
        self.leader_drains = False  # then our engine may end before we are told to stop

    # ------------------------------------------------------------------ what should happen

    async def story(self) -> None:
        """From nothing to a running engine. Raises ConfigError, CannotStart, GateFailed or GatherTimeout."""
        if self.epoch > 1:
            await begin_epoch(self)
        group = self.identify()
        await self.look_around(group)
        if group.size == 1:
            self.plan_for(group, (self.the_node,))
            take_port(self)
            takes_long = self.smoke_due or self.the_plan.services or self.the_plan.gates
            if takes_long and not self.settings.exec:  # probes want answers meanwhile
                await both(self.serve(), open_port(self, group))
            else:
                await self.serve()
                # Last: the HTTP library takes longer to load than everything before.
                await open_port(self, group)
        elif group.is_leader:
            self.run = secrets.token_hex(4)
            self.secrets[TOKEN] = secrets.token_hex(32)
            # The head of a Ray cluster needs nobody else: it starts while the group gathers.
            plan = self.plan_for if self.settings.mismatch == "refuse" else self.foresee
            plan(group, (self.the_node,) * group.size)
            take_port(self)
            await open_port(self, group)
            _, nodes = await both(self.start_services(Stage.ADMITTED), gather(self, group))
            self.plan_for(group, nodes)
            await self.serve()
        else:
            if self.argv:  # faults that this pod can see by itself are told before anything waits
                self.foresee(group, (self.the_node,) * group.size)
            take_port(self)
            await open_port(self, group)
            group, leader = await join(self, group)
            self.foresee(group, (leader, *(self.the_node,) * (group.size - 1)))
            _, nodes = await both(self.start_services(Stage.ADMITTED), all_here(self, group))
            self.plan_for(group, nodes)
            await self.serve()

    def identify(self) -> Group:
        given = self.settings
        self.group = group = parse_group(
            given.environ,
            leader_address=given.leader_address,
            size=given.size,
            index=given.index,
            group_id=given.group_id,
            orchestrator=given.orchestrator,
        )
        logs.set_up("leader" if group.is_leader else f"worker {group.index}", given.log_format)
        if self.epoch == 1:
            if group.told_by:
                log.info("%s of %d, as told by %s", group.me, group.size, group.told_by)
            for doubt in group.doubts:
                log.warning("%s", doubt)
        if not given.argv and (group.is_leader or group.size == 1):
            raise ConfigError(Fault("the leader has no command", "lwsrun start -- COMMAND [ARGUMENT ...]"))
        if given.token is None and group.is_leader and group.size > 1 and self.epoch == 1:
            log.warning("no LWSRUN_TOKEN: whoever is on the pod network can join this group until it is complete")
        return group

    async def look_around(self, group: Group) -> None:
        """Learn this node's facts; refuse a command that could not be executed."""
        backend = ""
        if self.argv:
            backend = backend_of(self.argv, self.settings.options)
            try:
                locate(self.argv[0], self.settings.environ)
            except CannotStart as error:
                raise cannot_start(error) from None
        self.node = await facts.look(replace(self.settings, argv=self.argv), self.supervisor, backend)

    @property
    def the_node(self) -> Node:
        assert self.node is not None
        return self.node

    def plan_for(self, group: Group, nodes: tuple[Node, ...]) -> None:
        """Plan with what is known now. What has started already is the same in every plan of a run."""
        self.request = Request(group, nodes, self.argv, self.settings.options, self.settings.environ, self.secrets)
        self.plan = make_plan(self.request)
        self.telling.choice(self.plan)

    def foresee(self, group: Group, nodes: tuple[Node, ...]) -> None:
        """Plan while others are assumed to be like those that are known: a layout may not fit them, but the group."""
        try:
            self.plan_for(group, nodes)
        except LayoutError:
            self.plan = None

    async def serve(self) -> None:
        """Everything after the group has formed: files, services, gates, the main process."""
        plan = self.the_plan
        if self.smoke_due:
            from launcher.smoke.first import smoke_first

            await smoke_first(self)
        write_files(plan)
        if plan.mpi is not None:
            from launcher.mpi.run import prepare

            await prepare(self)
        await self.start_services(Stage.FORMED)
        self.telling.environment(plan)
        self.telling.decisions(plan)
        if plan.gates:
            self.enter("preparing")
        for gate in plan.gates:
            await pass_gate(gate, self.supervisor, self.environ(), self.settings.report_every)
            log.info("%s, after %.2f s", gate.describe(), self.took())
        if self.watches:
            await asyncio.gather(*self.watches)
        if self.settings.exec:
            await detach(self)
        elif plan.main is not None:
            log.info("running: %s", shlex.join(plan.main.argv))
            engine = self.start(MAIN, plan.main.argv, keep_stdin=plan.mpi is None)
            self.background(self.supervisor.deliver(engine, self.kept_signals))
            self.watch_ranks(engine, plan.main.ranks)
            watch_engine(self, plan.main)
            if self.mpi is not None:
                self.mpi.attend(engine)
            if os.getpid() == 1 and os.path.isabs(__file__):
                os.chdir("/")  # from here on we hold no mount
            self.enter("serving" if plan.main.serves is None else "loading")
            self.background(load(self, plan.main, engine))
            return
        self.enter("serving")

    @property
    def the_plan(self) -> Plan:
        assert self.plan is not None
        return self.plan

    async def start_services(self, stage: Stage) -> None:
        for service in self.plan.services if self.plan else ():
            if service.name not in self.children and stage in (service.stage, Stage.FORMED):
                await self.start_service(service)

    async def start_service(self, service: Service) -> None:
        self.telling.environment(self.the_plan)
        for gate in service.gates:
            await pass_gate(gate, self.supervisor, self.environ(), self.settings.report_every)
        log.info("starting %s: %s", service.name, shlex.join(service.argv))
        child = self.start(service.name, service.argv)

        def lost(process: str) -> None:
            self.emit(HelperLost(child.name, process, child.keepsake.text()))

        self.watches.append(asyncio.create_task(watch_helpers(child, service.watch, lost)))
        self.watch_ranks(child, service.ranks)

    def watch_ranks(self, child: Child, ranks: Sequence[str]) -> None:
        def lost(what: str, code: int | None) -> None:
            self.emit(RankLost(child.name, what, code))

        self.background(watch_ranks(child, ranks, lost))

    def environ(self) -> Mapping[str, str]:
        return self.the_plan.environ(self.settings.environ)

    def start(self, name: str, argv: tuple[str, ...], keep_stdin: bool = False) -> Child:
        try:
            # After --exec nobody would read a pipe of ours any more.
            child = self.supervisor.spawn(name, argv, self.environ(), bare=self.settings.exec, keep_stdin=keep_stdin)
        except CannotStart as error:
            raise cannot_start(error) from None
        self.children[name] = child
        self.background(self.await_end(child))
        return child

    async def await_end(self, child: Child) -> None:
        code = await asyncio.shield(child.exited)
        # Not longer: an orphan may hold the pipes open, and whoever speaks first is taken for the first cause.
        await asyncio.to_thread(child.join_output, WORDS)
        ended = ProcessEnded(child.name, code, child.keepsake.text())
        self.emit(ended if self.mpi is None else await self.mpi.weigh(child, ended))

    # ------------------------------------------------------------------ what does happen

    async def decide(self) -> Ending:
        """The first event that ends this life, as an Ending."""
        while True:
            ending = judge(self, await self.events.get())
            if ending is not None:
                return ending

    def pass_on(self, number: int) -> None:
        """A signal that is the engine's; one that comes too early is kept for it."""
        main = self.children.get(MAIN)
        if main is not None or number in TERMINAL_STOPS:
            self.supervisor.forward(main, number)
        elif self.settings.exec:
            log.warning("%s: dropped, because with --exec nobody is left to deliver it", exits.signal_name(number))
        elif number not in self.kept_signals:
            self.kept_signals.append(number)
            log.info("%s: kept until there is an engine that takes it", exits.signal_name(number))

    def next_epoch(self, pause: float) -> Pod:
        """The same pod in the next epoch of its group. What still happens to the old one reaches nobody."""
        pod = Pod(self.settings, self.supervisor)
        pod.epoch, pod.pause, pod.left = self.epoch + 1, pause, self.run
        pod.restarts, pod.shared_memory, pod.tally = self.restarts, self.shared_memory, self.tally
        pod.smoke_due = self.smoke_due
        pod.kept_signals = [] if MAIN in self.children else self.kept_signals
        pod.watchers, pod.sockets, pod.group, pod.tls = self.watchers, self.sockets, self.group, self.tls
        if pod.watchers is not None:
            pod.watchers.pod = pod
        while not self.events.empty():
            event = self.events.get_nowait()
            if isinstance(event, SignalCaught):
                pod.emit(event)
        return pod

    def job_done(self) -> Ending | None:
        self.finished = True
        self.enter("done")
        if self.member is not None:
            self.background(self.member.tell(Done()))
            return None
        return self.all_done()

    def all_done(self) -> Ending | None:
        """A job has ended when it ended with 0 on every member that runs it."""
        if not self.finished:
            return None
        if self.leader is not None and not self.the_plan.leader_only and not self.leader.all_done:
            return None
        return Ending("the job is done", exits.OK)

    def story_ended(self, story: asyncio.Task[None]) -> None:
        if not story.cancelled() and (error := story.exception()) is not None:
            self.emit(StoryEnded(error if isinstance(error, Exception) else RuntimeError(repr(error))))

    # ------------------------------------------------------------------ small things

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.phases.setdefault(phase, round(self.age(), 3))
        if self.member is not None and self.member.wire is not None:
            self.background(self.member.tell(Phase(phase)))

    def age(self) -> float:
        return time.monotonic() - self.born

    def took(self) -> float:
        """Seconds since this epoch began, without the pause before it."""
        return self.age() - self.paused

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
