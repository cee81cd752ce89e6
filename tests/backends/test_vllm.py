"""vLLM: what a command means in a group, and exactly what each pod does for it."""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import EnvVar, InFlight, Kind, Main, Node, Options, Plan, PortOpen, RayNodes, Request, Service, Stage
from backends.serving import RANKS, VLLM_ON_RAY
from backends.vllm import plan_vllm

PYTHON = "/opt/venv/bin/python3"
GIB = 1 << 30


def request(
    line: str,
    index: int = 0,
    gpus: tuple[int, ...] = (8, 8),
    ray: str | None = "2.60.0",
    environ: dict[str, str] | None = None,
    options: Options | None = None,
    engine_version: str | None = None,
) -> Request:
    nodes = tuple(
        Node(
            ip=f"10.0.0.1{at}",
            hostname=f"pod-{at}",
            gpus=n,
            shm_bytes=2 * GIB,
            python=PYTHON,
            engine_version=engine_version,
            ray=ray,
        )
        for at, n in enumerate(gpus)
    )
    group = Group("my-lws-0.my-lws.default", len(gpus), index, "id")
    return Request(group, nodes, tuple(line.split()), options or Options(), environ or {}, {"ray-token": "s3cret"})


def refusal(made: Request) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_vllm(made)
    return caught.value.text()


def main_line(plan: Plan) -> str:
    assert plan.main is not None
    return " ".join(plan.main.argv)


