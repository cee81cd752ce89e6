"""vLLM: the mode follows from flags, degrees and image; what contradicts is refused; the environment of all modes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from vllm_requests import made, plans, refusal

from backends.command import detect
from backends.plan import InFlight, Unset
from backends.vllm import MODES, choose, plan_vllm
from backends.vllm_asked import read


def chosen(flags: str, *, ray: str | None = None, mode: str = "auto", start: str = "vllm serve m") -> tuple[str, str]:
    request = made(f"{start} {flags}", ray=ray, mode=mode)
    return choose(read(request, detect(request.argv)))


@pytest.mark.parametrize(
    ("flags", "ray", "mode"),
    [
        ("-tp 16", None, "native"),
        ("-tp 16", "2.60.0", "ray"),
        ("-tp 16 --distributed-executor-backend ray", None, "ray"),
        ("-tp 16 --distributed-executor-backend mp", "2.60.0", "native"),
        ("-tp 16 --enable-expert-parallel", None, "native"),
        ("-tp 4 -dp 4", None, "internal-lb"),
        ("-tp 4 -dp 4", "2.60.0", "internal-lb"),
        ("-tp 4 -dp 4 -dpb mp", "2.60.0", "internal-lb"),
        ("-tp 4 -dp 4 --nnodes 2", None, "internal-lb"),
        ("-tp 4 -dp 4 --headless --data-parallel-start-rank 2", None, "internal-lb"),
        ("-tp 4 -dp 4 --data-parallel-start-rank 2", None, "hybrid-lb"),
        ("-tp 4 -dp 4 -dph -dpr 2", None, "hybrid-lb"),
        ("-tp 8 -dp 2 --data-parallel-external-lb", None, "external-lb"),
        ("-tp 8 -dp 2 --data-parallel-rank 0", None, "external-lb"),
        ("-tp 4 -dp 4 -dpm", None, "multi-port-lb"),
        ("-tp 4 -dp 4 -dpm -dpr 2", None, "multi-port-lb"),
        ("-tp 4 -dp 4 --data-parallel-backend ray", None, "data-parallel-ray"),
        ("-tp 4 -dp 4 -dph --no-data-parallel-hybrid-lb", None, "internal-lb"),
        ("-tp 8 -dp 2 -dpe --no-data-parallel-e", None, "internal-lb"),
        ("-tp 4 -dp 4 --no-data-parallel-h -dph", None, "hybrid-lb"),
        ("-tp 4 -dp 4 -dpb=ray --distributed-executor-backend ray", None, "data-parallel-ray"),
    ],
)
def test_the_mode_follows_from_the_flags_and_the_image(flags: str, ray: str | None, mode: str) -> None:
    assert chosen(flags, ray=ray)[0] == mode


def test_dynamo_has_a_front_end_of_its_own_so_its_replicas_are_balanced_there() -> None:
    assert chosen("-tp 4 -dp 4", start="python3 -m dynamo.vllm --model m")[0] == "hybrid-lb"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("-tp 16", "the image has no Ray and the model spans 2 nodes"),
        ("-tp 4 -dp 4", "4 replicas behind one server, because nothing else is said"),
        ("-tp 4 -dp 4 -dph", "the command says --data-parallel-hybrid-lb"),
        ("-tp 4 -dp 4 -dpr 0", "the command says --data-parallel-start-rank without --headless"),
    ],
)
def test_the_reason_names_what_decided(flags: str, reason: str) -> None:
    assert chosen(flags)[1] == reason


@pytest.mark.parametrize("mode", MODES[1:])
def test_every_mode_can_be_forced(mode: str) -> None:
    flags = "-tp 16" if mode in ("ray", "native") else "-tp 8 -dp 2"
    assert chosen(flags, ray="2.60.0", mode=mode) == (mode, f"--vllm-mode {mode}")


@pytest.mark.parametrize(
    ("flags", "mode", "found"),
    [
        ("-tp 16 --nnodes 2", "ray", "--vllm-mode ray, but the command has --nnodes: that is native"),
        ("-tp 8 -dp 2 -dph", "external-lb", "--vllm-mode external-lb, but the command has --data-parallel-hybrid"),
        ("-tp 16", "internal-lb", "--vllm-mode internal-lb, but --data-parallel-size is 1"),
        ("-tp 8 -dp 2", "native", "--vllm-mode native, but --data-parallel-size is 2"),
        ("-tp 8 -dp 2 -dph -dpe", "auto", "--data-parallel-hybrid-lb and --data-parallel-external-lb contradict"),
        ("-tp 8 -dp 2 -dph -dpb ray", "auto", "--data-parallel-backend ray and --data-parallel-hybrid-lb contradict"),
        ("-tp 16 -dpl 1", "auto", "--data-parallel-size-local, but no --data-parallel-size above 1"),
        ("-tp 8 -dph", "auto", "--data-parallel-hybrid-lb, but no --data-parallel-size above 1"),
        (
            "-tp 8 -dp 2 --distributed-executor-backend ray",
            "auto",
            "--data-parallel-size 2 with --distributed-executor-backend ray",
        ),
    ],
)
def test_what_contradicts_is_refused_with_both_sides(flags: str, mode: str, found: str) -> None:
    assert refusal(f"vllm serve m {flags}", mode=mode, ray="2.60.0").startswith(found)


@pytest.mark.parametrize(
    ("flags", "expected"), [("-tp 4", "--data-parallel-size 4"), ("-tp 16", "a --data-parallel-size that fits")]
)
def test_a_lone_replica_is_told_to_drop_the_flag_or_how_many_would_fit(flags: str, expected: str) -> None:
    assert refusal(f"vllm serve m {flags} -dph") == (
        "--data-parallel-hybrid-lb, but no --data-parallel-size above 1\n"
        f"  expected: {expected}, or no --data-parallel-hybrid-lb\n"
        "  to do: for one replica leave --data-parallel-hybrid-lb out, for several say how many; on every pod"
    )


def test_what_is_said_to_fit_does_not_lead_in_a_circle() -> None:
    assert "Fits: " in refusal("vllm serve m -tp 8 -dp 4 -dph")
    assert "leave --data-parallel-hybrid-lb out" in refusal("vllm serve m -tp 16 -dp 1 -dph")
    assert plan_vllm(made("vllm serve m -tp 16 -dp 1")).mode == "native multi-node"


# --- the environment, in every mode ---

ALL = ["-tp 16", "-tp 16 --distributed-executor-backend ray", "-tp 4 -dp 4", "-tp 4 -dp 4 -dpb ray", "-tp 4 -dp 4 -dpm"]


@pytest.mark.parametrize("flags", ALL)
def test_a_services_address_in_vllm_port_is_not_handed_on(flags: str) -> None:
    environ = {"VLLM_PORT": "tcp://10.96.0.7:8000"}
    why = "tcp://10.96.0.7:8000 is the address of a Service named vllm; vLLM wants a port there and fails"
    for plan in plans(f"vllm serve m {flags}", ray="2.60.0", environ=environ):
        assert plan.unset == (Unset("VLLM_PORT", why),)


def test_a_port_in_vllm_port_is_the_users() -> None:
    assert plan_vllm(made("vllm serve m -tp 16", environ={"VLLM_PORT": "5000"})).unset == ()


@pytest.mark.parametrize("flags", ALL)
def test_every_pod_has_its_own_numeric_address(flags: str) -> None:
    values = [
        [v.value for v in plan.env if v.name == "VLLM_HOST_IP"] for plan in plans(f"vllm serve m {flags}", ray="2.60.0")
    ]
    assert values == [["10.0.0.10"], ["10.0.0.11"]]


@pytest.mark.parametrize(
    "config",
    [
        '--kv-transfer-config {"kv_connector":"NixlConnector","kv_role":"kv_both"}',
        "--kv-transfer-config.kv_connector NixlConnector",
        "--connector nixl",  # Dynamo's
        '--kv-t={"kv_connector":"MultiConnector","kv_connector_extra_config":{"connectors":[{"kv_connector":"NixlConnector"}]}}',
    ],
)
@pytest.mark.parametrize("flags", ALL)
def test_nixl_peers_find_every_pod_at_its_own_address(flags: str, config: str) -> None:
    name = "VLLM_NIXL_SIDE_CHANNEL_HOST"
    made_plans = plans(f"vllm serve m {flags} {config}", ray="2.60.0")
    assert [[v.value for v in plan.env if v.name == name] for plan in made_plans] == [["10.0.0.10"], ["10.0.0.11"]]
    theirs = plan_vllm(made(f"vllm serve m {flags} {config}", ray="2.60.0", environ={name: "h"}))
    assert name not in [v.name for v in theirs.env]


@pytest.mark.parametrize("flags", ALL)
@pytest.mark.parametrize(("host", "noted"), [("192.168.0.9", True), ("10.0.0.10", False), ("172.16.0.1", False)])
def test_an_address_of_another_pod_in_vllm_host_ip_is_noted(flags: str, host: str, noted: bool) -> None:
    request = made(f"vllm serve m {flags}", ray="2.60.0", environ={"VLLM_HOST_IP": host})
    here = replace(request.node, addresses=("10.0.0.10", "127.0.0.1", "172.16.0.1"))
    plan = plan_vllm(replace(request, nodes=(here, *request.nodes[1:])))
    note = (
        f"VLLM_HOST_IP is {host}, which this pod has not got: 10.0.0.10, 127.0.0.1, 172.16.0.1; vLLM takes it for its"
        " own, so leave it out, or set it from the field status.podIP"
    )
    assert (note in plan.notes) is noted
    assert "VLLM_HOST_IP" not in [variable.name for variable in plan.env]
    assert not any("VLLM_HOST_IP" in line for line in plan_vllm(request).notes)  # a plan for pods that are not there


def test_another_connector_needs_no_such_address() -> None:
    plan = plan_vllm(made('vllm serve m -tp 16 --kv-transfer-config {"kv_connector":"MooncakeConnector"}'))
    assert [v.name for v in plan.env] == ["VLLM_HOST_IP"]


# --- elastic expert parallelism ---


@pytest.mark.parametrize(
    ("flags", "wrong", "remedy"),
    [
        ("-tp 4 -dp 4", "no --enable-eplb", "add --enable-eplb"),
        ("-tp 4 -pp 2 -dp 2 --enable-eplb", "PP 2", "leave pipeline parallelism out"),
        ("-tp 4 -dp 4 -dph --enable-eplb", "--data-parallel-hybrid-lb", "leave --data-parallel-hybrid-lb out"),
        ("-tp 4 -dp 4 --enable-eplb --no-enable-epl", "no --enable-eplb", "add --enable-eplb"),
        (
            "-tp 8 -dp 2 -dpn 0",
            "no --enable-eplb, --data-parallel-rank",
            "add --enable-eplb, leave --data-parallel-rank out",
        ),
    ],
)
def test_elastic_ep_is_refused_here_where_vllm_would_refuse_it(flags: str, wrong: str, remedy: str) -> None:
    first, _, last = refusal(f"vllm serve m {flags} --enable-elastic-ep").splitlines()
    assert first == f"--enable-elastic-ep with {wrong}"
    assert last == f"  to do: {remedy}; or leave --enable-elastic-ep out"


def test_elastic_ep_that_is_off_in_the_end_is_not_judged() -> None:
    assert plans("vllm serve m -tp 4 -dp 4 --enable-elastic-ep --no-enable-elastic-ep")[0].notes == ()


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ("-tp 4 -dp 4 --no-data-parallel-hybrid-lb", "hybrid-lb"),
        ("-tp 4 -dp 4 -dpr 0 --no-data-parallel-hybrid-lb", "auto"),
    ],
)
def test_a_mode_whose_switch_the_user_put_off_is_refused(flags: str, mode: str) -> None:
    assert refusal(f"vllm serve m {flags}", mode=mode).startswith(
        "--no-data-parallel-hybrid-lb, but this mode is that of --data-parallel-hybrid-lb\n"
    )


def test_elastic_ep_may_leave_gpus_to_grow_into_and_is_told_where_it_ends() -> None:
    plan = plan_vllm(made("vllm serve m -tp 1 -dp 2 -dpb ray --enable-elastic-ep --enable-eplb", ray="2.60.0"))
    assert plan.main is not None
    assert plan.notes == (
        "--enable-elastic-ep: a group has a fixed number of pods, so vLLM can scale between 1 and 16 replicas on its 16"
        " GPUs, not beyond; more pods take a new group",
    )


def test_elastic_ep_without_ray_is_told_that_it_cannot_scale() -> None:
    (note,) = plan_vllm(made("vllm serve m -tp 1 -dp 16 --enable-elastic-ep --enable-eplb")).notes
    assert "can scale only with --data-parallel-backend ray" in note


# --- draining ---


@pytest.mark.parametrize(
    ("flags", "gpus", "index", "by_us"),
    [
        ("-tp 16", (8, 8), 0, False),
        ("-tp 16 --api-server-count 4", (8, 8), 0, True),
        ("-tp 4 -dp 4", (8, 8), 0, True),
        ("-tp 4 -dp 4 --api-server-count 1", (8, 8), 0, True),
        ("-tp 4 -dp 4 -dph", (8, 8), 1, True),
        ("-tp 8 -dp 2 -dph", (8, 8), 1, True),
        ("-tp 8 -dp 2 -dpe", (8, 8), 1, True),
        ("-tp 4 -dp 4 -dpm", (8, 8), 1, False),
        ("-tp 4 -dp 2", (8,), 0, True),
        ("-tp 4", (8,), 0, False),
    ],
)
def test_one_server_with_its_own_engines_drains_itself_and_others_are_waited_for(
    flags: str, gpus: tuple[int, ...], index: int, by_us: bool
) -> None:
    plan = plan_vllm(made(f"vllm serve m {flags}", index, gpus, version="0.33.0"))
    assert plan.main is not None
    assert ("--shutdown-timeout" in plan.main.argv) is not by_us
    assert isinstance(plan.main.in_flight, InFlight) is by_us


def test_several_api_servers_are_not_asked_for_the_count_that_each_has_of_its_own() -> None:
    leader = plan_vllm(made("vllm serve m -tp 4 -dp 4", version="0.33.0"))
    assert leader.main is not None
    assert leader.main.in_flight is not None
    assert leader.main.in_flight.load is None
    one = plan_vllm(made("vllm serve m -tp 4 -dp 4 -asc 1", version="0.33.0"))
    assert one.main is not None
    assert one.main.in_flight is not None
    assert one.main.in_flight.load == "http://localhost:8000/load"


@pytest.mark.parametrize(
    ("flags", "all_answer"),
    [("-tp 4 -dp 4 -dph", True), ("-tp 8 -dp 2 -dpe", True), ("-tp 4 -dp 4", False), ("-tp 16", False)],
)
def test_where_every_pod_has_clients_none_ends_before_all_have_answered(flags: str, all_answer: bool) -> None:
    for index in range(2):
        assert plan_vllm(made(f"vllm serve m {flags}", index, version="0.33.0")).all_answer is all_answer
