"""One new process: a session of its own, clean signals, standard streams as told, and our death as its own.

fork and exec by hand, because posix_spawn(3) can set neither a parent-death signal nor a working directory.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import struct
from collections.abc import Mapping, Sequence
from typing import NoReturn

from launcher import kernel

DISPOSITIONS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def spawn(
    path: str, argv: Sequence[str], environ: Mapping[str, str], streams: tuple[int, int, int], directory: str
) -> int:
    """Start path as a child; its pid. Call it from the main thread only: the parent-death signal is the thread's.

    streams become its descriptors 0, 1 and 2; ours stay with us. Raises OSError when it cannot be executed.
    """
    arguments, environment, parent = list(argv), dict(environ), os.getpid()
    told, tell = os.pipe()  # closed by a successful exec
    collecting = gc.isenabled()
    # No finaliser of ours may run in the child, where our threads and their locks are gone.
    gc.disable()
    try:
        pid = os.fork()
        if pid == 0:
            _become(path, arguments, environment, streams, directory, parent, tell)
    except OSError:
        os.close(told)
        raise
    finally:
        if collecting:
            gc.enable()
        os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        answer = pipe.read(4)
    if answer:
        os.waitpid(pid, 0)
        number = struct.unpack("i", answer)[0]
        raise OSError(number, os.strerror(number))
    return pid


def _become(
    path: str,
    argv: list[str],
    environ: dict[str, str],
    streams: tuple[int, int, int],
    directory: str,
    parent: int,
    tell: int,
) -> NoReturn:
    try:
        os.setsid()
        kernel.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)  # it died before the kernel was told to tell us
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(directory)
        execute(path, argv, environ)
    except Exception as error:  # such as a ValueError for an environment that cannot be handed on
        os.write(tell, struct.pack("i", getattr(error, "errno", None) or errno.EINVAL))
    finally:
        os._exit(127)


def execute(path: str, argv: list[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process, with every signal unblocked and at its default. Raises OSError."""
    for number in DISPOSITIONS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(path, argv, environ)
