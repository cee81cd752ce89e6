"""Any command, run on every pod of the group once all have joined; placeholders tell it its place."""

from __future__ import annotations

from backends.placeholders import expand_all
from backends.plan import Kind, Main, Plan, Request


def main_argv(request: Request) -> tuple[str, ...]:
    """The user's command with this pod's values in its placeholders."""
    return expand_all(request.argv, request)


def plan_generic(request: Request) -> Plan:
    """The command as it is; nothing is added to it."""
    kind = request.options.kind or Kind.JOB
    return Plan(
        backend="generic",
        mode="as it is",
        reason="no engine was recognised in the command: every pod runs it unchanged",
        kind=kind,
        main=Main(main_argv(request), kind),
    )
