"""How a launch over MPI is ended: by lwsrun, in its own order and time, whatever mpirun would do with it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from conftest import Simulate, Simulation
from mpi import installed

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
FAULT = str(HERE / "mpi_fault.py")
READY = "curl -sS -o /dev/null --retry 60 --retry-connrefused --retry-delay 1 http://$LEADER_IP:8000/"


def served(
    simulate: Simulate, version: str, agent: str, then: str, *options: str, sabotage: str = "", limit: float = 120
) -> Simulation:
    """A stand-in for TensorRT-LLM, which needs GPUs, over two pods; then is a script of its client."""
    mpi = installed(version)
    path = f"{HERE / 'trtllm_bin'}:{mpi.path}:{os.environ['PATH']}"
    return simulate(
        "--size=2", "--gpus-per-node=1", f"--mpi-agent={agent}", f"--then={READY}; {then}", *options,
        command=["trtllm-serve", "model", "--tp_size", "2"], sabotage=sabotage, limit=limit, PATH=path,
        RANKS_PYTHON=mpi.python, OMPI_MCA_mpi_yield_when_idle="1", **mpi.environ,
    )  # fmt: skip


def died(simulate: Simulate, version: str, agent: str, sabotage: str = "", limit: float = 120) -> None:
    then = "curl -s http://$LEADER_IP:8000/die; sleep 60"
    done = served(simulate, version, agent, then, sabotage=sabotage, limit=limit)
    assert done.codes() == [70, 75], done.output[-4000:]
    for index in range(2):
        last = done.log(index).splitlines()[-1]
        assert re.search(r"stopped because the leader: trtllm-serve \(pid \d+\) .*although nobody asked it to", last)


@pytest.mark.parametrize(("version", "agent"), [("5", "channel"), ("4", "ssh")])
def test_a_server_that_dies_ends_the_group_although_its_script_goes_on(
    version: str, agent: str, simulate: Simulate
) -> None:
    died(simulate, version, agent)


def test_without_the_watch_of_the_server_the_group_stays(simulate: Simulate) -> None:
    with pytest.raises(AssertionError):
        died(simulate, "5", "channel", sabotage="server_watch", limit=45)


def finishes(simulate: Simulate, answer: Path, version: str, agent: str, sabotage: str = "") -> Simulation:
    then = f"curl -s http://$LEADER_IP:8000/slow -o {answer} & sleep 1.5"
    done = served(simulate, version, agent, then, sabotage=sabotage)
    assert "a slow request has come" in done.log(0)
    assert answer.exists(), done.output[-4000:]
    assert answer.read_text() == "done\n"
    return done


@pytest.mark.parametrize(("version", "agent"), [("4", "ssh"), ("5", "channel")])
def test_a_server_finishes_its_request_when_every_pod_gets_sigterm(
    version: str, agent: str, simulate: Simulate, tmp_path: Path
) -> None:
    done = finishes(simulate, tmp_path / "answer", version, agent)
    assert done.codes() == [0, 0], done.output[-4000:]
    assert "asking trtllm-serve" in done.log(0)


def test_without_asking_the_server_first_mpirun_breaks_its_request_off(simulate: Simulate, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        finishes(simulate, tmp_path / "answer", "5", "channel", sabotage="asking_before_mpirun")


def job(simulate: Simulate, version: str, agent: str, *options: str, sabotage: str = "") -> Simulation:
    mpi = installed(version)
    return simulate(
        "--size=3", "--gpus-per-node=1", "--backend=mpi", f"--mpi-agent={agent}", *options,
        command=[mpi.python, FAULT, "patient", "0"], sabotage=sabotage, PATH=f"{mpi.path}:{os.environ['PATH']}",
        OMPI_MCA_mpi_yield_when_idle="1", **mpi.environ,
    )  # fmt: skip


def leave_in_time(done: Simulation) -> None:
    assert done.codes() == [0, 0, 0], done.output[-4000:]
    assert sorted(re.findall(r"rank (\d) leaves", done.log(0))) == ["0", "1", "2"], done.output[-4000:]


@pytest.mark.parametrize(
    ("version", "agent", "who"), [("5", "channel", 0), ("4.1.8", "channel", 1), ("5", "ssh", 1), ("4", "ssh", 0)]
)
def test_the_ranks_of_a_job_get_the_grace_whichever_pod_is_asked_to_stop(
    version: str, agent: str, who: int, simulate: Simulate
) -> None:
    leave_in_time(job(simulate, version, agent, f"--fault=term:{who}@serving+12s"))


def test_without_asking_the_ranks_first_mpirun_kills_them(simulate: Simulate) -> None:
    with pytest.raises(AssertionError):
        leave_in_time(job(simulate, "5", "channel", "--fault=term:0@serving+12s", sabotage="asking_before_mpirun"))


def test_a_restart_in_place_finds_no_rank_of_the_launch_before(simulate: Simulate) -> None:
    mpi = installed("5")
    done = simulate(
        "--size=2", "--gpus-per-node=1", "--backend=mpi", "--mpi-agent=channel", "--max-restarts=1",
        command=[mpi.python, FAULT, "parent", "1"], PATH=f"{mpi.path}:{os.environ['PATH']}",
        OMPI_MCA_mpi_yield_when_idle="1",
    )  # fmt: skip
    assert 0 not in done.codes(), done.output[-4000:]
    up = re.findall(r"rank \d is up; of other launches: (.*)", done.log(0))
    assert up == ["[]"] * 4, done.output[-4000:]
