"""The launcher's exit codes, the same that the documentation lists. 75 and 78 follow sysexits.h."""

from __future__ import annotations

import os
import signal

OK = 0
ENDED_UNASKED = 70  # a server or a helper ended with 0 although nobody had asked it to, or only a rank of it ended
PEER_FAILED = 75  # another pod of the group failed, or was lost
REFUSED = 77  # the leader has refused this pod for --mismatch-timeout: their configurations differ
CONFIG = 78  # the configuration cannot work; nothing was started
KILLED = 137  # it had to be killed after the grace period


def of_status(status: int) -> int:
    """A wait status as an exit code, as a shell and dumb-init give it: 128 + n for signal n. Source: waitpid(2)."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def describe(code: int) -> str:
    """An exit code in words: "exited 137 (SIGKILL)"."""
    number = code - 128
    return f"exited {code}" + (f" ({signal_name(number)})" if number in signal.valid_signals() else "")


def signal_name(number: int) -> str:
    """SIGTERM, SIGRTMIN+3."""
    if number > signal.SIGRTMIN:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    return signal.Signals(number).name
