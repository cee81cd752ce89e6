"""What a pod sees of its network: interfaces, and RDMA ports in trees like the kernel's under /sys and /dev."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Simulate

from backends.plan import Gid, RdmaPort
from launcher.fabric import interface_of, interfaces, rdma_ports

EMPTY = "0000:0000:0000:0000:0000:0000:0000:0000"
LINK_LOCAL = "fe80:0000:0000:0000:0a00:27ff:fe00:0001"
V1, V2 = "IB/RoCE v1", "RoCE v2"


class Tree:
    """/sys/class and /dev of a node with RDMA devices."""

    def __init__(self, root: Path) -> None:
        self.sys, self.dev = root / "sys" / "class", root / "dev"
        self.devices = 0

    def port(
        self,
        device: str,
        *gids: tuple[str, str],
        port: str = "1",
        link: str = "Ethernet",
        state: str = "4: ACTIVE",
        openable: bool = True,
    ) -> None:
        """gids are (address, type) from index 0 on; an EMPTY one has no type, as its file cannot be read."""
        verbs = f"uverbs{self.devices}"
        self.devices += 1
        put(self.sys / "infiniband_verbs" / verbs / "ibdev", device)
        if openable:
            put(self.dev / "infiniband" / verbs, "")
        at = self.sys / "infiniband" / device / "ports" / port
        put(at / "link_layer", link)
        put(at / "state", state)
        for index, (address, kind) in enumerate(gids):
            put(at / "gids" / str(index), address)
            if kind:
                put(at / "gid_attrs" / "types" / str(index), kind)
            else:
                (at / "gid_attrs" / "types" / str(index)).mkdir(parents=True)  # unreadable for root too

    def ports(self, *own: str) -> tuple[RdmaPort, ...]:
        return rdma_ports(frozenset(own), self.sys, self.dev)


def put(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content + "\n")


def mapped(last: int) -> str:
    return f"0000:0000:0000:0000:0000:ffff:c0a8:{last:04x}"  # 192.168.0.last, as mlx5 writes it


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_node_without_rdma_has_no_ports(tree: Tree) -> None:
    assert tree.ports() == ()


def test_of_a_roce_port_only_the_version_2_entries_count(tree: Tree) -> None:
    tree.port("mlx5_0", (LINK_LOCAL, V1), (LINK_LOCAL, V2), (mapped(7), V1), (mapped(7), V2), (EMPTY, ""), (EMPTY, ""))
    assert tree.ports("192.168.0.7") == (
        RdmaPort(
            "mlx5_0",
            "1",
            "Ethernet",
            (Gid(1, "fe80::a00:27ff:fe00:1", own=False), Gid(3, "192.168.0.7", own=True)),
        ),
    )


def test_ports_that_are_down_or_of_another_transport_are_left_out(tree: Tree) -> None:
    tree.port("mlx5_0", (mapped(1), V2), state="1: DOWN")
    tree.port("mlx5_1", (mapped(2), V2), state="2: INIT")
    tree.port("rdmap0s6", (LINK_LOCAL, ""), link="Unspecified")
    tree.port("mlx5_2", (mapped(3), V2))
    assert [port.device for port in tree.ports()] == ["mlx5_2"]


def test_an_infiniband_port_has_no_addresses_to_choose_from(tree: Tree) -> None:
    tree.port("mlx5_0", ("fe80:0000:0000:0000:1070:fd03:00e5:f188", V1), link="InfiniBand")
    assert tree.ports() == (RdmaPort("mlx5_0", "1", "InfiniBand"),)


def test_a_device_that_was_not_given_to_this_pod_is_none_of_its_own(tree: Tree) -> None:
    tree.port("mlx5_0", (mapped(1), V2), openable=False)
    tree.port("mlx5_1", (mapped(2), V2))
    assert [port.device for port in tree.ports()] == ["mlx5_1"]


def test_devices_and_table_places_are_in_the_order_of_their_numbers(tree: Tree) -> None:
    for number in (10, 2, 0):
        tree.port(f"mlx5_{number}", *[(EMPTY, "")] * 10, (mapped(number), V2), (mapped(99), V2))
    found = tree.ports()
    assert [port.device for port in found] == ["mlx5_0", "mlx5_2", "mlx5_10"]
    assert [gid.index for gid in found[0].gids] == [10, 11]


def test_both_ports_of_one_device_are_seen(tree: Tree) -> None:
    tree.port("mlx4_0", (mapped(1), V2), port="1")
    tree.port("mlx4_0", (mapped(2), V2), port="2")
    assert [port.port for port in tree.ports()] == ["1", "2"]


def test_files_that_make_no_sense_are_no_ports(tree: Tree) -> None:
    tree.port("mlx5_0", ("not an address", V2), state="4: ACTIVE")
    (tree.sys / "infiniband" / "mlx5_1").mkdir()
    assert [port.gids for port in tree.ports()] == [()]


# --- interfaces ---

FOUND = {
    "lo": ("127.0.0.1", "::1", "10.9.9.9"),
    "docker0": ("172.17.0.1",),
    "br-0123456789ab": ("172.18.0.1",),
    "kube-ipvs0": ("10.96.0.1", "10.0.0.7"),
    "eth0": ("10.0.0.7", "2001:db8::7", "fe80::7"),
    "br-ex": ("10.0.5.7",),
}


@pytest.mark.parametrize(
    ("ip", "name"),
    [
        ("10.0.0.7", "eth0"),
        ("::ffff:10.0.0.7", "eth0"),
        ("2001:db8::7", "eth0"),
        ("2001:0db8:0::7", "eth0"),
        ("fe80::7%eth0", "eth0"),
        ("10.0.5.7", "br-ex"),
        ("127.0.0.1", None),
        ("127.0.0.5", None),
        ("::1", None),
        ("10.9.9.9", None),
        ("172.17.0.1", None),
        ("172.18.0.1", None),
        ("10.96.0.1", None),
        ("198.51.100.1", None),
    ],
)
def test_an_interface_is_named_by_its_address_but_never_loopback_or_a_bridge_of_containers(
    ip: str, name: str | None
) -> None:
    assert interface_of(ip, FOUND) == name


def test_this_machines_own_interfaces_are_seen() -> None:
    assert "127.0.0.1" in interfaces()["lo"]


# --- in pods ---

NAMES = (
    "import os; print(*(os.environ.get(n) for n in ('NCCL_SOCKET_IFNAME', 'GLOO_SOCKET_IFNAME', 'TP_SOCKET_IFNAME')))"
)
# A second interface, which routes to all the rest of the world, and whose name begins like the first one's.
TWO = """
import os, sys
from pyroute2 import IPRoute
with IPRoute() as ip:
    ip.link("add", ifname="eth01", kind="veth", peer={"ifname": "away"})
    other = ip.link_lookup(ifname="eth01")[0]
    ip.addr("add", index=other, address="192.168.77." + str(7 + int(os.environ["LWS_WORKER_INDEX"])), prefixlen=24)
    ip.link("set", index=ip.link_lookup(ifname="away")[0], state="up")
    ip.link("set", index=other, state="up")
    for half in ("0.0.0.0/1", "128.0.0.0/1"):  # together longer than the default route
        ip.route("add", dst=half, gateway="192.168.77.1")
