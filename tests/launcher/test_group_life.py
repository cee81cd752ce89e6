"""A group of real launchers in real namespaces forms, works, fails and stops as one.

Each failure test has a twin below that switches its mechanism off and must then fail (tests/sabotage).
"""

from __future__ import annotations

import json

import pytest
from conftest import Simulate, Simulation

SERVE = ["sh", "-c", "sleep 600"]
SERVER = "--kind=server"


def test_a_group_forms_and_every_pod_runs_the_command_with_its_own_place(simulate: Simulate) -> None:
    done = simulate("--size=3", command=["echo", "I am {index} of {size} at {pod_ip}, led by {leader_ip}"])
    assert done.codes() == [0, 0, 0]
    assert done.code == 0
    assert "I am 0 of 3 at 10.244.0.10, led by 10.244.0.10" in done.said(0)
    assert "I am 2 of 3 at 10.244.0.12, led by 10.244.0.10" in done.said(2)


def test_a_job_is_done_only_when_it_is_done_everywhere(simulate: Simulate) -> None:
    done = simulate("--size=2", command=["sh", "-c", "[ {index} = 0 ] || { sleep 1; echo late but here; }"])
    assert done.codes() == [0, 0]
    assert "late but here" in done.said(1)


def test_deleting_the_group_stops_every_pod_with_zero(simulate: Simulate) -> None:
    done = simulate("--size=3", SERVER, "--then=true", command=SERVE)
    assert done.codes() == [0, 0, 0]


def test_the_leader_tells_of_all_members_on_its_group_page(simulate: Simulate) -> None:
    ask = "curl -s http://$LEADER_IP:$LEADER_PORT/group; echo; curl -s http://10.244.0.11:$LEADER_PORT/readyz"
    done = simulate("--size=2", "--gpus-per-node=4", SERVER, f"--then={ask}", command=SERVE)
    page = json.loads(next(line for line in done.output.splitlines() if line.startswith('{"group"')))
    assert [(m["index"], m["host"], m["ip"], m["gpus"]) for m in page["members"]] == [
        (0, "sim-0", "10.244.0.10", 4),
        (1, "sim-0-1", "10.244.0.11", 4),
    ]
    assert page["not_ready"] is None
    assert "\nok\n" in done.output


