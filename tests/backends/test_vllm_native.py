"""Native multi-node vLLM: which pod gets which flags, and what is refused before anything starts."""

from __future__ import annotations

import pytest
from vllm_requests import added, made, plans, refusal

from backends.plan import EnvVar, Kind, Main, Plan, PortOpen
from backends.serving import RANKS
from backends.vllm import plan_vllm

LEADER = "but the group's leader is my-lws-0.my-lws.default (10.0.0.10)"
WHY_DRAIN = "asked to stop, vLLM answers the requests that it has for so long, instead of aborting them"


def test_without_ray_the_leader_serves_and_the_worker_is_headless() -> None:
    leader, worker = plans("vllm serve m -tp 16", version="0.33.0")
    run = ("vllm", "serve", "m", "-tp", "16", "--nnodes", "2", "--node-rank")
    assert leader == Plan(
        backend="vllm",
        mode="native multi-node",
        reason="the image has no Ray and the model spans 2 nodes",
        kind=Kind.SERVER,
        env=(EnvVar("VLLM_HOST_IP", "10.0.0.10", "this pod's own address, never guessed"),),
        main=Main(
            (*run, "0", "--master-addr", "10.0.0.10", "--shutdown-timeout", "15"),
            Kind.SERVER,
            serves=PortOpen("localhost", 8000, "vllm"),
            asked_alone=True,
            ranks=RANKS["vllm"],
        ),
        decisions=(
            "--nnodes 2 --node-rank 0 --master-addr 10.0.0.10: node 0 of 2, the leader, it serves",
            f"--shutdown-timeout 15: {WHY_DRAIN}",
        ),
    )
    assert worker == Plan(
        backend="vllm",
        mode="native multi-node",
        reason="the image has no Ray and the model spans 2 nodes",
        kind=Kind.SERVER,
        env=(EnvVar("VLLM_HOST_IP", "10.0.0.11", "this pod's own address, never guessed"),),
        main=Main(
            (*run, "1", "--master-addr", "10.0.0.10", "--headless"),
            Kind.SERVER,
            serves=None,
            asked_alone=False,
            ranks=RANKS["vllm"],
        ),
        decisions=("--nnodes 2 --node-rank 1 --master-addr 10.0.0.10 --headless: node 1 of 2, it serves no HTTP",),
    )


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [("-tp 32", (8,) * 4), ("-tp 8 -pp 4", (8,) * 4), ("-pp 4", (1,) * 4), ("-tp 4 -pp 2 -pcp 4", (8,) * 4)],
)
def test_every_layout_that_fits_gets_the_same_flags_but_for_its_rank(flags: str, gpus: tuple[int, ...]) -> None:
    common = "--nnodes 4 --node-rank {} --master-addr 10.0.0.10"
    assert added(f"vllm serve m {flags}", gpus) == [
        common.format(0),
        *(f"{common.format(rank)} --headless" for rank in (1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-tp 16 --distributed-executor-backend mp", "the command says --distributed-executor-backend mp"),
        ("-tp 16 --nnodes 2", "the command says --nnodes"),
        ("-tp 16 --master-addr my-lws-0.my-lws.default", "the command says --master-addr"),
    ],
)
def test_a_command_that_says_so_is_native_in_an_image_with_ray_too(line: str, reason: str) -> None:
    plan = plan_vllm(made(f"vllm serve m {line}", ray="2.60.0"))
    assert (plan.mode, plan.reason, plan.services) == ("native multi-node", reason, ())


def test_native_can_be_forced_in_an_image_with_ray() -> None:
    plan = plan_vllm(made("vllm serve m -tp 16", ray="2.60.0", mode="native"))
    assert (plan.mode, plan.reason) == ("native multi-node", "--vllm-mode native")


@pytest.mark.parametrize(
    ("given", "rest"),
    [
        ("--nnodes 2 --node-rank 1 --master-addr 10.0.0.10 --headless", ""),
        ("-n2 -r1", " --master-addr 10.0.0.10 --headless"),
        ("-dpa 10.1.1.1 -dpp 5", " --nnodes 2 --node-rank 1 --master-addr 10.0.0.10 --headless"),  # of one replica
        ("--master-port 1234", " --nnodes 2 --node-rank 1 --master-addr 10.0.0.10 --headless"),
    ],
)
def test_flags_that_the_user_gave_are_kept_where_they_agree(given: str, rest: str) -> None:
    line = f"vllm serve m -tp 16 {given}"
    plan = plan_vllm(made(line, 1))
    assert plan.main is not None
    assert " ".join(plan.main.argv) == line + rest


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", ["my-lws-0.my-lws.default", "my-lws-0.my-lws.default.svc.cluster.local", "pod-0"])
def test_a_name_of_the_leader_is_given_as_its_ip(name: str, index: int) -> None:
    plan = plan_vllm(made(f"vllm serve m --master_addr={name} -tp 16", index))
    assert plan.main is not None
    rest = (
        "--nnodes",
        "2",
        "--node-rank",
        str(index),
        "--master-addr",
        "10.0.0.10",
        *(["--headless"] if index else []),
    )
    assert plan.main.argv == ("vllm", "serve", "m", "-tp", "16", *rest)
    assert f"--master_addr {name} is given as 10.0.0.10: a name may not resolve yet" in plan.decisions


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        ("--port 9470", "port 9470 is that of --port and of lwsrun itself"),
        ("--master-port 9470", "port 9470 is that of --master-port and of lwsrun itself"),
        ("--master-port 8000", "port 8000 is that of --port and of --master-port"),
        ("--port 29501", "port 29501 is that of --port and of --master-port"),
        ("--grpc-port 8000", "port 8000 is that of --grpc-port and of --port"),
    ],
)
def test_two_that_would_listen_at_one_port_are_named(flags: str, taken: str) -> None:
    assert refusal(f"vllm serve m -tp 16 {flags}").splitlines()[0] == taken


