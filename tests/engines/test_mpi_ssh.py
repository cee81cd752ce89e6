"""Real Open MPI over real OpenSSH between simulated pods: who runs where, with which arguments and environment."""

from __future__ import annotations

import os

import pytest
from conftest import Simulate
from mpi import OpenMpi, installed, ranks, run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

VERSION = {"4": "4.1.4", "5": "5.0.11"}
HOSTILE = [
    "two words", "", "a'b", 'say "x"', "$HOME", "${PATH}", "`id`", "$(id)", "back\\slash", "line\nbreak", "tab\there",
    '{"a": {"b": [1, "two"]}, "c": "$d"}', "*", "~", ";", "&& false", "|", ">", "#", "!", "--mca", "x", "-np", "9",
    "-x", "é", "%s", "--", "-",
]  # fmt: skip


@pytest.fixture(params=["4", "5"])
def mpi(request: pytest.FixtureRequest) -> OpenMpi:
    return installed(request.param)


def test_three_pods_of_two_slots_are_one_world_in_the_hostfiles_order(simulate: Simulate, mpi: OpenMpi) -> None:
    done = run(simulate, mpi)
    assert done.codes() == [0, 0, 0], done.output[-4000:]
    told = ranks(done)
    assert [(each["rank"], each["size"], each["sum"]) for each in told] == [(n, 6, 15) for n in range(6)]
    assert [each["host"] for each in told] == ["sim-0", "sim-0", "sim-0-1", "sim-0-1", "sim-0-2", "sim-0-2"]
    assert {each["library"] for each in told} == {f"Open MPI v{VERSION[mpi.name]}"}
    assert all(each["stdin"] == "" for each in told)


def test_arguments_reach_every_rank_as_they_were_given(simulate: Simulate, mpi: OpenMpi) -> None:
    done = run(simulate, mpi, size=2, slots=1, command=mpi.program(*HOSTILE))
    assert done.codes() == [0, 0], done.output[-4000:]
    assert [each["arguments"] for each in ranks(done)] == [HOSTILE, HOSTILE]


def test_a_single_colon_is_no_word_of_mpiruns(simulate: Simulate, mpi: OpenMpi) -> None:
    done = run(simulate, mpi, size=2, slots=1, command=mpi.program("a b", ":", "$c"))
    assert done.codes() == [0, 0], done.output[-4000:]
    assert [each["arguments"] for each in ranks(done)] == [["a b", ":", "$c"]] * 2


def test_a_rank_starts_from_its_own_pod_and_has_of_the_leader_what_only_it_declares(
    simulate: Simulate, mpi: OpenMpi
) -> None:
    """Of what another launch left in the pod nothing is seen; and no value of a variable is in an argv."""
    leader = {
        "ONLY_LEADER": "a 'b' \"c\" $d\nnext", "BOTH": "leader", "NAMED": "leader", "POD_NAME": "leader",
        "SECRET": "hunter2-hunter2", "CUDA_VISIBLE_DEVICES": "7", "WORLD_SIZE": "99", "SLURM_PROCID": "5",
        "OMPI_MCA_btl_tcp_if_include": "lo", "PMI_RANK": "3",
    }  # fmt: skip
    worker = {"BOTH": "worker", "NAMED": "worker", "ONLY_WORKER": "w", "CUDA_VISIBLE_DEVICES": "0", "SLURM_PROCID": "6"}
    done = run(
        simulate, mpi, "--mpi-env=NAMED", "--env=GIVEN=by {index}", size=2, slots=1,
        pod={"leader": leader, "worker": worker},
    )  # fmt: skip
    assert done.codes() == [0, 0], done.output[-4000:]
    first, second = (each["environment"] for each in ranks(done))
    assert {name: second.get(name) for name in ("ONLY_LEADER", "BOTH", "NAMED", "ONLY_WORKER", "SECRET")} == {
        "ONLY_LEADER": leader["ONLY_LEADER"], "BOTH": "worker", "NAMED": "leader", "ONLY_WORKER": "w",
        "SECRET": "hunter2-hunter2",
    }  # fmt: skip
    assert {name: first.get(name) for name in ("ONLY_LEADER", "BOTH", "NAMED")} == {
        name: leader[name] for name in ("ONLY_LEADER", "BOTH", "NAMED")
    }
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("7", "0")
    assert (first["HOSTNAME"], second["HOSTNAME"]) == ("sim-0", "sim-0-1")
    assert (first["LWS_WORKER_INDEX"], second["LWS_WORKER_INDEX"]) == ("0", "1")
    assert (first["GIVEN"], second["GIVEN"]) == ("by 0", "by 1")
    assert "POD_NAME" not in second
    for own in (first, second):
        assert not {"WORLD_SIZE", "SLURM_PROCID", "PMI_RANK"} & set(own)
        assert own["OMPI_MCA_btl_tcp_if_include"] == "eth0"
    assert not any(each["secret_in_an_argv"] for each in ranks(done))
    assert "hunter2" not in done.log(0).replace('"SECRET": "hunter2-hunter2"', "")
    assert "SLURM_PROCID is not handed on" in done.log(0)