def pod_death(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate("--size=3", SERVER, "--fault=kill:1@serving", command=SERVE, limit=20, sabotage=sabotage)
    assert done.codes() == [75, 137, 75]
    assert done.code == 137
    same_cause(done, "stopped because worker 1: lost: the connection was closed", [0, 2])


def leader_death(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate("--size=3", SERVER, "--fault=kill:0@serving", command=SERVE, limit=20, sabotage=sabotage)
    assert done.codes() == [137, 75, 75]
    same_cause(done, "stopped because the leader: lost: the connection was closed", [1, 2])


def engine_death_on_a_worker(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate("--size=3", SERVER, "--fault=kill-engine:2@serving", command=SERVE, limit=20, sabotage=sabotage)
    assert done.codes() == [75, 75, 137]
    same_cause(done, "stopped because worker 2: the engine exited 137 (SIGKILL)", [0, 1, 2])


def a_server_that_ends_with_zero(simulate: Simulate, sabotage: str = "") -> None:
    quits = ["sh", "-c", "[ {index} = 1 ] && sleep 1 && exit 0; sleep 600"]
    done = simulate("--size=2", SERVER, command=quits, limit=20, sabotage=sabotage)
    assert done.codes() == [75, 70]
    same_cause(done, "stopped because worker 1: the engine exited 0, although nobody asked it to stop", [0, 1])


def a_frozen_worker(simulate: Simulate, sabotage: str = "") -> None:
    # PID 1 cannot stop itself from inside its namespace: the simulation freezes it from outside.
    done = simulate(
        "--size=2", SERVER, "--peer-timeout=2s", "--fault=freeze:1@serving", "--fault=kill:1@serving+6s",
        command=SERVE, limit=25, sabotage=sabotage,
    )  # fmt: skip
    leader, worker = done.pods()
    assert leader["exit_code"] == 75
    assert leader["ended"] < worker["ended"], "the leader waited for the frozen pod to die"
    same_cause(done, "stopped because worker 1: lost: nothing was heard from it for", [0])


def different_commands(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate(
        "--size=2", "--report-every=1s", "--fault=kill:0@start+4s", "--fault=kill:1@start+4s",
        "--worker-command=echo another", command=["true"], limit=20, sabotage=sabotage,
    )  # fmt: skip
    assert "the leader refuses us: its command differs: digest" in done.log(1)
    assert "waiting" in done.log(0)
    assert "worker 1 (refused: its command differs" in done.log(0)
    assert "group formed" not in done.log(0)


def leftovers(simulate: Simulate, sabotage: str = "") -> None:
    # The orphan has left the engine's session; as PID 1's descendant it must be ended with a TERM that it can hear.
    orphan = "trap 'echo orphan heard TERM; exit' TERM; echo orphan up; while :; do sleep 0.1; done"
    engine = f'setsid sh -c "{orphan}" & sleep 1; exit 3'
    done = simulate("--size=1", command=["sh", "-c", engine], limit=20, sabotage=sabotage)
    assert done.codes() == [3]
    assert "orphan heard TERM" in done.said(0)


def a_held_configuration_error(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate("--size=1", "--failure-hold=3s", command=["/does/not/exist"], limit=20, sabotage=sabotage)
    assert done.codes() == [78]
    assert done.pods()[0]["ended"] >= 3
    assert "/does/not/exist does not exist" in done.log(0)
    assert "/does/not/exist does not exist" in done.pods()[0]["termination_message"]


def first_cause_although_an_orphan_holds_the_pipes(simulate: Simulate, sabotage: str = "") -> None:
    # Worker 1 fails first but its orphan keeps stdout open; the leader's engine fails 0.5 s later as a consequence.
    script = "if [ {index} = 1 ]; then sleep 20 & sleep 1.5; exit 7; else sleep 2; exit 9; fi"
    done = simulate("--size=2", SERVER, command=["sh", "-c", script], limit=30, sabotage=sabotage)
    assert done.codes() == [75, 7]
    same_cause(done, "stopped because worker 1: the engine exited 7", [0, 1])


def a_configuration_error_on_one_pod(simulate: Simulate, sabotage: str = "") -> None:
    # The worker's own command is taken from the leader and does not exist in its image.
    done = simulate(
        "--size=2", "--failure-hold=3s", "--worker-command=/does/not/exist", "--fault=kill:0@start+4s",
        command=["sleep", "600"], limit=30, sabotage=sabotage)  # fmt: skip
    assert done.codes() == [137, 78]
    assert done.pods()[1]["ended"] > 3


def an_engine_that_ignores_sigterm(simulate: Simulate, sabotage: str = "") -> None:
    stubborn = ["sh", "-c", "trap '' TERM; while :; do sleep 0.2; done"]
    done = simulate(
        "--size=1", SERVER, "--drain-timeout=2s", "--then=true", command=stubborn, limit=20, sabotage=sabotage
    )
    assert done.codes() == [137]


def sigterm_on_a_worker_alone(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate("--size=3", SERVER, "--fault=term:1@serving", command=SERVE, limit=20, sabotage=sabotage)
    assert done.codes() == [0, 0, 0]
    assert "worker 1 was asked to stop" in done.log(0)


def a_group_that_stays_incomplete(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate(
        "--size=3", "--gather-timeout=3s", "--fault=late:2@start+30s", command=["true"], limit=20, sabotage=sabotage
    )
    assert done.codes()[:2] == [75, 75]
    assert "(--gather-timeout): worker 2" in done.log(0)


def same_cause(done: Simulation, sentence: str, indexes: list[int]) -> None:
    """The pods' last lines and termination messages name the same first cause."""
    for index in indexes:
        assert sentence in done.log(index).splitlines()[-1]
        assert done.pods()[index]["termination_message"].startswith(sentence)


FAILURES = [
    (pod_death, "peer_loss"),
    (pod_death, "told_to_stop"),
    (leader_death, "leader_loss"),
    (engine_death_on_a_worker, "told_to_stop"),
    (a_server_that_ends_with_zero, "exit_zero_is_fine"),
    (a_frozen_worker, "silence"),
    (different_commands, "command_digest"),
    (leftovers, "sweep"),
    (a_held_configuration_error, "failure_hold"),
    (a_configuration_error_on_one_pod, "failure_hold"),
    (first_cause_although_an_orphan_holds_the_pipes, "slow_words"),
    (an_engine_that_ignores_sigterm, "killing_is_clean"),
    (sigterm_on_a_worker_alone, "leaving"),
    (a_group_that_stays_incomplete, "gather_timeout"),
]


@pytest.mark.parametrize("scenario", dict.fromkeys(scenario for scenario, _ in FAILURES), ids=lambda s: s.__name__)
def test_the_group_ends_as_one_and_says_why(scenario, simulate: Simulate) -> None:  # type: ignore[no-untyped-def]
    scenario(simulate)


@pytest.mark.parametrize(("scenario", "off"), FAILURES, ids=lambda value: getattr(value, "__name__", value))
def test_without_its_mechanism_the_failure_test_fails(scenario, off, simulate: Simulate) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AssertionError):
        scenario(simulate, sabotage=off)


def test_a_worker_whose_template_has_no_command_gets_the_leaders(simulate: Simulate) -> None:
    done = simulate("--size=2", "--worker-command=", command=["echo", "from {index}"])
    assert done.codes() == [0, 0]
    assert "from 1" in done.said(1)


def test_a_worker_waits_for_a_leader_that_comes_late(simulate: Simulate) -> None:
    done = simulate("--size=2", "--report-every=1s", "--fault=late:0@start+6s", command=["true"])
    assert done.codes() == [0, 0]
    assert "NXDOMAIN" in done.log(1)


def test_the_first_sigterm_is_not_taken_for_the_second_when_the_group_stops_already(simulate: Simulate) -> None:
    slow = "trap 'sleep 5; exit 0' TERM; while :; do sleep 0.1; done"
    faults = ("--fault=term:0@serving", "--fault=term:1@serving+1s")
    done = simulate("--size=2", SERVER, *faults, command=["sh", "-c", f"[ {{index}} = 0 ] && exec sleep 600; {slow}"])
    assert done.codes() == [0, 0]


def test_sigterm_before_the_pods_are_up_is_not_lost(simulate: Simulate) -> None:
    done = simulate("--size=2", SERVER, "--fault=term:0@0.05s", "--fault=term:1@0.05s", command=SERVE, limit=20)
    assert done.codes() == [0, 0]
    assert "serving" not in done.result["group"].get("phases", {})


def test_bytes_that_are_no_text_pass_through_arguments(simulate: Simulate) -> None:
    done = simulate("--size=2", command=["printf", "%s\n", "a\udcffz"])
    assert done.codes() == [0, 0]
    assert b"a\xffz" in (done.directory / "sim-0-1.log").read_bytes()
