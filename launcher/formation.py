"""How a pod and its group find each other: the port, the leader who gathers, the worker who joins."""

from __future__ import annotations

import asyncio
import secrets
import shlex
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import Kind, Node
from launcher.channel.events import GatherTimeout
from launcher.channel.messages import NodeFacts
from launcher.fabric import interface_of, interfaces
from launcher.log import log
from launcher.nodes import as_node, digest, facts_of, node_facts, unlike
from launcher.ports import listen
from launcher.waiting import saying

if TYPE_CHECKING:
    from launcher.lifecycle import Pod


def take_port(pod: Pod) -> None:
    """Take the port; a pod that will leave the channel before it has any peers needs none."""
    alone = pod.group is not None and pod.group.size == 1
    if pod.epoch == 1 and not (pod.settings.exec and alone):
        pod.sockets = listen(pod.settings.listen, pod.settings.port)


async def open_port(pod: Pod, group: Group) -> None:
    """Answer probes, and on the leader workers."""
    # In a thread: the loop goes on meanwhile.
    await asyncio.to_thread(import_module, "launcher.watchers")
    if pod.settings.token is not None and group.size > 1 and pod.tls is None:
        await asyncio.to_thread(import_module, "launcher.channel.tls")
        from launcher.channel.tls import make_tls

        pod.tls = make_tls(pod.settings.token, group.id)
    from launcher.watchers import Watchers

    if group.is_leader and group.size > 1:
        from launcher.channel.leader import LeaderSide

        pod.leader = LeaderSide(
            group,
            node_facts(pod.the_node),
            run=pod.run,
            command=pod.argv,
            digest=digest(pod.argv),
            facts=facts_of(pod.the_node, pod.argv, pod.settings.options, pod.settings.environ, pod.plan),
            mismatches_warn=pod.settings.mismatch == "warn",
            leader_excluded=pod.settings.options.leader_excluded,
            secrets=pod.secrets,
            peer_timeout=pod.settings.options.peer_timeout,
            detaches=pod.settings.exec,
            tally=pod.tally,
            smoke=pod.smoke_due,
            emit=pod.emit,
        )
    if pod.watchers is None:
        pod.watchers = Watchers(pod)
        tls = pod.tls.server if pod.tls and pod.leader else None
        await pod.watchers.open(pod.sockets, group.size - 1, tls)
    pod.watchers.pod = pod


async def gather(pod: Pod, group: Group) -> tuple[Node, ...]:
    """The leader waits for everybody; their nodes, by index."""
    assert pod.leader is not None
    pod.enter("gathering")
    log.info("waiting for %d workers on port %d (run %s)", group.size - 1, pod.settings.port, pod.run)
    leader, begun = pod.leader, pod.age()
    async with saying(pod.settings.report_every, lambda: f"for {leader.why_missing()}"):
        try:
            async with asyncio.timeout(pod.settings.gather_timeout):
                others = await leader.wait_complete()
        except TimeoutError:
            waited = pod.age() - begun
            raise GatherTimeout(f"not here after {waited:.0f} s (--gather-timeout): {leader.why_missing()}") from None
    pod.enter("formed")
    log.info("group formed: %d of %d after %.2f s", group.size, group.size, pod.took())
    return tuple(as_node(known, pod.the_node) for known in others)


async def join(pod: Pod, group: Group) -> tuple[Group, Node]:
    """A worker finds its leader and is let in; the group as the leader has it, and the leader's node.

    Raises GatherTimeout or Mismatched.
    """
    from launcher.channel.member import MemberSide

    pod.enter("gathering")
    pod.member = member = MemberSide(
        group,
        port=pod.settings.port,
        digest=digest(pod.argv) if pod.argv else None,
        command=pod.argv,
        facts=facts_of(pod.the_node, pod.argv, pod.settings.options, pod.settings.environ, pod.plan),
        mismatch_timeout=pod.settings.mismatch_timeout,
        incarnation=secrets.token_hex(8),
        node=partial(_facts_at, pod),
        peer_timeout=pod.settings.options.peer_timeout,
        report_every=pod.settings.report_every,
        detaches=pod.settings.exec,
        left=pod.left,
        tally=pod.tally,
        tls=pod.tls.client if pod.tls else None,
        emit=pod.emit,
    )
    log.info("looking for the leader at %s port %d", group.leader_address, pod.settings.port)
    try:
        async with asyncio.timeout(pod.settings.gather_timeout):
            welcome = await member.join()
    except TimeoutError:
        raise GatherTimeout(f"no leader after {pod.took():.0f} s (--gather-timeout): {member.why_waiting}") from None
    pod.run, pod.secrets, pod.smoke_due = welcome.run, dict(welcome.secrets), welcome.smoke
    log.info("joined the leader at %s (run %s) after %.2f s", member.leader_ip, pod.run, pod.took())
    pod.background(member.listen())
    pod.group = group = member.group
    options = replace(pod.settings.options, peer_timeout=member.peer_timeout)
    if welcome.smoke is not None:
        options = replace(options, smoke=welcome.smoke)
    if not pod.argv and options.kind is None and welcome.kind in {kind.value for kind in Kind}:
        options = replace(options, kind=Kind(welcome.kind))
    pod.settings = replace(pod.settings, options=options)
    if not pod.argv:
        pod.argv = tuple(welcome.command)
        log.info("the command comes from the leader: %s", shlex.join(pod.argv))
        known = pod.the_node
        await pod.look_around(group)
        pod.node = replace(pod.the_node, ip=known.ip, interface=known.interface)
        faults = unlike(pod.the_node, welcome.leader)
        if faults and pod.settings.mismatch == "refuse":
            raise ConfigError(*faults)
        for fault in faults:
            log.warning("%s", fault.found)
    return group, as_node(welcome.leader, pod.the_node)


def _facts_at(pod: Pod, route: str) -> NodeFacts:
    """Our node as the leader should know it: without --pod-ip, our address is the one that routes to the leader."""
    if route:
        address = route.removeprefix("::ffff:")
        ip = address if pod.settings.pod_ip is None else pod.the_node.ip
        pod.node = replace(pod.the_node, ip=ip, interface=interface_of(address, interfaces()))
    return node_facts(pod.the_node)


async def all_here(pod: Pod, group: Group) -> tuple[Node, ...]:
    """A worker waits until the leader says that all are here; their nodes, by index."""
    assert pod.member is not None
    nodes = await pod.member.formed
    pod.enter("formed")
    log.info("group formed: %d of %d after %.2f s", group.size, group.size, pod.took())
    others = (as_node(known, pod.the_node) for known in nodes)
    return tuple(pod.the_node if index == group.index else node for index, node in enumerate(others))
