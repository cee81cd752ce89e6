"""An OpenAI-compatible completions server over a whole Ray cluster: one actor per node, each writes part of the text.

    lwsrun start --backend ray --kind server -- python3 examples/ray_completions.py --port 8000

There is no model: the text is a chain of words in which each word follows from the one before, and each node adds its
word in turn, so that an answer proves that every node took part. It finds its cluster through RAY_ADDRESS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WORDS = "the group forms and every node adds a word so that none can be missing today".split()  # noqa: SIM905
MODEL = "one-word-per-node"


@ray.remote(num_cpus=0)
class Writer:
    """Lives on one node; says who it is, and which word follows another."""

    def where(self) -> dict[str, str]:
        return {"host": socket.gethostname(), "ip": ray.util.get_node_ip_address()}

    def next_word(self, text: str) -> str:
        return WORDS[hashlib.sha256(text.encode()).digest()[0] % len(WORDS)]


class Handler(BaseHTTPRequestHandler):
    writers: list[ray.actor.ActorHandle]
    nodes: list[dict[str, str]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            ray.get([writer.where.remote() for writer in self.writers], timeout=5)
            self.reply(200, {"status": "ok", "nodes": len(self.nodes)})
        elif self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self.reply(404, {"error": {"message": f"no such path: {self.path}"}})

    def do_POST(self) -> None:
        if self.path != "/v1/completions":
            self.reply(404, {"error": {"message": f"no such path: {self.path}"}})
            return
        try:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            prompt, count = str(asked["prompt"]), int(asked.get("max_tokens", 2 * len(self.writers)))
        except (ValueError, KeyError, TypeError) as error:
            self.reply(400, {"error": {"message": f"not a completions request: {error!r}"}})
            return
        text, wrote = "", []
        for turn in range(max(1, min(count, 256))):
            at = turn % len(self.writers)
            text += " " + ray.get(self.writers[at].next_word.remote(prompt + text), timeout=30)
            wrote.append(self.nodes[at]["host"])
        answer = {
            "id": f"cmpl-{hashlib.sha256((prompt + text).encode()).hexdigest()[:12]}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [{"index": 0, "text": text, "finish_reason": "length", "written_by": wrote}],
            "usage": {"completion_tokens": len(wrote)},
        }
        self.reply(200, answer)

    def reply(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    ray.init(log_to_driver=False)
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeManagerAddress"])
    Handler.writers = [
        Writer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in alive
    ]
    Handler.nodes = ray.get([writer.where.remote() for writer in Handler.writers])
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"serving on port {options.port} with {len(alive)} nodes", flush=True)
    server.serve_forever()
    ray.shutdown()
    sys.exit(0)


if __name__ == "__main__":
    main()
