"""What the checks look at: this pod's place, its node, and what `start` would plan for it. Looked up once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backends.command import Command, detect
from backends.errors import ConfigError
from backends.group import Group, parse_group
from backends.orchestrator import choose
from backends.plan import Node, Plan, Request
from backends.planner import backend_of, make_plan
from backends.ray import TOKEN
from launcher import exits, facts, resolver
from launcher.fabric import interface_of, interfaces
from launcher.settings import Settings
from launcher.supervisor import Supervisor

RESOLVE = 10.0  # seconds
EXPLAIN = 8.0
NODE = 90.0
EXAMPLE = "my-lws-0.my-lws.default"  # a leader's address where only --size is known
LAST_WORDS = 300  # characters of a program's output that are shown


@dataclass(frozen=True)
class Scene:
    """given: the group's identity is the pod's own, else assumed says what is planned instead. addresses are those of
    the leader's name, unresolved why there are none. Of group, node and plan each is None where its error says why.
    """

    settings: Settings
    supervisor: Supervisor
    backend: str = ""
    command: Command | None = None
    group: Group | None = None
    assumed: str = ""
    group_error: ConfigError | None = None
    addresses: tuple[str, ...] = ()
    unresolved: str = ""
    node: Node | None = None
    node_error: str = ""
    request: Request | None = None
    plan: Plan | None = None
    plan_error: ConfigError | None = None
    token_error: ConfigError | None = None
    parse: bool = False

    @property
    def environ(self) -> Mapping[str, str]:
        return self.settings.environ

    @property
    def given(self) -> bool:
        return self.group is not None and not self.assumed

    @property
    def size(self) -> int:
        return self.group.size if self.group is not None else 1

    @property
    def leads(self) -> bool:
        return self.group is None or self.group.is_leader

    async def run(self, argv: Sequence[str], limit: float) -> tuple[int, str]:
        """A program's exit code and all that it says, within so many seconds. Raises CannotStart, TimeoutError."""
        environ = self.plan.environ(self.environ) if self.plan is not None else self.environ
        child = self.supervisor.spawn(os.path.basename(argv[0]), argv, environ, merge=True)
        assert child.stdout is not None
        try:
            async with asyncio.timeout(limit):
                said = await child.stdout.read()
                return await asyncio.shield(child.exited), said.decode(errors="replace")
        finally:
            if child.alive:
                self.supervisor.signal(child, signal.SIGKILL)


async def look(scene: Scene) -> Scene:
    """The pod as it is, for a scene of settings alone. What cannot be learned is said in it, never raised."""
    settings = scene.settings
    try:
        group, assumed = place(settings)
        scene = replace(scene, group=group, assumed=assumed)
    except ConfigError as error:
        scene = replace(scene, group_error=error)
    if settings.argv:
        try:
            scene = replace(scene, backend=backend_of(settings.argv, settings.options), command=detect(settings.argv))
        except ConfigError as error:
            scene = replace(scene, plan_error=error)
    scene = await _with_leader(scene)
    scene = await _with_node(scene)
    return _with_plan(scene)


def place(settings: Settings) -> tuple[Group, str]:
    """This pod's place; and where nothing tells it, what is assumed. Raises ConfigError with every fault."""
    triple = choose(settings.environ, settings.orchestrator).triple
    told = (triple.address, triple.size, triple.index, settings.leader_address, settings.index)
    if all(value is None for value in told):
        size = settings.size or "1"
        group = parse_group({}, leader_address=EXAMPLE, size=size, index="0", group_id=settings.group_id)
        if settings.size is None:
            return group, "this is not a pod of a group (no variables of a controller): looked at as a group of one"
        if group.size > 1:
            return group, f"this is not a pod of a group: looked at as the leader of {group.size} (--size)"
    group = parse_group(
        settings.environ,
        leader_address=settings.leader_address,
        size=settings.size,
        index=settings.index,
        group_id=settings.group_id,
        orchestrator=settings.orchestrator,
    )
    return group, ""


async def _with_leader(scene: Scene) -> Scene:
    if scene.group is None or not scene.given or scene.size == 1:
        return scene
    host = scene.group.leader_address
    try:
        async with asyncio.timeout(RESOLVE):
            return replace(scene, addresses=tuple(await resolver.resolve(host, scene.settings.port)))
    except resolver.Unresolved as error:
        why = str(error)
    except TimeoutError:
        why = f"{resolver.UNRESOLVED}: the system resolver has not answered within {RESOLVE:g} s"
    try:
        async with asyncio.timeout(EXPLAIN):
            return replace(scene, unresolved=await resolver.explain(host))
    except TimeoutError:
        return replace(scene, unresolved=why)


async def _with_node(scene: Scene) -> Scene:
    # Whose interpreter is asked depends on the command, where that is understood.
    settings = scene.settings if scene.command is not None else replace(scene.settings, argv=())
    try:
        async with asyncio.timeout(NODE):
            node = await facts.look(settings, scene.supervisor, scene.backend, size=scene.size)
    except ConfigError as error:
        return replace(scene, node_error=error.faults[0].found)
    except TimeoutError:
        return replace(scene, node_error=f"the driver or the image's Python has not answered within {NODE:g} s")
    if scene.addresses and not scene.leads and scene.settings.pod_ip is None:
        # A worker's address is the one that routes to the leader, as when it joins.
        route = await asyncio.to_thread(_source, scene.addresses[0])
        if route:
            node = replace(node, ip=route, interface=interface_of(route, interfaces()))
    return replace(scene, node=node)


def _source(address: str) -> str:
    """The source address of the route there; sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _with_plan(scene: Scene) -> Scene:
    """As `start` plans before it knows the others: they are taken to be like this pod."""
    if scene.group is None or scene.node is None or not scene.settings.argv or scene.plan_error is not None:
        return scene
    nodes = (scene.node,) * scene.group.size
    given = scene.settings
    request = Request(scene.group, nodes, given.argv, given.options, given.environ, {TOKEN: "of a check"})
    try:
        return replace(scene, request=request, plan=make_plan(request))
    except ConfigError as error:
        return replace(scene, request=request, plan_error=error)


def last_words(said: str) -> str:
    """The last line of a program's output that says something."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][-LAST_WORDS:] if lines else "it said nothing"


def ended(code: int, said: str) -> str:
    return f"{exits.describe(code)}: {last_words(said)}"
