"""The few Linux calls that Python 3.11 has no name for."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Iterable
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SFD_NONBLOCK = os.O_NONBLOCK
SFD_CLOEXEC = os.O_CLOEXEC
SIGINFO = 128  # sizeof(struct signalfd_siginfo)

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl  # looked up now: after a fork the dynamic linker's lock may be held by a thread that is gone


class Caught(NamedTuple):
    """A signal and its sender's pid; 0 is a sender outside our PID namespace, such as the kubelet."""

    number: int
    sender: int


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def signalfd(signals: Iterable[int]) -> int:
    """A descriptor that is readable when one of these (blocked) signals is pending. Source: signalfd(2)."""
    mask = bytearray(128)  # sizeof(sigset_t) in glibc and musl
    for number in signals:
        mask[(number - 1) // 8] |= 1 << ((number - 1) % 8)
    buffer = (ctypes.c_char * len(mask)).from_buffer(mask)
    return _checked(_libc.signalfd(-1, buffer, SFD_NONBLOCK | SFD_CLOEXEC), "signalfd")


def read_signals(fd: int) -> list[Caught]:
    """All signals that are pending on a signalfd."""
    caught: list[Caught] = []
    while True:
        try:
            data = os.read(fd, SIGINFO * 16)
        except BlockingIOError:
            return caught
        for at in range(0, len(data), SIGINFO):
            number, _errno, _code, sender = struct.unpack_from("=IiiI", data, at)
            caught.append(Caught(number, sender))


def be_subreaper(wanted: bool) -> bool:
    """Whether orphans of our descendants become our children, as they do for PID 1. False where the kernel refuses."""
    return int(_prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)) == 0


def die_with_parent() -> None:
    """Have the kernel SIGKILL us when the thread that made us ends. Source: prctl(2), PR_SET_PDEATHSIG."""
    _checked(_prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def unshare(flags: int) -> None:
    """Leave the parent's namespaces named by the CLONE_NEW* flags. Source: unshare(2)."""
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that the descriptor stands for. Source: setns(2)."""
    _checked(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Source: mount(2)."""
    _checked(
        _libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode()),
        f"mount {target}",
    )
