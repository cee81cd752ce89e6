"""Interfaces and RDMA ports are named for the group's ranks where the node shows them and the user did not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.group import Group
from backends.plan import Gid, Node, Options, Plan, RdmaPort, Request
from backends.planner import make_plan

MIB = 1 << 20
NODE = Node(ip="10.0.0.10", hostname="pod", gpus=8, ray="2.60.0", interface="eth0", interfaces=("lo", "eth0"))
SOCKETS = {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0", "TP_SOCKET_IFNAME": "eth0"}


def gid(index: int, address: str, own: bool = True) -> Gid:
    return Gid(index, address, own)


def roce(device: str, *gids: Gid, port: str = "1") -> RdmaPort:
    return RdmaPort(device, port, "Ethernet", gids or (gid(3, f"192.168.0.{device[-1]}"),))


def plan(
    node: Node = NODE, line: str = "run", size: int = 2, index: int = 1, options: Options | None = None, **environ: str
) -> Plan:
    group = Group("my-lws-0.my-lws.default", size, index, "id")
    return make_plan(Request(group, (node,) * size, tuple(line.split()), options or Options(), environ))


def talks(made: Plan) -> dict[str, str]:
    """The variables of this module's kind that a plan sets."""
    kinds = ("IFNAME", "NCCL_", "NVSHMEM_", "UCX_")
    return {v.name: v.value for v in made.env if any(kind in v.name for kind in kinds)}


def reasons(made: Plan) -> dict[str, str]:
    return {variable.name: variable.reason for variable in made.env}


# --- sockets ---


@pytest.mark.parametrize("line", ["run", "vllm serve m -tp 16"])
@pytest.mark.parametrize("index", [0, 1])
def test_every_backend_names_the_interface_that_routes_to_the_leader(line: str, index: int) -> None:
    assert talks(plan(line=line, index=index)) == SOCKETS


def test_each_variable_says_why() -> None:
    assert reasons(plan())["GLOO_SOCKET_IFNAME"] == "it routes to the leader"
    assert reasons(plan(index=0))["GLOO_SOCKET_IFNAME"] == "it has the leader's address 10.0.0.10"


def test_a_group_of_one_needs_no_network() -> None:
    assert talks(plan(size=1, index=0)) == {}


def test_without_an_interface_nothing_is_guessed() -> None:
    assert talks(plan(replace(NODE, interface=None))) == {}


@pytest.mark.parametrize("name", SOCKETS)
def test_what_the_user_set_is_left_alone_in_the_pod_and_by_option(name: str) -> None:
    assert talks(plan(**{name: "eth0"})) == {k: v for k, v in SOCKETS.items() if k != name}
    by_option = plan(options=Options(env=((name, "bond0"),)))
    assert talks(by_option) == {**SOCKETS, name: "bond0"}
    assert [v.value for v in by_option.env if v.name == name] == ["bond0"]


def test_where_a_longer_name_begins_alike_nccl_is_told_the_exact_one() -> None:
    made = plan(replace(NODE, interface="eth1", interfaces=("lo", "eth1", "eth10", "eth11")))
    assert talks(made) == {
        "NCCL_SOCKET_IFNAME": "=eth1",
        "GLOO_SOCKET_IFNAME": "eth1",  # Gloo knows no such form
        "TP_SOCKET_IFNAME": "eth1",
    }
    assert reasons(made)["NCCL_SOCKET_IFNAME"].endswith("; = because eth1 alone would also mean eth10, eth11")


@pytest.mark.parametrize("value", ["^docker", "=eth0", "eth", "eth0,eth7"])
def test_nccls_way_of_naming_interfaces_is_refused_a_quiet_death_in_gloo(value: str) -> None:
    (note,) = plan(GLOO_SOCKET_IFNAME=value).notes
    assert note.startswith(f"GLOO_SOCKET_IFNAME names {value.removeprefix('eth0,')}, but Gloo takes only whole names")
    assert note.endswith(": lo, eth0")


