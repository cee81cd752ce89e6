"""SGLang: what each pod of a group is given, and what is refused because it could never form."""

from __future__ import annotations

import pytest

from backends.digest import common_part
from backends.errors import ConfigError
from backends.group import Group
from backends.layout import LayoutError
from backends.plan import EnvVar, Kind, Main, Node, Options, Plan, PortOpen, Request
from backends.serving import RANKS
from backends.sglang import plan_sglang

SERVER = "python3 -m sglang.launch_server --model-path m"
LEADER = "my-lws-0.my-lws.default"


def request(
    flags: str,
    index: int = 0,
    gpus: tuple[int, ...] = (8, 8),
    environ: dict[str, str] | None = None,
    options: Options | None = None,
    start: str = SERVER,
    ips: str = "10.0.0.1{}",
    gpus_from: str = "NVML",
    leader: str = LEADER,
) -> Request:
    nodes = tuple(
        Node(ip=ips.format(at), hostname="my-lws-0" if at == 0 else f"my-lws-0-{at}", gpus=n, gpus_from=gpus_from)
        for at, n in enumerate(gpus)
    )
    group = Group(leader, len(gpus), index, "id")
    return Request(group, nodes, tuple(f"{start} {flags}".split()), options or Options(), environ or {})


def refusal(made: Request) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_sglang(made)
    return caught.value.text()


def added(flags: str, index: int = 0, **other: object) -> str:
    """What lwsrun puts after the user's command, which must be unchanged before it."""
    made = request(flags, index, **other)  # type: ignore[arg-type]
    plan = plan_sglang(made)
    assert plan.main is not None
    assert plan.main.argv[: len(made.argv)] == made.argv
    return " ".join(plan.main.argv[len(made.argv) :])


def main_line(plan: Plan) -> str:
    assert plan.main is not None
    return " ".join(plan.main.argv)


# --- two nodes of eight, the whole plan ---


@pytest.mark.parametrize(("index", "ip"), [(0, "10.0.0.10"), (1, "10.0.0.11")])
def test_every_pod_runs_the_same_command_with_its_own_rank(index: int, ip: str) -> None:
    plan = plan_sglang(request("--tp 16", index))
    place = f"--dist-init-addr 10.0.0.10:20000 --nnodes 2 --node-rank {index} --host 0.0.0.0 --port 30000"
    assert plan == Plan(
        backend="sglang",
        mode="multi-node",
        reason="every pod runs SGLang with its own rank; TP 16: 8 ranks on each node",
        kind=Kind.SERVER,
        env=(EnvVar("SGLANG_HOST_IP", ip, "this pod's own address, never guessed"),),
        main=Main(
            tuple(f"{SERVER} --tp 16 {place}".split()),
            Kind.SERVER,
            serves=PortOpen("localhost", 30000, "sglang"),
            asked_alone=True,
            ranks=RANKS["sglang"],
        ),
        agreed=("rendezvous port 20000",),
        decisions=(
            "--dist-init-addr: the ranks meet at the leader's own address, port 20000",
            "--nnodes 2: the group's size",
            f"--node-rank {index}: this pod's index",
            "--host 0.0.0.0: SGLang's own is 127.0.0.1, where no probe and no client gets",
            "--port 30000: on workers SGLang answers /health there",
        ),
    )


@pytest.mark.parametrize("start", [SERVER, "sglang serve m", "numactl -N 0 python3 -m sglang.launch_server"])
def test_every_form_of_the_command_is_a_group(start: str) -> None:
    assert added("--tp 16", 1, start=start).startswith("--dist-init-addr 10.0.0.10:20000 --nnodes 2 --node-rank 1")


def test_what_is_added_stands_before_a_closing_double_dash() -> None:
    line = main_line(plan_sglang(request("--tp 16 --")))
    assert line.endswith("--node-rank 0 --host 0.0.0.0 --port 30000 --")


