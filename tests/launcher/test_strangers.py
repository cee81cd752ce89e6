"""Whatever strangers do to a waiting leader's port, probes are answered, the real worker joins and the job ends 0."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import free_port, wait_until
from loopback import LEADER, TAP, Pod, pod, tap

from launcher.channel.messages import VERSION

pytestmark = pytest.mark.slow

TOKEN = "9f3c0e5d7b1a48269f3c0e5d7b1a4826"
HELD = list[socket.socket]
Attack = Callable[[int], HELD]
GROWTH = 48 * 1024 * 1024  # bytes of memory that a leader may take for strangers


def connect(port: int, source: str = "") -> socket.socket:
    return socket.create_connection((LEADER, port), timeout=5, source_address=(source, 0) if source else None)


def say(port: int, data: bytes, wait: float = 0.02, source: str = "") -> bytes:
    """On a connection of its own; what was answered at once."""
    heard = b""
    with contextlib.suppress(OSError), connect(port, source) as made:
        made.sendall(data)
        made.settimeout(wait)
        while more := made.recv(65536):
            heard += more
    return heard


def upgrade(port: int) -> tuple[socket.socket, bytes]:
    """A connection whose WebSocket handshake was asked for, and the answer's first bytes."""
    made = connect(port)
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET /join HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
    made.sendall(f"{head}Sec-WebSocket-Version: 13\r\n\r\n".encode())
    return made, made.recv(65536)


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """A whole masked WebSocket frame; the mask is zero, which is allowed and easy to read."""
    if len(payload) < 126:
        size = bytes([0x80 | len(payload)])
    elif len(payload) < 65536:
        size = b"\xfe" + struct.pack(">H", len(payload))
    else:
        size = b"\xff" + struct.pack(">Q", len(payload))
    return bytes([0x80 | opcode]) + size + bytes(4) + payload


def join(**fields: Any) -> bytes:
    node = {"ip": "127.0.0.2", "hostname": "evil", "gpus": 0}
    whole = {"version": VERSION, "group": "g", "index": 1, "size": 2, "incarnation": "i", "digest": None, "node": node}
    return json.dumps({"type": "join", **whole, **fields}).encode()


# ---------------------------------------------------------------------- what strangers do


def random_bytes(port: int) -> HELD:
    dice = random.Random(1)
    for at in range(150):
        say(port, (b"\x16\x03\x01" if at % 3 == 0 else b"") + dice.randbytes(dice.choice([1, 5, 80, 3000, 70000])))
    return []


