"""A Ray cluster over the group: who starts what, with which settings, and why."""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import Kind, Main, Node, Options, PortOpen, RayNodes, Request
from backends.ray import cluster_env, cluster_service, object_store_bytes, plan_ray, ray_program, supports_token

MIB = 1 << 20


def request(
    index: int = 0,
    ips: tuple[str, ...] = ("10.0.0.10", "10.0.0.11"),
    ray: str | None = "2.60.0",
    environ: dict[str, str] | None = None,
    options: Options | None = None,
    secrets: dict[str, str] | None = None,
    shm: int | None = None,
) -> Request:
    nodes = tuple(Node(ip=ip, hostname=f"pod-{at}", gpus=at + 1, shm_bytes=shm, ray=ray) for at, ip in enumerate(ips))
    group = Group("leader", len(ips), index, "id")
    return Request(group, nodes, ("python3", "run.py", "{size}"), options or Options(), environ or {}, secrets or {})


def values(made: Request) -> dict[str, str]:
    return {variable.name: variable.value for variable in cluster_env(made)}


# --- the plan ---


def test_the_command_runs_on_the_leader_when_ray_sees_every_node() -> None:
    plan = plan_ray(request())
    assert (plan.backend, plan.mode, plan.kind) == ("ray", "Ray cluster", Kind.JOB)
    assert plan.reason == "--backend ray: the command runs on the leader, on a Ray cluster of 2"
    assert [service.name for service in plan.services] == ["ray-head"]
    assert plan.gates == (RayNodes("10.0.0.10:6379", (("10.0.0.10", 1), ("10.0.0.11", 2)), "python3"),)
    assert plan.main == Main(("python3", "run.py", "2"), Kind.JOB)


@pytest.mark.parametrize(("index", "flag"), [(0, "--num-gpus=0"), (1, "--num-gpus=2")])
def test_an_excluded_leader_offers_ray_no_gpus_and_nobody_waits_for_them(index: int, flag: str) -> None:
    plan = plan_ray(request(index, options=Options(leader_excluded=True)))
    assert flag in plan.services[0].argv
    if index == 0:
        assert plan.gates == (RayNodes("10.0.0.10:6379", (("10.0.0.10", 0), ("10.0.0.11", 2)), "python3"),)
        assert plan.main is not None


def test_a_worker_runs_ray_alone() -> None:
    plan = plan_ray(request(index=1))
    assert [service.name for service in plan.services] == ["ray-worker"]
    assert plan.gates == ()
    assert plan.main is None


def test_a_ray_program_may_be_a_server() -> None:
    plan = plan_ray(request(options=Options(kind=Kind.SERVER)))
    assert plan.kind is Kind.SERVER
    assert plan.main == Main(("python3", "run.py", "2"), Kind.SERVER)


@pytest.mark.parametrize("index", [0, 1])
def test_an_image_without_ray_is_refused_with_what_to_install(index: int) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_ray(request(index=index, ray=None))
    text = caught.value.text()
    assert text.startswith("this image has no Ray\n  expected: the package ray beside python3\n")
    assert "to do: add `pip install ray` to the image" in text


# --- the processes ---


def test_the_head_listens_on_the_chosen_port_and_waits_for_nobody() -> None:
    service = cluster_service(request(options=Options(ray_port=7777)))
    assert service.argv == (
        "ray",
        "start",
        "--head",
        "--port=7777",
        "--include-dashboard=false",
        "--node-ip-address=10.0.0.10",
        "--num-gpus=1",
        "--object-store-memory=83886080",
        "--disable-usage-stats",
        "--block",
    )
    assert service.gates == ()


def test_a_worker_joins_the_chosen_port_when_it_listens() -> None:
    service = cluster_service(request(index=1, options=Options(ray_port=7777)))
    assert service.argv == (
        "ray",
        "start",
        "--address=10.0.0.10:7777",
        "--node-ip-address=10.0.0.11",
        "--num-gpus=2",
        "--object-store-memory=83886080",
        "--disable-usage-stats",
        "--block",
    )
    assert service.gates == (PortOpen("10.0.0.10", 7777, "the Ray head"),)


def test_what_ray_start_stands_for_is_watched_because_it_stays_when_that_ends() -> None:
    assert cluster_service(request()).watch == ("gcs_server", "raylet")
    assert cluster_service(request(index=1)).watch == ("raylet",)


@pytest.mark.parametrize(
    ("python", "program"),
    [
        ("/opt/venv/bin/python", ("/opt/venv/bin/python", "-m", "ray.scripts.scripts")),
        ("python3", ("ray",)),
    ],
)
def test_ray_is_the_one_of_the_engines_own_interpreter(python: str, program: tuple[str, ...]) -> None:
    assert ray_program(Node(ip="10.0.0.1", hostname="pod", gpus=1, python=python)) == program