def test_alone_the_command_is_unchanged_and_only_the_address_is_set() -> None:
    plan = plan_sglang(request("--tp 8", gpus=(8,)))
    assert (plan.mode, plan.reason) == ("single node", "the group is this pod alone")
    assert main_line(plan) == f"{SERVER} --tp 8"
    assert plan.decisions == ()
    assert [v.name for v in plan.env] == ["SGLANG_HOST_IP"]


def test_dynamos_worker_gets_its_rank_and_no_address_of_a_server_that_it_does_not_have() -> None:
    made = request("--tp 16", 1, start="python3 -m dynamo.sglang --model-path m")
    plan = plan_sglang(made)
    assert main_line(plan).endswith("--tp 16 --dist-init-addr 10.0.0.10:20000 --nnodes 2 --node-rank 1")
    assert plan.main is not None
    assert plan.main.serves is None
    assert plan.main.asked_alone


def test_flags_of_disaggregation_and_experts_pass_through() -> None:
    flags = (
        "--tp 16 --dp-size 16 --enable-dp-attention --moe-a2a-backend deepep --moe-dense-tp-size 1 --ep-size 16"
        " --disaggregation-mode prefill --disaggregation-ib-device mlx5_0,mlx5_1 --disaggregation-transfer-backend nixl"
    )
    assert added(flags).startswith("--dist-init-addr 10.0.0.10:20000 ")


# --- the place in the group ---


@pytest.mark.parametrize(
    "flags",
    [
        "--nnodes 2 --node-rank 1 --dist-init-addr 10.0.0.10:20000",
        "--nnodes={size} --node-rank={index} --dist-init-addr={leader_ip}:20000",
        "--nn 2 --nod 1 --nccl-init-addr 10.0.0.10:20000",
        "--node-rank 0 --node-rank 1 --nnodes 2 --dist-i 10.0.0.10:20000",
    ],
)
def test_a_place_that_the_user_gives_and_that_is_right_is_kept(flags: str) -> None:
    made = request(f"--tp 16 {flags} --host 0.0.0.0 --port 30000", 1)
    expected = " ".join(made.argv).replace("{size}", "2").replace("{index}", "1").replace("{leader_ip}", "10.0.0.10")
    plan = plan_sglang(made)
    assert main_line(plan) == expected
    assert plan.decisions == ()


@pytest.mark.parametrize(
    ("flags", "index", "text"),
    [
        ("--nnodes 3", 0, "--nnodes is 3, but the group's size is 2"),
        ("--nnode 3", 0, "--nnode is 3, but the group's size is 2"),
        ("--node-rank 0", 1, "--node-rank is 0, but this is worker 1, whose rank is 1"),
        ("--node-rank 5", 1, "--node-rank is 5, but this is worker 1, whose rank is 1"),
        ("--node-rank 1", 0, "--node-rank is 1, but this is the leader, whose rank is 0"),
        ("--nnodes two", 0, "--nnodes is 'two'\n  expected: a whole number, 1 or more"),
    ],
)
def test_a_place_that_contradicts_the_group_is_refused_with_both(flags: str, index: int, text: str) -> None:
    assert text in refusal(request(f"--tp 16 {flags}", index))


def test_two_contradictions_are_told_together() -> None:
    text = refusal(request("--tp 16 --nnodes 3 --node-rank 0", 1))
    assert "--nnodes is 3" in text
    assert "--node-rank is 0" in text


def test_alone_more_nodes_are_a_contradiction_too() -> None:
    assert refusal(request("--tp 8 --nnodes 2", gpus=(8,))).startswith("--nnodes is 2, but the group's size is 1")


# --- where the ranks meet ---


