"""The sandbox's first process: network, DNS, the pods and their output. `python -m launcher.simulate.cluster SPEC`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import psutil

from backends.group import member_name
from launcher import exits, kernel
from launcher.kernel import Caught
from launcher.simulate import namespaces
from launcher.simulate.dns import serve_dns
from launcher.simulate.faults import MOMENTS
from launcher.simulate.publish import publish
from launcher.simulate.screen import Screen
from launcher.simulate.spec import GATEWAY, Fault, Spec, load
from launcher.supervisor import Child, Supervisor

POLL = 0.2  # seconds between looks at the leader's /group
RECREATE_GRACE = 40.0  # longer than any pod's own --drain-timeout by default
STOP_GRACE = 60.0  # pods end by their own --drain-timeout long before


class Cluster:
    """Plays the controller and the kubelet for one group."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.screen = Screen(spec)
        self.born = time.monotonic()
        self.supervisor = Supervisor(self.on_signal)
        self.pods: dict[int, Child] = {}
        self.ended: dict[int, tuple[int, float]] = {}
        self.moments: dict[str, asyncio.Event] = {name: asyncio.Event() for name in MOMENTS}
        self.state: dict[str, Any] = {}
        self.stopping = 0
        self.then_code: int | None = None
        self.tasks: list[asyncio.Task[None]] = []

    def age(self) -> float:
        return time.monotonic() - self.born

    async def run(self) -> int:
        """Until every pod has ended; the group's exit code."""
        spec = self.spec
        if spec.isolated:
            await serve_dns(GATEWAY, self.records)
        for index in range(spec.size):
            namespaces.pod_directory(spec, index).mkdir()
        for descriptor, port in spec.publish:
            await publish(descriptor, spec.ip(0), port)
        self.screen.say(
            f"{spec.size} pods, {'own namespaces each' if spec.isolated else 'plain processes on loopback'}"
        )
        late = {fault.index: fault.after for fault in spec.faults if fault.what == "late"}
        output = [
            asyncio.create_task(self.live_late(index, late[index])) if index in late else self.start_pod(index)
            for index in range(spec.size)
        ]
        self.moments["start"].set()
        self.background(self.observe())
        self.background(self.end_stragglers())
        for fault in spec.faults:
            if fault.what != "late":
                self.background(self.inject(fault))
        if spec.then is not None:
            self.background(self.run_then(spec.then))
        await asyncio.gather(*output)
        for task in self.tasks:
            task.cancel()
        self.screen.summary(self.ended)
        code = self.exit_code()
        self.keep_result(code)
        await self.supervisor.sweep(grace=0.2)
        return code

    def records(self) -> dict[str, str]:
        """As the headless Service publishes them: every pod that runs, ready or not."""
        return {self.spec.host(index): self.spec.ip(index) for index in self.pods if index not in self.ended}

    def start_pod(self, index: int) -> asyncio.Task[None]:
        argv = (sys.executable, "-m", "launcher.simulate.pod", f"{self.spec.directory}/spec.json", str(index))
        child = self.supervisor.spawn(self.spec.host(index), argv, dict(os.environ), merge=True)
        self.pods[index] = child
        return asyncio.create_task(self.follow(index, child))

    async def live_late(self, index: int, after: float) -> None:
        """A pod that is created late; never, when by then the others have ended or the group was deleted."""
        self.screen.say(f"fault: {member_name(index)} is not created before {after:g} s")
        while self.age() < after:
            if self.stopping or len(self.ended) == self.spec.size - 1:
                return
            await asyncio.sleep(0.05)
        await self.start_pod(index)

    async def follow(self, index: int, child: Child) -> None:
        """Show and keep a pod's output, line by line, until it ends."""
        assert child.stdout is not None
        kept: BinaryIO | None = None
        if self.spec.keep_logs:
            kept = (Path(self.spec.keep_logs) / f"{self.spec.host(index)}.log").open("wb")
        try:
            rest = b""
            while chunk := await child.stdout.read(1 << 16):
                if kept:
                    kept.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self.screen.show(index, line)
            if rest:
                self.screen.show(index, rest)
        finally:
            if kept:
                kept.close()
        code = await child.exited
        self.ended[index] = (code, self.age())
        self.screen.say(f"{member_name(index)} ({self.spec.host(index)}) {exits.describe(code)}")

    async def observe(self) -> None:
        """Follow the leader's /group; it is what people would watch too."""
        url = f"http://{self.spec.ip(0)}:{self.spec.port}/group"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
                    async with session.get(url) as response:
                        self.state = await response.json()
                        self.take_state()
                await asyncio.sleep(POLL)

    def take_state(self) -> None:
        reached = self.state.get("phases", {})
        self.screen.status(self.state, self.age())
        if "formed" in reached or self.spec.size == 1:
            self.moments["formed"].set()
        if "serving" in reached and not self.moments["serving"].is_set():
            self.moments["serving"].set()
            self.screen.table(self.state)

    async def inject(self, fault: Fault) -> None:
        await self.moments[fault.since].wait()
        await asyncio.sleep(fault.after)
        while (pid := self.pid_of(fault.index)) is None and fault.index not in self.ended:
            await asyncio.sleep(0.02)
        if pid is None or fault.index in self.ended:
            self.screen.say(f"fault {fault.what}:{fault.index}: the pod is not there")
            return
        launcher = psutil.Process(pid)
        # The kernel ends a PID namespace with its PID 1: killing that one is killing the pod.
        victims, number = {
            "kill": ([launcher], signal.SIGKILL),
            "kill-engine": (launcher.children(), signal.SIGKILL),
            "term": ([launcher], signal.SIGTERM),
            "freeze": ([launcher, *launcher.children(recursive=True)], signal.SIGSTOP),
        }[fault.what]
        self.screen.say(f"fault {fault.what}: {number.name} in the pod of {member_name(fault.index)}")
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.send_signal(number)

    def pid_of(self, index: int) -> int | None:
        """The pod's PID 1 as seen from here; the pod wrote it down."""
        try:
            return int((namespaces.pod_directory(self.spec, index) / "pid").read_text())
        except (OSError, ValueError):
            return None

    async def run_then(self, script: str) -> None:
        """When the group serves: the user's command, in the group's network; then the group is deleted."""
        await self.moments["serving"].wait()
        environ = {**self.spec.environ, "LEADER_IP": self.spec.ip(0), "LEADER_PORT": str(self.spec.port)}
        for index in self.pods:
            environ[f"POD_{index}_PID"] = str(self.pid_of(index) or "")
        self.screen.say(f"running: {script}")
        child = self.supervisor.spawn("then", ("/bin/sh", "-c", script), environ)
        self.then_code = await asyncio.shield(child.exited)
        self.screen.say(f"--then {exits.describe(self.then_code)}; deleting the group")
        self.stop()

    def on_signal(self, caught: Caught) -> None:
        if caught.number in (signal.SIGTERM, signal.SIGINT):
            self.stop()

    def stop(self) -> None:
        """As when the group is deleted: SIGTERM to every pod at once; the second time SIGKILL."""
        self.stopping += 1
        number = signal.SIGTERM if self.stopping == 1 else signal.SIGKILL
        self.screen.say(f"{number.name} to every pod")
        for index in self.pods:
            self.background(self.signal_pod(index, number))
        if self.stopping == 1:
            asyncio.get_running_loop().call_later(STOP_GRACE, self.stop)

    async def signal_pod(self, index: int, number: signal.Signals) -> None:
        """To the pod's PID 1, as soon as it has one."""
        while index not in self.ended:
            pid = self.pid_of(index)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                return
            await asyncio.sleep(0.02)

    async def end_stragglers(self) -> None:
        """As the controller recreates a group of which one pod has ended: a frozen pod would stay for ever."""
        while not self.ended:
            await asyncio.sleep(POLL)
        await asyncio.sleep(RECREATE_GRACE)
        left = [index for index in self.pods if index not in self.ended]
        self.screen.say(
            f"{RECREATE_GRACE:g} s after the first pod ended: SIGKILL to {', '.join(map(member_name, left))}"
        )
        for index in left:
            await self.signal_pod(index, signal.SIGKILL)

    def exit_code(self) -> int:
        """That of the pod that failed first of its own; 75 only when no pod owns the failure."""
        codes = [code for code, _ in sorted(self.ended.values(), key=lambda ended: ended[1])]
        own = [code for code in codes if code not in (exits.OK, exits.PEER_FAILED)]
        group = own[0] if own else max(codes, default=exits.OK)
        return group or self.then_code or exits.OK

    def keep_result(self, code: int) -> None:
        if not self.spec.keep_logs:
            return
        pods = []
        for index, (pod_code, at) in sorted(self.ended.items()):
            report = namespaces.pod_directory(self.spec, index) / "termination-log"
            pods.append(
                {
                    "index": index,
                    "host": self.spec.host(index),
                    "exit_code": pod_code,
                    "ended": round(at, 3),
                    "termination_message": report.read_text(errors="replace") if report.exists() else "",
                }
            )
        result = {
            "exit_code": code,
            "isolated": self.spec.isolated,
            "then": self.then_code,
            "group": self.state,
            "faults": self.screen.faults,
            "pods": pods,
        }
        (Path(self.spec.keep_logs) / "result.json").write_text(json.dumps(result, indent=2))

    def background(self, work: Any) -> None:
        self.tasks.append(asyncio.create_task(work))


async def simulate(spec: Spec) -> int:
    return await Cluster(spec).run()


def main(spec_file: str) -> None:
    kernel.die_with_parent()
    spec = load(Path(spec_file).read_text())
    if spec.isolated:
        # Our own view of the processes is the sandbox's, so /proc must be too.
        kernel.unshare(namespaces.CLONE_NEWNS)
        kernel.mount("none", "/", flags=namespaces.MS_REC | namespaces.MS_PRIVATE)
        kernel.mount("proc", "/proc", "proc")
        namespaces.set_up_network()
    code = asyncio.run(simulate(spec))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
