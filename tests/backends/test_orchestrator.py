"""The same identity from every controller's variables, in the form in which each sets them."""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.group import Group, parse_group

LWS = {"LWS_LEADER_ADDRESS": "my-lws-0.my-lws.default", "LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "2"}
RBG = {
    "RBG_GROUP_NAME": "my-rbg", "RBG_ROLE_NAME": "worker",
    "RBG_LWP_LEADER_ADDRESS": "my-rbg-worker-0-0.s-my-rbg-worker.default", "RBG_LWP_GROUP_SIZE": "4",
    "RBG_LWP_WORKER_INDEX": "2",
}  # fmt: skip
# The Dynamo operator's names: <pcs>-<i>-<scaling group>-<j>-<component>-ldr or -wkr, one pod in the leader's PodClique.
GROVE = {
    "GROVE_PCS_NAME": "my-graph", "GROVE_PCS_INDEX": "0", "GROVE_PCLQ_NAME": "my-graph-0-decode-1-decode-wkr",
    "GROVE_HEADLESS_SERVICE": "my-graph-0.default.svc.cluster.local", "GROVE_PCLQ_POD_INDEX": "1",
    "GROVE_PCSG_NAME": "my-graph-0-decode", "GROVE_PCSG_INDEX": "1", "GROVE_PCSG_TEMPLATE_NUM_PODS": "4",
}  # fmt: skip
GROVE_LEADER = {**GROVE, "GROVE_PCLQ_NAME": "my-graph-0-decode-1-decode-ldr", "GROVE_PCLQ_POD_INDEX": "0"}
GROVE_ADDRESS = "my-graph-0-decode-1-decode-ldr-0.my-graph-0.default.svc.cluster.local"
AIBRIX = {
    "STORM_SERVICE_NAME": "my-storm", "ROLESET_NAME": "my-storm-roleset-x", "ROLE_NAME": "decode",
    "PODSET_NAME": "my-storm-roleset-x-decode-5d9-0", "POD_GROUP_INDEX": "2", "POD_GROUP_SIZE": "4",
}  # fmt: skip
TORCHRUN = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NNODES": "4", "NODE_RANK": "2"}

ADDRESSES = {
    "lws": (LWS, "my-lws-0.my-lws.default"),
    "kserve": (LWS, "my-lws-0.my-lws.default"),
    "rbg": (RBG, "my-rbg-worker-0-0.s-my-rbg-worker.default"),
    "grove": (GROVE, GROVE_ADDRESS),
    "aibrix": (AIBRIX, "my-storm-roleset-x-decode-5d9-0-0.my-storm"),
    "torchrun": (TORCHRUN, "10.0.0.1"),
}


def refusal(environ: dict[str, str], orchestrator: str = "auto", **flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_group(environ, orchestrator=orchestrator, **flags)
    return caught.value.text()


@pytest.mark.parametrize("orchestrator", ADDRESSES)
@pytest.mark.parametrize("named", [True, False])
def test_each_controllers_variables_are_read(orchestrator: str, named: bool) -> None:
    environ, address = ADDRESSES[orchestrator]
    group = parse_group(environ, orchestrator=orchestrator if named else "auto")
    assert group == Group(address, 4, 2, address)


def test_where_the_place_is_from_is_told() -> None:
    assert parse_group(RBG).told_by == (
        "RoleBasedGroup: RBG_LWP_LEADER_ADDRESS, RBG_LWP_GROUP_SIZE, RBG_LWP_WORKER_INDEX"
    )
    assert parse_group(GROVE).told_by == (
        "Grove: GROVE_PCLQ_NAME and GROVE_HEADLESS_SERVICE, GROVE_PCSG_TEMPLATE_NUM_PODS, GROVE_PCLQ_POD_INDEX + 1"
    )
    assert parse_group(LWS, orchestrator="kserve").told_by.startswith("KServe (its LeaderWorkerSet): LWS_")
    assert parse_group(LWS, size="8").told_by == "LeaderWorkerSet: LWS_LEADER_ADDRESS, --size, LWS_WORKER_INDEX"
    assert parse_group({}, size="1").told_by == ""


# --- Grove ---


@pytest.mark.parametrize(("clique", "index"), [("ldr", "0"), ("leader", "0"), ("x-ldr", "0"), ("serve-leader", "0")])
def test_the_pod_of_groves_leader_clique_leads(clique: str, index: str) -> None:
    name = f"g-0-sg-0-{clique}"
    group = parse_group({**GROVE, "GROVE_PCLQ_NAME": name, "GROVE_PCLQ_POD_INDEX": index})
    assert (group.leader_address, group.index) == (f"{name}-0.my-graph-0.default.svc.cluster.local", 0)


def test_leader_and_workers_of_a_scaling_group_agree_on_the_leader() -> None:
    leader = parse_group(GROVE_LEADER)
    workers = [parse_group({**GROVE, "GROVE_PCLQ_POD_INDEX": str(at)}) for at in range(3)]
    assert [member.index for member in (leader, *workers)] == [0, 1, 2, 3]
    assert {member.id for member in (leader, *workers)} == {GROVE_ADDRESS}


def test_cliques_with_other_names_take_groves_index_in_the_group_and_the_leaders_name_by_flag() -> None:
    environ = {**GROVE, "GROVE_PCLQ_NAME": "my-graph-0-decode-1-shard", "GROVE_PCSG_POD_INDEX": "3"}
    assert parse_group(environ, leader_address="head").index == 3
    assert refusal(environ).startswith("the leader's name (GROVE_PCLQ_NAME, GROVE_HEADLESS_SERVICE) is not set")
    assert "names end with -ldr and -wkr, or -leader and -worker" in refusal(environ)


def test_a_clique_of_its_own_has_pod_zero_for_leader_and_needs_its_size_by_flag() -> None:
    environ = {name: value for name, value in GROVE.items() if "PCSG" not in name}
    environ["GROVE_PCLQ_NAME"] = "my-graph-0-shard"
    group = parse_group(environ, size="4")
    assert (group.leader_address, group.index) == ("my-graph-0-shard-0.my-graph-0.default.svc.cluster.local", 1)
    assert refusal(environ).startswith("GROVE_PCSG_TEMPLATE_NUM_PODS is not set")


def test_an_index_that_is_no_number_is_a_fault() -> None:
    assert refusal({**GROVE, "GROVE_PCLQ_POD_INDEX": "one"}).startswith("GROVE_PCLQ_POD_INDEX is 'one'")


# --- AIBrix ---


def test_an_aibrix_pod_without_a_group_size_learns_what_is_missing() -> None:
    environ = {name: value for name, value in AIBRIX.items() if name != "POD_GROUP_SIZE"}
    assert refusal(environ).splitlines() == [
        "POD_GROUP_SIZE is not set",
        "  expected: set in every container of the group (AIBrix)",
        "  to do: pass --size, or check that the role of the StormService has a podGroupSize",
    ]


# --- more than one family ---


@pytest.mark.parametrize("other", [RBG, GROVE, AIBRIX, TORCHRUN])
def test_families_that_agree_raise_no_doubt(other: dict[str, str]) -> None:
    group = parse_group({**LWS, **other})
    assert (group.leader_address, group.doubts) == ("my-lws-0.my-lws.default", ())


@pytest.mark.parametrize(
    ("other", "doubt"),
    [
        (
            {**RBG, "RBG_LWP_WORKER_INDEX": "1"},
            "index 2, RoleBasedGroup index 1: the former counts (--orchestrator rbg",
        ),
        ({**TORCHRUN, "NNODES": "2"}, "size 4, torchrun's names size 2: the former counts (--orchestrator torchrun"),
        ({"NNODES": "2"}, "size 4, torchrun's names size 2: the former counts"),
    ],
)
def test_lws_wins_a_contradiction_and_says_so(other: dict[str, str], doubt: str) -> None:
    group = parse_group({**other, **LWS})
    assert group == parse_group(LWS)
    assert group.doubts[0].startswith(f"LeaderWorkerSet says {doubt}")


def test_torchruns_names_are_the_users_and_never_outrank_a_controller() -> None:
    group = parse_group({**AIBRIX, **TORCHRUN, "NODE_RANK": "0"})
    assert group.index == 2
    assert group.doubts[0].startswith("AIBrix says index 2, torchrun's names index 0: the former counts")


def test_two_controllers_of_equal_rank_that_contradict_each_other_are_refused() -> None:
    assert refusal({**RBG, **AIBRIX, "POD_GROUP_SIZE": "8"}).splitlines() == [
        "two controllers contradict each other: RoleBasedGroup says size 4, AIBrix size 8",
        "  expected: variables of one controller, or the same place from both",
        "  to do: say which one counts: --orchestrator rbg or aibrix",
    ]
    assert parse_group({**RBG, **AIBRIX, "POD_GROUP_SIZE": "8"}, orchestrator="aibrix").size == 8
    assert parse_group({**RBG, **AIBRIX, "POD_GROUP_SIZE": "8"}, leader_address="a", size="3", index="0").size == 3


def test_who_names_a_controller_whose_variables_are_absent_is_told_them() -> None:
    text = refusal(LWS, "aibrix")
    assert text.startswith("this is not a pod of a group: the leader's name (PODSET_NAME, STORM_SERVICE_NAME), POD_GRO")
    assert "expected: the variables of AIBrix, because of --orchestrator aibrix" in text


@pytest.mark.parametrize(
    "environ",
    [
        {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b", "TPU_NAME": "a", "TPU_PROCESS_ADDRESSES": "a:8476"},
        {"NEURON_RT_ROOT_COMM_ID": "leader:8990", "NEURON_RT_NUM_CORES": "32"},
    ],
    ids=["TPU", "Neuron"],
)
def test_an_accelerators_own_variables_are_no_identity(environ: dict[str, str]) -> None:
    assert refusal(environ).startswith("this is not a pod of a group")
    assert parse_group({**LWS, **environ}) == parse_group(LWS)
