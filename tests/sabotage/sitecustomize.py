"""Switches one mechanism of the launcher off, to prove that the test of that mechanism can fail.

Python imports this module at start-up when its directory is on PYTHONPATH; only launchers are touched.
"""

import os
import sys


def peer_loss() -> None:
    """The leader does not notice that a member's connection has closed."""
    from launcher.channel import leader

    leader.MemberLost = lambda *_: None  # type: ignore[misc,assignment]


def leader_loss() -> None:
    """A worker does not notice that the leader's connection has closed."""
    from launcher.channel import member

    member.LeaderLost = lambda *_: None  # type: ignore[misc,assignment]


def told_to_stop() -> None:
    """The leader tells nobody that the group stops."""
    from launcher.channel.leader import LeaderSide
    from launcher.channel.messages import Stop

    tell_all = LeaderSide.tell_all

    async def silent(self: LeaderSide, message: object) -> None:
        if not isinstance(message, Stop):
            await tell_all(self, message)  # type: ignore[arg-type]

    LeaderSide.tell_all = silent  # type: ignore[method-assign,assignment]


def exit_zero_is_fine() -> None:
    """A server that ends with 0 is taken for a success."""
    from launcher import exits

    exits.ENDED_UNASKED = 0


def raylet_watch() -> None:
    """Nobody watches what `ray start --block` stands for."""
    from launcher import lifecycle

    async def blind(*_: object) -> None:
        return

    lifecycle.watch_helpers = blind  # type: ignore[assignment]


def rank_watch() -> None:
    """Nobody watches the engine's own processes."""
    from launcher.lifecycle import Pod

    Pod.watch_ranks = lambda *_: None  # type: ignore[method-assign]


def rank_names() -> None:
    """A process that has its parent's name is taken for a rank."""
    import psutil

    psutil.Process.parent = lambda self: psutil.Process(1)  # type: ignore[method-assign]


def last_word() -> None:
    """A member starts anew without waiting for the leader's last word."""
    from launcher.drain import Drain

    async def parts(self: Drain, member: object, ending: object) -> object:
        await member.close()  # type: ignore[attr-defined]
        return ending

    Drain.leave_leader = parts  # type: ignore[method-assign,assignment]


def silence() -> None:
    """No peer is ever silent for too long."""
    import asyncio

    from launcher.channel.wire import Wire

    async def patient(self: Wire) -> None:
        await asyncio.Event().wait()

    Wire.keep_alive = patient  # type: ignore[method-assign]


def command_digest() -> None:
    """Commands are not compared."""
    from launcher import formation

    formation.digest = lambda _: "same"


def sweep() -> None:
    """What the engine leaves behind is not ended."""
    from launcher.supervisor import Supervisor

    async def idle(self: Supervisor, *_: object) -> list[str]:
        return []

    Supervisor.sweep = idle  # type: ignore[method-assign,assignment]


def failure_hold() -> None:
    """A configuration error ends the pod at once."""
    from launcher.drain import Drain

    async def none(self: Drain) -> None:
        return

    Drain.hold = none  # type: ignore[method-assign]


def slow_words() -> None:
    """The end of a process is told only when its last output has been read."""
    from launcher import lifecycle

    lifecycle.WORDS = 5.0


def killing_is_clean() -> None:
    """That a process had to be killed is not told."""
    from launcher.supervisor import Supervisor

    stop = Supervisor.stop

    async def forgetful(self: Supervisor, *arguments: object) -> bool:
        await stop(self, *arguments)  # type: ignore[arg-type]
        return True

    Supervisor.stop = forgetful  # type: ignore[method-assign,assignment]


def kept_signals() -> None:
    """A signal that comes before the engine is forwarded the moment that it is there."""
    from launcher import supervisor

    supervisor.takes = lambda *_: True


