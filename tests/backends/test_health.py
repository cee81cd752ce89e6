"""Where an engine tells that it serves is read from its flags and variables; only pods with clients are asked."""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import Health, Kind, Node, Options, Plan, Request
from backends.planner import make_plan


def planned(line: str, index: int = 0, size: int = 1, environ: dict[str, str] | None = None, **options: object) -> Plan:
    nodes = tuple(Node(f"10.0.0.1{at}", f"pod-{at}", 8, engine_version="0.33.0") for at in range(size))
    group = Group("my-lws-0.my-lws.default", size, index, "id")
    return make_plan(Request(group, nodes, tuple(line.split()), Options(**options), environ or {}))  # type: ignore[arg-type]


def health(line: str, *place: object, **more: object) -> Health | None:
    main = planned(line, *place, **more).main  # type: ignore[arg-type]
    return main.health if main else None


def url(line: str, *place: object, **more: object) -> str | None:
    found = health(line, *place, **more)
    return found.url if found else None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vllm serve m", "http://localhost:8000/health"),
        ("vllm serve m --port 8080 --host 0.0.0.0", "http://localhost:8080/health"),
        ("vllm serve m --host ::", "http://localhost:8000/health"),
        ("vllm serve m --host 10.1.2.3", "http://10.1.2.3:8000/health"),
        ("vllm serve m --host fd00::1", "http://[fd00::1]:8000/health"),
        ("vllm serve m --ssl-certfile c.pem --ssl-keyfile k.pem", "https://localhost:8000/health"),
        ("vllm serve m --ssl-certfile c.pem --ssl-cert-reqs 2", "tcp://localhost:8000"),
        ("vllm serve m --ssl-certfile c.pem --ssl-cert-reqs=1", "https://localhost:8000/health"),
        ("vllm serve m --grpc", "tcp://localhost:8000"),
        ("vllm serve m --uds /tmp/s", None),
        ("vllm serve m --headless -dp 4 -dpl 2", None),
        ("trtllm-serve m --host 0.0.0.0 --port 8001", "http://localhost:8001/health"),
        ("sglang serve --model-path m", "http://localhost:30000/ready"),
        ("python3 -m sglang.launch_server --model-path m --ssl-certfile c", "https://localhost:30000/ready"),
        ("sglang serve --model-path m --grpc-mode", None),
        ("torchrun serve.py", None),
        ("sleep 600", None),
    ],
)
def test_an_engines_health_is_where_its_flags_put_it(line: str, expected: str | None) -> None:
    assert url(line) == expected


def test_sglang_is_asked_without_generating_and_through_all_ranks_where_that_is_wanted() -> None:
    at = "http://localhost:30000"
    assert health("sglang serve --model-path m") == Health(
        f"{at}/ready", otherwise=f"{at}/health", through=f"{at}/health_generate"
    )


def test_vllms_progress_is_watched_where_it_tells_it() -> None:
    found = health("vllm serve m --port 9000")
    assert found is not None
    assert found.progress is not None
    assert found.progress.metrics == "http://localhost:9000/metrics"
    assert found.progress.completions == "http://localhost:9000/v1/completions"
    assert found.progress.key is None
    for secret in (health("vllm serve m --api-key abc"), health("vllm serve m", environ={"VLLM_API_KEY": "abc"})):
        assert secret is not None
        assert secret.progress is not None
        assert secret.progress.key == "abc"
        assert "abc" not in repr(secret)
    silent = health("vllm serve m --disable-log-stats")
    assert silent is not None
    assert silent.progress is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"DYN_SYSTEM_PORT": "9090"}, "http://localhost:9090/health"),
        (
            {"DYN_SYSTEM_PORT": "8081", "DYN_SYSTEM_HEALTH_PATH": "/custom/health"},
            "http://localhost:8081/custom/health",
        ),
        ({"DYN_SYSTEM_PORT": "-1"}, None),
        ({"DYN_SYSTEM_PORT": "tcp://10.0.0.1:9090"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("worker", ["vllm --model m", "sglang --model-path m", "trtllm --model-path m"])
def test_a_dynamo_worker_tells_it_at_its_system_port(
    worker: str, environ: dict[str, str], expected: str | None
) -> None:
    assert url(f"python3 -m dynamo.{worker}", environ=environ) == expected


def test_a_system_port_that_comes_by_env_counts() -> None:
    assert url("python3 -m dynamo.vllm --model m", env=(("DYN_SYSTEM_PORT", "9{index}90"),)) == (
        "http://localhost:9090/health"
    )


@pytest.mark.parametrize(
    ("line", "workers"),
    [
        ("vllm serve m -tp 16", None),
        ("vllm serve m -dp 16", None),
        ("vllm serve m -dp 16 --data-parallel-hybrid-lb", "http://localhost:8000/health"),
        ("vllm serve m -dp 16 --data-parallel-multi-port-external-lb", "http://localhost:9256/health"),
        ("sglang serve --model-path m --tp 16", None),
    ],
)
def test_a_worker_is_asked_only_where_it_has_clients(line: str, workers: str | None) -> None:
    assert url(line, 0, 2) is not None
    assert url(line, 1, 2) == workers


def test_a_job_is_not_asked() -> None:
    assert url("vllm serve m", kind=Kind.JOB) is None


@pytest.mark.parametrize("kind", [None, Kind.JOB])
def test_a_given_address_wins_and_has_its_placeholders_filled_in(kind: Kind | None) -> None:
    given = "http://{pod_ip}:{index}8{size}/fine"
    assert url("vllm serve m", health_url=given, kind=kind) == "http://10.0.0.10:081/fine"
    assert url("serve", 0, 2, health_url="tcp://{leader_ip}:7000", backend="generic") == "tcp://10.0.0.10:7000"
    assert url("serve", 1, 2, health_url="tcp://{leader_ip}:7000", backend="generic") is None


@pytest.mark.parametrize(
    "text", ["localhost:8000/health", "8000", "tcp://localhost", "ftp://h/x", "http://", "http://h:x/"]
)
def test_an_address_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned("sleep 1", health_url=text)
    assert f"--health-url is {text!r}" in caught.value.text()
    assert "http://localhost:8000/health" in caught.value.text()


@pytest.mark.parametrize("text", ["http://me:hush@h/x", "https://hush@h", "tcp://a:hush@h:1", "http://me:hush@h:x/"])
def test_a_health_url_with_credentials_is_refused_without_showing_them(text: str) -> None:
    with pytest.raises(ConfigError, match="a user name or a password") as refused:
        planned("sleep 1", health_url=text)
    assert "hush" not in refused.value.text()
