"""The launcher's own lines, on stderr, told apart from the engine's by their prefix."""

from __future__ import annotations

import json
import logging
import sys
import time

log = logging.getLogger("lwsrun")


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


def set_up(who: str, log_format: str = "text") -> None:
    """Log to stderr as this member. Called again once the pod knows its place."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(who) if log_format == "json" else _Text(who))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
