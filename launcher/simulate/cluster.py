"""The sandbox's first process: network, DNS, the pods and their output. `python -m launcher.simulate.cluster SPEC`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from backends.group import member_name
from launcher import exits, kernel, ourselves
from launcher.kernel import Caught
from launcher.simulate import namespaces, policies
from launcher.simulate.dns import serve_dns
from launcher.simulate.faults.injection import Injector
from launcher.simulate.faults.previous import PreviousGroup
from launcher.simulate.life import Life
from launcher.simulate.observer import Observer
from launcher.simulate.publish import publish
from launcher.simulate.result import exit_code, keep
from launcher.simulate.screen import Screen
from launcher.simulate.spec import GATEWAY, LEADER_READY, RECREATE, RESTART, STOP, Spec, load
from launcher.supervisor import Supervisor

STRAGGLERS = 40.0  # longer than any pod's own --drain-timeout by default
STOP_GRACE = 60.0  # pods end by their own --drain-timeout long before


class Cluster:
    """Plays the controller and the kubelet for one group."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.born = time.monotonic()
        self.supervisor = Supervisor(self.on_signal)
        self.lives: list[Life] = []
        self.pods: dict[int, Life] = {}  # the newest life of each pod that was created
        self.screen = Screen(spec, self.pods)
        self.generation = 0
        self.deleted = -1  # the newest generation whose group is deleted: nothing of it is created any more
        self.observer = Observer(spec, self.screen, self.pods)
        self.injector = Injector(spec, self.screen, self.pods, self.observer.moments)
        self.previous: PreviousGroup | None = None
        self.stopping = 0
        self.then_code: int | None = None
        self.tasks: list[asyncio.Task[None]] = []

    def age(self) -> float:
        return time.monotonic() - self.born

    async def run(self) -> int:
        """Until every pod has ended for good; the group's exit code."""
        spec = self.spec
        if spec.isolated:
            await serve_dns(GATEWAY, self.records)
        for descriptor, port in spec.publish:
            await publish(descriptor, self.observer.leader_ip, port)
        for fault in spec.faults_of("stale-leader")[:1]:
            if self.stopping:
                break
            self.previous = PreviousGroup(spec, fault.lasts or 0.0, self.supervisor, self.screen, self.age)
            await self.previous.drain_with(self.background)
        self.screen.say(
            f"{spec.size} pods, {'own namespaces each' if spec.isolated else 'plain processes on loopback'}"
        )
        self.background(self.observer.watch_group())
        self.background(self.observer.probe_leader())
        for fault in list(self.injector.ahead):
            self.background(self.injector.inject(fault))
        for fault in spec.faults_of("late-dns"):
            self.screen.say(f"fault late-dns: no record of the leader until {fault.lasts:g} s after its start")
        if spec.then is not None:
            self.background(self.run_then(spec.then))
        while await self.live_one_generation():
            self.generation += 1
            self.screen.say(f"{RECREATE}: the group is recreated, with no backoff: generation {self.generation}")
        for task in self.tasks:
            task.cancel()
        self.injector.tell_rest()
        self.screen.summary(self.lives)
        code = exit_code(spec, self.lives, self.then_code)
        keep(spec, self.lives, code, self.then_code, self.observer.state, self.screen.faults)
        await self.supervisor.sweep(grace=0.2)
        return code

    # ------------------------------------------------------------------ the controller

    async def live_one_generation(self) -> bool:
        """Every pod of the group, until all have ended; whether the group is to be recreated."""
        spec, generation = self.spec, self.generation
        self.observer.leader_ready.clear()
        pods = [asyncio.create_task(self.live_pod(index, generation)) for index in range(spec.size)]
        await asyncio.sleep(0)  # each has had its turn: what is created at once is there
        self.observer.moments["start"].set()
        minders = {RECREATE: self.delete_when_one_ends, STOP: self.end_stragglers}
        minder = asyncio.create_task(minders.get(spec.restart_policy, self.first_end)(generation))
        await asyncio.gather(*pods)
        minder.cancel()
        if spec.restart_policy != RECREATE or self.stopping:
            return False
        if generation == spec.max_recreations:
            self.screen.say(f"recreated {generation} times (--max-recreations): the simulation ends")
            return False
        return True

    async def live_pod(self, index: int, generation: int) -> None:
        """One pod of a group, from its creation; with restarts of its container where the policy is None."""
        if not await self.may_be_created(index, generation):
            self.screen.say(f"{member_name(index)} was never created: its group had ended before")
            return
        restarts = in_a_row = 0
        while True:
            life = self.start(index, generation + restarts)
            await life.follow(self.screen.show)
            self.screen.say(f"{life.name} ({life.label}) {exits.describe(life.code or 0)}")
            if self.spec.restart_policy != RESTART or self.stopping:
                return
            if restarts == self.spec.max_recreations:
                self.screen.say(f"{life.name} was restarted {restarts} times (--max-recreations): the simulation ends")
                self.stop()
                return
            in_a_row = policies.restarts_that_count(in_a_row, self.age() - life.started)
            delay = policies.backoff(in_a_row)
            in_a_row, restarts = in_a_row + 1, restarts + 1
            self.screen.say(f"{life.name}: its container is restarted {f'in {delay:g} s' if delay else 'at once'}")
            if self.spec.isolated:
                await asyncio.to_thread(namespaces.remove_link, self.spec.link(index, life.generation))
            until = self.age() + delay
            while self.age() < until and not self.stopping:
                await asyncio.sleep(0.05)
            if self.stopping:
                return

    async def may_be_created(self, index: int, generation: int) -> bool:
        """Wait until the pod is to be created. False when by then it is not to be, because its group has ended."""
        if self.stopping:
            return False
        late = [fault for fault in self.spec.faults_of("late") if fault.index == index and generation == 0]
        due = 0.0
        for fault in late:
            self.screen.say(f"fault: {member_name(index)} is not created before {fault.since} + {fault.after:g} s")
            if not await self.unless_over(self.observer.moments[fault.since].is_set, generation):
                return False
            due = self.age() + fault.after
        if not await self.unless_over(lambda: self.age() >= due, generation):
            return False
        if index and self.spec.startup_policy == LEADER_READY:
            return await self.unless_over(self.observer.leader_ready.is_set, generation)
        return True

    async def unless_over(self, true: Callable[[], bool], generation: int) -> bool:
        """Wait until it is true; False when before that the group is deleted or all its pods have ended."""
        while not true():
            lives = [life for life in self.lives if life.generation == generation]
            ended = bool(lives) and not any(life.alive for life in lives) and self.spec.restart_policy != RESTART
            if self.stopping or self.deleted >= generation or ended:
                return False
            await asyncio.sleep(0.05)
        return True

    def start(self, index: int, generation: int) -> Life:
        spec = self.spec
        spec.directory_of(index, generation).mkdir()
        connected = int(self.injector.connected(spec.ip(index, generation)))
        numbers = (f"{index}", f"{generation}", f"{connected}")
        argv = ourselves.command("launcher.simulate.pod", f"{spec.directory}/spec.json", *numbers)
        child = self.supervisor.spawn(spec.host(index), argv, dict(os.environ), merge=True)
        life = Life(spec, index, generation, child, self.age)
        if index in self.pods:
            self.injector.tell_of_new(life, self.pods[index])
        self.pods[index] = life
        self.lives.append(life)
        return life

    async def delete_when_one_ends(self, generation: int) -> None:
        """As the controller recreates a group: one container has ended, with whatever code, and all pods are deleted.

        The leader pod is deleted with foreground propagation, so that all get SIGTERM at about the same time.
        """
        group = await self.first_end(generation)
        if self.stopping:
            return
        self.deleted = generation
        first = next(life for life in group if not life.alive)
        self.screen.say(f"{RECREATE}: {first.name} has ended: SIGTERM to every pod of the group")
        for life in group:
            self.background(life.signal(signal.SIGTERM))
        await asyncio.sleep(policies.GRACE)
        self.kill(generation, policies.GRACE)

    async def end_stragglers(self, generation: int) -> None:
        """Nobody recreates the group: a frozen pod would stay for ever when the others have ended."""
        await self.first_end(generation)
        await asyncio.sleep(STRAGGLERS)
        self.kill(generation, STRAGGLERS)

    async def first_end(self, generation: int) -> list[Life]:
        """Wait until a pod of the group has ended; all that were created."""
        while True:
            group = [life for life in self.lives if life.generation == generation]
            if not all(life.alive for life in group):
                return group
            await asyncio.sleep(0.05)

    def kill(self, generation: int, after: float) -> None:
        left = [life for life in self.lives if life.generation == generation and life.alive]
        if left:
            self.screen.say(
                f"{after:g} s after the first pod ended: SIGKILL to {', '.join(life.name for life in left)}"
            )
        for life in left:
            self.background(life.signal(signal.SIGKILL))

    # ------------------------------------------------------------------ what is seen from outside

    def records(self) -> dict[str, str]:
        """As the headless Service publishes them: every pod that there is, ready or not."""
        records = {}
        for index, life in self.pods.items():
            # A pod whose container is restarted is still there.
            if (life.alive or (self.spec.restart_policy == RESTART and not self.stopping)) and not self.hidden(life):
                records[self.spec.host(index)] = life.ip
        return records | (self.previous.records() if self.previous else {})

    def hidden(self, life: Life) -> bool:
        """Whether late-dns keeps the record back: from the pod's own start, whatever its container does."""
        late = next((fault.lasts or 0.0 for fault in self.spec.faults_of("late-dns")), 0.0)
        created = min(other.started for other in self.lives if other.ip == life.ip)
        return life.index == 0 and self.age() < created + late

    # ------------------------------------------------------------------ what is done to the group

    async def run_then(self, script: str) -> None:
        """When the group serves: the user's command, in the group's network; then the group is deleted."""
        await self.observer.moments["serving"].wait()
        environ = {**self.spec.environ, "LEADER_IP": self.observer.leader_ip(), "LEADER_PORT": str(self.spec.port)}
        for index, life in self.pods.items():
            environ[f"POD_{index}_PID"] = str(life.pid() or "")
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
        for life in self.pods.values():
            self.background(life.signal(number))
        if self.previous is not None:
            self.previous.kill(self.background)
        if self.stopping == 1:
            asyncio.get_running_loop().call_later(STOP_GRACE, self.stop)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
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
