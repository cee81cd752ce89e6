"""Data parallel vLLM: ranks, local sizes, addresses and gates of every pod, and what is refused before it starts."""

from __future__ import annotations

import pytest
from vllm_requests import added, made, plans, refusal

from backends.plan import PortOpen
from backends.vllm import plan_vllm

AT = "--data-parallel-address 10.0.0.10 --data-parallel-rpc-port 29550"
GATE = PortOpen("10.0.0.10", 29550, "vLLM's front end on the leader")


@pytest.mark.parametrize(
    ("flags", "gpus", "local"),
    [("-tp 4 -dp 4", (8, 8), 2), ("-dp 16", (8, 8), 8), ("-tp 2 -pp 2 -dp 4", (8, 8), 2), ("-dp 2", (1, 1), 1)],
)
def test_internal_the_leader_serves_and_ranks_follow_the_index(flags: str, gpus: tuple[int, ...], local: int) -> None:
    assert added(f"vllm serve m {flags}", gpus) == [
        f"--data-parallel-size-local {local} {AT}",
        f"--data-parallel-size-local {local} {AT} --data-parallel-start-rank {local} --headless",
    ]
    leader, worker = plans(f"vllm serve m {flags}", gpus)
    assert (leader.gates, worker.gates) == ((), (GATE,))
    assert leader.main is not None
    assert worker.main is not None
    assert (leader.main.serves, worker.main.serves) == (PortOpen("localhost", 8000, "vllm"), None)
    assert (leader.main.asked_alone, worker.main.asked_alone) == (True, False)
    assert leader.mode == "data parallel, internal load balancing"


def test_internal_a_replica_that_spans_nodes_is_native_in_itself() -> None:
    nodes = "--nnodes 4 --node-rank {} --master-addr 10.0.0.10 --data-parallel-size-local 1 " + AT
    assert added("vllm serve m -tp 16 -dp 2", (8,) * 4) == [
        nodes.format(0),
        f"{nodes.format(1)} --data-parallel-start-rank 0 --headless",
        f"{nodes.format(2)} --data-parallel-start-rank 1 --headless",
        f"{nodes.format(3)} --data-parallel-start-rank 1 --headless",
    ]
    spanning = plans("vllm serve m -tp 16 -dp 2", (8,) * 4)
    assert [plan.gates for plan in spanning] == [(), (GATE,), (GATE,), (GATE,)]
    assert all("vLLM does this for MoE models" in plan.notes[0] for plan in spanning)
    assert spanning[3].decisions[0].endswith(": node 1 of the 2 of replica 1, of 2 replicas; it serves no HTTP")


def test_unlike_nodes_get_as_many_replicas_as_they_hold() -> None:
    assert added("vllm serve m -tp 2 -dp 7", (4, 8, 2)) == [
        f"--data-parallel-size-local 2 {AT}",
        f"--data-parallel-size-local 4 {AT} --data-parallel-start-rank 2 --headless",
        f"--data-parallel-size-local 1 {AT} --data-parallel-start-rank 6 --headless",
    ]


def test_hybrid_every_pod_serves_for_its_own_replicas() -> None:
    assert added("vllm serve m -tp 4 -dp 4 --data-parallel-hybrid-lb", (8, 8)) == [
        f"--data-parallel-size-local 2 {AT} --data-parallel-start-rank 0",
        f"--data-parallel-size-local 2 {AT} --data-parallel-start-rank 2",
    ]
    leader, worker = plans("vllm serve m -tp 4 -dp 4 -dph")
    assert worker.main is not None
    assert worker.main.serves == PortOpen("localhost", 8000, "vllm")
    assert (leader.gates, worker.gates) == ((), (GATE,))


def test_hybrid_is_said_to_vllm_where_it_was_only_implied_or_forced() -> None:
    wanted = "--data-parallel-hybrid-lb --data-parallel-size-local 2 " + AT
    assert added("vllm serve m -tp 4 -dp 4", mode="hybrid-lb") == [
        f"{wanted} --data-parallel-start-rank 0",
        f"{wanted} --data-parallel-start-rank 2",
    ]
    plan = plan_vllm(made("vllm serve m -tp 4 -dp 4 -dpr 2", 1))
    assert plan.main is not None
    assert " ".join(plan.main.argv) == f"vllm serve m -tp 4 -dp 4 -dpr 2 {wanted}"


