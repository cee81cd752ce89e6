"""How this node is wired: the interface that holds an address, and the RDMA ports that this pod may use.

The files under /sys: https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-class-infiniband
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

import psutil

from backends.plan import Gid, RdmaPort

SYS = Path("/sys/class")
DEV = Path("/dev")
LINKS = ("InfiniBand", "Ethernet")  # others, such as an EFA's "Unspecified", are not NCCL's own transport
ROCE_V2 = "RoCE v2"
BRIDGE_ID = 12  # hex digits after "br-" in the name of a Docker network; OpenShift's br-ex holds the node's own address


def interfaces() -> dict[str, tuple[str, ...]]:
    """The addresses of each interface in this pod, without scope."""
    found: dict[str, tuple[str, ...]] = {}
    for label, addresses in psutil.net_if_addrs().items():
        name = label.partition(":")[0]  # a secondary IPv4 address may have a label such as eth0:1
        ips = [text for address in addresses if (text := _plain(address.address))]
        found[name] = (*found.get(name, ()), *ips)
    return found


def interface_of(ip: str, found: dict[str, tuple[str, ...]]) -> str | None:
    """The one that holds the address; None for an address of no interface, of loopback, or of a bridge of Docker's.

    Asked with the source address of the route to the leader: on the leader's own node the route itself says loopback.
    """
    address = _plain(ip)
    if not address or ipaddress.ip_address(address).is_loopback:
        return None
    return next((name for name, ips in found.items() if address in ips and not _never(name)), None)


def _never(name: str) -> bool:
    bridge = name.removeprefix("br-")
    is_id = bridge != name and len(bridge) == BRIDGE_ID and all(digit in "0123456789abcdef" for digit in bridge)
    # kube-ipvs0 holds the addresses of Services, for nobody to talk from.
    return name == "lo" or name.startswith(("docker", "kube-ipvs")) or is_id


def _plain(text: str) -> str:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:  # a hardware address
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def rdma_ports(own: frozenset[str], sys: Path = SYS, dev: Path = DEV) -> tuple[RdmaPort, ...]:
    """The active ports of devices that this pod may open. own: the addresses of its interfaces.

    /sys shows every device of the node to every pod, but /dev/infiniband holds only what the pod was given.
    """
    found = []
    for device in sorted((sys / "infiniband").glob("*"), key=_by_number):
        if not _may_open(device.name, sys, dev):
            continue
        for port in sorted((device / "ports").glob("*"), key=_by_number):
            link = _read(port / "link_layer")
            if link in LINKS and _read(port / "state").endswith("ACTIVE"):  # "4: ACTIVE"
                gids = _roce_v2(port, own) if link == "Ethernet" else ()
                found.append(RdmaPort(device.name, port.name, link, gids))
    return tuple(found)


def _may_open(device: str, sys: Path, dev: Path) -> bool:
    verbs = (sys / "infiniband_verbs").glob("uverbs*")
    return any((dev / "infiniband" / one.name).exists() for one in verbs if _read(one / "ibdev") == device)


def _roce_v2(port: Path, own: frozenset[str]) -> tuple[Gid, ...]:
    gids = []
    for file in sorted((port / "gids").glob("*"), key=_by_number):
        address = _plain(_read(file))
        if not address or ipaddress.ip_address(address).is_unspecified:
            continue  # most of the table is empty
        if _read(port / "gid_attrs" / "types" / file.name) == ROCE_V2:
            gids.append(Gid(int(file.name), address, address in own))
    return tuple(gids)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):  # an unused place of the table answers EINVAL
        return ""


def _by_number(path: Path) -> tuple[str, int]:
    """mlx5_2 before mlx5_10."""
    letters = path.name.rstrip("0123456789")
    return letters, int(path.name[len(letters) :] or 0)
