"""SGLang: every pod runs the same server command with its own rank; what is added to it, and what is refused.

Flags and rules were read from SGLang 0.5.23 (sglang/srt/server_args.py, srt/arg_groups, srt/entrypoints). Its parser
takes ranks, addresses and layouts that never form a group: each rank then waits for hours, or a rank never starts.
The shortest prefixes are those that argparse accepts for its whole option list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from backends import argv, rendezvous
from backends.argv import Flag
from backends.command import Command, detect
from backends.errors import ConfigError, Fault
from backends.generic import main_argv
from backends.plan import EnvVar, Kind, Main, Plan, Request, join_host_port, unless_set
from backends.serving import PORTS, SPELLINGS, main_process
from backends.sglang_layout import Layout, check, read

HOST, PORT = SPELLINGS["sglang"].host, SPELLINGS["sglang"].port
NNODES = Flag("--nnodes", shortest="--nn")
NODE_RANK = Flag("--node-rank", shortest="--nod")
DIST_INIT_ADDR = Flag("--dist-init-addr", shortest="--dist-i", also=(Flag("--nccl-init-addr", shortest="--nccl-i"),))
CONFIG = Flag("--config", shortest="--conf")
GRPC_MODES = (
    Flag("--smg-grpc-mode", shortest="--smg-g", takes_value=False),
    Flag("--grpc-mode", shortest="--grpc-m", takes_value=False),
)
DISAGGREGATION = Flag("--disaggregation-mode", shortest="--disaggregation-m")
BOOTSTRAP_PORT = Flag("--disaggregation-bootstrap-port", shortest="--disaggregation-b")
SIDECAR = Flag(
    "--smg-http-sidecar-port", shortest="--smg-h", also=(Flag("--grpc-http-sidecar-port", shortest="--grpc-h"),)
)
OTHER_PORTS = (
    SIDECAR,
    Flag("--nccl-port", shortest="--nccl-p"),
    Flag("--grpc-port", shortest="--grpc-p"),
    Flag("--gated-launch-port", shortest="--ga"),
    Flag("--engine-info-bootstrap-port", shortest="--eng"),
)
# Commands of another kind, which do not know of ranks: what they are, what to do.
NO_GROUP = (
    (
        Flag("--use-ray", shortest="--us", takes_value=False),
        "SGLang on Ray starts all ranks from one process, itself",
        "--backend ray --kind server runs it on the leader, on a Ray cluster of the group; or leave --use-ray out",
    ),
    (
        Flag("--encoder-only", shortest="--encoder-o", takes_value=False),
        "SGLang's encoder server has no ranks on other nodes",
        "run it in a group of size 1",
    ),
    (
        Flag("--elastic-ep-join-mode", shortest="--elastic-ep-join-m"),
        "a server that joins a running one has the ranks that follow that one's, not this group's",
        "--backend generic runs the command unchanged on every pod; {index} and {leader_ip} give it its place",
    ),
    (
        Flag("--model-type"),
        "only SGLang's language models have --node-rank",
        "run it in a group of size 1, or with --backend generic and flags of its own",
    ),
)
BOOTSTRAP = 8998
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
FIRST_PORT = 20000  # as in SGLang's own examples; below those that SGLang draws (22000-29999) and the kernel's
STEP = 100
HANDSHAKE = 13  # DP_ATTENTION_HANDSHAKE_PORT_DELTA


def plan_sglang(request: Request) -> Plan:
    """One pod's plan for an SGLang server. Raises ConfigError for what can never form a group."""
    if request.options.leader_excluded:
        raise ConfigError(_no_leader())
    command = detect(main_argv(request))
    arguments = command.arguments
    kind = request.options.kind or Kind.SERVER
    alone = request.group.size == 1
    if not alone:
        _refuse_other_kinds(arguments)
    layout = read(arguments, request)
    _check_place(arguments, request)
    sizes_elsewhere = argv.find(arguments, CONFIG) and not layout.given
    if not sizes_elsewhere:
        check(layout, request)
    decisions: list[str] = []
    agreed: tuple[str, ...] = ()
    taken = _taken(arguments, request)
    if not alone:
        arguments, port, added = _with_place(arguments, layout, request, taken)
        decisions += added
        agreed = (f"rendezvous port {port}",)
        if not command.is_dynamo:
            arguments, added = _reachable(arguments, request)
            decisions += added
    return Plan(
        backend="sglang",
        mode="single node" if alone else "multi-node",
        reason="the group is this pod alone" if alone else f"every pod runs SGLang with its own rank; {layout.told()}",
        kind=kind,
        env=_host_ip(request),
        main=_main(command, arguments, kind),
        agreed=agreed,
        decisions=tuple(decisions),
        notes=_notes(command, arguments, layout, request),
    )


