"""What a simulation is asked to do, handed from the command to the sandbox and to each pod as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import ourselves

NAMESPACE = "default"
LWS = "sim"
DOMAIN = "cluster.local"
GATEWAY = "10.244.0.1"
PREFIX = 16
FIRST = 10  # the last byte of the first leader's address
ADDRESSES = 65_000  # then they are used again
PREVIOUS = -1  # the generation of the group that was there before: its addresses are not among the others
PREVIOUS_FIRST = 65_290

STOP, RECREATE, RESTART = "stop", "RecreateGroupOnPodRestart", "None"
WRAPPED = ("engine-exit", "slow-start")  # faults that need a process of ours in front of the engine
LEADER_CREATED, LEADER_READY = "LeaderCreated", "LeaderReady"


@dataclass(frozen=True)
class Fault:
    """One injected fault: what happens to which pod, `after` seconds past the moment `since` (start or a phase).

    lasts: seconds after which it is undone, None for never; for what only delays (slow-start, late-dns) and for
    stale-leader it is how long. code: the exit code of engine-exit. text: as the user wrote it.
    """

    what: str
    index: int = 0
    since: str = "start"
    after: float = 0.0
    lasts: float | None = None
    code: int | None = None
    text: str = dataclasses.field(default="", compare=False)


@dataclass(frozen=True)
class Spec:
    """isolated: namespaces for each pod; else plain processes on loopback addresses. Sizes in bytes, times in s.

    A generation is one life of a pod: 0 is the first, each recreation of the group, or restart of its container, the
    next.
    """

    size: int
    command: list[str]
    worker_command: list[str] | None  # None: the same
    start_options: list[str]
    environ: dict[str, str]
    directory: str
    isolated: bool
    shm_bytes: int
    port: int
    publish: list[tuple[int, int]]  # (inherited listening descriptor, port of the leader)
    then: str | None
    faults: list[Fault]
    restart_policy: str
    startup_policy: str
    max_recreations: int
    keep_logs: str | None
    colour: bool
    verb: str = "start"  # or "smoke", which has no command
    root_fs: str | None = None  # an image's root file system, which the pods run from
    root_env: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # the image's own variables
    root_user: tuple[int, int] | None = None  # None: root

    def host(self, index: int) -> str:
        """The pod's host name, as LWS names pods of the first group."""
        return f"{LWS}-0" if index == 0 else f"{LWS}-0-{index}"

    def command_of(self, index: int) -> list[str]:
        """What stands in this pod's template: the leader's and the worker's may differ. Behind the wrapper, in every
        pod so that they still compare equal, when a fault needs it."""
        command = self.command if index == 0 or self.worker_command is None else self.worker_command
        if not command or not any(fault.what in WRAPPED for fault in self.faults):
            return command
        return ourselves.command("launcher.simulate.faults.wrapper", self.directory, "--", *command)

    def ip(self, index: int, generation: int = 0) -> str:
        """A recreated pod has a new address; one whose container was restarted keeps its own."""
        if generation == PREVIOUS:
            number = PREVIOUS_FIRST + index
        else:
            earlier = self.size * generation if self.restart_policy == RECREATE else 0
            number = FIRST + (earlier + index) % ADDRESSES
        return f"10.244.{number // 256}.{number % 256}" if self.isolated else f"127.0.{number // 256}.{number % 256}"

    def directory_of(self, index: int, generation: int = 0) -> Path:
        """What the simulation keeps of this life of the pod."""
        return Path(self.directory) / (self.host(index) + (f".{generation}" if generation else ""))

    def link(self, index: int, generation: int = 0) -> str:
        """The name of the pod's link at the bridge."""
        return f"pod{index}" + (f".{generation}" if generation else "")

    def leader_address(self, generation: int) -> str:
        """As the webhook injects it; plain loopback has no DNS of its own, so there it is the address."""
        return f"{LWS}-0.{LWS}.{NAMESPACE}" if self.isolated else self.ip(0, generation)

    def faults_of(self, what: str) -> list[Fault]:
        return [fault for fault in self.faults if fault.what == what]


def order_file(spec: Spec, index: int) -> Path:
    """Where the simulation writes the exit code with which the pod's engine is to end now; taken once."""
    return Path(spec.directory) / f"engine-exit-{index}"


def dump(spec: Spec) -> str:
    return json.dumps(dataclasses.asdict(spec))


def load(text: str) -> Spec:
    data: dict[str, Any] = json.loads(text)
    data["faults"] = [Fault(**fault) for fault in data["faults"]]
    data["publish"] = [(fd, port) for fd, port in data["publish"]]
    data["root_user"] = tuple(data["root_user"]) if data["root_user"] else None
    return Spec(**data)