def test_pods_whose_own_names_resolve_nowhere_and_are_as_long_as_open_mpi_4_survives(
    simulate: Simulate, mpi: OpenMpi
) -> None:
    name = "n" * 54
    done = run(simulate, mpi, size=2, slots=1, pod={"host": name})
    assert done.codes() == [0, 0], done.output[-4000:]
    assert [each["host"] for each in ranks(done)] == [f"{name}-0", f"{name}-1"]


def test_a_name_that_open_mpi_4_breaks_on_is_told_before_anything_is_launched(simulate: Simulate) -> None:
    done = run(simulate, installed("4"), "--failure-hold=0s", size=2, slots=1, pod={"host": "n" * 55})
    assert 78 in done.codes(), done.output[-4000:]
    assert "has 57 characters (this pod's): Open MPI 4.1.4 breaks on more than 56" in done.log(0)
    assert "running:" not in done.log(0)


def test_32_ranks_over_8_pods(simulate: Simulate, mpi: OpenMpi) -> None:
    done = run(simulate, mpi, size=8, slots=4, limit=240)
    assert done.codes() == [0] * 8, done.output[-4000:]
    told = ranks(done)
    assert [(each["rank"], each["sum"]) for each in told] == [(n, 496) for n in range(32)]
    assert [each["host"] for each in told[::4]] == ["sim-0", *(f"sim-0-{n}" for n in range(1, 8))]


def test_fewer_ranks_than_slots_fill_the_first_pods_and_listen_where_they_may(simulate: Simulate, mpi: OpenMpi) -> None:
    done = run(simulate, mpi, "--mpi-ranks=3", "--mpi-ports=50000-50019", size=2)
    assert done.codes() == [0, 0], done.output[-4000:]
    told = ranks(done)
    assert [each["host"] for each in told] == ["sim-0", "sim-0", "sim-0-1"]
    launchers = {2222, int(os.environ["LWSRUN_PORT"])}
    ports = {port for each in told for port in each["listening"]} - launchers
    assert ports, "the daemons and the ranks listen"
    assert ports <= set(range(50000, 50020))


def test_pods_with_two_versions_of_open_mpi_are_told_so(simulate: Simulate) -> None:
    other = installed("5")
    done = run(
        simulate, installed("4"), size=2, slots=1, pod={"worker": {"PATH": f"{other.path}:/usr/bin:/bin"}},
        LWSRUN_MISMATCH_TIMEOUT="1s", LWSRUN_GATHER_TIMEOUT="20s",
    )  # fmt: skip
    assert done.codes()[1] == 77, done.output[-4000:]
    assert "its Open MPI is 5.0.11, the leader's is 4.1.4" in done.log(1)
    assert ranks(done) == []
