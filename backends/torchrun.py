"""torchrun: its rendezvous flags, filled in so that every pod's agent meets the others.

Rules were read from PyTorch 2.13 (torch/distributed/run.py, torch/distributed/elastic). Ours stand before the user's:
the last one counts, and what follows the script belongs to the script.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from backends import rendezvous
from backends.command import detect
from backends.errors import ConfigError, Fault
from backends.generic import MASTER_PORT, main_argv
from backends.plan import EnvVar, Kind, Main, Plan, Request, join_host_port, unless_set
from backends.torchrun_options import VALUES, Given, read_command

C10D_PORT = 29400
GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"

Added = list[tuple[str, str, str]]  # option, value, reason


def plan_torchrun(request: Request) -> Plan:
    """One agent per pod, which starts this node's processes. Raises ConfigError for flags that cannot form the group.

    On SIGTERM torchrun sends its processes the same signal, waits for them, kills what is left and ends with 1; they
    have sessions of their own, so nobody else can ask them. A process's own exit code it turns into 1.
    """
    if request.options.leader_excluded:
        raise ConfigError(
            Fault(
                "--leader-excluded: torchrun needs the leader, which hosts its rendezvous as node 0",
                "a group in which every pod takes part",
                "leave --leader-excluded out; --backend generic runs the command as it is",
            )
        )
    command = detect(main_argv(request))
    options = read_command(command)
    given = _with_environment(options.values, request)
    kind = request.options.kind or Kind.JOB
    added: Added = []
    agreed: list[str] = []
    notes: list[str] = []
    if "help" in options.values:
        reason = "torchrun is asked for its help"
    elif request.group.size == 1:
        _check_nodes(given, 1, fixed=False)
        reason = "the group is this pod alone"
    else:
        meeting = _meeting(given, request)
        added, reason = _rendezvous(given, meeting, request)
        if meeting.port is not None:
            agreed.append(f"port {meeting.port}")
        if "rdzv-id" in given and "rdzv-id" not in options.values:  # the command itself is compared in any case
            agreed.append(f"PET_RDZV_ID {given['rdzv-id']}")
        notes += filter(None, [meeting.note])
    if "nproc-per-node" not in given and request.node.gpus and "help" not in options.values:
        gpus = request.node.gpus
        added.append(("nproc-per-node", str(gpus), f"a process for each GPU of this node ({request.node.gpus_from})"))
    flags = [text for name, value, _ in added for text in (f"--{name}", value)]
    replaced = [name for name, _, _ in added]  # what is added although the user gave it holds his value too
    return Plan(
        backend="torchrun",
        mode="single node" if request.group.size == 1 else f"{given.get('rdzv-backend', 'static')} rendezvous",
        reason=reason,
        kind=kind,
        env=_grace(given, request),
        main=Main(
            command.with_arguments((*flags, *options.without(command.arguments, replaced))), kind, asked_alone=True
        ),
        agreed=tuple(agreed),
        decisions=tuple(f"--{name} {value}: {why}" for name, value, why in added),
        notes=(*notes, *_notes(options, given, request)),
    )


@dataclass(frozen=True)
class Meeting:
    """Where the agents meet. port is None for a backend whose servers are the user's own; port_from says whose it is.

    led: the leader hosts the store, and nobody has said so yet.
    """

    port: int | None
    port_from: str = ""
    led: bool = False
    note: str = ""


def _meeting(given: Mapping[str, str], request: Request) -> Meeting:
    """Raises ConfigError for an address where the agents could not meet. Of those that are not known to be the leader's
    an IP is refused, but not a name: it may be a Service's.
    """
    backend, endpoint = given.get("rdzv-backend", "static"), given.get("rdzv-endpoint")
    port, port_from = _port(request)
    name, text = "rdzv-endpoint", endpoint or ""
    if not endpoint and backend == "static":
        name, text = "master-addr", given.get("master-addr", "")
    rendezvous.refuse_variable(f"--{name}", text, f"such as {request.leader.ip}")
    host, number = _apart(text) if endpoint else (text.strip("[]"), "")
    _refuse_loopback(name, host, text, request)
    if backend not in ("static", "c10d"):
        return Meeting(None)
    if endpoint:
        if backend == "c10d" and not number:
            number = str(C10D_PORT)
        if not host or (":" in host and not _is_ip(host)):
            raise ConfigError(
                Fault(
                    f"--{name} is {text!r}",
                    "HOST:PORT, an IPv6 address in brackets",
                    f"leave --{name} out: lwsrun adds it",
                )
            )
        port, port_from = _checked(name, text, number), f"--{name}"
    elif backend == "static" and "master-port" in given:
        port, port_from = _checked("master-port", given["master-port"], given["master-port"]), "--master-port"
    if port == request.options.channel_port:
        raise ConfigError(
            Fault(f"{port_from}: port {port} is lwsrun's own", "a port that is free on the leader", "name another")
        )
    if backend == "c10d" and "is_host" in (
        key.partition("=")[0].strip() for key in given.get("rdzv-conf", "").split(",")
    ):
        return Meeting(port, port_from)  # the user says who hosts the store, wherever that is
    if host and not rendezvous.is_leader(host, request):
        if _is_ip(host):
            raise ConfigError(rendezvous.not_the_leader(f"--{name}", text, request))
        note = (
            f"--{name} {text} is kept, but the leader's name is {request.group.leader_address}: all pods must get there"
        )
        return Meeting(port, port_from, note=note)
    return Meeting(port, port_from, led=True)


def _apart(endpoint: str) -> tuple[str, str]:
    """Host and port ("" for none) as parse_rendezvous_endpoint of torch/distributed/elastic/rendezvous/utils.py takes
    them: the last colon is the port's, also of an IPv6 address without brackets."""
    text = endpoint.strip()
    if text.startswith("[") and text.endswith("]"):
        return text.strip("[]"), ""
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), port) if colon else (text, "")