def test_hybrid_with_one_replica_in_a_pod_is_told_as_what_vllm_makes_of_it() -> None:
    assert "external load balancing to vLLM" in plan_vllm(made("vllm serve m -tp 8 -dp 2 -dph")).notes[0]


def test_external_every_pod_is_a_rank_with_its_own_server() -> None:
    assert added("vllm serve m -tp 8 -dp 2 -dpe") == [
        f"--data-parallel-size-local 1 {AT} --data-parallel-rank 0",
        f"--data-parallel-size-local 1 {AT} --data-parallel-rank 1",
    ]
    assert "MoE models only" in plan_vllm(made("vllm serve m -tp 8 -dp 2 -dpe")).notes[0]


def test_external_a_rank_has_one_name() -> None:
    text = refusal("vllm serve m -tp 16 -dp 2 -dpe -dpr 0 --headless", 1, (8,) * 4)
    assert text.startswith("--data-parallel-start-rank with external load balancing")


def test_external_a_replica_over_nodes_is_served_by_its_first() -> None:
    nodes = "--nnodes 4 --node-rank {} --master-addr 10.0.0.10 --data-parallel-size-local 1 " + AT
    assert added("vllm serve m -tp 16 -dp 2 -dpe", (8,) * 4) == [
        f"{nodes.format(0)} --data-parallel-rank 0",
        f"{nodes.format(1)} --data-parallel-rank 0 --headless",
        f"{nodes.format(2)} --data-parallel-rank 1",
        f"{nodes.format(3)} --data-parallel-rank 1 --headless",
    ]


def test_multi_port_every_pod_serves_each_replica_on_a_port_of_its_own() -> None:
    assert added("vllm serve m -tp 4 -dp 4 -dpm") == [
        f"--data-parallel-size-local 2 {AT} --data-parallel-start-rank 0",
        f"--data-parallel-size-local 2 {AT} --data-parallel-start-rank 2",
    ]
    worker = plan_vllm(made("vllm serve m -tp 4 -dp 4 -dpm --port 9000", 1))
    assert worker.decisions[0].endswith("replicas 2 to 3 of 4; it serves on ports 9000 to 9001")
    assert worker.gates == (GATE,)


def test_multi_port_needs_vllm_serve_and_gets_it() -> None:
    leader = plan_vllm(made("python3 -m vllm.entrypoints.openai.api_server --model m -tp 4 -dp 4 -dpm"))
    assert leader.main is not None
    assert leader.main.argv[:6] == ("python3", "-m", "vllm.entrypoints.cli.main", "serve", "m", "-tp")


def test_on_ray_the_leader_runs_one_command_and_the_workers_only_ray() -> None:
    leader, worker = plans("vllm serve m -tp 4 -dp 4 --data-parallel-backend ray", ray="2.60.0")
    assert leader.main is not None
    assert " ".join(leader.main.argv) == (
        "vllm serve m -tp 4 -dp 4 --data-parallel-backend ray --data-parallel-address 10.0.0.10"
        " --data-parallel-size-local 2"
    )
    assert (worker.main, worker.leader_only, leader.mode) == (None, True, "data parallel on Ray")
    assert leader.main.in_flight is not None
    assert not [v for v in leader.env if v.name == "VLLM_RAY_DP_PACK_STRATEGY"]


@pytest.mark.parametrize(
    ("flags", "gpus", "strategy"),
    [("-tp 16 -dp 2", (8,) * 4, "span"), ("-tp 2 -dp 6", (8, 4), "fill")],
)
def test_on_ray_replicas_over_nodes_or_on_unlike_ones_are_packed_otherwise(
    flags: str, gpus: tuple[int, ...], strategy: str
) -> None:
    line = f"vllm serve m {flags} -dpb ray"
    for plan in plans(line, gpus, ray="2.60.0"):
        assert [v.value for v in plan.env if v.name == "VLLM_RAY_DP_PACK_STRATEGY"] == [strategy]
    text = refusal(line, gpus=gpus, ray="2.60.0", environ={"VLLM_RAY_DP_PACK_STRATEGY": "strict"})
    assert text.startswith("VLLM_RAY_DP_PACK_STRATEGY is strict, but ")