@pytest.mark.parametrize("host", [LEADER, "my-lws-0", "my-lws-0.my-lws", "MY-LWS-0", f"{LEADER}.svc.cluster.local"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_leaders_name_is_given_as_its_address_because_the_leader_binds_to_it(host: str, index: int) -> None:
    plan = plan_sglang(request(f"--tp 16 --dist-init-addr {host}:21000 --trust-remote-code", index))
    assert f"{host}:21000" not in main_line(plan)
    assert "--trust-remote-code --dist-init-addr 10.0.0.10:21000" in main_line(plan)
    assert plan.decisions[0] == (
        f"--dist-init-addr {host}:21000 is given as the leader's address, port 21000: a name may not resolve yet"
    )


@pytest.mark.parametrize("index", [0, 1])
def test_an_ipv6_address_is_bracketed_and_the_server_listens_on_that_family(index: int) -> None:
    place = f"--dist-init-addr [fd00::10]:20000 --nnodes 2 --node-rank {index} --host :: --port 30000"
    assert added("--tp 16", index, ips="fd00::1{}") == place


@pytest.mark.parametrize("value", ["[fd00::10]:20000", "[FD00:0::10]:20000"])
def test_an_ipv6_address_may_be_written_in_any_way(value: str) -> None:
    line = main_line(plan_sglang(request(f"--tp 16 --dist-init-addr {value}", 1, ips="fd00::1{}")))
    assert "--dist-init-addr [fd00::10]:20000" in line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("$LWS_LEADER_ADDRESS:20000", "it looks like a variable that nobody expanded"),
        ("$(LWS_LEADER_ADDRESS):20000", "it looks like a variable that nobody expanded"),
        ("10.0.0.10", "expected: HOST:PORT, such as 10.0.0.10:20000"),
        ("10.0.0.10:", "expected: HOST:PORT"),
        (":20000", "expected: HOST:PORT"),
        ("10.0.0.10:70000", "expected: HOST:PORT"),
        ("10.0.0.10:²", "expected: HOST:PORT"),
        ("fd00::10:20000", "an IPv6 address in brackets"),
        ("10.0.0.99:20000", f"10.0.0.99:20000, but the group's leader is {LEADER} (10.0.0.10)"),
        ("127.0.0.1:20000", f"127.0.0.1:20000, but the group's leader is {LEADER} (10.0.0.10)"),
        ("other-lws-0.my-lws.default:20000", f"but the group's leader is {LEADER} (10.0.0.10)"),
        ("my-lws-01:20000", f"but the group's leader is {LEADER} (10.0.0.10)"),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_rendezvous_that_sglang_takes_but_where_nobody_meets_is_refused(value: str, text: str, index: int) -> None:
    assert text in refusal(request(f"--tp 16 --dist-init-addr {value}", index))


def test_a_worker_that_has_not_joined_yet_does_not_know_the_leaders_address_and_refuses_none() -> None:
    made = request("--tp 16 --dist-init-addr 10.0.0.10:20000", 1, ips="10.0.0.11")  # all nodes like its own
    assert "--node-rank 1" in main_line(plan_sglang(made))


@pytest.mark.parametrize(
    ("flags", "port"),
    [
        ("", 20000),
        ("--port 20000", 20100),
        ("--port 20006", 20100),
        ("--port 20013", 20100),
        ("--port 20014", 20000),
        ("--po 20000", 20100),
        ("--disaggregation-mode prefill --disaggregation-bootstrap-port 20001 --port 20100", 20200),
        ("--grpc-port 20005", 20100),
        ("--nccl-p 20003", 20100),
        ("--smg-h 20004", 20100),
        ("--grpc-h 20004", 20100),
        ("--smg-grpc-mode --port 19999", 20100),
    ],
)
def test_the_rendezvous_keeps_clear_of_the_commands_other_ports(flags: str, port: int) -> None:
    assert f"--dist-init-addr 10.0.0.10:{port} " in added(f"--tp 16 {flags}")


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("flags", "port"),
    [("", 20000), ("--port 20000", 20100), ("--dist-init-addr {leader}:21000", 21000)],
)
def test_all_pods_must_agree_on_the_port_where_they_meet(flags: str, port: int, index: int) -> None:
    assert plan_sglang(request(f"--tp 16 {flags}", index)).agreed == (f"rendezvous port {port}",)


def test_alone_there_is_nothing_to_agree_on() -> None:
    assert plan_sglang(request("--tp 8", gpus=(8,))).agreed == ()


@pytest.mark.parametrize("gpus", [(8, 8), (8,)])
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--port 9470", "--port is 9470, but port 9470 is that of lwsrun itself too"),
        ("--po=9470", "--port is 9470, but port 9470 is that of lwsrun itself too"),
        ("--nccl-port 9470", "--nccl-port is 9470, but port 9470 is that of lwsrun itself too"),
        ("--grpc-port 30000", "--grpc-port is 30000, but port 30000 is that of --port too"),
        (
            "--disaggregation-mode prefill --port 8998",
            "--disaggregation-bootstrap-port is 8998, but port 8998 is that of --port too",
        ),
        (
            "--smg-http-sidecar-port 8001 --nccl-port 8001",
            "--nccl-port is 8001, but port 8001 is that of --smg-http-sidecar-port too",
        ),
    ],
)
def test_a_port_that_is_given_twice_is_refused(flags: str, text: str, gpus: tuple[int, ...]) -> None:
    assert refusal(request(f"--tp {sum(gpus)} {flags}", gpus=gpus)).splitlines()[0] == text


