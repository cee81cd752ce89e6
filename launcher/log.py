"""The launcher's own lines, on stderr, told apart from the engine's by their prefix."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time

from launcher.output import STDERR

log = logging.getLogger("lwsrun")
QUIET = logging.getLogger("lwsrun.quiet")  # for libraries whose lines are for their own developers
QUIET.disabled = True
WAITING_LINES = 10_000


class _Text(logging.Formatter):
    def __init__(self, who: str) -> None:
        super().__init__()
        self.who = who

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.gmtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        prefix = f"[lwsrun {clock}.{int(record.msecs):03d} {self.who}] "
        return "\n".join(prefix + level + line for line in record.getMessage().splitlines())


class _Json(logging.Formatter):
    def __init__(self, who: str) -> None:
        super().__init__()
        self.who = who

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = {"time": stamp, "level": record.levelname.lower(), "logger": "lwsrun", "member": self.who}
        return json.dumps({**fields, "message": record.getMessage()}, ensure_ascii=False)


class _Threaded(logging.Handler):
    """Hands lines to a thread: whoever reads our stderr may stall, and the event loop must not."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str] = queue.Queue(WAITING_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):  # nobody has read for a long time: losing lines is the lesser harm
            self._lines.put_nowait(self.format(record))

    def _write(self) -> None:
        while True:
            STDERR.write_line(self._lines.get().encode(errors="backslashreplace"))
            self._lines.task_done()

    def drain(self, timeout: float) -> None:
        """Wait until everything is written, timeout seconds at most."""
        deadline = time.monotonic() + timeout
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.002)


def set_up(who: str, log_format: str = "text") -> None:
    """Log to stderr as this member. Called again once the pod knows its place."""
    if not log.handlers:
        log.addHandler(_Threaded())
    log.handlers[0].setFormatter(_Json(who) if log_format == "json" else _Text(who))
    log.setLevel(logging.INFO)
    log.propagate = False


def drain(timeout: float = 1.0) -> None:
    """Before the process ends: let what was logged be written."""
    for handler in log.handlers:
        if isinstance(handler, _Threaded):
            handler.drain(timeout)