@pytest.mark.parametrize(
    ("given", "index"),
    [
        ("-dpl 2 -dpa 10.0.0.10 -dpp 29550", 0),
        ("--data-parallel-size-local=2 --data-parallel-start-rank 2 --headless", 1),
        ("-dpl {gpus} -dpr {index*gpus}", 1),
    ],
)
def test_flags_that_the_user_gave_are_kept_where_they_agree(given: str, index: int) -> None:
    line, gpus = ("vllm serve m -dp 4 " + given, (2, 2))
    plan = plan_vllm(made(line, index, gpus))
    assert plan.main is not None
    words = " ".join(plan.main.argv)
    assert words.startswith(line.replace("{gpus}", "2").replace("{index*gpus}", "2"))
    for flag in ("--data-parallel-size-local", "--data-parallel-address", "--data-parallel-start-rank"):
        assert words.count(flag) <= 1


def test_a_port_that_the_user_chose_is_the_gates_too() -> None:
    assert plan_vllm(made("vllm serve m -tp 4 -dp 4 -dpp 13345", 1)).gates == (
        PortOpen("10.0.0.10", 13345, "vLLM's front end on the leader"),
    )


@pytest.mark.parametrize("flags", ["-tp 4 -dp 4", "-tp 4 -dp 4 -dpb ray", "-tp 4 -dp 4 -dpm"])
def test_a_name_of_the_leader_is_given_as_its_ip_because_the_leader_binds_there(flags: str) -> None:
    for plan in plans(f"vllm serve m -dpa my-lws-0.my-lws.default {flags}", ray="2.60.0"):
        if plan.main is None:
            continue
        words = " ".join(plan.main.argv)
        assert "my-lws" not in words
        assert words.count("--data-parallel-address 10.0.0.10") == 1
        assert "-dpa my-lws-0.my-lws.default is given as 10.0.0.10: a name may not resolve yet" in plan.decisions
        assert [gate.host for gate in plan.gates if isinstance(gate, PortOpen)] in ([], ["10.0.0.10"])


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        ("-tp 4 -dp 4 --data-parallel-rpc-port 8000", "port 8000 is that of --port and of --data-parallel-rpc-port"),
        ("-tp 4 -dp 4 -dpp 9470", "port 9470 is that of --data-parallel-rpc-port and of lwsrun itself"),
        ("-tp 4 -dp 4 -dph --port 9470", "port 9470 is that of --port and of lwsrun itself"),
        ("-tp 4 -dp 4 -dpm --port 9469", "port 9470 is that of --port and of lwsrun itself"),
        ("-tp 4 -dp 4 -dpm -dpp 9256", "port 9256 is that of --data-parallel-supervisor-port and of --data-parallel-r"),
        ("-tp 4 -dp 4 -dpb ray --port 6379", "port 6379 is that of --port and of Ray (--ray-port)"),
        ("-tp 16 --port 6379", "port 6379 is that of --port and of Ray (--ray-port)"),
    ],
)
def test_two_that_would_listen_at_one_port_are_named(flags: str, taken: str) -> None:
    assert refusal(f"vllm serve m {flags}", ray="2.60.0").startswith(taken)


