"""Where an engine tells whether it serves, found in its own flags and variables; --health-url where it is not known.

vLLM's /health reads a flag of its front end and touches no other rank, so its counters are watched beside it. SGLang's
/health makes the ranks generate a token where they are idle and fails under a prefill of more than 20 s; /ready does
neither, but older versions have not got it (0.5.23: srt/entrypoints/http_server.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from backends import argv, vllm_flags
from backends.argv import Flag
from backends.command import Command, detect
from backends.errors import ConfigError, Fault
from backends.placeholders import expand_all
from backends.plan import Health, Kind, Main, Plan, PortOpen, Progress, Request, join_host_port

SCHEMES = ("http", "https", "tcp")
CERTIFICATE = Flag("--ssl-certfile", shortest="--ssl-certf")
API_KEY = Flag("--api-key")
CLIENT_CERTIFICATES = Flag("--ssl-cert-reqs", shortest="--ssl-cert-")  # Python's ssl.CERT_REQUIRED is 2
# What moves with every step that an engine makes, and what it says to be working on (vllm/v1/metrics/loggers.py).
VLLM_BUSY = ("vllm:num_requests_running",)
VLLM_STEPS = ("vllm:iteration_tokens_total_count", "vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def with_health(plan: Plan, request: Request) -> Plan:
    """The plan with where its main process tells its health, if this pod has clients. Raises ConfigError for a
    --health-url that is no address."""
    given, main = _given(request), plan.main
    if main is None or not (request.group.is_leader or plan.all_answer or _supervised(main.argv)):
        return plan
    health = given or _known(main, request)
    return plan if health is None else replace(plan, main=replace(main, health=health))


def _given(request: Request) -> Health | None:
    text = request.options.health_url
    if text is None:
        return None
    (url,) = expand_all((text,), request)
    if re.match("[^/]*//[^/?#]*@", url):
        raise ConfigError(
            Fault(
                "--health-url has a user name or a password in it",  # which must not be shown here either
                "an address without them, because /readyz, /group and the log show it",
                "name a page of the engine that needs none",
            )
        )
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and (parts.port is not None or parts.scheme != "tcp")
    except ValueError:
        sound = False
    if not sound or parts.scheme not in SCHEMES:
        raise ConfigError(
            Fault(
                f"--health-url is {text!r}" + (f", here {url!r}" if url != text else ""),
                "http://HOST:PORT/PATH, https://…, or tcp://HOST:PORT",
                "for example http://localhost:8000/health, as the engine answers it inside the pod",
            )
        )
    return Health(url)


def _known(main: Main, request: Request) -> Health | None:
    if main.kind is not Kind.SERVER:
        return None
    try:
        command = detect(main.argv)
    except ConfigError:  # an engine inside a shell, with --backend generic
        return None
    if command.is_dynamo:
        return _dynamo(request)
    if main.serves is None:
        return None
    at = main.serves
    match command.engine:
        case "vllm":
            return _vllm(command, at, request)
        case "sglang":
            page = _page(command, at)
            return Health(f"{page}/ready", otherwise=f"{page}/health", through=f"{page}/health_generate")
        case "tensorrt-llm":
            return Health(f"{_page(command, at)}/health")
    return None


def _vllm(command: Command, at: PortOpen, request: Request) -> Health:
    arguments = command.arguments
    supervised = _supervised(arguments)
    if supervised:  # vLLM's supervisor asks all servers of this pod
        port = argv.whole_number(arguments, vllm_flags.SUPERVISOR_PORT, vllm_flags.DEFAULT_SUPERVISOR_PORT)
        at = replace(at, port=port)
    if argv.given(arguments, vllm_flags.GRPC) or argv.text(arguments, CLIENT_CERTIFICATES) == "2":
        return Health(f"tcp://{join_host_port(at.host, at.port)}")
    page = _page(command, at)
    stats = not supervised and not argv.given(arguments, vllm_flags.NO_STATS)
    pages = (f"{page}/v1/completions", f"{page}/v1/models")
    key = argv.text(arguments, API_KEY) or request.environ.get("VLLM_API_KEY") or None
    progress = Progress(f"{page}/metrics", VLLM_BUSY, VLLM_STEPS, *pages, key) if stats else None
    return Health(f"{page}/health", progress=progress)


def _supervised(arguments: Sequence[str]) -> bool:
    """Whether it is a vLLM of which every pod has clients, at several ports."""
    return argv.given(arguments, vllm_flags.MULTI_PORT)


def _dynamo(request: Request) -> Health | None:
    """A worker's own system server, which is off unless its port is set:
    https://docs.nvidia.com/dynamo/v1.5.0/reference/observability/health-checks
    """
    port = request.environ.get("DYN_SYSTEM_PORT", "")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536):
        return None
    path = request.environ.get("DYN_SYSTEM_HEALTH_PATH") or "/health"
    return Health(f"http://localhost:{int(port)}/{path.removeprefix('/')}")


def _page(command: Command, at: PortOpen) -> str:
    scheme = "https" if argv.find(command.arguments, CERTIFICATE) else "http"
    return f"{scheme}://{join_host_port(at.host, at.port)}"
