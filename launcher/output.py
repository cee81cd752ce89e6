"""The engine's output: passed through byte for byte, while the head of its first traceback is kept for the report."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import threading

CHUNK = 1 << 16
PIPE = 1 << 20  # bytes; the most that an unprivileged process may ask for: pipe(7)
# How engines' last words begin: Python's, the interpreter's own (a segmentation fault among them), C++'s, Rust's. Few
# and long ones: all output is searched for each of them, and short ones cost the most.
MARKS = (
    b"Traceback (most recent call last)",
    b"Fatal Python error",
    b"terminate called after throwing",
    b"panicked at",
)
HEAD = 2048
TAIL = 1024
PREFIX = 256  # bytes
LINE_ENDS = (b"\n", b"\r")  # a progress bar ends with the latter
LINE_PATIENCE = 0.5  # seconds that a line of ours waits for the engine to end its own


class Sink:
    """One of our own streams, shared by everybody who writes to it. Once its reader has gone, writes are dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._turn = threading.Condition()
        self._line_open = False
        self._reader_gone = False

    def write(self, chunk: bytes) -> None:
        """Bytes of an engine, as they are. Blocks for as long as the reader does."""
        with self._turn:
            self._write(chunk)
            self._line_open = not chunk.endswith(b"\n")
            if not self._line_open:
                self._turn.notify_all()

    def write_line(self, line: bytes) -> None:
        """A line of ours, on a line of its own: an engine may have left one unfinished."""
        with self._turn:
            self._turn.wait_for(lambda: not self._line_open, LINE_PATIENCE)
            self._write(b"\n" * self._line_open + line + b"\n")
            self._line_open = False

    def _write(self, chunk: bytes) -> None:
        view = memoryview(b"" if self._reader_gone else chunk)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                # A full disk may have room again for the next chunk; a pipe without a reader never gets one.
                self._reader_gone = error.errno in (errno.EPIPE, errno.EBADF)
                return


def one_stream() -> bool:
    """Whether our stdout and stderr are the same file, as on a terminal or after 2>&1."""
    try:
        return os.path.sameopenfile(1, 2)
    except OSError:
        return False


STDOUT = Sink(1)
STDERR = STDOUT if one_stream() else Sink(2)


class Keepsake:
    """What is worth telling of a process's output: the head of its first traceback or fatal line, else its last lines
    on stderr.

    One for all streams of a process, because engines log tracebacks to either. limit is in bytes.
    """

    def __init__(self, limit: int = HEAD) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._tails: dict[int, bytes] = {}
        self._head = b""
        self._head_of: int | None = None

    def feed(self, stream: int, chunk: bytes) -> None:
        """stream is 1 or 2; chunks of one stream come in order."""
        with self._lock:
            seen = self._tails.get(stream, b"") + chunk
            if self._head_of is None:
                # rfind says two to three times as fast as find that a mark is not there.
                here = [seen.find(mark) for mark in MARKS if seen.rfind(mark) >= 0]
                if here:
                    at = min(here)
                    # With the line's own prefix, unless that is long enough to leave no room for the error itself.
                    start = max(*(seen.rfind(end, 0, at) + 1 for end in LINE_ENDS), at - PREFIX)
                    self._head, self._head_of = seen[start : start + self._limit], stream
            elif self._head_of == stream and len(self._head) < self._limit:
                self._head += chunk[: self._limit - len(self._head)]
            self._tails[stream] = seen[-TAIL:]

    def forget(self) -> None:
        """What was said so far was of no consequence."""
        with self._lock:
            self._head, self._head_of, self._tails = b"", None, {}

    def line(self, start: str) -> str:
        """The last line that begins so, of those that are still known; else empty."""
        with self._lock:
            tails = list(self._tails.values())
        lines = [line for tail in tails for line in tail.decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if start and line.startswith(start)), "")

    def head(self) -> str:
        """Of its first traceback or fatal line; empty where there was none."""
        with self._lock:
            return "" if self._head_of is None else self._head.decode(errors="replace").strip()

    def tail(self) -> str:
        """The last that it said on stderr, or on the stream that both are; some kilobyte."""
        with self._lock:
            return self._tails.get(2, b"").decode(errors="replace")

    def text(self) -> str:
        """Decoded with replacement characters."""
        with self._lock:
            if self._head_of is not None:
                return self._head.decode(errors="replace").strip()
            tail = self._tails.get(2, b"")
        cut = tail.partition(b"\n")[2].strip() if len(tail) >= TAIL else b""  # its first line may be half a line
        return (cut or tail)[-self._limit :].decode(errors="replace").strip() if self._limit else ""


class Pump:
    """A thread that copies one pipe to one of our own streams.

    A thread, because our stdout may block for as long as the container runtime likes, and the channel's heartbeats
    must go on meanwhile. When our stream is gone (EPIPE) the engine must not notice: the rest is read and dropped.
    """

    def __init__(self, source: int, stream: int, sink: Sink, keepsake: Keepsake, name: str) -> None:
        self._source = source
        self._stream = stream
        self._sink = sink
        self._keepsake = keepsake
        self._thread = threading.Thread(target=self._run, name=f"pump-{name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait until the pipe is empty and closed by every writer, at most timeout seconds."""
        self._thread.join(timeout)

    def _run(self) -> None:
        # The engine writes on into it while its last chunk is searched for a traceback.
        with contextlib.suppress(OSError):  # this user's pipes hold too much already: pipe(7), pipe-user-pages-soft
            fcntl.fcntl(self._source, fcntl.F_SETPIPE_SZ, PIPE)
        while True:
            try:
                chunk = os.read(self._source, CHUNK)
            except OSError:
                break
            if not chunk:
                break
            self._sink.write(chunk)
            self._keepsake.feed(self._stream, chunk)
        os.close(self._source)
