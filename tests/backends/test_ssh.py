"""OpenSSH's configuration as text, and as whom a worker lets the leader in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mpi_requests import TOOLS

from backends import ssh
from backends.errors import ConfigError
from backends.plan_mpi import Account, MpiTools

ROOT = Account("root", 0, "/root", wrapped=False)
WRAPPER = "/usr/lib/libnss_wrapper.so"


def refusal(tools: MpiTools) -> str:
    with pytest.raises(ConfigError) as caught:
        ssh.account(tools)
    return caught.value.text()


def test_a_user_with_an_entry_is_let_in_as_himself() -> None:
    assert ssh.account(TOOLS) == ROOT


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"user": None, "home": None, "shell": None}, "it has no entry in /etc/passwd"),
        ({"shell": "/usr/sbin/nologin"}, "its shell is /usr/sbin/nologin"),
        ({"locked": True}, "its account is locked in /etc/shadow"),
        ({"trusted": False}, "StrictModes accepts no directory that it can write to"),
    ],
)
def test_who_has_no_usable_entry_is_shown_with_one_of_ours_or_told(change: dict[str, object], why: str) -> None:
    tools = replace(TOOLS, uid=12345, **change)  # type: ignore[arg-type]
    text = refusal(tools)
    assert text.startswith(f"sshd cannot let the leader in as uid 12345: {why}\n")
    assert "--mpi-agent channel" in text
    shown = ssh.account(replace(tools, nss_wrapper=WRAPPER))
    assert shown == Account(tools.user or "lwsrun", 12345, "/run/x", wrapped=True)


def test_authorized_keys_lies_where_strictmodes_accepts_it() -> None:
    assert ssh.authorized_keys_path(TOOLS, ROOT) == "/run/x/authorized_keys"
    beside = replace(TOOLS, trusted=False, beside="/home/me/y")
    assert ssh.authorized_keys_path(beside, ROOT) == "/home/me/y/authorized_keys"
    assert ssh.authorized_keys_path(beside, replace(ROOT, wrapped=True)) == "/run/x/authorized_keys"


def test_root_without_what_sshd_needs_is_told_so() -> None:
    text = refusal(replace(TOOLS, lacks=("CAP_SYS_CHROOT",)))
    assert text.startswith("sshd as root needs CAP_SYS_CHROOT, which this container lacks\n")


def test_the_server_takes_one_key_of_one_user_and_forwards_nothing() -> None:
    lines = ssh.sshd_config(TOOLS, ROOT, 2222, ("10.0.0.11",)).splitlines()
    for line in (
        "Port 2222", "ListenAddress 10.0.0.11", "HostKey /run/x/host_key", "StrictModes yes", "UsePAM no",
        "PermitRootLogin forced-commands-only", "AllowUsers root", "PasswordAuthentication no", "DisableForwarding yes",
        "AuthorizedKeysFile /run/x/authorized_keys",
    ):  # fmt: skip
        assert line in lines
    assert "PermitRootLogin no" in ssh.sshd_config(TOOLS, replace(ROOT, uid=5), 2222, ())


def test_a_key_is_bound_to_one_command() -> None:
    line = ssh.authorized_key("ssh-ed25519 AAAA", ("/a b/python", "gate.py", 'x"y'))
    assert line == "restrict,command=\"'/a b/python' gate.py 'x\\\"y'\" ssh-ed25519 AAAA\n"


def test_hosts_are_known_by_address_and_port() -> None:
    assert ssh.known_host("10.0.0.11", 2222, "k") == "[10.0.0.11]:2222 k\n"
    assert ssh.known_host("fd00::1", 22, "k") == "fd00::1 k\n"


def test_the_client_checks_strictly_and_asks_nobody() -> None:
    text = ssh.ssh_config("/run/x", 2222, [("10.0.0.11", "me")])
    assert "Host 10.0.0.11\n  User me\n" in text
    for line in (
        "StrictHostKeyChecking yes",
        "BatchMode yes",
        "IdentitiesOnly yes",
        "UserKnownHostsFile /run/x/known_hosts",
    ):
        assert f"  {line}\n" in text


def test_our_entry_stands_in_the_place_of_the_images() -> None:
    given = "root:x:0:0:root:/root:/bin/bash\nme:x:5:5::/nonexistent:/bin/false\nsshd:x:1:2::/run/sshd:/bin/false\n"
    lines = ssh.passwd(given, Account("me", 5, "/run/x", True), 7).splitlines()
    assert lines == ["me:*:5:7:lwsrun:/run/x:/bin/sh", given.splitlines()[0], given.splitlines()[2]]
    assert any(line.startswith("sshd:") for line in ssh.passwd("", Account("me", 5, "/run/x", True), 7).splitlines())
    assert ssh.group("a:x:7:\n", Account("me", 5, "/", True), 7) == "a:x:7:\n"
    assert ssh.group("broken\n", Account("me", 5, "/", True), 7) == "me:*:7:\n"
