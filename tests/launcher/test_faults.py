"""Faults, restart and startup policies of a simulation do to real pods what they say."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LWSRUN, SERVE, Simulate, Simulation, then_wait_for_starts, wait_until

from launcher.simulate import policies
from launcher.simulate.life import tells_of_failure

pytestmark = pytest.mark.slow

SERVER = "--kind=server"
RECREATE = "--restart-policy=RecreateGroupOnPodRestart"


def lives(done: Simulation) -> list[tuple[int, int, int]]:
    return [(pod["generation"], pod["index"], pod["exit_code"]) for pod in done.pods()]


def what_happened(done: Simulation) -> list[str]:
    return [fault["what"] for fault in done.result["faults"]]


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
        (b"[lwsrun 10:00:00.000 leader] WARNING: restart 1 of 2 in place (--max-restarts)", False, True),
        (b"[lwsrun 10:00:00.000 worker 2] WARNING: restart in place in 0.7 s, because worker 1: left", False, True),
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
    assert what_happened(done) == [
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


@pytest.mark.parametrize("shorter", [(), ("--fault=partition:1@serving+1s+300ms",)])
def test_a_partition_is_silent_so_that_an_open_connection_outlives_it(
    simulate: Simulate, shorter: tuple[str, ...]
) -> None:
    talk = [sys.executable, "-c", TALK, "{leader_ip}", "{index}"]
    done = simulate("--size=2", "--peer-timeout=30s", "--fault=partition:1@serving+1s+2s", *shorter, command=talk)
    assert done.codes() == [0, 0]
    assert done.said(0) == ["50 lines; silent for long"]


def test_a_partition_that_lasts_is_noticed_on_both_sides_by_silence_alone(simulate: Simulate) -> None:
    done = simulate("--size=2", SERVER, "--peer-timeout=2s", "--fault=partition:1@serving+1s", command=SERVE)
    assert done.codes() == [75, 75]
    assert "stopped because worker 1: lost: nothing was heard from it" in done.log(0)
    assert "stopped because the leader: lost: nothing was heard from it" in done.log(1)


def test_a_partition_goes_on_when_the_container_behind_it_is_restarted(simulate: Simulate) -> None:
    faults = ("--fault=partition:1@serving+0s+12s", "--fault=kill:1@serving+1s")
    done = simulate(
        "--size=2", SERVER, "--peer-timeout=2s", "--restart-policy=None", *faults,
        then_wait_for_starts(4), command=SERVE,
    )  # fmt: skip
    assert what_happened(done) == [
        "fault partition: the link of the pod of worker 1 drops everything",
        "fault kill: SIGKILL in the pod of worker 1",
        "fault partition goes on: the link of the pod of worker 1 is cut",
        "fault partition is over: the link of the pod of worker 1 carries again",
    ]
    second = (done.directory / "sim-0-1.1.log").read_text()
    formed = re.search(r"group formed: 2 of 2 after ([\d.]+) s", second)
    assert formed is not None
    assert float(formed[1]) > 7, "the leader was back long before, but not the link"


def test_a_recreated_pod_has_neither_the_partition_nor_the_freeze_of_its_predecessor(simulate: Simulate) -> None:
    faults = ("--fault=partition:1@serving", "--fault=freeze:2@serving", "--fault=kill:2@serving+4s")
    twice = then_wait_for_starts(6)
    done = simulate("--size=3", SERVER, "--peer-timeout=2s", RECREATE, *faults, twice, command=SERVE)
    assert "fault partition is over: the pod of worker 1 is a new one" in what_happened(done)
    assert "fault freeze is over: the new pod of worker 2 runs" in what_happened(done)
    assert [code for generation, _, code in lives(done) if generation == 1] == [0, 0, 0]


def test_a_restarted_container_is_not_frozen_as_the_one_before_it(simulate: Simulate) -> None:
    faults = ("--fault=freeze:1@serving", "--fault=kill:1@serving+1s")
    twice = then_wait_for_starts(4)
    done = simulate("--size=2", SERVER, "--restart-policy=None", *faults, twice, command=SERVE)
    assert what_happened(done)[-1] == "fault freeze is over: the new container of worker 1 runs"
    assert lives(done)[-1] == (1, 1, 0)


def test_of_two_freezes_the_longer_one_counts(simulate: Simulate) -> None:
    faults = ("--fault=freeze:1@serving+0s+5s", "--fault=freeze:1@serving+0s+1s", "--fault=term:0@serving+3s")
    done = simulate("--size=2", SERVER, "--peer-timeout=20s", *faults, command=SERVE)
    assert done.codes() == [0, 0]
    assert what_happened(done) == [
        "fault freeze: SIGSTOP in the pod of worker 1",
        "fault freeze: SIGSTOP in the pod of worker 1",
        "fault freeze is over, another one in the pod of worker 1 goes on",
        "fault term: SIGTERM in the pod of the leader",
        "fault freeze is over: SIGCONT in the pod of worker 1",
    ]
    begun, _, _, _, over = (fault["at"] for fault in done.result["faults"])
    assert over - begun >= 4.9


def test_what_does_not_happen_is_told_with_its_reason(simulate: Simulate) -> None:
    # A group that never forms: worker 2 is not created before all others have ended.
    faults = [
        "late:2@600s", "kill:2@500ms", "kill:1@3s", "term:1@4s", "kill-engine:0@4s", "engine-exit:0@4s=3",
        "kill:0@5s", "freeze:0@600s", "kill-engine:1@serving",
    ]  # fmt: skip
    done = simulate("--size=3", SERVER, *(f"--fault={fault}" for fault in faults), command=SERVE)
    assert lives(done) == [(0, 0, 137), (0, 1, 137)]
    told = what_happened(done)
    assert "fault kill:2@500ms waits until worker 2 is created" in told
    assert [line.removeprefix("fault ") for line in told if "did not happen" in line] == [
        "term:1@4s did not happen: worker 1 has already ended",
        "kill-engine:0@4s did not happen: nothing runs under the launcher of the leader",
        "kill:2@500ms did not happen: worker 2 was never created",
        "freeze:0@600s did not happen: the simulation had ended by then",
        "kill-engine:1@serving did not happen: the group was not seen to be serving",
        "engine-exit:0@4s=3 did not happen: no engine was there to end so",
    ]
    assert "worker 2 was never created: its group had ended before" in done.output


def test_a_fault_finds_no_process_where_a_container_waits_for_its_restart(simulate: Simulate) -> None:
    # The second restart comes only after 10 s.
    faults = ("--fault=kill:0@2s", "--fault=kill:0@5s", "--fault=kill:0@7s", "--fault=kill:0@8s")
    done = simulate("--size=1", SERVER, "--restart-policy=None", *faults, command=SERVE, limit=13)
    assert "fault kill:0@7s did not happen: the container of the leader waits for its restart" in done.output


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


def test_late_dns_counts_from_the_pods_start_whatever_its_container_does(simulate: Simulate) -> None:
    faults = ("--fault=late-dns:12s", "--fault=kill:0@2s")
    done = simulate("--size=2", SERVER, "--restart-policy=None", *faults, "--then=true", command=SERVE)
    joined = re.search(r"joined the leader at \S+ \(run \w+\) after ([\d.]+) s", done.log(1))
    assert joined is not None
    assert float(joined[1]) > 8, "the leader was back long before, but not its record"


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


def test_the_result_tells_of_each_restart_in_place_when_its_failure_was_noticed(simulate: Simulate) -> None:
    faults = ("--fault=kill-engine:1@serving", "--fault=kill-engine:1@serving+5s")
    done = simulate("--size=2", SERVER, "--max-restarts=1", *faults, command=SERVE)
    first, second = (fault["at"] for fault in done.result["faults"])
    for pod in done.pods():
        (restart,) = pod["restarts"]
        assert first <= restart["noticed"] <= restart["ended"] < second <= pod["noticed"] <= pod["ended"]
    assert done.output.count("restart in place\n") == 2, "a line of its own for each pod in the summary"


def test_a_pod_that_is_asked_to_stop_after_a_restart_in_place_ended_well(simulate: Simulate) -> None:
    done = simulate(
        "--size=2", SERVER, "--max-restarts=1", "--fault=kill-engine:1@serving",
        then_wait_for_starts(4), command=SERVE,
    )  # fmt: skip
    assert [(pod["noticed"], len(pod["restarts"])) for pod in done.pods()] == [(None, 1), (None, 1)]


def test_a_worker_lost_and_replaced_before_the_group_forms_is_not_the_failure_that_ended_it(
    simulate: Simulate,
) -> None:
    faults = ("--fault=late:2@12s", "--fault=kill:1@7s", "--fault=kill-engine:2@serving+1s")
    done = simulate("--size=3", SERVER, "--restart-policy=None", "--max-recreations=1", *faults, command=SERVE)
    assert "worker 1 at 10.244.0.11 lost" in done.log(0)
    leader = done.pods()[0]
    assert leader["exit_code"] == 75
    assert leader["noticed"] >= done.result["faults"][-1]["at"]


def test_a_group_that_is_asked_to_stop_has_noticed_no_failure(simulate: Simulate) -> None:
    done = simulate("--size=2", SERVER, "--then=true", command=SERVE)
    assert [pod["noticed"] for pod in done.pods()] == [None, None]


def test_a_scenario_file_and_faults_of_the_command_line_add_up(simulate: Simulate, tmp_path: Path) -> None:
    scenario = tmp_path / "day.txt"
    scenario.write_text("# first the engine\nkill-engine:1@serving+1s\n")
    done = simulate("--size=3", SERVER, f"--scenario={scenario}", "--fault=late:2@2s", command=SERVE)
    assert done.codes() == [75, 137, 75]
    assert len(done.result["faults"]) == 2


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


def test_with_leader_ready_the_workers_are_created_when_the_leader_is_ready(simulate: Simulate) -> None:
    done = simulate("--size=2", "--startup-policy=LeaderReady", "--ready-when=launcher", command=["true"])
    assert done.codes() == [0, 0]
    assert "LeaderReady: the workers are created" in done.output


def test_with_leader_ready_a_leader_that_waits_for_its_workers_waits_for_ever(simulate: Simulate) -> None:
    done = simulate("--size=2", "--startup-policy=LeaderReady", "--fault=term:0@10s", command=["true"])
    assert [pod["index"] for pod in done.pods()] == [0]
    assert "LeaderReady: no workers yet (gathering: waiting for worker 1" in done.output
