"""What mpirun asks of another pod and what it says at its end, read as Open MPI 4.1 and 5 write it."""

from __future__ import annotations

import pytest

from backends.plan_mpi import Agent, Host, Mpi
from launcher.mpi import daemon, gate, server, verdict
from launcher.mpi.verdict import Said

# As the agent got them from Open MPI 4.1.8 and 5.0.11; the tail is cut.
ORTED = (
    "   OPAL_PREFIX=/opt/mpi ; export OPAL_PREFIX;    PATH=/opt/mpi/bin:$PATH ; export PATH ;"
    " LD_LIBRARY_PATH=/opt/mpi/lib:${LD_LIBRARY_PATH:-} ; export LD_LIBRARY_PATH ;"
    " DYLD_LIBRARY_PATH=/opt/mpi/lib:${DYLD_LIBRARY_PATH:-} ; export DYLD_LIBRARY_PATH ;   /opt/mpi/bin/orted"
    ' --daemonize -mca ess "env" -mca orte_node_regex "vm,[2:10].1.2.3@0(2)"'
    ' -mca orte_hnp_uri "1259012096.0;tcp://192.0.2.2:34033;tcp6://[fd00::2]:58575"'
    ' -mca plm_rsh_agent "/run/x/python -I /run/x/agent.py"'
)
PRTED = (
    "PRTE_PREFIX=/opt/mpi;export PRTE_PREFIX;LD_LIBRARY_PATH=/opt/mpi/lib:$LD_LIBRARY_PATH;export LD_LIBRARY_PATH;"
    '/opt/mpi/bin/prted --daemonize --allow-run-as-root --prtemca ess_base_nspace "prterun-vm-10275@0"'
    ' --prtemca prte_hnp_uri "prterun-vm-10275@0.0;tcp://192.0.2.2:47913:64,24"'
)


def test_the_daemons_command_is_read_without_a_shell() -> None:
    argv, environ = daemon.read(ORTED, {"PATH": "/bin", "HOME": "/root"})
    assert argv[:3] == ("/opt/mpi/bin/orted", "-mca", "ess"), "it stays our child"
    assert argv[6] == "vm,[2:10].1.2.3@0(2)"
    assert argv[-2:] == ("plm_rsh_agent", "/opt/mpi/bin/orted"), "the leader's agent is not here"
    assert "1259012096.0;tcp://192.0.2.2:34033;tcp6://[fd00::2]:58575" in argv
    assert environ == {
        "PATH": "/opt/mpi/bin:/bin", "HOME": "/root", "OPAL_PREFIX": "/opt/mpi", "LD_LIBRARY_PATH": "/opt/mpi/lib:",
        "DYLD_LIBRARY_PATH": "/opt/mpi/lib:",
    }  # fmt: skip
    for command in (PRTED, f"{gate.PROFILE} {PRTED} )"):  # the latter of a user whose shell is sh
        argv, environ = daemon.read(command, {"LD_LIBRARY_PATH": "/own"})
        assert argv[:2] == ("/opt/mpi/bin/prted", "--allow-run-as-root")
        assert environ == {"PRTE_PREFIX": "/opt/mpi", "LD_LIBRARY_PATH": "/opt/mpi/lib:/own"}


@pytest.mark.parametrize(
    "command",
    [
        "", "sh -c id", "/bin/orted; id", "id; orted", "orted && id", "orted | sh", "orted > /etc/passwd", "orted `id`",
        "orted $(id)", "orted\nid", "PATH=/x; LD_PRELOAD=/x.so; export LD_PRELOAD; orted", "PATH=/x id; orted",
        "export PATH HOME; orted", "orted 'unclosed", "(orted)", "orted &", "/tmp/orted-not", "env orted",
    ],
)  # fmt: skip
def test_nothing_but_mpis_daemon_is_started(command: str) -> None:
    with pytest.raises(gate.NoDaemon):
        daemon.read(command, {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mpirun noticed that process rank 3 with PID 0 on node 10 exited on signal 9 (Killed).", Said(3, 137)),
        ("prterun noticed that process rank 12 with PID 83 on node sim-0-1 exited on\nsignal 11 (Segm", Said(12, 139)),
        ("The first process to do so was:\n\n  Process name: [[28421,1],3]\n  Exit code:    7\n", Said(3, 7)),
        ("first process to do so was:\n\n   Process name: [prterun-sim-0-6@1,0]\n   Exit code:    7\n", Said(0, 7)),
        ("MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\nwith errorcode 42.\n", Said(1, 42)),
        (
            "ORTE has lost communication with a remote daemon.\n\n  HNP daemon   : [[62783,0],0] on node vm\n"
            "  Remote daemon: [[62783,0],2] on node 10.1.2.3\n",
            Said(daemon=2),
        ),
        (
            "PRTE has lost communication with a remote daemon.\n\n  HNP daemon   : [prterun-vm-7@0,0] on node vm\n"
            "  Remote daemon: [prterun-vm-7@0,1] on node 10.244.0.11\n",
            Said(daemon=1),
        ),
        ("ORTE was unable to reliably start one or more daemons.", None),
        ("a rank's own words: Exit code: 3", None),
    ],
)
def test_mpiruns_last_words_name_who_was_first(words: str, said: Said | None) -> None:
    assert verdict.read(words) == said


def test_a_ranks_pod_is_found_by_the_slots_of_the_hostfile() -> None:
    mpi = Mpi(Agent.CHANNEL, (Host(0, "a", 2), Host(1, "b", 1), Host(2, "c", 4)), 7, ("x",), "/run/x")
    assert [verdict.host_of(mpi, rank) for rank in range(7)] == [0, 0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("argv", "serves"),
    [
        (["/usr/bin/python3", "/usr/local/bin/trtllm-serve", "m", "--tp_size", "2"], True),
        (["trtllm-serve", "serve", "m"], True),
        (["/bin/bash", "/usr/local/bin/trtllm-llmapi-launch", "trtllm-serve", "m"], False),
        (["bash", "-c", "trtllm-serve", "m"], False),
        (["python3", "-m", "tensorrt_llm.llmapi.mgmn_leader_node"], False),
        ([], False),
    ],
)
def test_the_server_is_told_from_the_shells_that_quote_it(argv: list[str], serves: bool) -> None:
    assert server.is_server(argv, "trtllm-serve") is serves


def test_what_serves_is_known_where_tensorrt_llms_script_starts_it() -> None:
    assert server.entry_of(("trtllm-llmapi-launch", "trtllm-serve", "m")) == "trtllm-serve"
    assert server.entry_of(("trtllm-llmapi-launch", "python3", "-m", "dynamo.trtllm")) == "dynamo.trtllm"
    assert server.entry_of(("python3", "solve.py")) is None
