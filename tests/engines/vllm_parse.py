"""Runs in the engine's environment: parse `vllm serve` arguments with vLLM's own parser, print what it understood.

Usage: python vllm_parse.py [FIELD ...] < JSON list of argument lists (after `vllm serve`)
Prints a JSON list: for each the fields, or null where the parser refuses it.
"""

import json
import logging
import sys
from typing import Any

logging.disable(logging.WARNING)

from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402

FIELDS = (
    "model_tag",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "distributed_executor_backend",
    "nnodes",
    "enable_server_load_tracking",
    "shutdown_timeout",
)


def understood(arguments: list[str]) -> dict[str, Any] | None:
    try:
        namespace = parser.parse_args(arguments)
    except SystemExit:
        return None
    return {field: getattr(namespace, field) for field in sys.argv[1:] or FIELDS}


parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
print(json.dumps([understood(arguments) for arguments in json.load(sys.stdin)], default=str))
