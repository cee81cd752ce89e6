"""Any command, run on every pod of the group once all have joined; placeholders tell it its place."""

from __future__ import annotations

from backends.command import Command, detect
from backends.errors import ConfigError
from backends.placeholders import expand_all
from backends.plan import Kind, Plan, Request
from backends.serving import main_process

SERVERS = ("vllm", "sglang", "tensorrt-llm")


def main_argv(request: Request) -> tuple[str, ...]:
    """The user's command with this pod's values in its placeholders."""
    return expand_all(request.argv, request)


def plan_generic(request: Request) -> Plan:
    """The command as it is; nothing is added to it."""
    argv = main_argv(request)
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
    kind = request.options.kind or (Kind.SERVER if engine in SERVERS else Kind.JOB)
    return Plan(
        backend="generic",
        mode="as it is",
        reason=reason,
        kind=kind,
        main=main_process(command, kind),
    )
