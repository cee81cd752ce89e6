"""vLLM: which multi-node mode a command means, and what each pod does for it.

Flags and rules were read from vLLM 0.32 and 0.33 (vllm/engine/arg_utils.py, vllm/config/parallel.py). The shortest
prefixes are those that argparse accepts for its whole option list.
"""

from __future__ import annotations

from dataclasses import replace

from backends import argv, ray
from backends.argv import Flag
from backends.command import Command, detect
from backends.errors import ConfigError, Fault
from backends.generic import main_argv
from backends.layout import check_layout
from backends.plan import EnvVar, InFlight, Kind, Main, Plan, Request, join_host_port, unless_set
from backends.serving import VLLM_ON_RAY, main_process, ranks
from backends.versions import at_least

TP = Flag("--tensor-parallel-size", ("-tp",), shortest="--te")
PP = Flag("--pipeline-parallel-size", ("-pp",), shortest="--pi")
PCP = Flag("--prefill-context-parallel-size", ("-pcp",), shortest="--prefill-c")
DP = Flag("--data-parallel-size", ("-dp",))
EXECUTOR = Flag("--distributed-executor-backend", shortest="--distributed-e")
NNODES = Flag("--nnodes", ("-n",), shortest="--nn")
NODE_RANK = Flag("--node-rank", ("-r",), shortest="--nod")
MASTER_ADDR = Flag("--master-addr", shortest="--master-a")
HEADLESS = Flag("--headless", takes_value=False)
DP_SWITCHES = (
    Flag("--data-parallel-size-local", ("-dpl",), shortest="--data-parallel-size-"),
    Flag("--data-parallel-rank", ("-dpn",), shortest="--data-parallel-ra"),
    Flag("--data-parallel-start-rank", ("-dpr",), shortest="--data-parallel-st"),
    Flag("--data-parallel-address", ("-dpa",), shortest="--data-parallel-a"),
    Flag("--data-parallel-hybrid-lb", ("-dph",), shortest="--data-parallel-h", takes_value=False),
    Flag("--data-parallel-external-lb", ("-dpe",), shortest="--data-parallel-e", takes_value=False),
    Flag("--data-parallel-multi-port-external-lb", ("-dpm",), shortest="--data-parallel-m", takes_value=False),
)
CONFIG = Flag("--config")
NO_STATS = Flag("--disable-log-stats", shortest="--disable-log-s", takes_value=False)
CERTIFICATE = Flag("--ssl-certfile", shortest="--ssl-certf")
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting")
COUNT = Flag("--enable-server-load-tracking", shortest="--enable-se", takes_value=False)
NO_COUNT = Flag("--no-enable-server-load-tracking", shortest="--no-enable-se", takes_value=False)
COUNTS_SINCE = (0, 9)  # https://github.com/vllm-project/vllm/pull/13950
API_SERVERS = Flag("--api-server-count", ("-asc",), shortest="--api-s")
SHUTDOWN = Flag("--shutdown-timeout", shortest="--shu")
NEWEST = "0.33.0"  # that these rules were read from
DRAINS_SINCE = (0, 18)  # https://github.com/vllm-project/vllm/pull/36666


def plan_vllm(request: Request) -> Plan:
    """One pod's plan for `vllm serve`. Raises ConfigError for layouts that cannot form and modes not built yet."""
    if request.options.leader_excluded:
        raise ConfigError(_no_gpu_no_driver())
    command = detect(main_argv(request))
    arguments = command.arguments
    kind = request.options.kind or Kind.SERVER
    axes = [("TP", argv.whole_number(arguments, TP, 1)), ("PP", argv.whole_number(arguments, PP, 1))]
    context = argv.whole_number(arguments, PCP, 1)
    if context > 1:
        axes.append(("PCP", context))
    if request.group.size == 1:
        arguments, drain = _with_drain(command, request)
        _refuse_more_nodes(arguments)
        data = argv.whole_number(arguments, DP, 1)
        if request.node.gpus:
            _check_fits_one_node([*axes, ("DP", data)], request)
        return Plan(
            backend="vllm",
            mode="single node",
            reason="the group is this pod alone",
            kind=kind,
            env=host_ip(request),
            main=main_process(replace(command, argv=command.with_arguments(arguments)), kind),
            decisions=drain,
            notes=_notes(arguments, request),
        )
    executor = argv.text(arguments, EXECUTOR)
    _refuse_data_parallel(arguments)
    _refuse_native(arguments, executor)
    check_layout(axes, request.nodes)
    if executor == "ray":
        reason = "the command says --distributed-executor-backend ray"
    elif request.node.ray:
        reason = f"the image has Ray {request.node.ray} and the model spans {request.group.size} nodes"
        arguments = argv.add(arguments, EXECUTOR, "ray")
    else:
        raise ConfigError(
            _not_yet(
                "native multi-node vLLM (--nnodes), which this command needs because the image has no Ray",
                "install ray in the image, and lwsrun runs the model on it",
            )
        )
    if request.node.ray is None:
        raise ray.no_ray(request.node)
    main, drain = None, ()
    if request.group.is_leader:
        main, drain = _drained_by_us(replace(command, argv=command.with_arguments(arguments)), kind, request)
    return Plan(
        backend="vllm",
        mode="Ray",
        reason=reason,
        kind=kind,
        env=(*host_ip(request), *ray.cluster_env(request)),
        services=(replace(ray.cluster_service(request), ranks=ranks(command, kind, VLLM_ON_RAY)),),
        gates=ray.cluster_gates(request),
        main=main,
        leader_only=True,
        decisions=drain,
        notes=_notes(arguments, request),
    )


