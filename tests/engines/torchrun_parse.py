"""Runs in the engine's environment: parse arguments with torchrun's own parser, print what it understood.

Usage: python torchrun_parse.py < JSON list of [legacy, arguments]
"""

import argparse
import json
import sys

from torch.distributed.run import config_from_args, get_args_parser


def understood(legacy, arguments):
    parser = get_args_parser()
    if legacy:  # torch.distributed.launch adds this one
        parser.add_argument("--use-env", "--use_env", default=False, action="store_true")
    parser.error = refuse
    try:
        parsed = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        return {"error": str(error)}
    values = vars(parsed)
    try:
        config, _, _ = config_from_args(parsed)
    except Exception as error:  # whatever torchrun thinks of the values
        return {**values, "refused": repr(error)}
    return {**values, "nodes": [config.min_nodes, config.max_nodes], "endpoint": config.rdzv_endpoint,
            "configs": config.rdzv_configs, "id": config.run_id}  # fmt: skip


def refuse(message):
    raise argparse.ArgumentError(None, message)


print(json.dumps([understood(legacy, arguments) for legacy, arguments in json.load(sys.stdin)]))
