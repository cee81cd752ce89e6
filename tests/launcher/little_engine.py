"""A little engine with a real HTTP server, for tests: `vllm serve … --port N` in a directory that says how it does.

`status` holds what /health answers (none: refused, because nothing listens yet), `delay` how many seconds that takes.
It writes `most`, how many requests it had at once, and `asked`, the paths. What it works on (`running`) and has done
(`tokens`) stands on /metrics, as vLLM tells it.
"""

import contextlib
import faulthandler
import http.server
import os
import pathlib
import signal
import sys
import threading
import time

directory = pathlib.Path(os.environ.get("ENGINE_DIRECTORY", "."))
lock, now, most, asked = threading.Lock(), 0, 0, 0


def told(name: str, default: str = "") -> str:
    with contextlib.suppress(OSError):
        return (directory / name).read_text().strip()
    return default


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        global now, most, asked
        with lock:
            now, asked = now + 1, asked + 1
            most = max(most, now)
            (directory / "most").write_text(str(most))
            with (directory / "asked").open("a") as file:
                file.write(self.path + "\n")
        time.sleep(float(told("delay", "0")))
        with lock:
            now -= 1
        metrics = self.path == "/metrics"
        body = (
            f'vllm:num_requests_running{{engine="0"}} {told("running", "0")}\n'
            f'vllm:generation_tokens_total{{engine="0"}} {told("tokens", "0")}\n'
        )
        if self.path == "/v1/models":
            body, metrics = '{"data": [{"id": "tiny"}]}', True
        with contextlib.suppress(OSError):
            self.send_response(200 if metrics else int(told("status", "200")))
            if self.path == "/v1/models":
                self.send_header("Content-Type", "application/json")
            self.end_headers()
            if metrics:
                self.wfile.write(body.encode())

    def do_POST(self) -> None:
        """A completion: a token, unless it hangs."""
        with (directory / "asked").open("a") as file:
            file.write(self.path + "\n")
        while told("stuck"):
            time.sleep(0.05)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    print("up", flush=True)
    while not told("status"):
        time.sleep(0.02)
    http.server.ThreadingHTTPServer.request_queue_size = 64
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.serve_forever()


main()
