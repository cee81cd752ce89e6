"""The part of a command that is the same in every template of a group, and where two of them part.

A leader and a worker template may differ in who a pod is, where it finds the leader and where it serves; in anything
else the pods would run different engines. Placeholders are the same in both, so they stay as they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from backends import argv, serving, sglang, torchrun_options, vllm_flags
from backends.argv import Flag
from backends.command import detect
from backends.errors import ConfigError

SERVES = (serving.HOST, serving.PORT, serving.UNIX_SOCKET)
# Rank and rendezvous flags as torchrun and the launchers beside it spell them, in a program that we do not know.
RANKS = (
    Flag("--nnodes"),
    Flag("--node-rank"),
    Flag("--machine-rank"),  # accelerate launch
    Flag("--master-addr"),
    Flag("--master-port"),
    Flag("--main-process-ip"),
    Flag("--rdzv-endpoint"),
    Flag("--rdzv-conf"),  # may say who hosts the store
    Flag("--local-addr"),
)
# vLLM 0.33 (vllm/engine/arg_utils.py, vllm/entrypoints/cli/serve.py); SGLang's server_args.py; trtllm-serve's click
# options. torchrun's are read by torchrun_options.py, up to the script, whose own they may be too.
PER_ROLE: dict[str, tuple[Flag, ...]] = {
    # Ports and modes of data parallelism must agree: with unlike ones the pods would wait for each other for ever.
    "vllm": vllm_flags.PER_ROLE,
    "sglang": (sglang.HOST, sglang.PORT, sglang.NNODES, sglang.NODE_RANK, sglang.DIST_INIT_ADDR),
    "tensorrt-llm": SERVES,
    "generic": RANKS,
}
SHOWN = 300  # characters of a difference


def common_part(command: Sequence[str]) -> tuple[str, ...]:
    """The command without its per-role flags. One that cannot be read is taken whole: its planner tells the fault."""
    try:
        found = detect(command)
        if found.engine == "torchrun":
            return found.with_arguments(
                torchrun_options.read_command(found).without(found.arguments, torchrun_options.PLACE)
            )
        return found.with_arguments(argv.without(found.arguments, PER_ROLE[found.engine]))
    except ConfigError:
        return tuple(command)


def difference(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, str] | None:
    """Where two commands part, without what they share at both ends; None when their common parts are the same."""
    mine, other = list(common_part(ours)), list(common_part(theirs))
    if mine == other:
        return None
    while mine and other and mine[0] == other[0]:
        mine, other = mine[1:], other[1:]
    while mine and other and mine[-1] == other[-1]:
        mine, other = mine[:-1], other[:-1]
    return _shown(mine), _shown(other)


def _shown(tokens: list[str]) -> str:
    text = shlex.join(tokens) or "nothing"
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