def reaping() -> None:
    """Only our own child is waited for; orphans are not."""
    from launcher import exits
    from launcher.supervisor import Supervisor

    def own(self: Supervisor) -> None:
        for pid, child in list(self._children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._children[pid]
                child.exited.set_result(exits.of_status(status))

    Supervisor._reap = own  # type: ignore[method-assign]


def asking_again() -> None:
    """An engine is taken to have heard the first SIGTERM."""
    from launcher import drain

    async def always(_: object) -> bool:
        return True

    drain.accepts = always  # type: ignore[assignment]


def asking_alone() -> None:
    """The whole process group is asked to end."""
    from launcher.supervisor import Supervisor

    ask = Supervisor._ask
    Supervisor._ask = lambda self, child, alone: ask(self, child, False)  # type: ignore[method-assign]


def restarting() -> None:
    """The leader grants no restart."""
    from launcher.restarts import Restarts

    Restarts.left = False  # type: ignore[assignment]


def clean_shared_memory() -> None:
    """What the engine leaves in /dev/shm stays."""
    from launcher import restarts

    restarts.remove_new = lambda _: []


def waiting_for_requests() -> None:
    """An engine is asked to stop whatever it still answers."""
    from launcher import in_flight

    async def unknown(_: object) -> None:
        return None

    in_flight.look = unknown


def broken_launcher() -> None:
    """The launcher itself fails."""
    from launcher import lifecycle

    def fail(*_: object) -> None:
        raise RuntimeError("sabotage")

    lifecycle.judge = fail  # type: ignore[assignment]


def parent_death() -> None:
    """The kernel is not told that the engine dies with its launcher."""
    from launcher import kernel

    kernel.die_with_parent = lambda: None


def leaving() -> None:
    """The leader does not hear that a member was asked to stop."""
    from launcher.channel import leader

    leader.MemberLeaving = lambda *_: None  # type: ignore[misc,assignment]


def gather_timeout() -> None:
    """No deadline for gathering."""
    from dataclasses import replace

    from launcher import lifecycle

    live = lifecycle.live

    async def patient(settings: lifecycle.Settings) -> int:
        return await live(replace(settings, gather_timeout=None))

    lifecycle.live = patient


def token() -> None:
    """The token is read and not used."""
    from dataclasses import replace

    from launcher import lifecycle

    live = lifecycle.live

    async def open_to_all(settings: lifecycle.Settings) -> int:
        return await live(replace(settings, token=None))

    lifecycle.live = open_to_all


def certificates() -> None:
    """TLS encrypts, but nobody has to prove anything."""
    import ssl

    from launcher.channel import tls

    make = tls._context

    def trusting(role: int, *keys: bytes) -> ssl.SSLContext:
        context = make(role, *keys)
        context.verify_mode = ssl.CERT_NONE
        return context

    tls._context = trusting


def stranger_limits() -> None:
    """Whoever connects may stay, and send, as long and as much as he likes."""
    from launcher.channel import port

    for_ever = 86400.0
    none = port.Limits(10**6, 10**6, for_ever, for_ever, 10**9, 10**9)
    port.limits_for = lambda _: none


def mismatch_timeout() -> None:
    """A worker that is configured differently asks for ever."""
    from launcher.channel.member import MemberSide

    MemberSide._count_mismatch = lambda *_: None  # type: ignore[method-assign]


def comparing() -> None:
    """The leader compares nothing."""
    from launcher.channel import agreement

    agreement.differences = lambda *_: []


def resolving_anew() -> None:
    """The leader's name is resolved once."""
    from launcher import resolver

    resolve, known = resolver.resolve, {}

    async def remember(host: str, port: int) -> list[str]:
        if host not in known:
            known[host] = await resolve(host, port)
        return known[host]

    resolver.resolve = remember


def asking_soon() -> None:
    """Whoever was not let in, or found no leader, asks again a minute later."""
    from launcher.channel import member

    member.SOON = lambda _: 60.0  # type: ignore[assignment,misc]


def every_address() -> None:
    """Only the first address of the leader's name is tried."""
    from launcher import resolver

    resolve = resolver.resolve

    async def first(host: str, port: int) -> list[str]:
        return (await resolve(host, port))[:1]

    resolver.resolve = first


def server_watch() -> None:
    """Over MPI nobody watches the process that answers requests."""
    from launcher.mpi import server

    async def blind(*_: object) -> None:
        return

    server.watch = blind


def engine_health() -> None:
    """Whatever an engine answers, it is taken to serve."""
    from launcher.health import EngineHealth

    EngineHealth.why_not = lambda _: None  # type: ignore[method-assign]


def loading() -> None:
    """An engine is taken to serve from its start."""
    from launcher import lifecycle

    async def at_once(pod: lifecycle.Pod, *_: object) -> None:
        pod.enter("serving")

    lifecycle.load = at_once


def culprit() -> None:
    """Nobody looks for the pod whose process stands still."""
    from launcher import hang

    hang.culprit = lambda _: None


def inspection() -> None:
    """To look at a hung engine's processes goes wrong."""
    from launcher import stacks

    async def fail(*_: object) -> str:
        raise RuntimeError("sabotage")

    stacks.inspect = fail


def asking_before_mpirun() -> None:
    """mpirun is asked to end before the server, or the ranks of a job."""
    from launcher.mpi import ending

    async def skip(*_: object) -> None:
        return

    ending.ask_first = skip


if os.environ.get("LWSRUN_TEST_SABOTAGE") and " -m launcher start" in " ".join(sys.orig_argv[:5]):
    globals()[os.environ["LWSRUN_TEST_SABOTAGE"]]()


def wrong_values() -> None:
    """What this rank of a smoke run gives to an all-gather is not what it should be."""
    import torch.distributed as dist

    gather = dist.all_gather
    dist.all_gather = lambda got, mine: gather(got, mine + 1)


def wrong_sums() -> None:
    """So is what it gives to an all-reduce, when that is large."""
    import torch.distributed as dist

    reduce = dist.all_reduce

    def wrong(mine: object) -> None:
        if mine.numel() > 1000:  # type: ignore[attr-defined]
            mine[1000] += 1  # type: ignore[index]
        reduce(mine)

    dist.all_reduce = wrong


def stops() -> None:
    """This rank of a smoke run stops in the middle of it."""
    import signal

    import torch.distributed as dist

    dist.barrier = lambda: os.kill(os.getpid(), signal.SIGSTOP)


def dies() -> None:
    """This rank of a smoke run dies in the middle of it."""
    import signal

    import torch.distributed as dist

    dist.barrier = lambda: os.kill(os.getpid(), signal.SIGKILL)


# A pod's children do not see variables of the launcher's.
if os.environ.get("TEST_SMOKE_SABOTAGE") and os.environ.get("RANK") == "1":
    globals()[os.environ["TEST_SMOKE_SABOTAGE"]]()