def test_names_that_gloo_finds_need_no_word() -> None:
    assert plan(GLOO_SOCKET_IFNAME="eth0,lo").notes == ()


# --- RDMA ---


def test_plain_ethernet_gets_no_rdma_variable_and_no_note() -> None:
    made = plan()
    assert talks(made) == SOCKETS
    assert made.notes == ()


def test_roce_ports_are_named_exactly_with_the_place_of_their_address() -> None:
    made = plan(replace(NODE, rdma=(roce("mlx5_1"), roce("mlx5_2"))))
    assert talks(made) == {
        **SOCKETS,
        "NCCL_IB_HCA": "=mlx5_1:1,mlx5_2:1",
        "NCCL_IB_GID_INDEX": "3",
        "NVSHMEM_IB_GID_INDEX": "3",
        "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME": "eth0",
    }
    assert reasons(made)["NCCL_IB_GID_INDEX"].startswith("RoCE v2 on these ports, such as 192.168.0.1;")
    assert made.notes == ()


def test_rails_that_are_left_out_are_named() -> None:
    rails = (replace(roce("mlx5_1"), gids=(gid(3, "2001:db8::1"),)), roce("mlx5_8"))
    made = plan(replace(NODE, rdma=rails))
    assert talks(made)["NCCL_IB_HCA"] == "=mlx5_8:1"
    assert made.notes == ("NCCL_IB_HCA leaves out mlx5_1: their addresses are not like those of mlx5_8:1",)


def test_infiniband_needs_no_gid_index_and_no_list() -> None:
    assert talks(plan(replace(NODE, rdma=(RdmaPort("mlx5_0", "1", "InfiniBand"),)))) == SOCKETS


def test_beside_infiniband_nobody_guesses_which_ports_are_meant() -> None:
    made = plan(replace(NODE, rdma=(RdmaPort("mlx5_0", "1", "InfiniBand"), roce("mlx5_8"))))
    assert talks(made) == SOCKETS
    assert made.notes == ()


@pytest.mark.parametrize(
    ("gids", "index"),
    [
        ((gid(1, "fe80::1"), gid(3, "10.1.0.1")), "3"),
        ((gid(1, "fe80::1"), gid(3, "10.1.0.1"), gid(5, "2001:db8::1")), "3"),  # IPv4 before IPv6
        ((gid(1, "fe80::1"), gid(3, "2001:db8::1")), "3"),  # a fabric of IPv6 alone
        ((gid(3, "10.1.0.1"), gid(7, "10.1.0.2")), "3"),  # the first of two
        ((gid(3, "10.1.0.1", own=False), gid(7, "10.1.0.2")), "7"),  # a neighbour's address in a shared table
        ((gid(3, "10.1.0.1", own=False), gid(7, "10.1.0.2", own=False)), "3"),
        ((gid(3, "169.254.7.7"), gid(5, "10.1.0.2")), "5"),
    ],
)
def test_the_gid_is_that_of_the_pods_own_address_that_routes(gids: tuple[Gid, ...], index: str) -> None:
    assert talks(plan(replace(NODE, rdma=(roce("mlx5_0", *gids),))))["NCCL_IB_GID_INDEX"] == index


def test_one_index_must_suit_all_ports() -> None:
    ports = (
        roce("mlx5_0", gid(3, "10.1.0.1"), gid(5, "10.2.0.1")),
        roce("mlx5_1", gid(5, "10.3.0.1"), gid(7, "10.4.0.1")),
    )
    assert talks(plan(replace(NODE, rdma=ports)))["NCCL_IB_GID_INDEX"] == "5"


