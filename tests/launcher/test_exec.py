"""`--exec`: the launcher becomes the engine, in all pods of the group or in none."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import LWSRUN, Simulate, free_port, launched, start

LOOK = """
import ctypes, os
print("up", flush=True)
print(os.getpid(), os.environ["PLACE"], "LWSRUN_PORT" in os.environ)
masks = dict(line.split()[:2] for line in open("/proc/self/status") if line.startswith("Sig"))
glibc = 0b11 << 31  # its own two signals stay as whoever started us left them
print(int(masks["SigBlk:"], 16), int(masks["SigIgn:"], 16) & ~glibc)
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1])  # the last one reads the folder
reaper = ctypes.c_int()
ctypes.CDLL(None).prctl(37, ctypes.byref(reaper), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
print(reaper.value)
os._exit(7)
"""


@pytest.mark.parametrize("pid_1", [True, False], ids=["as PID 1", "as an ordinary process"])
def test_the_launcher_becomes_the_engine_and_leaves_nothing_of_itself(pid_1: bool) -> None:
    # Python ignores SIGPIPE (13) and SIGXFSZ (25) itself; a test runner's own descriptors do not count.
    command = ["--exec", "--env=PLACE={index} of {size}", "--", sys.executable, "-c", LOOK]
    with launched(*command, pid_1=pid_1) as pod:
        assert pod.line() == f"{1 if pid_1 else pod.pid} 0 of 1 False"
        assert pod.line() == f"0 {1 << 12 | 1 << 24}"
        assert pod.line() == "[0, 1, 2]"
        assert pod.line() == "0"
        assert pod.wait() == 7


def test_what_cannot_be_executed_is_a_configuration_error() -> None:
    done = start("start", "--size=1", "--exec", "--", "/etc/passwd")
    assert done.returncode == 78
    assert "/etc/passwd is not executable" in done.stderr


def test_every_pod_of_a_group_becomes_its_engine_and_ends_with_its_own_code(simulate: Simulate) -> None:
    command = ["sh", "-c", "echo I am pid $$ at {index}; sleep 2; exit {index}"]
    done = simulate("--size=3", "--exec", "--kind=server", command=command)
    assert done.codes() == [0, 1, 2]
    for index in range(3):
        assert f"I am pid 1 at {index}" in done.said(index)
        assert "becoming: sh -c" in done.log(index)


def test_an_end_after_all_have_detached_is_not_taken_for_death(simulate: Simulate) -> None:
    done = simulate("--size=2", "--exec", command=["sh", "-c", "[ {index} = 1 ] || sleep 3; echo over {index}"])
    assert done.codes() == [0, 0]
    assert "over 0" in done.said(0)


def test_nobody_becomes_an_engine_when_a_member_is_lost_before_all_are_prepared(simulate: Simulate) -> None:
    # On Ray the leader is prepared only when the cluster is complete: seconds in which worker 1 dies.
    done = simulate(
        "--size=3", "--gpus-per-node=1", "--backend=ray", "--exec", "--fault=kill:1@formed",
        command=["echo", "the engine ran"], limit=60,
    )  # fmt: skip
    assert done.codes() == [75, 137, 75]
    assert "stopped because worker 1: lost" in done.log(0)
    assert "the engine ran" not in done.said(0)
    assert "detached: this pod's part" not in done.log(2)


RAY_LOOK = """
import os, psutil, ray
ray.init(log_to_driver=False)
names = {child.name() for child in psutil.Process().children(recursive=True)}
print("pid", os.getpid(), "nodes", len(ray.nodes()), "head is a child", "gcs_server" in names)
"""


def test_services_stay_as_children_of_the_engine(simulate: Simulate) -> None:
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--backend=ray", "--exec", "--peer-timeout=1s",
        command=[sys.executable, "-c", RAY_LOOK], limit=100,
    )  # fmt: skip
    assert "pid 1 nodes 2 head is a child True" in done.said(0)
    assert "detached: this pod's part is ray-worker; nobody watches its peers from here on" in done.log(1)
    leader, worker = done.codes()
    assert leader == 0
    assert worker != 0, "a pod whose Ray has ended must not look finished"


def test_a_worker_with_another_mind_about_exec_is_refused_with_both_sides_named() -> None:
    address = ("--size=2", "--leader-address=127.0.0.1", f"--port={free_port()}", "--report-every=0.5s")
    leader = [*LWSRUN, "start", *address, "--index=0", "--listen=127.0.0.1", "--exec", "--", "true"]
    worker = [*LWSRUN, "start", *address, "--index=1", "--listen=127.0.0.2", "--gather-timeout=5s", "--", "true"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LWS_")}
    with subprocess.Popen(leader, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            done = subprocess.run(worker, capture_output=True, text=True, timeout=30, env=env)
        finally:
            process.kill()
    assert done.returncode == 75
    assert re.search("the leader refuses us: the leader runs with --exec, it without", done.stderr)


@pytest.mark.parametrize("option", ["--then=true", "--fault=kill:0@serving"])
def test_a_simulation_says_that_exec_leaves_nobody_to_tell_when_the_group_serves(option: str) -> None:
    done = start("simulate", "--size=1", "--exec", option, "--", "true")
    assert done.returncode == 78
    assert "--exec" in done.stderr.splitlines()[0]
