"""How a group of a real engine ends after a failure: under lwsrun, and the ways that people run it today.

    make bench-failure                                   # as root on Linux; about an hour on 2 cores
    make bench-failure FAILURE="--systems lwsrun-vllm script-vllm --faults link:1"
    make bench-failure FAILURE="--no-false-deaths 10"    # the other side of the coin, by itself

Systems:

* lwsrun-vllm, lwsrun-sglang: `lwsrun start -- …` with its defaults. vLLM on Ray, SGLang on every pod.
* script-vllm: `sh -c` around the logic of the public multi-node script and `vllm serve` on Ray (failure/multi_node.sh).
* plain-sglang: `python -m sglang.launch_server` itself with its multi-node flags, nothing around it.

Faults, each in a new group that has answered one request and is idle since 5 s:

* rank:I    SIGKILL to the process that holds pod I's part of the model, as when it crashes or is out of memory
* pod:I     SIGKILL to pod I's first process: the kernel ends everything in the pod, its sockets are closed
* link:I    pod I's link drops everything, silently and for good, as when a node or a switch is gone

Measured is the time from the fault until every pod has ended of itself, at most --limit; "runs" is a pod that had not
ended by then. In a LeaderWorkerSet the first end of a pod makes the controller delete the others (SIGTERM, then SIGKILL
after the grace), hence the column "first": where nobody ends, nothing is recreated either. The exit code is what the
pod shows to people and to their alerts: 0 says "Completed". After link:I the pod behind the link can only judge for
itself.

Like for like: the same pods (made by failure/pods.py, each with its own namespaces and address), the same engine,
model, Python and flags, the same clock, the same process killed. The command of each system is the pod's PID 1.
Not like for like: lwsrun adds Ray settings of its own, which end a Ray node sooner after its head is gone;
script-vllm has Ray's defaults, as the script leaves them. The ranks talk gloo over TCP on the CPU: with NCCL on GPUs
a broken connection is seen later or not at all, and memory takes longer to free. No kubelet acts on probes here: a
liveness probe on the engine's health may end a leader that this table shows as running. Times depend on the machine and
its load: the ratios, and who ends at all, are what to compare.

--no-false-deaths MINUTES: a group whose engine is `sleep`, under lwsrun, must outlive so many minutes of each of

* starve    every launcher is stopped (SIGSTOP) for 95 % of the time, each at its own moments
* blips     a pod's link drops everything for 5 s of every 30 s
* loss      every fifth packet is lost, by chance, in both directions

and then a cut of the link for good must be noticed. The three run at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
PODS = HERE / "failure" / "pods.py"
SCRIPT = HERE / "failure" / "multi_node.sh"
MAKE_MODEL = HERE.parent / "examples" / "make_tiny_model.py"
START = [sys.executable, "-m", "launcher", "start"]
FAULTS = ("rank:0", "rank:1", "pod:1", "link:1")
FAULT = re.compile(r"(rank|pod|link):(\d)", re.ASCII)
CONDITIONS = ("starve", "blips", "loss")
CUT = 100  # characters of the leader's last line
RUNS = "runs"
DRESS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|^\[[^\]]*\] ", re.MULTILINE)  # colours; a time and a name before a line
ASK = json.dumps({"model": "tiny", "prompt": "Hello", "max_tokens": 4})
ON_CPU = {
    "vllm": {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Without a GPU, Ray is told of one; its object store is not used.
        "RAY_FLAGS": "--num-gpus=1 --object-store-memory=268435456 --disable-usage-stats",
    },
    "sglang": {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(8)),
    },
}
PORT = {"vllm": 8000, "sglang": 30000}
RANK = {"vllm": "RayWorkerProc", "sglang": "sglang::scheduler"}


def leader_ip() -> str:
    return pod_ip(0)


def pod_ip(index: int) -> str:
    return f"10.244.0.{10 + index}"


@dataclass(frozen=True)
class Engine:
    """An engine's environment: its directory of programs, and the model that it serves."""

    name: str
    bin: Path
    model: Path

    def vllm(self, size: int) -> list[str]:
        return [
            str(self.bin / "vllm"), "serve", str(self.model), "--served-model-name", "tiny", "--max-model-len", "256",
            "--enforce-eager", "--tensor-parallel-size", str(size), "--distributed-executor-backend", "ray",
        ]  # fmt: skip

    def sglang(self, size: int) -> list[str]:
        return [
            str(self.bin / "python"), "-m", "sglang.launch_server", "--model-path", str(self.model),
            "--served-model-name", "tiny", "--device", "cpu", "--host", "0.0.0.0", "--port", str(PORT["sglang"]),
            "--disable-overlap-schedule", "--max-total-tokens", "2048", "--max-running-requests", "4",
            "--context-length", "256", "--skip-server-warmup", "--tp", str(size),
        ]  # fmt: skip


