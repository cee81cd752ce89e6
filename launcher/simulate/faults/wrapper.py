"""In front of the engine where a fault needs it: delays its start, or ends it with an exit code of our choice.

`python -m launcher.simulate.faults.wrapper DIRECTORY -- COMMAND`, the same line in every pod of a simulation, so that
the commands still compare equal; the launcher finds the engine behind it as behind any wrapper.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from launcher import kernel
from launcher.simulate.spec import load, order_file
from launcher.spawn import execute

LOOK_EVERY = 0.05  # seconds between looks for an order
BY_US_ALONE = (signal.SIGTERM,)  # the only signal that the launcher sends to the engine's process and not to its group


def main(directory: str, command: list[str]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    index = int(os.environ["LWS_WORKER_INDEX"])
    spec = load((Path(directory) / "spec.json").read_text())
    faults = [fault for fault in spec.faults if fault.index == index]
    delay = sum(fault.lasts or 0.0 for fault in faults if fault.what == "slow-start")
    if delay:
        print(f"simulate: slow-start: the engine begins in {delay:g} s", file=sys.stderr, flush=True)
        time.sleep(delay)
    try:
        path = shutil.which(command[0]) or command[0]
        if any(fault.what == "engine-exit" for fault in faults):
            stand_in(path, command, order_file(spec, index))
        execute(path, command, os.environ)
    except OSError as error:
        print(f"simulate: {command[0]}: {error.strerror}", file=sys.stderr)
    os._exit(127)


def stand_in(path: str, command: list[str], order: Path) -> NoReturn:
    """Run the command as our child in our process group; end as it ends, or as ordered.

    Signals to the group reach it by themselves. It gets SIGTERM from us too, because it may have been meant for the
    engine's process alone; after one to the group that is a second, as the launcher also repeats it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        kernel.die_with_parent()
        if os.getppid() == parent:
            execute(path, command, os.environ)
        os._exit(127)
    while True:
        caught = signal.sigtimedwait(signal.valid_signals(), LOOK_EVERY)
        if caught is not None and caught.si_signo in BY_US_ALONE:
            os.kill(child, caught.si_signo)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            end_as(status)
        try:
            code = int(order.read_text())
        except (OSError, ValueError):
            continue
        order.unlink()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os._exit(code)


def end_as(status: int) -> NoReturn:
    """End the way that the child has ended: with its code, or by its signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3:])