def test_a_pod_that_serves_no_http_needs_no_port_for_it() -> None:
    assert plan_vllm(made("vllm serve m -tp 16 --port 9470 --headless", 1)).main is not None


def test_alone_lwsrun_listens_nowhere() -> None:
    assert plan_vllm(made("vllm serve m -tp 8 --port 9470", gpus=(8,))).main is not None


def test_one_line_with_placeholders_serves_every_pod() -> None:
    line = "vllm serve m -tp {size*gpus} --master-addr {leader_ip} --node-rank {index} --nnodes {size}"
    wanted = "vllm serve m -tp 16 --master-addr 10.0.0.10 --node-rank {} --nnodes 2"
    mains = [plan.main for plan in plans(line)]
    assert [" ".join(main.argv) for main in mains if main] == [wanted.format(0), wanted.format(1) + " --headless"]


@pytest.mark.parametrize(
    ("given", "index", "found"),
    [
        ("--nnodes 3", 0, "--nnodes is 3, but the group's size is 2"),
        ("-n3", 1, "-n is 3, but the group's size is 2"),
        ("--node-rank 0", 1, "--node-rank is 0, but this pod's index is 1"),
        ("--master-addr 10.9.9.9", 1, f"--master-addr is 10.9.9.9, {LEADER}"),
        ("--master-addr localhost", 0, f"--master-addr is localhost, {LEADER}"),
        ("--master-addr 127.0.0.1", 0, f"--master-addr is 127.0.0.1, {LEADER}"),
        ("--master-addr other-lws-3.foo", 1, f"--master-addr is other-lws-3.foo, {LEADER}"),
        ("--master-addr=", 0, f"--master-addr is , {LEADER}"),
        (
            "--master-addr $LWS_LEADER_ADDRESS",
            1,
            "--master-addr is '$LWS_LEADER_ADDRESS': it looks like a variable that nobody expanded",
        ),
        ("--headless", 0, "--headless on the leader: nobody would serve"),
        ("--nnodes two", 0, "--nnodes is 'two'"),
    ],
)
def test_flags_that_contradict_the_group_are_refused_with_both_values(given: str, index: int, found: str) -> None:
    assert refusal(f"vllm serve m -tp 16 {given}", index).splitlines()[0] == found


