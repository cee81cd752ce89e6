"""What the plans of vLLM's modes share: environment, notes, and the plan of a pod that runs vLLM itself."""

from __future__ import annotations

from dataclasses import replace

from backends import argv
from backends.command import Command
from backends.plan import EnvVar, Gate, Main, Plan, Request, Unset, unless_set
from backends.serving import main_process
from backends.vllm_asked import Asked, Edit
from backends.vllm_drain import REMOTE, SEVERAL, api_servers, by_itself, by_us
from backends.vllm_flags import CONFIG, GRPC_PORT, HEADLESS, MODEL, PORT, SHUTDOWN


def environment(asked: Asked) -> tuple[EnvVar, ...]:
    """vLLM guesses its own address by the default route, and silently takes 0.0.0.0 when that fails."""
    ip = asked.request.node.ip
    env = [EnvVar("VLLM_HOST_IP", ip, "this pod's own address, never guessed")]
    # As JSON, in the dotted form of a JSON flag, inside a MultiConnector, or as Dynamo's --connector nixl: the name is
    # what they have in common. Dynamo guesses the address where it is not set.
    if any("nixl" in token.lower() for token in asked.arguments):
        env.append(EnvVar("VLLM_NIXL_SIDE_CHANNEL_HOST", ip, "where NIXL peers find this pod; vLLM says localhost"))
    return unless_set(asked.request, *env)


def unset(request: Request) -> tuple[Unset, ...]:
    """https://docs.vllm.ai/en/latest/configuration/env_vars.html: a Service named vllm sets the base of its ports."""
    value = request.environ.get("VLLM_PORT", "")
    if "://" not in value:
        return ()
    return (Unset("VLLM_PORT", f"{value} is the address of a Service named vllm; vLLM wants a port there and fails"),)


def as_serve(command: Command) -> Command:
    """The same as `vllm serve`, which alone knows --headless: the module api_server would start a second server."""
    if not command.is_api_server_module:
        return command
    arguments, model = command.arguments, argv.text(command.arguments, MODEL)
    if model is not None:
        arguments = (model, *argv.without(arguments, [MODEL]))
    head = (*(command.argv[: command.start] or ("python3",)), "-m", "vllm.entrypoints.cli.main", "serve")
    return Command((*head, *arguments), command.engine, len(head) - 3, len(head))


def notes(asked: Asked, *, drains_itself: bool) -> tuple[str, ...]:
    """What the user should know of flags that are not seen, or that do not fit."""
    lines, arguments = [], asked.arguments
    if argv.find(arguments, CONFIG):
        seen = "the layout is checked as the flags say" if asked.sized else "the layout is not checked"
        lines.append(
            f"--config FILE is read by vLLM alone: sizes in it are not seen here, so {seen}; give them as flags"
        )
        if drains_itself and not argv.find(arguments, SHUTDOWN):
            lines.append(f"{SHUTDOWN.name} is left to --config FILE: without it a SIGTERM aborts every request")
    lines.extend(_another_address(asked.request))
    drain, left = argv.whole_number(arguments, SHUTDOWN, 0, lowest=0), asked.request.options.answering
    if drains_itself and drain > left:
        lines.append(
            f"{SHUTDOWN.name} {drain} does not fit: {left} s are left for it; raise"
            " --drain-timeout, and terminationGracePeriodSeconds above that"
        )
    return tuple(lines)


def _another_address(request: Request) -> tuple[str, ...]:
    """A template sets the same value in all pods, where each needs its own."""
    host, node = request.environ.get("VLLM_HOST_IP", ""), request.node
    if not host or not node.addresses or host in (node.ip, *node.addresses):
        return ()
    return (
        f"VLLM_HOST_IP is {host}, which this pod has not got: {', '.join(node.addresses)}; vLLM takes it for its own,"
        " so leave it out, or set it from the field status.podIP",
    )


def serves(edit: Edit, main: Main) -> None:
    """The ports of the server, if it is one. Raises ConfigError for one that is taken."""
    if main.serves is not None:
        edit.takes(main.serves.port, PORT.name)
        if argv.find(edit.arguments, GRPC_PORT):
            edit.takes(argv.whole_number(edit.arguments, GRPC_PORT, 0, lowest=0), GRPC_PORT.name)


def engine_plan(
    asked: Asked,
    edit: Edit,
    *,
    mode: str,
    reason: str,
    why: str = "",
    gates: tuple[Gate, ...] = (),
    extra_notes: tuple[str, ...] = (),
    servers: int = 1,
    remote: bool = False,
    serve_only: bool = False,
    all_answer: bool = False,
) -> Plan:
    """A plan in which this pod runs vLLM itself. why: of the flags that were added.

    servers: the API servers that vLLM starts by itself. remote: their engines need those of other pods. serve_only: the
    mode is one that only `vllm serve` knows. all_answer: as in Plan.
    """
    headless = argv.given(edit.arguments, HEADLESS)
    command = replace(asked.command, argv=asked.command.with_arguments(edit.arguments))
    if headless or serve_only:
        command = as_serve(command)
    servers = api_servers(command, servers)
    itself = not headless and servers <= 1 and not remote
    drain: tuple[str, ...] = ()
    if headless:
        # It has nothing to finish, and asked alone it takes 12 s to end its workers (measured with 0.32).
        main = replace(main_process(command, asked.kind), serves=None, asked_alone=False)
    elif itself:
        main, drain = by_itself(asked, command)
    else:
        main, drain = by_us(asked, command, SEVERAL if servers > 1 else REMOTE, servers)
    if argv.find(edit.arguments, CONFIG) and not argv.find(edit.arguments, PORT):
        main = replace(main, serves=None)  # the port may stand in the file
    serves(edit, main)
    return Plan(
        backend="vllm",
        mode=mode,
        reason=reason,
        kind=asked.kind,
        env=environment(asked),
        unset=unset(asked.request),
        gates=gates,
        main=main,
        all_answer=all_answer,
        decisions=(*edit.decisions(why), *drain),
        notes=(*notes(asked, drains_itself=itself), *extra_notes),
    )
