"""By which interfaces and RDMA ports the ranks of a group talk: variables that the user did not set.

NCCL: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
Gloo, TensorPipe: https://docs.pytorch.org/docs/stable/distributed.html, one name (or several) of existing interfaces
NVSHMEM: https://docs.nvidia.com/nvshmem/api/gen/env.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from backends.plan import EnvVar, Gid, Node, Plan, RdmaPort, Request
from backends.ray import object_store_bytes

MIB = 1 << 20
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting/runtime_and_mpi_issues.html
SMALL_SHM = 1024 * MIB
CONTAINER_SHM = 64 * MIB  # of containerd and CRI-O, where the pod mounts nothing there


def connected(plan: Plan, request: Request) -> Plan:
    """The plan with what its processes need to find each other over the network; a group of one needs nothing."""
    if request.group.size == 1:
        return plan
    told = request.environ
    rdma, notes = _rdma(request, told)
    known = {*told, *(variable.name for variable in plan.env)}
    added = tuple(variable for variable in (*_sockets(request), *rdma) if variable.name not in known)
    notes = (*notes, *_gloo(request.node, told), *shared_memory_note(plan, request))
    return replace(plan, env=(*plan.env, *added), notes=(*plan.notes, *notes))


def _sockets(request: Request) -> tuple[EnvVar, ...]:
    interface = request.node.interface
    if interface is None:
        return ()
    return (
        _nccl_like("NCCL_SOCKET_IFNAME", interface, request),
        EnvVar("GLOO_SOCKET_IFNAME", interface, _route(request)),
        EnvVar("TP_SOCKET_IFNAME", interface, _route(request)),
    )


def _route(request: Request) -> str:
    return f"it has the leader's address {request.leader.ip}" if request.group.is_leader else "it routes to the leader"


def _nccl_like(name: str, mine: str, request: Request) -> EnvVar:
    """NCCL and NVSHMEM take a name as a prefix, unless "=" stands before it."""
    reason = _route(request)
    longer = [each for each in request.node.interfaces if each.startswith(mine) and each != mine]
    if not longer:
        return EnvVar(name, mine, reason)
    return EnvVar(name, f"={mine}", f"{reason}; = because {mine} alone would also mean {', '.join(longer)}")


def _gloo(node: Node, told: Mapping[str, str]) -> tuple[str, ...]:
    names = [name for name in told.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    unknown = [name for name in names if node.interfaces and name not in node.interfaces]
    if not unknown:
        return ()
    note = f"GLOO_SOCKET_IFNAME names {', '.join(unknown)}, but Gloo takes only whole names of this pod's interfaces"
    return (f"{note}: {', '.join(node.interfaces)}",)


def _rdma(request: Request, told: Mapping[str, str]) -> tuple[tuple[EnvVar, ...], tuple[str, ...]]:
    """Which RoCE ports, and where their address stands in their tables; and what a person should know.

    InfiniBand needs neither, and beside it nobody can say which of both is meant for the ranks: NCCL chooses.
    """
    node = request.node
    # Another transport than NCCL's own, such as a cloud's plugin, has rules of its own.
    other = told.get("NCCL_IB_DISABLE", "0") != "0" or told.get("NCCL_NET", "IB").upper() != "IB"
    if other or not node.rdma or any(port.link == "InfiniBand" for port in node.rdma):
        return (), ()
    gids = _usable(node.rdma)
    names = ",".join(f"{port.device}:{port.port}" for port in gids)
    if not gids:
        idle = ", ".join(port.device for port in node.rdma)
        note = f"active RoCE ports without a RoCE v2 address that routes: {idle}; give their interfaces an IP address"
        return (), (note,)
    found = [EnvVar("NCCL_IB_HCA", f"={names}", "the active RoCE ports with an IP address")]
    if node.interface is not None:
        found.append(_nccl_like("NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME", node.interface, request))
    left = ", ".join(port.device for port in node.rdma if port not in gids)
    notes = (f"NCCL_IB_HCA leaves out {left}: their addresses are not like those of {names}",) if left else ()
    if "NCCL_IB_GID_INDEX" in told:
        return tuple(found), notes
    filtered = told.get("NCCL_IB_HCA", "")
    tables = [table for port, table in gids.items() if _selects(filtered, port)]
    common = set.intersection(*({gid.index for gid in table} for table in tables)) if tables else set()
    if tables and not common:
        note = f"NCCL_IB_GID_INDEX is left out, because no index suits all of {names}: NCCL finds them from 2.21 on"
        return tuple(found), (*notes, note)
    for index in sorted(common)[:1]:
        address = next(gid.address for gid in tables[0] if gid.index == index)
        reason = f"RoCE v2 on {'these ports' if len(tables) > 1 else 'this port'}, such as {address}"
        found.append(EnvVar("NCCL_IB_GID_INDEX", str(index), f"{reason}; NCCL before 2.21 would take 0"))
        found.append(EnvVar("NVSHMEM_IB_GID_INDEX", str(index), reason))
    return tuple(found), notes


def _usable(ports: tuple[RdmaPort, ...]) -> dict[RdmaPort, tuple[Gid, ...]]:
    """The ports with an address that routes, and its places. IPv4 goes first, as NCCL prefers it.

    An address of this pod's own excludes others: a table that several pods share lists the neighbours' too.
    """
    everything = [(port, gid) for port in ports for gid in port.gids if not _link_local(gid.address)]
    fours = [(port, gid) for port, gid in everything if ":" not in gid.address] or everything
    chosen = [(port, gid) for port, gid in fours if gid.own] or fours
    return {
        port: tuple(gid for each, gid in chosen if each == port)
        for port in ports
        if any(each == port for each, _ in chosen)
    }


def _link_local(address: str) -> bool:
    return address.lower().startswith(("fe8", "fe9", "fea", "feb", "169.254."))


def _selects(filtered: str, port: RdmaPort) -> bool:
    """Whether a user's NCCL_IB_HCA lets NCCL use the port: [^][=]NAME[:PORT],…"""
    names = filtered.removeprefix("^")
    exact = names.startswith("=")
    wanted = [name.partition(":") for name in names.removeprefix("=").split(",") if name]
    if not wanted:
        return True
    hit = any(
        (port.device == name if exact else port.device.startswith(name)) and number in ("", port.port)
        for name, _, number in wanted
    )
    return hit != filtered.startswith("^")


def shared_memory_note(plan: Plan, request: Request) -> tuple[str, ...]:
    """Whether /dev/shm is too small for the ranks of this pod's GPUs."""
    gpus, size = request.gpus_of(request.group.index), request.node.shm_bytes
    if gpus < 2 or size is None or size >= SMALL_SHM:
        return ()
    which = ", a container's default" if size == CONTAINER_SHM else ""
    ray = object_store_bytes(size) // MIB if any(service.name.startswith("ray-") for service in plan.services) else 0
    part = f", and Ray's object store takes {ray} MiB" if ray else ""
    return (
        f"/dev/shm has {size // MIB} MiB{which}: NCCL's ranks on {gpus} GPUs talk through it and may end with"
        f" `failed to extend /dev/shm/nccl-…`{part}; mount an emptyDir with `medium: Memory` there, of 1 GiB or more",
    )