Commands = Callable[[Engine, int, int], list[str]]  # engine, size, index -> the pod's command


def lwsrun_vllm(engine: Engine, size: int, index: int) -> list[str]:
    return [*START, "--gpus-per-node=1", "--", *engine.vllm(size)]


def lwsrun_sglang(engine: Engine, size: int, index: int) -> list[str]:
    return [*START, "--gpus-per-node=1", "--", *engine.sglang(size)]


def script_vllm(engine: Engine, size: int, index: int) -> list[str]:
    if index:
        return ["sh", "-c", f"sh {SCRIPT} worker {leader_ip()}"]
    return ["sh", "-c", f"sh {SCRIPT} leader {size}; {' '.join(engine.vllm(size))}"]


def plain_sglang(engine: Engine, size: int, index: int) -> list[str]:
    place = ["--nnodes", str(size), "--node-rank", str(index), "--dist-init-addr", f"{leader_ip()}:20000"]
    return [*engine.sglang(size), *place]


SYSTEMS: dict[str, tuple[str, Commands]] = {
    "lwsrun-vllm": ("vllm", lwsrun_vllm),
    "script-vllm": ("vllm", script_vllm),
    "lwsrun-sglang": ("sglang", lwsrun_sglang),
    "plain-sglang": ("sglang", plain_sglang),
}


@dataclass
class Row:
    """One system under one fault, over the rounds. Times in seconds; None: not every pod ended."""

    fault: str
    system: str
    first: list[float | None] = field(default_factory=list)
    last: list[float | None] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    said: str = ""
    errors: list[str] = field(default_factory=list)

    def note(self, result: dict[str, Any], size: int, said: str) -> None:
        if result["error"]:
            self.errors.append(result["error"])
            return
        ended = {int(index): (code, at) for index, (code, at) in result["ended"].items()}
        times = [at for _, at in ended.values()]
        self.first.append(min(times, default=None))
        self.last.append(max(times) if len(ended) == size else None)
        self.codes.append(" ".join(str(ended[index][0]) if index in ended else RUNS for index in range(size)))
        self.said = said

    def total(self, limit: float) -> float | None:
        """The median; a round that did not end counts as longer than any. None: it is longer than the limit."""
        value = statistics.median([limit * 2 if at is None else at for at in self.last]) if self.last else None
        return value if value is not None and value <= limit else None


def environ_of(engine: str, programs: Path, size: int, index: int) -> dict[str, str]:
    """What a pod's manifest and the LWS webhook would set; the same for every system."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LWS", "RAY_", "VLLM_"))}
    return {
        **kept,
        "PATH": f"{programs}:{kept.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
        "VLLM_HOST_IP": pod_ip(index),
        "LWS_LEADER_ADDRESS": leader_ip(),
        "LWS_GROUP_SIZE": str(size),
        "LWS_WORKER_INDEX": str(index),
        "LWSRUN_TERMINATION_LOG": "/tmp/termination-log",
        **ON_CPU.get(engine, {}),
    }


@dataclass(frozen=True)
class Running:
    """A trial that is under way in its sandbox."""

    process: subprocess.Popen[str]
    directory: Path
    size: int

    def finish(self, keep: str | None, name: str) -> tuple[dict[str, Any], list[str]]:
        """Wait for the result; with it what each pod's log says. keep: where both are to be kept, under that name."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        result = json.loads(line) if line else {"error": "the sandbox ended without a result", "ended": {}, "lost": []}
        logs = [self.directory / f"pod-{index}.log" for index in range(self.size)]
        texts = [log.read_text(errors="replace") if log.exists() else "" for log in logs]
        if keep:
            Path(keep).mkdir(parents=True, exist_ok=True)
            (Path(keep) / f"{name}.json").write_text(json.dumps(result))
            for index, text in enumerate(texts):
                (Path(keep) / f"{name}-pod{index}.log").write_text(text)
        return result, texts


