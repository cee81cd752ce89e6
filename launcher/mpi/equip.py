"""Before mpirun: keys, host keys, environment and addresses are where they are needed, on every pod of the group.

A worker tells its public host key and gets the leader's public client key, both over the group channel; so strict
checking needs no Secret, and a private key never leaves its pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from backends import mpi_env, ssh
from backends import plan_mpi as names
from backends.errors import ConfigError, Fault
from backends.group import member_name, member_names
from backends.plan_mpi import Agent, Mpi, MpiTools
from launcher.channel.messages import MAX_MESSAGE, Equipped, Handed, encode
from launcher.gates import GateFailed
from launcher.log import log
from launcher.mpi.private import Private
from launcher.waiting import saying

if TYPE_CHECKING:
    from launcher.lifecycle import Pod
    from launcher.mpi.keys import KeyPair

SSHD_ROOT = Path("/run/sshd")  # where sshd, as root, locks its unprivileged half in


async def equip(pod: Pod) -> None:
    """Make this pod ready for its part. Raises ConfigError."""
    mpi, tools = pod.the_plan.mpi, pod.the_node.mpi
    assert mpi is not None
    assert tools is not None
    over_ssh = mpi.agent is Agent.SSH and bool(mpi.workers)
    beside = (tools.beside,) if over_ssh and pod.member and mpi.account and _outside(tools, mpi) else ()
    private = Private(mpi.directory, *filter(None, beside))
    pod.leftovers.callback(private.remove)
    if over_ssh:
        await asyncio.to_thread(import_module, "launcher.mpi.keys")
        if mpi.account is not None and mpi.account.wrapped:
            _write_accounts(private, mpi)
    if pod.leader is not None:
        await _on_leader(pod, mpi, private, over_ssh)
    elif pod.member is not None:
        await _on_worker(pod, mpi, tools, private, over_ssh)
    else:
        private.write(names.HOSTFILE, mpi.hostfile_text())


def _outside(tools: MpiTools, mpi: Mpi) -> bool:
    return mpi.account is not None and not ssh.authorized_keys_path(tools, mpi.account).startswith(tools.directory)


# ------------------------------------------------------------------ the leader


async def _on_leader(pod: Pod, mpi: Mpi, private: Private, over_ssh: bool) -> None:
    leader = pod.leader
    assert leader is not None
    private.write(names.HOSTFILE, mpi.hostfile_text())
    pair = await asyncio.to_thread(_client_pair, mpi.keys) if over_ssh else None
    lacking, always = mpi_env.handed(_declared(pod), mpi.environment)
    handed = Handed(pair.public if pair else None, lacking, always, _interface(pod))
    check_size(handed)
    await leader.tell_all(handed)
    every = pod.settings.report_every
    async with saying(every, lambda: f"until all are equipped for MPI: {member_names(leader.not_yet('equipped'))}"):
        await leader.wait_all("equipped")
    if pair is None:
        return
    private.write(names.CLIENT_KEY, pair.private)
    known, users, logins = "", [], []
    for host in mpi.workers:
        equipped = leader.seats[host.index].equipped
        assert equipped is not None
        check_equipped(host.index, equipped)
        known += ssh.known_host(host.ip, mpi.ssh_port, equipped.host_key or "")
        users.append((host.ip, equipped.user or ""))
        logins.append({"index": host.index, "address": host.ip, "port": mpi.ssh_port, "user": equipped.user})
    private.write(names.KNOWN_HOSTS, known)
    private.write(names.SSH_CONFIG, ssh.ssh_config(mpi.directory, mpi.ssh_port, users))
    private.write(names.LOGINS, json.dumps(logins))


def _interface(pod: Pod) -> str | None:
    """Of which mpirun tells all; None where the user has told it otherwise."""
    main, interface = pod.the_plan.main, pod.the_node.interface
    told = [value for name, value in pairwise(main.argv if main else ()) if name.endswith("_tcp_if_include")]
    return interface if interface in told else None


def check_size(handed: Handed) -> None:
    """Raise ConfigError for more variables than a message holds: every worker would take it for a broken leader."""
    takes = len(encode(handed))
    if takes > MAX_MESSAGE:
        sizes = {name: len(value) for name, value in {**handed.lacking, **handed.always}.items()}
        longest = max(sizes, key=lambda name: sizes[name])
        fault = f"the variables that ranks have from the leader take {takes // 1024} KiB, {longest} most of all"
        raise ConfigError(Fault(fault, f"at most {MAX_MESSAGE // 1024} KiB", f"set {longest} in the worker's template"))


def check_interface(leaders: str | None, own: Iterable[str]) -> None:
    """Raise ConfigError where mpirun's daemon would be told of an interface that this pod does not have."""
    if leaders is not None and leaders not in own:
        raise ConfigError(
            Fault(
                f"the leader's network interface is {leaders}, which this pod lacks: it has {', '.join(own)}",
                "one name in all pods: mpirun tells its daemons and ranks of one for all",
                "name the network instead, in both templates: --mpi-arg=--mca --mpi-arg=oob_tcp_if_include"
                " --mpi-arg=NET/BITS, and the same with btl_tcp_if_include",
            )
        )