def test_a_port_of_zero_is_nobodys() -> None:
    assert "--node-rank 0" in added("--tp 16 --port 0 --nccl-port 0 --grpc-port 0")


def test_the_rendezvous_keeps_clear_of_the_launchers_own_port() -> None:
    assert "--dist-init-addr 10.0.0.10:20100 " in added("--tp 16", options=Options(channel_port=20002))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--dist-init-addr {leader}:30000", "port 30000 is that of --port too"),
        ("--dist-init-addr {leader}:8080 --port 8080", "port 8080 is that of --port too"),
        ("--dist-init-addr {leader}:9470", "port 9470 is that of lwsrun itself too"),
        ("--dist-init-addr {leader}:8998 --disaggregation-mode prefill", "is that of --disaggregation-bootstrap-port"),
        ("--dist-init-addr {leader}:29994 --attn-dp-size 2", "port 30000 is that of --port too"),
        ("--dist-init-addr {leader}:29987 --dp 2 --enable-dp-attention", "port 30000 is that of --port too"),
        ("--dist-init-addr {leader}:65530 --attn-dp-size 2", "65543 is beyond the last port"),
    ],
)
def test_a_rendezvous_port_that_something_else_has_is_refused(flags: str, text: str) -> None:
    assert text in refusal(request(f"--tp 16 {flags}"))


@pytest.mark.parametrize("flags", ["--dist-init-addr {leader}:29994", "--dist-init-addr {leader}:8998"])
def test_without_attention_dp_and_prefill_sglang_takes_that_port_alone(flags: str) -> None:
    assert "--node-rank 0" in added_to(flags)


def added_to(flags: str) -> str:
    return main_line(plan_sglang(request(f"--tp 16 {flags}")))


# --- where it answers ---


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("flags", "more", "serves"),
    [
        ("", "--host 0.0.0.0 --port 30000", PortOpen("localhost", 30000, "sglang")),
        ("--port 8000", "--host 0.0.0.0", PortOpen("localhost", 8000, "sglang")),
        ("--po=8000", "--host 0.0.0.0", PortOpen("localhost", 8000, "sglang")),
        ("--host 0.0.0.0", "--port 30000", PortOpen("localhost", 30000, "sglang")),
        ("--ho 10.0.0.9 --port 1", "", PortOpen("10.0.0.9", 1, "sglang")),
        ("--smg-grpc-mode", "--host 0.0.0.0 --port 30000", None),
        ("--config f.yaml", "", None),
        ("--config f.yaml --port 8000", "", PortOpen("localhost", 8000, "sglang")),
    ],
)
def test_leader_and_workers_can_be_probed_at_the_users_address_or_everywhere(
    index: int, flags: str, more: str, serves: PortOpen | None
) -> None:
    plan = plan_sglang(request(f"--tp 16 {flags}", index))
    assert main_line(plan).split(f" --node-rank {index}")[1].strip() == more
    assert plan.main is not None
    assert plan.main.serves == serves


