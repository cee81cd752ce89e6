"""Of the engine's output the first error is kept, and our own lines never break into one of the engine's."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher import output
from launcher.output import Keepsake, Sink

FATAL_LINES = [
    b"Traceback (most recent call last):",
    b"(EngineCore pid=77) ERROR 01-02 03:04:05 [core.py:842] Traceback (most recent call last):",
    b"\x1b[36m(RayWorker pid=9)\x1b[0m Traceback (most recent call last):",
    b"Fatal Python error: Segmentation fault",
    b"Fatal Python error: Aborted",
    b"terminate called after throwing an instance of 'c10::Error'",
    b"thread 'main' panicked at src/main.rs:4:5:",
    b"thread '<unnamed>' panicked at 'index out of bounds', src/lib.rs:7:9",
]


def keep(*chunks: bytes, stream: int = 2, limit: int = 2048) -> str:
    kept = Keepsake(limit)
    for chunk in chunks:
        kept.feed(stream, chunk)
    return kept.text()


# --- what is kept ---


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("line", FATAL_LINES)
def test_the_first_error_is_kept_from_the_start_of_its_line(line: bytes, stream: int) -> None:
    said = line + b'\n  File "x.py", line 1\nValueError: why\n'
    assert keep(b"INFO starting\nINFO " + b"x" * 5000 + b"\n" + said, stream=stream) == said.decode().strip()


@pytest.mark.parametrize("line", FATAL_LINES)
def test_an_error_is_found_wherever_a_read_splits_it(line: bytes) -> None:
    said = b"INFO starting\n" + line + b"\nValueError: why\n"
    for at in range(len(said) + 1):
        assert keep(said[:at], said[at:]) == (line + b"\nValueError: why").decode(), at


@pytest.mark.parametrize("line", FATAL_LINES)
def test_an_error_that_comes_byte_by_byte_is_found(line: bytes) -> None:
    said = b"INFO\n" * 500 + line + b"\nValueError: why\n"
    assert keep(*(bytes([byte]) for byte in said)) == (line + b"\nValueError: why").decode()


def test_the_lines_that_follow_in_later_reads_belong_to_it() -> None:
    assert keep(b"Traceback (most recent call last):\n", b"  File", b' "x.py"\n', b"ValueError: why\n") == (
        'Traceback (most recent call last):\n  File "x.py"\nValueError: why'
    )


def test_only_the_first_error_is_kept() -> None:
    first = b"Traceback (most recent call last):\nValueError: the cause\n" + b"x" * 3000 + b"\n"
    text = keep(first, b"Traceback (most recent call last):\nValueError: a victim\n", b"Fatal Python error: Aborted\n")
    assert text.startswith("Traceback (most recent call last):\nValueError: the cause\nxxx")
    assert "victim" not in text
    assert "Fatal" not in text
    assert len(text) == 2048


def test_of_two_errors_in_one_read_the_earlier_is_kept() -> None:
    for errors in (FATAL_LINES, FATAL_LINES[::-1]):
        assert keep(b"\n".join(errors), limit=len(errors[0])) == errors[0].decode()


@pytest.mark.parametrize(("first", "other"), [(1, 2), (2, 1)])
def test_the_other_streams_bytes_are_not_mixed_in(first: int, other: int) -> None:
    kept = Keepsake()
    kept.feed(other, b"INFO unfinished ")
    kept.feed(first, b"Traceback (most rec")
    kept.feed(other, b"ent call last) is no traceback\nTrace")
    kept.feed(first, b"ent call last):\nValueError: ")
    kept.feed(other, b"Traceback (most recent call last):\nKeyError: later\n")
    kept.feed(first, b"why\n")
    assert kept.text() == "Traceback (most recent call last):\nValueError: why"


def test_what_an_engine_said_before_it_served_is_forgotten_and_a_later_failure_kept() -> None:
    kept = Keepsake()
    kept.feed(2, b"Traceback (most recent call last):\nConnectionRefusedError: not yet\n")
    kept.forget()
    assert kept.head() == ""
    kept.feed(2, b"Traceback (most recent call last):\nRuntimeError: CUDA error\n")
    assert kept.head() == "Traceback (most recent call last):\nRuntimeError: CUDA error"


def test_what_is_no_text_is_kept_with_replacement_characters() -> None:
    assert keep(b"\xff Fatal Python error: \xe4\n") == "\ufffd Fatal Python error: \ufffd"
    assert keep(b"bad: \xff\n") == "bad: \ufffd"


# --- the limit ---


@pytest.mark.parametrize("size", [1, 7, 5000])
@pytest.mark.parametrize("limit", [0, 1, 10, 34, 35, 100, 2048, 4000])
def test_no_more_than_the_limit_is_kept_of_an_error(limit: int, size: int) -> None:
    said = b"ERROR Traceback (most recent call last):\n" + b"frame\n" * 800
    text = keep(*_pieces(b"INFO\n" + said, size), limit=limit)
    assert text == said[:limit].decode().strip()


@pytest.mark.parametrize("limit", [0, 1, 5, 100, 2048])
def test_no_more_than_the_limit_is_kept_of_the_last_lines(limit: int) -> None:
    said = b"one\ntwo\nthree\n"
    assert keep(said, limit=limit) == (said[-limit:].decode().strip() if limit else "")


def test_a_limit_of_nothing_keeps_nothing_of_either_stream() -> None:
    kept = Keepsake(0)
    for stream in (1, 2):
        kept.feed(stream, b"Traceback (most recent call last):\n")
        kept.feed(stream, b"ValueError\n")
    assert kept.text() == ""


# --- without an error ---


def test_without_an_error_the_last_lines_of_stderr_are_told() -> None:
    kept = Keepsake()
    kept.feed(1, b"stdout is for the results\n")
    kept.feed(2, b"server: error: unrecognized arguments: --prot\n")
    kept.feed(1, b"more results\n")
    assert kept.text() == "server: error: unrecognized arguments: --prot"


@pytest.mark.parametrize(
    "line",
    [
        "Segmentation fault (core dumped)",
        "FATAL: cannot open the model",
        "terminate called without an active exception",
        "thread 'main' has overflowed its stack",
    ],
)
def test_last_words_of_any_other_form_are_told_because_they_are_the_last(line: str) -> None:
    assert keep(b"INFO starting\n" * 500, line.encode() + b"\n").endswith(f"INFO starting\n{line}")


def test_the_last_lines_are_whole_lines() -> None:
    lines = [f"line {number}\n" for number in range(1000)]
    text = keep("".join(lines).encode())
    told = text.splitlines()
    assert told == [line.strip() for line in lines[-len(told) :]]
    assert 1000 < len(text) <= 1024


@pytest.mark.parametrize("chunks", [[], [b""], [b"\n"], [b" \n\n"]])
def test_of_an_engine_that_said_nothing_nothing_is_told(chunks: list[bytes]) -> None:
    assert keep(*chunks) == ""


def test_an_engine_that_wrote_only_results_has_no_last_words() -> None:
    assert keep(b"result\n", stream=1) == ""


# --- however the pipe is read ---

# The start of an error's line is looked for in the read that completes its mark and in the 1024 bytes before that read:
# of longer lines, more is kept in one way of reading than in another.
LONGEST = 1000
WORD = st.binary(max_size=30) | st.sampled_from([*FATAL_LINES, b"Traceback (most", b"panicked", b"\r 50%"])
LINE = st.builds(
    lambda words, times: (b" ".join(words) * times).replace(b"\n", b"")[:LONGEST],
    st.lists(WORD, max_size=4),
    st.sampled_from([1, 20]),
)
OUTPUT = st.lists(LINE, max_size=30).map(b"\n".join)


@given(said=OUTPUT, cuts=st.lists(st.integers(0, 30_000), max_size=8), limit=st.sampled_from([0, 1, 50, 2048, 4000]))
@example(said=b"x" * 950 + b" Traceback (most recent call last):\nValueError", cuts=[980], limit=2048)
@example(said=b"INFO\n" * 300 + b"Fatal Python error: Aborted", cuts=[1024, 1025, 1510], limit=2048)
@example(said=b"INFO\n" * 300 + b"bye", cuts=[], limit=2048)
def test_what_is_kept_does_not_depend_on_how_the_output_was_read(said: bytes, cuts: list[int], limit: int) -> None:
    whole = keep(said, limit=limit)
    edges = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
    assert keep(*(said[a:b] for a, b in itertools.pairwise(edges)), limit=limit) == whole
    assert keep(*_pieces(said, 1), limit=limit) == whole
    assert keep(*_pieces(said, 64), limit=limit) == whole
    assert len(whole) <= limit


def _pieces(said: bytes, size: int) -> Sequence[bytes]:
    return [said[at : at + size] for at in range(0, len(said), size)]


# --- our own streams ---


class Reader:
    """The other end of a pipe, read to its end by a thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._chunks: list[bytes] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while chunk := os.read(self._descriptor, 4096):
            self._chunks.append(chunk)

    def all(self) -> bytes:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return b"".join(self._chunks)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(end)


