"""Runs in the engine's environment: what SGLang itself makes of argument lists and of layouts.

Usage: python sglang_parse.py < {"commands": [[argument, ...], ...], "layouts": [[TP, PP, nodes], ...]}

Prints {"parsed": [...], "exact": [...]}: by command, what SGLang's parser and its checks understood, with the ranks
that it would start on that node; by layout, whether all nodes together start every rank of the model exactly once.
"""

import contextlib
import io
import json
import sys
from types import SimpleNamespace

from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.arg_groups.parallel_hook import handle_deprecated_dp_attention
from sglang.srt.entrypoints import engine
from sglang.srt.server_args import prepare_server_args
from sglang.srt.utils.network import NetworkAddress

FIELDS = ("model_path", "host", "port", "nnodes", "node_rank", "tp_size", "pp_size", "ep_size", "disaggregation_mode")


def ranks(tp: int, pp: int, nodes: int, node: int) -> list[tuple[int, int]]:
    engine.get_parallel = lambda: SimpleNamespace(tp_size=tp, pp_size=pp, nnodes=nodes)
    stages, shares, _, _ = engine._calculate_rank_ranges(node)
    return [(stage, share) for stage in stages for share in shares]


def parse(arguments: list[str]) -> dict[str, object]:
    args = prepare_server_args(arguments)
    handle_deprecated_dp_attention(args)
    resolved = resolving_view(args)
    understood = {field: getattr(resolved, field) for field in FIELDS}
    understood["attn_dp_size"] = resolved.attn_dp_size
    understood["dp_size"] = resolved.dp_size
    meet = NetworkAddress.parse(args.dist_init_addr) if args.dist_init_addr else None
    understood["meet"] = [meet.host, meet.port] if meet else None
    understood["ranks"] = ranks(args.tp_size, args.pp_size, args.nnodes, args.node_rank)
    return understood


def exact(tp: int, pp: int, nodes: int) -> bool:
    started = [rank for node in range(nodes) for rank in ranks(tp, pp, nodes, node)]
    return sorted(started) == [(stage, share) for stage in range(pp) for share in range(tp)]


asked = json.load(sys.stdin)
with contextlib.redirect_stdout(io.StringIO()):
    answer = {
        "parsed": [parse(arguments) for arguments in asked["commands"]],
        "exact": [exact(*layout) for layout in asked["layouts"]],
    }
print(json.dumps(answer))