def test_a_host_that_no_probe_reaches_is_kept_and_noted() -> None:
    plan = plan_sglang(request("--tp 16 --host 127.0.0.1"))
    assert plan.notes == ("--host 127.0.0.1: no probe and no client from outside the pod gets there",)


@pytest.mark.parametrize("flag", ["--elastic-ep-backend", "--elastic-ep-b"])
def test_with_elastic_experts_sglang_outlives_its_ranks(flag: str) -> None:
    main = plan_sglang(request(f"--tp 16 {flag} mooncake")).main
    assert main is not None
    assert main.ranks == ()


# --- environment ---


@pytest.mark.parametrize("name", ["SGLANG_HOST_IP", "HOST_IP"])
def test_the_users_own_address_is_left_alone(name: str) -> None:
    assert plan_sglang(request("--tp 16", environ={name: "192.168.0.1"})).env == ()


# --- layouts ---


@pytest.mark.parametrize(
    ("flags", "gpus", "each"),
    [
        ("--tp 16", (8, 8), 8),
        ("--tensor-parallel-size=16", (8, 8), 8),
        ("--te 16", (8, 8), 8),
        ("--tp 4 --tp-size 16", (8, 8), 8),
        ("--tp 8 --pp-size 2", (8, 8), 8),
        ("--tp 4 --pipeline-parallel-size 4", (8, 8), 8),
        ("--tp 2 --pp-size 8", (8, 8), 8),
        ("--tp 16 --pp-size 2", (8, 8, 8, 8), 8),
        ("--tp 8 --pp-size 4", (8, 8, 8, 8), 8),
        ("--tp 2 --pp-size 1", (1, 1), 1),
        ("--tp 4 --base-gpu-id 6", (8, 8), 2),
        ("--tp-size 8 --base-gpu-id 0", (4, 8), 4),
        ("--tp 4 --gpu-id-step 4", (8, 8), 2),
        ("--tp 16 --attn-dp-size 4 --attn-cp-size 2 --ep 16", (8, 8), 8),
        ("--tp 16 --dp 16 --enable-dp-attention", (8, 8), 8),
        ("--tp 16 --ep-size 4 --moe-dp-size 4", (8, 8), 8),
        ("--tp 16 --dp 2 --enable-prefill-c", (8, 8), 8),
        ("--tp 16 --moe-dense-tp-size 16", (8, 8), 8),
    ],
)
def test_layouts_in_which_every_rank_has_its_gpu(flags: str, gpus: tuple[int, ...], each: int) -> None:
    text = f"{each} rank{'s' if each > 1 else ''} on each node"
    assert plan_sglang(request(flags, gpus=gpus)).reason.endswith(text)


