"""What a command of vLLM asks for, and how its flags are brought to this pod's form."""

from __future__ import annotations

from dataclasses import dataclass

from backends import argv, rendezvous
from backends.argv import Flag
from backends.command import Command
from backends.errors import ConfigError, Fault
from backends.layout import LayoutError
from backends.plan import Kind, Request
from backends.versions import known_to_be_older
from backends.vllm_flags import (
    API_SERVERS,
    CONFIG,
    DEFAULT_MASTER_PORT,
    DP,
    EXECUTOR,
    GRPC,
    GRPC_PORT,
    HEADLESS,
    MASTER_ADDR,
    MASTER_PORT,
    NNODES,
    NODE_RANK,
    PCP,
    PP,
    TP,
)

NATIVE_FLAGS = (NNODES, NODE_RANK, MASTER_ADDR, HEADLESS)


@dataclass(frozen=True)
class Asked:
    """A command of vLLM in its group: the degrees that it names, 1 where it names none."""

    request: Request
    command: Command
    kind: Kind
    tensor: int
    pipeline: int
    context: int
    data: int
    executor: str | None

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.command.arguments

    @property
    def world(self) -> int:
        """The ranks, and so the GPUs, of one replica of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def axes(self) -> list[tuple[str, int]]:
        axes = [("TP", self.tensor), ("PP", self.pipeline)]
        return [*axes, ("PCP", self.context)] if self.context > 1 else axes

    @property
    def sized(self) -> bool:
        """Whether the sizes are known: without any in the flags they may stand in a --config file."""
        return not self.has(CONFIG) or any(self.has(flag) for flag in (TP, PP, PCP, DP))

    def has(self, flag: Flag) -> bool:
        return argv.given(self.arguments, flag)


def read(request: Request, command: Command) -> Asked:
    """Raises ConfigError for a degree that is no number."""
    arguments = command.arguments
    tensor, pipeline, context, data = (argv.whole_number(arguments, flag, 1) for flag in (TP, PP, PCP, DP))
    kind = request.options.kind or Kind.SERVER
    return Asked(request, command, kind, tensor, pipeline, context, data, argv.text(arguments, EXECUTOR))


class Edit:
    """The command on its way to this pod's form. A flag that the user gave stays, when it says what the group says."""

    def __init__(self, asked: Asked) -> None:
        self.request = asked.request
        self.arguments = asked.arguments
        self.added: list[str] = []
        self.changed: list[str] = []
        self.ports = {asked.request.options.channel_port: "lwsrun itself"} if asked.request.group.size > 1 else {}

    def number(self, flag: Flag, value: int, meaning: str) -> None:
        """Raises LayoutError for another number: with it this pod would wait for peers that never come."""
        given = argv.last(self.arguments, flag)
        if given is None:
            self._add(flag, str(value))
        elif argv.whole_number(self.arguments, flag, value, lowest=0) != value:
            raise LayoutError(
                Fault(
                    f"{given.text} is {given.value}, but {meaning} is {value}",
                    f"{flag.name} {value} on {self.request.group.me}",
                    f"leave {flag.name} out: lwsrun gives every pod its own",
                )
            )

    def leader(self, flag: Flag) -> None:
        """The leader's address as an IP: the leader binds there, and a name may not resolve before it is ready."""
        given, ip = argv.last(self.arguments, flag), self.request.leader.ip
        if given is None:
            self._add(flag, ip)
            return
        host = given.value or ""
        rendezvous.refuse_variable(given.text, host, f"the leader's address, such as {ip}")
        if not rendezvous.is_leader(host, self.request):
            raise ConfigError(rendezvous.not_the_leader(given.text, host, self.request))
        if host != ip:
            self.arguments = argv.add(argv.without(self.arguments, (flag,)), flag, ip)
            self.changed.append(f"{given.text} {host} is given as {ip}: a name may not resolve yet")

    def port(self, flag: Flag, default: int) -> int:
        """The port at which the leader listens for the others."""
        port = argv.whole_number(self.arguments, flag, default)
        if not argv.find(self.arguments, flag):
            self._add(flag, str(port))
        self.takes(port, flag.name)
        return port

    def takes(self, port: int, whose: str) -> None:
        """Raises ConfigError for a port that something else of this pod has: what comes second could not listen."""
        other = self.ports.setdefault(port, whose)
        if other != whose:
            raise ConfigError(
                Fault(f"port {port} is that of {whose} and of {other}", "a port of its own for each", f"change {whose}")
            )

    def switch(self, flag: Flag, value: str | None = None) -> None:
        """Raises ConfigError where the user switched it off."""
        if argv.given(self.arguments, flag):
            return
        if not flag.takes_value and argv.switched(self.arguments, flag) is False:
            off = flag.negation.name
            raise ConfigError(
                Fault(
                    f"{off}, but this mode is that of {flag.name}", f"no {off}", "leave it out, or choose another mode"
                )
            )
        self._add(flag, value)

    def headless(self) -> None:
        """A pod without API server: the flags of one are left out, because vLLM refuses or prefers them."""
        self.switch(HEADLESS)
        for flag in (API_SERVERS, GRPC, GRPC_PORT):
            if argv.find(self.arguments, flag):
                self.arguments = argv.without(self.arguments, [flag])
                self.changed.append(f"left out {flag.name}: this pod has no API server")

    def nodes(self) -> None:
        group = self.request.group
        self.number(NNODES, group.size, "the group's size")
        self.number(NODE_RANK, group.index, "this pod's index")
        self.leader(MASTER_ADDR)
        self.takes(argv.whole_number(self.arguments, MASTER_PORT, DEFAULT_MASTER_PORT), MASTER_PORT.name)

    def decisions(self, why: str) -> tuple[str, ...]:
        return (*((f"{' '.join(self.added)}: {why}",) if self.added else ()), *self.changed)

    def _add(self, flag: Flag, value: str | None = None) -> None:
        self.arguments = argv.add(self.arguments, flag, value)
        self.added += [flag.name] if value is None else [flag.name, value]


def refuse_headless_leader(asked: Asked) -> None:
    if asked.request.group.is_leader and asked.has(HEADLESS):
        raise ConfigError(
            Fault(
                "--headless on the leader: nobody would serve",
                "--headless on workers only",
                "leave it out: lwsrun adds it where it belongs",
            )
        )


def refuse_older(asked: Asked, since: tuple[int, ...], what: str, remedy: str) -> None:
    """Only a version that is known to lack it; one that is not known may have it."""
    version = asked.request.node.engine_version
    if known_to_be_older(version, since):
        raise ConfigError(Fault(f"vLLM {version} has no {what}", f"{'.'.join(map(str, since))} or newer", remedy))


def even_gpus(asked: Asked, why: str, remedy: str = "") -> int:
    """The GPUs of every node. Raises LayoutError where nodes differ."""
    counts = {node.gpus for node in asked.request.nodes}
    if len(counts) > 1:
        shown = " + ".join(str(node.gpus) for node in asked.request.nodes)
        raise LayoutError(Fault(f"the nodes have {shown} GPUs: {why}", "as many GPUs on every node", remedy))
    return counts.pop()
