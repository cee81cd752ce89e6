"""Runs in the image's own Python: asks Ray's GCS until it shows the expected nodes alive with their GPUs.

Usage: python ray_nodes.py ADDRESS '{"IP": GPUS, ...}'. Prints one JSON line at each change, exits 0 when all are there.
It is handed to `python -c`, so it imports nothing of lwsrun. Ray's token comes through the environment.
"""

# mypy: ignore-errors

import json
import sys
import time


def nodes_by_gcs(address):
    """GcsClient costs 1 ms a call and registers no job; it is private, hence the fallback."""
    from ray._raylet import GcsClient

    client = GcsClient(address=address)

    def ask():
        return {
            info.node_manager_address: info.resources_total.get("GPU", 0.0)
            for info in client.get_all_node_info(timeout=5).values()
            if info.state == 0
        }

    return ask


def nodes_by_driver(address):
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")

    def ask():
        return {node["NodeManagerAddress"]: node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]}

    return ask


def main(address, expected):
    ask, last = None, None
    while True:
        try:
            if ask is None:
                try:
                    ask = nodes_by_gcs(address)
                except (ImportError, AttributeError):
                    ask = nodes_by_driver(address)
            alive, error = ask(), None
        except Exception as problem:
            ask, alive, error = None, {}, f"{type(problem).__name__}: {problem}"[:300]
        seen = {"alive": alive, "error": error}
        if seen != last:
            print(json.dumps(seen), flush=True)
            last = seen
        if all(alive.get(ip, -1) >= gpus for ip, gpus in expected.items()):
            return
        time.sleep(0.1)


main(sys.argv[1], json.loads(sys.argv[2]))