@pytest.mark.parametrize("version", ["0.11.0", "0.11.0.post2", "0.10.2", "0.8.5"])
def test_an_older_vllm_is_told_what_it_lacks(version: str) -> None:
    assert refusal("vllm serve m -tp 16", version=version) == (
        f"vLLM {version} has no native multi-node mode (--nnodes)\n"
        "  expected: 0.11.1 or newer\n"
        "  to do: use a newer image, or install ray in this one: lwsrun then runs the model on Ray"
    )


@pytest.mark.parametrize("version", ["0.11.1", "0.33.0", None, "0.1.dev1+gabc"])
def test_a_newer_or_unknown_vllm_is_not(version: str | None) -> None:
    assert plan_vllm(made("vllm serve m -tp 16", version=version)).mode == "native multi-node"


def test_nodes_with_unlike_gpus_are_refused_because_ranks_are_spread_evenly() -> None:
    assert refusal("vllm serve m -tp 12", gpus=(8, 4)) == (
        "the nodes have 8 + 4 GPUs: native vLLM puts as many ranks on every node\n"
        "  expected: as many GPUs on every node\n"
        "  to do: make all pods alike; or --vllm-mode ray, in an image with Ray, which takes them as they are"
    )
    assert "Fits" not in refusal("vllm serve m -tp 16", gpus=(8, 4))
    assert plan_vllm(made("vllm serve m -tp 12", gpus=(8, 4), ray="2.60.0", mode="ray")).mode == "Ray"


@pytest.mark.parametrize(
    ("start", "worker"),
    [
        ("vllm serve m", "vllm serve m"),
        ("numactl -N 0 vllm serve m", "numactl -N 0 vllm serve m"),
        ("python3 -m vllm.entrypoints.openai.api_server --model m", "python3 -m vllm.entrypoints.cli.main serve m"),
        ("python3 /v/vllm/entrypoints/openai/api_server.py --model=m", "python3 -m vllm.entrypoints.cli.main serve m"),
        ("python3 -m dynamo.vllm --model m", "python3 -m dynamo.vllm --model m"),
    ],
)
def test_a_headless_pod_is_started_by_the_entry_that_knows_headless(start: str, worker: str) -> None:
    leader, other = plans(f"{start} -tp 16")
    assert leader.main is not None
    assert other.main is not None
    rest = "-tp 16 --nnodes 2 --node-rank {} --master-addr 10.0.0.10"
    assert " ".join(leader.main.argv) == f"{start} {rest.format(0)}"
    assert " ".join(other.main.argv) == f"{worker} {rest.format(1)} --headless"


def test_flags_of_an_api_server_are_left_out_where_there_is_none() -> None:
    leader, worker = plans("vllm serve m -tp 16 --api-server-count 4 --grpc-port 5")
    assert leader.main is not None
    assert worker.main is not None
    assert "--api-server-count" in leader.main.argv
    assert " ".join(worker.main.argv) == (
        "vllm serve m -tp 16 --nnodes 2 --node-rank 1 --master-addr 10.0.0.10 --headless"
    )
    assert worker.decisions[1:] == (
        "left out --api-server-count: this pod has no API server",
        "left out --grpc-port: this pod has no API server",
    )


def test_dynamo_drains_by_itself_and_serves_no_http_that_we_know() -> None:
    leader, worker = plans("python3 -m dynamo.vllm --model m -tp 16", version="0.33.0")
    assert leader.main is not None
    assert worker.main is not None
    assert (leader.main.serves, worker.main.serves) == (None, None)
    assert "--shutdown-timeout" not in leader.main.argv
