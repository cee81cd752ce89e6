"""How long a group takes to form, beside what Ray itself takes on the same machine in the same run.

    make bench

Each round, in simulated pods: (a) a group of N with no engine; (b) a group on Ray with the example server, until its
first answer; (c) plain `ray start --head` and a plain `ray start --address` one after the other, with nothing of ours.
Medians and ratios of the rounds; machines differ, so the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_completions.py"
SIMULATE = [sys.executable, "-m", "launcher", "simulate", "--isolation=namespaces"]
RAY = f"{sys.executable} -m ray.scripts.scripts start"
PLAIN = "--num-gpus=1 --object-store-memory=268435456 --disable-usage-stats"
FIRST_TOKEN = """
until curl -sf http://$LEADER_IP:8000/v1/completions -d '{"prompt": "x", "max_tokens": 1}' >/dev/null
do sleep 0.05; done
echo first-token-at $(date +%s.%N)
"""


def simulate(*options: str, command: list[str]) -> dict[str, Any]:
    """One simulation; its result.json with the times added that its output tells."""
    with tempfile.TemporaryDirectory() as directory:
        started = time.time()
        done = subprocess.run(
            [*SIMULATE, f"--keep-logs={directory}", *options, "--", *command], capture_output=True, text=True
        )
        result: dict[str, Any] = json.loads((Path(directory) / "result.json").read_text())
        for line in done.stdout.splitlines():
            if line.startswith("first-token-at "):
                result["first_token"] = float(line.split()[1]) - started
            if line.startswith(("Rss:", "Pss:")):
                result[line[:3].lower()] = int(line.split()[1]) / 1024
        return result


def formed(result: dict[str, Any]) -> float:
    """Seconds of the leader's life until all had joined."""
    return float(result["group"]["phases"]["formed"])


def plain_ray() -> tuple[float, float]:
    """Seconds of `ray start --head`, then of `ray start --address`, each in its own pod of a simulation."""
    script = f"""
    if [ {{index}} = 0 ]; then
      a=$(date +%s.%N); {RAY} --head --node-ip-address={{pod_ip}} {PLAIN} >/dev/null 2>&1
      echo head $(date +%s.%N) $a; touch $DONE/head; while [ ! -e $DONE/worker ]; do sleep 0.1; done
    else
      while [ ! -e $DONE/head ]; do sleep 0.1; done
      a=$(date +%s.%N); {RAY} --address={{leader_ip}}:6379 --node-ip-address={{pod_ip}} {PLAIN} >/dev/null 2>&1
      echo worker $(date +%s.%N) $a; touch $DONE/worker
    fi"""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as done, tempfile.TemporaryDirectory() as logs:
        argv = [*SIMULATE, "--size=2", f"--keep-logs={logs}", f"--env=DONE={done}", "--", "sh", "-c", script]
        subprocess.run(argv, capture_output=True, check=True)
        text = "".join(file.read_text() for file in sorted(Path(logs).glob("*.log")))
    times = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in ("head", "worker"):
            times[words[0]] = float(words[1]) - float(words[2])
    return times["head"], times["worker"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=3)
    options = parser.parse_args()
    size = f"--size={options.size}"
    memory = "--then=grep -E '^(Rss|Pss):' /proc/$POD_0_PID/smaps_rollup"
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for _ in range(options.rounds):
        bare = simulate(size, "--kind=server", memory, command=["sleep", "600"])
        note(f"group of {options.size} formed, no engine (s)", formed(bare))
        note("leader's launcher, RSS (MiB)", bare["rss"])
        note("leader's launcher, PSS (MiB)", bare["pss"])
        on_ray = ("--gpus-per-node=1", "--backend=ray", "--kind=server", f"--then={FIRST_TOKEN}")
        served = simulate(size, *on_ray, command=[sys.executable, str(EXAMPLE)])
        note(f"group of {options.size} on Ray: formed (s)", formed(served))
        note(f"group of {options.size} on Ray: Ray complete (s)", served["group"]["phases"]["serving"])
        note(f"group of {options.size} on Ray: first token, from the command (s)", served["first_token"])
        killed = simulate(size, "--kind=server", "--fault=kill:1@serving", command=["sleep", "600"])
        times = [pod["ended"] for pod in killed["pods"]]
        note("pod killed: the last other pod has ended after (s)", max(times) - times[1])
        head, worker = plain_ray()
        note("plain `ray start --head` (s)", head)
        note("plain `ray start --address` (s)", worker)
        note(
            "ratio: Ray complete with lwsrun / plain head + worker",
            served["group"]["phases"]["serving"] / (head + worker),
        )
    print(f"{options.rounds} rounds, median (min - max)")
    for name, values in rows.items():
        print(f"{name:62} {statistics.median(values):8.2f}  ({min(values):.2f} - {max(values):.2f})")


if __name__ == "__main__":
    main()
