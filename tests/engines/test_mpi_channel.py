"""`--mpi-agent channel`: lwsrun starts mpirun's daemons itself. No sshd, no keys, any user, no capabilities."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Simulate
from mpi import OpenMpi, installed, ranks, run
from test_mpi_ssh import HOSTILE

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CHANNEL = "--mpi-agent=channel"
BLOCKED = str(Path(__file__).with_name("mpi_blocked"))


@pytest.fixture(params=["4", "5"])
def mpi(request: pytest.FixtureRequest) -> OpenMpi:
    return installed(request.param)


def test_three_pods_are_one_world_with_the_environment_of_the_rule(simulate: Simulate, mpi: OpenMpi) -> None:
    leader = {"ONLY_LEADER": "a 'b' \"c\" $d\nnext", "BOTH": "leader", "NAMED": "leader", "SECRET": "hunter2-hunter2"}
    pod = {"leader": leader, "worker": {"BOTH": "worker", "NAMED": "worker", "ONLY_WORKER": "w"}}
    done = run(simulate, mpi, CHANNEL, "--mpi-env=NAMED", pod=pod)
    assert done.codes() == [0, 0, 0], done.output[-4000:]
    told = ranks(done)
    assert [(each["rank"], each["size"], each["sum"]) for each in told] == [(n, 6, 15) for n in range(6)]
    assert [each["host"] for each in told] == ["sim-0", "sim-0", "sim-0-1", "sim-0-1", "sim-0-2", "sim-0-2"]
    last = told[-1]["environment"]
    assert {name: last.get(name) for name in ("ONLY_LEADER", "BOTH", "NAMED", "ONLY_WORKER", "HOSTNAME")} == {
        "ONLY_LEADER": leader["ONLY_LEADER"], "BOTH": "worker", "NAMED": "leader", "ONLY_WORKER": "w",
        "HOSTNAME": "sim-0-2",
    }  # fmt: skip
    assert not any(each["secret_in_an_argv"] for each in told)
    assert "sshd" not in "".join(done.log(index) for index in range(3))


def test_arguments_reach_every_rank_as_they_were_given(simulate: Simulate, mpi: OpenMpi) -> None:
    done = run(simulate, mpi, CHANNEL, size=2, slots=1, command=mpi.program(*HOSTILE))
    assert done.codes() == [0, 0], done.output[-4000:]
    assert [each["arguments"] for each in ranks(done)] == [HOSTILE, HOSTILE]


@pytest.mark.parametrize("version", ["4.1.8", "5"])
def test_any_user_will_do_without_a_passwd_entry_or_ssh(version: str, simulate: Simulate) -> None:
    mpi = installed(version)
    # Where nothing is but Open MPI and Python; and mpirun writes for sh otherwise than for bash.
    path = {"PATH": mpi.path, "SHELL": "/bin/sh"}
    done = run(simulate, mpi, CHANNEL, size=2, slots=1, pod={"uid": 12345, "leader": path, "worker": path})
    assert done.codes() == [0, 0], done.output[-4000:]
    assert [each["uid"] for each in ranks(done)] == [12345, 12345]


def test_32_ranks_over_8_pods(simulate: Simulate, mpi: OpenMpi) -> None:
    say = ["/bin/sh", "-c", 'sleep 2; echo "rank $OMPI_COMM_WORLD_RANK on $HOSTNAME"; sleep 2']
    done = run(simulate, mpi, CHANNEL, size=8, slots=4, command=say)
    assert done.codes() == [0] * 8, done.output[-4000:]
    hosts = ["sim-0", *(f"sim-0-{n}" for n in range(1, 8))]
    said = sorted(line for line in done.said(0) if line.startswith("rank "))
    assert said == sorted(f"rank {n} on {hosts[n // 4]}" for n in range(32))


def test_a_daemon_that_cannot_call_back_is_named_with_the_ports_that_must_be_open(simulate: Simulate) -> None:
    mpi = installed("5")
    done = simulate(
        "--size=3", "--gpus-per-node=1", "--backend=mpi", CHANNEL, "--mpi-timeout=8s", "--mpi-ports=50000-50049",
        command=mpi.program(), PATH=f"{mpi.path}:{os.environ['PATH']}", PYTHONPATH=BLOCKED,
    )  # fmt: skip
    assert done.codes() == [70, 75, 75], done.output[-4000:]
    for index in range(3):
        last = done.log(index).splitlines()[-1]
        assert "not called back within 8 s (--mpi-timeout) from worker 2 (10.244.0.12): a NetworkPolicy must" in last
        assert "open TCP ports 50000 to 50049 (--mpi-ports) between all pods of the group" in last