@contextmanager
def running(options: argparse.Namespace, **trial: Any) -> Iterator[Running]:
    """The sandbox of a trial. At the end, however it comes, nobody and nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="lwsrun-bench-", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        file = Path(directory) / "trial.json"
        limits = {"limit": options.limit, "start_limit": options.start_limit}
        file.write_text(json.dumps({**trial, **limits, "directory": directory}))
        # A session of its own: Ctrl-C comes to us alone, and what we do then is the same as at every end.
        with subprocess.Popen(
            [sys.executable, str(PODS), str(file)], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stdout is not None
            try:
                yield Running(process, Path(directory), len(trial["commands"]))
            finally:
                process.kill()
                process.stdout.read()  # its end of file: the sandbox's first process is gone, and with it the pods


def last_line(text: str) -> str:
    lines = [line.strip() for line in DRESS.sub("", text).splitlines() if line.strip()]
    return lines[-1][:CUT] if lines else ""


def measure(options: argparse.Namespace, engines: dict[str, Engine], fault: str, system: str) -> Row:
    row, (name, commands) = Row(fault, system), SYSTEMS[system]
    engine, (what, index) = engines[name], fault.split(":")
    for number in range(options.rounds):
        with running(
            options,
            commands=[commands(engine, options.size, pod) for pod in range(options.size)],
            environs=[environ_of(name, engine.bin, options.size, pod) for pod in range(options.size)],
            port=PORT[name],
            path="/v1/completions",
            ask=ASK,
            fault=what,
            index=int(index),
            rank_name=RANK[name],
        ) as trial:
            result, logs = trial.finish(options.keep_logs, f"{system}-{what}{index}-{number}")
        row.note(result, options.size, last_line(logs[0]))
        told = result["error"] or f"ended: {result['ended'] or 'nobody'}"
        print(f"  {system}, {fault}, round {number + 1}: {told}", file=sys.stderr, flush=True)
    return row


def seconds(values: list[float | None], limit: float) -> str:
    if not values:
        return "-"
    middle = statistics.median([limit * 2 if value is None else value for value in values])
    return f"{middle:.1f}" if middle <= limit else f"> {limit:.0f}"


def print_table(rows: list[Row], options: argparse.Namespace) -> None:
    width = max(12, *(len(row.codes[0]) for row in rows if row.codes), 0)
    print(
        f"\n{options.size} pods, {options.rounds} rounds, medians; seconds since the fault; limit {options.limit:g} s\n"
    )
    print(f"{'fault':8} {'system':14} {'all ended':>9} {'first':>7}  {'exit codes':{width}}  the leader's last line")
    for row in rows:
        if not row.last:
            print(f"{row.fault:8} {row.system:14} not measured: {row.errors[0][:CUT] if row.errors else ''}")
            continue
        total, first = seconds(row.last, options.limit), seconds(row.first, options.limit)
        codes = " / ".join(dict.fromkeys(row.codes))
        print(f"{row.fault:8} {row.system:14} {total:>9} {first:>7}  {codes:{width}}  {row.said}")
    print("\nuntil all had ended, as a multiple of lwsrun's with the same engine")
    ours = {(row.fault, SYSTEMS[row.system][0]): row for row in rows if row.system.startswith("lwsrun")}
    for row in rows:
        base = ours.get((row.fault, SYSTEMS[row.system][0]))
        if base is None or row.system.startswith("lwsrun") or not row.last:
            continue
        ours_took, took = base.total(options.limit), row.total(options.limit)
        if ours_took is None:
            ratio = "lwsrun's did not end"
        else:
            ratio = f"{took / ours_took:.1f}" if took is not None else f"> {options.limit / ours_took:.0f}"
        print(f"{row.fault:8} {row.system:14} {ratio:>9}")


def no_false_deaths(options: argparse.Namespace) -> int:
    """The group under each condition, all at the same time. 1 when a member was lost or a cut not seen, else 0."""
    size, minutes = options.size, options.no_false_deaths
    sleep = [*START, "--gpus-per-node=0", "--backend=generic", "--kind=server", "--", "sleep", "86400"]
    environs = [environ_of("", Path(sys.executable).parent, size, pod) for pod in range(size)]
    cut = {"fault": "link", "index": size - 1, "rank_name": "", "lasting": minutes * 60.0}
    serving = {"commands": [sleep] * size, "environs": environs, "port": 9470, "path": "/readyz", "ask": ""}
    with ExitStack() as stack:
        trials = {name: stack.enter_context(running(options, condition=name, **serving, **cut)) for name in CONDITIONS}
        outcomes = {name: trial.finish(options.keep_logs, name) for name, trial in trials.items()}
    print(f"\n{size} pods under lwsrun, {minutes:g} minutes of each condition, then a cut of the link for good\n")
    print(f"{'condition':10} {'members lost':>12} {'cut noticed (s)':>16}  exit codes after the cut, or what was said")
    lost, noticed = 0, []
    for condition, (result, logs) in outcomes.items():
        if result["error"]:
            print(f"{condition:10} not measured: {result['error'][:CUT]}")
            lost += 1
            continue
        lost += len(result["lost"])
        ended = {int(index): pod for index, pod in result["ended"].items()}
        codes = " ".join(str(ended[index][0]) if index in ended else RUNS for index in range(size))
        if result["lost"]:
            print(f"{condition:10} {len(result['lost']):>12} {'-':>16}  {last_line(logs[0])}")
            continue
        took = max(at for _, at in ended.values()) if len(ended) == size else None
        if took is not None:
            noticed.append(took)
        print(f"{condition:10} {0:>12} {seconds([took], options.limit):>16}  {codes}")
    if not lost and noticed:
        print(
            f"\nBoth together: a link that was gone for good ended the group within {max(noticed):.0f} s, and nobody"
            f"\nwas declared dead in {minutes:g} minutes each of starved, blinking and lossy pods. A timeout near the"
            "\nlength of the blips would win seconds in the first and lose the second; without one nobody would notice."
        )
    return 0 if len(noticed) == len(CONDITIONS) else 1


def missing(options: argparse.Namespace) -> str | None:
    """Why nothing can be measured here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "only root on Linux may make the pods: run it as root"
    if options.no_false_deaths is not None:
        return None
    for name in {SYSTEMS[system][0] for system in options.systems}:
        directory = getattr(options, name)
        if directory is None or not (directory / "bin").is_dir():
            return f"no {name} at --{name} {directory}: run `make bench-failure`"
    return None


