"""Any MPI program: mpirun on the leader, its daemons and ranks on every pod.

Open MPI 4 (ORTE) and 5 (PRRTE) are told everything on mpirun's command line: 5 takes no notice of several settings in
the environment and in files. What is set, and why it is, stands beside it; tried with 4.1.4, 4.1.8 and 5.0.11.
"""

from __future__ import annotations

import os.path
import shlex
from itertools import pairwise

from backends.errors import ConfigError, Fault
from backends.generic import main_argv
from backends.mpi_env import check_named, unset_because
from backends.plan import EnvVar, Kind, Main, Plan, PortOpen, Request, Service, Stage, Unset
from backends.plan_mpi import (
    AGENT_PYTHON,
    AGENT_SCRIPT,
    AGENT_SOCKET,
    SSH_CONFIG,
    Account,
    Agent,
    Host,
    Mpi,
    MpiTools,
    SshLogins,
)
from backends.ssh import INSTALL, INSTEAD, account, client_account, sshd_argv, wrapping

LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun", "prun", "srun", "mpiexec.hydra")
LONGEST_NAME = 56  # of a host under Open MPI 4: https://github.com/open-mpi/ompi/issues/13358
KEEPALIVE = (("time", 10), ("intvl", 5), ("probes", 3))  # of mpirun and its daemons; by default 300, 20 and 9
OURS = (
    "-H", "-host", "--host", "-hostfile", "--hostfile", "-machinefile", "--machinefile", "-n", "-np", "--np", "-c",
    "-oversubscribe", "--oversubscribe", "--n", "-N", "--npernode", "-npernode",
)  # fmt: skip
MCA = ("mca", "gmca", "prtemca", "gprtemca", "pmixmca")
CONCURRENT = 128  # connections that mpirun has at most, unless it is told otherwise
AGENTS = ("plm_rsh_agent", "plm_ssh_agent", "plm_rsh_no_tree_spawn", "plm_ssh_no_tree_spawn")


def plan_mpi(request: Request) -> Plan:
    """--backend mpi. Raises ConfigError for what can never be launched."""
    program = main_argv(request)
    refuse_launcher(program[:1])
    hosts = all_hosts(request)
    ranks = checked_ranks(request.options.mpi.ranks, hosts)
    kind = request.options.kind or Kind.JOB
    why = f"mpirun on the leader starts {ranks} rank{'s' if ranks != 1 else ''} on {len(hosts)} pods"
    return launched(request, "mpi", program, hosts, ranks, kind, reason=f"--backend mpi: {why}")


def refuse_launcher(before: tuple[str, ...]) -> None:
    """Raise ConfigError where mpirun, or another of its kind, stands in front of the program. before: up to it."""
    found = next((os.path.basename(token) for token in before if os.path.basename(token) in LAUNCHERS), None)
    if found is not None:
        raise ConfigError(
            Fault(
                f"{found} in the command: {shlex.join(before)} …",
                "the program that every rank is: lwsrun writes the mpirun, its hostfile and its options itself",
                f"leave {found} and its options out; --mpi-ranks and --mpi-arg are there for what you need of them",
            )
        )


def all_hosts(request: Request) -> tuple[Host, ...]:
    """A slot for each GPU of a node. Raises ConfigError where a pod has none, or the leader is excluded."""
    if request.options.leader_excluded:
        raise ConfigError(
            Fault(
                "--leader-excluded: mpirun's own pod has rank 0",
                "a group in which every pod takes part",
                "leave --leader-excluded out",
            )
        )
    hosts = tuple(Host(index, node.ip, node.gpus) for index, node in enumerate(request.nodes))
    without = next((index for index, node in enumerate(request.nodes) if node.gpus < 1), None)
    if without is not None:
        raise ConfigError(
            Fault(
                "no GPU was found on this node: how many ranks should it have?",
                "a rank for each GPU",
                "say --gpus-per-node N, also for a program that uses no GPU",
            )
        )
    return hosts


def checked_ranks(wanted: int | None, hosts: tuple[Host, ...]) -> int:
    slots = sum(host.slots for host in hosts)
    if wanted is not None and wanted > slots:
        raise ConfigError(
            Fault(
                f"--mpi-ranks {wanted}, but the group has {slots} slots ({' + '.join(str(h.slots) for h in hosts)})",
                f"at most {slots}: a slot for each GPU of a node",
                "ask for fewer ranks, or say --gpus-per-node N where a node should have more",
            )
        )
    return wanted or slots