@pytest.mark.parametrize(
    ("flags", "gpus", "lines"),
    [
        (
            "--tp 16",
            (4, 4),
            [
                "TP 16 × PP 1 needs 16 GPUs; the group has 2 nodes × 4 = 8. Fits: TP 8 × PP 1, TP 4 × PP 2.",
                "  to do: set one of these, or make it a group of 4 nodes with 4 GPUs each or 2 nodes with 8 GPUs each",
            ],
        ),
        (
            "--tp 2 --pp-size 3",
            (3, 3),
            [
                "TP 2 × PP 3 on 2 nodes: SGLang starts 2 ranks on each node = 4, but the model has 6: they would wait"
                " for each other for ever",
                "  expected: a PP that divides the number of nodes or is a multiple of it",
                "  to do: fits: TP 6 × PP 1, TP 3 × PP 2",
            ],
        ),
        (
            "--tp 3 --pp-size 4",
            (2, 2, 2, 2, 2, 2),
            [
                "TP 3 × PP 4 on 6 nodes: SGLang starts 3 ranks on each node = 18, but the model has 12: they would wait"
                " for each other for ever",
                "  expected: a PP that divides the number of nodes or is a multiple of it",
                "  to do: fits: TP 12 × PP 1, TP 6 × PP 2, TP 4 × PP 3, TP 2 × PP 6",
            ],
        ),
        (
            "--tp 12",
            (4, 8),
            [
                "SGLang starts as many ranks on every node, but the group has 2 nodes with 4 + 8 = 12 GPUs",
                "  expected: the same number of GPUs on every node",
                "  to do: give all pods the same number; or --tp-size 8 --base-gpu-id 0, which uses 4 GPUs of each",
            ],
        ),
        (
            "--tp 16",
            (8, 0),
            [
                "SGLang starts as many ranks on every node, but the group has 2 nodes with 8 + 0 = 8 GPUs",
                "  expected: the same number of GPUs on every node",
                "  to do: give all pods the same number",
            ],
        ),
        (
            "--tp 4 --base-gpu-id 7",
            (8, 8),
            [
                "SGLang starts 2 ranks on every node, the last on GPU 8 (--base-gpu-id, --gpu-id-step); the leader has"
                " 8 GPUs: 2 nodes × 8 = 16",
                "  expected: at least 9 GPUs on every node",
                "  to do: give all pods the same number of GPUs, and ranks that they have room for",
            ],
        ),
        (
            "--tp 8 --dp 2",
            (8, 8),
            [
                "--dp-size 2 over 2 nodes: SGLang runs whole replicas on one node only",
                "  expected: attention DP, which splits TP",
                "  to do: --attn-dp-size 2 (before it existed: --dp-size 2 --enable-dp-attention), with --tp-size over"
                " all GPUs; or a group for each replica",
            ],
        ),
        (
            "--tp 6 --attn-dp-size 4",
            (3, 3),
            [
                "attention DP × attention CP 4 (--attn-dp-size) does not divide TP 6",
                "  expected: a divisor of 6: 1, 2, 3, 6",
            ],
        ),
        (
            "--tp 16 --ep 3",
            (8, 8),
            ["EP × MoE DP 3 (--ep-size) does not divide TP 16", "  expected: a divisor of 16: 1, 2, 4, 8, 16"],
        ),
        (
            "--tp 16 --ep-s 3",
            (8, 8),
            ["EP × MoE DP 3 (--ep-size) does not divide TP 16", "  expected: a divisor of 16: 1, 2, 4, 8, 16"],
        ),
        (
            "--tp 16 --dcp-size 3",
            (8, 8),
            ["decode CP 3 (--dcp-size) does not divide TP 16", "  expected: a divisor of 16: 1, 2, 4, 8, 16"],
        ),
        (
            "--tp 16 --moe-dense-tp-size 2",
            (8, 8),
            ["--moe-dense-tp-size is 2", "  expected: 1 or TP, which is 16"],
        ),
        (
            "--tp 8 --dp 2",
            (8,),
            [
                "TP 8 × PP 1 × DP 2 needs 16 GPUs; the group has 1 node × 8 = 8. Fits: TP 8 × PP 1 × DP 1,"
                " TP 4 × PP 1 × DP 2, TP 2 × PP 2 × DP 2, TP 2 × PP 1 × DP 4.",
                "  to do: set one of these, or make it a group of 2 nodes with 8 GPUs each",
            ],
        ),
    ],
)
def test_layouts_that_can_never_form_are_refused_with_what_fits(
    flags: str, gpus: tuple[int, ...], lines: list[str]
) -> None:
    assert refusal(request(flags, gpus=gpus)).splitlines() == lines


def test_a_layout_that_does_not_fit_is_told_apart_because_another_pod_may_be_the_odd_one() -> None:
    with pytest.raises(LayoutError):
        plan_sglang(request("--tp 16", gpus=(4, 4)))


