"""Faults, restart and startup policies of a simulation do to real pods what they say."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LWSRUN, Simulate, Simulation, start, wait_until

from backends.errors import ConfigError
from launcher.simulate import policies
from launcher.simulate.faults.schedule import GRAMMAR, parse_fault, parse_scenario
from launcher.simulate.life import tells_of_failure
from launcher.simulate.spec import Fault

SERVE = ["sleep", "600"]
SERVER = "--kind=server"

WRITTEN = {
    "kill:1@10s": Fault("kill", 1, "start", 10.0),
    "kill:1@10": Fault("kill", 1, "start", 10.0),
    "kill:0@start+0.5s": Fault("kill", 0, "start", 0.5),
    "kill:0@start": Fault("kill", 0, "start", 0.0),
    "kill-engine:2@serving": Fault("kill-engine", 2, "serving", 0.0),
    "term:1@formed+2m": Fault("term", 1, "formed", 120.0),
    "late:2@500ms": Fault("late", 2, "start", 0.5),
    "freeze:2@formed+5s": Fault("freeze", 2, "formed", 5.0),
    "freeze:2@5s+20s": Fault("freeze", 2, "start", 5.0, 20.0),
    "freeze:2@serving+5s+20s": Fault("freeze", 2, "serving", 5.0, 20.0),
    "partition:1@8s": Fault("partition", 1, "start", 8.0),
    "partition:1@serving+0s+5s": Fault("partition", 1, "serving", 0.0, 5.0),
    "engine-exit:0@5s=0": Fault("engine-exit", 0, "start", 5.0, code=0),
    "engine-exit:0@serving+1s=139": Fault("engine-exit", 0, "serving", 1.0, code=139),
    "slow-start:2=30s": Fault("slow-start", 2, lasts=30.0),
    "late-dns:3s": Fault("late-dns", lasts=3.0),
    "stale-leader": Fault("stale-leader", lasts=5.0),
    "stale-leader:7s": Fault("stale-leader", lasts=7.0),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_fault_is_read_as_it_is_written(text: str) -> None:
    assert parse_fault(text, size=3) == WRITTEN[text]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no fault"),
        ("explode:0@1s", "'explode' is no fault"),
        ("kill", "'' is no INDEX from 0 to 2"),
        ("kill:3@1s", "'3' is no INDEX from 0 to 2"),
        ("kill:-1@1s", "'-1' is no INDEX"),
        ("kill:²@1s", "'²' is no INDEX"),
        ("kill:0", "it does not say when"),
        ("kill:0@", "'' is no time"),
        ("kill:0@never", "'never' is no time"),
        ("kill:0@nan", "'nan' is no time"),
        ("kill:0@-1s", "'-1s' is no time"),
        ("kill:0@serving+", "'' is no time"),
        ("kill:0@1s+2s", "kill cannot be undone"),
        ("late:0@serving+1s+2s", "late cannot be undone"),
        ("freeze:0@1s+2s+3s", "has too many parts"),
        ("freeze:0@serving+1s+2s+3s", "has too many parts"),
        ("engine-exit:0@5s", "'' is no exit code from 0 to 255"),
        ("engine-exit:0@5s=256", "'256' is no exit code"),
        ("slow-start:0", "'' is no time"),
        ("slow-start:9=1s", "'9' is no INDEX"),
        ("slow-start:0=1s@5s", "slow-start has no WHEN"),
        ("late-dns", "'' is no time"),
        ("late-dns:0@3s", "late-dns has no WHEN"),
        ("stale-leader:", "'' is no time"),
    ],
)
def test_what_is_no_fault_is_told_with_the_part_that_is_wrong_and_the_grammar(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_fault(text, size=3)
    (fault,) = error.value.faults
    assert fault.found.startswith(f"--fault {text!r}: ")
    assert why in fault.found
    assert fault.expected == GRAMMAR


def test_a_scenario_has_one_fault_a_line_with_comments_and_blank_lines() -> None:
    text = "# a bad day\n\nkill:1@10s\n  freeze:2@5s+20s   # and back\n"
    assert parse_scenario(text, "day.txt", size=3) == [
        Fault("kill", 1, "start", 10.0),
        Fault("freeze", 2, "start", 5.0, 20.0),
    ]


def test_every_bad_line_of_a_scenario_is_told_with_its_number() -> None:
    with pytest.raises(ConfigError) as error:
        parse_scenario("kill:1@10s\nkill:7@1s # no such pod\n\nboom\n", "day.txt", size=3)
    assert [fault.found.partition(" ")[0] for fault in error.value.faults] == ["day.txt:2:", "day.txt:4:"]


def test_a_container_is_restarted_at_once_and_then_with_the_kubelets_backoff() -> None:
    assert [policies.backoff(restarts) for restarts in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert policies.backoff(10_000) == 300
    assert policies.restarts_that_count(4, lived=599) == 4
    assert policies.restarts_that_count(4, lived=600) == 0


@pytest.mark.parametrize(
    ("line", "asked", "failure"),
    [
        (b"[lwsrun 10:00:00.000 leader] WARNING: worker 1 at 10.0.0.1 lost: the connection was closed", False, True),
        (b"[lwsrun 10:00:00.000 worker 2] asking the engine to end; it has 5.0 s", False, True),
        (b"[lwsrun 10:00:00.000 worker 2] asking the engine to end; it has 5.0 s", True, False),
        (b"[lwsrun 10:00:00.000 worker 2] ERROR: stopped because worker 1: the engine exited 3", True, True),
        (b'{"time": "x", "message": "stopped because worker 1: the engine exited 3"}', False, True),
        (b"[lwsrun 10:00:00.000 worker 2] running: sleep 600", False, False),
        (b"the engine's own words: stopped because it was lost: it says", False, False),
    ],
)
def test_only_the_launchers_own_lines_tell_when_a_pod_noticed_a_failure(
    line: bytes, asked: bool, failure: bool
) -> None:
    assert tells_of_failure(line, asked) is failure


def test_a_pod_that_is_frozen_for_less_than_the_peer_timeout_lives_on(simulate: Simulate) -> None:
    faults = ("--fault=freeze:1@serving+0s+2s", "--fault=term:0@serving+4s")
    done = simulate("--size=2", SERVER, "--peer-timeout=20s", *faults, command=SERVE)
    assert done.codes() == [0, 0]
    assert [fault["what"] for fault in done.result["faults"]] == [
        "fault freeze: SIGSTOP in the pod of worker 1",
        "fault freeze is over: SIGCONT in the pod of worker 1",
        "fault term: SIGTERM in the pod of the leader",
    ]


TALK = """
import socket, sys, time
leader, me = sys.argv[1:]
if me == "0":
    server = socket.create_server((leader, 7777))
    lines, last, gap = 0, 0, 0
    with server.accept()[0].makefile() as heard:
        for line in heard:
            now = time.monotonic()
            lines, last, gap = lines + 1, now, max(gap, now - last if last else 0)
    print(lines, "lines; silent for", "long" if gap > 1.5 else gap)