def make_engines(options: argparse.Namespace, directory: str) -> dict[str, Engine]:
    """The engines that are asked for, each with a model whose heads can be shared by the pods."""
    engines = {}
    for name in sorted({SYSTEMS[system][0] for system in options.systems}):
        programs: Path = getattr(options, name) / "bin"
        model = programs.parent / "tiny-llama"
        if 4 % options.size:
            model = Path(directory) / name
            made = [str(programs / "python"), str(MAKE_MODEL), str(model), "--heads", str(2 * options.size)]
            subprocess.run(made, check=True, capture_output=True)
        engines[name] = Engine(name, programs, model)
    return engines


def stop(number: int, _: object) -> NoReturn:
    """SystemExit, so that what is under way is taken down; of what a shell expects."""
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=2, help="pods (default 2)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds after the fault (default 180)")
    parser.add_argument("--start-limit", type=float, default=600.0, help="seconds for a group to serve (default 600)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), metavar="FAULT", help="rank:I, pod:I, link:I")
    parser.add_argument("--vllm", type=Path, help="vLLM's environment, with Ray")
    parser.add_argument("--sglang", type=Path, help="SGLang's environment")
    parser.add_argument("--no-false-deaths", type=float, metavar="MINUTES", help="measure that instead")
    parser.add_argument("--keep-logs", metavar="DIRECTORY", help="keep the pods' logs and the results there")
    options = parser.parse_args()
    if options.size < 2:
        parser.error("a group of one has no peers: --size 2 or more")
    if options.no_false_deaths is not None and options.no_false_deaths < 1:
        parser.error("--no-false-deaths: 1 or more, else there is no blip in it")
    for fault in options.faults:
        found = FAULT.fullmatch(fault)
        if found is None or int(found[2]) >= options.size:
            parser.error(f"--faults {fault}: rank:I, pod:I or link:I, with I below --size")
    if reason := missing(options):
        sys.exit(reason)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if options.no_false_deaths is not None:
        return no_false_deaths(options)
    with tempfile.TemporaryDirectory(prefix="lwsrun-bench-", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        engines = make_engines(options, directory)
        rows = [measure(options, engines, fault, system) for fault in options.faults for system in options.systems]
    print_table(rows, options)
    return 1 if any(row.errors for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
