"""torchrun: its rendezvous flags, filled in so that every pod's agent meets the others.

Options and rules were read from PyTorch 2.13 (torch/distributed/run.py, torch/distributed/elastic). Ours stand before
the user's: the last one counts, and what follows the script belongs to the script.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.command import detect
from backends.errors import ConfigError, Fault
from backends.generic import MASTER_PORT, main_argv
from backends.plan import EnvVar, Kind, Main, Plan, Request, join_host_port, unless_set

# Each long option has a twin with underscores (--rdzv_id); argparse accepts every prefix that names one option only.
VALUES = (
    "nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "rdzv-conf", "max-restarts",
    "monitor-interval", "start-method", "event-log-handler", "role", "log-dir", "redirects", "tee",
    "local-ranks-filter", "duplicate-stdout-filters", "duplicate-stderr-filters", "node-rank", "master-addr",
    "master-port", "local-addr", "logs-specs", "numa-binding", "signals-to-handle", "shutdown-timeout",
)  # fmt: skip
SWITCHES = ("standalone", "module", "no-python", "run-path", "virtual-local-rank", "help")
LEGACY_SWITCHES = ("use-env",)  # of torch.distributed.launch alone
LETTERS = {"-m": "module", "-r": "redirects", "-t": "tee", "-h": "help"}
GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"

Added = list[tuple[str, str, str]]  # option, value, reason


@dataclass(frozen=True)
class Given:
    """What torchrun itself reads of an argument list: option -> value ("" for a switch), up to the script.

    unknown is the first option that this table does not have: whether a value follows it cannot be told, so nothing
    behind it was read.
    """

    values: Mapping[str, str]
    unknown: str | None = None


def read_options(arguments: Sequence[str], legacy: bool = False) -> Given:
    """As torchrun's argparse reads them. Raises ConfigError for a missing value or an ambiguous prefix."""
    names = (*VALUES, *SWITCHES, *(LEGACY_SWITCHES if legacy else ()))
    values: dict[str, str] = {}
    at = 0
    while at < len(arguments):
        token = arguments[at]
        text, equals, value = token.partition("=")
        if token == "--" or not _is_option(token):
            break
        name = _name(text, names)
        if name is None and token[:2] in LETTERS and token[:2] != token:
            name, equals, value = LETTERS[token[:2]], "=", token[2:].removeprefix("=")  # -t3
        if name is None:
            return Given(values, token)
        at += 1
        if name in VALUES:
            if not equals:
                if at == len(arguments) or _is_option(arguments[at]):
                    raise ConfigError(Fault(f"{text} has no value", f"--{name} VALUE before the script"))
                value = arguments[at]
                at += 1
            values[name] = value
        else:
            values[name] = ""
    return Given(values)


def _is_option(token: str) -> bool:
    # argparse takes negative numbers and "-" for words, as no option looks like a number.
    return token[:1] == "-" and len(token) > 1 and not token[1:].replace(".", "", 1).isdigit()


def _name(text: str, names: Sequence[str]) -> str | None:
    """The option that a token names, in full or by prefix; None for none."""
    if text in LETTERS:
        return LETTERS[text]
    if not text.startswith("--"):
        return None
    wanted = text[2:]
    spellings = {spelling: name for name in names for spelling in (name, name.replace("-", "_"))}
    if wanted in spellings:
        return spellings[wanted]
    meant = dict.fromkeys(name for spelling, name in spellings.items() if spelling.startswith(wanted))
    if len(meant) > 1:
        raise ConfigError(Fault(f"{text} is ambiguous", " or ".join(f"--{name}" for name in meant)))
    return next(iter(meant), None)


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
    options = read_options(command.arguments, legacy=command.argv[command.args - 1] == "torch.distributed.launch")
    given = _with_environment(options.values, request)
    kind = request.options.kind or Kind.JOB
    added: Added = []
    if "help" in options.values:
        reason = "torchrun is asked for its help"
    elif request.group.size == 1:
        _check_nodes(given, 1, fixed=False)
        reason = "the group is this pod alone"
    else:
        added, reason = _rendezvous(given, request)
    if "nproc-per-node" not in given and request.node.gpus and "help" not in options.values:
        gpus = request.node.gpus
        added.append(("nproc-per-node", str(gpus), f"a process for each GPU of this node ({request.node.gpus_from})"))
    flags = [text for name, value, _ in added for text in (f"--{name}", value)]
    return Plan(
        backend="torchrun",
        mode="single node" if request.group.size == 1 else f"{given.get('rdzv-backend', 'static')} rendezvous",
        reason=reason,
        kind=kind,
        env=_grace(given, request),
        main=Main(command.with_arguments((*flags, *command.arguments)), kind, asked_alone=True),
        decisions=tuple(f"--{name} {value}: {why}" for name, value, why in added),
        notes=_notes(options, given, request),
    )


def _rendezvous(given: Mapping[str, str], request: Request) -> tuple[Added, str]:
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
    for name in ("master-addr", "rdzv-endpoint"):
        _refuse_loopback(name, given.get(name), request)
    host = request.leader.ip
    port, port_from = _port(request)
    if backend == "static":
        _check_rank(given, request)
        if "node-rank" not in given:
            added.append(("node-rank", str(group.index), "this pod's index"))
        if not given.get("rdzv-endpoint"):
            if "master-addr" not in given:
                # torchrun joins address and port with a colon, so IPv6 needs its brackets here.
                added.append(("master-addr", f"[{host}]" if ":" in host else host, "the leader's address, as an IP"))
            if "master-port" not in given:
                added.append(("master-port", str(port), f"on the leader; {port_from}"))
        said = "the command says so" if "rdzv-backend" in given else "the command names no --rdzv-backend"
        return added, f"{said}, and the group has {group.size} nodes"
    if backend == "c10d":
        if not given.get("rdzv-endpoint"):
            added.append(("rdzv-endpoint", join_host_port(host, port), "the leader's address, as an IP"))
            if "rdzv-conf" not in given:
                # Its own guess compares host names, which may be wrong with host networking.
                hosts = "true" if group.is_leader else "false"
                added.append(("rdzv-conf", f"is_host={hosts}", "the leader hosts the store"))
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


def _refuse_loopback(name: str, text: str | None, request: Request) -> None:
    host = (text or "").rsplit(":", 1)[0] if name == "rdzv-endpoint" else text or ""
    host = host.strip("[]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if loopback:
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