RAY_ENV = [
    ("RAY_ADDRESS", "10.0.0.10:6379"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_DEDUP_LOGS", "0"),
    ("RAY_memory_monitor_refresh_ms", "0"),
    ("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0"),
    ("RAY_gcs_rpc_server_reconnect_timeout_s", "20"),
    ("RAY_health_check_failure_threshold", "10"),
    ("RAY_AUTH_MODE", "token"),
    ("RAY_AUTH_TOKEN", "s3cret"),
]


# --- two nodes of eight, the whole plan ---


def test_the_leader_of_two_nodes_starts_the_head_waits_for_sixteen_gpus_and_serves() -> None:
    plan = plan_vllm(request("vllm serve m -tp 16 --port 8000"))
    assert (plan.backend, plan.mode, plan.kind) == ("vllm", "Ray", Kind.SERVER)
    assert plan.reason == "the image has Ray 2.60.0 and the model spans 2 nodes"
    assert [(v.name, v.value) for v in plan.env] == [("VLLM_HOST_IP", "10.0.0.10"), *RAY_ENV]
    assert plan.services == (
        Service(
            "ray-head",
            (
                PYTHON,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--head",
                "--port=6379",
                "--include-dashboard=false",
                "--node-ip-address=10.0.0.10",
                "--num-gpus=8",
                "--object-store-memory=536870912",
                "--disable-usage-stats",
                "--block",
            ),
            Stage.ADMITTED,
            gates=(),
            watch=("gcs_server", "raylet"),
            ranks=VLLM_ON_RAY,
        ),
    )
    assert plan.gates == (RayNodes("10.0.0.10:6379", (("10.0.0.10", 8), ("10.0.0.11", 8)), PYTHON),)
    assert plan.main == Main(
        ("vllm", "serve", "m", "-tp", "16", "--port", "8000", "--distributed-executor-backend", "ray"),
        Kind.SERVER,
        serves=PortOpen("localhost", 8000, "vllm"),
        asked_alone=True,
        in_flight=InFlight("http://localhost:8000/metrics", GAUGES),
        ranks=RANKS["vllm"],
    )
    assert plan.files == ()
    assert plan.decisions == (ON_RAY,)
    assert plan.notes == ()


def test_the_worker_of_two_nodes_starts_ray_when_the_head_listens_and_runs_nothing_else() -> None:
    plan = plan_vllm(request("vllm serve m -tp 16 --port 8000", index=1))
    assert (plan.backend, plan.mode, plan.kind) == ("vllm", "Ray", Kind.SERVER)
    assert [(v.name, v.value) for v in plan.env] == [("VLLM_HOST_IP", "10.0.0.11"), *RAY_ENV]
    assert plan.services == (
        Service(
            "ray-worker",
            (
                PYTHON,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--address=10.0.0.10:6379",
                "--node-ip-address=10.0.0.11",
                "--num-gpus=8",
                "--object-store-memory=536870912",
                "--disable-usage-stats",
                "--block",
            ),
            Stage.ADMITTED,
            gates=(PortOpen("10.0.0.10", 6379, "the Ray head"),),
            watch=("raylet",),
            ranks=VLLM_ON_RAY,
        ),
    )
    assert plan.gates == ()
    assert plan.main is None


def test_every_variable_that_is_set_has_its_reason() -> None:
    assert all(variable.reason for variable in plan_vllm(request("vllm serve m -tp 16")).env)


# --- what decides ---


@pytest.mark.parametrize("flag", ["--distributed-executor-backend ray", "--distributed_executor_backend=ray"])
def test_a_user_who_says_ray_gets_ray_and_the_command_is_not_touched(flag: str) -> None:
    plan = plan_vllm(request(f"vllm serve m -tp 16 {flag}"))
    assert (plan.mode, plan.reason) == ("Ray", "the command says --distributed-executor-backend ray")
    assert main_line(plan) == f"vllm serve m -tp 16 {flag}"


def test_a_user_who_says_ray_in_an_image_without_ray_is_told_to_add_it() -> None:
    assert refusal(request("vllm serve m -tp 16 --distributed-executor-backend ray", ray=None)) == (
        "this image has no Ray\n"
        f"  expected: the package ray beside {PYTHON}\n"
        "  to do: add `pip install ray` to the image (stock vLLM images have none since 0.19)"
    )


@pytest.mark.parametrize("index", [0, 1])
def test_every_pod_of_a_group_refuses_alike(index: int) -> None:
    assert "needs 8 GPUs; the group has 2 nodes × 8 = 16" in refusal(request("vllm serve m -tp 8", index=index))


def test_native_flags_beside_ray_contradict_each_other() -> None:
    text = refusal(request("vllm serve m -tp 16 --nnodes 2 --distributed-executor-backend ray"))
    assert text == (
        "--nnodes and --distributed-executor-backend ray contradict each other\n"
        "  expected: vLLM takes --nnodes with its multiprocessing executor only\n"
        "  to do: leave out --nnodes: lwsrun tells Ray the nodes"
    )


@pytest.mark.parametrize("executor", ["uni", "external_launcher", "my.Executor"])
def test_another_executor_than_ray_and_mp_spans_no_nodes(executor: str) -> None:
    assert refusal(request(f"vllm serve m -tp 16 --distributed-executor-backend {executor}")) == (
        f"--distributed-executor-backend {executor} in a group of 2\n"
        "  expected: ray or mp, or no such flag\n"
        "  to do: --backend generic runs the command as it is on every pod"
    )


def test_one_data_parallel_rank_is_no_data_parallelism() -> None:
    assert main_line(plan_vllm(request("vllm serve m -tp 16 -dp 1"))) == (
        "vllm serve m -tp 16 -dp 1 --distributed-executor-backend ray"
    )


# --- layouts ---


@pytest.mark.parametrize(
    "flags",
    [
        "-tp 16",
        "--tensor-parallel-size=16",
        "--tensor_parallel_size 16",
        "--tensor-parallel 16",
        "-t 16",
        "-t 4 -pc 4",
        "-tp 8 -pp 2",
        "-tp 4 -tp 8 --pipeline_parallel_size=2",
        "-tp 4 -pp 2 --prefill-context-parallel-size 2",
        "-pp 16",
    ],
)
def test_a_layout_that_fits_is_run_as_the_user_wrote_it(flags: str) -> None:
    assert main_line(plan_vllm(request(f"vllm serve m {flags}"))) == (
        f"vllm serve m {flags} --distributed-executor-backend ray"
    )


@pytest.mark.parametrize(
    ("flags", "gpus", "first"),
    [
        ("-tp 16", (4, 4), "TP 16 × PP 1 needs 16 GPUs; the group has 2 nodes × 4 = 8"),
        ("", (8, 8), "TP 1 × PP 1 needs 1 GPU; the group has 2 nodes × 8 = 16"),
        ("-tp 16 -tp 8", (8, 8), "TP 8 × PP 1 needs 8 GPUs; the group has 2 nodes × 8 = 16"),
        ("-tp 8 -pp 2 -pcp 2", (8, 8), "TP 8 × PP 2 × PCP 2 needs 32 GPUs; the group has 2 nodes × 8 = 16"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_before_anything_starts(
    flags: str, gpus: tuple[int, ...], first: str
) -> None:
    assert refusal(request(f"vllm serve m {flags}", gpus=gpus)).startswith(f"{first}. Fits: ")


def test_the_refusal_says_what_fits() -> None:
    text = refusal(request("vllm serve m -tp 16", gpus=(4, 4)))
    assert "Fits: TP 8 × PP 1, TP 4 × PP 2." in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-tp two", "-tp is 'two'\n  expected: a whole number, 1 or more"),
        ("--tensor-parallel-size", "--tensor-parallel-size has no value\n  expected: --tensor-parallel-size VALUE"),
        ("-pp 0", "-pp is '0'\n  expected: a whole number, 1 or more"),
    ],
)
def test_a_degree_that_vllm_would_refuse_is_refused_here(flags: str, message: str) -> None:
    assert refusal(request(f"vllm serve m {flags}")) == message


def test_options_after_two_dashes_are_not_read_and_ours_stand_before_them() -> None:
    made = request("vllm serve -tp 16 -- m")
    assert main_line(plan_vllm(made)) == "vllm serve -tp 16 --distributed-executor-backend ray -- m"


def test_a_placeholder_may_give_the_degree() -> None:
    assert main_line(plan_vllm(request("vllm serve m -tp {size*gpus}"))) == (
        "vllm serve m -tp 16 --distributed-executor-backend ray"
    )


def test_a_config_file_is_noted_because_its_sizes_are_not_seen() -> None:
    alone = request("vllm serve m -tp 16 --config /etc/vllm.yaml", gpus=(16,), engine_version="0.33.0")
    sizes, drain = plan_vllm(alone).notes
    assert sizes == (
        "--config FILE is read by vLLM alone: sizes in it are not seen here, so the layout is checked as the flags say;"
        " give them as flags"
    )
    assert "--shutdown-timeout is left to --config FILE" in drain


@pytest.mark.parametrize("ray", ["2.60.0", None])
def test_sizes_in_a_config_file_are_not_judged_as_if_there_were_none(ray: str | None) -> None:
    plan = plan_vllm(request("vllm serve m --config /etc/vllm.yaml", ray=ray))
    assert plan.mode == ("Ray" if ray else "native multi-node")
    assert "so the layout is not checked" in plan.notes[0]
    assert refusal(request("vllm serve m --config /etc/vllm.yaml -tp 4", ray=ray)).startswith("TP 4 × PP 1 needs 4")


def test_no_drain_is_added_over_a_config_file_or_to_dynamo() -> None:
    for command in ("vllm serve m -tp 16 --config /etc/vllm.yaml", "python3 -m dynamo.vllm -tp 16 --model m"):
        plan = plan_vllm(request(command, gpus=(16,), engine_version="0.33.0"))
        assert plan.decisions == ()
        assert "--shutdown-timeout" not in main_line(plan)


# --- the drain: vLLM answers what it has when it is asked to stop ---

WHY = "asked to stop, vLLM answers the requests that it has for so long, instead of aborting them"


@pytest.mark.parametrize("version", ["0.18.0", "0.18rc1", "0.18.1rc1.dev3+gabc", "0.33.0", "0.32.0+cpu", "1.0.0"])
def test_a_vllm_that_can_drain_is_told_to_and_that_is_told_as_a_decision(version: str) -> None:
    plan = plan_vllm(request("vllm serve m -tp 16", gpus=(16,), engine_version=version))
    assert main_line(plan) == "vllm serve m -tp 16 --shutdown-timeout 15"
    assert plan.decisions == (f"--shutdown-timeout 15: {WHY}",)
    assert plan.notes == ()


@pytest.mark.parametrize("version", [None, "0.17.9", "0.9.2", "0.8.5.post1", "0.1.dev1+gabc", "unknown"])
def test_a_vllm_that_cannot_drain_or_is_not_known_is_left_as_it_is(version: str | None) -> None:
    plan = plan_vllm(request("vllm serve m -tp 16", gpus=(16,), engine_version=version))
    assert main_line(plan) == "vllm serve m -tp 16"
    assert (plan.decisions, plan.notes) == ((), ())


def test_a_vllm_in_a_group_of_one_drains_too() -> None:
    plan = plan_vllm(request("vllm serve m -tp 8", gpus=(8,), engine_version="0.33.0"))
    assert plan == Plan(
        backend="vllm",
        mode="single node",
        reason="the group is this pod alone",
        kind=Kind.SERVER,
        env=(EnvVar("VLLM_HOST_IP", "10.0.0.10", "this pod's own address, never guessed"),),
        main=Main(
            ("vllm", "serve", "m", "-tp", "8", "--shutdown-timeout", "15"),
            Kind.SERVER,
            serves=PortOpen("localhost", 8000, "vllm"),
            asked_alone=True,
            ranks=RANKS["vllm"],
        ),
        decisions=(f"--shutdown-timeout 15: {WHY}",),
    )


@pytest.mark.parametrize("answering", [1, 9, 45])
def test_the_drain_is_as_long_as_is_left_for_answering(answering: int) -> None:
    plan = plan_vllm(request("vllm serve m", gpus=(8,), engine_version="0.33.0", options=Options(answering=answering)))
    assert main_line(plan) == f"vllm serve m --shutdown-timeout {answering}"
    assert plan.decisions == (f"--shutdown-timeout {answering}: {WHY}",)


def test_where_nothing_is_left_for_answering_no_drain_is_added() -> None:
    plan = plan_vllm(request("vllm serve m", gpus=(8,), engine_version="0.33.0", options=Options(answering=0)))
    assert main_line(plan) == "vllm serve m"
    assert (plan.decisions, plan.notes) == ((), ())


@pytest.mark.parametrize(
    "flag",
    [
        "--shutdown-timeout=7",
        "--shutdown-timeout 7",
        "--shutdown_timeout 7",
        "--shutdown_timeout=7",
        "--shu 7",
        "--shu=7",
        "--shutdown_t 7",
        "--shutdown-timeout 7 --port 80",
        "--shutdown-timeout 15",
        "--shutdown-timeout 0",  # the user's wish to abort
    ],
)
def test_a_users_own_drain_is_left_alone_in_every_spelling(flag: str) -> None:
    plan = plan_vllm(request(f"vllm serve m -tp 16 {flag}", gpus=(16,), engine_version="0.33.0"))
    assert (plan.decisions, plan.notes) == ((), ())
    assert main_line(plan) == f"vllm serve m -tp 16 {flag}"


def test_what_stands_behind_two_dashes_is_not_a_users_drain_and_ours_stands_before_it() -> None:
    plan = plan_vllm(request("vllm serve -tp 16 -- --shutdown-timeout=7", gpus=(16,), engine_version="0.33.0"))
    assert main_line(plan) == "vllm serve -tp 16 --shutdown-timeout 15 -- --shutdown-timeout=7"


@pytest.mark.parametrize("version", [None, "0.33.0"])
@pytest.mark.parametrize(
    ("flag", "answering", "seconds"),
    [
        ("--shutdown-timeout 30", 15, 30),
        ("--shu=16", 15, 16),
        ("--shutdown_timeout 7 --shutdown-timeout 600", 45, 600),
        ("--shutdown-timeout 1", 0, 1),
    ],
)
def test_a_users_drain_that_is_longer_than_what_is_left_is_kept_and_noted(
    flag: str, answering: int, seconds: int, version: str | None
) -> None:
    made = request(
        f"vllm serve m -tp 8 {flag}", gpus=(8,), engine_version=version, options=Options(answering=answering)
    )
    plan = plan_vllm(made)
    assert main_line(plan) == f"vllm serve m -tp 8 {flag}"
    assert plan.decisions == ()
    assert plan.notes == (
        f"--shutdown-timeout {seconds} does not fit: {answering} s are left for it; raise --drain-timeout, and"
        " terminationGracePeriodSeconds above that",
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--shutdown-timeout soon", "--shutdown-timeout is 'soon'\n  expected: a whole number, 0 or more"),
        ("--shu=-1", "--shu is '-1'\n  expected: a whole number, 0 or more"),
        ("--shutdown-timeout 2.5", "--shutdown-timeout is '2.5'\n  expected: a whole number, 0 or more"),
        ("--shutdown-timeout", "--shutdown-timeout has no value\n  expected: --shutdown-timeout VALUE"),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_drain_that_vllm_would_refuse_is_refused_here_by_every_pod(flag: str, message: str, index: int) -> None:
    assert refusal(request(f"vllm serve m -tp 16 {flag}", index=index)) == message


def test_a_worker_on_ray_runs_no_engine_and_so_decides_nothing_about_its_drain() -> None:
    plan = plan_vllm(request("vllm serve m -tp 16", index=1, engine_version="0.33.0"))
    assert plan.main is None
    assert (plan.decisions, plan.notes) == ((), ())


def test_a_config_file_and_a_drain_that_does_not_fit_are_both_noted() -> None:
    config, drain = plan_vllm(request("vllm serve m -tp 16 --config f --shutdown-timeout 99", gpus=(16,))).notes
    assert config.startswith("--config FILE")
    assert drain.startswith("--shutdown-timeout 99 does not fit")


# --- on Ray vLLM's own drain does nothing: we wait for its requests ---

ON_RAY = "on Ray a SIGTERM ends vLLM at once, so it is asked to stop when no request is in flight"
COUNT = "--enable-server-load-tracking"
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@pytest.mark.parametrize(
    ("flags", "page"),
    [
        ("", "http://localhost:8000"),
        ("--port 81 --host 10.0.0.10", "http://10.0.0.10:81"),
        ("--host fd00::1", "http://[fd00::1]:8000"),
        ("--ssl-certfile c --ssl-keyfile k", "https://localhost:8000"),
        ("--shutdown-timeout 600", "http://localhost:8000"),
    ],
)
def test_on_ray_the_requests_in_flight_are_counted_and_waited_for(flags: str, page: str) -> None:
    plan = plan_vllm(request(f"vllm serve m -tp 16 {flags}".strip(), engine_version="0.33.0"))
    assert plan.main is not None
    assert plan.main.in_flight == InFlight(f"{page}/metrics", GAUGES, f"{page}/load", "server_load")
    command = f"vllm serve m -tp 16 {flags} --distributed-executor-backend ray {COUNT}"
    assert main_line(plan) == " ".join(command.split())
    assert (plan.decisions, plan.notes) == ((f"{COUNT}: {ON_RAY}",), ())


@pytest.mark.parametrize(
    ("flags", "version"),
    [
        ("", None),
        ("", "0.8.5"),
        ("--no-enable-server-load-tracking", "0.33.0"),
        ("--api-server-count 2", "0.33.0"),
        ("-asc 4", "0.33.0"),
        ("-as 4", "0.33.0"),
        ("--enable-server-load-tracking --no-enable-se", "0.33.0"),
    ],
)
def test_on_ray_a_server_that_has_no_count_is_judged_by_its_engines_metrics(flags: str, version: str | None) -> None:
    plan = plan_vllm(request(f"vllm serve m -tp 16 {flags}".strip(), engine_version=version))
    assert plan.main is not None
    assert plan.main.in_flight == InFlight("http://localhost:8000/metrics", GAUGES)
    assert main_line(plan).endswith("--distributed-executor-backend ray")
    assert plan.decisions == (ON_RAY,)


@pytest.mark.parametrize(
    "flag", [COUNT, "--enable-se", "--enable_server_load_tracking", f"--no-enable-server-load-tracking {COUNT}"]
)
def test_on_ray_a_count_that_the_user_switched_on_is_not_switched_on_twice(flag: str) -> None:
    plan = plan_vllm(request(f"vllm serve m -tp 16 {flag}", engine_version="0.33.0"))
    assert main_line(plan) == f"vllm serve m -tp 16 {flag} --distributed-executor-backend ray"
    assert plan.main is not None
    assert plan.main.in_flight is not None
    assert plan.main.in_flight.load == "http://localhost:8000/load"


@pytest.mark.parametrize("flags", ["--disable-log-stats", "--disable-log-s", "--disable-l", "--uds /tmp/s"])
def test_on_ray_an_engine_that_does_not_tell_its_requests_is_not_waited_for(flags: str) -> None:
    plan = plan_vllm(request(f"vllm serve m -tp 16 {flags}", engine_version="0.33.0"))
    assert plan.main is not None
    assert plan.main.in_flight is None
    assert plan.decisions == ()


# --- wrappers ---


@pytest.mark.parametrize(
    "start",
    [
        "numactl -N 0 vllm serve m",
        "env A=B /opt/venv/bin/vllm serve m",
        "python3 -u -m vllm.entrypoints.openai.api_server --model m",
    ],
)
def test_flags_are_added_behind_the_engine_and_not_behind_its_wrapper(start: str) -> None:
    alone = plan_vllm(request(f"{start} -tp 16", gpus=(16,), engine_version="0.33.0"))
    assert main_line(alone) == f"{start} -tp 16 --shutdown-timeout 15"
    assert main_line(plan_vllm(request(f"{start} -tp 16"))) == f"{start} -tp 16 --distributed-executor-backend ray"


# --- what the user set ---


def test_what_the_user_set_in_the_environment_is_left_alone() -> None:
    environ = {"VLLM_HOST_IP": "192.168.0.1", "RAY_ADDRESS": "elsewhere:1", "RAY_DEDUP_LOGS": "1", "RAY_AUTH_MODE": ""}
    names = [v.name for v in plan_vllm(request("vllm serve m -tp 16", environ=environ)).env]
    assert names == [
        "RAY_USAGE_STATS_ENABLED",
        "RAY_memory_monitor_refresh_ms",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
        "RAY_gcs_rpc_server_reconnect_timeout_s",
        "RAY_health_check_failure_threshold",
    ]


def test_the_user_may_call_a_server_a_job() -> None:
    plan = plan_vllm(request("vllm serve m -tp 16", options=Options(kind=Kind.JOB)))
    assert plan.kind is Kind.JOB
    assert plan.main is not None
    assert plan.main.kind is Kind.JOB


# --- a group of one ---


@pytest.mark.parametrize("ray", [None, "2.60.0"])
def test_a_group_of_one_with_an_unknown_vllm_runs_the_command_unchanged_with_its_own_address(ray: str | None) -> None:
    plan = plan_vllm(request("vllm serve m -tp 8", gpus=(8,), ray=ray))
    assert plan == Plan(
        backend="vllm",
        mode="single node",
        reason="the group is this pod alone",
        kind=Kind.SERVER,
        env=(EnvVar("VLLM_HOST_IP", "10.0.0.10", "this pod's own address, never guessed"),),
        main=Main(
            ("vllm", "serve", "m", "-tp", "8"),
            Kind.SERVER,
            serves=PortOpen("localhost", 8000, "vllm"),
            asked_alone=True,
            ranks=RANKS["vllm"],
        ),
    )


def test_a_group_of_one_leaves_the_users_host_ip_alone() -> None:
    assert plan_vllm(request("vllm serve m", gpus=(8,), environ={"VLLM_HOST_IP": "192.168.0.1"})).env == ()


@pytest.mark.parametrize(
    ("flags", "gpus"),
    [
        ("", 8),  # several engines may share a node
        ("-tp 4", 8),
        ("-tp 4 -dp 2", 8),
        ("-tp 2 --distributed-executor-backend mp", 8),
        ("-tp 16", 0),  # GPUs that NVML does not see, or a CPU build
    ],
)
def test_a_group_of_one_may_use_what_the_node_has_or_less(flags: str, gpus: int) -> None:
    assert (
        main_line(plan_vllm(request(f"vllm serve m {flags}".strip(), gpus=(gpus,)))) == f"vllm serve m {flags}".strip()
    )


@pytest.mark.parametrize(
    ("flags", "servers"),
    [
        ("-tp 8 -dp 4 --data-parallel-rank 2 --data-parallel-address x", 1),
        ("-tp 8 -dp 4 --data-parallel-external-lb --data-parallel-rank 0", 1),
        ("-tp 4 -dp 8 -dpl 2 --data-parallel-start-rank 4 --data-parallel-address x", 2),
        ("-tp 8 -dp 4 -dpl 1 -dph --data-parallel-address x", 1),
        ("-tp 8 -dp 4 -dpl 1 --data-parallel-address x", 4),  # internal: one server here for the replicas of all
        ("-tp 8 -dp 4 -dpl 0 --data-parallel-address x", 4),
    ],
)
def test_a_group_of_one_may_be_a_part_of_more(flags: str, servers: int) -> None:
    plan = plan_vllm(request(f"vllm serve m {flags}", gpus=(8,), engine_version="0.33.0"))
    assert plan.main is not None
    assert plan.main.in_flight is not None  # vLLM's own drain does not wait for the replicas of others
    assert (plan.main.in_flight.load is not None) is (servers == 1)
    assert main_line(plan).removesuffix(" --enable-server-load-tracking") == f"vllm serve m {flags}"


def test_a_group_of_one_that_is_headless_in_a_larger_deployment_is_planned() -> None:
    line = "vllm serve m -tp 8 -dp 4 -dpl 1 -dpr 2 --headless --data-parallel-address x"
    assert main_line(plan_vllm(request(line, gpus=(8,), engine_version="0.33.0"))) == line


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        ("-tp 8 -dp 4 -dpl 2 -dpr 2", "TP 8 × PP 1 × DP 2 needs 16 GPUs; the group has 1 node × 8 = 8"),
        ("-tp 16 -dp 4 -dpn 2", "TP 16 × PP 1 needs 16 GPUs; the group has 1 node × 8 = 8"),
        ("-tp 16", "TP 16 × PP 1 needs 16 GPUs; the group has 1 node × 8 = 8"),
        ("-tp 8 -dp 2", "TP 8 × PP 1 × DP 2 needs 16 GPUs; the group has 1 node × 8 = 8"),
        ("-tp 8 -pp 2 -pcp 2", "TP 8 × PP 2 × PCP 2 needs 32 GPUs; the group has 1 node × 8 = 8"),
    ],
)
def test_a_group_of_one_cannot_use_more_than_the_node_has(flags: str, first: str) -> None:
    text = refusal(request(f"vllm serve m {flags}", gpus=(8,)))
    assert text.startswith(f"{first}. Fits: ")
