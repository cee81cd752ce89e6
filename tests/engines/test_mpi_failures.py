"""Whatever of a launch over MPI fails, every pod ends in time, none with 0, and all name the same first cause."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Simulate, Simulation
from mpi import installed, run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

FAULT = str(Path(__file__).with_name("mpi_fault.py"))
# Connection-visible: 2 s and the grace of 5; what is silent: the peer timeout besides. And a busy machine.
VISIBLE, SILENT = 20.0, 30.0
QUIET = {"OMPI_MCA_mpi_yield_when_idle": "1"}


def broken(
    simulate: Simulate, version: str, agent: str, what: str, who: int, *options: str, sabotage: str = ""
) -> Simulation:
    """A leader and two workers of one rank each; who is the rank that breaks something."""
    mpi = installed(version)
    command = [mpi.python, FAULT, what, str(who)]
    return run(
        simulate, mpi, f"--mpi-agent={agent}", *options, size=3, slots=1, command=command, sabotage=sabotage, **QUIET
    )  # fmt: skip


def end_together(done: Simulation, cause: str, within: float = VISIBLE) -> None:
    """All pods have ended with a code of failure, in time, and say the same."""
    assert "rank 2 is up" in done.log(0), done.output[-4000:]
    assert 0 not in done.codes(), done.output[-4000:]
    last = [done.log(index).splitlines()[-1] for index in range(3)]
    sentences = {line.partition("ERROR: ")[2].partition("; ")[0] for line in last}
    assert len(sentences) == 1, last
    assert re.search(cause, sentences.pop()), last
    fault = re.search(r"fault at ([\d.]+)", done.log(0))
    if fault is not None:
        for line in last:
            hours, minutes, seconds = re.findall(r"[\d.]+", line)[:3]
            assert (int(hours) * 3600 + int(minutes) * 60 + float(seconds) - float(fault[1])) % 86400 < within
    for index in range(3):
        assert "still alive after SIGKILL" not in done.log(index)


@pytest.mark.parametrize(("version", "agent"), [("5", "channel"), ("4", "ssh")])
def test_a_rank_that_fails_is_named_with_its_code_and_words(version: str, agent: str, simulate: Simulate) -> None:
    done = broken(simulate, version, agent, "exit", 1)
    end_together(done, r"stopped because worker 1: rank 1 .*exited 7")
    assert done.codes() == [75, 70, 75]
    for pod in done.pods():
        assert "RuntimeError: CUDA error" in pod["termination_message"]


@pytest.mark.parametrize(("version", "agent"), [("4.1.8", "channel"), ("5", "ssh")])
def test_a_killed_rank_is_named_in_every_pod(version: str, agent: str, simulate: Simulate) -> None:
    end_together(broken(simulate, version, agent, "kill", 2), r"stopped because worker 2: rank 2 .*137 \(SIGKILL\)")


@pytest.mark.parametrize("version", ["4.1.8", "5"])
def test_a_rank_of_the_leader_that_fails_is_the_leaders(version: str, simulate: Simulate) -> None:
    done = broken(simulate, version, "channel", "exit", 0)
    end_together(done, r"stopped because the leader: rank 0 .*exited 7")
    assert done.codes() == [7, 75, 75]


@pytest.mark.parametrize(("version", "agent"), [("5", "channel"), ("4.1.8", "channel"), ("5", "ssh"), ("4", "ssh")])
def test_a_daemon_that_dies_ends_every_pod_and_its_worker_is_named(
    version: str, agent: str, simulate: Simulate
) -> None:
    end_together(broken(simulate, version, agent, "parent", 1), r"stopped because worker 1: .*daemon")


@pytest.mark.parametrize(("version", "agent"), [("5", "channel"), ("4", "ssh")])
def test_mpirun_that_dies_ends_every_pod_and_is_named(version: str, agent: str, simulate: Simulate) -> None:
    done = broken(simulate, version, agent, "parent", 0)
    end_together(done, r"stopped because the leader: the engine exited 137 \(SIGKILL\)")


@pytest.mark.parametrize("version", ["5", "4"])
def test_sshd_that_dies_ends_every_pod(version: str, simulate: Simulate) -> None:
    end_together(broken(simulate, version, "ssh", "sshd", 2), r"stopped because worker 2: ")


@pytest.mark.parametrize(("version", "agent"), [("5", "channel"), ("4", "ssh")])
def test_a_link_that_drops_everything_is_noticed_by_silence(version: str, agent: str, simulate: Simulate) -> None:
    faults = ("--peer-timeout=3s", "--fault=partition:2@serving+12s")
    done = broken(simulate, version, agent, "wait", 0, *faults)
    assert 0 not in done.codes(), done.output[-4000:]
    for index in (0, 1):
        last = done.log(index).splitlines()[-1]
        assert "stopped because worker 2: lost: nothing was heard from it" in last
    assert "stopped because the leader: lost: nothing was heard from it" in done.log(2).splitlines()[-1]
    (fault,) = done.result["faults"]
    assert all(pod["ended"] - fault["at"] < SILENT for pod in done.pods())


def test_a_worker_pod_that_is_killed_is_no_finished_job_though_mpirun_may_exit_with_0(simulate: Simulate) -> None:
    done = broken(simulate, "5", "ssh", "wait", 0, "--fault=kill:1@serving+12s")
    assert done.codes() == [75, 137, 75], done.output[-4000:]
    for index in (0, 2):
        assert "stopped because worker 1: " in done.log(index).splitlines()[-1]
