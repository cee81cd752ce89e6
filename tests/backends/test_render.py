"""A plan as text and as data: complete, JSON-ready, and without a secret."""

from __future__ import annotations

import json

import pytest

from backends.group import Group
from backends.plan import EnvVar, File, Kind, Main, Node, Options, Plan, Request, Service, Stage, Unset
from backends.planner import make_plan
from backends.render import plan_data, plan_text

TOKEN = "5e3c2e7b0f-the-token"
MASK = "<secret, minted per run>"


def request(
    line: str = "vllm serve m -tp 16", index: int = 0, ips: tuple[str, ...] = ("10.0.0.10", "10.0.0.11")
) -> Request:
    nodes = tuple(
        Node(ip=ip, hostname=f"pod-{at}", gpus=8, shm_bytes=1 << 31, ray="2.60.0") for at, ip in enumerate(ips)
    )
    return Request(
        Group("my-lws-0.my-lws.default", len(ips), index, "id"),
        nodes,
        tuple(line.split()),
        Options(env=(("GREETING", "hello world"),)),
        {},
        {"ray-token": TOKEN},
    )


def text_of(made: Request) -> str:
    return plan_text(made.group, made.node, make_plan(made))


def data_of(made: Request) -> dict[str, object]:
    return plan_data(made.group, made.node, make_plan(made))


# --- text ---


def test_the_leaders_plan_reads_from_mode_to_run() -> None:
    lines = text_of(request()).splitlines()
    assert lines[0] == "the leader of 2 · pod-0 · 10.0.0.10 · 8 GPUs"
    assert lines[1] == "  mode    vllm, Ray: the image has Ray 2.60.0 and the model spans 2 nodes"
    assert lines[2] == "  set     VLLM_HOST_IP=10.0.0.10  # this pod's own address, never guessed"
    assert "  set     GREETING=hello world  # --env" in lines
    assert lines[-7:] == [
        "  start   ray start --head --port=6379 --include-dashboard=false --node-ip-address=10.0.0.10 --num-gpus=8"
        " --object-store-memory=536870912 --disable-usage-stats --block",
        "            ray-head, at once; ends the pod when it, or its gcs_server or raylet, ends",
        "  wait    until Ray's GCS at 10.0.0.10:6379 shows 2 nodes alive with 16 GPUs",
        "  run     vllm serve m -tp 16 --distributed-executor-backend ray  (server)",
        "  ready   when GET http://localhost:8000/health succeeds",
        "  hang    with --hang-timeout: GET http://localhost:8000/metrics is asked too, and while idle a token of POST"
        " http://localhost:8000/v1/completions",
        "  added   on Ray a SIGTERM ends vLLM at once, so it is asked to stop when no request is in flight",
    ]


def test_the_workers_plan_says_what_it_waits_for_and_that_nothing_more_runs() -> None:
    lines = text_of(request(index=1)).splitlines()
    assert lines[0] == "worker 1 of 2 · pod-1 · 10.0.0.11 · 8 GPUs"
    assert lines[-3:] == [
        "  start   ray start --address=10.0.0.10:6379 --node-ip-address=10.0.0.11 --num-gpus=8"
        " --object-store-memory=536870912 --disable-usage-stats --block",
        "            ray-worker, when the Ray head at 10.0.0.10:6379 accepts connections;"
        " ends the pod when it, or its raylet, ends",
        "  run     nothing more: the services above are this pod's part",
    ]


def test_ipv6_addresses_are_shown_in_brackets() -> None:
    ips = ("fd00::a", "fd00::b")
    assert "until Ray's GCS at [fd00::a]:6379 shows" in text_of(request(ips=ips))
    assert "when the Ray head at [fd00::a]:6379 accepts connections" in text_of(request(index=1, ips=ips))


def test_arguments_are_quoted_so_that_the_line_can_be_pasted() -> None:
    made = request()
    plan = Plan("generic", "as it is", "why", Kind.JOB, main=Main(("echo", "two words", "$HOME"), Kind.JOB))
    assert plan_text(made.group, made.node, plan).splitlines()[-1] == "  run     echo 'two words' '$HOME'  (job)"


@pytest.mark.parametrize(
    ("index", "stage", "when"),
    [
        (0, Stage.ADMITTED, "at once"),
        (1, Stage.ADMITTED, "when the leader has let it in"),
        (0, Stage.FORMED, "when all have joined"),
        (1, Stage.FORMED, "when all have joined"),
    ],
)
def test_a_service_without_a_gate_starts_at_its_stage(index: int, stage: Stage, when: str) -> None:
    made = request(index=index)
    plan = Plan("x", "y", "why", Kind.JOB, services=(Service("sshd", ("sshd", "-D"), stage),))
    assert f"            sshd, {when}; ends the pod when it, or its child, ends" in plan_text(
        made.group, made.node, plan
    )


def test_files_decisions_and_notes_are_shown_but_not_the_files_content() -> None:
    made = request()
    plan = Plan(
        "x",
        "y",
        "why",
        Kind.JOB,
        files=(File("/tmp/hosts", "10.0.0.1\n", 0o600, "for mpirun"),),
        decisions=("--this 1: so that it works", "--that: because"),
        notes=("mind",),
    )
    text = plan_text(made.group, made.node, plan)
    assert "  write   /tmp/hosts (0600): for mpirun" in text
    assert text.splitlines()[-3:] == [
        "  added   --this 1: so that it works",
        "  added   --that: because",
        "  note    mind",
    ]
    assert "10.0.0.1\n" not in text


# --- data ---


