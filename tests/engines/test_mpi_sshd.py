"""The workers' real sshd: who is let in, as whom, and for what; and how mpirun's launch fails when it may not."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Simulate, free_port, wait_until
from mpi import OpenMpi, installed, ranks, run

from backends import ssh
from backends.plan_mpi import MpiTools
from launcher.mpi import gate, knock
from launcher.mpi.keys import KeyPair, mint
from launcher.mpi.private import Private, choose

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

HOST = "127.0.0.1"
STRANGER = 23456  # a user without a passwd entry


class Sshd:
    """An sshd as a worker's plan starts it, and what a leader has for it."""

    def __init__(self, private: Private, tools: MpiTools, environment: dict[str, str]) -> None:
        self.private = private
        self.directory = str(private.path)
        self.port = free_port()
        self.client, self.host_key = mint(), mint()
        account = ssh.account(tools)
        argv = (sys.executable, "-I", "-S", gate.__file__, self.directory)
        path = Path(ssh.authorized_keys_path(tools, account))
        private.write(path.name, ssh.authorized_key(self.client.public, argv), str(path.parent))
        private.write("environment.json", json.dumps(environment))
        private.write("host_key", self.host_key.private)
        private.write("client_key", self.client.private)
        private.write("sshd_config", ssh.sshd_config(tools, account, self.port, (HOST,)))
        self.user = account.name
        self.leader(self.host_key)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.output = private.path / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(ssh.sshd_argv(tools), stderr=output)
        wait_until(lambda: "Server listening" in self.output.read_text() or self.process.poll() is not None)

    def leader(self, host_key: KeyPair) -> None:
        """What the leader believes of the worker."""
        self.private.write("known_hosts", ssh.known_host(HOST, self.port, host_key.public))
        self.private.write("ssh_config", ssh.ssh_config(self.directory, self.port, [(HOST, self.user)]))
        login = {"index": 1, "address": HOST, "port": self.port, "user": self.user}
        self.private.write("logins.json", json.dumps([login]))

    def ssh(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-F", f"{self.directory}/ssh_config", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    def knock(self, timeout: float = 60) -> tuple[int, str]:
        """Its exit code, and the reason that it gave last."""
        argv = [sys.executable, "-P", knock.__file__, self.directory, str(timeout)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        return done.returncode, json.loads(done.stdout.splitlines()[-1])["missing"].get("1", "")


@contextlib.contextmanager
def sshd(environment: dict[str, str] | None = None) -> Iterator[Sshd]:
    directory, trusted, beside = choose("/root")
    tools = MpiTools(directory, sshd="/usr/sbin/sshd", uid=0, user="root", home="/root", shell="/bin/bash")
    tools = replace(tools, trusted=trusted, beside=beside)
    private = Private(directory, *filter(None, (beside,)))
    try:
        made = Sshd(private, tools, environment or {})
        try:
            yield made
        finally:
            made.process.terminate()
            made.process.wait(20)
    finally:
        private.remove()


def test_the_gate_starts_mpis_daemon_with_the_pods_environment_and_nothing_else(tmp_path: Path) -> None:
    daemon = tmp_path / "orted"
    daemon.write_text('#!/bin/sh\necho "$1" "$2"; env; exit 7\n')
    daemon.chmod(0o755)
    given = {"PATH": "/usr/bin:/bin", "SECRET": "a 'b'\n$c", "my.name": "x", "": "/"}
    with sshd(given) as server:
        command = f'PATH={tmp_path}:$PATH ; export PATH ; {daemon} -mca "a;b" "$SECRET"'
        done = server.ssh(HOST, command)
        assert done.returncode == 7, done.stderr
        assert done.stdout.startswith("-mca a;b\n")
        assert f"PATH={tmp_path}:/usr/bin:/bin\n" in done.stdout
        assert "SECRET=a 'b'\n$c\n" in done.stdout
        assert "SSH_CONNECTION" not in done.stdout
        for command in ("id", "sh", "", f"{daemon} -x; id", f"{daemon} $(id)", f"id && {daemon}", f"EVIL=1 ; {daemon}"):
            done = server.ssh(HOST, command) if command else server.ssh(HOST)
            assert done.returncode == 126, (command, done)
            assert "refused: only MPI's daemon may be started here" in done.stderr
            assert "uid=" not in done.stdout


def test_the_key_of_this_run_opens_nothing_but_the_gate() -> None:
    with sshd() as server:
        forwarding = server.ssh("-o", "ExitOnForwardFailure=yes", "-N", "-R", f"{free_port()}:{HOST}:1", HOST)
        assert forwarding.returncode == 255
        terminal = server.ssh("-tt", HOST)
        assert "PTY allocation request failed" in terminal.stderr
        files = server.ssh("-s", HOST, "sftp")
        assert files.returncode != 0
        stranger = server.private.write("stranger", mint().private)
        config = (
            (server.private.path / "ssh_config").read_text().replace(f"{server.directory}/client_key", str(stranger))
        )
        server.private.write("ssh_config", config)
        assert "Permission denied (publickey)" in server.ssh(HOST, "gate").stderr


def test_the_first_login_succeeds_and_leaves_with_zero() -> None:
    with sshd() as server:
        assert server.knock() == (0, "")


def test_another_host_key_than_the_worker_told_is_refused_by_both_clients() -> None:
    with sshd() as server:
        server.leader(mint())
        assert server.knock() == (1, "its host key is not the one that the worker told: another sshd listens there")
        assert "Host key verification failed" in server.ssh(HOST, "x").stderr


def test_a_key_that_is_not_let_in_is_told_within_seconds() -> None:
    with sshd() as server:
        server.private.write("client_key", mint().private)
        code, why = server.knock()
        assert (code, why) == (1, "it does not let us in with the key of this run (see the worker's log)")


def test_a_worker_that_is_silent_is_waited_for_no_longer_than_asked() -> None:
    with sshd() as server:
        server.process.terminate()
        server.process.wait(20)
        assert server.knock(timeout=1) == (1, f"port {server.port}: connection refused")


@pytest.fixture(params=["4", "5"])
def mpi(request: pytest.FixtureRequest) -> OpenMpi:
    return installed(request.param)


def test_a_user_without_a_passwd_entry_launches_over_ssh(simulate: Simulate, mpi: OpenMpi) -> None:
    """nss_wrapper shows OpenSSH the entry that it asks for."""
    done = run(simulate, mpi, size=2, slots=1, pod={"uid": STRANGER})
    assert done.codes() == [0, 0], done.output[-4000:]
    assert [(each["uid"], each["host"]) for each in ranks(done)] == [(STRANGER, "sim-0"), (STRANGER, "sim-0-1")]


def test_a_mounted_key_pair_is_used_instead_of_a_minted_one(simulate: Simulate, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_ed25519"], check=True)
    (keys / "id_ed25519").chmod(0o644)  # as a Secret is mounted by default; ssh itself would refuse it
    (keys / "authorized_keys").write_text((keys / "id_ed25519.pub").read_text())
    printed = subprocess.run(["ssh-keygen", "-lf", keys / "id_ed25519"], capture_output=True, text=True, check=True)
    done = run(simulate, installed("4"), f"--ssh-keys={keys}", size=2, slots=1)
    assert done.codes() == [0, 0], done.output[-4000:]
    assert len(ranks(done)) == 2
    assert printed.stdout.split()[1] in done.log(1)


def test_a_mounted_key_that_the_pods_user_cannot_read_is_told_before_anything_is_launched(simulate: Simulate) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as keys:
        os.chmod(keys, 0o755)
        (Path(keys) / "id_rsa").touch(mode=0o400)
        pod = {"uid": STRANGER}
        done = run(simulate, installed("4"), f"--ssh-keys={keys}", "--failure-hold=0s", size=2, slots=1, pod=pod)
    assert done.codes()[0] == 78, done.output[-4000:]
    line = f"{keys}/id_rsa is owned by uid 0, gid 0, mode 0400: this pod runs as uid {STRANGER} and cannot read it"
    assert line in done.log(0)
    assert "running:" not in done.log(0)


def test_a_port_that_is_taken_is_told_before_anything_is_launched(simulate: Simulate) -> None:
    """The channel's own port stands for any other."""
    done = run(simulate, installed("4"), "--ssh-port=2345", "--port=2345", "--failure-hold=0s", size=2, slots=1)
    assert done.codes() == [75, 78], done.output[-4000:]
    assert "port 2345 of this pod, for sshd: address already in use" in done.log(1)
    assert "running:" not in done.log(0)


def test_an_image_without_sshd_is_told_before_anything_waits(simulate: Simulate) -> None:
    done = run(
        simulate, installed("4"), "--failure-hold=0s", "--gather-timeout=10s", size=2, slots=1,
        pod={"covered": "/usr/sbin/sshd"},
    )  # fmt: skip
    assert done.codes()[1] == 78, done.output[-4000:]
    assert "this image has no sshd" in done.log(1)
    assert "--mpi-agent channel" in done.log(1)
