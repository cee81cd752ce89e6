"""`--max-restarts`: the engines of the whole group start anew in the same pods; nothing of an old epoch stays."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import Simulate, Simulation, launched, then_wait_for_starts
from hypothesis import given
from hypothesis import strategies as st

from launcher.restarts import LONGEST, Restarts

pytestmark = pytest.mark.slow

SERVER = "--kind=server"
SERVE = [
    "sh",
    "-c",
    "echo >> $STARTS; echo up {index}; touch /dev/shm/psm_$$ /dev/shm/ring; ls /dev/shm | wc -l; exec sleep 600",
]


# ------------------------------------------------------------------ what is granted


def test_no_restart_is_granted_unless_asked_for() -> None:
    assert not Restarts().left


def test_a_restart_is_granted_as_often_as_was_said_with_a_growing_pause() -> None:
    granted, pauses = Restarts(limit=8), []
    while granted.left:
        granted, pause = granted.one_more(jitter=lambda: 0.5)
        pauses.append(pause)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_serving_long_enough_makes_earlier_restarts_forgotten() -> None:
    used = Restarts(limit=2, reset=600, used=2)
    assert not used.after(599).left
    assert used.after(600) == Restarts(limit=2, reset=600, used=0)


@given(used=st.integers(0, 99), jitter=st.floats(0, 1))
def test_the_pause_stays_within_half_and_one_and_a_half_of_its_step(used: int, jitter: float) -> None:
    step = min(2.0**used, LONGEST)
    _, pause = Restarts(limit=100, used=used).one_more(jitter=lambda: jitter)
    assert step / 2 <= pause <= step * 1.5


# ------------------------------------------------------------------ a group


def runs(done: Simulation) -> list[str]:
    return re.findall(r"waiting for 2 workers on port \d+ \(run (\w+)\)", done.log(0))


def restart(simulate: Simulate, sabotage: str = "") -> None:
    done = simulate(
        "--size=3", SERVER, "--max-restarts=1", "--fault=kill-engine:1@serving", "--fault=kill-engine:2@6s",
        command=SERVE, limit=30, sabotage=sabotage,
    )  # fmt: skip
    assert done.codes() == [75, 75, 137], "only the failure after the last restart ends the pods"
    first, second = runs(done)
    assert first != second
    for index in range(3):
        said = done.said(index)
        # The engine runs again and finds what others put into /dev/shm, but nothing of its own.
        assert said == [f"up {index}", "2", f"up {index}", "2"]
        assert "restart in place in" in done.log(index)
        assert "because worker 1: the engine exited 137 (SIGKILL)" in done.log(index)
        assert "stopped because worker 2: the engine exited 137 (SIGKILL)" in done.log(index).splitlines()[-1]
        assert done.log(index).count("lwsrun start") == 0
    assert "restart 1 of 1 in place" in done.log(0)
    assert done.result["group"]["epoch"] == 2


def test_after_an_engines_death_the_whole_group_runs_again_in_the_same_pods(simulate: Simulate) -> None:
    restart(simulate)


@pytest.mark.parametrize("off", ["restarting", "clean_shared_memory"])
def test_without_its_mechanism_the_restart_test_fails(off: str, simulate: Simulate) -> None:
    with pytest.raises((AssertionError, ValueError)):
        restart(simulate, sabotage=off)


def test_two_failures_at_once_cost_one_restart(simulate: Simulate) -> None:
    done = simulate(
        "--size=3", SERVER, "--max-restarts=3", "--fault=kill-engine:1@serving", "--fault=kill-engine:2@serving",
        "--fault=term:0@7s", command=SERVE, limit=30,
    )  # fmt: skip
    assert done.codes() == [0, 0, 0]
    assert done.result["group"]["restarts"] == 1
    assert len(runs(done)) == 2


def test_a_configuration_that_cannot_work_is_not_tried_again(simulate: Simulate) -> None:
    done = simulate(
        "--size=2", "--max-restarts=5", "--failure-hold=1s", "--worker-command=/does/not/exist",
        "--fault=kill:0@start+5s", command=["sleep", "600"], limit=30,
    )  # fmt: skip
    assert done.codes() == [137, 78]
    assert "restart" not in done.log(1)


def test_a_group_of_one_is_restarted_too(simulate: Simulate) -> None:
    command = ["sh", "-c", "echo up; sleep 0.5; exit 9"]
    done = simulate("--size=1", SERVER, "--max-restarts=2", command=command, limit=30)
    assert done.codes() == [9]
    assert done.said(0) == ["up", "up", "up"]
    assert "restart 2 of 2 in place" in done.log(0)


def test_a_sigterm_while_a_restart_is_awaited_ends_the_pod_with_zero() -> None:
    engine = ["sh", "-c", "exit 3"]
    with launched(SERVER, "--max-restarts=9", "--", *engine, pid_1=True, ready=False, stderr=subprocess.STDOUT) as pod:
        for _ in range(3):  # the pauses grow
            while "restart in place in" not in pod.line():
                pass
        pod.send(signal.SIGTERM)
        assert pod.wait() == 0


def test_loading_is_no_service_so_that_an_engine_that_never_answers_is_not_restarted_for_ever(
    simulate: Simulate, tmp_path: Path
) -> None:
    engine = tmp_path / "vllm"  # by its name a server on port 8000, which it never opens
    engine.write_text("#!/bin/sh\necho up\nsleep 1\nexit 9\n")
    engine.chmod(0o755)
    done = simulate("--size=1", "--max-restarts=1", "--restart-reset=500ms", command=[str(engine), "serve", "m"])
    assert done.codes() == [9]
    assert done.said(0) == ["up", "up"]


def test_a_worker_that_fails_hears_its_slow_leader_out(simulate: Simulate) -> None:
    # The leader's launcher hangs for longer than a moment, but by far not for the peer timeout.
    done = simulate(
        "--size=3", SERVER, "--max-restarts=1", "--fault=freeze:0@serving+0s+4s", "--fault=kill-engine:1@serving+1s",
        then_wait_for_starts(6), command=SERVE, limit=40,
    )  # fmt: skip
    assert done.codes() == [0, 0, 0]
    assert len(runs(done)) == 2
    assert done.result["group"]["epoch"] == 2


def test_an_engine_that_breaks_off_when_the_leaders_is_asked_to_end_is_no_failure(simulate: Simulate) -> None:
    # The leader drains for a while; the worker's engine ends in consequence before that is over.
    leads = "trap 'touch $DIR/asked; sleep 3; exit 0' TERM; while :; do sleep 0.1; done"
    follows = "while [ ! -e $DIR/asked ]; do sleep 0.1; done; exit 1"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        command = ["sh", "-c", f"DIR={directory}; [ {{index}} = 0 ] && {{ {leads}; }}; {follows}"]
        done = simulate("--size=2", SERVER, "--fault=term:0@serving+1s", command=command, limit=40)
    assert done.codes() == [0, 0]
    assert "stopped: SIGTERM from outside the pod" in done.log(1).splitlines()[-1]


def last_word(simulate: Simulate, sabotage: str = "") -> None:
    # Asked to stop while it still ends its engine, the leader will not lead again: nobody may wait for it.
    slow = "trap 'sleep 3; exit 0' TERM; while :; do sleep 0.1; done"
    done = simulate(
        "--size=2", SERVER, "--max-restarts=1", "--fault=kill-engine:1@serving+1s", "--fault=term:0@serving+2s",
        command=["sh", "-c", f"[ {{index}} = 0 ] || exec sleep 600; {slow}"], limit=20, sabotage=sabotage,
    )  # fmt: skip
    assert done.codes() == [75, 137]
    assert "no restart in place: the leader does not begin one" in done.log(1)
    assert "stopped because worker 1: the engine exited 137 (SIGKILL)" in done.log(0).splitlines()[-1]


def test_a_leader_that_is_asked_to_stop_before_the_restart_takes_its_workers_along(simulate: Simulate) -> None:
    last_word(simulate)


def test_without_the_leaders_last_word_its_workers_wait_for_it(simulate: Simulate) -> None:
    with pytest.raises(AssertionError):
        last_word(simulate, sabotage="last_word")


def test_a_member_that_fell_silent_ends_every_pod_so_that_the_group_is_recreated(simulate: Simulate) -> None:
    done = simulate(
        "--size=3", SERVER, "--max-restarts=5", "--peer-timeout=3s", "--fault=freeze:2@serving+1s",
        "--fault=kill:2@20s", command=SERVE, limit=40,
    )  # fmt: skip
    assert done.codes() == [75, 75, 137]
    assert "restart in place" not in done.log(0)
