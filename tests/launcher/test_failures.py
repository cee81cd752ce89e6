"""Every way in which a part of a group can fail, at every time of its life: all pods end, with the same cause."""

from __future__ import annotations

import pytest
from conftest import SERVE, Simulate, Simulation, then_wait_for_starts

pytestmark = pytest.mark.slow
SERVER = "--kind=server"
SOON = "--peer-timeout=3s"
SILENT = "lost: nothing was heard from it for 3 s"


def last_lines(done: Simulation, *indexes: int) -> list[str]:
    return [done.log(index).splitlines()[-1].partition("] ")[2] for index in indexes]


def a_silent_link(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate(
        "--size=3", SERVER, SOON, "--fault=partition:1@serving", "--fault=kill:0@serving+20s",
        "--fault=kill:1@serving+20s", "--fault=kill:2@serving+20s", command=SERVE, limit=40, sabotage=sabotage,
    )  # fmt: skip
    assert done.codes() == [75, 75, 75]
    for line in last_lines(done, 0, 2):
        assert f"stopped because worker 1: {SILENT}" in line
    assert f"stopped because the leader: {SILENT}" in last_lines(done, 1)[0], "it cannot know more than that"


def a_frozen_leader(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate(
        "--size=3", SERVER, SOON, "--fault=freeze:0@serving", "--fault=kill:0@serving+15s", command=SERVE, limit=40,
        sabotage=sabotage,
    )  # fmt: skip
    assert done.codes() == [137, 75, 75]
    for line in last_lines(done, 1, 2):
        assert f"stopped because the leader: {SILENT}" in line
    leader, *workers = done.pods()
    assert max(pod["ended"] for pod in workers) < leader["ended"], "the workers waited for the leader to die"


@pytest.mark.parametrize("scenario", [a_silent_link, a_frozen_leader])
def test_what_makes_no_sound_is_found_dead_by_its_silence(scenario, simulate: Simulate) -> None:  # type: ignore[no-untyped-def]
    scenario(simulate)


@pytest.mark.parametrize("scenario", [a_silent_link, a_frozen_leader])
def test_without_the_heartbeat_silence_is_not_noticed(scenario, simulate: Simulate) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AssertionError):
        scenario(simulate, sabotage="silence")


@pytest.mark.parametrize("fault", ["partition:1@serving+0s+4s", "freeze:1@serving+0s+4s", "freeze:0@serving+0s+4s"])
def test_a_blip_shorter_than_the_peer_timeout_is_no_death(fault: str, simulate: Simulate) -> None:
    done = simulate("--size=3", SERVER, "--peer-timeout=8s", f"--fault={fault}", "--then=sleep 11", command=SERVE)
    assert done.codes() == [0, 0, 0]
    assert done.result["group"]["epoch"] == 1


def test_of_two_failures_within_a_second_the_first_is_everybodys_cause(simulate: Simulate) -> None:
    faults = ("--fault=kill-engine:2@serving", "--fault=kill-engine:1@serving+300ms")
    done = simulate("--size=3", SERVER, *faults, command=SERVE, limit=30)
    assert done.codes()[0] == 75
    for line in last_lines(done, 0, 1, 2):
        assert "stopped because worker 2: the engine exited 137 (SIGKILL)" in line


def test_a_worker_that_dies_while_the_group_gathers_only_frees_its_place(simulate: Simulate) -> None:
    done = simulate(
        "--size=3", SERVER, "--restart-policy=None", "--fault=late:2@8s", "--fault=kill:1@4s", "--then=true",
        command=SERVE, limit=40,
    )  # fmt: skip
    assert done.code == 0
    assert "worker 1 at 10.244.0.11 lost: the connection was closed" in done.log(0)
    assert done.log(0).count("worker 1 joined from") == 2
    assert "group formed: 3 of 3" in done.log(0)
    assert {pod["index"]: pod["exit_code"] for pod in done.pods()} == {0: 0, 1: 0, 2: 0}


def test_a_leader_that_dies_while_the_group_gathers_takes_along_who_had_joined(simulate: Simulate) -> None:
    faults = ("--fault=late:2@600s", "--fault=kill:0@8s", "--fault=kill:2@9s")
    done = simulate("--size=3", SERVER, *faults, command=SERVE, limit=60)
    assert done.codes()[:2] == [137, 75]
    assert "stopped because the leader: lost: the connection was closed" in last_lines(done, 1)[0]


def test_a_worker_that_dies_while_the_engine_is_prepared_ends_the_leader_at_once(simulate: Simulate) -> None:
    # On Ray the leader waits for the cluster, which can never be complete now.
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--backend=ray", "--fault=kill:1@formed", command=["echo", "the engine ran"],
        limit=40,
    )  # fmt: skip
    assert done.codes() == [75, 137]
    assert "the engine ran" not in done.said(0)


