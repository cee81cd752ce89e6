"""How a pod's life ended: one place that turns an outcome into an exit code, a last line and a termination message."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from backends.errors import ConfigError
from backends.group import Group, member_name
from launcher import exits
from launcher.channel.messages import Cause

MESSAGE_LIMIT = 4096  # the kubelet keeps the last 4096 bytes: https://kubernetes.io/docs/tasks/debug/debug-application/


@dataclass(frozen=True)
class Ending:
    """The first thing that ended this pod's life. cause is None when nothing failed (asked to stop, or finished)."""

    reason: str
    exit_code: int
    cause: Cause | None = None
    asked: bool = False

    @property
    def failed(self) -> bool:
        return self.cause is not None


def last_line(group: Group | None, ending: Ending, exit_code: int) -> str:
    """What the pod says last; after a failure it is the same sentence in every pod."""
    sentence = f"stopped because {ending.cause.sentence()}" if ending.cause else f"stopped: {ending.reason}"
    who = "" if group is None else f"; {member_name(group.index)} exits {exit_code}"
    return sentence + who


def write_termination_message(path: str, line: str, ending: Ending) -> None:
    """Put the report where `kubectl describe pod` shows it; best effort, because the file may not be there."""
    text = line + "\n"
    if ending.cause is not None and ending.cause.head:
        text += f"first error output of {member_name(ending.cause.index)}:\n{ending.cause.head}\n"
    data = text.encode(errors="backslashreplace")
    if len(data) > MESSAGE_LIMIT:
        data = data[:MESSAGE_LIMIT].decode(errors="ignore").encode()
    with contextlib.suppress(OSError):
        Path(path).write_bytes(data)


def config_ending(error: ConfigError, index: int) -> Ending:
    """The ending of a pod whose configuration cannot work."""
    return Ending(
        "configuration", exits.CONFIG, Cause(index, f"configuration: {error}", exits.CONFIG, error.text(), True)
    )
