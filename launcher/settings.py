"""What argv and the environment say, read once by the CLI; nothing below reads either again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.plan import Options
from launcher.budget import Budget
from launcher.output import HEAD

PORT = 9470
READY_WHEN = ("launcher", "group", "engine")
TERMINATION_LOG = "/dev/termination-log"  # Kubernetes' default terminationMessagePath; the kubelet makes the file


@dataclass(frozen=True)
class Settings:
    """Times are in seconds. environ is the pod's environment; the identity's flags stay text until validated."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    token: bytes | None = field(default=None, repr=False)  # the group's shared secret
    leader_address: str | None = None
    size: str | None = None
    index: str | None = None
    group_id: str | None = None
    orchestrator: str = "auto"  # whose variables tell the identity
    options: Options = field(default_factory=Options)
    gpus_per_node: int | None = None
    pod_ip: str | None = None
    listen: str | None = None
    port: int = PORT
    gather_timeout: float | None = None
    mismatch: str = "refuse"  # or "warn"
    mismatch_timeout: float = 300.0
    budget: Budget = field(default_factory=Budget)
    failure_hold: float = 10.0
    report_every: float = 15.0
    termination_log: str = TERMINATION_LOG
    report_bytes: int = HEAD
    log_format: str = "text"
    max_restarts: int = 0
    restart_reset: float = 600.0
    ready_when: str = "engine"  # one of READY_WHEN
    hang_timeout: float | None = None
    exec: bool = False  # become the engine once the group has formed