def _checked(name: str, text: str, number: str) -> int:
    if not rendezvous.is_port(number.strip()):
        raise ConfigError(Fault(f"--{name} is {text!r}", "a port, 1 to 65535", f"leave --{name} out: lwsrun adds it"))
    return int(number)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _rendezvous(given: Mapping[str, str], meeting: Meeting, request: Request) -> tuple[Added, str]:
    """The flags that are missing, and in a sentence how the agents will meet."""
    group = request.group
    if "standalone" in given:
        raise ConfigError(
            Fault(
                f"--standalone in a group of {group.size}: each pod would be a job of its own",
                "no --standalone, or a group of size 1",
                "leave --standalone out: lwsrun fills in the rendezvous",
            )
        )
    backend = given.get("rdzv-backend", "static")
    _check_nodes(given, group.size, fixed=backend == "static")
    added: Added = []
    if "nnodes" not in given:
        added.append(("nnodes", str(group.size), "the group's size"))
    host = request.leader.ip
    if backend == "static":
        _check_rank(given, request)
        if "node-rank" not in given:
            added.append(("node-rank", str(group.index), "this pod's index"))
        if not given.get("rdzv-endpoint"):
            if "master-addr" not in given:
                # torchrun joins address and port with a colon, so IPv6 needs its brackets here.
                added.append(("master-addr", f"[{host}]" if ":" in host else host, "the leader's address, as an IP"))
            if "master-port" not in given:
                added.append(("master-port", str(meeting.port), f"on the leader; {meeting.port_from}"))
        said = "the command says so" if "rdzv-backend" in given else "the command names no --rdzv-backend"
        return added, f"{said}, and the group has {group.size} nodes"
    if backend == "c10d":
        if not given.get("rdzv-endpoint") and meeting.port is not None:
            added.append(("rdzv-endpoint", join_host_port(host, meeting.port), "the leader's address, as an IP"))
        if meeting.led:
            # Its own guess compares host names, which may be wrong with host networking.
            hosts = f"is_host={'true' if group.is_leader else 'false'}"
            conf = ",".join(filter(None, (given.get("rdzv-conf"), hosts)))
            added.append(("rdzv-conf", conf, "the leader hosts the store"))
        if "local-addr" not in given:
            added.append(("local-addr", request.node.ip, "this pod's own address; its name may not resolve elsewhere"))
    if "rdzv-id" not in given:
        added.append(("rdzv-id", group.id, "the same in this group, and in no other"))
    return added, f"the command says so, and the group has {group.size} nodes"