def random_http(port: int) -> HELD:
    dice = random.Random(2)
    methods = ["GET", "POST", "BREW", "GET GET", "\x00", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    paths = ["/join", "/group", "/livez", "/" + "a" * 9000, "*", "http://[::1", "/%ff%00", "/../../etc/passwd"]
    headers = [
        "Content-Length: -1", "Content-Length: 99999999999999999999", "Transfer-Encoding: chunked", "Host: \xff",
        "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13",
        "X: " + "y" * 9000, "Expect: 100-continue", ": ", "no colon", "\x00: \x01",
    ]  # fmt: skip
    for _ in range(150):
        chosen = "\r\n".join(dice.sample(headers, dice.randint(0, 6)))
        text = f"{dice.choice(methods)} {dice.choice(paths)} HTTP/{dice.choice(['1.1', '1.0', '9.9', 'x'])}\r\n"
        say(port, (text + chosen + dice.choice(["\r\n\r\n", "\r\n", "\r\n\r\nzz\r\n"])).encode("latin-1"))
    return []


def random_frames(port: int) -> HELD:
    dice = random.Random(3)
    for at in range(60):
        with contextlib.suppress(OSError):
            made, _ = upgrade(port)
            with made:
                whole = frame(dice.randbytes(dice.choice([0, 10, 200, 40000])), opcode=dice.randrange(16))
                made.sendall(whole if at % 2 else dice.randbytes(300))
                made.settimeout(0.02)
                made.recv(1000)
    return []


def absurd_joins(port: int) -> HELD:
    huge = 10**4000
    bad = [
        join(index=huge), join(index=-huge), join(index=-1), join(index=0), join(index=2**31), join(index=1e999),
        join(size=huge), join(version=huge), join(version=0.5), join(group="x" * 20000), join(group="\ud800"),
        join(index=True), join(index=None), join(digest=[]), join(node=[]), join(node={}), join(incarnation={}),
        join(digest="d" * 30000), join(node={"ip": "\x1b[2J\n", "hostname": "", "gpus": huge}), join(facts=7),
        b"[" * 30000, b'{"type":' + b"[" * 900 + b"]" * 900 + b"}", b'{"type":' * 5000, b'{"type": 1e400}',
        b"9" * 30000, b"NaN", b'"', b"null", b"\xff\xfe", b'{"type": "join"}', b'{"type": "welcome"}',
        b'{"type": "stop", "cause": null, "reason": ""}', b'{"type": "failed", "cause": {"index": 0, "what": "x"}}',
        b'{"type": "done"}', b"x" * 1_000_000,
    ]  # fmt: skip
    bad += [join(index=10**6 + at, group=f"group {at}") for at in range(40)]  # made-up places, each refused otherwise
    for each in bad:
        with contextlib.suppress(OSError):
            made, _ = upgrade(port)
            with made:
                made.sendall(frame(each))
                made.settimeout(0.02)
                made.recv(1000)
    return []


def pings_before_joining(port: int) -> HELD:
    held = []
    for _ in range(10):
        with contextlib.suppress(OSError):
            made, _ = upgrade(port)
            held.append(made)
            made.sendall(frame(b'{"type": "ping", "number": 1}') * 2000 + frame(b"", opcode=9) * 2000)
    return held


def half_open_tls(port: int) -> HELD:
    return held_open(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 100)


def tls_without_a_certificate(port: int) -> HELD:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for _ in range(40):
        with contextlib.suppress(OSError), context.wrap_socket(connect(port)) as made:
            made.settimeout(0.2)
            made.sendall(b"GET /join HTTP/1.1\r\n\r\n")
            assert made.recv(1000) == b""
    return []


def slowloris(port: int) -> HELD:
    held = held_open(port, b"GET /group HTTP/1.1\r\nX: ", 100)
    for _ in range(5):
        for each in held:
            with contextlib.suppress(OSError):
                each.send(b"y")
        time.sleep(0.05)
    return held


def upgrades_without_a_join(port: int) -> HELD:
    held = []
    for _ in range(100):
        with contextlib.suppress(OSError):
            held.append(upgrade(port)[0])
    return held


def resets(port: int) -> HELD:
    for at in range(200):
        made = connect(port)
        made.sendall([b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n"][at % 3] or b"G")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.close()
    return []


def idle_connections(port: int) -> HELD:
    return held_open(port, b"", 2000)


def held_open(port: int, first: bytes, count: int) -> HELD:
    """From several addresses, as a pod network has them; as many as are taken in some seconds."""
    held: HELD = []
    until = time.monotonic() + 10
    while len(held) < count and time.monotonic() < until:
        with contextlib.suppress(OSError):
            held.append(connect(port, f"127.0.1.{1 + len(held) % 20}"))
            held[-1].sendall(first)
    return held


ATTACKS = [
    random_bytes,
    random_http,
    random_frames,
    absurd_joins,
    pings_before_joining,
    half_open_tls,
    tls_without_a_certificate,
    slowloris,
    upgrades_without_a_join,
    resets,
    idle_connections,
]


@contextlib.contextmanager
def waiting_leader(directory: Path, *options: str, token: str = "", **more: Any) -> Iterator[Pod]:
    with pod(0, free_port(), directory, *options, token=token, **more) as leader:
        leader.says("waiting for")
        yield leader


def the_group_forms_all_the_same(leader: Pod, directory: Path, token: str = "") -> None:
    with pod(1, leader.port, directory, token=token) as worker:
        assert (worker.wait(), leader.wait()) == (0, 0), leader.log[-2000:] + worker.log[-2000:]
    assert "Traceback" not in leader.log


def attacked(attack: Attack, directory: Path, token: str = "", descriptors: int = 64, sabotage: str = "") -> None:
    with waiting_leader(directory, token=token, descriptors=descriptors, sabotage=sabotage) as leader:
        memory = psutil.Process(leader.process.pid).memory_info().rss
        held = attack(leader.port)
        try:
            assert leader.page("/livez") == b"ok\n"
            seen = leader.group()
            assert [member["index"] for member in seen["members"]] == [0], "a stranger holds a place"
            grown = psutil.Process(leader.process.pid).memory_info().rss - memory
            assert grown < GROWTH, f"{grown >> 20} MiB for strangers"
            assert len(leader.log) < 50_000, "a stranger fills the log"
            the_group_forms_all_the_same(leader, directory, token)
        finally:
            for each in held:
                each.close()


@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "with a token"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_group_forms_in_spite_of(attack: Attack, token: str, tmp_path: Path) -> None:
    attacked(attack, tmp_path, token)


@pytest.mark.parametrize("attack", [idle_connections, half_open_tls], ids=lambda attack: attack.__name__)
def test_without_limits_strangers_keep_the_worker_out(attack: Attack, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, OSError)):
        attacked(attack, tmp_path, TOKEN, sabotage="stranger_limits")


def test_a_connection_that_does_not_join_is_closed_in_time(tmp_path: Path) -> None:
    with waiting_leader(tmp_path) as leader:
        began = time.monotonic()
        with connect(leader.port) as silent, connect(leader.port) as slow:
            slow.sendall(b"GET /gro")
            for made, soonest, latest in ((silent, 4, 9), (slow, 14, 20)):
                made.settimeout(25)
                with contextlib.suppress(ConnectionResetError):
                    assert made.recv(10) == b""
                assert soonest <= time.monotonic() - began <= latest


def replay(directory: Path, sabotage: str = "") -> None:
    port = free_port()
    with (
        tap(port) as wire,
        pod(0, port, directory, size=3, token=TOKEN, sabotage=sabotage) as leader,
    ):
        with pod(1, port, directory, f"--leader-address={TAP}", size=3, token=TOKEN, sabotage=sabotage) as worker:
            worker.says("joined the leader at 127.0.0.99")
        wait_until(lambda: len(leader.group()["members"]) == 1)
        recorded = bytes(max(wire.from_member, key=len))
        for part in (recorded, recorded[: len(recorded) // 2], recorded[1:]):
            with connect(port) as stranger, contextlib.suppress(OSError):
                stranger.sendall(part)
                stranger.settimeout(1)
                stranger.recv(65536)
                assert len(leader.group()["members"]) == 1, "the replayed session has joined"
        with (
            pod(1, port, directory, size=3, token=TOKEN, sabotage=sabotage) as one,
            pod(2, port, directory, size=3, token=TOKEN, sabotage=sabotage) as two,
        ):
            assert (one.wait(), two.wait(), leader.wait()) == (0, 0, 0)


def test_a_recorded_session_played_again_does_not_join(tmp_path: Path) -> None:
    replay(tmp_path)


def test_without_a_token_a_recorded_session_does_join(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the replayed session has joined"):
        replay(tmp_path, sabotage="token")


@pytest.mark.parametrize(
    ("flood", "what"),
    [
        (frame(b'{"type": "phase", "phase": "x"}') * 500, "it sent more than 200 messages within 15 s"),
        (frame(b"", opcode=9) * 500, "it sent more than 200 messages within 15 s"),
        (frame(b"x" * 60_000, opcode=0xA)[:60_000] * 6, "lost"),
        (frame(b'{"type": "formed", "nodes": []}'), "lost: a formed from a member"),
    ],
)
def test_a_member_that_floods_is_cut_off_and_that_is_its_failure(flood: bytes, what: str, tmp_path: Path) -> None:
    with waiting_leader(tmp_path, command=("sleep", "600")) as leader:
        member, _ = upgrade(leader.port)
        with member:
            member.sendall(frame(join()))
            leader.says("group formed")
            with contextlib.suppress(OSError):
                member.sendall(flood)
            assert leader.wait() == 75
        assert "stopped because worker 1: lost" in leader.log
        assert what in leader.log


def test_heartbeats_go_on_while_strangers_knock(tmp_path: Path) -> None:
    command = ("sh", "-c", "sleep 6")
    with waiting_leader(tmp_path, "--peer-timeout=2s", token=TOKEN, command=command, descriptors=256) as leader:
        over = threading.Event()

        def knock(seed: int) -> None:
            while not over.is_set():
                for first in (b"\x16\x03\x01\x02\x00" + bytes(600), b"GET /group HTTP/1.1\r\n\r\n", b"\x00", b""):
                    say(leader.port, first, wait=0.001, source=f"127.0.1.{seed + 1}")

        threads = [threading.Thread(target=knock, args=(seed,)) for seed in range(4)]
        with pod(1, leader.port, tmp_path, "--peer-timeout=2s", token=TOKEN, command=command) as worker:
            leader.says("group formed")
            for thread in threads:
                thread.start()
            try:
                wait_until(lambda: leader.group()["members"][1]["round_trip_seconds"] is not None)
                trips = []
                while worker.process.poll() is None:
                    with contextlib.suppress(OSError, IndexError):
                        trips.append(leader.group()["members"][1]["round_trip_seconds"])
                    time.sleep(0.1)
            finally:
                over.set()
                for thread in threads:
                    thread.join(10)
            assert (worker.wait(), leader.wait()) == (0, 0)
        assert trips
        assert sorted(trips)[len(trips) // 2] < 0.3, "heartbeats are slow"
