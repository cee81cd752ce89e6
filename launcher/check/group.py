"""Checks of the pod's place in its group: identity, leader, token, and variables that mislead."""

from __future__ import annotations

from collections.abc import Iterator

from backends.plan import PortOpen, join_host_port
from launcher.check.result import Result, failed, of_error, passed, skipped, warning
from launcher.check.scene import Scene
from launcher.gates import refuses
from launcher.token import VARIABLE

CONNECT = 3.0  # seconds
# Numbers to the programs that read them; of a Service of that name Kubernetes makes an address.
SERVICE_TRAPS = ("VLLM_PORT", "MASTER_PORT", "SGLANG_PORT", "RAY_PORT", "PORT")
LINKS = "set enableServiceLinks: false in the pod template, or give the Service another name"


def identity(scene: Scene) -> Iterator[Result]:
    """Who the pod is."""
    if scene.group_error is not None:
        yield from of_error("identity", scene.group_error)
        return
    assert scene.group is not None
    if scene.assumed:
        yield skipped("identity", scene.assumed)
        return
    by = f", as told by {scene.group.told_by}" if scene.group.told_by else ", as told by flags"
    yield passed("identity", f"{scene.group.me} of {scene.size} at {scene.group.leader_address}{by}")
    for doubt in scene.group.doubts:
        yield warning("identity", doubt, "say which counts with --orchestrator, or leave the other's variables out")


async def leader(scene: Scene) -> list[Result]:
    """Whether its name resolves, and packets get there."""
    if scene.group is None:
        return [skipped("leader", "the group's identity is not valid")]
    if not scene.given:
        return [skipped("leader", "there is no group identity here")]
    if scene.size == 1:
        return [skipped("leader", "a group of one looks for nobody")]
    host, port = scene.group.leader_address, scene.settings.port
    if scene.unresolved:
        remedy = (
            "check that the headless Service exists and publishes not-ready addresses, that the leader's pod exists,"
            " and /etc/resolv.conf; `start` goes on asking"
        )
        return [failed("leader", f"{host}: {scene.unresolved}", remedy)]
    found = f"{host} is {', '.join(scene.addresses)}"
    if scene.leads:
        mine = {*(scene.node.addresses if scene.node else ()), scene.settings.pod_ip}
        if mine.isdisjoint(scene.addresses) and not any(each.startswith("127.") for each in scene.addresses):
            remedy = "the record is of an earlier leader (wait), or LWS_LEADER_ADDRESS is another group's"
            return [warning("leader", f"{found}, which is no address of this pod, the leader", remedy)]
        return [passed("leader", f"{found}, this pod")]
    whys = [await refuses(PortOpen(address, port, "the leader"), CONNECT) for address in scene.addresses]
    at = join_host_port(scene.addresses[0], port)
    if None in whys:
        return [passed("leader", f"{found}; port {port} accepts connections")]
    if any(why is not None and "timed out" in why for why in whys):
        remedy = f"let TCP port {port} pass between the group's pods: NetworkPolicy, security group, service mesh"
        return [warning("leader", f"{found}, but {at} does not answer ({whys[0]})", remedy)]
    return [passed("leader", f"{found}; nobody listens at {at} yet ({whys[0]})")]


def token(scene: Scene) -> Iterator[Result]:
    """The group's secret."""
    if scene.token_error is not None:
        yield from of_error("token", scene.token_error)
    elif scene.settings.token is not None:
        yield passed("token", f"{len(scene.settings.token)} bytes: only who knows it can join")
    elif not scene.given or scene.size == 1:
        yield skipped("token", "none is given, and nobody is to join")
    else:
        yield warning(
            "token",
            "none: whoever is on the pod network can join this group until it is complete",
            f"give all pods {VARIABLE} from one Secret",
        )


def environment(scene: Scene) -> Iterator[Result]:
    """Variables that a program of the group would misread."""
    fine = True
    unset = {gone.name for gone in scene.plan.unset} if scene.plan is not None else set()
    for name in SERVICE_TRAPS:
        value = scene.environ.get(name, "")
        if "://" in value:
            fine = False
            what = f"{name}={value} is the address of a Service; a program that wants a port there fails"
            yield warning("environment", what + (": lwsrun does not hand it on" if name in unset else ""), LINKS)
    interfaces = scene.node.interfaces if scene.node is not None else ()
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        asked = scene.environ.get(name, "")
        names = [each.removeprefix("=") for each in asked.split(",") if each and not asked.startswith("^")]
        absent = [each for each in names if not any(has.startswith(each) for has in interfaces)]
        if interfaces and absent:
            fine = False
            yield warning(
                "environment",
                f"{name}={asked} names {', '.join(absent)}; this pod has {', '.join(interfaces)}",
                f"leave {name} out: lwsrun finds the interface",
            )
        if "lo" in names and scene.size > 1:
            fine = False
            yield warning("environment", f"{name}={asked}: other pods cannot be reached over it", f"leave {name} out")
    if fine:
        yield passed("environment", "no variable that the engine or the launcher would misread")
