"""How vLLM is made to answer the requests that it has before it ends: by its own drain, or by waiting for it.

Measured with 0.32. Its own drain (--shutdown-timeout) works where one API server has all its engines in its own pod.
With several API servers each closes its connections to the engines at once and then waits for streams that never go
on; on Ray, Ray's SIGTERM handler ends the engine's core. Then we wait until no request is in flight, and ask it then.
"""

from __future__ import annotations

from dataclasses import replace

from backends import argv
from backends.command import Command
from backends.plan import InFlight, Main, join_host_port
from backends.serving import main_process
from backends.versions import at_least
from backends.vllm_asked import Asked
from backends.vllm_flags import (
    API_SERVERS,
    CERTIFICATE,
    CONFIG,
    COUNT,
    COUNTS_SINCE,
    DRAINS_SINCE,
    NO_STATS,
    SHUTDOWN,
)

GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting")
SEVERAL = "with several API servers a SIGTERM breaks vLLM's requests off"
REMOTE = "vLLM's own drain does not wait for the replicas of other pods"
RAY = "on Ray a SIGTERM ends vLLM at once"


def by_itself(asked: Asked, command: Command) -> tuple[Main, tuple[str, ...]]:
    """The main process with vLLM's own drain switched on, and why: without it a SIGTERM aborts every request."""
    arguments, seconds = command.arguments, asked.request.options.answering
    theirs = argv.find(arguments, SHUTDOWN) or argv.find(arguments, CONFIG)  # a flag would win over the file
    can = at_least(asked.request.node.engine_version, DRAINS_SINCE) and not command.is_dynamo
    if theirs or not can or seconds < 1:
        return main_process(command, asked.kind), ()
    reason = "asked to stop, vLLM answers the requests that it has for so long, instead of aborting them"
    command = replace(command, argv=command.with_arguments(argv.add(arguments, SHUTDOWN, str(seconds))))
    return main_process(command, asked.kind), (f"{SHUTDOWN.name} {seconds}: {reason}",)


def by_us(asked: Asked, command: Command, why: str, servers: int) -> tuple[Main, tuple[str, ...]]:
    """The main process with what tells its requests in flight, where it does. servers: its API servers."""
    arguments = command.arguments
    main = main_process(command, asked.kind)
    if main.serves is None or argv.given(arguments, NO_STATS):
        return main, ()
    scheme = "https" if argv.find(arguments, CERTIFICATE) else "http"
    page = f"{scheme}://{join_host_port(main.serves.host, main.serves.port)}"
    in_flight = InFlight(f"{page}/metrics", GAUGES)
    reason = f"{why}, so it is asked to stop when no request is in flight"
    can = at_least(asked.request.node.engine_version, COUNTS_SINCE)
    counts = argv.switched(arguments, COUNT)
    if can and servers <= 1 and counts is not False:  # each server counts its own
        in_flight = replace(in_flight, load=f"{page}/load", load_key="server_load")
        reason = f"{COUNT.name}: {reason}"
        if counts is None:
            main = replace(main, argv=command.with_arguments(argv.add(arguments, COUNT)))
    return replace(main, in_flight=in_flight), (reason,)


def api_servers(command: Command, default: int) -> int:
    """How many the command starts; the module api_server starts one, whatever its flags say."""
    if command.is_api_server_module:
        return 1
    return argv.whole_number(command.arguments, API_SERVERS, default, lowest=0)