@pytest.mark.parametrize(
    ("flags", "index", "found"),
    [
        ("-tp 4 -dp 4 -dpl 4", 0, "-dpl is 4, but this pod's number of replicas is 2"),
        ("-tp 4 -dp 4 -dpr 1 --headless", 1, "-dpr is 1, but this pod's first rank is 2"),
        ("-tp 8 -dp 2 --data-parallel-rank 0", 1, "--data-parallel-rank is 0, but this pod's rank is 1"),
        ("-tp 4 -dp 4 -dpa 10.9.9.9", 1, "-dpa is 10.9.9.9, but the group's leader is my-lws-0.my-lws.default (10"),
        ("-tp 4 -dp 4 --nnodes 4", 0, "--nnodes is 4, but the group's size is 2"),
        ("-tp 4 -dp 4 --headless", 0, "--headless on the leader: nobody would serve"),
        ("-tp 4 -dp 4 -dph --headless", 1, "--headless: with hybrid load balancing every pod serves"),
        ("-tp 8 -dp 2 -dpe --headless", 1, "--headless: with external load balancing every replica's first pod serves"),
        ("-tp 4 -dp 4 -dpe", 0, "external load balancing is one replica for each `vllm serve`; a pod's 8 GPUs hold 2"),
        ("-tp 8 -dp 2 -dpe -dpr 1", 1, "--data-parallel-start-rank without --headless and --data-parallel-external-lb"),
        ("-tp 8 -dp 2 -dpm", 0, "--data-parallel-multi-port-external-lb: this pod's GPUs hold 1 of 2 replicas"),
        ("-tp 4 -dp 4 -dpm --port 9255", 0, "the supervisor's port 9256 is one of the replicas' 9255 to 9256"),
        ("-tp 4 -dp 4 -dpm --uds /s", 0, "--uds with --data-parallel-multi-port-external-lb"),
        ("-tp 4 -dp 4 -dpm -asc 2", 0, "--api-server-count with --data-parallel-multi-port-external-lb"),
        ("-tp 3 -dp 4", 0, "TP 3 × PP 1 × DP 4 needs 12 GPUs; the group has 2 nodes × 8 = 16"),
        ("-tp 4 -dp 8", 0, "TP 4 × PP 1 × DP 8 needs 32 GPUs; the group has 2 nodes × 8 = 16"),
        ("-tp 4 -dp 4 -dpb ray --nnodes 2", 0, "--nnodes and --data-parallel-backend ray contradict each other"),
        ("-tp 4 -dp 4 -dpb ray -dpl 4", 0, "-dpl is 4, but the leader's share of the replicas is 2"),
    ],
)
def test_what_contradicts_the_group_is_refused_with_both_values(flags: str, index: int, found: str) -> None:
    assert refusal(f"vllm serve m {flags}", index, ray="2.60.0").startswith(found)


@pytest.mark.parametrize(
    ("flags", "gpus", "found"),
    [
        ("-tp 3 -dp 4", (4, 4, 4), "a replica of TP 3 × PP 1 fits neither into a node nor into whole nodes"),
        ("-tp 6 -dp 2", (4, 4, 4), "a replica of TP 6 × PP 1 fits neither into a node nor into whole nodes"),
        ("-tp 8 -dp 3", (8, 4, 8, 4), "the nodes have 8 + 4 + 8 + 4 GPUs: a replica of 8 GPUs spans nodes"),
        ("-tp 16 -dp 2 -dph", (8,) * 4, "hybrid load balancing needs whole replicas in a pod; one of 16 GPUs spans 2"),
    ],
)
def test_replicas_that_would_lie_across_nodes_are_refused(flags: str, gpus: tuple[int, ...], found: str) -> None:
    assert refusal(f"vllm serve m {flags}", gpus=gpus).startswith(found)


@pytest.mark.parametrize(
    ("flags", "version", "needed"),
    [
        ("-tp 4 -dp 4", "0.8.5", "0.9"),
        ("-tp 4 -dp 4 -dph", "0.9.2", "0.10"),
        ("-tp 8 -dp 2 -dpn 0", "0.9.1", "0.9.2"),
        ("-tp 4 -dp 4 -dpm", "0.21.0", "0.22"),
        ("-tp 4 -dp 4 -dpb ray", "0.9.0.1", "0.9.1"),
    ],
)
def test_an_older_vllm_is_told_since_when_a_mode_exists(flags: str, version: str, needed: str) -> None:
    assert f"expected: {needed} or newer" in refusal(f"vllm serve m {flags}", version=version, ray="2.60.0")
    assert plan_vllm(made(f"vllm serve m {flags}", version=f"{needed}.0", ray="2.60.0")).backend == "vllm"


def test_replicas_over_nodes_need_a_vllm_with_native_nodes() -> None:
    assert "expected: 0.11.1 or newer" in refusal("vllm serve m -tp 16 -dp 2", gpus=(8,) * 4, version="0.11.0")


def test_what_we_add_agrees_on_all_pods_but_for_ranks() -> None:
    role = {"--node-rank", "--data-parallel-start-rank", "--headless"}
    seen = set()
    for line in added("vllm serve m -tp 16 -dp 2", (8,) * 4):
        words = line.split()
        pairs = [(w, words[at + 1]) for at, w in enumerate(words[:-1]) if w.startswith("--") and w not in role]
        seen.add(tuple(pairs))
    assert len(seen) == 1
