"""The vocabulary of plans: what one pod writes, starts, waits for and runs. Frozen data that prints and compares."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.group import Group
from backends.plan_mpi import Mpi, MpiOptions, MpiTools, SshLogins


@dataclass(frozen=True)
class Gid:
    """One RoCE v2 entry of an RDMA port's address table. own: an interface of this pod has the address."""

    index: int
    address: str
    own: bool


@dataclass(frozen=True)
class RdmaPort:
    """An active port of an RDMA device that this pod may open. link is "InfiniBand" or "Ethernet" (RoCE)."""

    device: str
    port: str
    link: str
    gids: tuple[Gid, ...] = ()


@dataclass(frozen=True)
class Node:
    """What a pod knows of itself, or what is assumed of it before it is known.

    gpus counts devices; shm_bytes is the size of /dev/shm; ray is the version of the image's Ray or None; interface
    is the one that routes to the leader, interfaces the names of all that the pod has, addresses all of theirs. openmpi
    is its Open MPI's version; mpi is known of the own pod only.
    """

    ip: str
    hostname: str
    gpus: int
    gpus_from: str = "assumed"
    interface: str | None = None
    interfaces: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    rdma: tuple[RdmaPort, ...] = ()
    shm_bytes: int | None = None
    python: str = "python3"
    engine_version: str | None = None
    ray: str | None = None
    gpu_model: str | None = None
    driver: str | None = None
    python_version: str | None = None
    openmpi: str | None = None
    mpi: MpiTools | None = None


class Kind(enum.Enum):
    """Whether the main process is expected to end by itself."""

    SERVER = "server"
    JOB = "job"


class Stage(enum.Enum):
    """The earliest moment of a group's life at which a service may start."""

    ADMITTED = "admitted"  # as soon as this pod has its place; does not wait for the others
    FORMED = "formed"  # when every member has joined


@dataclass(frozen=True)
class EnvVar:
    """One variable for the children, with the reason that is logged; a secret's value is never shown."""

    name: str
    value: str
    reason: str
    secret: bool = False


@dataclass(frozen=True)
class Unset:
    """A variable of the pod that the children must not see, with the reason that is logged."""

    name: str
    reason: str


@dataclass(frozen=True)
class File:
    """A file to write before anything is started; mode is the permission bits."""

    path: str
    content: str
    mode: int
    reason: str


@dataclass(frozen=True)
class PortOpen:
    """Passed when host:port accepts a TCP connection."""

    host: str
    port: int
    what: str

    def describe(self) -> str:
        return f"{self.what} at {join_host_port(self.host, self.port)} accepts connections"


@dataclass(frozen=True)
class RayNodes:
    """Passed when Ray's GCS shows every node alive with its GPUs; asked by a child of the image's Python.

    gpus maps a node's IP to the GPUs that it must offer.
    """

    address: str
    gpus: tuple[tuple[str, int], ...]
    python: str

    def describe(self) -> str:
        total = sum(count for _, count in self.gpus)
        return f"Ray's GCS at {self.address} shows {len(self.gpus)} nodes alive with {total} GPUs"


Gate = PortOpen | RayNodes | SshLogins


@dataclass(frozen=True)
class InFlight:
    """Where an engine tells how many requests it has.

    metrics is a Prometheus page on which the sum of the gauges is what the engine works on; it lags by a step, so a
    prompt that is just being read may be missing. load is a JSON page with the server's own count under load_key; a
    client that went away may be left in it.
    """

    metrics: str
    gauges: tuple[str, ...]
    load: str | None = None
    load_key: str = ""


@dataclass(frozen=True)
class Progress:
    """A Prometheus page on which an engine tells that it works (a gauge in busy above zero) and that it gets on (one of
    the counters in steps moves), each by the label `engine` where it has several.

    completions, models: OpenAI's pages, for a request of our own: one that reaches an engine which stands still already
    is counted nowhere. key: what they want to be shown.
    """

    metrics: str
    busy: tuple[str, ...]
    steps: tuple[str, ...]
    completions: str
    models: str
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Health:
    """Where an engine tells whether it serves: 200 to 399 for a GET of url, asked over loopback; with tcp://HOST:PORT,
    that it accepts a connection.

    otherwise: asked instead where the engine does not know url, or keeps it to those with a key. through: as url, but
    answered only when the ranks of every pod have taken part; it costs them a step. progress: what tells that they do
    while it has requests.
    """

    url: str
    otherwise: str | None = None
    through: str | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Service:
    """A helper process that lives as long as the engine.

    watch names descendants that must stay alive: Ray's `--block` outlives the raylet that it stands for.
    ranks: as in Main, where an engine's processes are a service's descendants.
    """

    name: str
    argv: tuple[str, ...]
    stage: Stage
    gates: tuple[Gate, ...] = ()
    watch: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Main:
    """The process whose end is the end of this pod's part.

    serves: where it accepts connections once it has started; until then it may lose a SIGTERM.
    asked_alone: asked to stop, it ends its children itself, in its order; else its whole process group is asked.
    in_flight: for an engine that drops its requests when it is asked to stop: it is asked once it has none.
    ranks: what the names of its own processes contain without which it cannot serve. The engine ends when one of them
    does, but on another node that may be noticed sooner.
    health: where it tells whether it serves, if this pod has clients.
    fails_with: what the line of its output begins with that tells why it failed; empty where there is none.
    """

    argv: tuple[str, ...]
    kind: Kind
    serves: PortOpen | None = None
    asked_alone: bool = False
    in_flight: InFlight | None = None
    ranks: tuple[str, ...] = ()
    health: Health | None = None
    fails_with: str = ""


