"""The words of a plan that launches over MPI: what the image has, where the ranks are, who starts them there."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Agent(enum.Enum):
    """By what mpirun starts its daemon on another pod."""

    SSH = "ssh"  # OpenSSH's client, to an sshd in every worker pod
    CHANNEL = "channel"  # lwsrun itself, over the group channel


@dataclass(frozen=True)
class MpiTools:
    """What a pod's image has for MPI, and as whom it runs; paths are absolute, None for what the image lacks.

    version is Open MPI's own, such as "4.1.4"; other is what `mpirun --version` says where it is not Open MPI's.
    user, home and shell are those of the passwd entry of uid, None without one; locked: sshd takes no key for it;
    lacks: what root lacks of the capabilities that sshd needs.
    directory is the pod's private one, in memory, of this run. trusted: sshd's StrictModes accepts all its parents;
    beside is a directory outside it that it accepts, for what is not secret.
    """

    directory: str
    mpirun: str | None = None
    version: str | None = None
    other: str = ""
    daemon: str | None = None
    ssh: str | None = None
    sshd: str | None = None
    llmapi_launch: str | None = None
    nss_wrapper: str | None = None
    uid: int = 0
    user: str | None = None
    home: str | None = None
    shell: str | None = None
    locked: bool = False
    lacks: tuple[str, ...] = ()
    trusted: bool = False
    beside: str | None = None

    @property
    def major(self) -> int | None:
        """4 (ORTE) or 5 (PRRTE): what mpirun's options and settings depend on."""
        number = (self.version or "").partition(".")[0]
        return int(number) if number.isdecimal() else None


@dataclass(frozen=True)
class MpiOptions:
    """What the user chose for a launch over MPI. timeout in seconds.

    environment: names whose values every rank has from the leader. ports: first and last of those that the daemons and
    ranks may listen on. ranks: None for as many as the group has slots. arguments: more of mpirun's own.
    keys: a directory with a key pair that was mounted, None for one that is minted per run.
    """

    agent: Agent = Agent.SSH
    ssh_port: int = 2222
    keys: str | None = None
    environment: tuple[str, ...] = ()
    ports: tuple[int, int] | None = None
    ranks: int | None = None
    arguments: tuple[str, ...] = ()
    timeout: float = 300.0


@dataclass(frozen=True)
class Host:
    """A line of the hostfile."""

    index: int
    ip: str
    slots: int


@dataclass(frozen=True)
class Account:
    """As whom sshd lets the leader in. wrapped: by an entry of ours, which nss_wrapper shows in passwd's place."""

    name: str
    uid: int
    home: str
    wrapped: bool


@dataclass(frozen=True)
class Mpi:
    """How the ranks of a group are started; in the plan of every pod.

    hosts: the leader first, so that rank 0 is there. ranks is the world's size. program: what each rank is.
    directory: the pod's private one; what the launcher makes there is named below. account: of this pod,
    None with Agent.CHANNEL. environment: names whose values every rank has from the leader, beside those by rule
    (mpi_env.py). timeout: seconds that the workers have to be reached in.
    """

    agent: Agent
    hosts: tuple[Host, ...]
    ranks: int
    program: tuple[str, ...]
    directory: str
    account: Account | None = None
    ssh_port: int = 2222
    keys: str | None = None
    environment: tuple[str, ...] = ()
    timeout: float = 300.0

    @property
    def workers(self) -> tuple[Host, ...]:
        return self.hosts[1:]

    @property
    def hostfile(self) -> str:
        return f"{self.directory}/{HOSTFILE}"

    def hostfile_text(self) -> str:
        """Addresses, not names: Open MPI 4 strips what follows the first dot, and a pod's own name may not resolve."""
        return "".join(f"{host.ip} slots={host.slots}\n" for host in self.hosts)


@dataclass(frozen=True)
class SshLogins:
    """Passed when every worker's sshd has let the leader in, with the host key that it told over the group channel.

    A child of ours asks, from what it finds in the directory. timeout in seconds.
    """

    directory: str
    hosts: tuple[Host, ...]
    port: int
    timeout: float

    def describe(self) -> str:
        many = len(self.hosts)
        which = f"worker 1's sshd lets the leader in (port {self.port})"
        return which if many == 1 else f"the sshd of each of {many} workers lets the leader in (port {self.port})"


# What lies in the private directory.
HOSTFILE = "hostfile"
SSH_CONFIG = "ssh_config"
SSHD_CONFIG = "sshd_config"
CLIENT_KEY = "client_key"
HOST_KEY = "host_key"
KNOWN_HOSTS = "known_hosts"
AUTHORIZED_KEYS = "authorized_keys"
LOGINS = "logins.json"  # for the child that tries them: index, address, port and user of each worker
ENVIRONMENT = "environment.json"  # what a rank on this pod starts from; the gate's own
PASSWD, GROUP = "passwd", "group"
AGENT_PYTHON, AGENT_SCRIPT, AGENT_SOCKET = "python", "agent.py", "agent.sock"  # with Agent.CHANNEL
