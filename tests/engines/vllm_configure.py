"""Runs in the engine's environment: what vLLM makes of `vllm serve` arguments, by its own parser and configuration.

Usage: python vllm_configure.py < JSON list of argument lists (after `vllm serve`)
Prints a JSON list: for each the configurations of the servers that it would start (one, or with several ports one for
each local replica), or why it refuses them.
"""

import json
import logging
import os
import sys
from argparse import Namespace
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""
logging.disable(logging.WARNING)

from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args  # noqa: E402
from vllm.entrypoints.launchers.dp_supervisor import (  # noqa: E402
    _build_vllm_dp_server_args,
    validate_multi_port_external_lb_args,
)
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402

PARALLEL = (
    "nnodes",
    "node_rank",
    "master_addr",
    "master_port",
    "node_rank_within_dp",
    "world_size",
    "local_world_size",
    "data_parallel_size",
    "data_parallel_size_local",
    "data_parallel_rank",
    "data_parallel_master_ip",
    "data_parallel_rpc_port",
    "data_parallel_backend",
    "data_parallel_hybrid_lb",
    "data_parallel_external_lb",
)


def servers(args: Namespace) -> list[Namespace]:
    if not args.data_parallel_multi_port_external_lb:
        return [args]
    validate_multi_port_external_lb_args(args)
    return [_build_vllm_dp_server_args(args, rank) for rank in range(args.data_parallel_size_local)]


def configured(args: Namespace) -> dict[str, Any]:
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(headless=args.headless)
    parallel = {name: getattr(config.parallel_config, name) for name in PARALLEL}
    return parallel | {"port": args.port, "headless": args.headless, "shutdown_timeout": config.shutdown_timeout}


def understood(arguments: list[str]) -> list[dict[str, Any]] | str:
    try:
        args = parser.parse_args(arguments)
        args.model = args.model_tag
        validate_parsed_serve_args(args)
        return [configured(server) for server in servers(args)]
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"


parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
print(json.dumps([understood(arguments) for arguments in json.load(sys.stdin)]))