def test_where_no_index_suits_all_ports_none_is_set_and_that_is_said() -> None:
    made = plan(replace(NODE, rdma=(roce("mlx5_0", gid(3, "10.1.0.1")), roce("mlx5_1", gid(5, "10.1.0.2")))))
    assert set(talks(made)) - set(SOCKETS) == {"NCCL_IB_HCA", "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"}
    (note,) = made.notes
    assert "no index suits all of mlx5_0:1,mlx5_1:1: NCCL finds them from 2.21 on" in note


@pytest.mark.parametrize("user", ["mlx5_1", "=mlx5_1", "=mlx5_1:1", "^mlx5_0", "^=mlx5_0,mlx5_10", "mlx5_1:1,mlx4"])
def test_the_index_is_that_of_the_ports_that_the_user_chose(user: str) -> None:
    ports = (roce("mlx5_0", gid(3, "10.1.0.1")), roce("mlx5_1", gid(5, "10.1.0.2")))
    made = plan(replace(NODE, rdma=ports), NCCL_IB_HCA=user)
    assert "NCCL_IB_HCA" not in talks(made)
    assert talks(made)["NCCL_IB_GID_INDEX"] == "5"


def test_ports_without_an_address_are_left_out() -> None:
    ports = (roce("mlx5_0"), roce("mlx5_1", gid(1, "fe80::1")), roce("mlx5_2"))
    assert talks(plan(replace(NODE, rdma=ports)))["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_2:1"


def test_ports_that_all_lack_an_address_are_worth_a_word() -> None:
    made = plan(replace(NODE, rdma=(roce("mlx5_0", gid(1, "fe80::1")), RdmaPort("mlx5_1", "1", "Ethernet"))))
    assert talks(made) == SOCKETS
    (note,) = made.notes
    assert note.startswith("active RoCE ports without a RoCE v2 address that routes: mlx5_0, mlx5_1;")


@pytest.mark.parametrize("theirs", [{"NCCL_IB_DISABLE": "1"}, {"NCCL_NET": "Socket"}, {"NCCL_NET": "gIB"}])
def test_where_nccls_own_rdma_is_not_used_nothing_is_said_to_it(theirs: dict[str, str]) -> None:
    assert talks(plan(replace(NODE, rdma=(roce("mlx5_0"),)), **theirs)) == SOCKETS


def test_a_gid_index_of_the_users_is_taken_for_all_libraries() -> None:
    made = talks(plan(replace(NODE, rdma=(roce("mlx5_0"),)), NCCL_IB_GID_INDEX="1"))
    assert "NCCL_IB_GID_INDEX" not in made
    assert "NVSHMEM_IB_GID_INDEX" not in made
    assert made["NCCL_IB_HCA"] == "=mlx5_0:1"


# --- /dev/shm ---


def test_a_containers_default_shared_memory_is_told_with_the_remedy() -> None:
    (note,) = plan(replace(NODE, shm_bytes=64 * MIB)).notes
    assert note == (
        "/dev/shm has 64 MiB, a container's default: NCCL's ranks on 8 GPUs talk through it and may end with"
        " `failed to extend /dev/shm/nccl-…`; mount an emptyDir with `medium: Memory` there, of 1 GiB or more"
    )


def test_rays_object_store_takes_its_part() -> None:
    (note,) = plan(replace(NODE, shm_bytes=512 * MIB), "vllm serve m -tp 16").notes
    assert "/dev/shm has 512 MiB: " in note
    assert "and Ray's object store takes 128 MiB;" in note


@pytest.mark.parametrize(("gpus", "shm"), [(8, 1024 * MIB), (1, 64 * MIB), (0, 64 * MIB), (8, None)])
def test_enough_shared_memory_or_one_rank_on_the_node_needs_no_word(gpus: int, shm: int | None) -> None:
    assert plan(replace(NODE, gpus=gpus, shm_bytes=shm)).notes == ()


def test_a_leader_that_takes_no_part_has_no_ranks() -> None:
    made = plan(replace(NODE, shm_bytes=64 * MIB), index=0, options=Options(leader_excluded=True))
    assert made.notes == ()