def host_ip(request: Request) -> tuple[EnvVar, ...]:
    """vLLM guesses its own address by the default route, and silently takes 0.0.0.0 when that fails."""
    return unless_set(request, EnvVar("VLLM_HOST_IP", request.node.ip, "this pod's own address, never guessed"))


def _check_fits_one_node(axes: list[tuple[str, int]], request: Request) -> None:
    # Fewer than the node has is legal on one node (several engines may share it); more can never start.
    needed = 1
    for _, degree in axes:
        needed *= degree
    if needed > request.node.gpus:
        check_layout(axes, request.nodes)


def _refuse_more_nodes(arguments: tuple[str, ...]) -> None:
    nodes = argv.whole_number(arguments, NNODES, 1)
    if nodes > 1:
        raise ConfigError(
            Fault(
                f"--nnodes is {nodes}, but the group's size is 1",
                "no --nnodes, or a group of that size",
                "check LWS_GROUP_SIZE or --size",
            )
        )


def _refuse_data_parallel(arguments: tuple[str, ...]) -> None:
    if argv.whole_number(arguments, DP, 1) > 1 or any(argv.find(arguments, flag) for flag in DP_SWITCHES):
        raise ConfigError(_not_yet("vLLM data parallelism over several nodes", "use TP × PP over the group's GPUs"))


def _refuse_native(arguments: tuple[str, ...], executor: str | None) -> None:
    native = [f for f in (NNODES, NODE_RANK, MASTER_ADDR, HEADLESS) if argv.find(arguments, f)]
    if native:
        flags = ", ".join(flag.name for flag in native)
        if executor == "ray":
            raise ConfigError(
                Fault(
                    f"{flags} and --distributed-executor-backend ray contradict each other",
                    "vLLM takes --nnodes with its multiprocessing executor only",
                    f"leave out {flags}: lwsrun tells Ray the nodes",
                )
            )
        raise ConfigError(
            _not_yet(f"native multi-node vLLM ({flags} in the command)", "leave them out and use an image with Ray")
        )
    if executor not in (None, "ray"):
        raise ConfigError(
            _not_yet(
                f"native multi-node vLLM (--distributed-executor-backend {executor})",
                "say --distributed-executor-backend ray, or leave it out",
            )
        )


def _no_gpu_no_driver() -> Fault:
    # https://github.com/vllm-project/vllm/issues/27318, https://github.com/vllm-project/vllm/issues/29265
    return Fault(
        "--leader-excluded: vLLM's server cannot run on a leader that has no part in the model",
        "a leader with GPUs: without one vLLM ends with `Failed to infer device type` or `Current node has no GPU`",
        "give the leader the workers' GPUs and leave --leader-excluded out; --backend ray and generic take it",
    )


def _not_yet(what: str, remedy: str) -> Fault:
    return Fault(f"this version of lwsrun cannot run {what}", "a later version will", remedy)


def _with_drain(command: Command, request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments with vLLM's own drain switched on, and why: without it a SIGTERM aborts every request."""
    arguments, seconds = command.arguments, request.options.answering
    theirs = argv.find(arguments, SHUTDOWN) or argv.find(arguments, CONFIG)  # a flag would win over the file
    can = at_least(request.node.engine_version, DRAINS_SINCE) and not command.is_dynamo
    if theirs or not can or seconds < 1:
        return arguments, ()
    reason = "asked to stop, vLLM answers the requests that it has for so long, instead of aborting them"
    return argv.add(arguments, SHUTDOWN, str(seconds)), (f"{SHUTDOWN.name} {seconds}: {reason}",)


def _drained_by_us(command: Command, kind: Kind, request: Request) -> tuple[Main, tuple[str, ...]]:
    """On Ray vLLM's own drain does nothing: Ray's SIGTERM handler ends the engine's core (measured with 0.32).

    The server then waits for ever for the streams that it has; so it is asked to stop when it has none.
    """
    arguments = command.arguments
    main = main_process(command, kind)
    if main.serves is None or argv.find(arguments, NO_STATS):
        return main, ()
    scheme = "https" if argv.find(arguments, CERTIFICATE) else "http"
    page = f"{scheme}://{join_host_port(main.serves.host, main.serves.port)}"
    in_flight = InFlight(f"{page}/metrics", GAUGES)
    reason = "on Ray a SIGTERM ends vLLM at once, so it is asked to stop when no request is in flight"
    one_server = argv.whole_number(arguments, API_SERVERS, 1, lowest=0) <= 1  # each counts its own
    if at_least(request.node.engine_version, COUNTS_SINCE) and one_server and not argv.find(arguments, NO_COUNT):
        in_flight = replace(in_flight, load=f"{page}/load", load_key="server_load")
        reason = f"{COUNT.name}: {reason}"
        if not argv.find(arguments, COUNT):
            main = replace(main, argv=command.with_arguments(argv.add(arguments, COUNT)))
    return replace(main, in_flight=in_flight), (reason,)


def _notes(arguments: tuple[str, ...], request: Request) -> tuple[str, ...]:
    notes = []
    if argv.find(arguments, CONFIG):
        notes.append("--config FILE is read by vLLM alone: sizes that it sets are not seen here, give them as flags")
        if request.group.size == 1 and not argv.find(arguments, SHUTDOWN):
            notes.append(f"{SHUTDOWN.name} is left to --config FILE: without it a SIGTERM aborts every request")
    drain = argv.whole_number(arguments, SHUTDOWN, 0, lowest=0)
    if request.group.size == 1 and drain > request.options.answering:
        notes.append(
            f"{SHUTDOWN.name} {drain} does not fit: {request.options.answering} s are left for it; raise"
            " --drain-timeout, and terminationGracePeriodSeconds above that"
        )
    return tuple(notes)
