"""The engine's output: passed through byte for byte, while the head of its first traceback is kept for the report."""

from __future__ import annotations

import os
import select
import threading

CHUNK = 1 << 16
MARK = b"Traceback (most recent call last)"
HEAD = 2048
TAIL = 1024


class Keepsake:
    """What is worth telling of a process's output: the head of its first traceback, else its last lines on stderr.

    One for all streams of a process, because engines log tracebacks to either.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tails: dict[int, bytes] = {}
        self._head = b""
        self._head_of: int | None = None

    def feed(self, stream: int, chunk: bytes) -> None:
        """stream is 1 or 2; chunks of one stream come in order."""
        with self._lock:
            tail = self._tails.get(stream, b"")
            if self._head_of is None:
                seen = tail[-HEAD // 4 :] + chunk
                at = seen.find(MARK)
                if at >= 0:
                    start = seen.rfind(b"\n", 0, at) + 1  # with the line's own prefix
                    self._head, self._head_of = seen[start : start + HEAD], stream
            elif self._head_of == stream and len(self._head) < HEAD:
                self._head += chunk[: HEAD - len(self._head)]
            self._tails[stream] = chunk[-TAIL:] if len(chunk) >= TAIL else (tail + chunk)[-TAIL:]

    def text(self) -> str:
        """At most 2 KiB, decoded with replacement characters."""
        with self._lock:
            if self._head:
                return self._head.decode(errors="replace").strip()
            tail = self._tails.get(2, b"")
        whole = tail if len(tail) < TAIL else tail.partition(b"\n")[2]
        return whole.decode(errors="replace").strip()


class Pump:
    """A thread that copies one pipe to one of our own streams.

    A thread, because our stdout may block for as long as the container runtime likes, and the channel's heartbeats
    must go on meanwhile. When our stream is gone (EPIPE) the engine must not notice: the rest is read and dropped.
    """

    def __init__(self, source: int, sink: int, keepsake: Keepsake, name: str) -> None:
        self._keepsake = keepsake
        self._source = source
        self._sink = sink
        self._thread = threading.Thread(target=self._run, name=f"pump-{name}", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until the pipe is empty and closed by every writer, at most timeout seconds."""
        self._thread.join(timeout)

    def _run(self) -> None:
        broken = False
        while True:
            try:
                chunk = os.read(self._source, CHUNK)
            except OSError:
                break
            if not chunk:
                break
            self._keepsake.feed(self._sink, chunk)
            if not broken:
                broken = not _write_all(self._sink, chunk)
        os.close(self._source)


def _write_all(sink: int, chunk: bytes) -> bool:
    view = memoryview(chunk)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:
            select.select([], [sink], [])
        except OSError:
            return False
    return True