def launched(
    request: Request,
    backend: str,
    program: tuple[str, ...],
    hosts: tuple[Host, ...],
    ranks: int,
    kind: Kind,
    *,
    reason: str,
    serves: PortOpen | None = None,
    decisions: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Plan:
    """The plan of one pod for a program of so many ranks. Raises ConfigError for an image that cannot."""
    options, group = request.options.mpi, request.group
    check_named(options)
    tools = checked_tools(request)
    ssh = options.agent is Agent.SSH and group.size > 1
    mine: Account | None = (client_account if group.is_leader else account)(tools) if ssh else None
    mpi = Mpi(
        options.agent,
        hosts,
        ranks,
        program,
        tools.directory,
        mine,
        options.ssh_port,
        options.keys,
        options.environment,
        options.timeout,
    )
    services: tuple[Service, ...] = ()
    gates: tuple[SshLogins, ...] = ()
    main = None
    if group.is_leader:
        argv, added = mpirun_argv(request, mpi, tools)
        main = Main(argv, kind, serves=serves, asked_alone=True)
        decisions = (*decisions, *added)
        if ssh:
            gates = (SshLogins(tools.directory, mpi.workers, options.ssh_port, options.timeout),)
    elif ssh:
        services = (Service("sshd", sshd_argv(tools), Stage.FORMED),)
    return Plan(
        backend=backend,
        mode=f"Open MPI {tools.version} over {'ssh' if options.agent is Agent.SSH else 'the group channel'}",
        reason=reason,
        kind=kind,
        env=_accounts(request, tools, mine),
        unset=_unset(request),
        services=services,
        gates=gates,
        main=main,
        mpi=mpi,
        leader_only=True,
        agreed=(f"--ssh-port {options.ssh_port}",) if ssh else (),
        decisions=decisions if group.is_leader else (),
        notes=(*notes, *_notes(request, tools)),
    )


def checked_tools(request: Request) -> MpiTools:
    """What this pod's image has, once it is known to be enough for this pod's part."""
    options, group = request.options.mpi, request.group
    tools = request.node.mpi or MpiTools("")
    faults = []
    if tools.mpirun is None:
        found = "this image has no mpirun on PATH, in /opt/hpcx/ompi5, /opt/hpcx/ompi or /usr/local/mpi"
        faults.append(
            Fault(found, "Open MPI 4.1 or 5, the same in all pods", "add openmpi to the image (openmpi-bin of Debian)")
        )
    elif tools.major not in (4, 5):
        found = f"{tools.mpirun} is not Open MPI 4 or 5, but {tools.version or tools.other or 'does not say what'}"
        faults.append(Fault(found, "`mpirun (Open MPI) 4.1.x` or 5.0.x", "put Open MPI's mpirun first on PATH"))
    if options.agent is Agent.SSH and group.size > 1:
        if tools.sshd is None and not group.is_leader:
            faults.append(Fault("this image has no sshd", "OpenSSH's server", f"{INSTALL}; or {INSTEAD}"))
        if tools.ssh is None and group.is_leader:
            faults.append(
                Fault("this image has no ssh", "OpenSSH's client", f"add openssh-client to the image; or {INSTEAD}")
            )
    if faults:
        raise ConfigError(*faults)
    if tools.major == 4:
        for index, node in enumerate(request.nodes):
            if len(node.hostname) > LONGEST_NAME:
                who = "this pod's" if index == group.index else f"that of pod {index}"
                raise ConfigError(
                    Fault(
                        f"the host name {node.hostname} has {len(node.hostname)} characters ({who}):"
                        f" Open MPI {tools.version} breaks on more than {LONGEST_NAME}",
                        f"at most {LONGEST_NAME} characters, the group's and the worker's number included",
                        "give the LeaderWorkerSet a shorter name, or set the template's hostname; or use an image with"
                        " Open MPI 5",
                    )
                )
    return tools


def mpirun_argv(request: Request, mpi: Mpi, tools: MpiTools) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The whole command of the leader, and what was decided, a line each."""
    options = request.options.mpi
    given, named = _of_the_user(options.arguments)
    each = {host.slots for host in mpi.hosts}
    full = len(each) == 1 and mpi.ranks == sum(host.slots for host in mpi.hosts)
    argv = [tools.mpirun or "mpirun"]
    if tools.uid == 0:
        argv.append("--allow-run-as-root")
    argv += ["--hostfile", mpi.hostfile, "-np", str(mpi.ranks)]
    ours = (
        ("--map-by", f"ppr:{mpi.hosts[0].slots}:node" if full else "slot"),
        # With one or two ranks Open MPI would bind each, and all that it starts, to a single core.
        ("--bind-to", "none"),
        # Under Open MPI 5 a rank that reads would wait for ever, even where mpirun's own input is at its end.
        ("--stdin", "none"),
    )
    # mpirun fails on many that it is given twice: what the user gave is kept.
    for option, value in ours:
        argv += [option, value] if option.lstrip("-") not in given else []
    for name, value in settings(request, mpi, tools):
        argv += ["--mca", name, value] if name not in named else []
    argv += options.arguments
    decisions = [
        f"-np {mpi.ranks}, rank 0 on the leader: " + ", ".join(f"{host.ip} slots={host.slots}" for host in mpi.hosts)
    ]
    program = mpi.program
    if ":" in program:
        # mpirun takes it for the beginning of another program, wherever it stands.
        program = ("/bin/sh", "-c", f"exec {shlex.join(program)}")
        decisions.append("/bin/sh -c: an argument is a single `:`, which mpirun takes for itself")
    return (*argv, *program), tuple(decisions)


def _of_the_user(arguments: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """The options of mpirun that --mpi-arg gives, without dashes, and the names that follow --mca. Raises ConfigError
    for what is the group's."""
    options = {argument.partition("=")[0].lstrip("-") for argument in arguments if argument.startswith("-")}
    named = {name for option, name in pairwise(arguments) if option.startswith("-") and option.lstrip("-") in MCA}
    for argument in arguments:
        if argument.partition("=")[0] in OURS or argument in AGENTS:
            raise ConfigError(
                Fault(
                    f"--mpi-arg {argument}: hosts, ranks and how they are reached are the group's",
                    "another option of mpirun's",
                    "--gpus-per-node sets a node's slots, --mpi-ranks the ranks, --mpi-agent how they are reached",
                )
            )
    return options, named


def settings(request: Request, mpi: Mpi, tools: MpiTools) -> tuple[tuple[str, str], ...]:
    """mpirun's --mca: names of Open MPI 4, which 5 translates."""
    if len(mpi.hosts) == 1:
        return ()
    options, found = request.options.mpi, [("plm_rsh_agent", remote_agent(mpi, tools))]
    # Only the leader opens connections: no worker needs a key to another one.
    found.append(("plm_rsh_no_tree_spawn", "1"))
    if len(mpi.hosts) > CONCURRENT:  # a connection lives as long as the job, so that the rest would never get theirs
        found.append(("plm_rsh_num_concurrent", str(len(mpi.hosts))))
    # A lost node is noticed after some 25 s; by default it takes 492.
    found += [(f"oob_tcp_keepalive_{name}", str(value)) for name, value in KEEPALIVE]
    if request.node.interface is not None:
        found += [("oob_tcp_if_include", request.node.interface), ("btl_tcp_if_include", request.node.interface)]
    if options.ports is not None:
        daemons, ranks = split_ports(options.ports, max(host.slots for host in mpi.hosts))
        found.append(("oob_tcp_dynamic_ipv4_ports", f"{daemons[0]}-{daemons[1]}"))
        found.append(("btl_tcp_port_min_v4", str(ranks[0])))
        found.append(("btl_tcp_port_range_v4", str(ranks[1] - ranks[0] + 1)))
    return tuple(found)


def remote_agent(mpi: Mpi, tools: MpiTools) -> str:
    """What mpirun runs to start a daemon on another pod: it puts the host and the command behind it.

    mpirun splits it at blanks, so what may hold one stands in a file.
    """
    if mpi.agent is Agent.CHANNEL:
        python, script, socket = (f"{mpi.directory}/{name}" for name in (AGENT_PYTHON, AGENT_SCRIPT, AGENT_SOCKET))
        return f"{python} -I -S {script} {socket}"
    return f"{tools.ssh} -F {mpi.directory}/{SSH_CONFIG}"


def split_ports(ports: tuple[int, int], slots: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The daemons' ports and the ranks', which must not overlap: MPI_Init fails on a port of the other kind.

    A pod has one daemon (on the leader mpirun), and so many ranks. Raises ConfigError for a range that is too small.
    """
    first, last = ports
    count, least = last - first + 1, 2 * slots + 4
    if count < least:
        raise ConfigError(
            Fault(
                f"--mpi-ports {first}-{last} has {count} ports",
                f"at least {least}, for {slots} ranks on a node and mpirun's own",
                "give a larger range, and open it in the NetworkPolicy from every pod of the group to every other",
            )
        )
    half = first + count // 2
    return (first, half - 1), (half, last)


def _accounts(request: Request, tools: MpiTools, account: Account | None) -> tuple[EnvVar, ...]:
    """What OpenSSH must see where passwd does not hold what it needs; mpirun and the ranks may see it as well."""
    if account is None or not account.wrapped or tools.nss_wrapper is None:
        return ()
    why = f"OpenSSH needs a usable passwd entry for uid {tools.uid}: nss_wrapper shows it one"
    preloaded = request.environ.get("LD_PRELOAD", "")
    return tuple(EnvVar(*each, why) for each in wrapping(tools.directory, tools.nss_wrapper, preloaded))


def _unset(request: Request) -> tuple[Unset, ...]:
    """What the pod has of another launch. What the user names with --env or --mpi-env is left alone."""
    named = {name for name, _ in request.options.env} | set(request.options.mpi.environment)
    found = ((name, unset_because(name)) for name in sorted(request.environ) if name not in named)
    return tuple(Unset(name, why) for name, why in found if why is not None)


def _notes(request: Request, tools: MpiTools) -> tuple[str, ...]:
    options, notes = request.options.mpi, []
    if request.group.is_leader:
        absent = [name for name in options.environment if name not in request.environ]
        if absent:
            notes.append(f"--mpi-env {', '.join(absent)}: not set on the leader, so there is nothing to hand on")
    if options.agent is Agent.CHANNEL and options.keys is not None:
        notes.append("--ssh-keys has no part in --mpi-agent channel")
    if any(":" in node.ip for node in request.nodes) and tools.major == 4:
        notes.append("IPv6 addresses: many builds of Open MPI 4 have no IPv6; the hostfile holds them all the same")
    return tuple(notes)