def test_the_data_is_stable_and_complete() -> None:
    made = request(index=1)
    data = json.loads(json.dumps(data_of(made)))
    assert set(data) == {
        "index",
        "size",
        "host",
        "ip",
        "gpus",
        "backend",
        "mode",
        "reason",
        "kind",
        "env",
        "unset",
        "files",
        "services",
        "gates",
        "main",
        "mpi",
        "agreed",
        "decisions",
        "notes",
    }
    assert (data["index"], data["size"], data["host"], data["ip"], data["gpus"]) == (1, 2, "pod-1", "10.0.0.11", 8)
    assert (data["backend"], data["mode"], data["kind"]) == ("vllm", "Ray", "server")
    assert data["env"][0] == {
        "name": "VLLM_HOST_IP",
        "value": "10.0.0.11",
        "reason": "this pod's own address, never guessed",
        "secret": False,
    }
    assert data["services"] == [
        {
            "name": "ray-worker",
            "argv": [
                "ray",
                "start",
                "--address=10.0.0.10:6379",
                "--node-ip-address=10.0.0.11",
                "--num-gpus=8",
                "--object-store-memory=536870912",
                "--disable-usage-stats",
                "--block",
            ],
            "starts": "admitted",
            "after": [{"gate": "port-open", "host": "10.0.0.10", "port": 6379, "what": "the Ray head"}],
            "watch": ["raylet"],
            "ranks": ["ray::RayWorker", "EngineCoreActor", "::Worker"],
        }
    ]
    assert data["main"] is None
    assert all(data[name] == [] for name in ("unset", "files", "gates", "decisions", "notes"))


def test_the_leaders_data_holds_its_gate_and_its_main_process() -> None:
    data = json.loads(json.dumps(data_of(request())))
    assert data["gates"] == [
        {"gate": "ray-nodes", "address": "10.0.0.10:6379", "gpus": {"10.0.0.10": 8, "10.0.0.11": 8}}
    ]
    assert data["main"] == {
        "argv": ["vllm", "serve", "m", "-tp", "16", "--distributed-executor-backend", "ray"],
        "kind": "server",
        "serves": {"gate": "port-open", "host": "localhost", "port": 8000, "what": "vllm"},
        "asked_alone": True,
        "in_flight": "http://localhost:8000/metrics",
        "ranks": ["::EngineCore", "::Worker", "::DPCoordinator", "::APIServer"],
        "health": "http://localhost:8000/health",
        "health_through": None,
        "progress": {
            "metrics": "http://localhost:8000/metrics",
            "completions": "http://localhost:8000/v1/completions",
        },
        "fails_with": "",
    }


def test_a_main_process_that_serves_nowhere_says_so_in_the_data() -> None:
    data = json.loads(json.dumps(data_of(request("run --fast"))))
    assert data["main"] == {
        "argv": ["run", "--fast"],
        "kind": "job",
        "serves": None,
        "asked_alone": False,
        "in_flight": None,
        "ranks": [],
        "health": None,
        "health_through": None,
        "progress": None,
        "fails_with": "",
    }


def test_decisions_and_notes_are_in_the_data_as_they_are() -> None:
    made = request()
    plan = Plan("x", "y", "why", Kind.JOB, decisions=("--this 1: so that it works",), notes=("mind",))
    data = json.loads(json.dumps(plan_data(made.group, made.node, plan)))
    assert (data["decisions"], data["notes"]) == (["--this 1: so that it works"], ["mind"])


def test_a_files_mode_is_octal() -> None:
    made = request()
    plan = Plan("x", "y", "why", Kind.JOB, files=(File("/tmp/hosts", "10.0.0.1\n", 0o600, "for mpirun"),))
    assert json.loads(json.dumps(plan_data(made.group, made.node, plan)))["files"] == [
        {"path": "/tmp/hosts", "mode": "0o600", "content": "10.0.0.1\n", "reason": "for mpirun"}
    ]


@pytest.mark.parametrize("line", ["vllm serve m -tp 16", "run {index} --json {}"])
@pytest.mark.parametrize("index", [0, 1])
def test_every_plan_survives_the_way_through_json(line: str, index: int) -> None:
    data = data_of(request(line, index))
    assert json.loads(json.dumps(data)) == data


# --- secrets ---


@pytest.mark.parametrize("index", [0, 1])
def test_the_token_is_in_the_plan_and_shown_by_neither_form(index: int) -> None:
    made = request(index=index)
    assert [v.value for v in make_plan(made).env if v.name == "RAY_AUTH_TOKEN"] == [TOKEN]
    text, data = text_of(made), json.dumps(data_of(made))
    assert TOKEN not in text
    assert TOKEN not in data
    assert f"  set     RAY_AUTH_TOKEN={MASK}" in text
    assert {"name": "RAY_AUTH_TOKEN", "value": MASK, "secret": True}.items() <= {
        v["name"]: v for v in json.loads(data)["env"]
    }["RAY_AUTH_TOKEN"].items()


def test_any_secret_variable_is_masked() -> None:
    made = request()
    plan = Plan("x", "y", "why", Kind.JOB, env=(EnvVar("KEY", TOKEN, "private", secret=True), EnvVar("A", "b", "open")))
    text = plan_text(made.group, made.node, plan)
    assert f"  set     KEY={MASK}  # private" in text
    assert "  set     A=b  # open" in text
    assert TOKEN not in text + json.dumps(plan_data(made.group, made.node, plan))


def test_a_variable_that_is_not_handed_on_is_told_with_its_reason() -> None:
    plan = Plan("vllm", "m", "r", Kind.SERVER, unset=(Unset("VLLM_PORT", "why"),))
    made = request(index=1)
    assert "  unset   VLLM_PORT  # why" in plan_text(made.group, made.node, plan).splitlines()
    assert plan_data(made.group, made.node, plan)["unset"] == [{"name": "VLLM_PORT", "reason": "why"}]