def check_equipped(index: int, equipped: Equipped) -> None:
    """Raise GateFailed for what is no key, or no user's name: both go into files of ours, line by line."""
    from launcher.mpi.keys import is_public_key

    name = equipped.user or ""
    plain = name.replace("-", "").replace("_", "").replace(".", "").isalnum() and not name.startswith("-")
    if not is_public_key(equipped.host_key or "") or not plain or len(name) > 256:
        raise GateFailed(f"{member_name(index)} tells no host key, or no user to log in as")


def _client_pair(mounted: str | None) -> KeyPair:
    from launcher.mpi.keys import mint, mounted_pair

    return mint() if mounted is None else mounted_pair(mounted)


def _declared(pod: Pod) -> dict[str, str]:
    """The leader's own environment and --env; not what lwsrun adds, which every pod has of its own."""
    given = dict(pod.settings.options.env)
    # A placeholder has another value on every pod.
    same = {name: value for name, value in given.items() if pod.environ().get(name) == value}
    return {name: value for name, value in pod.settings.environ.items() if name not in given} | same


# ------------------------------------------------------------------ a worker


async def _on_worker(pod: Pod, mpi: Mpi, tools: MpiTools, private: Private, over_ssh: bool) -> None:
    member = pod.member
    assert member is not None
    host_key = None
    if over_ssh:
        from launcher.mpi.keys import mint

        check_port(pod.the_node.ip, mpi.ssh_port)
        pair = await asyncio.to_thread(mint)
        private.write(names.HOST_KEY, pair.private)
        host_key = pair.public
    handed = await member.handed
    check_interface(handed.interface, pod.the_node.interfaces)
    own = pod.environ()
    environment = mpi_env.of_rank(own, handed.lacking, handed.always)
    came = sorted(name for name, value in environment.items() if own.get(name) != value)
    if came:
        log.info("from the leader's environment: %s", ", ".join(came))
    private.write(names.ENVIRONMENT, json.dumps({**environment, "": pod.supervisor.directory}))
    if over_ssh:
        _write_sshd(pod, mpi, tools, private, handed)
    await member.tell(Equipped(host_key, mpi.account.name if mpi.account else None))


def _write_sshd(pod: Pod, mpi: Mpi, tools: MpiTools, private: Private, handed: Handed) -> None:
    assert mpi.account is not None
    gate = (sys.executable, "-I", "-S", str(Path(__file__).with_name("gate.py")), mpi.directory)
    lines = [ssh.authorized_key(key, gate) for key in _authorized(mpi, handed)]
    path = Path(ssh.authorized_keys_path(tools, mpi.account))
    private.write(path.name, "".join(lines), str(path.parent))
    private.write(names.SSHD_CONFIG, ssh.sshd_config(tools, mpi.account, mpi.ssh_port, (pod.the_node.ip,)))
    if tools.uid == 0:
        try:
            SSHD_ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            fault = f"{SSHD_ROOT}, which sshd needs as root, cannot be made: {error.strerror}"
            raise ConfigError(Fault(fault, "a /run that can be written to", ssh.INSTEAD)) from None


def _authorized(mpi: Mpi, handed: Handed) -> tuple[str, ...]:
    from launcher.mpi.keys import is_public_key, mounted_public

    key = handed.client_key or ""
    if mpi.keys is None:
        if not is_public_key(key):
            raise ConfigError(Fault("the leader handed over no public key", "the same lwsrun in all pods"))
        return (key,)
    mine = mounted_public(mpi.keys)
    if key not in mine:
        raise ConfigError(
            Fault(
                f"the leader's key is not among those in {mpi.keys} of this pod",
                "the same key pair in all pods",
                "mount the same Secret in the leader and the worker template",
            )
        )
    return mine


def check_port(address: str, port: int) -> None:
    """Raise ConfigError for a port that something listens on already."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as sshd does
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            raise ConfigError(
                Fault(
                    f"port {port} of this pod, for sshd: {(error.strerror or str(error)).lower()}",
                    "a port that is free in every worker, 1024 or above where the pod is not root",
                    "name another with --ssh-port, in both templates",
                )
            ) from None


def _write_accounts(private: Private, mpi: Mpi) -> None:
    """What nss_wrapper shows instead of /etc/passwd and /etc/group."""
    assert mpi.account is not None
    gid, given = os.getegid(), {"passwd": "", "group": ""}
    for name in given:
        with contextlib.suppress(OSError):
            given[name] = Path(f"/etc/{name}").read_text(errors="replace")
    private.write(names.PASSWD, ssh.passwd(given["passwd"], mpi.account, gid))
    private.write(names.GROUP, ssh.group(given["group"], mpi.account, gid))