def test_a_worker_that_dies_while_the_leader_drains_does_not_spoil_a_clean_end(simulate: Simulate) -> None:
    slow = "trap 'sleep 3; echo drained; exit 0' TERM; while :; do sleep 0.1; done"
    done = simulate("--size=2", SERVER, "--fault=term:0@serving", "--fault=kill:1@serving+1s",
                    command=["sh", "-c", slow], limit=30)  # fmt: skip
    assert done.codes() == [0, 137]
    assert "drained" in done.said(0)


def generations(done: Simulation, index: int) -> list[str]:
    """The logs of a pod's lives, in order."""
    name = "sim-0" if index == 0 else f"sim-0-{index}"
    later = sorted(done.directory.glob(f"{name}.*.log"))
    return [path.read_text(errors="replace") for path in (done.directory / f"{name}.log", *later)]


def test_under_the_policy_none_a_lost_pod_costs_every_pod_one_restart_and_the_group_forms_again(
    simulate: Simulate,
) -> None:
    done = simulate(
        "--size=3", SERVER, "--restart-policy=None", "--fault=kill:1@serving",
        then_wait_for_starts(6), command=SERVE, limit=60,
    )  # fmt: skip
    for index in range(3):
        first, second = generations(done, index)
        assert "group formed: 3 of 3" in first
        assert "group formed: 3 of 3" in second


def test_with_restarts_in_place_only_the_lost_pod_is_started_again(simulate: Simulate) -> None:
    done = simulate(
        "--size=3", SERVER, "--restart-policy=None", "--max-restarts=5", "--fault=kill:1@serving",
        then_wait_for_starts(6), command=SERVE, limit=60,
    )  # fmt: skip
    (leader,) = generations(done, 0)
    assert leader.count("group formed: 3 of 3") == 2
    assert "epoch 2 begins" in leader
    assert [life.count("group formed: 3 of 3") for life in generations(done, 1)] == [1, 1]
    assert [life.count("group formed: 3 of 3") for life in generations(done, 2)] == [2]


def test_under_the_default_policy_one_engines_death_recreates_the_whole_group(simulate: Simulate) -> None:
    done = simulate(
        "--size=2", SERVER, "--restart-policy=RecreateGroupOnPodRestart", "--fault=kill-engine:1@serving",
        then_wait_for_starts(4), command=SERVE, limit=60,
    )  # fmt: skip
    for index in range(2):
        assert [life.count("group formed: 2 of 2") for life in generations(done, index)] == [1, 1]


def test_with_restarts_in_place_the_controller_sees_nothing_of_an_engines_death(simulate: Simulate) -> None:
    done = simulate(
        "--size=2", SERVER, "--restart-policy=RecreateGroupOnPodRestart", "--max-restarts=3",
        "--fault=kill-engine:1@serving", then_wait_for_starts(4), command=SERVE, limit=60,
    )  # fmt: skip
    assert [life.count("group formed: 2 of 2") for life in generations(done, 0)] == [2]
    assert done.code == 0
