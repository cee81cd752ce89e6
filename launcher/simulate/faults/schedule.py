"""Faults by schedule, as written on the command line or, one a line, in a scenario file.

kill:1@10s              SIGKILL to everything in the pod, as when its node or container dies
kill-engine:0@serving   SIGKILL to the processes under the launcher
term:1@formed+2s        SIGTERM to the pod alone, as when one pod is deleted or evicted
freeze:2@5s+20s         SIGSTOP to everything in the container; after 20 s SIGCONT
partition:1@serving+2s+5s  the pod's link drops everything, silently; after 5 s no more
engine-exit:0@5s=0      the engine ends with that exit code, of its own as far as the launcher can see
late:2@5s               the pod is created only then; DNS does not know it before
slow-start:2=30s        the pod's engine begins only 30 s after it was started
late-dns:3s             DNS denies the leader until 3 s after its pod is there
stale-leader:5s         for 5 s the leader's name is that of an earlier leader, which is draining
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from backends.errors import ConfigError
from backends.errors import Fault as Wrong
from launcher.simulate.spec import Fault

SCHEDULED = ("kill", "kill-engine", "term", "freeze", "partition", "late")
UNSCHEDULED = ("slow-start", "late-dns", "stale-leader")  # from the beginning on
INJECTED = ("kill", "kill-engine", "term", "freeze", "partition", "engine-exit")  # into a pod that lives
LASTING = ("freeze", "partition")  # they can be undone
MOMENTS = ("start", "formed", "loading", "serving")
ONCE = ("late", "slow-start", "late-dns", "stale-leader")  # how a pod begins: it does so in one way
NETWORK = ("partition", "late-dns", "stale-leader")  # faults of a network that plain loopback has not
STALE_FOR = 5.0  # seconds, unless told otherwise
GRAMMAR = (
    "WHAT:INDEX@WHEN, engine-exit:INDEX@WHEN=CODE, slow-start:INDEX=TIME, late-dns:TIME or stale-leader[:TIME];"
    f" WHAT is one of {', '.join(SCHEDULED)}; WHEN is TIME, MOMENT or MOMENT+TIME (e.g. 10s, formed, serving+2s), for"
    f" {' and '.join(LASTING)} then +TIME to undo it (5s+20s, serving+2s+5s); MOMENT is one of {', '.join(MOMENTS)}"
)

TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|)", re.ASCII)
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


class _Misread(Exception):
    """The text is no fault; str() says which part, and why."""


def read_faults(texts: tuple[str, ...], scenario: str | None, size: int) -> list[Fault]:
    """Those of the command line, then those of the scenario file. Raises ConfigError with everything that is wrong."""
    faults: list[Fault] = []
    wrong: list[Wrong] = []
    for text in texts:
        try:
            faults.append(parse_fault(text, size))
        except ConfigError as error:
            wrong += error.faults
    if scenario is not None:
        try:
            faults += parse_scenario(Path(scenario).read_text("utf-8-sig"), scenario, size)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            wrong.append(Wrong(f"--scenario {scenario}: {why}", "a file with one fault a line"))
        except ConfigError as error:
            wrong += error.faults
    wrong[:0] = _impossible(faults, size)
    if wrong:
        # The grammar is long: told once, at the end.
        again = [replace(one, expected="" if one.expected == GRAMMAR else one.expected) for one in wrong[:-1]]
        raise ConfigError(*again, wrong[-1])
    return faults


def _impossible(faults: list[Fault], size: int) -> list[Wrong]:
    """What is wrong with faults that are well written."""
    wrong = []
    begins: dict[tuple[str, int], Fault] = {}
    for fault in faults:
        if size == 1 and fault.what in ("late-dns", "stale-leader"):
            larger = "a larger group: nobody looks the leader up"
            wrong.append(Wrong(f"{fault.what} in a group of one", larger, "--size 2 or more"))
        if fault.what not in ONCE:
            continue
        first = begins.setdefault((fault.what, fault.index), fault)
        if first is not fault:
            whose = " for each pod" if fault.what in ("late", "slow-start") else ""
            wrong.append(
                Wrong(f"two faults that exclude each other: {first.text}, {fault.text}", f"one {fault.what}{whose}")
            )
    return wrong


def parse_fault(text: str, size: int, where: str = "--fault") -> Fault:
    """One fault in a group of that size. Raises ConfigError."""
    try:
        return replace(_read(text, size), text=text)
    except _Misread as error:
        raise ConfigError(Wrong(f"{where} {text!r}: {error}", GRAMMAR)) from None


def parse_scenario(text: str, name: str, size: int) -> list[Fault]:
    """The faults of a scenario file: one a line, `#` starts a comment. Raises ConfigError with every bad line."""
    faults: list[Fault] = []
    wrong: list[Wrong] = []
    for number, line in enumerate(text.splitlines(), start=1):
        written = line.partition("#")[0].strip()
        if not written:
            continue
        try:
            faults.append(parse_fault(written, size, f"{name}:{number}:"))
        except ConfigError as error:
            wrong += error.faults
    if wrong:
        raise ConfigError(*wrong)
    return faults


def _read(text: str, size: int) -> Fault:
    head, at, when = text.partition("@")
    what, colon, rest = head.partition(":")
    if what in UNSCHEDULED:
        if at:
            raise _Misread(f"{what} has no WHEN")
        if what == "slow-start":
            who, _, delay = rest.partition("=")
            return Fault(what, _index(who, size), lasts=_time(delay))
        return Fault(what, lasts=STALE_FOR if what == "stale-leader" and not colon else _time(rest))
    if not text:
        raise _Misread("it is empty")
    if what not in (*SCHEDULED, "engine-exit"):
        raise _Misread(f"{what!r} is no fault")
    index = _index(rest, size)
    if not at:
        raise _Misread("it does not say when")
    code = None
    if what == "engine-exit":
        when, _, number = when.partition("=")
        code = _code(number)
    since, after, lasts = _when(when)
    if lasts is not None and what not in LASTING:
        raise _Misread(f"{what} cannot be undone")
    if what == "late" and since != "start":
        raise _Misread(f"without that pod the group is never {since}, so that the pod would never be created")
    return Fault(what, index, since, after, lasts, code)


def _when(text: str) -> tuple[str, float, float | None]:
    """(moment, seconds after it, seconds until it is undone)."""
    first, *times = text.split("+")
    if first in MOMENTS:
        after, *rest = times or ["0"]
    else:
        first, (after, *rest) = "start", (first, *times)
    if len(rest) > 1:
        raise _Misread(f"{text!r} has too many parts")
    return first, _time(after), _time(rest[0]) if rest else None


def _time(text: str) -> float:
    found = TIME.fullmatch(text)
    if not found:
        raise _Misread(f"{text!r} is no TIME" if text else "a TIME is missing")
    return float(found[1]) * UNITS[found[2]]


def _index(text: str, size: int) -> int:
    if not text:
        raise _Misread("the INDEX of a pod is missing")
    if not (text.isascii() and text.isdigit() and int(text[:9]) < size):
        raise _Misread(f"{text!r} is no INDEX" + (f" from 0 to {size - 1}" if size > 1 else ": the only pod is 0"))
    return int(text)


def _code(text: str) -> int:
    if not text:
        raise _Misread("the exit CODE is missing")
    if not (text.isascii() and text.isdigit() and int(text[:9]) < 256):
        raise _Misread(f"{text!r} is no exit CODE from 0 to 255")
    return int(text)
