"""A group of the largest size: a real leader, and members that are no more than their connections."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from conftest import free_port
from loopback import LEADER, pod

from backends.group import MAX_SIZE
from launcher.channel import messages as m


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Here and in the leader, which gets ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_SIZE
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def member(index: int, port: int) -> tuple[str, m.Message]:
    """Its job is done as soon as the group has formed. What it was told of the nodes, and the last word."""
    connector = aiohttp.TCPConnector(local_addr=(f"127.0.{1 + index // 200}.{1 + index % 200}", 0))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(f"ws://{LEADER}:{port}/join", max_msg_size=m.MAX_MESSAGE, compress=0) as socket,
    ):
        node = m.NodeFacts(f"fd00:1234:5678:9abc:def0:1234:5678:{index:04x}", f"a-group-with-a-long-name-0-{index}", 0)
        await socket.send_str(m.encode(m.Join(m.VERSION, "g", index, MAX_SIZE, "i", None, node)))
        formed = ""
        while True:
            frame = await socket.receive_str()
            if frame.startswith('{"type": "formed"'):
                formed = frame
                await socket.send_str(m.encode(m.Done()))
                continue
            match m.decode(frame):
                case m.Ping(number):
                    await socket.send_str(m.encode(m.Pong(number)))
                case m.Welcome() | m.Draining(_):
                    pass
                case last:
                    return formed, last


def test_a_group_of_the_largest_size_forms_and_its_job_ends(many_descriptors: None, tmp_path: Path) -> None:
    port = free_port()

    async def all_members() -> list[tuple[str, m.Message]]:
        async with asyncio.timeout(90):
            return await asyncio.gather(*(member(index, port) for index in range(1, MAX_SIZE)))

    with pod(0, port, tmp_path, size=MAX_SIZE) as leader:
        leader.says("waiting for")
        told = asyncio.run(all_members())
        assert leader.wait(30) == 0, leader.log[-3000:]
    formed = {frame for frame, _ in told}
    assert len(formed) == 1
    assert [node["hostname"] for node in json.loads(formed.pop())["nodes"]][1:] == [
        f"a-group-with-a-long-name-0-{index}" for index in range(1, MAX_SIZE)
    ]
    assert all(last == m.Stop(None, "the job is done") for _, last in told), {str(last) for _, last in told}