def test_ipv6_addresses_stand_in_brackets_before_a_port_and_bare_elsewhere() -> None:
    ips = ("fd00::a", "fd00::b")
    leader, worker = plan_ray(request(ips=ips)), plan_ray(request(index=1, ips=ips))
    assert values(request(ips=ips))["RAY_ADDRESS"] == "[fd00::a]:6379"
    assert "--node-ip-address=fd00::a" in leader.services[0].argv
    assert leader.gates == (RayNodes("[fd00::a]:6379", (("fd00::a", 1), ("fd00::b", 2)), "python3"),)
    assert "--address=[fd00::a]:6379" in worker.services[0].argv
    assert "--node-ip-address=fd00::b" in worker.services[0].argv
    assert worker.services[0].gates == (PortOpen("fd00::a", 6379, "the Ray head"),)
    assert PortOpen("fd00::a", 6379, "the Ray head").describe() == "the Ray head at [fd00::a]:6379 accepts connections"


@pytest.mark.parametrize(
    ("shm", "store"),
    [
        (None, 80 * MIB),
        (0, 80 * MIB),
        (64 * MIB, 80 * MIB),  # the container default; Ray refuses less than 75 MiB
        (320 * MIB, 80 * MIB),
        (400 * MIB, 100 * MIB),
        (2048 * MIB, 512 * MIB),
        (4096 * MIB, 1024 * MIB),
        (65536 * MIB, 1024 * MIB),
    ],
)
def test_the_object_store_takes_a_quarter_of_shared_memory_within_limits(shm: int | None, store: int) -> None:
    assert object_store_bytes(shm) == store
    assert f"--object-store-memory={store}" in cluster_service(request(shm=shm)).argv


# --- the environment ---


def test_the_cluster_environment_is_this() -> None:
    assert values(request()) == {
        "RAY_ADDRESS": "10.0.0.10:6379",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
        "RAY_health_check_failure_threshold": "10",
    }


@pytest.mark.parametrize(("timeout", "patience"), [(15.0, "20"), (60.0, "65"), (2.6, "8")])
def test_a_workers_ray_outlives_the_peer_timeout_by_little(timeout: float, patience: str) -> None:
    made = request(options=Options(peer_timeout=timeout))
    assert values(made)["RAY_gcs_rpc_server_reconnect_timeout_s"] == patience


@pytest.mark.parametrize(
    "name",
    ["RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "RAY_memory_monitor_refresh_ms", "RAY_health_check_failure_threshold"],
)
@pytest.mark.parametrize("value", ["the user's", ""])
def test_a_variable_that_the_user_set_is_left_alone(name: str, value: str) -> None:
    assert name not in values(request(environ={name: value}))
    assert len(values(request(environ={name: value}))) == 6


# --- the token ---


@pytest.mark.parametrize(
    ("version", "can"),
    [
        ("2.52.0", True),
        ("2.52", True),
        ("2.60.1", True),
        ("2.100.0", True),
        ("3.0.0.dev0", True),
        ("2.51.2", False),
        ("2.9.3", False),
        ("1.99", False),
        ("nightly", False),
        ("", False),
        (None, False),
    ],
)
def test_a_token_is_used_from_ray_2_52_on(version: str | None, can: bool) -> None:
    assert supports_token(Node(ip="10.0.0.1", hostname="pod", gpus=1, ray=version)) is can
    named = {v.name: v for v in cluster_env(request(ray=version, secrets={"ray-token": "s3cret"}))}
    assert ("RAY_AUTH_MODE" in named, "RAY_AUTH_TOKEN" in named) == (can, can)


def test_the_token_is_marked_as_a_secret_and_its_mode_is_not() -> None:
    named = {v.name: v for v in cluster_env(request(secrets={"ray-token": "s3cret"}))}
    assert (named["RAY_AUTH_MODE"].value, named["RAY_AUTH_MODE"].secret) == ("token", False)
    assert (named["RAY_AUTH_TOKEN"].value, named["RAY_AUTH_TOKEN"].secret) == ("s3cret", True)
    assert "s3cret" not in named["RAY_AUTH_TOKEN"].reason


@pytest.mark.parametrize("secrets", [{}, {"ray-token": ""}, {"other": "x"}])
def test_without_a_minted_token_there_is_no_authentication(secrets: dict[str, str]) -> None:
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(values(request(secrets=secrets)))


@pytest.mark.parametrize("mode", ["disabled", "token", ""])
def test_a_user_who_chose_the_mode_gets_no_token_of_ours(mode: str) -> None:
    named = values(request(environ={"RAY_AUTH_MODE": mode}, secrets={"ray-token": "s3cret"}))
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(named)


def test_a_token_that_the_user_set_is_left_alone() -> None:
    made = request(environ={"RAY_AUTH_TOKEN": "the user's"}, secrets={"ray-token": "s3cret"})
    assert "RAY_AUTH_TOKEN" not in values(made)


def test_the_token_stands_in_no_argv() -> None:
    for index in (0, 1):
        plan = plan_ray(request(index=index, secrets={"ray-token": "s3cret"}))
        assert not any("s3cret" in token for service in plan.services for token in service.argv)
