"""With a token only its holders form a group, and nothing that they say can be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import LWSRUN, Simulate, free_port, start
from loopback import TAP, pod, tap

pytestmark = pytest.mark.slow

TOKEN = "9f3c0e5d7b1a48269f3c0e5d7b1a4826"
OTHER = "00000000000000000000000000000000"
IDENTITY = ("--size=2", "--index=0", "--leader-address=127.0.0.1", "--listen=127.0.0.1")
SLEEP = ("sleep", "600")


def test_a_group_with_a_token_forms_and_its_engines_never_see_it(simulate: Simulate) -> None:
    look = 'env; for each in /proc/[0-9]*/cmdline; do tr "\\0" " " <$each; echo; done'
    done = simulate("--size=3", command=["sh", "-c", look], LWSRUN_TOKEN=TOKEN)
    assert done.codes() == [0, 0, 0]
    for index in range(3):
        assert any("-m launcher start" in line for line in done.said(index))
        assert TOKEN not in done.log(index)
        assert "no LWSRUN_TOKEN" not in done.log(index)


def test_death_is_seen_over_tls_as_it_is_without(simulate: Simulate) -> None:
    done = simulate(
        "--size=3", "--kind=server", "--fault=kill:1@serving", command=list(SLEEP), limit=20, LWSRUN_TOKEN=TOKEN
    )
    assert done.codes() == [75, 137, 75]
    for index in (0, 2):
        assert "stopped because worker 1: lost: the connection was closed" in done.log(index).splitlines()[-1]


def test_a_frozen_worker_is_seen_over_tls_too(simulate: Simulate) -> None:
    done = simulate(
        "--size=2", "--kind=server", "--peer-timeout=2s", "--fault=freeze:1@serving", "--fault=kill:1@serving+6s",
        command=list(SLEEP), limit=25, LWSRUN_TOKEN=TOKEN,
    )  # fmt: skip
    assert "stopped because worker 1: lost: nothing was heard from it for" in done.log(0)


def test_one_pod_may_have_the_token_from_a_file_with_a_newline_at_its_end(tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with pod(0, port, tmp_path, token=TOKEN) as leader, pod(1, port, tmp_path, f"--token-file={file}") as worker:
        assert (leader.wait(), worker.wait()) == (0, 0)


def wrong_token(tmp_path: Path, sabotage: str = "") -> None:
    port = free_port()
    with (
        pod(0, port, tmp_path, token=TOKEN, command=SLEEP, sabotage=sabotage) as leader,
        pod(1, port, tmp_path, "--gather-timeout=5s", token=OTHER, command=SLEEP, sabotage=sabotage) as worker,
    ):
        leader.says("waiting for 1 workers")
        assert worker.wait() == 75
        assert "wrong token: the leader has another one, or belongs to another group" in worker.log
        assert "turned away 127.0.0.1: wrong token, or no member at all" in leader.log
        refused = leader.group()["joins_refused"]
        assert set(refused) == {"token"}
        assert refused["token"] <= 2, "a wrong token must not be tried in a fast loop"


def a_worker_without_the_token(tmp_path: Path, sabotage: str = "") -> None:
    port = free_port()
    with (
        pod(0, port, tmp_path, token=TOKEN, command=SLEEP, sabotage=sabotage) as leader,
        pod(1, port, tmp_path, "--gather-timeout=5s", command=SLEEP, sabotage=sabotage) as worker,
    ):
        assert worker.wait() == 75
        assert "the leader has a token, this pod has none" in worker.log
        assert "turned away 127.0.0.1: it has no token, this group has one" in leader.log
        assert leader.group()["joins_refused"]["token"] <= 2


def a_leader_without_the_token(tmp_path: Path, sabotage: str = "") -> None:
    port = free_port()
    with (
        pod(0, port, tmp_path, command=SLEEP, sabotage=sabotage) as leader,
        pod(1, port, tmp_path, "--gather-timeout=5s", token=TOKEN, command=SLEEP, sabotage=sabotage) as worker,
    ):
        assert worker.wait() == 75
        assert "this pod has a token, but the leader does not speak TLS" in worker.log
        assert "no LWSRUN_TOKEN: whoever is on the pod network can join this group" in leader.log
        assert "turned away 127.0.0.1: it wants TLS, as members with a token do, and here is no token" in leader.log


def the_same_token_in_another_group(tmp_path: Path, sabotage: str = "") -> None:
    port = free_port()
    with (
        pod(0, port, tmp_path, token=TOKEN, command=SLEEP, sabotage=sabotage) as leader,
        pod(1, port, tmp_path, "--group-id=h", "--gather-timeout=5s", token=TOKEN, sabotage=sabotage) as worker,
    ):
        assert worker.wait() == 75
        assert "wrong token: the leader has another one, or belongs to another group" in worker.log
        assert set(leader.group()["joins_refused"]) == {"token"}


def nothing_readable_on_the_wire(tmp_path: Path, sabotage: str = "") -> None:
    port = free_port()
    with (
        tap(port) as wire,
        pod(0, port, tmp_path, token=TOKEN, command=SLEEP, sabotage=sabotage) as leader,
        pod(1, port, tmp_path, f"--leader-address={TAP}", token=TOKEN, command=SLEEP, sabotage=sabotage) as worker,
    ):
        leader.says("group formed")
        worker.says("running: sleep")
        started = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
        heard = b"".join(map(bytes, (*wire.from_leader, *wire.from_member)))
        assert len(heard) > 2000
        assert b"welcome" not in heard
        assert re.search(rb"[0-9a-f]{64}", heard) is None, "a minted secret can be read"
    assert any("launcher start" in line for line in started)
    for text in (heard.decode(errors="replace"), leader.log, worker.log, *started):
        assert TOKEN not in text
    assert re.search("[0-9a-f]{64}", leader.log + worker.log) is None


FAILURES = [
    (wrong_token, "certificates"),
    (the_same_token_in_another_group, "certificates"),
    (a_worker_without_the_token, "token"),
    (a_leader_without_the_token, "token"),
    (nothing_readable_on_the_wire, "token"),
]


@pytest.mark.parametrize("scenario", [scenario for scenario, _ in FAILURES], ids=lambda s: s.__name__)
def test_only_who_has_the_token_joins_or_understands(scenario, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    scenario(tmp_path)


@pytest.mark.parametrize(("scenario", "off"), FAILURES, ids=lambda value: getattr(value, "__name__", value))
def test_without_its_mechanism_the_token_test_fails(scenario, off, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        scenario(tmp_path, sabotage=off)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\r\n", "is empty"),
        (b"fifteen bytes !\n", "has 15 bytes"),
        (b"x" * 100_000, "is larger than 64 KiB"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_token_file_that_cannot_be_right_is_a_configuration_error(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    done = start("start", *IDENTITY, f"--token-file={file}", "--", "true")
    assert done.returncode == 78
    assert says in done.stderr
    assert content is None or "openssl rand -hex 32" in done.stderr
    assert "fifteen bytes !" not in done.stderr


@pytest.mark.parametrize("value", ["", "too short"])
def test_a_variable_that_cannot_be_a_token_is_a_configuration_error(value: str) -> None:
    done = start("start", *IDENTITY, "--", "true", LWSRUN_TOKEN=value)
    assert done.returncode == 78
    assert "openssl rand -hex 32" in done.stderr
    assert "too short" not in done.stderr


def test_two_tokens_are_one_too_many(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    done = start("start", *IDENTITY, "--", "true", LWSRUN_TOKEN=OTHER, LWSRUN_TOKEN_FILE=str(file))
    assert done.returncode == 78
    assert "both LWSRUN_TOKEN and --token-file are given" in done.stderr


def test_without_a_token_nothing_is_loaded_for_it(tmp_path: Path) -> None:
    argv = [*LWSRUN, "start", *IDENTITY, f"--port={free_port()}", "--gather-timeout=1s", "--", "true"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LWS_")}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argv[1:]], capture_output=True, text=True, timeout=30, env=env
    )
    assert done.returncode == 75
    assert "launcher.channel.leader" in done.stderr
    assert "cryptography" not in done.stderr
    assert "launcher.channel.tls" not in done.stderr