@pytest.mark.parametrize("flags", ["--pp 2", "--pp=2"])
def test_an_abbreviation_that_sglangs_parser_refuses_is_refused(flags: str) -> None:
    assert "write --pp-size" in refusal(request(f"--tp 8 {flags}"))


@pytest.mark.parametrize(
    ("flags", "environ", "gpus_from", "note"),
    [
        ("--device cpu", {}, "NVML finds none", "--device cpu"),
        ("--device cpu", {}, "--gpus-per-node", "--device cpu"),
        ("--device=npu", {}, "NVML finds none", "--device npu"),
        ("", {"SGLANG_USE_CPU_ENGINE": "1"}, "NVML finds none", "SGLANG_USE_CPU_ENGINE=1"),
    ],
)
def test_devices_that_nobody_counts_are_only_shared_out(
    flags: str, environ: dict[str, str], gpus_from: str, note: str
) -> None:
    made = request(f"--tp 4 {flags}", gpus=(0, 0), environ=environ, gpus_from=gpus_from)
    plan = plan_sglang(made)
    assert plan.reason.endswith("TP 4: 2 ranks on each node")
    assert plan.notes == (f"{note}: its devices are not counted, only the ranks are shared out",)
    uneven = request(f"--tp 3 {flags}", gpus=(0, 0), environ=environ, gpus_from=gpus_from)
    assert refusal(uneven).splitlines() == [
        "TP 3 × PP 1 = 3 ranks cannot be shared evenly by 2 nodes",
        "  expected: TP × PP that is a multiple of 2",
        "  to do: fits: TP 4 × PP 1, TP 2 × PP 2",
    ]


def test_devices_that_the_user_counts_are_checked() -> None:
    text = refusal(request("--tp 4 --device npu", gpus=(1, 1), gpus_from="--gpus-per-node"))
    assert text.startswith("TP 4 × PP 1 needs 4 GPUs; the group has 2 nodes × 1 = 2")


def test_sizes_in_a_file_that_only_sglang_reads_are_not_judged() -> None:
    plan = plan_sglang(request("--config f.yaml"))
    assert "--nnodes 2 --node-rank 0" in main_line(plan)
    assert plan.notes == (
        "--config FILE is read by SGLang alone: sizes, --host and --port in it are not seen, so the layout is not"
        " checked",
    )
    assert "needs 4 GPUs" in refusal(request("--config f.yaml --tp 4"))


# --- what is no group ---


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--use-ray", "--use-ray in a group larger than one: SGLang on Ray starts all ranks from one process"),
        ("--encoder-only", "--encoder-only in a group larger than one: SGLang's encoder server has no ranks"),
        ("--elastic-ep-join-mode scale", "--elastic-ep-join-mode scale in a group larger than one"),
        ("--model-type diffusion", "--model-type diffusion in a group larger than one: only SGLang's language models"),
    ],
)
def test_commands_without_ranks_are_refused_in_a_group_and_run_alone(flags: str, text: str) -> None:
    assert refusal(request(f"--tp 16 {flags}")).startswith(text)
    assert main_line(plan_sglang(request(f"--tp 8 {flags}", gpus=(8,)))) == f"{SERVER} --tp 8 {flags}"


def test_a_leader_without_part_in_the_model_is_refused() -> None:
    text = refusal(request("--tp 8", gpus=(0, 8), options=Options(leader_excluded=True)))
    assert text.startswith("--leader-excluded: SGLang's server is rank 0")


# --- two templates ---


def test_two_templates_may_differ_in_place_and_address_alone() -> None:
    leader = "--tp 16 --dist-init-addr a:1 --nnodes 2 --node-rank 0 --host 0.0.0.0 --port 40000"
    worker = "--tp 16 --nccl-i b:2 --nn=2 --nod 1 --ho 10.0.0.1 --po 1"
    commands = [tuple(f"{SERVER} {flags}".split()) for flags in (leader, worker)]
    assert common_part(commands[0]) == common_part(commands[1]) == tuple(f"{SERVER} --tp 16".split())
