"""Runs in the engine's environment: parse `vllm serve` arguments with vLLM's own parser, print what it understood.

Usage: python vllm_parse.py < JSON list of argument lists (after `vllm serve`)
"""

import json
import logging
import sys

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
parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
print(json.dumps([{f: getattr(parser.parse_args(args), f) for f in FIELDS} for args in json.load(sys.stdin)]))
