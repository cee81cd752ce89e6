"""Any command, run on every pod of the group once all have joined; placeholders tell it its place."""

from __future__ import annotations

from backends.command import detect
from backends.errors import ConfigError
from backends.placeholders import expand_all
from backends.plan import Kind, Main, Plan, Request

SERVERS = ("vllm", "sglang", "tensorrt-llm")


def main_argv(request: Request) -> tuple[str, ...]:
    """The user's command with this pod's values in its placeholders."""
    return expand_all(request.argv, request)


def plan_generic(request: Request) -> Plan:
    """The command as it is; nothing is added to it."""
    try:
        engine = detect(request.argv).engine
    except ConfigError:  # an engine inside a shell: with --backend generic that is the user's own choice
        engine = "generic"
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
        main=Main(main_argv(request), kind),
    )
