"""Runs in the engine's environment, as `python -c`: does the engine's own parser take the arguments?

argv: the engine, then the arguments behind its program. Prints one line: "lwsrun-parse: accepted", or "refused: …" in
the parser's own words. Nothing of lwsrun can be imported here.
"""

import contextlib
import io
import logging
import sys
from typing import Any

logging.disable(logging.WARNING)


def vllm() -> Any:
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # until 0.3x
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser
    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def sglang() -> Any:
    import argparse

    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    return parser


def read(engine: str, arguments: list[str]) -> str:
    parser, said = {"vllm": vllm, "sglang": sglang}[engine](), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser.parse_args(arguments)
    except SystemExit as ended:
        if ended.code:
            lines = said.getvalue().split("error: ")
            return "refused: " + " ".join(lines[-1].split())
    except Exception as error:
        return f"refused: {error!r}"
    return "accepted"


print("\nlwsrun-parse: " + read(sys.argv[1], sys.argv[2:]), flush=True)