argv = [sys.executable, "-m", "launcher", "start", "--port=9471", "--", sys.executable, "-c", sys.argv[1]]
os.environ.pop("LWSRUN_PORT", None)
for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
    del os.environ[name]
os.execv(sys.executable, argv)
"""


def test_the_engine_is_told_the_interface_that_routes_to_the_leader(simulate: Simulate) -> None:
    done = simulate("--size=2", command=[sys.executable, "-c", NAMES])
    assert done.codes() == [0, 0]
    for index in (0, 1):
        assert done.said(index) == ["eth0 eth0 eth0"]
    assert "GLOO_SOCKET_IFNAME=eth0: it has the leader's address 10.244.0.10" in done.log(0)
    assert "GLOO_SOCKET_IFNAME=eth0: it routes to the leader" in done.log(1)


def test_the_default_routes_interface_is_not_taken_for_it(simulate: Simulate) -> None:
    """Each pod gives itself another interface and default route, then starts the launcher anew."""
    done = simulate("--size=2", command=[sys.executable, "-c", TWO, NAMES])
    assert done.codes() == [0, 0]
    for index in (0, 1):
        assert done.said(index) == ["=eth0 eth0 eth0"]
        assert "; = because eth0 alone would also mean eth01" in done.log(index)


def test_a_worker_that_gets_its_command_from_the_leader_is_told_too(simulate: Simulate) -> None:
    done = simulate("--size=2", "--worker-command=", command=[sys.executable, "-c", NAMES])
    assert done.codes() == [0, 0]
    assert done.said(1) == ["eth0 eth0 eth0"]


def test_what_the_pods_environment_says_stays(simulate: Simulate) -> None:
    done = simulate("--size=2", command=[sys.executable, "-c", NAMES], GLOO_SOCKET_IFNAME="lo")
    assert done.said(1) == ["eth0 lo eth0"]
    assert "GLOO_SOCKET_IFNAME=" not in done.log(1)


def test_on_plain_loopback_no_interface_is_named(simulate: Simulate) -> None:
    done = simulate("--size=2", "--isolation=loopback", command=[sys.executable, "-c", NAMES])
    assert done.codes() == [0, 0]
    assert done.said(1) == ["None None None"]
