"""How a pod's life ended: one place that turns an outcome into an exit code, a last line and a termination message."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from backends.errors import ConfigError, Fault
from backends.group import Group, member_name
from launcher import exits
from launcher.channel.messages import Cause
from launcher.settings import TERMINATION_LOG
from launcher.supervisor import CannotStart

MESSAGE_LIMIT = 4096  # the kubelet keeps the last 4096 bytes: https://kubernetes.io/docs/tasks/debug/debug-application/


@dataclass(frozen=True)
class Ending:
    """The first thing that ended this pod's life, or with restart only its present epoch.

    cause is None when nothing failed (asked to stop, or finished). final: no restart in place would mend it.
    restart: seconds until the group starts anew.
    """

    reason: str
    exit_code: int
    cause: Cause | None = None
    asked: bool = False
    final: bool = False
    restart: float | None = None

    @property
    def failed(self) -> bool:
        return self.cause is not None

    @property
    def why(self) -> str:
        return self.cause.sentence() if self.cause else self.reason


def last_line(group: Group | None, ending: Ending) -> str:
    """What the pod says last; after a failure it is the same sentence in every pod."""
    sentence = f"stopped because {ending.why}" if ending.failed else f"stopped: {ending.why}"
    who = "" if group is None else f"; {member_name(group.index)} exits {ending.exit_code}"
    return sentence + who


def write_termination_message(path: str, line: str, cause: Cause | None) -> None:
    """Put the report where `kubectl describe pod` shows it; best effort.

    The default file is the kubelet's: where it is not there already, we are in no pod.
    """
    if path == TERMINATION_LOG and not os.path.exists(path):
        return
    text = line + "\n"
    if cause is not None and cause.head:
        text += f"first error output of {member_name(cause.index)}:\n{cause.head}\n"
    data = text.encode(errors="backslashreplace")
    if len(data) > MESSAGE_LIMIT:
        data = data[:MESSAGE_LIMIT].decode(errors="ignore").encode()
    with contextlib.suppress(OSError):
        Path(path).write_bytes(data)


def cannot_start(error: CannotStart) -> ConfigError:
    return ConfigError(Fault(str(error), "a program of this image that can be executed", error.remedy))


def config_ending(error: ConfigError, index: int) -> Ending:
    """The ending of a pod whose configuration cannot work."""
    return Ending(
        "configuration",
        exits.CONFIG,
        Cause(index, f"configuration: {error}", exits.CONFIG, error.text(), True),
        final=True,
    )