def _check_nodes(given: Mapping[str, str], size: int, fixed: bool) -> None:
    """--nnodes N or MIN:MAX must allow the group's size. A static rendezvous waits for MAX nodes."""
    text = given.get("nnodes")
    if text is None:
        return
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ConfigError(Fault(f"--nnodes is {text!r}", "a number of nodes, or MIN:MAX such as 1:4"))
    low, high = int(parts[0]), int(parts[-1])
    if low <= size <= high and not (fixed and high != size):
        return
    if low <= size <= high:
        raise ConfigError(
            Fault(
                f"--nnodes is {text}, but the group's size is {size}: a static rendezvous waits for {high} nodes",
                f"--nnodes {size}",
                "leave --nnodes out; or say --rdzv-backend c10d, which begins with fewer",
            )
        )
    raise ConfigError(
        Fault(
            f"--nnodes is {text}, but the group's size is {size}",
            f"--nnodes {size}, or none",
            "leave --nnodes out, or check LWS_GROUP_SIZE or --size",
        )
    )


def _check_rank(given: Mapping[str, str], request: Request) -> None:
    text = given.get("node-rank")
    if text is not None and text.strip() != str(request.group.index):
        raise ConfigError(
            Fault(
                f"--node-rank is {text}, but this pod is index {request.group.index} of the group",
                f"--node-rank {request.group.index}, or none",
                "leave --node-rank out, or write --node-rank={index}",
            )
        )


def _refuse_loopback(name: str, host: str, text: str | None, request: Request) -> None:
    host = host.strip("[]")
    loopback = ipaddress.ip_address(host).is_loopback if _is_ip(host) else host == "localhost"
    # Pods that have such addresses themselves, as under `lwsrun simulate`, do meet there.
    if loopback and not (_is_ip(host) and ipaddress.ip_address(request.node.ip).is_loopback):
        raise ConfigError(
            Fault(
                f"--{name} is {text}: in a group of {request.group.size} each pod would meet itself only",
                f"the leader's address, here {request.leader.ip}",
                f"leave --{name} out, or write it with {{leader_ip}}",
            )
        )


def _port(request: Request) -> tuple[int, str]:
    """The rendezvous's port and where it is from. torchrun does not read MASTER_PORT, but who sets it means this."""
    text = request.environ.get("MASTER_PORT", "")
    usable = text.isascii() and text.isdigit() and 0 < int(text[:9]) < 65536
    return (int(text), "MASTER_PORT") if usable else (MASTER_PORT, "torchrun's default")


def _with_environment(values: Mapping[str, str], request: Request) -> dict[str, str]:
    """The options, and those that torchrun reads from PET_<OPTION> because they are not given."""
    given = dict(values)
    for name in (*VALUES, "standalone"):
        text = request.environ.get("PET_" + name.replace("-", "_").upper())
        if text and name not in given and not (name == "standalone" and text == "0"):
            given[name] = text
    return given


def _grace(given: Mapping[str, str], request: Request) -> tuple[EnvVar, ...]:
    if "shutdown-timeout" in given or request.options.answering < 1:
        return ()
    reason = "asked to stop, torchrun gives its processes so long, not its own 30 s, before it kills them"
    return unless_set(request, EnvVar(GRACE, str(request.options.answering), reason))


def _notes(options: Given, given: Mapping[str, str], request: Request) -> tuple[str, ...]:
    notes = []
    if options.unknown is not None:
        notes.append(
            f"{options.unknown} is no option of torchrun that lwsrun knows (PyTorch 2.13): what follows it was not"
            " read; write --nnodes and the rendezvous before it"
        )
    if request.group.size > 1 and given.get("rdzv-backend", "static") != "static":
        notes.append(
            f"with --rdzv-backend {given['rdzv-backend']} torchrun numbers the nodes itself: rank 0 may be on any pod"
        )
        if ":" in given.get("nnodes", ""):
            notes.append(
                f"--nnodes {given['nnodes']}: an LWS group does not change its size; when a pod is lost, lwsrun ends"
                " all of them"
            )
    return tuple(notes)