def _host_ip(request: Request) -> tuple[EnvVar, ...]:
    """get_ip in srt/utils/network.py: SGLANG_HOST_IP, then HOST_IP, then guesses over interfaces and routes."""
    if request.environ.get("HOST_IP"):
        return ()
    return unless_set(request, EnvVar("SGLANG_HOST_IP", request.node.ip, "this pod's own address, never guessed"))


def _refuse_other_kinds(arguments: tuple[str, ...]) -> None:
    for flag, why, remedy in NO_GROUP:
        found = argv.last(arguments, flag)
        if found is not None and found.value not in ("llm", "auto"):
            shown = " ".join(filter(None, (found.text, found.value)))
            raise ConfigError(Fault(f"{shown} in a group larger than one: {why}", "", remedy))


def _check_place(arguments: tuple[str, ...], request: Request) -> None:
    """SGLang's parser takes any rank for any number of nodes, and waits for the ranks that never come."""
    group = request.group
    faults = []
    nodes, rank = argv.last(arguments, NNODES), argv.last(arguments, NODE_RANK)
    if nodes is not None and argv.whole_number(arguments, NNODES, 1) != group.size:
        faults.append(
            Fault(
                f"{nodes.text} is {nodes.value}, but the group's size is {group.size}",
                f"no {NNODES.name}, which lwsrun adds, or {group.size}",
                "leave it out, or check LWS_GROUP_SIZE or --size",
            )
        )
    if rank is not None and argv.whole_number(arguments, NODE_RANK, 0, lowest=0) != group.index:
        faults.append(
            Fault(
                f"{rank.text} is {rank.value}, but this is {group.me}, whose rank is {group.index}",
                f"no {NODE_RANK.name}, which lwsrun adds, or {{index}}",
                "leave it out: the same command is then right in both templates",
            )
        )
    if faults:
        raise ConfigError(*faults)


def _with_place(
    arguments: tuple[str, ...], layout: Layout, request: Request, taken: Mapping[int, str]
) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """The arguments with nodes, rank and rendezvous, as numbers: on the leader SGLang binds to what it is given. Also
    the rendezvous's port, and the decisions.
    """
    group, decisions = request.group, []
    given = argv.last(arguments, DIST_INIT_ADDR)
    if given is None:
        port = next(p for p in range(FIRST_PORT, 65000, STEP) if not _clash(p, taken, layout, reserve=True))
        address = join_host_port(request.leader.ip, port)
        arguments = argv.add(arguments, DIST_INIT_ADDR, address)
        decisions.append(f"{DIST_INIT_ADDR.name}: the ranks meet at the leader's own address, port {port}")
    else:
        text = given.value or ""
        port = rendezvous.port_of(given.text, text, request)
        clash = _clash(port, taken, layout, reserve=False)
        if clash:
            raise ConfigError(
                Fault(
                    f"{given.text} {text}: {clash}",
                    f"a port of its own; with attention DP also the 6 after it and +{HANDSHAKE} are SGLang's",
                    f"leave {DIST_INIT_ADDR.name} out: lwsrun finds a port that is free of these",
                )
            )
        address = join_host_port(request.leader.ip, port)
        if text != address:
            arguments = argv.add(argv.without(arguments, (DIST_INIT_ADDR,)), DIST_INIT_ADDR, address)
            decisions.append(
                f"{given.text} {text} is given as the leader's address, port {port}: a name may not resolve yet"
            )
    if not argv.find(arguments, NNODES):
        arguments = argv.add(arguments, NNODES, str(group.size))
        decisions.append(f"{NNODES.name} {group.size}: the group's size")
    if not argv.find(arguments, NODE_RANK):
        arguments = argv.add(arguments, NODE_RANK, str(group.index))
        decisions.append(f"{NODE_RANK.name} {group.index}: this pod's index")
    return arguments, port, tuple(decisions)


