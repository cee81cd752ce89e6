"""Where an engine answers requests, and how it wants to be stopped: for the main process of a plan."""

from __future__ import annotations

from dataclasses import dataclass

from backends import argv, vllm_flags
from backends.argv import Flag
from backends.command import Command
from backends.plan import Kind, Main, PortOpen

HOST = Flag("--host")
PORT = Flag("--port")
UNIX_SOCKET = Flag("--uds")


@dataclass(frozen=True)
class Spelling:
    """How an engine's own parser spells where it answers. nowhere: with these it has no port; outlives: with these it
    goes on without some of its ranks.
    """

    host: Flag
    port: Flag
    nowhere: tuple[Flag, ...] = ()
    outlives: tuple[Flag, ...] = ()


SPELLINGS = {
    "vllm": Spelling(
        vllm_flags.HOST,
        vllm_flags.PORT,
        (vllm_flags.UNIX_SOCKET, vllm_flags.HEADLESS),
        (vllm_flags.ELASTIC_EP, vllm_flags.FAULT_TOLERANCE),
    ),
    "sglang": Spelling(
        Flag("--host", shortest="--ho"),
        Flag("--port", shortest="--po"),
        outlives=(Flag("--elastic-ep-backend", shortest="--elastic-ep-b"),),
    ),
    "tensorrt-llm": Spelling(HOST, PORT),  # click takes whole names only
}
# The engines' own defaults.
PORTS = {"vllm": 8000, "sglang": 30000, "tensorrt-llm": 8000}
# Parts of the names that engines give their processes: vllm/utils/system_utils.py (the part before :: can be set),
# sglang/srt/managers/*.py. Under Ray an actor has the name of its class, until vLLM gives it another.
RANKS = {
    "vllm": ("::EngineCore", "::Worker", "::DPCoordinator", "::APIServer"),
    "sglang": ("sglang::scheduler", "sglang::detokenizer", "sglang::tokenizer", "sglang::data_parallel_controller"),
}
VLLM_ON_RAY = ("ray::RayWorker", "EngineCoreActor", "::Worker")
EVERYWHERE = (None, "", "0.0.0.0", "::", "[::]")


def main_process(command: Command, kind: Kind) -> Main:
    """The command as a main process. Raises ConfigError for a --port that is no number.

    An engine is asked to stop alone: asked directly, its workers would drop the requests that it still answers
    (vllm/v1/executor/multiproc_executor.py, worker_main; SGLang's schedulers have no handler at all).
    """
    known = command.engine in PORTS
    return Main(
        command.argv,
        kind,
        serves=_serves(command) if known else None,
        asked_alone=known,
        ranks=ranks(command, kind, RANKS.get(command.engine, ())),
    )


def ranks(command: Command, kind: Kind, names: tuple[str, ...]) -> tuple[str, ...]:
    """These names where the engine can do without none of its ranks; a job's may end before it."""
    spelling = SPELLINGS.get(command.engine)
    outlives = spelling is not None and any(argv.given(command.arguments, flag) for flag in spelling.outlives)
    return names if kind is Kind.SERVER and not outlives else ()


def _serves(command: Command) -> PortOpen | None:
    arguments, spelling = command.arguments, SPELLINGS[command.engine]
    if command.is_dynamo or any(argv.given(arguments, flag) for flag in spelling.nowhere):
        return None
    port = argv.whole_number(arguments, spelling.port, PORTS[command.engine], lowest=0)
    host = argv.text(arguments, spelling.host)
    return PortOpen("localhost" if host in EVERYWHERE else str(host), port, command.engine) if port else None
