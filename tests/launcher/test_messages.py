"""Messages survive the wire, and nothing that a stranger sends is more than a BadMessage."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.group import MAX_SIZE
from launcher.channel import messages as m

NODE = m.NodeFacts("10.0.0.1", "my-lws-0", 8, "0.32.0", None)
EVERY = [
    m.Join(1, "g", 1, 2, "abc", None, NODE),
    m.Join(1, "g", 1, 2, "abc", None, NODE, facts=m.Facts("vllm", "3.12.3", "L4", "550", {"NCCL_ALGO": "Ring"})),
    m.Refused("command", "its command differs", True, ["vllm", "serve", "m"]),
    m.Refused("size", "its group size is 3, the leader's is 2"),
    m.Join(1, "g", 1, 2, "abc", None, NODE, facts=m.Facts(leader_excluded=True, kind="job", ray_port=6379)),
    m.Welcome("run", NODE, ["vllm", "serve", "m"], {"ray-token": "t"}, 15.0, 2, "server"),
    m.Formed([NODE, NODE]),
    m.Handed("ssh-ed25519 AAAA", {"HF_TOKEN": "t"}, {}),
    m.Equipped(None, None),
    m.Launch(1, "PATH=/x ; export PATH ; /x/orted -mca ess env"),
    m.LaunchEnded(1, 137, "prted exited 137 (SIGKILL)"),
    m.Finished(),
    m.Settled(),
    m.Phase("serving"),
    m.Ping(7),
    m.Pong(7),
    m.Done(),
    m.Failed(m.Cause(1, "the engine exited 137 (SIGKILL)", 137, "Traceback …")),
    m.Hung("the engine answers no health check for 30 s"),
    m.Inspect(),
    m.Inspected("VLLM::Worker_TP1 (pid 57) is stopped (state T)"),
    m.Leaving("SIGTERM"),
    m.Stop(None, "asked"),
    m.Stop(m.Cause(0, "lost"), "lost"),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: m.Message) -> None:
    assert m.decode(m.encode(message)) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(st.text(max_size=300))
def test_any_text_is_a_message_or_a_bad_message(text: str) -> None:
    with pytest.raises(m.BadMessage):
        m.decode(text)


@given(st.sampled_from([json.loads(m.encode(message)) for message in EVERY]), st.data())
def test_a_damaged_message_is_decoded_or_refused_never_more(fields: dict[str, Any], data: st.DataObject) -> None:
    damaged = {**fields, data.draw(st.sampled_from(sorted(fields))): data.draw(JSON)}
    try:
        message = m.decode(json.dumps(damaged))
    except m.BadMessage:
        return
    assert m.decode(m.encode(message)) == message or "NaN" in m.encode(message)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ('{"type": "join"}', "join.version is missing"),
        ('{"type": "ping", "number": "7"}', "ping.number is not int"),
        ('{"type": "ping", "number": true}', "ping.number is not int"),
        ('{"type": "formed", "nodes": [{"ip": "x"}]}', "formed.nodes.hostname is missing"),
        ('{"type": "explode"}', "unknown type 'explode'"),
        ("[1]", "not an object"),
        ("[" * 100000, "not JSON"),
        ('{"type": ' + "[" * 900 + "]" * 900 + "}", "an object without a type"),
        ('{"type": "ping", "number": ' + "9" * 4000 + "}", "ping.number is too large"),
        ('{"type": "ping", "number": ' + "9" * 5000 + "}", "not JSON"),
        ('{"type": "ping", "number": NaN}', "ping.number is not finite"),
        ('{"type": "stop", "cause": null, "reason": "", "restart": 1e999}', "stop.restart is not finite"),
        ('{"type": "stop", "cause": null, "reason": "", "restart": 1' + "0" * 400 + "}", "stop.restart is too large"),
    ],
)
def test_a_bad_message_says_what_is_wrong(frame: str, says: str) -> None:
    with pytest.raises(m.BadMessage, match=says):
        m.decode(frame)


def test_the_nodes_of_the_largest_group_fit_into_one_message() -> None:
    longest = m.NodeFacts(
        "f" * 39, "h" * 64, 1024, "0.33.0rc1.dev123+g0123456789.d20260101.cu130", "3.0.0.dev0+0123456"
    )
    assert m.size_of(longest) < m.MAX_NODE
    padded = replace(longest, hostname="h" * (64 + m.MAX_NODE - m.size_of(longest)))
    assert m.size_of(padded) == m.MAX_NODE, "the largest that a leader lets in"
    assert len(m.encode(m.Formed([padded] * MAX_SIZE))) < m.MAX_MESSAGE


def test_the_longest_command_fits_into_one_message_whether_let_in_or_refused() -> None:
    longest = m.Welcome("run", NODE, ["x" * 1000] * 262, {"ray-token": "t" * 64}, 15.0, MAX_SIZE, "server")
    assert m.MAX_COMMAND < len(m.encode(longest)) < m.MAX_MESSAGE
    assert len(m.encode(m.Refused("command", "r" * 8192, True, longest.command))) < m.MAX_MESSAGE


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert m.decode('{"type": "ping", "number": 1, "novelty": {}}') == m.Ping(1)