def read_after(pipe: tuple[int, int], *writes: Callable[[], None]) -> bytes:
    """Everything that these calls write."""
    reader = Reader(pipe[0])
    for write in writes:
        write()
    os.close(pipe[1])
    return reader.all()


@pytest.mark.parametrize(
    ("engine", "shown"),
    [
        ([], b"ours\n"),
        ([b"done\n"], b"done\nours\n"),
        ([b"loading 50%"], b"loading 50%\nours\n"),
        ([b"loading", b" done\n"], b"loading done\nours\n"),
        ([b"done\n", b"loading"], b"done\nloading\nours\n"),
        ([b"\rloading 50%\r"], b"\rloading 50%\r\nours\n"),
        ([b"\n"], b"\nours\n"),
    ],
)
def test_a_line_of_ours_starts_on_a_line_of_its_own(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, engine: Iterable[bytes], shown: bytes
) -> None:
    monkeypatch.setattr(output, "LINE_PATIENCE", 0.01)
    sink = Sink(pipe[1])
    writes = [lambda chunk=chunk: sink.write(chunk) for chunk in engine]
    assert read_after(pipe, *writes, lambda: sink.write_line(b"ours")) == shown


def test_after_a_line_of_ours_the_next_needs_no_new_one(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LINE_PATIENCE", 0.01)
    sink = Sink(pipe[1])
    assert (
        read_after(
            pipe,
            lambda: sink.write(b"half"),
            lambda: sink.write_line(b"one"),
            lambda: sink.write_line(b"two"),
            lambda: sink.write(b" a line\n"),
            lambda: sink.write_line(b"three"),
        )
        == b"half\none\ntwo\n a line\nthree\n"
    )


def test_a_line_of_ours_waits_for_the_engine_to_end_its_own(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LINE_PATIENCE", 20.0)
    reader, writer = pipe
    sink = Sink(writer)
    sink.write(b"loading")
    ours = threading.Thread(target=sink.write_line, args=(b"ours",))
    ours.start()
    try:
        assert os.read(reader, 100) == b"loading"
        assert not select.select([reader], [], [], 0.2)[0]
        sink.write(b" on")
        assert os.read(reader, 100) == b" on"
        assert not select.select([reader], [], [], 0.2)[0]
    finally:
        sink.write(b" done\n")
        ours.join(10)
    assert os.read(reader, 100) == b" done\nours\n"


def test_a_stream_without_a_reader_costs_the_writers_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    os.close(reader)
    for _ in range(3):  # SIGPIPE would end us, EPIPE would raise
        sink.write(b"lost\n")
        sink.write_line(b"lost too")
    sink.write(b"x" * (1 << 20))


def test_a_reader_that_goes_away_in_the_middle_lets_its_writer_go(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    stuck = threading.Thread(target=sink.write, args=(b"x" * (1 << 22),))
    stuck.start()
    assert os.read(reader, 10) == b"x" * 10
    os.close(reader)
    stuck.join(10)
    assert not stuck.is_alive()


def test_once_its_reader_has_gone_nothing_is_written_to_a_later_one(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    first = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    sink = Sink(writer)
    sink.write(b"heard\n")
    assert os.read(first, 100) == b"heard\n"
    os.close(first)
    sink.write(b"lost\n")
    second = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        sink.write(b"dropped\n")
        sink.write_line(b"dropped")
        os.close(writer)
        assert os.read(second, 100) == b""
    finally:
        os.close(second)


def test_a_stream_that_is_not_open_at_all_costs_the_writers_nothing() -> None:
    closed = 999
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(closed, b"x")
    Sink(closed).write(b"lost\n")
    Sink(closed).write_line(b"lost")


def test_what_a_full_disk_cannot_hold_is_dropped_and_later_output_is_written(pipe: tuple[int, int]) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        sink = Sink(descriptor)
        sink.write(b"lost\n")
        sink.write_line(b"lost")
        os.dup2(pipe[1], descriptor)  # there is room again
        sink.write(b"kept\n")
        assert os.read(pipe[0], 100) == b"kept\n"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_is_waited_for_and_nothing_is_lost(pipe: tuple[int, int], blocking: bool) -> None:
    os.set_blocking(pipe[1], blocking)  # whoever shares our stdout may have set it so
    sink = Sink(pipe[1])
    block = bytes(range(256)) * 4096 + b"\n"
    assert len(block) > 1 << 20
    assert read_after(pipe, lambda: sink.write(block), lambda: sink.write_line(b"ours")) == block + b"ours\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_chunks_of_many_writers_do_not_mix(pipe: tuple[int, int], blocking: bool) -> None:
    os.set_blocking(pipe[1], blocking)
    sink = Sink(pipe[1])
    chunks = [bytes([letter]) * 200_000 + b"\n" for letter in b"abcd"]
    writers = [threading.Thread(target=sink.write, args=(chunk,)) for chunk in chunks]
    shown = read_after(pipe, *(writer.start for writer in writers), *(writer.join for writer in writers))
    assert sorted(shown.splitlines(keepends=True)) == chunks
