"""TensorRT-LLM over several nodes: an MPI rank for each GPU, the server beside rank 0.

Flags and rules were read from tensorrt_llm/commands/serve.py, examples/llm-api/llm_mgmn_trtllm_serve.sh and
llmapi/trtllm-llmapi-launch; Dynamo's from its backend for TensorRT-LLM.
"""

from __future__ import annotations

import os.path

from backends import argv
from backends.argv import Flag
from backends.command import Command, detect
from backends.errors import ConfigError, Fault
from backends.generic import main_argv, plan_generic
from backends.layout import check_layout
from backends.mpi import all_hosts, checked_ranks, launched, refuse_launcher
from backends.plan import Kind, Plan, Request
from backends.serving import HOST, main_process

TP = Flag("--tp-size", also=(Flag("--tensor-parallel-size"),))  # underscores are read as dashes
PP = Flag("--pp-size", also=(Flag("--pipeline-parallel-size"),))
CP = Flag("--cp-size", also=(Flag("--context-parallel-size"),))
# Files and overrides in which the sizes may stand as well.
CONFIGS = (
    Flag("--config"),
    Flag("--extra-llm-api-options"),
    Flag("--extra-engine-args"),
    Flag("--override-engine-args"),
)
GPUS_PER_NODE = Flag("--gpus-per-node")
LAUNCH = "trtllm-llmapi-launch"
ROUTER, MPI_WORKER = "disaggregated", "disaggregated_mpi_worker"


def plan_tensorrt_llm(request: Request) -> Plan:
    """One pod's plan. Raises ConfigError for a layout that does not fit, and for what cannot span pods."""
    command = detect(main_argv(request))
    refuse_launcher(command.argv[: command.start + 1])
    if request.group.size == 1:
        return plan_generic(request)
    if command.engine != "tensorrt-llm":
        return _any_program(command, request)
    role = command.arguments[0] if command.arguments else ""
    if role == ROUTER:
        raise ConfigError(
            Fault(
                f"trtllm-serve {ROUTER} is a router for HTTP: it has no ranks, and the group has {request.group.size}",
                "a command whose ranks fill the group, such as `trtllm-serve MODEL` or"
                f" `trtllm-serve {MPI_WORKER} -c FILE`",
                "run the router in a Deployment of its own, or in a group of size 1",
            )
        )
    kind = request.options.kind or Kind.SERVER
    hosts = all_hosts(request)
    decisions: list[str] = []
    notes: list[str] = []
    if role == MPI_WORKER:
        ranks = checked_ranks(request.options.mpi.ranks, hosts)
        program, told, serves = command.argv, f"{ranks} ranks, which its file divides into servers", None
    else:
        ranks, told = _ranks(command, request, notes)
        program = _reachable(command, request, decisions)
        serves = main_process(detect(program), kind).serves
        program = _behind_launch(program, command, request, decisions)
    return launched(
        request,
        "tensorrt-llm",
        program,
        hosts,
        ranks,
        kind,
        reason=f"a rank for each GPU of {request.group.size} pods; {told}",
        serves=serves,
        decisions=tuple(decisions),
        notes=tuple(notes),
    )


def _any_program(command: Command, request: Request) -> Plan:
    """A program of the user's own on TensorRT-LLM; what he puts in front of it is his."""
    hosts = all_hosts(request)
    ranks = checked_ranks(request.options.mpi.ranks, hosts)
    kind = request.options.kind or Kind.JOB
    why = f"--backend tensorrt-llm: mpirun on the leader starts {ranks} ranks on {len(hosts)} pods"
    return launched(request, "tensorrt-llm", command.argv, hosts, ranks, kind, reason=why)


def _ranks(command: Command, request: Request, notes: list[str]) -> tuple[int, str]:
    """The world's size, which must be that of the model, and how it is told."""
    arguments = command.arguments
    sizes = [(name, argv.whole_number(arguments, flag, 1)) for name, flag in (("TP", TP), ("PP", PP), ("CP", CP))]
    per_node = argv.last(arguments, GPUS_PER_NODE)
    if per_node is not None and argv.whole_number(arguments, GPUS_PER_NODE, 1) != request.node.gpus:
        raise ConfigError(
            Fault(
                f"{per_node.text} is {per_node.value}, but this node has {request.node.gpus} GPUs"
                f" ({request.node.gpus_from})",
                f"{request.node.gpus}, or no {GPUS_PER_NODE.name}",
                "leave it out: TensorRT-LLM counts the GPUs of its node itself",
            )
        )
    given = any(argv.find(arguments, flag) for flag in (TP, PP, CP))
    total = sum(node.gpus for node in request.nodes)
    wanted = request.options.mpi.ranks
    if wanted not in (None, total):
        raise ConfigError(
            Fault(
                f"--mpi-ranks {wanted}: TensorRT-LLM has a rank for each GPU, and the group has {total}",
                "TP × PP × CP that fills the group",
                "leave --mpi-ranks out",
            )
        )
    file = next((found for flag in CONFIGS if (found := argv.last(arguments, flag))), None)
    if file is not None and not given:
        notes.append(
            f"the sizes are taken to stand in {file.text} {file.value}, which lwsrun does not read: TP × PP × CP must"
            f" be {total}, the GPUs of the group"
        )
        return total, f"the sizes stand in {file.text}"
    check_layout(sizes, request.nodes)
    return total, ", ".join(f"{name} {degree}" for name, degree in sizes if degree > 1 or name == "TP")


def _reachable(command: Command, request: Request, decisions: list[str]) -> tuple[str, ...]:
    """trtllm-serve listens on localhost, where neither probes nor clients of the pod arrive."""
    if command.is_dynamo or argv.find(command.arguments, HOST):
        return command.argv
    host = "::" if ":" in request.node.ip else "0.0.0.0"
    decisions.append(f"--host {host}: by default trtllm-serve listens on localhost only, where no probe arrives")
    return command.with_arguments(argv.add(command.arguments, HOST, host))


def _behind_launch(
    program: tuple[str, ...], command: Command, request: Request, decisions: list[str]
) -> tuple[str, ...]:
    """Rank 0 of trtllm-llmapi-launch starts the server; the other ranks wait for its tasks."""
    if any(os.path.basename(token) == LAUNCH for token in command.argv[: command.start]):
        return program
    tools = request.node.mpi
    if not request.group.is_leader:
        return (LAUNCH, *program)
    if tools is None or tools.llmapi_launch is None:
        raise ConfigError(
            Fault(
                f"this image has no {LAUNCH}: without it every rank would be a server of its own",
                f"{LAUNCH} on PATH, as in NVIDIA's images and in the package tensorrt-llm",
                "use an image with TensorRT-LLM; --backend mpi runs a program as it is on every rank",
            )
        )
    decisions.append(f"{LAUNCH}: rank 0 starts the server, the other ranks work for it")
    return (LAUNCH, *program)
