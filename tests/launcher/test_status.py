"""`lwsrun status`, asked of real groups: from a worker, from the leader, from outside; and of what is none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LWSRUN, free_port, start, wait_until
from loopback import Pods

from launcher import group_page
from launcher.group_page import Address, NoAnswer, ask_group, parse_address
from launcher.group_table import duration, render, serves

SERVE = ("--kind=server", "--gpus-per-node=4", "--", "sleep", "600")


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path / "pods") as pods:
        yield pods


def rows(output: str) -> list[list[str]]:
    """The table's rows: index, host, IP, phase."""
    return [line.split()[:4] for line in output.splitlines()[2:4]]


def test_every_pod_of_a_group_shows_the_same_table(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a group with a token: its pages need none, and status no secret."""
    secret = {"LWSRUN_TOKEN": "a secret of this group"}
    leader = pods.start(0, *SERVE, **secret)
    leader.says("waiting for 1 workers", 30)
    port = f"--port={pods.port}"
    early = start("status", port)
    assert early.returncode == 1
    assert "1 of 2 pods here" in early.stdout
    assert rows(early.stdout)[1] == ["1", "-", "-", "missing"]
    assert early.stdout.splitlines()[-1] == "not ready: gathering: waiting for worker 1 (never seen)"

    worker = pods.start(1, *SERVE, **secret)
    wait_until(lambda: leader.group()["members"][-1]["phase"] == leader.group()["phase"] == "serving", 30)
    here = start("status", LWSRUN_PORT=str(pods.port), LWSRUN_LISTEN=worker.address)  # as in the worker's container
    assert here.returncode == 0, here.stderr
    title, headings, *_ = here.stdout.splitlines()
    assert title.startswith("group g · generic, as it is · serving for ")
    assert "2 of 2 pods here" in title
    assert headings.split() == ["INDEX", "HOST", "IP", "PHASE", "SINCE", "GPUS", "ENGINE", "HEARTBEAT", "RESTARTS"]
    host = socket.gethostname()
    assert rows(here.stdout) == [["0", host, "127.0.0.1", "serving"], ["1", host, "127.0.0.2", "serving"]]
    last = here.stdout.splitlines()[-1].split()
    assert last[5:7] == ["4", "generic"]
    assert last[-2:] == ["ago", "0"]
    told = start("status", f"{worker.address}:{pods.port}", "--format=json")
    page = json.loads(told.stdout)
    assert page["serves"] is True
    assert page["index"] == 0
    assert [member["gpus"] for member in page["members"]] == [4, 4]
    for address in (leader.address, worker.address):
        page, remark = ask_group(Address(address, pods.port))
        assert rows(render(page)) == rows(here.stdout)
        assert remark is None
    assert "a secret" not in told.stdout
    watched(port)
    monkeypatch.setattr(group_page, "TIMEOUT", 2.5)
    without_the_leader(leader.process, Address(worker.address, pods.port))


def hear_interrupts() -> None:
    """Where tests run in a shell's background, SIGINT is ignored, and what they start inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def watched(port: str) -> None:
    """--watch looks again and again; Ctrl-C ends it, with the code of the last look."""
    argv = [*LWSRUN, "status", port, "--watch", "--format=json"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    ) as watching:
        assert watching.stdout is not None
        first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
        assert second["since_seconds"] - first["since_seconds"] > 1
        watching.send_signal(signal.SIGINT)
        _, complaints = watching.communicate(timeout=20)
    assert watching.returncode == 0
    assert complaints == ""


def without_the_leader(leader: subprocess.Popen[bytes], worker: Address) -> None:
    """While the leader is frozen, a worker shows what it knows itself."""
    os.kill(leader.pid, signal.SIGSTOP)
    try:
        page, remark = ask_group(worker)
    finally:
        os.kill(leader.pid, signal.SIGCONT)
    assert not serves(page)
    title, _, *members = render(page).splitlines()
    assert "seen by worker 1 alone" in title
    assert [line.split()[0] for line in members] == ["1"]
    assert remark is not None
    assert "its leader: 127.0.0.1" in remark
    assert "did not answer within 2.5 s" in remark


# ------------------------------------------------------------------ where no launcher answers


def test_nobody_there_is_one_line_and_a_code_of_its_own() -> None:
    refused = start("status", f"127.0.0.1:{free_port()}")
    assert refused.returncode == 70
    assert refused.stdout == ""
    assert refused.stderr.startswith("lwsrun: no launcher listens at 127.0.0.1:")
    assert len(refused.stderr.splitlines()) == 1
    assert start("status", "a:b").returncode == 78
    odd = start("status", "a b")
    assert (odd.returncode, odd.stderr) == (70, "lwsrun: 'a b' is no host name\n")
    with pytest.raises(NoAnswer, match=r"'nobody\.invalid' has no address"):
        ask_group(Address("nobody.invalid", 9470))


ANSWERS = {
    "another web server": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", "no lwsrun launcher (HTTP 404"),
    "JSON of another kind": (b"HTTP/1.1 200 OK\r\n\r\n[1, 2]", "no lwsrun launcher (HTTP 200"),
    "members that are none": (
        b'HTTP/1.1 200 OK\r\n\r\n{"group":1,"size":1,"index":0,"phase":1,"phases":1,"members":[1]}',
        "no lwsrun launcher",
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "it does not speak HTTP"),
    "nothing, and it hangs up": (b"", "it does not speak HTTP"),
    "nothing, and it waits": (None, "did not answer within 0.3 s"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_is_no_launcher_is_told(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_page, "TIMEOUT", 0.3)
    said, expected = ANSWERS[case]
    with socket.create_server(("127.0.0.1", 0)) as server:
        pid = os.fork()
        if pid == 0:
            connection, _ = server.accept()
            if said is None:
                signal.pause()
            connection.recv(4096)
            connection.sendall(said or b"")
            os._exit(0)
        try:
            with pytest.raises(NoAnswer) as raised:
                ask_group(Address("127.0.0.1", server.getsockname()[1]))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


ADDRESSES = {
    "sim-0.sim.default": Address("sim-0.sim.default", 9470),
    "10.0.0.7": Address("10.0.0.7", 9470),
    "10.0.0.7:80": Address("10.0.0.7", 80),
    "fd00::7": Address("fd00::7", 9470),
    "[fd00::7]": Address("fd00::7", 9470),
    "[fd00::7]:80": Address("fd00::7", 80),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address_may_have_a_port_and_brackets(text: str) -> None:
    assert parse_address(text, 9470) == ADDRESSES[text]


@pytest.mark.parametrize(
    "text", ["", ":80", "host:", "host:0", "host:99999", "host:x", "[fd00::7", "[fd00::7]80", "[]:1", "fd00::[7]"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no address: write HOST, HOST:PORT, or"):
        parse_address(text, 9470)


# ------------------------------------------------------------------ how it is shown


def page(**changes: Any) -> dict[str, Any]:
    member = {"index": 0, "host": "h", "ip": "10.0.0.1", "phase": "serving", "gpus": 8, "since_seconds": 75.0}
    own = {"group": "g", "size": 1, "index": 0, "phase": "serving", "phases": {}, "members": [member], "epoch": 1}
    return own | {"since_seconds": 75.0, "not_ready": None} | changes


def test_a_group_serves_when_all_of_it_does() -> None:
    assert serves(page())
    assert not serves(page(size=2))
    assert not serves(page(not_ready="engine: refused"))
    assert not serves(page(members=[page()["members"][0] | {"phase": "loading"}]))
    assert not serves(page(index=1)), "a worker does not see the others"


def test_a_name_from_outside_cannot_write_on_the_terminal() -> None:
    shown = render(page(members=[page()["members"][0] | {"host": "\x1b[2Jevil\nrow"}], not_ready="\x1b]0;x\x07"))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert len(shown.splitlines()) == 4


def test_a_page_of_an_older_launcher_is_shown_too() -> None:
    """In a rollout the leader may be older than the pod that asks."""
    old = {"group": "g", "size": 1, "index": 0, "phase": "serving", "phases": {}, "members": [{"index": 0}]}
    assert render(old).splitlines()[2].split() == ["0", *["-"] * 8]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0s"), (9.94, "9.9s"), (17.9, "17s"), (723, "12m3s"), (19200, "5h20m"), (273600, "3d4h"), (None, "-")],
)
def test_durations_are_short(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown
