"""What a simulation is asked to do, handed from the command to the sandbox and to each pod as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

NAMESPACE = "default"
LWS = "sim"
DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Fault:
    """One injected fault: what happens to which pod, `after` seconds past the moment `since` (start or a phase)."""

    what: str
    index: int
    since: str
    after: float


@dataclass(frozen=True)
class Spec:
    """isolated: namespaces for each pod; else plain processes on loopback addresses. Sizes in bytes, times in s."""

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
    keep_logs: str | None
    colour: bool

    def host(self, index: int) -> str:
        """The pod's host name, as LWS names pods of the first group."""
        return f"{LWS}-0" if index == 0 else f"{LWS}-0-{index}"

    def command_of(self, index: int) -> list[str]:
        """What stands in this pod's template: the leader's and the worker's may differ."""
        return self.command if index == 0 or self.worker_command is None else self.worker_command

    def ip(self, index: int) -> str:
        number = 10 + index
        return f"10.244.{number // 256}.{number % 256}" if self.isolated else f"127.0.{number // 256}.{number % 256}"

    @property
    def leader_address(self) -> str:
        """As the webhook injects it; plain loopback has no DNS of its own, so there it is the address."""
        return f"{LWS}-0.{LWS}.{NAMESPACE}" if self.isolated else self.ip(0)


GATEWAY = "10.244.0.1"
PREFIX = 16


def dump(spec: Spec) -> str:
    return json.dumps(dataclasses.asdict(spec))


def load(text: str) -> Spec:
    data: dict[str, Any] = json.loads(text)
    data["faults"] = [Fault(**fault) for fault in data["faults"]]
    data["publish"] = [(fd, port) for fd, port in data["publish"]]
    return Spec(**data)