@dataclass(frozen=True)
class Plan:
    """All that one pod does. main is None where services are the pod's whole part (a Ray worker)."""

    backend: str
    mode: str
    reason: str
    kind: Kind
    env: tuple[EnvVar, ...] = ()
    unset: tuple[Unset, ...] = ()
    files: tuple[File, ...] = ()
    services: tuple[Service, ...] = ()
    gates: tuple[Gate, ...] = ()
    main: Main | None = None
    mpi: Mpi | None = None  # how its ranks are started: what the launcher makes ready before mpirun, or the agent
    leader_only: bool = False  # only the leader has a main process: its end is the job's
    all_answer: bool = False  # every pod has clients of its own: no engine ends before all have answered theirs
    agreed: tuple[str, ...] = ()  # what each pod derives by itself, like the mode, and all must have the same
    decisions: tuple[str, ...] = ()  # what was added to the command, and why, one line each
    notes: tuple[str, ...] = ()

    def environ(self, given: Mapping[str, str]) -> dict[str, str]:
        """What the pod was given, as its children get it."""
        gone = {variable.name for variable in self.unset}
        kept = {name: value for name, value in given.items() if name not in gone}
        return kept | {variable.name: variable.value for variable in self.env}


@dataclass(frozen=True)
class Smoke:
    """How a smoke run is done. timeout: of each of its steps, in seconds.

    first: one goes before the engine. procs_per_node: None for one for each GPU, without GPUs one. backend: auto, nccl
    or gloo. slow: how many times slower than the usual a pair of nodes is bad; None for the backend's own.
    """

    first: bool = False
    backend: str = "auto"
    procs_per_node: int | None = None
    timeout: float = 60.0
    port: int = 29470
    slow: float | None = None
    format: str = "text"


@dataclass(frozen=True)
class Options:
    """What the user chose that is neither identity nor command. Times in seconds.

    answering: how long an engine that was asked to stop may go on with the requests that it has.
    leader_excluded: index 0 has no part in the layout; its GPUs, if any, do not count.
    preset, await_workers: for a command that runs as it is; whose variables it gets, and the port of the workers that
    the leader waits for.
    channel_port: where the launchers listen; no engine may be given it.
    vllm_mode: how vLLM spans the nodes; auto derives it from its flags.
    health_url: where the engine tells whether it serves, when that is not known.
    """

    backend: str = "auto"
    kind: Kind | None = None
    env: tuple[tuple[str, str], ...] = ()
    ray_port: int = 6379
    peer_timeout: float = 15.0
    answering: int = 15
    leader_excluded: bool = False
    preset: str | None = None
    await_workers: int | None = None
    channel_port: int = 9470
    vllm_mode: str = "auto"
    health_url: str | None = None
    smoke: Smoke = field(default_factory=Smoke)
    mpi: MpiOptions = field(default_factory=MpiOptions)


@dataclass(frozen=True)
class Request:
    """Everything that a backend decides from.

    nodes holds one Node per index, this pod's own at nodes[group.index]; while the group gathers, the others are
    assumed to be like it. environ is the pod's environment, with --env when a backend sees it (what the user set is
    left alone).
    secrets are minted per run by the leader, never by a backend.
    """

    group: Group
    nodes: tuple[Node, ...]
    argv: tuple[str, ...]
    options: Options = field(default_factory=Options)
    environ: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)

    @property
    def node(self) -> Node:
        return self.nodes[self.group.index]

    @property
    def leader(self) -> Node:
        return self.nodes[0]

    def gpus_of(self, index: int) -> int:
        """The GPUs that a member brings into the group."""
        return 0 if index == 0 and self.options.leader_excluded else self.nodes[index].gpus


def join_host_port(host: str, port: int) -> str:
    """host:port, with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unless_set(request: Request, *variables: EnvVar) -> tuple[EnvVar, ...]:
    """Of these variables, those that the user has not set: what the user set is left alone."""
    return tuple(v for v in variables if v.name not in request.environ)
