"""What a leader makes of the facts in its members' joins, and how long a member asks again: without any process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from conftest import free_port
from loopback import member_side

from launcher.channel import agreement
from launcher.channel import messages as m
from launcher.channel.absences import Absences
from launcher.channel.events import Mismatched

RING = {"NCCL_ALGO": "Ring"}
NODE = m.NodeFacts("10.0.0.10", "my-lws-0", 8, "0.32.0", "2.60.0")
FACTS = m.Facts("vllm", "3.12.3", "NVIDIA H100 80GB HBM3", "550.54", RING, False, "server", 6379)
LEADER = m.Join(m.VERSION, "g", 0, 3, "", "abc", NODE, facts=FACTS)
WORKER = replace(LEADER, index=1, incarnation="i", node=replace(NODE, ip="10.0.0.11", hostname="my-lws-0-1"))


NONE_OR_BOTH = "(say it in both templates or in none)"


def node(**changes: Any) -> m.Join:
    return replace(WORKER, node=replace(WORKER.node, **changes))


def facts(**changes: Any) -> m.Join:
    return replace(WORKER, facts=replace(FACTS, **changes))


@pytest.mark.parametrize(
    ("join", "code", "text", "refused"),
    [
        (replace(WORKER, size=4), "size", "its group size is 4, the leader's is 3", True),
        (replace(WORKER, exec=True), "exec", f"it runs with --exec, the leader without {NONE_OR_BOTH}", True),
        (facts(leader_excluded=True), "leader-excluded",
         f"it runs with --leader-excluded, the leader without {NONE_OR_BOTH}", True),
        (facts(kind="job"), "kind", "its --kind is job, the leader's is server (say the same in both templates)", True),
        (facts(ray_port=6380), "ray-port",
         "its --ray-port is 6380, the leader's is 6379 (say the same in both templates)", True),
        (replace(WORKER, digest="def"), "command", "its command differs: digest def, the leader's is abc", True),
        (node(engine_version="0.33.0"), "engine", "its engine is vllm 0.33.0, the leader's is vllm 0.32.0", True),
        (facts(engine="sglang"), "engine", "its engine is sglang 0.32.0, the leader's is vllm 0.32.0", True),
        (node(ray=None), "ray", "its Ray is none, the leader's is 2.60.0", True),
        (node(gpus=4), "gpus", "its GPU count is 4, the leader's is 8", True),
        (facts(gpu_model="NVIDIA L4"), "GPU", "its GPU is NVIDIA L4, the leader's is NVIDIA H100 80GB HBM3", False),
        (facts(driver="535.1"), "driver", "its driver is 535.1, the leader's is 550.54", False),
        (facts(python="3.11.9"), "python", "its Python is 3.11.9, the leader's is 3.12.3", False),
        (facts(nccl={}), "NCCL_ALGO", "its NCCL_ALGO is none, the leader's is Ring", False),
        (facts(nccl={**RING, "NCCL_NET": "IB"}), "NCCL_NET", "its NCCL_NET is IB, the leader's is none", False),
    ],
)  # fmt: skip
def test_a_difference_names_both_sides_and_is_refused_where_no_group_could_work(
    join: m.Join, code: str, text: str, refused: bool
) -> None:
    found = agreement.differences(join, LEADER, LEADER)
    assert found == [agreement.Difference(code, text)]
    assert agreement.mismatches(found, even_gpus=True) == (found if refused else [])


def test_a_switch_that_only_the_leader_has_is_told_as_the_leaders() -> None:
    leader = replace(LEADER, facts=replace(FACTS, leader_excluded=True))
    (found,) = agreement.differences(WORKER, leader, None)
    assert found.text == f"the leader runs with --leader-excluded, it without {NONE_OR_BOTH}"


def test_how_lwsrun_was_started_is_compared_only_with_members_that_tell_it() -> None:
    older = facts(leader_excluded=None, kind=None, ray_port=None)
    assert agreement.differences(older, LEADER, LEADER) == []
    assert agreement.differences(WORKER, replace(LEADER, facts=older.facts), LEADER) == []
    wire = m.encode(WORKER).replace(', "leader_excluded": false, "kind": "server", "ray_port": 6379', "")
    assert m.decode(wire) == older
    lines, differing = agreement.table([LEADER, older], leader_excluded=False)
    assert (len(lines), differing) == (1, [])


def test_how_lwsrun_was_started_has_a_column_where_it_differs() -> None:
    lines, differing = agreement.table([LEADER, facts(kind="job"), facts(kind=None)], leader_excluded=False)
    assert differing == ["--kind"]
    assert [line.split()[-1] for line in lines[1:]] == ["--kind", "server", "job", "?"]


def test_names_that_nccl_has_not_are_neither_compared_nor_shown() -> None:
    stranger = facts(nccl={**RING, "NCCL_\x1b[2J": "x", "PASSWORD": "y", **{f"NCCL_{at}": "z" for at in range(2000)}})
    assert agreement.differences(stranger, LEADER, LEADER) == []
    assert agreement.table([LEADER, stranger], leader_excluded=False)[1] == []


def test_pods_that_are_alike_do_not_differ() -> None:
    assert agreement.differences(WORKER, LEADER, LEADER) == []


def test_of_a_template_without_a_command_only_what_it_can_know_is_compared() -> None:
    bare = replace(WORKER, digest=None, node=replace(WORKER.node, engine_version=None, ray=None), facts=m.Facts())
    found = agreement.differences(replace(bare, size=4), LEADER, None)
    assert [each.code for each in found] == ["size", "NCCL_ALGO"]


def test_uneven_gpus_are_refused_for_an_engine_only() -> None:
    found = agreement.differences(node(gpus=4), LEADER, LEADER)
    assert agreement.mismatches(found, even_gpus=False) == []


def test_values_from_outside_are_shown_short_and_on_one_line() -> None:
    found = agreement.differences(facts(driver="a\nb" + "x" * 500), LEADER, LEADER)
    assert len(found[0].text) < 150
    assert "\n" not in found[0].text


def test_what_all_share_is_one_line() -> None:
    lines, differing = agreement.table([LEADER, WORKER, replace(WORKER, index=2)], leader_excluded=False)
    assert lines == [
        "all 3: command abc, vllm 0.32.0, Ray 2.60.0, 8 GPUs, NVIDIA H100 80GB HBM3, driver 550.54, Python 3.12.3,"
        " NCCL_ALGO=Ring"
    ]
    assert differing == []


def test_what_differs_is_a_column_with_a_row_for_each_member() -> None:
    lines, differing = agreement.table([LEADER, facts(driver="535.1")], leader_excluded=False)
    assert lines[1:] == [
        "member      host                  driver",
        "the leader  my-lws-0 10.0.0.10    550.54",
        "worker 1    my-lws-0-1 10.0.0.11  535.1",
    ]
    assert differing == ["driver"]


def test_of_a_large_group_only_members_unlike_the_leader_have_a_row() -> None:
    members = [LEADER, *(replace(WORKER, index=index) for index in range(1, 100))]
    members[7] = replace(facts(driver="535.1"), index=7)
    lines, _ = agreement.table(members, leader_excluded=False)
    assert [line.split("  ")[0] for line in lines[1:]] == ["member", "the leader", "worker 7", "and 98 more"]


def test_an_excluded_leaders_gpus_are_no_difference() -> None:
    leader = replace(LEADER, node=replace(NODE, gpus=0), facts=replace(FACTS, gpu_model=None, driver=None))
    lines, differing = agreement.table([leader, WORKER], leader_excluded=True)
    assert differing == []
    assert "8 GPUs, NVIDIA H100 80GB HBM3, driver 550.54" in lines[0]


def test_the_leader_knows_of_absent_members_what_happened_last() -> None:
    now = [100.0]
    absences = Absences(lambda: now[0])
    assert absences.describe([1, 2, 3]) == "workers 1 to 3 (never seen)"
    assert absences.refused(2, "its size")
    assert not absences.refused(2, "its size"), "the same refusal is no news"
    absences.left(4, "10.0.0.14", "lost")
    now[0] += 12
    assert absences.describe([1, 2, 3, 4, 6]) == (
        "worker 1 (never seen), worker 2 (refused: its size), worker 3 (never seen),"
        " worker 4 (was here and left 12 s ago from 10.0.0.14: lost), worker 6 (never seen)"
    )
    absences.joined(2)
    assert absences.describe([2]) == "worker 2 (never seen)"


MISMATCH = m.Refused("size", "its group size is 2, the leader's is 3", mismatch=True)
ELSE = m.Refused("draining", "this leader is stopping")


async def ask(answers: list[m.Message], timeout: float) -> m.Welcome:
    """Join a leader that gives these answers in turn, the last one for ever."""
    asked = 0

    async def handle(request: web.Request) -> web.WebSocketResponse:
        nonlocal asked
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        await socket.send_str(m.encode(answers[min(asked, len(answers) - 1)]))
        asked += 1
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/join", handle)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    member = member_side(port, mismatch_timeout=timeout)
    try:
        async with asyncio.timeout(20):
            return await member.join()
    finally:
        await member.close()
        await runner.cleanup()


def test_a_member_gives_up_when_it_is_refused_as_different_for_so_long() -> None:
    with pytest.raises(
        Mismatched, match=r"refused for . s .--mismatch-timeout.: .*its group size is 2, the leader's is 3"
    ):
        asyncio.run(ask([MISMATCH], 0.5))


def test_any_other_outcome_starts_the_clock_anew() -> None:
    welcome = m.Welcome("run", NODE, ["true"], {}, 15.0, 2)
    # Six answers take longer than the timeout, the two mismatches in a row do not.
    answers = [MISMATCH, ELSE, MISMATCH, ELSE, MISMATCH, ELSE, MISMATCH, ELSE, welcome]
    assert asyncio.run(ask(answers, 1.5)).run == "run"


def test_a_mismatch_timeout_of_zero_fails_at_the_first_refusal() -> None:
    with pytest.raises(Mismatched):
        asyncio.run(ask([MISMATCH, ELSE], 0))
