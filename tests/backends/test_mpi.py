"""Any MPI program: mpirun's command line, the hostfile, what an image must have, and what can never be launched."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mpi_requests import TOOLS, main, mca, plan, refusal, request

from backends.plan import Kind, Options, Stage
from backends.plan_mpi import Agent, SshLogins
from backends.planner import make_plan
from backends.render import plan_data, plan_text

LINE = "python3 train.py --lr 1"


def test_the_leader_runs_mpirun_and_a_worker_sshd() -> None:
    leader, worker = (plan(LINE, index, backend="mpi") for index in (0, 1))
    assert main(leader).argv[:12] == (
        "/opt/mpi/bin/mpirun", "--allow-run-as-root", "--hostfile", "/run/x/hostfile", "-np", "4", "--map-by",
        "ppr:2:node", "--bind-to", "none", "--stdin", "none",
    )  # fmt: skip
    assert main(leader).argv[-4:] == tuple(LINE.split())
    assert main(leader).kind is Kind.JOB
    assert leader.services == ()
    assert leader.mpi is not None
    assert leader.mpi.hostfile_text() == "10.0.0.10 slots=2\n10.0.0.11 slots=2\n"
    assert leader.gates == (SshLogins("/run/x", leader.mpi.workers, 2222, 300.0),)
    assert worker.main is None
    assert [(each.name, each.argv, each.stage) for each in worker.services] == [
        ("sshd", ("/usr/sbin/sshd", "-D", "-e", "-f", "/run/x/sshd_config"), Stage.FORMED)
    ]
    assert leader.leader_only
    assert worker.leader_only


def test_what_mpirun_is_told_stands_on_its_command_line() -> None:
    assert mca(plan(LINE, backend="mpi")) == {
        "plm_rsh_agent": "/usr/bin/ssh -F /run/x/ssh_config",
        "plm_rsh_no_tree_spawn": "1",
        "oob_tcp_keepalive_time": "10",
        "oob_tcp_keepalive_intvl": "5",
        "oob_tcp_keepalive_probes": "3",
        "oob_tcp_if_include": "eth0",
        "btl_tcp_if_include": "eth0",
    }


def test_without_an_interface_none_is_named() -> None:
    assert "oob_tcp_if_include" not in mca(plan(LINE, backend="mpi", interface=None))


def test_in_a_large_group_mpirun_may_have_a_connection_to_every_pod() -> None:
    assert "plm_rsh_num_concurrent" not in mca(plan("prog", gpus=(1,) * 128, backend="mpi"))
    assert mca(plan("prog", gpus=(1,) * 129, backend="mpi"))["plm_rsh_num_concurrent"] == "129"


def test_ports_are_shared_by_daemons_and_ranks_without_an_overlap() -> None:
    told = mca(plan(LINE, backend="mpi", ports=(50000, 50049)))
    assert told["oob_tcp_dynamic_ipv4_ports"] == "50000-50024"
    assert (told["btl_tcp_port_min_v4"], told["btl_tcp_port_range_v4"]) == ("50025", "25")


def test_too_few_ports_are_refused() -> None:
    text = refusal(LINE, backend="mpi", gpus=(8, 8), ports=(50000, 50010))
    assert text.startswith("--mpi-ports 50000-50010 has 11 ports\n  expected: at least 20, for 8 ranks on a node")


def test_only_root_needs_to_be_allowed() -> None:
    argv = main(plan(LINE, backend="mpi", tools=replace(TOOLS, uid=1000, user="me"))).argv
    assert "--allow-run-as-root" not in argv


@pytest.mark.parametrize(
    ("gpus", "ranks", "np", "mapping"),
    [
        ((2, 2), None, "4", "ppr:2:node"),
        ((2, 2), 4, "4", "ppr:2:node"),
        ((2, 2), 3, "3", "slot"),
        ((1, 2), None, "3", "slot"),
    ],
)
def test_ranks_fill_the_slots_in_the_hostfiles_order(
    gpus: tuple[int, ...], ranks: int | None, np: str, mapping: str
) -> None:
    argv = main(plan(LINE, gpus=gpus, backend="mpi", ranks=ranks)).argv
    assert (argv[argv.index("-np") + 1], argv[argv.index("--map-by") + 1]) == (np, mapping)
    assert "--oversubscribe" not in argv


def test_more_ranks_than_slots_are_refused() -> None:
    assert refusal(LINE, backend="mpi", ranks=5).startswith("--mpi-ranks 5, but the group has 4 slots (2 + 2)\n")


def test_a_pod_without_gpus_must_say_how_many_slots_it_has() -> None:
    text = refusal(LINE, backend="mpi", gpus=(0, 0))
    assert text.startswith("no GPU was found on this node: how many ranks should it have?")
    assert "--gpus-per-node N" in text


def test_an_excluded_leader_is_refused() -> None:
    text = refusal(LINE, backend="mpi", options=Options(leader_excluded=True))
    assert text.startswith("--leader-excluded: mpirun's own pod has rank 0")


@pytest.mark.parametrize("line", ["mpirun -np 4 python3 x.py", "/usr/bin/mpiexec x", "srun x", "orterun x"])
@pytest.mark.parametrize("backend", ["mpi", "tensorrt-llm"])
def test_a_users_own_mpirun_is_refused(line: str, backend: str) -> None:
    text = refusal(line, backend=backend)
    assert "lwsrun writes the mpirun, its hostfile and its options itself" in text
    assert "--mpi-arg" in text


def test_more_arguments_of_mpiruns_stand_before_the_program() -> None:
    argv = main(plan("a b", backend="mpi", arguments=("--tag-output", "--mca", "pml", "ob1"))).argv
    assert argv[-6:] == ("--tag-output", "--mca", "pml", "ob1", "a", "b")


def test_what_the_user_tells_mpirun_takes_the_place_of_ours() -> None:
    """Open MPI 4 and 5 fail on many options and settings that they are given twice."""
    given = ("--bind-to", "core", "-map-by", "node", "--mca", "btl_tcp_if_include", "10.0.0.0/8")
    argv = main(plan("p", backend="mpi", arguments=given)).argv
    assert argv[-8:] == (*given, "p")
    assert not {"--bind-to", "--map-by", "btl_tcp_if_include"} & set(argv[:-8])
    assert {"--stdin", "oob_tcp_if_include"} <= set(argv[:-8])


@pytest.mark.parametrize("argument", ["-np", "--hostfile=x", "-H", "--oversubscribe", "plm_rsh_agent"])
def test_hosts_and_ranks_are_not_the_users(argument: str) -> None:
    text = refusal(LINE, backend="mpi", arguments=(argument,))
    assert text.startswith(f"--mpi-arg {argument}: hosts, ranks and how they are reached are the group's")


def test_a_single_colon_is_hidden_from_mpirun() -> None:
    assert main(plan(["p", "a b", ":"], backend="mpi")).argv[-3:] == ("/bin/sh", "-c", "exec p 'a b' :")


@pytest.mark.parametrize("index", [0, 1])
def test_an_image_without_mpirun_is_refused_on_every_pod(index: int) -> None:
    text = refusal(LINE, index, backend="mpi", tools=replace(TOOLS, mpirun=None, version=None))
    assert text.startswith("this image has no mpirun on PATH")


def test_another_mpi_is_refused_by_its_name() -> None:
    text = refusal(LINE, backend="mpi", tools=replace(TOOLS, version=None, other="HYDRA build details:"))
    assert text.startswith("/opt/mpi/bin/mpirun is not Open MPI 4 or 5, but HYDRA build details:")


def test_only_a_worker_needs_sshd_and_only_over_ssh() -> None:
    bare = replace(TOOLS, sshd=None)
    assert plan(LINE, 0, backend="mpi", tools=bare).main is not None
    text = refusal(LINE, 1, backend="mpi", tools=bare)
    assert text.startswith("this image has no sshd\n")
    assert "--mpi-agent channel" in text
    assert plan(LINE, 1, backend="mpi", tools=bare, agent=Agent.CHANNEL).services == ()


def test_only_the_leader_needs_ssh() -> None:
    bare = replace(TOOLS, ssh=None)
    assert refusal(LINE, 0, backend="mpi", tools=bare).startswith("this image has no ssh\n")
    assert plan(LINE, 1, backend="mpi", tools=bare).services


@pytest.mark.parametrize(("version", "fits"), [("4.1.4", 56), ("5.0.11", 63)])
def test_host_names_that_open_mpi_4_breaks_on_are_refused(version: str, fits: int) -> None:
    tools = replace(TOOLS, version=version)
    assert plan(LINE, backend="mpi", host="h" * (fits - 2), tools=tools).main is not None
    if version == "4.1.4":
        text = refusal(LINE, backend="mpi", host="h" * 55, tools=tools)
        assert "has 57 characters (this pod's): Open MPI 4.1.4 breaks on more than 56" in text
        assert "shorter name" in text


def test_alone_there_is_nobody_to_reach() -> None:
    made = plan(LINE, gpus=(2,), backend="mpi", tools=replace(TOOLS, ssh=None, sshd=None))
    assert mca(made) == {}
    assert made.gates == ()


def test_what_another_launch_left_in_the_pod_is_not_handed_on() -> None:
    environ = {
        "SLURM_PROCID": "1", "PMI_RANK": "2", "WORLD_SIZE": "8", "OMPI_MCA_btl_tcp_if_include": "lo",
        "OMPI_MCA_coll_hcoll_enable": "0", "OMPI_MCA_plm_rsh_agent": "x", "HF_TOKEN": "s",
    }  # fmt: skip
    made = plan(LINE, backend="mpi", environ=environ, environment=("SLURM_PROCID",))
    assert {each.name for each in made.unset} == {
        "PMI_RANK", "WORLD_SIZE", "OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_plm_rsh_agent"
    }  # fmt: skip
    assert all(each.reason for each in made.unset)
    assert made.environ(environ)["OMPI_MCA_coll_hcoll_enable"] == "0"


def test_all_pods_must_agree_on_the_agent_and_the_port() -> None:
    assert plan(LINE, 1, backend="mpi", ssh_port=2022).agreed == ("--ssh-port 2022",)
    modes = {plan(LINE, 1, backend="mpi", agent=agent).mode for agent in Agent}
    assert modes == {"Open MPI 4.1.6 over ssh", "Open MPI 4.1.6 over the group channel"}


def test_the_plan_can_be_read() -> None:
    made = request(LINE, backend="mpi", environment=("HF_HOME",), keys="/ssh")
    text = plan_text(made.group, made.node, make_plan(made))
    assert "  write   /run/x/hostfile: 10.0.0.10 slots=2, 10.0.0.11 slots=2" in text
    assert "  keys    the pair in /ssh; of every worker its host key, by the group channel: strict checking" in text
    assert "  hand    each worker the variables that it lacks, and HF_HOME (--mpi-env), over the group channel" in text
    assert "  wait    until worker 1's sshd lets the leader in (port 2222)" in text
    assert "  note    --mpi-env HF_HOME: not set on the leader, so there is nothing to hand on" in text
    data = plan_data(made.group, made.node, make_plan(made))
    assert data["mpi"]["ranks"] == 4
    assert data["gates"] == [{"gate": "ssh-logins", "hosts": ["10.0.0.11"], "port": 2222}]
