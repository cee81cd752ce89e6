"""Any command, run on every pod of the group once all have joined; placeholders and variables tell it its place."""

from __future__ import annotations

from backends.command import Command, detect
from backends.errors import ConfigError
from backends.group import member_name
from backends.placeholders import expand_all
from backends.plan import EnvVar, Kind, Plan, PortOpen, Request, unless_set
from backends.presets import nim_env
from backends.serving import main_process

SERVERS = ("vllm", "sglang", "tensorrt-llm")
MASTER_PORT = 29500  # PyTorch's and torchrun's own default


def main_argv(request: Request) -> tuple[str, ...]:
    """The user's command with this pod's values in its placeholders."""
    return expand_all(request.argv, request)


def plan_generic(request: Request) -> Plan:
    """The command as it is; nothing is added to it."""
    argv, options = main_argv(request), request.options
    try:
        command = detect(argv)
    except ConfigError:  # an engine inside a shell: with --backend generic that is the user's own choice
        command = Command(argv, "generic", 0, 1)
    engine = command.engine
    if engine == "generic":
        reason = "no engine was recognised in the command: every pod runs it unchanged"
    elif request.group.size == 1:
        reason = f"the group is this pod alone: {engine} runs unchanged"
    else:
        reason = f"--backend generic: every pod runs {engine} unchanged"
    kind = options.kind or (Kind.SERVER if engine in SERVERS or options.preset else Kind.JOB)
    known = engine != "generic" and options.backend != "generic"  # an engine alone, which needs no variables
    return Plan(
        backend="generic",
        mode=f"as it is, --preset {options.preset}" if options.preset else "as it is",
        reason=reason,
        kind=kind,
        env=(*(() if known else standard_env(request)), *(nim_env(request) if options.preset == "nim" else ())),
        gates=worker_gates(request),
        main=main_process(command, kind),
        notes=_contradictions(request),
    )


def standard_env(request: Request) -> tuple[EnvVar, ...]:
    """The names that PyTorch's env:// and most launchers read. RANK and WORLD_SIZE count processes, not nodes: how many
    a command starts here only itself knows."""
    return unless_set(
        request,
        EnvVar("MASTER_ADDR", request.leader.ip, "the leader's address, as an IP"),
        EnvVar("MASTER_PORT", str(MASTER_PORT), "PyTorch's usual port, on the leader"),
        EnvVar("NNODES", str(request.group.size), "the group's size"),
        EnvVar("NODE_RANK", str(request.group.index), "this pod's index"),
    )


def worker_gates(request: Request) -> tuple[PortOpen, ...]:
    """With --await-workers PORT the leader's command starts when that port of every worker is open."""
    port = request.options.await_workers
    if port is None or not request.group.is_leader:
        return ()
    return tuple(PortOpen(node.ip, port, member_name(at)) for at, node in enumerate(request.nodes) if at > 0)


def _contradictions(request: Request) -> tuple[str, ...]:
    mine = (("NNODES", request.group.size, "the group's size"), ("NODE_RANK", request.group.index, "this pod's index"))
    return tuple(
        f"{name}={request.environ[name]} is left as it was set, although {what} is {value}"
        for name, value, what in mine
        if name in request.environ and request.environ[name].strip() != str(value)
    )
