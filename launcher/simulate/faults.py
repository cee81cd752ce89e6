"""Faults by schedule, as written on the command line: `kill:1@10s`, `kill:0@serving+2s`, `late:1@5s`.

kill         SIGKILL to everything in the pod, as when its node or container dies
kill-engine  SIGKILL to the processes under the launcher
term         SIGTERM to the pod alone, as when one pod is deleted or evicted
freeze       SIGSTOP to everything in the pod
late         the pod is created only then; DNS does not know it before
"""

from __future__ import annotations

from backends.errors import ConfigError
from backends.errors import Fault as Wrong
from launcher.simulate.spec import Fault

KINDS = ("kill", "kill-engine", "term", "freeze", "late")
MOMENTS = ("start", "formed", "serving")


def parse_fault(text: str, size: int) -> Fault:
    """`WHAT:INDEX@WHEN`; WHEN is a time since the start, or a phase of the leader, or a phase + a time.

    Raises ConfigError.
    """
    head, at, when = text.partition("@")
    what, colon, who = head.partition(":")
    phase, plus, delay = when.partition("+")
    if phase not in MOMENTS:
        phase, delay = "start", when
    seconds = _seconds(delay) if delay or not plus else None
    if phase != "start" and not plus:
        seconds = 0.0
    if not (
        at
        and colon
        and what in KINDS
        and who.isascii()
        and who.isdigit()
        and int(who[:9]) < size
        and seconds is not None
    ):
        raise ConfigError(
            Wrong(
                f"--fault {text!r}",
                f"WHAT:INDEX@WHEN; WHAT is one of {', '.join(KINDS)}, INDEX 0 to {size - 1}, WHEN e.g. 10s, formed,"
                " serving+2s",
            )
        )
    return Fault(what, int(who), phase, seconds)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e9 else None
