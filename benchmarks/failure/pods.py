"""One measured group: real pods whose PID 1 is the given command itself, a fault, and when and how each pod ended.

`python benchmarks/failure/pods.py TRIAL` reads a Trial as JSON and prints a Result as JSON. Started by failure.py.
The pods are those of `lwsrun simulate` (a network, PID, mount, UTS and IPC namespace each, on one bridge); nothing of
lwsrun runs in them unless it is the command. All is in one sandbox, which the kernel takes away with its first process.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launcher import exits, kernel
from launcher.simulate import namespaces

LOOK_EVERY = 0.02  # seconds between looks for ended pods
SETTLE = 5.0  # seconds between the first answer and the fault: the group is idle by then
PATIENCE = 20.0  # seconds for one request
STARVED, CYCLE = 0.05, 1.0  # a starved launcher runs for so many seconds of each cycle
BLIP, BLIP_EVERY = 5.0, 30.0
LOSS = 0.2
RECOVERY = 10.0  # seconds after a condition: what TCP held back in the last blip has arrived
BPF = {"x86_64": 321, "aarch64": 280}  # bpf(2)'s number
BPF_PROG_LOAD, BPF_PROG_TYPE_XDP, XDP_FLAGS_SKB_MODE = 5, 6, 2


@dataclass(frozen=True)
class Trial:
    """What is run. commands and environs: one a pod, by index. ask: the request that the leader must answer first.

    fault: rank, pod or link, of the pod `index`. rank_name: what the title of the process that holds a pod's part of
    the model contains. limit, start_limit: seconds. condition: what the group must outlive for `lasting` seconds before
    the fault.
    """

    directory: str
    commands: list[list[str]]
    environs: list[dict[str, str]]
    port: int
    path: str
    ask: str
    fault: str
    index: int
    rank_name: str
    limit: float
    start_limit: float
    condition: str = ""
    lasting: float = 0.0
    shm_bytes: int = 1 << 30

    # What launcher.simulate.namespaces asks of a simulation:

    def host(self, index: int) -> str:
        return f"pod-{index}"

    def ip(self, index: int, generation: int = 0) -> str:
        return address(index)

    def link(self, index: int, generation: int = 0) -> str:
        return f"pod{index}"

    def directory_of(self, index: int, generation: int = 0) -> Path:
        return Path(self.directory) / self.host(index)


@dataclass
class Result:
    """served: seconds until the first answer. ended: by index, the exit code and the seconds since the fault.

    lost: the pods that ended before there was any fault. error: why there is no measurement.
    """

    served: float = 0.0
    ended: dict[int, tuple[int, float]] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    error: str = ""


class Failed(Exception):
    """The trial could not be carried out; str() says why."""


def address(index: int) -> str:
    return f"10.244.0.{10 + index}"


class Group:
    """The pods of a trial, as the sandbox's first process sees them."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.size = len(trial.commands)
        self.init: list[int] = []  # the pid of each pod's PID 1, as seen from here
        self.holders: dict[int, int] = {}  # the process that waits for a pod's PID 1 -> the pod's index
        self.ended: dict[int, tuple[int, float]] = {}  # index -> exit code, time.monotonic()

    def start(self) -> None:
        for index in range(self.size):
            self.trial.directory_of(index).mkdir()
            told, tell = os.pipe()
            holder = os.fork()
            if holder == 0:
                os.close(told)
                self._hold(index, tell)
            os.close(tell)
            self.holders[holder] = index
            with os.fdopen(told) as reader:
                pid = reader.read()
            if not pid:
                raise Failed(f"pod {index} could not be made; see its log")
            self.init.append(int(pid))

    def _hold(self, index: int, tell: int) -> None:
        code = exits.ENDED_UNASKED
        try:
            kernel.die_with_parent()
            log = os.open(self.log(index), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            namespaces.enter_pod(self.trial, index, 0)  # type: ignore[arg-type]
            pid = os.fork()
            if pid == 0:
                self._become(index)
            os.write(tell, str(pid).encode())
            os.close(tell)
            code = exits.of_status(os.waitpid(pid, 0)[1])
        except BaseException as error:
            print(f"pod {index} cannot be made: {error!r}", file=sys.stderr, flush=True)
        os._exit(code)

    def _become(self, index: int) -> None:
        """As the pod's PID 1: exec the command, with the signals that a container runtime leaves."""
        try:
            kernel.die_with_parent()
            namespaces.furnish_pod(self.trial, index, 0)  # type: ignore[arg-type]
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
            environ = {**self.trial.environs[index], "HOSTNAME": self.trial.host(index), "TMPDIR": "/tmp"}
            os.environ.update(environ)  # execvpe looks the program up in the PATH of the caller
            os.execvpe(self.trial.commands[index][0], self.trial.commands[index], environ)
        except BaseException as error:
            print(f"pod {index} cannot run its command: {error!r}", file=sys.stderr, flush=True)
        os._exit(127)

    def log(self, index: int) -> str:
        return f"{self.trial.directory}/{self.trial.host(index)}.log"

    def look(self) -> None:
        """Note the pods that have ended, and reap whatever else is ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.holders:
                self.ended[self.holders[pid]] = (exits.of_status(status), time.monotonic())

    def wait(self, seconds: float) -> None:
        """Until every pod has ended, or so long."""
        deadline = time.monotonic() + seconds
        while len(self.ended) < self.size and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
            self.look()

    def serve(self) -> float:
        """Until the leader answers a real request; the seconds. Raises Failed."""
        begun = time.monotonic()
        while time.monotonic() - begun < self.trial.start_limit:
            self.look()
            if self.ended:
                raise Failed(f"pods ended before the group served: {self.ended}")
            if self.answers():
                return time.monotonic() - begun
            time.sleep(0.5)
        raise Failed(f"the group did not serve within {self.trial.start_limit:g} s")

    def answers(self) -> bool:
        request = urllib.request.Request(f"http://{address(0)}:{self.trial.port}{self.trial.path}")
        if self.trial.ask:
            request.data = self.trial.ask.encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return bool(response.status == 200)
        except (OSError, ValueError):
            return False

    def rank(self, index: int) -> psutil.Process:
        """The process that holds the pod's part of the model. Raises Failed."""
        titles = []
        for process in psutil.Process(self.init[index]).children(recursive=True):
            try:
                title = " ".join(process.cmdline()) or process.name()
            except psutil.Error:
                continue
            if self.trial.rank_name in title.split(" ")[0]:
                return process
            titles.append(title[:60])
        raise Failed(f"pod {index} has no {self.trial.rank_name!r} among {titles}")

    def break_it(self) -> None:
        index = self.trial.index
        match self.trial.fault:
            case "rank":
                self.rank(index).kill()
            case "pod":
                os.kill(self.init[index], signal.SIGKILL)  # the kernel ends a PID namespace with its PID 1
            case "link":
                namespaces.connect(self.trial.link(index), False)


def starve(group: Group, stop: threading.Event) -> None:
    """Every launcher runs for 5 % of the time, each at its own moments: worse than a cgroup's quota of 5 %."""

    def throttle(pid: int) -> None:
        while not stop.is_set():
            for number, seconds in ((signal.SIGSTOP, CYCLE - STARVED), (signal.SIGCONT, STARVED)):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    return
                time.sleep(seconds)

    throttles = [threading.Thread(target=throttle, args=(pid,)) for pid in group.init]
    for thread in throttles:
        thread.start()
        time.sleep(CYCLE / len(throttles))
    for thread in throttles:
        thread.join()


def blips(group: Group, stop: threading.Event) -> None:
    """The last pod's link drops everything for 5 s of every 30 s."""
    link = group.trial.link(group.size - 1)
    while not stop.wait(BLIP_EVERY - BLIP):
        namespaces.connect(link, False)
        time.sleep(BLIP)
        namespaces.connect(link, True)


def loss(group: Group, stop: threading.Event) -> None:
    """Of what each pod sends, every fifth packet is lost, by chance."""
    from pyroute2 import IPRoute

    program = lossy(LOSS)
    with IPRoute() as ip:

        def attach(descriptor: int) -> None:
            xdp = {"attrs": [["IFLA_XDP_FD", descriptor], ["IFLA_XDP_FLAGS", XDP_FLAGS_SKB_MODE]]}
            for index in range(group.size):
                for port in ip.link_lookup(ifname=group.trial.link(index)):
                    ip.link("set", index=port, xdp=xdp)

        attach(program)
        stop.wait()
        attach(-1)


CONDITIONS = {"starve": starve, "blips": blips, "loss": loss}


def lossy(share: float) -> int:
    """A loaded XDP program that drops packets by chance: netem is not in every kernel, this is. Source: bpf(2)."""

    def instruction(code: int, registers: int = 0, jump: int = 0, value: int = 0) -> bytes:
        return struct.pack("=BBhI", code, registers, jump, value)

    body = b"".join(
        (
            instruction(0x85, value=7),  # call bpf_get_prandom_u32
            instruction(0xBC, registers=0x01),  # w1 = w0
            instruction(0xB7, value=1),  # r0 = XDP_DROP
            instruction(0xA6, registers=0x01, jump=1, value=int(share * 2**32)),  # if w1 < …: to exit
            instruction(0xB7, value=2),  # r0 = XDP_PASS
            instruction(0x95),  # exit
        )
    )
    code, licence = ctypes.create_string_buffer(body), ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII",
        BPF_PROG_TYPE_XDP,
        len(body) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(BPF[platform.machine()], BPF_PROG_LOAD, attributes, len(attributes))
    if descriptor < 0:
        raise Failed(f"bpf(BPF_PROG_LOAD): {os.strerror(ctypes.get_errno())}")
    return int(descriptor)


def outlive(group: Group, result: Result) -> None:
    """Put the group under the trial's condition for its time. Raises Failed when the condition cannot be made."""
    stop, wrong = threading.Event(), []

    def apply() -> None:
        try:
            CONDITIONS[group.trial.condition](group, stop)
        except Exception as error:  # reported by the main thread
            wrong.append(error)

    thread = threading.Thread(target=apply)
    thread.start()
    group.wait(group.trial.lasting)
    stop.set()
    thread.join()
    if wrong:
        raise Failed(f"the condition {group.trial.condition} could not be made: {wrong[0]!r}")
    group.wait(RECOVERY)
    result.lost = sorted(group.ended)


def measure(trial: Trial) -> Result:
    result, group = Result(), Group(trial)
    try:
        group.start()
        result.served = group.serve()
        group.wait(SETTLE)
        if trial.condition:
            outlive(group, result)
            if result.lost:
                return result
        group.look()
        if group.ended:
            raise Failed(f"pods ended before the fault: {group.ended}")
        group.break_it()
        broken = time.monotonic()
        group.wait(trial.limit)
        result.ended = {index: (code, at - broken) for index, (code, at) in group.ended.items()}
    except (Failed, psutil.Error, OSError) as error:
        result.error = str(error) or repr(error)
    return result


def main(file: str) -> None:
    kernel.die_with_parent()
    trial = Trial(**json.loads(Path(file).read_text()))
    namespaces.enter_sandbox()
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        os._exit(0)
    kernel.die_with_parent()
    # Our own view of the processes is the sandbox's, so /proc must be too.
    kernel.unshare(namespaces.CLONE_NEWNS)
    kernel.mount("none", "/", flags=namespaces.MS_REC | namespaces.MS_PRIVATE)
    kernel.mount("proc", "/proc", "proc")
    namespaces.set_up_network()
    answer: dict[str, Any] = asdict(measure(trial))
    print(json.dumps(answer), flush=True)
    os._exit(0)  # the kernel ends what is left of the pods


if __name__ == "__main__":
    main(sys.argv[1])
