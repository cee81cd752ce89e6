"""A streamed completion in the middle of which something happens, as a script for `lwsrun simulate --then`."""

from __future__ import annotations

import json
from pathlib import Path

ALL_ASKED = "kill -TERM $POD_0_PID $POD_1_PID"  # of two pods, at once


def stream(file: Path, port: int, tokens: int, at_first: str, host: str = "$LEADER_IP") -> str:
    """Asks for so many tokens, runs at_first as soon as there is one, and writes what came to the file.

    At the end it says "curl ended with CODE". It reads from a pipe: a loop that looks into a file may be so late on a
    busy machine that the stream is over.
    """
    wanted = {"model": "tiny", "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    wanted["stream_options"] = {"include_usage": True}
    return f"""
{{
  curl -sSN http://{host}:{port}/v1/completions -H 'Content-Type: application/json' -d '{json.dumps(wanted)}'
  echo "curl ended with $?" >&2
}} | {{
  IFS= read -r first
  {at_first}
  {{ printf '%s\\n' "$first"; cat; }} > {file}
}}
"""