else:
    while True:
        try:
            peer = socket.create_connection((leader, 7777), 1)
            break
        except OSError:
            time.sleep(0.1)
    peer.settimeout(None)
    for _ in range(50):
        peer.sendall(b"line\\n")
        time.sleep(0.1)
"""


def test_a_partition_is_silent_so_that_an_open_connection_outlives_it(simulate: Simulate) -> None:
    talk = [sys.executable, "-c", TALK, "{leader_ip}", "{index}"]
    done = simulate("--size=2", "--peer-timeout=30s", "--fault=partition:1@serving+1s+2s", command=talk)
    assert done.codes() == [0, 0]
    assert done.said(0) == ["50 lines; silent for long"]


def test_a_partition_that_lasts_is_noticed_on_both_sides_by_silence_alone(simulate: Simulate) -> None:
    done = simulate("--size=2", SERVER, "--peer-timeout=2s", "--fault=partition:1@serving+1s", command=SERVE)
    assert done.codes() == [75, 75]
    assert "stopped because worker 1: lost: nothing was heard from it" in done.log(0)
    assert "stopped because the leader: lost: nothing was heard from it" in done.log(1)


@pytest.mark.parametrize(("code", "pods"), [(0, [75, 70]), (3, [75, 3])])
def test_an_engine_ends_with_the_code_that_was_ordered(simulate: Simulate, code: int, pods: list[int]) -> None:
    done = simulate("--size=2", SERVER, f"--fault=engine-exit:1@serving+1s={code}", command=SERVE)
    assert done.codes() == pods
    assert f"stopped because worker 1: the engine exited {code}" in done.log(0)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 5", 5), ("kill -SEGV $$", 139), ("exec does-not-exist", 127), ("exit 0", 0)]
)
def test_without_an_order_an_engine_behind_the_wrapper_ends_as_it_would(
    simulate: Simulate, script: str, code: int
) -> None:
    done = simulate("--size=1", "--fault=engine-exit:0@600s=9", command=["sh", "-c", script])
    assert done.codes() == [code]


def test_an_engine_behind_the_wrapper_hears_sigterm_and_dies_with_kill_engine(simulate: Simulate) -> None:
    polite = ["sh", "-c", "trap 'echo heard; exit 0' TERM; echo up; while :; do sleep 0.1; done"]
    faults = ("--fault=engine-exit:0@600s=9", "--fault=engine-exit:1@600s=9", "--fault=kill-engine:1@serving+1s")
    done = simulate("--size=2", SERVER, *faults, command=polite)
    assert done.codes() == [75, 137]
    assert done.said(0)[0] == "up"
    assert "heard" in done.said(0)


def test_a_slow_engine_starts_late_and_the_others_do_not(simulate: Simulate) -> None:
    done = simulate("--size=2", "--fault=slow-start:1=3s", command=["date", "+%s"])
    assert done.codes() == [0, 0]
    assert int(done.said(1)[-1]) - int(done.said(0)[-1]) >= 2


def test_dns_denies_a_leader_whose_record_is_late(simulate: Simulate) -> None:
    done = simulate("--size=2", "--report-every=500ms", "--fault=late-dns:7s", command=["true"])
    assert done.codes() == [0, 0]
    assert "NXDOMAIN" in done.log(1)


def test_a_stale_leader_refuses_until_it_has_gone_and_the_name_is_the_real_ones(simulate: Simulate) -> None:
    done = simulate("--size=2", "--report-every=1s", "--fault=stale-leader:6s", command=["true"])
    assert done.codes() == [0, 0]
    refused, joined = done.log(1).split("joined the leader at ")
    assert "10.244.255.10: the leader refuses us: this leader is stopping" in refused
    assert joined.startswith("10.244.0.10 ")


def test_the_result_tells_when_each_pod_noticed_the_failure(simulate: Simulate) -> None:
    done = simulate("--size=3", SERVER, "--fault=kill:1@serving+1s", command=SERVE)
    (fault,) = done.result["faults"]
    for pod in done.pods():
        assert (pod["noticed"] is None) == (pod["index"] == 1)
        assert pod["noticed"] is None or fault["at"] <= pod["noticed"] <= pod["ended"]
    assert "generation  noticed" in done.output


def test_a_group_that_is_asked_to_stop_has_noticed_no_failure(simulate: Simulate) -> None:
    done = simulate("--size=2", SERVER, "--then=true", command=SERVE)
    assert [pod["noticed"] for pod in done.pods()] == [None, None]


def test_a_scenario_file_and_faults_of_the_command_line_add_up(simulate: Simulate, tmp_path: Path) -> None:
    scenario = tmp_path / "day.txt"
    scenario.write_text("# first the engine\nkill-engine:1@serving+1s\n")
    done = simulate("--size=3", SERVER, f"--scenario={scenario}", "--fault=late:2@2s", command=SERVE)
    assert done.codes() == [75, 137, 75]
    assert len(done.result["faults"]) == 2


def test_everything_that_is_wrong_with_the_faults_is_told_at_once(tmp_path: Path) -> None:
    scenario = tmp_path / "day.txt"
    scenario.write_text("\nkill:7@1s\n")
    options = ("--size=2", "--fault=boom", f"--scenario={scenario}")
    done = start("simulate", *options, "--", "true")
    assert done.returncode == 78
    assert "--fault 'boom'" in done.stderr
    assert f"{scenario}:2:" in done.stderr
    assert done.stderr.count("WHAT:INDEX@WHEN") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--size=2", "--scenario=/does/not/exist"), "--scenario /does/not/exist: No such file"),
        (("--size=1", "--fault=stale-leader"), "stale-leader in a group of one"),
        (("--size=2", "--isolation=loopback", "--fault=partition:1@1s"), "plain loopback has neither links nor DNS"),
    ],
)
def test_a_fault_that_cannot_happen_is_a_configuration_error(options: tuple[str, ...], why: str) -> None:
    done = start("simulate", *options, "--", "true")
    assert done.returncode == 78
    assert why in done.stderr


def lives(done: Simulation) -> list[tuple[int, int, int]]:
    return [(pod["generation"], pod["index"], pod["exit_code"]) for pod in done.pods()]


RECREATE = "--restart-policy=RecreateGroupOnPodRestart"


def test_a_container_that_exits_has_its_whole_group_recreated_at_new_addresses(simulate: Simulate) -> None:
    fails = ["sh", "-c", "echo {pod_ip}; [ {index} = 0 ] && sleep 600; sleep 1; exit 9"]
    done = simulate("--size=2", SERVER, RECREATE, "--max-recreations=1", command=fails)
    assert done.code == 9
    assert [(generation, index) for generation, index, _ in lives(done)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [code for _, index, code in lives(done) if index == 1] == [9, 9]
    assert "recreated 1 times (--max-recreations): the simulation ends" in done.output
    second = (done.directory / "sim-0-1.1.log").read_text()
    assert "10.244.0.11" in done.said(1)
    assert "joined the leader at 10.244.0.12" in second
    assert "10.244.0.13" in second


def test_a_group_whose_pods_all_exit_with_zero_is_recreated_too(simulate: Simulate) -> None:
    done = simulate("--size=2", RECREATE, "--max-recreations=1", command=["true"])
    assert lives(done) == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    assert done.code == 0


def test_with_the_policy_none_only_the_container_that_ended_is_restarted_with_its_address_and_name(
    simulate: Simulate,
) -> None:
    # Before the group has formed a lost worker only frees its seat: the leader and worker 2 go on.
    faults = ("--fault=late:2@8s", "--fault=kill:1@3s")
    done = simulate(
        "--size=3", "--restart-policy=None", "--max-recreations=1", SERVER, *faults, "--then=true", command=SERVE
    )
    assert [(generation, index) for generation, index, _ in lives(done)] == [(0, 0), (0, 1), (0, 2), (1, 1)]
    assert lives(done)[1][2] == 137
    assert "worker 1: its container is restarted at once" in done.output
    page = done.result["group"]["members"]
    assert [(member["host"], member["ip"]) for member in page if member["index"] == 1] == [("sim-0-1", "10.244.0.11")]


def test_the_policy_none_is_bounded_too(simulate: Simulate) -> None:
    done = simulate("--size=1", "--restart-policy=None", "--max-recreations=1", command=["sh", "-c", "exit 9"])
    assert lives(done) == [(0, 0, 9), (1, 0, 9)]
    assert done.code == 9
    assert "the leader was restarted 1 times (--max-recreations): the simulation ends" in done.output


def test_ctrl_c_ends_a_simulation_that_would_recreate_its_group_for_ever(tmp_path: Path) -> None:
    argv = [*LWSRUN, "simulate", "--size=2", RECREATE, "--max-recreations=1000", "--", "sh", "-c", "sleep 0.5; exit 9"]
    output = tmp_path / "output"
    with output.open("wb") as file, subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: "generation 1" in output.read_text(errors="replace"), limit=40)
            process.send_signal(signal.SIGINT)
            process.wait(40)
        finally:
            process.kill()
    assert "SIGTERM to every pod\n" in output.read_text(errors="replace")


# A leader that is ready by itself, as with a readinessProbe that asks the launcher alone.
ALWAYS_READY = """
import sys
if sys.orig_argv[1:3] == ["-m", "launcher"]:
    from launcher import status
    status.not_ready = lambda pod: None
"""


def test_with_leader_ready_the_workers_are_created_when_the_leader_is_ready(simulate: Simulate, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ALWAYS_READY)
    done = simulate("--size=2", "--startup-policy=LeaderReady", command=["true"], PYTHONPATH=str(tmp_path))
    assert done.codes() == [0, 0]
    assert "LeaderReady: the workers are created" in done.output


def test_with_leader_ready_a_leader_that_waits_for_its_workers_waits_for_ever(simulate: Simulate) -> None:
    done = simulate("--size=2", "--startup-policy=LeaderReady", "--fault=term:0@5s", command=["true"])
    assert [pod["index"] for pod in done.pods()] == [0]
    assert "LeaderReady: no workers yet (gathering: waiting for worker 1" in done.output
