"""One way in: the backend is the one that the command starts, or that the user names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import EnvVar, Kind, Main, Node, Options, Plan, Request
from backends.planner import NAMES, backend_of, make_plan


def request(
    line: str,
    index: int = 0,
    size: int = 2,
    options: Options | None = None,
    environ: dict[str, str] | None = None,
    ray: str | None = "2.60.0",
) -> Request:
    nodes = tuple(Node(ip=f"10.0.0.1{at}", hostname=f"pod-{at}", gpus=8, ray=ray) for at in range(size))
    group = Group("my-lws-0.my-lws.default", size, index, "id")
    return Request(group, nodes, tuple(line.split()), options or Options(), environ or {})


def refusal(made: Request) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(made)
    return caught.value.text()


def test_the_names_that_a_user_may_choose_are_these() -> None:
    assert NAMES == ("auto", "vllm", "sglang", "tensorrt-llm", "mpi", "torchrun", "ray", "generic")


@pytest.mark.parametrize(
    ("line", "chosen", "backend"),
    [
        ("vllm serve m", "auto", "vllm"),
        ("vllm serve m", "vllm", "vllm"),
        ("vllm serve m", "generic", "generic"),
        ("vllm serve m", "ray", "ray"),
        ("python3 run.py", "auto", "generic"),
        ("python3 run.py", "ray", "ray"),
        ("python3 -m sglang.launch_server", "auto", "sglang"),
        ("trtllm-serve m", "auto", "tensorrt-llm"),
        ("torchrun train.py", "auto", "torchrun"),
    ],
)
def test_the_command_decides_unless_the_user_does(line: str, chosen: str, backend: str) -> None:
    assert backend_of(tuple(line.split()), Options(backend=chosen)) == backend


def test_a_group_of_one_cannot_exclude_its_leader() -> None:
    text = refusal(request("python3 run.py", size=1, options=Options(leader_excluded=True)))
    assert text.startswith("--leader-excluded in a group of size 1: nobody is left to take part")


@pytest.mark.parametrize("backend", ["auto", "vllm"])
def test_vllms_server_cannot_run_on_an_excluded_leader(backend: str) -> None:
    text = refusal(request("vllm serve m -tp 8", options=Options(backend=backend, leader_excluded=True)))
    assert text.startswith("--leader-excluded: vLLM's server cannot run on a leader that has no part in the model")
    assert "--backend ray and generic take it" in text


@pytest.mark.parametrize("line", ["python3 run.py", "python3 -m sglang.launch_server --tp 16", "vllm bench serve"])
def test_a_user_who_says_vllm_must_start_vllm(line: str) -> None:
    text = refusal(request(line, options=Options(backend="vllm")))
    assert text.startswith(f"--backend vllm, but no vLLM server was found in: {line}\n")
    assert "expected: `vllm serve …`" in text
    assert "to do: write the command plainly; --backend generic runs a command as it is" in text


@pytest.mark.parametrize("line", ["python3 run.py", "vllm serve m", "sglang generate"])
def test_a_user_who_says_sglang_must_start_sglang(line: str) -> None:
    text = refusal(request(line, options=Options(backend="sglang")))
    assert text.startswith(f"--backend sglang, but no SGLang server was found in: {line}\n")
    assert "expected: `sglang serve …`" in text


@pytest.mark.parametrize(
    ("line", "backend", "name"),
    [
        ("sglang serve --model-path m --tp 16", "auto", "sglang"),
        ("python3 run.py", "auto", "generic"),
        ("torchrun t.py", "auto", "torchrun"),
        ("vllm serve m -tp 16", "generic", "generic"),
        ("vllm serve m -tp 16", "ray", "ray"),
    ],
)
def test_a_mode_of_vllm_is_refused_for_anything_else(line: str, backend: str, name: str) -> None:
    assert refusal(request(line, options=Options(backend=backend, vllm_mode="native"))) == (
        f"--vllm-mode native, but what is planned is {name}\n"
        "  expected: a vLLM server, `vllm serve …`, and no other --backend\n"
        "  to do: leave --vllm-mode out"
    )


def test_an_engine_inside_a_shell_is_refused() -> None:
    made = Request(
        Group("leader", 2, 0, "id"),
        (Node(ip="10.0.0.1", hostname="a", gpus=8), Node(ip="10.0.0.2", hostname="b", gpus=8)),
        ("sh", "-c", "vllm serve m -tp 16"),
    )
    assert "write: lwsrun start -- vllm serve m -tp 16" in refusal(made)


# --- generic ---


@pytest.mark.parametrize(("index", "rank"), [(0, "0"), (1, "8")])
def test_any_other_command_runs_on_every_pod_with_its_placeholders_filled(index: int, rank: str) -> None:
    plan = make_plan(request("run --leader {leader} --rank {index*gpus}", index=index))
    assert plan == Plan(
        backend="generic",
        mode="as it is",
        reason="no engine was recognised in the command: every pod runs it unchanged",
        kind=Kind.JOB,
        env=plan.env,  # tests/backends/test_generic.py
        main=Main(("run", "--leader", "my-lws-0.my-lws.default", "--rank", rank), Kind.JOB),
    )


def test_a_generic_command_may_be_a_server() -> None:
    plan = make_plan(request("run", options=Options(kind=Kind.SERVER)))
    assert (plan.kind, plan.main) == (Kind.SERVER, Main(("run",), Kind.SERVER))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("python3 -m sglang.launch_server --tp 8", Kind.SERVER),
        ("trtllm-serve m --tp_size 8", Kind.SERVER),
        ("python3 run.py", Kind.JOB),
    ],
)
def test_alone_every_engine_runs_unchanged_and_a_server_stays_a_server(line: str, kind: Kind) -> None:
    plan = make_plan(request(line, size=1))
    assert plan.main is not None
    assert plan.main.argv == tuple(line.split())
    assert (plan.kind, plan.main.kind) == (kind, kind)
    assert plan.services == ()


@pytest.mark.parametrize(("line", "size"), [("torchrun", 1), ("torchrun", 2), ("trtllm-serve", 1), ("vllm serve", 1)])
def test_an_engine_without_arguments_is_planned_like_any_other(line: str, size: int) -> None:
    main = make_plan(request(line, size=size)).main
    assert main is not None
    assert " ".join(main.argv).startswith(line)


@pytest.mark.parametrize(
    "made",
    [
        request("python3 -m sglang.launch_server --tp 8", size=1),
        request("vllm serve m", options=Options(backend="generic")),
    ],
    ids=["sglang alone", "vllm run as it is"],
)
def test_an_engine_that_was_recognised_is_not_said_to_be_unknown(made: Request) -> None:
    assert "no engine was recognised" not in make_plan(made).reason


# --- the user's environment ---


def test_env_of_the_user_comes_last_and_may_hold_placeholders() -> None:
    options = Options(env=(("RANK", "{index}"), ("WORLD", "{size*gpus}"), ("JSON", '{"a": 1}')))
    assert make_plan(request("run", index=1, options=options)).env[4:] == (
        EnvVar("RANK", "1", "--env"),
        EnvVar("WORLD", "16", "--env"),
        EnvVar("JSON", '{"a": 1}', "--env"),
    )


def test_env_of_the_user_wins_over_ours() -> None:
    options = Options(env=(("VLLM_HOST_IP", "192.168.0.1"), ("RAY_DEDUP_LOGS", "1")))
    env = make_plan(request("vllm serve m -tp 16", options=options)).env
    assert [v.value for v in env if v.name == "VLLM_HOST_IP"] == ["192.168.0.1"]
    assert [v.value for v in env if v.name == "RAY_DEDUP_LOGS"] == ["1"]
    assert [v.value for v in env if v.name == "RAY_ADDRESS"] == ["10.0.0.10:6379"]


def test_env_of_the_user_wins_over_the_pods_environment_too() -> None:
    options = Options(env=(("VLLM_HOST_IP", "192.168.0.1"),))
    env = make_plan(request("vllm serve m -tp 16", options=options, environ={"VLLM_HOST_IP": "172.16.0.1"})).env
    assert [v.value for v in env if v.name == "VLLM_HOST_IP"] == ["192.168.0.1"]


AS_SET = [
    ("run", {"NIM_TENSOR_PARALLEL_SIZE": "4"}, "nim"),
    ("run", {"NODE_RANK": "0"}, None),
    ("torchrun x.py", {"MASTER_PORT": "1234"}, None),
    ("torchrun x.py", {"PET_NNODES": "2"}, None),
    ("sglang serve m --tp 16", {"HOST_IP": "10.0.0.9"}, None),
    ("sglang serve m --tp 4", {"SGLANG_USE_CPU_ENGINE": "1"}, None),
    ("vllm serve m -tp 16", {"RAY_AUTH_MODE": "disabled"}, None),
    ("vllm serve m -tp 16", {"NCCL_IB_DISABLE": "1"}, None),
]


@pytest.mark.parametrize(("line", "environ", "preset"), AS_SET)
def test_env_of_the_user_counts_as_set_wherever_the_pods_environment_does(
    line: str, environ: dict[str, str], preset: str | None
) -> None:
    in_pod = make_plan(request(line, 1, options=Options(preset=preset), environ=environ))
    by_option = make_plan(request(line, 1, options=Options(preset=preset, env=tuple(environ.items()))))
    given = tuple(EnvVar(name, value, "--env") for name, value in environ.items())
    assert by_option == replace(in_pod, env=(*in_pod.env, *given))


def test_what_env_gives_is_read_with_its_placeholders_filled_in() -> None:
    contradicts = make_plan(request("run", 1, options=Options(env=(("NNODES", "{size*2}"),))))
    assert contradicts.notes == ("NNODES=4 is left as it was set, although the group's size is 2",)


def test_env_that_contradicts_vllms_packing_is_refused() -> None:
    options = Options(env=(("VLLM_RAY_DP_PACK_STRATEGY", "strict"),))
    text = refusal(request("vllm serve m -tp 16 --data-parallel-size 2 --data-parallel-backend ray", 0, 4, options))
    assert text.startswith("VLLM_RAY_DP_PACK_STRATEGY is strict, but")


# --- purity ---


@pytest.mark.parametrize("line", ["vllm serve m -tp 16", "run {index}"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_same_request_gives_the_same_plan(line: str, index: int) -> None:
    assert make_plan(request(line, index)) == make_plan(request(line, index))