def _taken(arguments: tuple[str, ...], request: Request) -> dict[int, str]:
    """The ports of this command and of lwsrun, and whose they are. Raises ConfigError for one that is given twice."""
    taken = {request.options.channel_port: "lwsrun itself"}
    http = argv.whole_number(arguments, PORT, PORTS["sglang"], lowest=0)
    ports = [(PORT, http)]
    if argv.text(arguments, DISAGGREGATION) == "prefill" or argv.find(arguments, BOOTSTRAP_PORT):
        ports.append((BOOTSTRAP_PORT, argv.whole_number(arguments, BOOTSTRAP_PORT, BOOTSTRAP, lowest=0)))
    ports += [(flag, argv.whole_number(arguments, flag, 0, lowest=0)) for flag in OTHER_PORTS]
    if http and not argv.find(arguments, SIDECAR) and any(argv.find(arguments, flag) for flag in GRPC_MODES):
        ports.append((SIDECAR, http + 1))
    for flag, port in ports:
        if port in taken:
            raise ConfigError(
                Fault(
                    f"{flag.name} is {port}, but port {port} is that of {taken[port]} too",
                    "a port of its own for each",
                    f"give {flag.name} another; lwsrun's own is its --port, before the command",
                )
            )
        if port:  # 0 is any, or none
            taken[port] = flag.name
    return taken


def _clash(port: int, taken: Mapping[int, str], layout: Layout, *, reserve: bool) -> str | None:
    """Why SGLang cannot meet at this port. It takes more than one with attention DP (PortArgs.init_new), and where we
    choose it, those are left free in any case.
    """
    mine = {port}
    if layout.attention_dp > 1 or reserve:
        # With SGLANG_RUST_SERVER there is one more for each rank of attention DP.
        mine |= {*range(port, port + 7 + layout.attention_dp), port + HANDSHAKE}
    if max(mine) > 65535:
        return f"{max(mine)} is beyond the last port"
    both = sorted(mine & taken.keys())
    return f"port {both[0]} is that of {taken[both[0]]} too" if both else None


def _reachable(arguments: tuple[str, ...], request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments with --host and --port, on every rank: a worker answers probes there, once it has loaded."""
    if argv.find(arguments, CONFIG):
        return arguments, ()  # a flag would win over the file
    decisions = []
    if not argv.find(arguments, HOST):
        everywhere = "::" if ":" in request.node.ip else "0.0.0.0"
        arguments = argv.add(arguments, HOST, everywhere)
        decisions.append(f"{HOST.name} {everywhere}: SGLang's own is 127.0.0.1, where no probe and no client gets")
    if not argv.find(arguments, PORT):
        arguments = argv.add(arguments, PORT, str(PORTS["sglang"]))
        decisions.append(f"{PORT.name} {PORTS['sglang']}: on workers SGLang answers /health there")
    return arguments, tuple(decisions)


def _main(command: Command, arguments: tuple[str, ...], kind: Kind) -> Main:
    """The server. Rank 0 finishes its requests when it is asked to stop, then ends the schedulers of all nodes; the
    other ranks ignore the SIGTERM and wait for that (srt/entrypoints/engine.py), as long as they are asked alone.
    """
    main = main_process(replace(command, argv=command.with_arguments(arguments)), kind)
    hidden = argv.find(arguments, CONFIG) and not argv.find(arguments, PORT)
    if hidden or any(argv.find(arguments, flag) for flag in GRPC_MODES):
        return replace(main, serves=None)
    return main


def _notes(command: Command, arguments: tuple[str, ...], layout: Layout, request: Request) -> tuple[str, ...]:
    notes = []
    if argv.find(arguments, CONFIG):
        seen = "they are checked as the flags say" if layout.given else "so the layout is not checked"
        notes.append(
            f"{CONFIG.name} FILE is read by SGLang alone: sizes, {HOST.name} and {PORT.name} in it are not seen, {seen}"
        )
    host = argv.text(arguments, HOST)
    if request.group.size > 1 and host in LOOPBACK and not command.is_dynamo:
        notes.append(f"{HOST.name} {host}: no probe and no client from outside the pod gets there")
    if layout.uncounted:
        notes.append(f"{layout.uncounted}: its devices are not counted, only the ranks are shared out")
    return tuple(notes)


def _no_leader() -> Fault:
    return Fault(
        "--leader-excluded: SGLang's server is rank 0, which has its part in the model",
        "a leader with as many GPUs as the workers",
        "give the leader the workers' GPUs and leave --leader-excluded out; --backend ray and generic take it",
    )
