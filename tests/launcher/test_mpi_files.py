"""What a launch over MPI keeps: the private directory, keys, and the gate's judgement of a command."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from backends.errors import ConfigError
from launcher.channel.messages import Handed
from launcher.mpi import keys, private
from launcher.mpi.equip import check_interface, check_port, check_size
from launcher.mpi.gate import PROFILE, NoDaemon, statements, unwrapped
from launcher.mpi.private import Private, choose, trusted

# As Open MPI 4.1.4 and 5.0.11 send it.
ORTED = (
    "PATH=/usr/bin:$PATH ; export PATH ; LD_LIBRARY_PATH=/usr/lib:$LD_LIBRARY_PATH ; export LD_LIBRARY_PATH ;"
    ' DYLD_LIBRARY_PATH=/usr/lib:$DYLD_LIBRARY_PATH ; export DYLD_LIBRARY_PATH ;   /usr/bin/orted -mca ess "env"'
    ' -mca orte_hnp_uri "34.0;tcp://10.0.0.1:40001" --tree-spawn'
)
PRTED = 'PRTE_PREFIX=/opt ; export PRTE_PREFIX ; /opt/bin/prted --prtemca ess "env" --prtemca plm_ssh_agent "ssh -F x"'


@pytest.mark.parametrize("command", [ORTED, PRTED, "orted", "/usr/bin/prted --x", f"{PROFILE} {ORTED} )"])
def test_the_gate_lets_mpis_daemon_through(command: str) -> None:
    assert statements(unwrapped(command))[-1][0].endswith(("orted", "prted"))
    assert ".profile" not in unwrapped(command)


@pytest.mark.parametrize(
    "command",
    [
        "", "id", "sh -c orted", f"{ORTED} ; id", f"{ORTED} | tee x", f"{ORTED} && id", f"id ; {ORTED}",
        "orted > /tmp/x", "orted $(id)", "orted `id`", "orted\nid", "EVIL=1 ; orted", "LD_PRELOAD=/x ; orted",
        "PATH=/x id ; orted", "export PATH id ; orted", 'orted "',
        "(orted)", "orted & id", "/tmp/orted.sh", "LD_PRELOAD=/x orted",
    ],
)  # fmt: skip
def test_the_gate_lets_nothing_else_through(command: str) -> None:
    for asked in (command, f"{PROFILE} {command} )"):
        with pytest.raises(NoDaemon):
            statements(unwrapped(asked))


def test_the_gate_needs_nothing_of_the_pods_python(tmp_path: Path) -> None:
    gate = Path(keys.__file__).with_name("gate.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(gate), str(tmp_path)], env={"SSH_ORIGINAL_COMMAND": "id"}, capture_output=True
    )
    assert done.returncode == 126
    assert b"refused" in done.stderr


def test_the_private_directory_is_in_memory_closed_to_others_and_gone_afterwards() -> None:
    directory, _, _ = choose("/root")
    held = Private(directory)
    try:
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert stat.S_IMODE(held.write("key", "x").stat().st_mode) == 0o600
        assert any(directory.startswith(f"{room}/") for room in private.ROOMS)
    finally:
        held.remove()
    assert not os.path.exists(directory)


def test_a_killed_launchers_directory_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path: Path) -> None:
    living = Private(str(tmp_path / "lwsrun-mpi-living"))
    (tmp_path / "lwsrun-mpi-dead").mkdir()
    (tmp_path / "lwsrun-mpi-dead" / "key").touch()
    (tmp_path / "other").mkdir()
    mine = Private(str(tmp_path / "lwsrun-mpi-mine"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lwsrun-mpi-living", "lwsrun-mpi-mine", "other"]
    living.remove()
    mine.remove()


def test_neighbours_that_begin_together_leave_each_other_their_directories(tmp_path: Path) -> None:
    """As pods do that share a /run: each removes what it takes for a dead run's."""
    code = (
        "import sys; from launcher.mpi.private import Private\n"
        "for at in range(60): Private(f'{sys.argv[1]}/lwsrun-mpi-{sys.argv[2]}-{at}').write('key', 'x')"
    )
    pods = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], stderr=subprocess.PIPE) for n in (1, 2)
    ]
    told = [pod.communicate(timeout=60)[1] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], told


def test_a_directory_that_others_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    assert not trusted("/tmp")
    assert not trusted(str(tmp_path))  # below /tmp
    assert trusted("/usr")


def test_a_minted_key_is_one_that_openssh_reads(tmp_path: Path) -> None:
    pair = keys.mint()
    assert keys.is_public_key(pair.public)
    assert "PRIVATE" not in repr(pair)
    (tmp_path / "id_ed25519").write_text(pair.private)
    (tmp_path / "id_ed25519").chmod(0o600)
    printed = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "id_ed25519"], capture_output=True, text=True)
    assert printed.stdout.strip() == pair.public
    assert keys.mounted_pair(str(tmp_path)).public == pair.public
    assert keys.mounted_public(str(tmp_path)) == (pair.public,)


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 !!", "ssh-ed25519 AAAA", "no-pty ssh-ed25519 AAAA"])
def test_what_another_pod_calls_a_key_is_checked(text: str) -> None:
    assert not keys.is_public_key(text)
    assert not keys.is_public_key(keys.mint().public + "\nssh-ed25519 AAAA")


@pytest.mark.parametrize(
    ("files", "mode", "said"),
    [
        ({}, 0o600, "none of id_ed25519, id_ecdsa, id_rsa, ssh-privatekey"),
        ({"id_rsa": "no key"}, 0o600, "id_rsa cannot be used as a private key"),
        ({"id_ed25519": "x"}, 0o666, "id_ed25519 can be written to by others (mode 0666)"),
    ],
)
def test_a_mounted_key_that_is_none_is_told_in_one_line(
    tmp_path: Path, files: dict[str, str], mode: int, said: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError) as caught:
        keys.mounted_pair(str(tmp_path))
    assert said in caught.value.text().splitlines()[0]
    assert "Secret" in caught.value.text()


def test_a_directory_of_keys_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        keys.mounted_public("/nowhere")
    assert caught.value.text().startswith("--ssh-keys /nowhere: no such file or directory")


def test_a_port_that_is_taken_is_told() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            check_port("127.0.0.1", port)
    assert caught.value.text().startswith(f"port {port} of this pod, for sshd: address already in use")
    check_port("127.0.0.1", port)


def test_an_interface_that_only_the_leader_has_is_told_with_what_names_the_network_instead() -> None:
    with pytest.raises(ConfigError) as caught:
        check_interface("ens5", ("eth0", "net1"))
    assert caught.value.text().startswith(
        "the leader's network interface is ens5, which this pod lacks: it has eth0, net1"
    )
    check_interface("eth0", ("eth0", "net1"))
    check_interface(None, ("eth0",))


def test_more_variables_than_a_message_holds_are_told_by_the_longest() -> None:
    check_size(Handed(None, {"A": "x" * 100_000}, {"B": "y"}))
    with pytest.raises(ConfigError) as caught:
        check_size(Handed(None, {"A": "x"}, {"LONG": "y" * 600_000}))
    assert "LONG most of all" in caught.value.text()
